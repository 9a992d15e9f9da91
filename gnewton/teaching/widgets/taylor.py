"""The Taylor slice: the true loss along one step against its Taylor models."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from gnewton.loss import Loss, differentiable_mode
from gnewton.partition import Partition
from gnewton.plots import new_figure, taylor_models
from gnewton.summary import Summary
from gnewton.teaching.widgets.figure_widget import FigureWidget, choice, slider

REACHES = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0)
EVERYTHING = "all groups"


class TaylorSlice(FigureWidget):
    """L(theta - t U I eta) for t around 0, with the Taylor models of the summary.

    eta (S,) is the step to follow. ``group`` keeps all of it or one group's part; ``reach`` is how far t goes. The third
    order appears where the summary holds it: for one group always, for all groups with ``third_full``. theta is where the
    parameters are now, also for pictures drawn after more training; they are moved for each picture and put back, whatever
    happens.

    >>> import torch, gnewton as gn
    >>> model = gn.models.Rosenbrock(2, dtype=torch.float64)
    >>> partition = gn.Partition.by_scalar(model)
    >>> u = gn.direction.gradient(model, partition)
    >>> summary = gn.summarize(model, partition, u, order=3)
    >>> widget = TaylorSlice(model, partition, u, summary, gn.newton_step(summary, cubic=0.0).learning_rates)
    >>> widget.reach.value = 2.0
    >>> widget
    TaylorSlice: Along all groups, from loss 24.2 at t = 0 to 4.73 at t = 1; model of order 2 says 4.79.
    """

    def __init__(
        self,
        loss: Loss,
        partition: Partition,
        direction: Mapping[str, Tensor],
        summary: Summary,
        eta: Tensor,
        group: str = EVERYTHING,
        reach: float = 1.5,
    ) -> None:
        self._loss, self._partition, self._summary, self._eta = loss, partition, summary, eta
        # Copies: training that goes on must not pull the true loss away from the summary of this point.
        self._direction = {name: u.detach().clone() for name, u in direction.items()}
        self._theta = _values(partition)
        self.group = choice("group that moves", [EVERYTHING, *partition.names], group)
        self.reach = slider("how far (in η)", REACHES, reach)
        super().__init__(new_figure(width=6.4), {"group": self.group, "reach": self.reach}, still=False)

    def draw(self) -> str:
        reach = self.reach.value
        t = np.linspace(-0.3 * reach, reach, 40)
        eta = self._moving()
        truth, models = self._losses(t, eta), self._models(t, eta)
        ax = self.figure.axes[0]
        ax.clear()
        taylor_models(t, truth, models, ax=ax)
        ax.axvline(0.0, color="black", linewidth=0.6)
        at_one = self._losses(np.array([0.0, 1.0]), eta)
        order = max(models)
        told = self._models(np.array([1.0]), eta)[order][0]
        return (
            f"Along {self.group.value}, from loss {at_one[0]:.3g} at t = 0 to {at_one[1]:.3g} at t = 1; "
            f"model of order {order} says {told:.3g}."
        )

    def _moving(self) -> Tensor:
        eta = self._eta.to(self._summary.gradient)
        if self.group.value == EVERYTHING:
            return eta
        kept = torch.zeros_like(eta)
        kept[self._partition.names.index(self.group.value)] = 1.0
        return kept * eta

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


def _values(partition: Partition) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in partition.parameters.items()}


@torch.no_grad()
def _put(partition: Partition, values: Mapping[str, Tensor]) -> None:
    for name, p in partition.parameters.items():
        p.copy_(values[name])
