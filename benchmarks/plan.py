"""What is to be measured, and how long: what every section is given."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.networks import NETWORKS, PARTITIONS, SEVEN
from benchmarks.report import RESULTS


@dataclass
class Plan:
    """What to run: the networks, seconds per measurement, and whether the slow peers are left out."""

    networks: Sequence[str] = tuple(NETWORKS)
    seconds: float = 2.0
    quick: bool = False
    folder: Path = RESULTS
    failures: list[str] = field(default_factory=list)

    @property
    def seven(self) -> list[str]:
        return [n for n in self.networks if n in SEVEN]

    @property
    def partitions(self) -> list[str]:
        return ["by tensor", "single"] if self.quick else list(PARTITIONS)

    @property
    def patience(self) -> float:
        """Seconds after which the first run of a subject is given up."""
        return 5.0 if self.quick else 120.0

    @property
    def peers(self) -> list[str]:
        slow = [] if self.quick else ["torch.func", "curvlinops"]
        return ["engine", "paper", "paper, short", "tightened", *slow]
