r"""Summaries by central differences of gradients: not exact, but for any loss that has a gradient.

The gradient g is taken at theta, and at theta +- h u_s and theta +- 2h u_s for each group s, which makes 4S + 1 gradients:

    d1(h) = (g(h) - g(-h)) / 2h            =  H u_s            + O(h^2)
    d2(h) = (g(h) - 2 g(0) + g(-h)) / h^2  =  D3[u_s, u_s, .]  + O(h^2)

(4 d(h) - d(2h)) / 3 is right to O(h^4) (Richardson). Its error is estimated by |d(h) - d(2h)|, for truncation, and by
eps sum |g u| over h or h^2, for rounding: two differences may be near each other by luck. H is not symmetrized away: half of
what it differs from its transpose counts as an error as well.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gnewton.derivatives.graph import coarsest_eps, nodes
from gnewton.loss import Loss, differentiate, evaluate
from gnewton.partition import Partition, accumulator_dtype
from gnewton.undo import Buffers, RandomState

Direction = Mapping[str, Tensor]
Gradient = dict[str, Tensor]


class Differences(NamedTuple):
    """Value () and derivatives of orders 1 to 3 as in ``nested.summary``, and the largest estimated error of H-bar and D3."""

    value: Tensor
    gradient: Tensor
    hessian: Tensor | None
    third: Tensor | None
    errors: dict[str, float]


def summary(
    loss: Loss, partition: Partition, direction: Direction, order: int = 3, batch: Sequence[Any] = ()
) -> Differences:
    """g-bar (S,), H-bar (S, S) and the order-3 diagonal (S,) by central differences of gradients.

    Parameters, buffers and random numbers are left as after one evaluation, bit for bit, also where an error is raised.

    >>> import torch, gnewton as gn
    >>> model = gn.models.Rosenbrock(2, dtype=torch.float64)
    >>> u = {"theta": torch.ones(2, dtype=torch.float64)}
    >>> estimate = summary(model, gn.Partition.by_scalar(model), u, order=2)
    >>> [round(h, 4) for h in estimate.hessian.flatten().tolist()]
    [1330.0, 480.0, 480.0, 200.0]
    """
    gradients = Gradients(loss, partition, batch)
    value, here = gradients.here()
    dtype = accumulator_dtype(partition.device)
    slopes = _contract(here, partition, direction)
    if order == 1:
        return Differences(value, slopes, None, None, {})
    rows, thirds, row_errors, third_errors = [], [], [], []
    for s in range(len(partition)):
        row, row_error, third, third_error = _along_group(gradients, here, direction, s)
        rows.append(row)
        row_errors.append(row_error)
        thirds.append(third[s])
        third_errors.append(third_error[s])
    hessian = torch.stack(rows).to(dtype)
    asymmetry = (hessian - hessian.T).abs().max() / 2
    errors = {"hessian": float(torch.maximum(torch.stack(row_errors).max(), asymmetry))}
    hessian = (hessian + hessian.T) / 2
    if order == 2:
        return Differences(value, slopes, hessian, None, errors)
    errors["third"] = float(torch.stack(third_errors).max())
    return Differences(value, slopes, hessian, torch.stack(thirds), errors)


class Gradients:
    """The gradient of one loss at theta and around it, each time with the same random numbers and buffers.

    ``eps`` is the relative rounding of the coarsest numbers that it goes through; None before the first gradient.
    """

    def __init__(self, loss: Loss, partition: Partition, batch: Sequence[Any] = ()) -> None:
        self.partition = partition
        self._loss, self._batch = loss, batch
        self._random, self._buffers = RandomState(partition), Buffers(partition.module)
        self.eps: float | None = None

    def here(self) -> tuple[Tensor, Gradient]:
        """The loss () and its gradient where the parameters are."""
        value = evaluate(self._loss, self.partition, self._batch)
        if self.eps is None:
            self.eps = coarsest_eps(nodes(value))
        trainable = {name: p for name, p in self.partition.parameters.items() if p.requires_grad}
        slopes = differentiate(value, list(trainable.values()))
        self.partition.check_held([name for name, g in zip(trainable, slopes, strict=True) if g is None])
        gradient = {n: g.detach().to_dense() for n, g in zip(trainable, slopes, strict=True) if g is not None}
        return value.detach(), gradient

    def at(self, step: Direction) -> Gradient:
        """The gradient at theta + step; everything is put back, bit for bit."""
        parameters = {name: self.partition.parameters[name] for name in step}
        saved = {name: p.detach().clone() for name, p in parameters.items()}
        self._buffers.restore()
        try:
            with self._random.replay():
                _write(parameters, {name: saved[name] + u.to(saved[name]) for name, u in step.items()})
                return self.here()[1]
        finally:
            _write(parameters, saved)


def step_length(partition: Partition, direction: Direction, eps: float = 0.0) -> float:
    """h, with h u small beside the parameters that it moves: by eps^(1/4), where truncation and rounding meet.

    ``eps`` is the relative rounding of the loss, where that is larger than the moved parameters'. The scale of parameters
    that are all zero (biases, at first) is taken from the others.
    """
    moving = {name: u for name, u in direction.items() if bool(u.any())}
    if not moving:
        return 0.0
    own = _root_mean_square([partition.parameters[n].detach() for n in moving])
    every = _root_mean_square([p.detach() for p in partition.parameters.values()])
    size = _root_mean_square([u[u != 0] for u in moving.values()])
    eps = max(eps, *(torch.finfo(partition.parameters[name].dtype).eps for name in moving))
    return float(eps**0.25 * (max(own, 0.1 * every) or 1.0) / size)


def _along_group(
    gradients: Gradients, here: Gradient, direction: Direction, s: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """H-bar[s, :] and its error, D3[s, s, :] and its error."""
    partition = gradients.partition
    trainable = [n for n in partition.members(s) if partition.parameters[n].requires_grad]
    part = partition.restrict({n: direction[n] for n in trainable}, s)
    h = step_length(partition, part, gradients.eps or 0.0)
    if h == 0:
        zero = torch.zeros(len(partition), dtype=accumulator_dtype(partition.device), device=partition.device)
        return zero, zero, zero, zero
    return (*differences(gradients, here, part, h, direction),)


def differences(
    gradients: Gradients, here: Gradient, step: Direction, h: float, direction: Direction
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Along a step: contractions (S,) with u of the first and of the second difference, each with its error."""
    partition = gradients.partition
    zero, rounding = _contract(here, partition, direction), _rounding(here, partition, direction, gradients.eps or 0.0)
    first, second = [], []
    for length in (h, 2 * h):
        ahead, behind = (
            _contract(gradients.at({n: sign * length * u for n, u in step.items()}), partition, direction)
            for sign in (1, -1)
        )
        first.append((ahead - behind) / (2 * length))
        second.append((ahead - 2 * zero + behind) / length**2)
    return *_extrapolate(first, rounding / h), *_extrapolate(second, rounding / h**2)


def _extrapolate(tried: Sequence[Tensor], rounding: Tensor) -> tuple[Tensor, Tensor]:
    near, far = tried
    return (4 * near - far) / 3, (near - far).abs() + rounding


def _rounding(gradient: Direction, partition: Partition, direction: Direction, eps: float) -> Tensor:
    """How far roundings in the entries of g may carry each contraction with u, (S,)."""
    sizes = {n: max(eps, torch.finfo(g.dtype).eps) * g.abs() for n, g in gradient.items()}
    return _contract(sizes, partition, {n: direction[n].abs() for n in gradient})


def _contract(gradient: Direction, partition: Partition, direction: Direction) -> Tensor:
    wide = accumulator_dtype(partition.device)
    return partition.sums({n: g.to(wide) * direction[n].to(wide) for n, g in gradient.items()})


def _root_mean_square(tensors: Sequence[Tensor]) -> float:
    count = sum(t.numel() for t in tensors)
    return float((sum(float(t.double().square().sum()) for t in tensors) / max(count, 1)) ** 0.5)


@torch.no_grad()
def _write(parameters: Mapping[str, Tensor], values: Direction) -> None:
    for name, p in parameters.items():
        # The values come back bit for bit: graphs that the caller still holds stay whole.
        with torch.autograd._unsafe_preserve_version_counter(p):
            p.copy_(values[name])
