"""Calls of the functions that rules serve: every way to call one that fits is found by trying, so that a new rule enters by itself.

x and y are (4, 6) with entries between 0 and 1, which most functions have in their domain.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from support.problems import DTYPE
from torch import Tensor

from gnewton.derivatives.operation import _RULES

# No entry twice: where one is written to twice, torch does not say which value stays.
INDEX = torch.tensor([0, 2, 1, 3])
GRID = torch.tensor([[0, 3, 1, 2, 0, 1], [2, 2, 0, 3, 1, 0]])
MASK = torch.arange(24).reshape(4, 6) % 3 == 0

Way = Callable[[Any, Tensor, Tensor], Any]
# How a function may be called.
WAYS: dict[str, Way] = {
    "x": lambda f, x, y: f(x),
    "x above 1": lambda f, x, y: f(x + 1.5),
    "x, y": lambda f, x, y: f(x, y),
    "x, dim": lambda f, x, y: f(x, 1),
    "x, dim last": lambda f, x, y: f(x, -1),
    "x, 2": lambda f, x, y: f(x, 2),
    "x, 1, 0": lambda f, x, y: f(x, 1, 0),
    "x, 0, 1, 2": lambda f, x, y: f(x, 0, 1, 2),
    "list": lambda f, x, y: f([x, y]),
    "tuple unpacked": lambda f, x, y: f(x, y[0]),
    "x, shape": lambda f, x, y: f(x, (6, 4)),
    "x, dims": lambda f, x, y: f(x, (1, 0)),
    "x, y.T": lambda f, x, y: f(x, y.mT),
    "stacked": lambda f, x, y: f(x[None], y.mT[None]),
    "x, vector": lambda f, x, y: f(x, y[0]),
    "vectors": lambda f, x, y: f(x[0], y[0]),
    "x, index": lambda f, x, y: f(x, 0, INDEX),
    "x, grid": lambda f, x, y: f(x, 0, GRID),
    "x, grid, y": lambda f, x, y: f(x, 0, GRID, y[:2]),
    "x, index, y": lambda f, x, y: f(x, 0, INDEX, y),
    "x, mask": lambda f, x, y: f(x, MASK),
    "x, mask, number": lambda f, x, y: f(x, MASK, 0.5),
    "mask, x, y": lambda f, x, y: f(MASK, x, y),
    "c, x, y": lambda f, x, y: f(x[:, :4], x, y.mT),
    "batched c, x, y": lambda f, x, y: f(x[None, :, :4], x[None], y.mT[None]),
    "image": lambda f, x, y: f(x.reshape(1, 1, 4, 6), 2),
    "signal": lambda f, x, y: f(x.reshape(1, 4, 6), 2),
    "volume": lambda f, x, y: f(x.reshape(1, 1, 2, 2, 6), 2),
    "x, unit": lambda f, x, y: f(x.reshape(1, 4, 2, 3), 2),
    "square": lambda f, x, y: f(x[:, :4]),
    "image, kernel": lambda f, x, y: f(x.reshape(1, 1, 4, 6), y[:2, :2].reshape(1, 1, 2, 2)),
    "signal, kernel": lambda f, x, y: f(x[None], y[:, :2].reshape(1, 4, 2).repeat(4, 1, 1)),
    "volume, kernel": lambda f, x, y: f(x.reshape(1, 1, 2, 2, 6), y[:2, :2].reshape(1, 1, 1, 2, 2)),
    "x, expand": lambda f, x, y: f(x, (3, 4, 6)),
    "x, thresholds": lambda f, x, y: f(x, 0.3, 0.6),
    "x, unflatten": lambda f, x, y: f(x, 1, (2, 3)),
    "positions": lambda f, x, y: f(x, GRID),
    "slice": lambda f, x, y: f(x, y[:2], 0, 1, 3),
    "select": lambda f, x, y: f(x, y[0], 0, 1),
    "diagonal": lambda f, x, y: f(x, y[0, :4]),
    "rows": lambda f, x, y: f(INDEX, x),
    "p": lambda f, x, y: f(x, 3),
    "p between": lambda f, x, y: f(x, 1.5, 0),
    "sums": lambda f, x, y: f(x, 0, GRID, y[:2], "sum"),
    "means": lambda f, x, y: f(x, 0, GRID * 0, y[:2], "mean", include_self=False),
    "margin": lambda f, x, y: f(x, (1, 2)),
    "classes": lambda f, x, y: f(x, INDEX),
    "axes": lambda f, x, y: f(x, (0,), 1e-5),
    "signs": lambda f, x, y: f(x, y.detach().sign()),
    "target": lambda f, x, y: f(x, y.detach()),
    "put": lambda f, x, y: f(x, (INDEX[:2],), y[:2]),
    "width": lambda f, x, y: f(x, 1, 3, 1),
    "equation": lambda f, x, y: f("ij,kj->ik", x, y),
    "interpolated": lambda f, x, y: f(x.reshape(1, 1, 4, 6), (5, 7), False),
    "nearest": lambda f, x, y: f(x.reshape(1, 1, 4, 6), (5, 7)),
    "columns": lambda f, x, y: f(x.reshape(1, 4, 6), (3, 4), (2, 2), (1, 1), (0, 0), (1, 1)),
    "columns of": lambda f, x, y: f(x.reshape(1, 1, 4, 6), (2, 2), (1, 1), (0, 0), (1, 1)),
    "repeat": lambda f, x, y: f(x, (2, 1)),
    "roll": lambda f, x, y: f(x, 1, 0),
    "number, x": lambda f, x, y: f(x.exp(), 0.7),
    "take": lambda f, x, y: f(x, GRID, 0),
    "three": lambda f, x, y: f(x, 3, 1, 1),
    "x, numbers": lambda f, x, y: f(x, [2, 4], 1),
    "x, index, number": lambda f, x, y: f(x, 0, INDEX[:2], 0.5),
    "x, type": lambda f, x, y: f(x, torch.float64),
    "strided": lambda f, x, y: f(x, (3, 2), (1, 6)),
    "folded": lambda f, x, y: f(x.reshape(1, 4, 6), (3, 4), 2),
    "positions, y": lambda f, x, y: f(x, INDEX, y[0, :4]),
    "flat": lambda f, x, y: f(x[0], 2),
    "keywords": lambda f, x, y: f(input=x, other=y),
    "alpha": lambda f, x, y: f(x, y, alpha=-0.7),
    "beta": lambda f, x, y: f(x[:, :4], x, y.mT, beta=0.3, alpha=-1.5),
    "dim, keepdim": lambda f, x, y: f(x, dim=0, keepdim=True),
    "descending": lambda f, x, y: f(x, dim=1, descending=True),
    "order, dim": lambda f, x, y: f(x, 3.5, dim=0),
    "approximate": lambda f, x, y: f(x, approximate="tanh"),
    "slope": lambda f, x, y: f(x, alpha=0.4),
    "strided kernel": lambda f, x, y: f(x.reshape(1, 1, 4, 6), y[:2, :2].reshape(1, 1, 2, 2), stride=2, padding=1),
    "dilated kernel": lambda f, x, y: f(x.reshape(1, 1, 4, 6), y[:2, :2].reshape(1, 1, 2, 2), dilation=2),
    "grouped kernel": lambda f, x, y: f(x[None], y[:, :2].reshape(4, 1, 2), groups=4),
    "reflected": lambda f, x, y: f(x[None], (2, 1), mode="reflect"),
    "circular": lambda f, x, y: f(x[None], (2, 1), mode="circular"),
    "accumulated": lambda f, x, y: f(x, (INDEX,), y, accumulate=True),
    "ellipses": lambda f, x, y: f("...i,ji->...j", x, y),
    "positive": lambda f, x, y: f(x @ x.mT + 3 * torch.eye(4, dtype=DTYPE)),
    "system": lambda f, x, y: f(x[:, :4] + 3 * torch.eye(4, dtype=DTYPE), y),
    "lower": lambda f, x, y: f(x[:, :4] + torch.eye(4, dtype=DTYPE), y, upper=False),
    "unit upper": lambda f, x, y: f(x[:, :4], y, upper=True, unitriangular=True),
}


def functions(name: str) -> list[Any]:
    """What torch calls by this name."""
    homes = (torch, F, torch.linalg, torch.Tensor, torch._C._nn, torch._C._special, torch.special)
    named = [getattr(home, name) for home in homes if hasattr(home, name)]
    # A property, such as Tensor.T, is called by its getter.
    named = [f.__get__ if type(f).__name__ == "getset_descriptor" else f for f in named]
    inside = getattr(torch.linalg, name.removeprefix("linalg_"), None) if name.startswith("linalg_") else None
    return named + ([] if inside is None else [inside])


def scalars(out: Any) -> Tensor | None:
    """All that has a derivative in what a function returned, in a row; None where nothing has, or not everywhere."""
    outputs = out if isinstance(out, tuple | list) else [out]
    rows = [t.flatten() for t in outputs if isinstance(t, Tensor) and t.requires_grad and t.dtype == DTYPE]
    row = torch.cat(rows) if rows else torch.zeros(0)
    return row if row.numel() and bool(torch.isfinite(row).all()) else None


def calls(name: str) -> Iterator[tuple[Any, Way]]:
    """The functions of this name with the ways to call them."""
    yield from ((f, way) for f in functions(name) for way in WAYS.values())


NAMES = sorted(_RULES)
