"""The cubic bound: the loss along one group, its Taylor models, and the model whose cubic term always points up."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gnewton.loss import Loss, differentiable_mode
from gnewton.partition import Partition
from gnewton.plots import array, loss_range
from gnewton.summary import Summary
from gnewton.teaching.scene import Axis, Mark, Panel, Scene, Shown, choice, slider
from gnewton.teaching.widgets.figure_widget import FigureWidget
from gnewton.undo import restored

Array = NDArray[np.float64]
STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0)
POINTS = 41
CURVES = ("loss", "order 2", "order 3", "order 2 + cubic term")


class Alone(NamedTuple):
    """One group's derivatives per unit of x = D eta; the third one is then 1 or -1."""

    metric: float
    slope: float
    curvature: float
    sign: float

    def models(self, x: Array, strength: float) -> tuple[Array, Array, Array]:
        """What orders 2 and 3, and order 2 with the cubic term, add to the loss at x (n,)."""
        quadratic = -self.slope * x + self.curvature * x**2 / 2
        return quadratic, quadratic - self.sign * x**3 / 6, quadratic + strength * np.abs(x) ** 3 / 6

    def minimum(self, strength: float) -> float:
        """The x where order 2 with the cubic term is least."""
        root = np.sqrt(self.curvature**2 + 2 * strength * abs(self.slope))
        return float(2 * self.slope / (self.curvature + root))


class CubicBound(FigureWidget):
    """The loss along one group s alone, its models of order 2 and 3, and order 2 with lambda_int ||D eta||^3 / 6 on top.

    The dot is the minimum of the last one: the step that the group would take alone. The horizontal axis is x = D_ss eta_s,
    as far as the step of the weakest cubic term goes, and a little further. All losses are computed at construction, where
    the parameters stand then; the parameters are put back.

    Args:
        loss, partition, direction, summary: what was summarized, and the result, of order 3.
        group: one whose slope and third derivative are not zero, the first of them by default.
        strength: lambda_int.

    Raises:
        ValueError: there is no such group.

    >>> import torch, gnewton as gn
    >>> theta = torch.ones(1, dtype=torch.float64, requires_grad=True)
    >>> partition = gn.Partition.from_groups({"w": {"theta": theta}})
    >>> loss, u = lambda: (theta**4).sum(), {"theta": torch.ones(1, dtype=torch.float64)}
    >>> CubicBound(loss, partition, u, summary=gn.summarize(loss, partition, u), strength=1.0)
    CubicBound: w alone, cubic strength 1: at D η = 0.761 the model promises a fall of 0.564, the loss falls by 0.706, ρ = 1.3.
    """

    def __init__(
        self,
        loss: Loss,
        partition: Partition,
        direction: Mapping[str, Tensor],
        *,
        summary: Summary,
        group: str | None = None,
        strength: float = 1.0,
    ) -> None:
        self._alone = by_group(summary, partition.names)
        if not self._alone:
            raise ValueError(
                "expected a group with a slope and a third derivative, got none: D is zero, nothing bounds"
            )
        self._places = {name: places(one) for name, one in self._alone.items()}
        self._changes = {}
        for name, one in self._alone.items():
            part = partition.restrict(direction, partition.names.index(name))
            values = losses_along(loss, partition, part, self._places[name] / one.metric)
            self._changes[name] = values - float(summary.value)
        super().__init__(_scene(tuple(self._alone), group or next(iter(self._alone)), strength))

    def numbers(self, group: str, strength: float) -> Shown:
        one, x, truth = self._alone[group], self._places[group][:POINTS], self._changes[group][:POINTS]
        best = one.minimum(strength)
        told = one.models(np.array([best]), strength)[2][0]
        reached = self._changes[group][POINTS + STRENGTHS.index(strength)]
        curves = [{"x": x, "y": y} for y in (truth, *one.models(x, strength))]
        fate = "falls" if reached < 0 else "rises"
        said = (
            f"{group} alone, cubic strength {strength:g}: at D η = {best:.3g} the model promises a fall of {-told:.3g}, "
            f"the loss {fate} by {abs(reached):.3g}, ρ = {reached / told:.2g}."
        )
        limits = {"x": {"limits": (x.min(), x.max())}, "y": {"limits": loss_range(truth)}}
        return Shown([{}, *curves, {"x": [best], "y": [told]}], said, {0: limits})


def _scene(groups: tuple[str, ...], group: str, strength: float) -> Scene:
    """The change of the loss along one group, its three models, and the minimum of the last."""
    controls = (
        choice("group", "group that moves", groups, group),
        slider("strength", "cubic strength λ_int", STRENGTHS, strength, "{:g}".format),
    )
    panel = Panel(Axis("x = D η of this group"), Axis("change of the loss"))
    looks: tuple[tuple[int | str, dict[str, Any]], ...] = (
        ("ink", {"width": 3}),
        (1, {}),
        (2, {}),
        (0, {"every": 8}),
    )
    lines = (Mark("line", 0, look, name, more) for name, (look, more) in zip(CURVES, looks, strict=True))
    dot = Mark("points", 0, "ink", "its minimum", {"shape": "circle", "size": 5})
    return Scene(controls, (panel,), (Mark("rule", 0, "muted", "", {"at": 0.0}), *lines, dot))


def by_group(summary: Summary, names: tuple[str, ...]) -> dict[str, Alone]:
    """Every group that has a slope and a third derivative, in units of its D."""
    assert summary.hessian is not None
    assert summary.third is not None
    numbers = zip(names, array(summary.gradient), array(summary.hessian.diagonal()), array(summary.third), strict=True)
    return {
        name: Alone(float(np.cbrt(abs(t))), g / np.cbrt(abs(t)), h / np.cbrt(abs(t)) ** 2, float(np.sign(t)))
        for name, g, h, t in numbers
        if g != 0 and t != 0
    }


def places(one: Alone) -> Array:
    """Where the loss is needed: a grid, and after it the minimum for each strength."""
    minima = [one.minimum(strength) for strength in STRENGTHS]
    return np.concatenate([np.linspace(-0.5, 1.3, POINTS) * minima[0], minima])


def losses_along(loss: Loss, partition: Partition, change: Mapping[str, Tensor], steps: Array) -> Array:
    """L(theta - t change) for every t of ``steps``; theta is put back, whatever happens."""
    values = []
    with differentiable_mode(partition), torch.no_grad(), restored(partition) as start:
        for t in steps:
            start.move({name: float(t) * part for name, part in change.items()})
            values.append(float(loss().detach()))
    return np.array(values)
