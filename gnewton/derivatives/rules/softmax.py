"""Softmax, its logarithm, and the running logarithm of a sum of exponentials."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from gnewton.derivatives.group_tangents import GroupTangents, rows, total
from gnewton.derivatives.operation import (
    Accumulator,
    Adjoints,
    AdjointTangents,
    Jet,
    Jets,
    NeedsAdjoint,
    Operation,
    Rule,
    adjoint_values,
    register,
)
from gnewton.derivatives.rules.pointwise import add_cubes
from gnewton.derivatives.rules.tiles import tiles


class Softmax(Rule):
    """Softmax, or its logarithm, along one axis.

    Let p be the probabilities and  a_s = x_s - <p, x_s>  the centred tangents of a row. The derivatives of the logarithm
    are those of -log sum exp: after a_s the covariance  -<p, a_s a_t>  in every entry, then the third cumulant.
    """

    reads_inputs = False
    reads_outputs = True

    def __init__(self, logarithm: bool) -> None:
        self.logarithm = logarithm

    def applies(self, o: Operation) -> bool:
        plain = o.argument(2, "dtype") is None and isinstance(o.argument(1, "dim"), int)
        return super().applies(o) and plain and o.inputs[0].value.dim() > 0

    def forward(self, o: Operation, jets: Jets, adjoints: Adjoints, sums: Accumulator) -> list[Jet]:
        ((x, x2),), (adjoint,) = jets, adjoint_values(o, adjoints)
        assert x is not None
        p, axis, _ = self._means(o)
        inner = adjoint if self.logarithm else adjoint * p
        inner_sum = inner.sum(axis, keepdim=True)
        w = -p * inner_sum + (0 if self.logarithm else inner)
        first = x.result()
        second = GroupTangents(x.groups, torch.empty_like(first.values), owned=True) if sums.order == 3 else None
        x2_values = None if x2 is None else x2.over(x.groups)
        for cut in tiles(x.values, [axis]):
            q = cut(p)
            # Written where x_s was read, if nobody else reads it.
            a = torch.sub(cut(x.values), _mean(q, cut(x.values), axis), out=cut(first.values))
            sums.hessian(x.groups, x.groups, (rows(a) * cut(w).flatten()) @ rows(a).T)
            if second:
                b = 0 if x2_values is None else cut(x2_values) - _mean(q, cut(x2_values), axis)
                log3 = -_mean(q, a * (a * a + 3 * b), axis)
                log2 = cut(second.values).copy_(b - _mean(q, a * a, axis))
                cubes = log3 if self.logarithm else a**3 + 3 * a * log2 + log3
                sums.third(x.groups, rows(cubes * cut(inner_sum if self.logarithm else inner)).sum(1))
                if not self.logarithm:
                    log2.add_(a * a).mul_(q)
            if not self.logarithm:
                a.mul_(q)
        return [Jet(first, second)]

    def backward(
        self, o: Operation, jets: Jets, adjoints: Adjoints, needs: NeedsAdjoint, sums: Accumulator
    ) -> AdjointTangents:
        x, m, (adjoint,) = jets[0].first, adjoints[0].tangents, adjoint_values(o, adjoints)
        p, axis, mean = self._means(o)

        def weights(v: Tensor) -> Tensor:
            """w such that  v . D^2 [x_s, x_t] = <w, a_s a_t>"""
            return -p * v.sum(axis, keepdim=True) if self.logarithm else p * (v - mean(v))

        pulled = m and GroupTangents(m.groups, weights(m.values) + (m.values if self.logarithm else 0), owned=True)
        if x is None:
            return [pulled]
        a = GroupTangents(x.groups, x.values - mean(x.values))
        cross = 0 if self.logarithm else p * mean(adjoint * a.values)
        one = torch.ones_like(p)
        add_cubes(sums, m and GroupTangents(m.groups, weights(m.values)), a, one)
        add_cubes(sums, GroupTangents(x.groups, weights(adjoint) * a.values / 3 - cross), a, one)
        return [total([pulled, GroupTangents(x.groups, weights(adjoint) * a.values - cross)], p.shape)]

    def _means(self, o: Operation) -> tuple[Tensor, int, Callable[[Tensor], Tensor]]:
        """The probabilities, the axis that they sum to 1 along, and the mean under them."""
        y = o.outputs[0].value
        p, axis = y.exp() if self.logarithm else y, o.argument(1, "dim") % y.dim() - y.dim()
        return p, axis, partial(_mean, p, axis=axis)


def _mean(p: Tensor, v: Tensor, axis: int) -> Tensor:
    return (p * v).sum(axis, keepdim=True)


# The safe one is 0 where all entries are masked: there every probability vanishes, and with it every derivative.
register("softmax _safe_softmax", Softmax(logarithm=False))
register("log_softmax", Softmax(logarithm=True))


class LogCumSumExp(Rule):
    """y_i = log sum_{j <= i} exp(x_j) along one axis; torch's own third derivative is nan (2.13).

    Its derivative is a running softmax,  p_ij = exp(x_j - y_i) <= 1  for j <= i. Write <v>_i = sum_j p_ij v_j for the mean
    and p^T v for its transpose. Second and third derivative are the covariance and the third cumulant under p:

        D^2 y [x_s, x_t]       =  <x_s x_t> - <x_s> <x_t>
        D^3 y [x_s, x_s, x_s]  =  <x_s^3> - 3 <x_s^2> <x_s> + 2 <x_s>^3

    Under an adjoint v a mean is  v . <x_s x_t> = (p^T v) . x_s x_t,  one product for each entry of x. For rows of n entries
    the weights p take n x n numbers each.
    """

    reads_outputs = True

    def applies(self, o: Operation) -> bool:
        return super().applies(o) and isinstance(o.argument(1, "dim"), int) and o.inputs[0].value.dim() > 0

    def forward(self, o: Operation, jets: Jets, adjoints: Adjoints, sums: Accumulator) -> list[Jet]:
        ((x, x2),), (adjoint,) = jets, adjoint_values(o, adjoints)
        assert x is not None
        mean, transposed = self._means(o)
        first, w = mean(x.values), transposed(adjoint)
        gram = (rows(x.values) * w.flatten()) @ rows(x.values).T - (rows(first) * adjoint.flatten()) @ rows(first).T
        sums.hessian(x.groups, x.groups, gram)
        if sums.order < 3:
            return [Jet(GroupTangents(x.groups, first))]
        b = torch.zeros_like(x.values) if x2 is None else x2.over(x.groups)
        squares, b_mean = mean(x.values**2), mean(b)
        cumulant = 2 * first**3 - 3 * first * (squares + b_mean)
        sums.third(x.groups, rows(x.values**3 + 3 * x.values * b) @ w.flatten() + rows(cumulant) @ adjoint.flatten())
        return [Jet(GroupTangents(x.groups, first), GroupTangents(x.groups, b_mean + squares - first**2))]

    def backward(
        self, o: Operation, jets: Jets, adjoints: Adjoints, needs: NeedsAdjoint, sums: Accumulator
    ) -> AdjointTangents:
        x, m, (adjoint,) = jets[0].first, adjoints[0].tangents, adjoint_values(o, adjoints)
        mean, transposed = self._means(o)
        pulled = m and GroupTangents(m.groups, transposed(m.values))
        if x is None:
            return [pulled]
        y, one = GroupTangents(x.groups, mean(x.values)), torch.ones_like(adjoint)
        curved, level = transposed(adjoint) * x.values, transposed(adjoint * y.values)
        # lambda^r D^2 y, then lambda D^3 y, a third of it in each of three places where it is symmetric.
        add_cubes(sums, pulled, x, one)
        add_cubes(sums, m and GroupTangents(m.groups, -m.values), y, one)
        add_cubes(sums, GroupTangents(x.groups, curved / 3 - level), x, one)
        add_cubes(sums, GroupTangents(x.groups, adjoint * y.values * 2 / 3), y, one)
        return [total([pulled, GroupTangents(x.groups, curved - level)], adjoint.shape)]

    def _means(self, o: Operation) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        """v -> <v> and v -> p^T v, of tensors of x's shape or of tangents stacked in front of it."""
        x, y = o.inputs[0].value, o.outputs[0].value
        axis = o.argument(1, "dim") % x.dim() - x.dim()
        p = (x.movedim(axis, -1)[..., None, :] - y.movedim(axis, -1)[..., None]).exp().tril()

        def times(matrices: Tensor, v: Tensor) -> Tensor:
            return (matrices @ v.movedim(axis, -1)[..., None]).squeeze(-1).movedim(-1, axis)

        return partial(times, p), partial(times, p.mT)


register("logcumsumexp", LogCumSumExp())
