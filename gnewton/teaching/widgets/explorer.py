"""The step explorer: what the cubic term and the entries off the diagonal do to the learning rates."""

import numpy as np
import torch
from matplotlib.axes import Axes

from gnewton.cubic import Step, newton_step
from gnewton.plots import COLOURS, new_figure
from gnewton.summary import Summary
from gnewton.teaching.widgets.figure_widget import FigureWidget, choice, slider

STRENGTHS = [0.0, *(10.0 ** np.linspace(-4, 4, 33))]


class StepExplorer(FigureWidget):
    """Bars of the learning rates of one summary, for a cubic strength and a part of H-bar.

    ``strength`` is lambda_int (dimensionless); ``curvature`` is "full", "diagonal", or "S = 1", which needs
    ``third_full`` to merge the groups. A failed step shows its status in place of the bars.

    >>> import gnewton as gn
    >>> s = gn.Summary.from_tensors(gradient=[1, 4], hessian=[[1, 6], [6, 16]], third=[1, 8], names=["a", "b"])
    >>> widget = StepExplorer(s, strength=1.0)
    >>> widget.curvature.value = "diagonal"
    >>> widget
    StepExplorer: Cubic strength 1, diagonal: rates a 0.7, b 0.23; predicted decrease 0.854; CONVERGED.
    """

    def __init__(self, summary: Summary, strength: float = 1.0, curvature: str = "full") -> None:
        self._summary = summary
        self._names = summary.names or tuple(str(s) for s in range(len(summary)))
        whole = summary.third_full is not None or len(summary) == 1
        parts = ["full", "diagonal", *(["S = 1"] if whole else [])]
        known = isinstance(strength, float | int)
        nearest = min(STRENGTHS, key=lambda value: abs(value - strength)) if known else strength
        self.strength = slider("cubic strength λ_int", STRENGTHS, nearest, lambda v: f"{v:.3g}")
        self.curvature = choice("part of H-bar", parts, curvature)
        figure = new_figure(width=6.4, height=1.4 + 0.32 * len(summary))
        self._bars = figure.axes[0].barh(self._names, np.zeros(len(summary)), color=COLOURS[0])
        self._labels = [figure.axes[0].text(0, i, "", va="center") for i in range(len(summary))]
        self._prepare(figure.axes[0])
        super().__init__(figure, {"strength": self.strength, "curvature": self.curvature})

    def step(self) -> Step:
        """The step of the present settings; for "S = 1" its one learning rate."""
        summary, part = self._summary, self.curvature.value
        if part == "S = 1":
            summary = summary.coarsen({"all": list(range(len(summary)))})
        return newton_step(summary, self.strength.value, diagonal=part == "diagonal", on_failure="report")

    def draw(self) -> str:
        step = self.step()
        rates = step.learning_rates.expand(len(self._names)).numpy()
        for bar, label, rate in zip(self._bars, self._labels, rates, strict=True):
            bar.set_width(rate)
            # The number is written beyond the end of the bar, on its own side of zero.
            label.set(x=rate, text=f" {rate:.2g} ", ha="left" if rate >= 0 else "right")
        listed = ", ".join(f"{name} {rate:.2g}" for name, rate in zip(self._names, rates, strict=True))
        outcome = f"predicted decrease {step.predicted_decrease:.3g}" if step.status.ok else "no step"
        return f"Cubic strength {self.strength.value:.3g}, {self.curvature.value}: rates {listed}; {outcome}; {step.status.name}."

    def _prepare(self, ax: Axes) -> None:
        ax.axvline(0.0, color="black", linewidth=0.8)
        ax.invert_yaxis()
        # Fixed limits, from the weakest step to the strongest: a moving axis would hide what the slider does.
        rates = torch.stack(
            [newton_step(self._summary, c, on_failure="report").learning_rates for c in STRENGTHS[1::4]]
        )
        sizes = rates.abs()[rates != 0].numpy() if rates.any() else np.ones(1)
        low, high = np.floor(np.log10(np.quantile(sizes, 0.25))), np.ceil(np.log10(sizes.max()))
        ax.set_xscale("symlog", linthresh=10.0**low)
        ax.set(xlim=(-(10.0 ** (high + 2)), 10.0 ** (high + 2)), xlabel="learning rate η of the group")
        decades = 10.0 ** np.arange(low + 1, high + 1, max(1, (high - low) // 3))
        ax.set_xticks([*-decades[::-1], 0.0, *decades])
