"""The curvature timeline: H-bar and the learning rates, update by update."""

from collections.abc import Sequence

import numpy as np

from gnewton.plots import array
from gnewton.policies import Outcome
from gnewton.teaching.scene import Axis, Mark, Panel, Scene, Shown, slider
from gnewton.teaching.widgets.figure_widget import FigureWidget


class CurvatureTimeline(FigureWidget):
    """H-bar as a heat map beside the learning rates, for one update of an optimizer's history.

    One colour scale and one axis serve all updates, so that what moves is the curvature.

    Args:
        history: the records of ``GroupedNewton.history``.
        names: the S group names.
        update: the step number to begin with, the first when None.

    Raises:
        ValueError: the history is empty, or there was no update at this step.

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
        self._names = tuple(names)
        first = next(iter(self._updates)) if update is None else update
        reach = max(float(record.learning_rates.abs().max()) for record in history) or 1.0
        rates = Axis("learning rate η of the group", (-2 * reach, 2 * reach), "symlog", reach / 1000)
        rows = Axis(names=self._names)
        scale = common_scale(np.stack([array(record.hessian) for record in history]))
        scene = Scene(
            (slider("update", "step", tuple(self._updates), first),),
            (Panel(Axis(names=self._names), rows, "H̄: red above zero, blue below"), Panel(rates, rows)),
            (Mark("heat", 0, options={"scale": scale}), Mark("bars", 1, 0, "", {"digits": 0})),
        )
        super().__init__(scene)

    def numbers(self, update: int) -> Shown:
        record = self._updates[update]
        rates = array(record.learning_rates)
        top, low = int(rates.argmax()), int(rates.argmin())
        said = (
            f"Step {record.step}, loss {record.value:.3g}, {record.status}: largest rate {self._names[top]} "
            f"{rates[top]:.2g}, smallest {self._names[low]} {rates[low]:.2g}."
        )
        return Shown([{"z": array(record.hessian)}, {"values": rates}], said)


def common_scale(hessians: np.ndarray) -> dict[str, float]:
    """A colour scale for all updates (T, S, S), reaching two decades below the peak of the flattest."""
    peaks = np.abs(hessians).max(axis=(1, 2))
    peaks = peaks[np.isfinite(peaks) & (peaks > 0)]
    if not peaks.size:
        return {"linear": 1e-3, "high": 1.0}
    between = float(np.log10(peaks.max() / peaks.min()))
    high = float(peaks.max())
    return {"linear": high * 10.0 ** -float(np.clip(between + 2, 3, 10)), "high": high}
