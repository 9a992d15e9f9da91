"""Matrix products."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gnewton.derivatives.group_tangents import GroupTangents, add_rows, lift, sum_values_to, union
from gnewton.derivatives.operation import Operation, register
from gnewton.derivatives.rules.bilinear import Pair, Product


class Matmul(Product):
    """a @ b, matrices or batches of matrices that broadcast."""

    def applies(self, o: Operation) -> bool:
        return super().applies(o) and bool(min(o.value(*self.left).dim(), o.value(*self.right).dim()) >= 2)

    def times(self, o: Operation, a: Tensor, b: Tensor) -> Tensor:
        dim = o.outputs[0].value.dim()
        return lift(a, dim) @ lift(b, dim)

    def pull_a(self, o: Operation, adjoint: Tensor, b: Tensor) -> Tensor:
        return sum_values_to(adjoint @ lift(b, adjoint.dim() - 1).mT, o.value(*self.left).shape)

    def pull_b(self, o: Operation, adjoint: Tensor, a: Tensor) -> Tensor:
        return sum_values_to(lift(a, adjoint.dim() - 1).mT @ adjoint, o.value(*self.right).shape)

    def multiplications(self, o: Operation) -> int:
        return int(o.value(*self.left).shape[-1]) * o.outputs[0].value.numel()


register("matmul __matmul__", Matmul())


class Bmm(Matmul):
    """``torch.bmm`` and ``torch.mm``, whose second argument has another name."""

    right = (1, "mat2")


register("bmm mm", Bmm())


class Addmm(Bmm):
    """beta c + alpha (a @ b), of matrices or of batches of them."""

    def __init__(self, names: tuple[str, str]) -> None:
        self.left, self.right = (1, names[0]), (2, names[1])

    def applies(self, o: Operation) -> bool:
        return super().applies(o) and isinstance(o.value(0, "input"), Tensor)

    def times(self, o: Operation, a: Tensor, b: Tensor) -> Tensor:
        return self._scale(super().times(o, a, b), o.argument(4, "alpha", 1))

    def pull_a(self, o: Operation, adjoint: Tensor, b: Tensor) -> Tensor:
        return self._scale(super().pull_a(o, adjoint, b), o.argument(4, "alpha", 1))

    def pull_b(self, o: Operation, adjoint: Tensor, a: Tensor) -> Tensor:
        return self._scale(super().pull_b(o, adjoint, a), o.argument(4, "alpha", 1))

    def offset(self, o: Operation, c: GroupTangents | None) -> GroupTangents | None:
        return c and GroupTangents(c.groups, self._scale(c.values, o.argument(3, "beta", 1)))

    def offset_adjoint(self, o: Operation, m: GroupTangents | None, shape: Sequence[int]) -> GroupTangents | None:
        return super().offset_adjoint(o, self.offset(o, m), shape)

    def tangent(self, o: Operation, pair: Pair, *more: GroupTangents | None) -> GroupTangents | None:
        (a, b), matrix = pair, o.value(*self.right)
        if a is None or matrix.dim() > 2 or o.argument(4, "alpha", 1) != 1:
            return super().tangent(o, pair, *more)
        term = b and GroupTangents(b.groups, self.times(o, o.value(*self.left)[None], b.values))
        return _sum_with_product(o, a, matrix, (term, *more))

    def _scale(self, values: Tensor, factor: float) -> Tensor:
        return values if factor == 1 else values * factor


register("addmm", Addmm(("mat1", "mat2")))
register("baddbmm", Addmm(("batch1", "batch2")))


class Linear(Product):
    """x W^T + bias."""

    right = (1, "weight")

    def applies(self, o: Operation) -> bool:
        return super().applies(o) and bool(o.value(*self.right).dim() == 2)

    def times(self, o: Operation, a: Tensor, b: Tensor) -> Tensor:
        if b.shape[0] == 1:
            return nn.functional.linear(a, b[0])
        products = _samples(a) @ b.mT
        return products.reshape(products.shape[0], *a.shape[1:-1], b.shape[1])

    def tangent(self, o: Operation, pair: Pair, *more: GroupTangents | None) -> GroupTangents | None:
        a, b = pair
        if a is None:
            return super().tangent(o, pair, *more)
        term = b and GroupTangents(b.groups, self.times(o, o.value(*self.left)[None], b.values))
        return _sum_with_product(o, a, o.value(*self.right).T, (term, *more))

    def pull_a(self, o: Operation, adjoint: Tensor, b: Tensor) -> Tensor:
        return self.times(o, adjoint, b.mT)

    def pull_b(self, o: Operation, adjoint: Tensor, a: Tensor) -> Tensor:
        return _samples(adjoint).mT @ _samples(a)

    def multiplications(self, o: Operation) -> int:
        return int(o.value(*self.right).shape[1]) * o.outputs[0].value.numel()


register("linear", Linear())


def _sum_with_product(
    o: Operation, a: GroupTangents, matrix: Tensor, more: Sequence[GroupTangents | None]
) -> GroupTangents:
    """a_s times a matrix that all groups share, by far the largest term, written where it is to stay; and more terms."""
    groups, shape, k = union([a, *more]), o.outputs[0].value.shape, len(a.groups)
    out = a.values.new_empty(len(groups), *shape)
    samples = a.values.shape[:-1].numel()
    torch.mm(a.values.reshape(samples, matrix.shape[0]), matrix, out=out[:k].view(samples, matrix.shape[1]))
    out[k:].zero_()
    for term in more:
        if term:
            add_rows(out, groups, term.groups, lift(term.values, len(shape)))
    return GroupTangents(groups, out, owned=True)


def _samples(stacked: Tensor) -> Tensor:
    """(k, ..., n) -> (k, N, n)."""
    return stacked.reshape(stacked.shape[0], stacked.shape[1:-1].numel(), stacked.shape[-1])
