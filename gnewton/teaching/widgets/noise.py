"""The noise explorer: how far the summaries of mini-batches, and the rates made of them, scatter about those of all the data."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gnewton.cubic import newton_step
from gnewton.plots import array
from gnewton.summary import Summary
from gnewton.teaching.scene import Axis, Mark, Panel, Scene, Shown, choice, slider
from gnewton.teaching.widgets.figure_widget import FigureWidget

Array = NDArray[np.float64]
PARTS = (1, 3, 10, 30, 100)
STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0)
DRAWS = 60
QUANTITIES = ("g-bar", "diagonal of H-bar", "η*")
VIEW = (-1.5, 3.5)


class NoiseExplorer(FigureWidget):
    """Many mini-batches of one size: what each says of every group, over what all the data say, and the spread by size.

    The spread is the distance of the quartiles over the value of all the data.

    Args:
        parts: summaries (order 3) of equal small parts of the data, all at one theta and along one u. The mean of k of them
            is the summary of a batch k times as large.
        names: of the S groups.
        part: the samples in one part.
        batch: samples a batch, drawn part by part, with replacement.
        quantity: g-bar, the diagonal of H-bar, or eta*.
        strength: lambda_int of eta*.

    Raises ValueError for a group with g-bar = 0: there is nothing to divide by.

    >>> import gnewton as gn
    >>> noisy = [gn.Summary.from_tensors(gradient=[g], hessian=[[2.0]], third=[1.0]) for g in (0.5, 1.5)]
    >>> widget = NoiseExplorer(noisy, names=["w"], part=10, quantity="diagonal of H-bar")
    >>> widget.batch.value = 1000; widget
    NoiseExplorer: Batches of 1000, diagonal of H-bar: the quartiles are 0 of the value apart (median over the groups).
    """

    def __init__(
        self,
        parts: Sequence[Summary],
        names: Sequence[str],
        part: int,
        *,
        batch: int = 100,
        quantity: str = "η*",
        strength: float = 1.0,
    ) -> None:
        self._names, self._sizes = tuple(names), tuple(part * k for k in PARTS)
        gradient = torch.stack([p.gradient for p in parts]).sum(0)
        still = [name for name, g in zip(names, gradient, strict=True) if g == 0]
        if still:
            raise ValueError(f"expected groups that the data move, got g-bar = 0 for {still}; leave them out")
        self._scatter = {s: scatter(parts, s) for s in STRENGTHS}
        self._heights = np.random.default_rng(0).uniform(-0.3, 0.3, DRAWS)
        super().__init__(self._scene(batch, quantity, strength))

    def _scene(self, batch: int, quantity: str, strength: float) -> Scene:
        """A dot for each batch, and how wide they scatter by the size of a batch."""
        controls = (
            slider("batch", "samples a batch", self._sizes, batch),
            choice("quantity", "quantity", QUANTITIES, quantity, {"g-bar": "ḡ", "diagonal of H-bar": "diagonal of H̄", "η*": "η*"}.__getitem__),
            slider("strength", "cubic strength λ_int", STRENGTHS, strength, "{:g}".format),
        )  # fmt: skip
        over = Panel(Axis("over the value of all data", VIEW), Axis(names=self._names), "60 batches a group")
        sizes = Axis("samples a batch", (self._sizes[0] / 1.2, self._sizes[-1] * 1.2), "log", ticks=self._sizes[::2])
        spreads = Panel(sizes, Axis("spread", (1e-2, 1e2), "log"))
        root = {"x": self._sizes, "y": (np.array(self._sizes) / self._sizes[0]) ** -0.5}
        dots = (Mark("points", 0, s, "", {"faint": 0.6, "size": 2.5}) for s in range(len(self._names)))
        lines = (Mark("line", 1, s, name, {"every": 1, "end": True}) for s, name in enumerate(self._names))
        marks = (
            *dots,
            Mark("rule", 0, "ink", "all data", {"at": 1.0}),
            Mark("line", 1, "muted", "1 / √batch", {"width": 5, "faint": 0.4, "dash": "", "fixed": root}),
            *lines,
            Mark("rule", 1, "ink", "this size", {"dash": "2 3"}),
        )
        return Scene(controls, (over, spreads), marks, digits=3)

    def numbers(self, batch: int, quantity: str, strength: float) -> Shown:
        # lambda_int changes the rates alone: the other numbers are those of the first strength.
        values = self._scatter[strength][quantity]  # (sizes, draws, S)
        here, apart = values[self._sizes.index(batch)], spread(values)
        dots = [{"x": np.clip(column, *VIEW), "y": s + self._heights} for s, column in enumerate(here.T)]
        lines = [{"x": self._sizes, "y": column} for column in apart.T]
        typical = float(np.median(spread(here[None])))
        made = f" at λ_int {strength:g}" * (quantity == "η*")
        said = (
            f"Batches of {batch}, {quantity}{made}: "
            f"the quartiles are {typical:.1g} of the value apart (median over the groups)."
        )
        return Shown([*dots, {}, {}, *lines, {"at": batch}], said)


def scatter(parts: Sequence[Summary], strength: float) -> dict[str, Array]:
    """By quantity: what the draws of every size say, over what all the parts say, (sizes, draws, S)."""
    g, h, d = (torch.stack([t for t in column if t is not None]) for column in _columns(parts))
    draw = torch.Generator().manual_seed(0)
    rows = [torch.randint(len(parts), (DRAWS, k), generator=draw) for k in PARTS]
    means = [(g[i].mean(1), h[i].mean(1), d[i].mean(1)) for i in rows]
    whole = g.mean(0), h.mean(0), d.mean(0)
    rates = torch.stack([torch.stack([_rates(*one, strength) for one in zip(*m, strict=True)]) for m in means])
    quantities = (
        torch.stack([m[0] for m in means]) / whole[0],
        torch.stack([m[1].diagonal(dim1=1, dim2=2) for m in means]) / whole[1].diagonal(),
        rates / _rates(*whole, strength),
    )
    return {name: array(values) for name, values in zip(QUANTITIES, quantities, strict=True)}


def spread(values: Array) -> Array:
    """The distance of the quartiles over the draws: (sizes, draws, S) -> (sizes, S)."""
    low, high = np.quantile(values, [0.25, 0.75], axis=1)
    return np.asarray(high - low)


def _columns(parts: Sequence[Summary]) -> Any:
    return zip(*((p.gradient, p.hessian, p.third) for p in parts), strict=True)


def _rates(gradient: Tensor, hessian: Tensor, third: Tensor, strength: float) -> Tensor:
    summary = Summary.from_tensors(gradient=gradient, hessian=hessian, third=third)
    return newton_step(summary, strength, on_failure="report").learning_rates
