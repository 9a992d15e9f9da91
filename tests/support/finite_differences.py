"""Summaries from torch's own first-order gradients alone: the oracle for models of other libraries.

phi's gradient at eta is one backward pass at theta + sum_s eta_s u_s. Central differences of it along u_t give H-bar[:, t],
second differences along u_s give D3_sss, both by the five-point stencils, whose error is

    truncation  c h^4,  and rounding  c' eps |g| / h  (H-bar)  or  c' eps |g| / h^2  (D3).

Four steps h are tried, each a tenth of the one before. Two successive ones differ by about the larger of their errors, so
for each group the pair that differs least, roundings added, gives the numbers and an estimate of their error. Across a corner of the loss (ReLU,
max pooling) a difference is wrong by O(1 / h) times the jump of the slope: it then disagrees with the next step's, and a
smaller step wins.
No line of gnewton is in it, except that a group's part of u comes from ``Partition.restrict`` and sums from ``Partition.sums``.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

import gnewton as gn

STEPS = (1e-3, 1e-4, 1e-5, 1e-6)


@dataclass
class Estimate:
    """value (S, ...) and the estimate of its error (S,), one for each direction u_s along which the differences were taken."""

    value: Tensor
    error: Tensor

    @property
    def scale(self) -> float:
        return float(self.value.abs().max())


@dataclass
class Finite:
    """gradient (S,), torch's own; hessian (S, S); third (S,) the diagonal of D3."""

    gradient: Tensor
    hessian: Estimate
    third: Estimate


def finite_differences(loss: Callable[[], Tensor], partition: gn.Partition, u: dict[str, Tensor]) -> Finite:
    """The summary of ``loss`` along ``u``, by differences of gradients."""
    trainable = {n: p for n, p in partition.parameters.items() if p.requires_grad}
    parts = [partition.restrict(u, s) for s in range(len(partition))]

    def slopes(s: int = 0, eta: float = 0.0, sizes: bool = False) -> Tensor:
        with _at(trainable, parts[s], eta):
            gradients = torch.autograd.grad(loss(), list(trainable.values()), allow_unused=True)
        products = {n: g * u[n] for n, g in zip(trainable, gradients, strict=True) if g is not None}
        return partition.sums({n: p.abs() for n, p in products.items()} if sizes else products)

    here, rounding = slopes(), torch.finfo(torch.float64).eps * slopes(sizes=True).max()
    tried = [[_differences(slopes, s, h, here) for s in range(len(partition))] for h in STEPS]
    hessians = [torch.stack([row for row, _ in rows]) for rows in tried]
    thirds = [torch.stack([third for _, third in rows]) for rows in tried]
    roundings = torch.stack([rounding / torch.tensor([h, h**2], dtype=torch.float64) for h in STEPS[1:]])
    return Finite(here, _settled(hessians, roundings[:, 0]), _settled(thirds, roundings[:, 1]))


def _differences(slopes: Callable[[int, float], Tensor], s: int, h: float, here: Tensor) -> tuple[Tensor, Tensor]:
    far, near = (slopes(s, 2 * h), slopes(s, -2 * h)), (slopes(s, h), slopes(s, -h))
    first = (8 * (near[0] - near[1]) - (far[0] - far[1])) / (12 * h)
    second = (16 * (near[0] + near[1]) - (far[0] + far[1]) - 30 * here) / (12 * h**2)
    return first, second[s]


def _settled(values: list[Tensor], roundings: Tensor) -> Estimate:
    # Two differences may agree by luck to more digits than roundings leave them.
    errors = torch.stack([(a - b).abs().reshape(len(a), -1).amax(1) for a, b in pairwise(values)]) + roundings[:, None]
    best = errors.argmin(0)
    return Estimate(torch.stack([values[k + 1][s] for s, k in enumerate(best.tolist())]), errors.amin(0))


@contextmanager
def _at(parameters: dict[str, Tensor], along: dict[str, Tensor], eta: float) -> Iterator[None]:
    before = {n: p.detach().clone() for n, p in parameters.items()}
    with torch.no_grad():
        for n, p in parameters.items():
            p.add_(along[n], alpha=eta)
    try:
        yield
    finally:
        with torch.no_grad():
            for n, p in parameters.items():
                p.copy_(before[n])


_WIDE = {torch.float32: torch.float64, torch.complex64: torch.complex128}


class Float64(TorchFunctionMode):
    """What a library casts to float32 (norms, softmax, logits) stays in float64: differences of float32 numbers say nothing."""

    def __torch_function__(
        self, function: object, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        function = torch.Tensor.double if function is torch.Tensor.float else function
        args = tuple(_WIDE.get(a, a) if isinstance(a, torch.dtype) else a for a in args)
        kwargs = {k: _WIDE.get(v, v) if isinstance(v, torch.dtype) else v for k, v in (kwargs or {}).items()}
        return function(*args, **kwargs)


class Held(TorchFunctionMode):
    """What the loss stops by ``detach()`` stays as it was at the first call: H and D3 are those of the loss with it held."""

    def __init__(self) -> None:
        super().__init__()
        self._values: list[Tensor] = []
        self._calls = 0
        self._filled = False

    def __exit__(self, *error: object) -> None:
        self._filled, self._calls = True, 0
        super().__exit__(*error)

    def __torch_function__(
        self, function: object, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        result = function(*args, **(kwargs or {}))
        if function is not torch.Tensor.detach:
            return result
        if not self._filled:
            self._values.append(result.clone())
        self._calls += 1
        return self._values[self._calls - 1]
