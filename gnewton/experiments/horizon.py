r"""The rates that are best after several steps, with derivatives through all of them.

    F(eta) = mean over draws of  L(theta_H),      theta_{h+1} = theta_h - eta_s u_s(theta_h) in group s

H = 1 is the greedy choice. Its bias towards small rates: Wu, Ren, Liao and Grosse, Understanding short-horizon bias in stochastic
meta-optimization, ICLR 2018.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gnewton.partition import Partition

Batch = tuple[Tensor, Tensor]
Objective = Callable[[Tensor], tuple[float, Tensor]]
_DECAY, _MOMENTUM, _EPS = 0.99, 0.9, 1e-8
_MOST_STEPS, _MOST_HALVINGS, _ENOUGH = 25, 8, 1e-4


@dataclass(frozen=True)
class Moment:
    """Network and RMSprop at one moment: parameters, mean squares and momenta, by the names of the parameters."""

    parameters: dict[str, Tensor]
    squares: dict[str, Tensor]
    momenta: dict[str, Tensor]


class Unrolled:
    """RMSprop with momentum, whose rates are held, as a function of these rates.

    Args:
        model: the network, in training mode.
        loss: of its output and a target.
        partition: its groups; all parameters have one.
        start: where the run begins.
    """

    def __init__(self, model: nn.Module, loss: nn.Module, partition: Partition, start: Moment) -> None:
        self.model, self.loss, self.partition, self.start = model, loss, partition, start
        self._group = {name: s for s in range(len(partition)) for name in partition.members(s)}

    def value(self, parameters: dict[str, Tensor], batch: Batch) -> Tensor:
        """The loss of a batch, with its own statistics where there is batch norm."""
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        loss: Tensor = self.loss(functional_call(self.model, (parameters, buffers), (batch[0],)), batch[1])
        return loss

    def advance(self, moment: Moment, rates: Tensor, batch: Batch) -> Moment:
        """One step. Autograd goes back through it where ``rates`` (S,) require it."""
        through = rates.requires_grad
        parameters = {
            name: p if through and p.requires_grad else p.detach().requires_grad_()
            for name, p in moment.parameters.items()
        }
        loss = self.value(parameters, batch)
        gradients = torch.autograd.grad(loss, [*parameters.values()], create_graph=through)
        squares, momenta, moved = {}, {}, {}
        for (name, p), g in zip(parameters.items(), gradients, strict=True):
            squares[name] = _DECAY * moment.squares[name] + (1 - _DECAY) * g**2
            # Where a gradient is always zero the root has no derivative, and the step is zero.
            momenta[name] = _MOMENTUM * moment.momenta[name] + g / ((squares[name] + 1e-30).sqrt() + _EPS)
            moved[name] = p - rates[self._group[name]] * momenta[name]
        return Moment(moved, squares, momenta)

    def after(self, rates: Tensor, batches: Sequence[Batch]) -> Moment:
        """The moment after a step on each batch."""
        moment = self.start
        for batch in batches:
            moment = self.advance(moment, rates, batch)
        return moment

    def objective(self, draws: Sequence[Sequence[Batch]], judge: Batch) -> Objective:
        """F and its gradient: the mean over the draws of the loss of ``judge`` after a step on each batch of a draw."""

        def value_and_slope(rates: Tensor) -> tuple[float, Tensor]:
            value, slope = 0.0, torch.zeros_like(rates)
            for draw in draws:
                free = rates.detach().clone().requires_grad_()
                loss = self.value(self.after(free, draw).parameters, judge)
                slope += torch.autograd.grad(loss, free)[0] / len(draws)
                value += loss.item() / len(draws)
            return value, slope

        return value_and_slope


def minimize(objective: Objective, start: Tensor) -> Tensor:
    """Where the objective is least, by BFGS from ``start`` (n,), in units of its entries; no entry may be zero.

    A step that does not lower the objective is halved. Nocedal and Wright, Numerical Optimization, 2006, chapter 6.

    >>> centre = torch.tensor([3.0, -1.0])
    >>> minimize(lambda x: (float((x - centre).square().sum()), 2 * (x - centre)), torch.tensor([1.0, 1.0])).round(decimals=2)
    tensor([ 3., -1.])
    """
    unit = start.abs()
    z, inverse = start / unit, None
    value, slope = objective(start)
    for _ in range(_MOST_STEPS):
        # Before it knows a curvature: half of the size that the rates have.
        step = -slope * unit / (slope * unit).norm() / 2 if inverse is None else -(inverse @ (slope * unit))
        accepted = _shorten(objective, z * unit, step * unit, value)
        if accepted is None:
            break
        part, lower, new_slope = accepted
        z = z + part * step
        inverse = _update(inverse, part * step, (new_slope - slope) * unit)
        gained, value, slope = value - lower, lower, new_slope
        if gained < _ENOUGH * abs(value):
            break
    return z * unit


def _shorten(objective: Objective, start: Tensor, step: Tensor, value: float) -> tuple[float, float, Tensor] | None:
    """The first of 1, 1/2, 1/4, ... of a step at which the objective is below ``value``, with the objective and its slope there."""
    for halvings in range(_MOST_HALVINGS):
        part = 0.5**halvings
        lower, slope = objective(start + part * step)
        if lower < value:
            return part, lower, slope
    return None


def _update(inverse: Tensor | None, step: Tensor, change: Tensor) -> Tensor | None:
    """The inverse Hessian after a step and the change of the slope; what it was where the curvature is not positive."""
    along, one = torch.dot(step, change), torch.eye(len(step), dtype=step.dtype)
    if not along > 1e-10 * step.norm() * change.norm():
        return inverse
    if inverse is None:
        inverse = along / torch.dot(change, change) * one
    left = one - torch.outer(step, change) / along
    return left @ inverse @ left.T + torch.outer(step, step) / along
