"""The table of models that people bring, book/real-models.csv, and how a row of it is built.

A row's builder is the function of this folder whose name is the model's: "GPT-2" is ``gpt_2``. Everything is in float64 and
small; dropout is 0 or off, batch norm in training mode. Parameters are moved a little from where their library starts them:
a bias that is 0, or a row of weights, can lie exactly on the corner of a ReLU, where there is no second derivative.
"""

import csv
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from models.architectures import functions, graphs, language, vision
from models.architectures.built import Built
from torch import Tensor, nn

import gnewton as gn

PATH = Path(__file__).parents[3] / "book" / "real-models.csv"
PAGES = (language, vision, graphs, functions)
COLUMNS = ("model", "library", "engine", "what the tape cannot record")
GROUPS = 12


@dataclass(frozen=True)
class Row:
    """engine: "tape", "nested" (exact, slow), or "differences" (not exact; summarize refuses, and names what is to blame)."""

    model: str
    library: str
    engine: str
    missing: str

    @property
    def name(self) -> str:
        return re.sub(r"[^a-z0-9]+", "_", self.model.lower()).strip("_")

    def build(self) -> Built:
        return next(vars(page)[self.name] for page in PAGES if self.name in vars(page))()


def rows() -> list[Row]:
    with PATH.open(encoding="utf-8", newline="") as file:
        return [Row(*(entry[column] for column in COLUMNS)) for entry in csv.DictReader(file)]


def builders() -> dict[str, Callable[[], Built]]:
    """Every public function of the pages."""
    own = {name: f for page in PAGES for name, f in vars(page).items() if getattr(f, "__module__", "") == page.__name__}
    return {name: f for name, f in own.items() if not name.startswith("_") and not isinstance(f, type)}


@contextmanager
def in_float64(seed: int = 0) -> Iterator[None]:
    """float64 by default and random numbers from ``seed``; both as before afterwards."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_default_dtype(before)


@dataclass
class Problem:
    """A model's loss with a direction u and at most GROUPS groups of consecutive tensors."""

    loss: Callable[[], Tensor]
    partition: gn.Partition
    u: dict[str, Tensor]
    stops: bool


def problem(row: Row) -> Problem:
    """Call it, and what is done with its result, in ``in_float64``."""
    built = row.build()
    built.model.train(built.train)
    for module in built.model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
    partition = grouped(built.model)
    u = {name: torch.randn_like(p) * _size(p) for name, p in partition.parameters.items()}
    with torch.no_grad():
        for p in partition.parameters.values():
            p += 0.05 * _size(p) * torch.randn_like(p)
    return Problem(built.loss, partition, u, built.stops)


def grouped(model: nn.Module) -> gn.Partition:
    """At most GROUPS groups of consecutive tensors; complex ones are no part of it."""
    real = {name: p for name, p in model.named_parameters() if not p.is_complex()}
    partition = gn.Partition.from_groups({name: {name: p} for name, p in real.items()}, module=model)
    n = len(partition)
    if n <= GROUPS:
        return partition
    return partition.coarsen([range(i * n // GROUPS, (i + 1) * n // GROUPS) for i in range(GROUPS)])


def _size(p: Tensor) -> float:
    # A mean of zero is a bias, or a matrix that its library starts at zero.
    return float(p.detach().abs().mean()) or 0.05


def installed(library: str) -> bool:
    return find_spec({"neuraloperator": "neuralop"}.get(library, library.replace("-", "_"))) is not None
