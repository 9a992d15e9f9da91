"""The noise explorer: how far the summaries of mini-batches, and the rates made of them, scatter about those of all the data."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gnewton.cubic import newton_step
from gnewton.plots import GREY, array, new_figure, style
from gnewton.summary import Summary
from gnewton.teaching.widgets.figure_widget import FigureWidget, choice, slider

Array = NDArray[np.float64]
PARTS = (1, 3, 10, 30, 100)
STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0)
DRAWS = 60
QUANTITIES = ("g-bar", "diagonal of H-bar", "η*")
VIEW = (-1.5, 3.5)


class NoiseExplorer(FigureWidget):
    """Many mini-batches of one size: what each says of every group, over what all the data say, and the spread by size.

    parts: summaries (order 3) of equal small parts of the data, all at one theta and along one u, so that the mean of k of
    them is the summary of a batch k times as large; part: the samples in one; names: of the S groups. ``batch``: samples a
    batch, drawn part by part, with replacement. ``quantity``: g-bar, the diagonal of H-bar, or eta*, the step of
    ``strength`` lambda_int. The spread is the distance of the quartiles over the value of all the data. Raises ValueError
    for a group with g-bar = 0: there is nothing to divide by.

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
        batch: int = 100,
        quantity: str = "η*",
        strength: float = 1.0,
    ) -> None:
        self._names, self._sizes = list(names), [part * k for k in PARTS]
        moved = torch.stack([p.gradient for p in parts]).sum(0)
        still = [name for name, g in zip(names, moved, strict=True) if g == 0]
        if still:
            raise ValueError(f"expected groups that the data move, got g-bar = 0 for {still}; leave them out")
        self._found = {s: scatter(parts, s) for s in STRENGTHS}
        self.batch = slider("samples a batch", self._sizes, batch)
        self.quantity = choice("quantity", QUANTITIES, quantity)
        self.strength = slider("cubic strength λ_int", STRENGTHS, strength, lambda v: f"{v:g}")
        self._prepare()
        super().__init__(self.figure, {"batch": self.batch, "quantity": self.quantity, "strength": self.strength})

    def draw(self) -> str:
        values = self._found[self.strength.value][self.quantity.value]  # (sizes, draws, S)
        here = values[self._sizes.index(self.batch.value)]
        for dots, line, column, apart in zip(self._dots, self._lines, here.T, spread(values).T, strict=True):
            dots.set_xdata(np.clip(column, *VIEW))
            line.set_ydata(apart)
        self._mark.set_xdata([self.batch.value] * 2)
        typical = float(np.median(spread(here[None])))
        made = f" at λ_int {self.strength.value:g}" * (self.quantity.value == "η*")
        return (
            f"Batches of {self.batch.value}, {self.quantity.value}{made}: "
            f"the quartiles are {typical:.1g} of the value apart (median over the groups)."
        )

    def _prepare(self) -> None:
        self.figure = new_figure(columns=2, height=1.8 + 0.36 * len(self._names))
        left, right = self.figure.axes
        heights = np.random.default_rng(0).uniform(-0.3, 0.3, DRAWS)
        # Hollow where they lie on top of each other.
        look: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 4, "alpha": 0.5}
        colours = [style(s)["color"] for s in range(len(self._names))]
        self._dots = [left.plot(np.ones(DRAWS), s + heights, color=c, **look)[0] for s, c in enumerate(colours)]
        left.axvline(1.0, color="black", linewidth=1.0)
        left.axvline(0.0, color=GREY, linewidth=0.8, linestyle=":")
        left.set_yticks(range(len(self._names)), self._names)
        left.set(
            xlim=VIEW, ylim=(len(self._names) - 0.5, -0.5), xlabel="over the value of all the data (edges: beyond)"
        )
        self._lines = self._prepare_lines(right)

    def _prepare_lines(self, axes: Any) -> list[Any]:
        sizes = np.array(self._sizes, dtype=float)
        axes.plot(sizes, (sizes / sizes[0]) ** -0.5, color=GREY, linewidth=3, alpha=0.4, label="1 / √batch")
        one = np.ones_like(sizes)
        lines = [
            axes.plot(sizes, one, **style(s, marker=True), linewidth=1.4, label=name)[0]
            for s, name in enumerate(self._names)
        ]
        self._mark = axes.axvline(sizes[0], color="black", linewidth=0.8)
        axes.set(xlabel="samples a batch", ylabel="spread", xscale="log", yscale="log", ylim=(1e-2, 1e2))
        axes.legend(fontsize=7, ncols=2, framealpha=0.9, loc="upper right")
        return lines


def scatter(parts: Sequence[Summary], strength: float) -> dict[str, Array]:
    """By quantity: what the draws of every size say, over what all the parts say, (sizes, draws, S)."""
    g, h, d = (torch.stack([t for t in column if t is not None]) for column in _columns(parts))
    draw = torch.Generator().manual_seed(0)
    rows = [torch.randint(len(parts), (DRAWS, k), generator=draw) for k in PARTS]
    means = [(g[i].mean(1), h[i].mean(1), d[i].mean(1)) for i in rows]
    whole = g.mean(0), h.mean(0), d.mean(0)
    rates = torch.stack([torch.stack([_rates(*one, strength) for one in zip(*m, strict=True)]) for m in means])
    found = (
        torch.stack([m[0] for m in means]) / whole[0],
        torch.stack([m[1].diagonal(dim1=1, dim2=2) for m in means]) / whole[1].diagonal(),
        rates / _rates(*whole, strength),
    )
    return {name: array(values) for name, values in zip(QUANTITIES, found, strict=True)}


def spread(values: Array) -> Array:
    """The distance of the quartiles over the draws: (sizes, draws, S) -> (sizes, S)."""
    low, high = np.quantile(values, [0.25, 0.75], axis=1)
    return np.asarray(high - low)


def _columns(parts: Sequence[Summary]) -> Any:
    return zip(*((p.gradient, p.hessian, p.third) for p in parts), strict=True)


def _rates(gradient: Tensor, hessian: Tensor, third: Tensor, strength: float) -> Tensor:
    summary = Summary.from_tensors(gradient=gradient, hessian=hessian, third=third)
    return newton_step(summary, strength, on_failure="report").learning_rates
