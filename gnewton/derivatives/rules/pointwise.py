"""Functions that act scalar by scalar: activations, powers, exponentials.

Each needs a few passes over the tangents and, for H-bar, one Gram matrix.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gnewton.derivatives.group_tangents import GroupTangents, scale, total
from gnewton.derivatives.operation import (
    Accumulator,
    Adjoints,
    AdjointTangents,
    Jet,
    Jets,
    NeedsAdjoint,
    Operation,
    Rule,
    register,
)
from gnewton.derivatives.rules.linear import PiecewiseLinear


class Pointwise(Rule):
    """y = f(x): D o is a product with f', D^2 o one with f'', D^3 o one with f'''; derived from the function itself."""

    reads_outputs = True

    def __init__(self, curved: bool = True) -> None:
        self.curved = curved

    def applies(self, o: Operation) -> bool:
        shapes = {v.value.shape for v in o.inputs + o.outputs}
        return len(o.inputs) == 1 and o.place(0, "input") == 0 and len(shapes) == 1

    def forward(self, o: Operation, jets: Jets, adjoints: Adjoints, sums: Accumulator) -> list[Jet]:
        ((x, x2),) = jets
        assert x is not None
        f1, f2, f3 = derivatives(o, sums.order if self.curved else 1)
        if f2 is None:
            return [Jet(*(scale(t, f1) for t in (x, x2)))]
        # Second-order tangents come later than first-order ones: their groups are the first of x's, or are made so.
        if x2 and x2.groups != x.groups[: len(x2.groups)]:
            x2 = GroupTangents(x.groups, x2.over(x.groups))
        # rows() of permuted tangents is a copy: the results get memory of their own, in order.
        first = x.result()
        second = GroupTangents(x.groups, torch.empty_like(first.values), owned=True) if sums.order == 3 else None
        adjoint = torch.zeros_like(f1) if adjoints[0].value is None else adjoints[0].value
        # At order 2, f'' is needed only times the adjoint.
        w2 = f2.mul_(adjoint) if second is None and f2 is not f1 else f2 * adjoint
        functions = (f1, f2, w2, None if f3 is None else f3 * adjoint)
        gram, third = _push([None if f is None else f.flatten() for f in functions], Jet(x, x2), Jet(first, second))
        sums.hessian(x.groups, x.groups, gram)
        if third is not None:
            sums.third(x.groups, third)
        return [Jet(first, second)]

    def backward(
        self, o: Operation, jets: Jets, adjoints: Adjoints, needs: NeedsAdjoint, sums: Accumulator
    ) -> AdjointTangents:
        x, (adjoint, m) = jets[0].first, adjoints[0]
        f1, f2, f3 = derivatives(o, 3 if self.curved else 1)
        if x and f2 is not None and adjoint is not None:
            # lambda^r f'' x_s x_t in each of the three places, and a third of  lambda f3 x_r x_s x_t  there as well.
            add_cubes(sums, m, x, f2)
            add_cubes(sums, x, x, None if f3 is None else (adjoint * f3).div_(3))
        if not needs[0]:
            return [None]
        del f3
        curvature_term = (
            x and f2 is not None and adjoint is not None and GroupTangents(x.groups, x.values * (adjoint * f2))
        )
        return [total([scale(m, f1), curvature_term or None], f1.shape)]


register(
    """
    acos acosh asin asinh atan atanh celu cos cosh digamma elu erf erfc erfcx erfinv exp exp2 expm1 gelu hardsigmoid hardswish i0 i0e i1 i1e
    lgamma log log_ndtr log10 log1p log2 log_sigmoid mish reciprocal rsqrt selu sigmoid silu sin sinc sinh softplus softshrink
    special_erf special_expit sqrt square tan tanh tanhshrink
    """,
    Pointwise(),
)
register(
    "abs ceil floor frac hardshrink hardtanh leaky_relu relu relu6 round sign threshold trunc", Pointwise(curved=False)
)
register("clamp clamp_max clamp_min", PiecewiseLinear())


class Power(Pointwise):
    """x to the power of a number."""

    def applies(self, o: Operation) -> bool:
        return super().applies(o) and isinstance(o.argument(1, "exponent"), int | float)


register("pow", Power())


def add_cubes(sums: Accumulator, left: GroupTangents | None, x: GroupTangents, weights: Tensor | None) -> None:
    """D3_rst += <left_r weights, x_s x_t> , and with r in the second and in the third place."""
    if left is None or weights is None:
        return
    rows_r, rows_s, w, k = left.rows(), x.rows(), weights.flatten(), len(x.groups)
    # Symmetric in s and t: each pair is formed once.
    s, t = torch.triu_indices(k, k, device=w.device)
    products = w.new_zeros(len(rows_r), len(s))
    for cut in _cuts(len(w), len(s)):
        here = cut(rows_s)
        pairs = torch.cat([here[i:] * row for i, row in enumerate(here * cut(w))])
        products.addmm_(cut(rows_r), pairs.T)
    block = w.new_empty(len(rows_r), k, k)
    block[:, s, t] = block[:, t, s] = products
    sums.full(left.groups, x.groups, x.groups, block)


def _cuts(n: int, k: int) -> Iterator[Callable[[Tensor], Tensor]]:
    """Functions that cut the same part out of rows of length n: k such parts stay in the cache from one pass to the next."""
    size = max(256, 2**17 // k)
    if n <= size:
        return iter([lambda t: t])
    return (partial(_cut, i, i + size) for i in range(0, n, size))


def _cut(start: int, end: int, t: Tensor) -> Tensor:
    return t[..., start:end]


def _push(functions: Sequence[Any], jet: Jet, out: Jet) -> tuple[Tensor, Tensor | None]:
    """Write the tangents of f(x) into ``out``, and return their share of H-bar (k, k) and, at order 3, of D3 (k,).

    ``functions``, each (n,): the first two derivatives, then the last two times the adjoint. The first-order tangents of
    ``out`` may share their memory with those of ``jet``.
    """
    f1, f2, w2, w3 = functions
    assert jet.first is not None
    assert out.first is not None
    x, first = jet.first.rows(), out.first.rows()
    x2, second = (None if t is None else t.rows() for t in (jet.second, out.second))
    k, n = x.shape
    gram, third = x.new_zeros(k, k), None if second is None else x.new_zeros(k)
    some = 0 if x2 is None else x2.shape[0]
    for cut in _cuts(n, k):
        here = cut(x)
        curvature_term = here * cut(w2)
        gram.addmm_(curvature_term, here.T)
        if second is not None and third is not None:
            if x2 is not None:
                third[:some].add_(torch.linalg.vecdot(curvature_term[:some], cut(x2)), alpha=3)
            cube = torch.mul(here, here, out=curvature_term)
            torch.mul(cube, cut(f2), out=cut(second))
            if x2 is not None:
                cut(second)[:some].addcmul_(cut(x2), cut(f1))
            if w3 is not None:
                third.addmv_(cube.mul_(here), cut(w3))
        torch.mul(here, cut(f1), out=cut(first))
    return gram, third


def derivatives(o: Operation, order: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The first three derivatives of f at the input; from the second on, None where zero or above ``order``."""
    args, kwargs = o.arguments
    plain = (len(args) < 3 and kwargs.keys() <= {"alpha"}) or kwargs == {"approximate": "none"}
    by_hand = _BY_HAND.get(o.name) if plain else None
    f1, *higher = (by_hand or _by_autograd)(o, order)
    f2, f3 = (*higher, None, None)[:2]
    return f1, f2, f3


def _by_autograd(o: Operation, order: int) -> list[Tensor]:
    # The function acts scalar by scalar, so that the derivative of its sum holds all of them.
    x = o.inputs[0].value.detach().requires_grad_()
    with torch.enable_grad():
        y = o.call(x)[0]
        functions: list[Tensor] = []
        while len(functions) < order and y.requires_grad:
            again = len(functions) + 1 < order
            (y,) = torch.autograd.grad(y, x, torch.ones_like(y), create_graph=again, materialize_grads=True)
            functions.append(y.detach())
    return functions


def _tanh(o: Operation, order: int) -> list[Tensor]:
    y = o.outputs[0].value
    slope = torch.addcmul(y.new_ones(()), y, y, value=-1)
    functions = [slope, (y * slope).mul_(-2)][:order]
    return [*functions, (y * y).mul_(6).sub_(2).mul_(slope)] if order > 2 else functions


def _sigmoid(o: Operation, order: int) -> list[Tensor]:
    y = o.outputs[0].value
    slope = y * (1 - y)
    functions = [slope, (1 - 2 * y).mul_(slope)][:order]
    return [*functions, (1 - 6 * slope).mul_(slope)] if order > 2 else functions


def _elu(o: Operation, order: int) -> list[Tensor]:
    x, y, alpha = o.inputs[0].value, o.outputs[0].value, o.argument(1, "alpha", 1.0)
    positive = (x > 0).to(y)
    slope = (y + alpha).mul_(1 - positive).add_(positive)
    # At 0 torch takes the slope from the left and the curvature from the right.
    curvature = (y + alpha).mul_((x < 0).to(y))
    return [slope, curvature, curvature][:order]


def _silu(o: Operation, order: int) -> list[Tensor]:
    # x s(x), s the sigmoid: its first derivative is s1 = s (1 - s), its second s1 (1 - 2 s), its third s1 (1 - 6 s1).
    x = o.inputs[0].value
    s = x.sigmoid()
    s1 = s * (1 - s)
    functions = [torch.addcmul(s, x, s1), (1 - 2 * s).mul_(x).add_(2).mul_(s1)][:order]
    return [*functions, torch.addcmul(3 - 6 * s, x, 1 - 6 * s1).mul_(s1)] if order > 2 else functions


def _gelu(o: Operation, order: int) -> list[Tensor]:
    x = o.inputs[0].value
    density = (x * x).mul_(-0.5).exp_().mul_(1 / math.sqrt(2 * math.pi))
    slope = (x * math.sqrt(0.5)).erf_().add_(1).mul_(0.5).addcmul_(x, density)
    functions = [slope, (2 - x * x).mul_(density)][:order]
    return [*functions, (x**3 - 4 * x).mul_(density)] if order > 2 else functions


def _exp(o: Operation, order: int) -> list[Tensor]:
    return [o.outputs[0].value] * order


# By hand where the output holds what the derivatives need: autograd takes ten passes over it.
_BY_HAND: dict[str, Callable[[Operation, int], list[Tensor]]] = {
    "tanh": _tanh,
    "sigmoid": _sigmoid,
    "exp": _exp,
    "elu": _elu,
    "gelu": _gelu,
    "silu": _silu,
}
