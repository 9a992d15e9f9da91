"""The curvature timeline: H-bar and the learning rates, update by update."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import SymLogNorm

from gnewton.plots import COLOURS, array, heat_map, mark_signs, new_figure, signed_log
from gnewton.policies import Outcome
from gnewton.teaching.widgets.figure_widget import FigureWidget, slider


class CurvatureTimeline(FigureWidget):
    """H-bar as a heat map beside the learning rates, for one update of an optimizer's history.

    history: the records of ``GroupedNewton.history``; names: the S group names; update: the step number to begin with,
    the first when None. One colour scale and one axis serve all updates, so that what moves is the curvature.
    Raises ValueError for an empty history, or for a step at which there was no update.

    >>> import torch, gnewton as gn
    >>> model = gn.models.Rosenbrock(2, dtype=torch.float64)
    >>> optimizer = gn.GroupedNewton(gn.Partition.by_scalar(model), lr=1.0, cubic=1.0, period=1)
    >>> losses = [optimizer.step(model) for _ in range(3)]
    >>> widget = CurvatureTimeline(optimizer.history, names=["x", "y"])
    >>> widget.update.value = 2
    >>> widget
    CurvatureTimeline: Step 2, loss 4.51, CONVERGED: largest rate x 0.0098, smallest y -0.2.
    """

    def __init__(self, history: Sequence[Outcome], names: Sequence[str], update: int | None = None) -> None:
        if not history or any(record.hessian is None for record in history):
            raise ValueError(
                "expected updates with their Hessians, got an empty history or too many groups; train first"
            )
        self._updates = {record.step: record for record in history}
        self._names = list(names)
        first = next(iter(self._updates)) if update is None else update
        self.update = slider("step", self._updates, first)
        figure = new_figure(columns=2, height=4.2)
        figure.set_layout_engine("constrained", wspace=0.08)  # between the scale of the colours and the names
        self._heat, self._bars = figure.axes
        self._norm = _common_scale(np.stack([array(record.hessian) for record in history]))
        self._picture = heat_map(
            array(self._updates[first].hessian), self._names, ax=self._heat, norm=self._norm
        ).get_images()[0]
        self._marks = list(self._heat.get_lines())
        self._lengths = self._prepare_bars(np.stack([array(record.learning_rates) for record in history]))
        super().__init__(figure, {"update": self.update})

    def draw(self) -> str:
        update = self._updates[self.update.value]
        hessian, rates = array(update.hessian), array(update.learning_rates)
        self._picture.set_data(hessian)
        for mark in self._marks:
            mark.remove()
        self._marks = mark_signs(self._heat, hessian, self._norm)
        for bar, rate in zip(self._lengths, rates, strict=True):
            bar.set(width=rate, color=COLOURS[0] if rate >= 0 else COLOURS[1])
        top, low = int(rates.argmax()), int(rates.argmin())
        return (
            f"Step {update.step}, loss {update.value:.3g}, {update.status}: largest rate {self._names[top]} "
            f"{rates[top]:.2g}, smallest {self._names[low]} {rates[low]:.2g}."
        )

    def _prepare_bars(self, rates: np.ndarray) -> list[Any]:
        reach = float(np.abs(rates).max()) or 1.0
        ax = self._bars
        bars = ax.barh(self._names, np.zeros(len(self._names)))
        ax.axvline(0.0, color="black", linewidth=0.8)
        ax.invert_yaxis()
        ax.set_xscale("symlog", linthresh=reach / 1000)
        decade = 10.0 ** np.floor(np.log10(reach))
        ax.set(xlim=(-1.5 * reach, 1.5 * reach), xlabel="learning rate η of the group")
        ax.set_xticks([-decade, -decade / 100, 0, decade / 100, decade])
        return list(bars)


def _common_scale(hessians: np.ndarray) -> SymLogNorm:
    """A colour scale for all updates (T, S, S), reaching two decades below the peak of the flattest."""
    peaks = np.abs(hessians).max(axis=(1, 2))
    peaks = peaks[np.isfinite(peaks) & (peaks > 0)]
    between = float(np.log10(peaks.max() / peaks.min())) if peaks.size else 0.0
    return signed_log(hessians, decades=float(np.clip(between + 2, 3, 10)))
