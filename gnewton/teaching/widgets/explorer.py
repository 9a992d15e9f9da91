"""The step explorer: what the cubic term and the entries off the diagonal do to the learning rates."""

import numpy as np
import torch

from gnewton.cubic import Step, newton_step
from gnewton.summary import Summary
from gnewton.teaching.scene import Axis, Mark, Panel, Scene, Shown, choice, slider
from gnewton.teaching.widgets.figure_widget import FigureWidget

STRENGTHS = (0.0, *(float(v) for v in 10.0 ** np.linspace(-4, 4, 33)))


class StepExplorer(FigureWidget):
    """Bars of the learning rates of one summary, for a cubic strength and a part of H-bar.

    A failed step shows its status in place of the bars. A rate below zero is a hollow bar.

    Args:
        summary: of order 3, S groups.
        strength: lambda_int (dimensionless); the nearest of STRENGTHS is taken.
        curvature: "full", "diagonal", or "S = 1", which needs ``third_full`` to merge the groups.

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
        controls = (
            slider("strength", "cubic strength λ_int", STRENGTHS, nearest, "{:.3g}".format),
            choice("curvature", "part of H̄", parts, curvature),
        )
        rates = _rates_axis(summary)
        panel = Panel(rates, Axis(names=self._names))
        super().__init__(Scene(controls, (panel,), (Mark("bars", look=0),)))

    def step(self) -> Step:
        """The step of the present settings; for "S = 1" its one learning rate."""
        return self._step(self.strength.value, self.curvature.value)

    def numbers(self, strength: float, curvature: str) -> Shown:
        step = self._step(strength, curvature)
        rates = step.learning_rates.expand(len(self._names)).numpy()
        listed = ", ".join(f"{name} {rate:.2g}" for name, rate in zip(self._names, rates, strict=True))
        outcome = f"predicted decrease {step.predicted_decrease:.3g}" if step.status.ok else "no step"
        said = f"Cubic strength {strength:.3g}, {curvature}: rates {listed}; {outcome}; {step.status.name}."
        return Shown([{"values": rates}], said)

    def _step(self, strength: float, curvature: str) -> Step:
        summary = self._summary
        if curvature == "S = 1":
            summary = summary.coarsen({"all": list(range(len(summary)))})
        return newton_step(summary, strength, diagonal=curvature == "diagonal", on_failure="report")


def _rates_axis(summary: Summary) -> Axis:
    """One axis from the weakest step to the strongest: a moving axis would hide what the slider does."""
    steps = [newton_step(summary, c, on_failure="report") for c in STRENGTHS[1::4]]
    rates = torch.stack([step.learning_rates for step in steps])
    sizes = rates.abs()[rates != 0].numpy() if rates.any() else np.ones(1)
    low, reach = np.floor(np.log10(np.quantile(sizes, 0.25))), 3 * float(sizes.max())  # room for a number at its end
    return Axis("learning rate η of the group", (-reach, reach), "symlog", float(10.0**low))
