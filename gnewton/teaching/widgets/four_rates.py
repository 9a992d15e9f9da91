"""The idea in one figure: four groups, a rate for each, and the loss that answers."""

from functools import partial
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray

from gnewton.cubic import newton_step
from gnewton.direction import gradient
from gnewton.loss import Loss
from gnewton.partition import Partition
from gnewton.plots import array
from gnewton.summary import summarize
from gnewton.teaching.scene import Axis, Mark, Panel, Scene, Shown, slider
from gnewton.teaching.widgets.bound import losses_along
from gnewton.teaching.widgets.figure_widget import FigureWidget

Array = NDArray[np.float64]
PARTS = (0.0, 0.5, 1.0, 1.5, 2.0)
ROWS = ("before the step", "the model says", "after the step")


class FourRates(FigureWidget):
    """A slider for each group's learning rate, as a part of Newton's; beside it the loss before and after the step.

    The model is m(eta) of order 2 with the cubic term. All losses are computed at construction, where the parameters stand
    then; the parameters are put back.

    Args:
        loss: of the parameters in ``partition``.
        partition: S groups, a handful: there are 5^S losses.
        cubic: lambda_int.
        parts: the first position of every slider, S numbers among PARTS; zeros by default.

    >>> import gnewton as gn
    >>> model = gn.models.Rosenbrock(2, dtype=torch.float64)
    >>> FourRates(model, gn.Partition.by_scalar(model), parts=(1.0, 1.0))
    FourRates: With 1 and 1 times Newton's rates the loss goes from 24.2 to 4.75; the model says 4.79.
    """

    def __init__(
        self, loss: Loss, partition: Partition, *, cubic: float = 1.0, parts: tuple[float, ...] | None = None
    ) -> None:
        u = gradient(loss, partition)
        summary = summarize(loss, partition, u, order=3)
        step = newton_step(summary, cubic)
        assert summary.third is not None
        eta, metric = array(step.learning_rates), np.cbrt(np.abs(array(summary.third)))
        self._start = float(summary.value)
        self._gradient, self._hessian = array(summary.gradient) * eta, array(summary.hessian) * np.outer(eta, eta)
        self._metric, self._cubic = metric * eta, cubic
        self._losses = {
            t: float(losses_along(loss, partition, partition.scale(u, torch.tensor(t * eta)), np.ones(1))[0])
            for t in product(PARTS, repeat=len(partition))
        }
        super().__init__(self._scene(partition.names, eta, parts or (0.0,) * len(partition)))

    def _scene(self, names: tuple[str, ...], eta: Array, first: tuple[float, ...]) -> Scene:
        """A slider and a bar for each rate; a bar for the loss before, promised and after."""
        controls = tuple(
            slider(f"rate_{i}", f"rate of {name}", PARTS, first[i], partial(_rate, float(eta[i])))
            for i, name in enumerate(names)
        )
        highest = 1.15 * max(self._start, *(v for v in self._losses.values() if v < 2 * self._start))
        panels = (
            Panel(Axis("part of Newton's rate", (0.0, 2.2)), Axis(names=names)),
            Panel(Axis("loss", (0.0, highest)), Axis(names=ROWS)),
        )
        given = {
            "start": self._start,
            "gradient": self._gradient,
            "hessian": self._hessian,
            "metric": self._metric,
            "cubic": self._cubic,
            "losses": [float(f"{v:.6g}") for v in self._losses.values()],
        }
        return Scene(controls, panels, (Mark("bars"), Mark("bars", 1, 1, "", {"digits": 3})), "rates", given)

    def numbers(self, **parts: float) -> Shown:
        t = np.array(list(parts.values()))
        model = self._start - self._gradient @ t + t @ self._hessian @ t / 2
        model += self._cubic / 6 * np.linalg.norm(self._metric * t) ** 3
        after = self._losses[tuple(parts.values())]
        listed = [f"{v:g}" for v in parts.values()]
        said = " and ".join([", ".join(listed[:-1]), listed[-1]] if len(listed) > 1 else listed)
        sentence = (
            f"With {said} times Newton's rates the loss goes from {self._start:.3g} to {after:.3g}; "
            f"the model says {model:.3g}."
        )
        return Shown([{"values": t}, {"values": [self._start, model, after]}], sentence)


def _rate(newton: float, part: float) -> str:
    return f"{part * newton:.2g}"
