"""Averages of summaries over steps: the curvature of many mini-batches instead of one.

Summaries of different steps belong to different directions, and a gradient that shrinks would shrink its share. So
whoever averages takes every u with each group's part at norm 1 (``direction.normalize``): then rescaling u changes nothing.
Both averages are plain settings; what they remember is a dictionary of tensors that the caller keeps.
"""

from dataclasses import dataclass
from numbers import Real
from typing import Any

from torch import Tensor

from gnewton.summary import Summary

Memory = dict[str, Any]


@dataclass(frozen=True)
class Exponential:
    """A <- beta A + (1 - beta) S, divided by the sum of the weights so far (0 <= beta < 1; 0 is no average).

    "movavg" in the configuration of arXiv 2312.03885. Raises ValueError for beta out of range, TypeError for
    what is no number.

    >>> average, one = Exponential(0.5), Summary.from_tensors(gradient=[1.0])
    >>> _, memory = average(None, one)
    >>> average(memory, one * 4)[0].gradient
    tensor([3.], dtype=torch.float64)
    """

    beta: float = 0.9

    def __post_init__(self) -> None:
        if not isinstance(self.beta, Real | Tensor):
            raise TypeError(f"expected a number for beta, got {self.beta!r}; 0.9 remembers about ten summaries")
        object.__setattr__(self, "beta", float(self.beta))  # a saved state says it as any other
        if not 0 <= self.beta < 1:
            raise ValueError(f"expected 0 <= beta < 1, got {self.beta!r}; 0.9 remembers about ten summaries")

    def __call__(self, memory: Memory | None, summary: Summary) -> tuple[Summary, Memory]:
        """The average with ``summary`` in it, and what to remember."""
        total, weight = _read(memory, "total"), memory["weight"] if memory else 0.0
        total, weight = _sum(total, self.beta, summary, 1 - self.beta), self.beta * weight + 1 - self.beta
        return total * (1 / weight), {"total": total.state_dict(), "weight": weight}


@dataclass(frozen=True)
class Windows:
    """The mean of the last ``period`` to 2 ``period`` - 1 summaries, in two windows that take turns.

    A window that holds ``period`` summaries is closed and the one before it forgotten: two sums are enough. The first
    ``warmup`` summaries give no mean yet: nothing moves meanwhile. "Uniform average" in the configuration of arXiv
    2312.03885, where (period, warmup) goes from (3, 3) to (10, 5). Raises ValueError for numbers out of range.

    >>> average, memory, means = Windows(period=2, warmup=1), None, []
    >>> for k in range(5):
    ...     mean, memory = average(memory, Summary.from_tensors(gradient=[float(k)]))
    ...     means.append(mean and mean.gradient.item())
    >>> means
    [None, 0.5, 1.0, 2.5, 3.0]
    """

    period: int = 5
    warmup: int = 3

    def __post_init__(self) -> None:
        if not (isinstance(self.period, int) and self.period >= 1):
            raise ValueError(f"expected a period of at least 1 summary, got {self.period!r}")
        if not (isinstance(self.warmup, int) and self.warmup >= 0):
            raise ValueError(f"expected a warm-up of 0 or more summaries, got {self.warmup!r}")

    def __call__(self, memory: Memory | None, summary: Summary) -> tuple[Summary | None, Memory]:
        """The mean with ``summary`` in it, None during the warm-up, and what to remember."""
        closed, current = _read(memory, "closed"), _read(memory, "current")
        counts = dict(memory["counts"]) if memory else {"closed": 0, "current": 0, "seen": 0}
        current = _sum(current, 1.0, summary, 1.0)
        counts |= {"current": counts["current"] + 1, "seen": counts["seen"] + 1}
        if counts["current"] == self.period:
            closed, current = current, None
            counts |= {"closed": self.period, "current": 0}
        total = current if closed is None else closed if current is None else closed + current
        assert total is not None  # one of them holds the new summary
        memory = {"closed": _state_of(closed), "current": _state_of(current), "counts": counts}
        mean = total * (1 / (counts["closed"] + counts["current"]))
        return mean if counts["seen"] > self.warmup else None, memory


Average = Exponential | Windows


def _read(memory: Memory | None, name: str) -> Summary | None:
    return Summary.from_state_dict(memory[name]) if memory and memory[name] is not None else None


def _state_of(summary: Summary | None) -> dict[str, Any] | None:
    return None if summary is None else summary.state_dict()


def _sum(a: Summary | None, wa: float, b: Summary, wb: float) -> Summary:
    return b * wb if a is None else a * wa + b * wb
