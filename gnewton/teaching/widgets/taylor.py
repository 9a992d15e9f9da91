"""The Taylor slice: the true loss along one step against its Taylor models."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gnewton.loss import Loss, differentiable_mode
from gnewton.partition import Partition
from gnewton.plots import loss_range
from gnewton.summary import Summary
from gnewton.teaching.scene import Axis, Mark, Panel, Scene, Shown, choice, slider
from gnewton.teaching.widgets.figure_widget import FigureWidget

REACHES = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0)
POINTS = 33
EVERYTHING = "all groups"


class TaylorSlice(FigureWidget):
    """L(theta - t U I eta) for t around 0, with the Taylor models of the summary.

    The third order appears where the summary holds it: for one group always, for all groups with ``third_full``. theta is
    where the parameters are at construction, also for pictures drawn after more training; they are moved for each picture
    and put back, whatever happens.

    Args:
        loss, partition, direction, summary: what was summarized, and the result.
        eta: (S,), the step to follow.
        group: "all groups", or the name of one, whose part alone is followed.
        reach: how far t goes.

    >>> import torch, gnewton as gn
    >>> model = gn.models.Rosenbrock(2, dtype=torch.float64)
    >>> partition = gn.Partition.by_scalar(model)
    >>> u = gn.direction.gradient(model, partition)
    >>> summary = gn.summarize(model, partition, u, order=3)
    >>> eta = gn.newton_step(summary, cubic=0.0).learning_rates
    >>> widget = TaylorSlice(model, partition, u, summary=summary, eta=eta)
    >>> widget.reach.value = 2.0
    >>> widget
    TaylorSlice: Along all groups, from loss 24.2 at t = 0 to 4.73 at t = 1; model of order 2 says 4.79.
    """

    def __init__(
        self,
        loss: Loss,
        partition: Partition,
        direction: Mapping[str, Tensor],
        *,
        summary: Summary,
        eta: Tensor,
        group: str = EVERYTHING,
        reach: float = 1.5,
    ) -> None:
        self._loss, self._partition, self._summary, self._eta = loss, partition, summary, eta
        # Copies: training that goes on must not pull the true loss away from the summary of this point.
        self._direction = {name: u.detach().clone() for name, u in direction.items()}
        self._theta = _values(partition)
        controls = (
            choice("group", "group that moves", (EVERYTHING, *partition.names), group),
            slider("reach", "how far", REACHES, reach, "{:g} η".format),
        )
        panel = Panel(Axis("t (multiple of η)"), Axis("loss"))
        orders = (Mark("line", 0, k, f"order {k + 1}", {"every": 5, "end": True}) for k in range(3))
        marks = (
            Mark("rule", 0, "muted", "", {"at": 0.0}),
            Mark("line", 0, "ink", "true loss", {"width": 3, "end": True}),
            *orders,
        )
        super().__init__(Scene(controls, (panel,), marks))

    def numbers(self, group: str, reach: float) -> Shown:
        t, eta = np.linspace(-0.3 * reach, reach, POINTS), self._moving(group)
        truth, models = self._losses(t, eta), self._models(t, eta)
        curves = [{"x": t, "y": truth}, *({"x": t, "y": models[k]} if k in models else _nothing() for k in (1, 2, 3))]
        at_one, order = self._losses(np.array([0.0, 1.0]), eta), max(models)
        told = self._models(np.array([1.0]), eta)[order][0]
        said = (
            f"Along {group}, from loss {at_one[0]:.3g} at t = 0 to {at_one[1]:.3g} at t = 1; "
            f"model of order {order} says {told:.3g}."
        )
        limits = {"x": {"limits": (t[0], t[-1])}, "y": {"limits": loss_range(truth)}}
        return Shown([{}, *curves], said, {0: limits})

    def _moving(self, group: str) -> Tensor:
        eta = self._eta.to(self._summary.gradient)
        if group == EVERYTHING:
            return eta
        mask = torch.zeros_like(eta)
        mask[self._partition.names.index(group)] = 1.0
        return mask * eta

    def _models(self, t: np.ndarray, eta: Tensor) -> dict[int, np.ndarray]:
        s = self._summary
        # Along one eta the summary is that of a single group: contract every index with eta.
        third = None
        assert s.hessian is not None
        if s.third_full is not None:
            third = [torch.einsum("rst,r,s,t->", s.third_full, eta, eta, eta)]
        elif s.third is not None and (eta != 0).sum() == 1:
            third = [(s.third * eta**3).sum()]
        along = Summary.from_tensors(
            gradient=[s.gradient @ eta], hessian=[[eta @ s.hessian @ eta]], third=third, value=s.value
        )
        steps = torch.as_tensor(t)[:, None]
        return {order: along.taylor(steps, order).cpu().numpy() for order in range(1, 3 if third is None else 4)}

    def _losses(self, t: np.ndarray, eta: Tensor) -> np.ndarray:
        change = self._partition.scale(self._direction, eta)
        now = _values(self._partition)
        values = []
        try:
            with differentiable_mode(self._partition), torch.no_grad():
                for step in t:
                    _put(self._partition, {name: p - float(step) * change[name] for name, p in self._theta.items()})
                    values.append(float(self._loss().detach()))
        finally:
            _put(self._partition, now)
        return np.array(values)


def _nothing() -> dict[str, Any]:
    return {"x": [], "y": []}


def _values(partition: Partition) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in partition.parameters.items()}


@torch.no_grad()
def _put(partition: Partition, values: Mapping[str, Tensor]) -> None:
    for name, p in partition.parameters.items():
        p.copy_(values[name])
