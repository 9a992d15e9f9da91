"""Operations with complex numbers: what is linear stays so on pairs of reals, and so does what is bilinear."""

import torch
from torch import Tensor
from torch.func import vjp, vmap

from gnewton.derivatives.group_tangents import GroupTangents, dense, union
from gnewton.derivatives.operation import (
    Accumulator,
    Adjoints,
    AdjointTangents,
    Jets,
    NeedsAdjoint,
    Operation,
    Rule,
    registered_rules,
)
from gnewton.derivatives.rules.bilinear import Product
from gnewton.derivatives.rules.generic import Generic, leaves
from gnewton.derivatives.rules.linear import PiecewiseLinear
from gnewton.derivatives.rules.pointwise import Pointwise

# Linear, and of no use to real numbers.
_LINEAR = {
    *("real", "imag", "complex", "view_as_real", "view_as_complex", "conj", "conj_physical", "resolve_conj"),
    *("_conj", "_conj_physical", "_neg_view", "resolve_neg", "fft_fftshift", "fft_ifftshift"),
    *("_fft_r2c", "_fft_c2r", "_fft_c2c"),
    *(f"fft_{kind}fft{axes}" for kind in ("", "i", "r", "ir", "h", "ih") for axes in ("", "2", "n")),
}


class LinearOfPairs(PiecewiseLinear):
    """A linear function; backwards group by group, as torch.func has no conjugate views."""

    def backward(
        self, o: Operation, jets: Jets, adjoints: Adjoints, needs: NeedsAdjoint, sums: Accumulator
    ) -> AdjointTangents:
        tangents = [a.tangents for a in adjoints]
        groups = union(tangents)
        if not groups:
            return [None] * len(o.inputs)
        stacked = dense(tangents, [v.value for v in o.outputs], groups)
        with torch.enable_grad():
            z = leaves([v.value for v in o.inputs])
            out = o.call(*z)
            pulled = [
                torch.autograd.grad(out, z, m, retain_graph=True, materialize_grads=True)
                for m in zip(*stacked, strict=True)
            ]
        return [GroupTangents(groups, torch.stack(column)) for column in zip(*pulled, strict=True)]


class ProductOfPairs(Product):
    """Any bilinear function of two complex values, or of a complex and a real one, whatever it is called."""

    def __init__(self, left: tuple[int, str], right: tuple[int, str]) -> None:
        self.left, self.right = left, right

    def times(self, o: Operation, a: Tensor, b: Tensor) -> Tensor:
        return _over_stacks(lambda x, y: self._call(o, x, y), a, b)

    def pull_a(self, o: Operation, adjoint: Tensor, b: Tensor) -> Tensor:
        x = torch.zeros_like(o.value(*self.left))
        return _over_stacks(lambda m, y: vjp(lambda v: self._call(o, v, y), x)[1](m)[0], adjoint, b)

    def pull_b(self, o: Operation, adjoint: Tensor, a: Tensor) -> Tensor:
        y = torch.zeros_like(o.value(*self.right))
        return _over_stacks(lambda m, x: vjp(lambda v: self._call(o, x, v), y)[1](m)[0], adjoint, a)

    def _call(self, o: Operation, a: Tensor, b: Tensor) -> Tensor:
        return o.call(*((a, b) if o.place(*self.left) == 0 else (b, a)))[0]


def _over_stacks(function: object, a: Tensor, b: Tensor) -> Tensor:
    """The function of each pair of entries; a stack of one serves all of the other's."""
    if len(a) == len(b) == 1:
        return function(a[0], b[0])[None]  # type: ignore[operator, no-any-return]
    stacks = [(s[0], None) if len(s) == 1 else (s, 0) for s in (a, b)]
    return vmap(function, in_dims=tuple(dim for _, dim in stacks))(*(s for s, _ in stacks))  # type: ignore[arg-type]


def complex_rule(o: Operation) -> Rule:
    """The rule of an operation with complex numbers among its inputs, constants or outputs."""
    rules = registered_rules(o.name)
    if o.name in _LINEAR or (rules and not any(rule.curved or isinstance(rule, Pointwise) for rule in rules)):
        return _LINEAR_OF_PAIRS
    if o.name in ("div", "divide", "true_divide", "__truediv__") and o.place(1, "other") is None and not o.arguments[1]:
        return _LINEAR_OF_PAIRS
    for product in (rule for rule in rules if isinstance(rule, Product)):
        places = o.place(*product.left), o.place(*product.right)
        if len(o.inputs) == 1 and places.count(None) == 1:
            return _LINEAR_OF_PAIRS
        if len(o.inputs) == 2 and None not in places and len(o.arguments[0]) <= 3:
            return ProductOfPairs(product.left, product.right)
    return _GENERIC


_LINEAR_OF_PAIRS, _GENERIC = LinearOfPairs(), Generic()
