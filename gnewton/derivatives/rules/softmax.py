"""Softmax and its logarithm."""

from collections.abc import Callable

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
        return super().applies(o) and o.argument(2, "dtype") is None and isinstance(o.argument(1, "dim"), int)

    def forward(self, o: Operation, jets: Jets, adjoints: Adjoints, sums: Accumulator) -> list[Jet]:
        ((x, x2),), (adjoint,) = jets, adjoint_values(o, adjoints)
        assert x is not None
        p, axis, mean = self._means(o)
        a = x.values - mean(x.values)
        inner = adjoint if self.logarithm else adjoint * p
        w = -p * inner.sum(axis, keepdim=True) + (0 if self.logarithm else inner)
        sums.hessian(x.groups, x.groups, (rows(a) * w.flatten()) @ rows(a).T)
        if sums.order < 3:
            return [Jet(GroupTangents(x.groups, a if self.logarithm else p * a))]
        b = 0 if x2 is None else x2.over(x.groups) - mean(x2.over(x.groups))
        log2 = (b - mean(a * a)).expand_as(a)
        log3 = -mean(a * (a * a + 3 * b))
        third = log3.expand_as(a) if self.logarithm else p * (a**3 + 3 * a * log2 + log3)
        sums.third(x.groups, rows(third) @ adjoint.flatten())
        first, second = (a, log2) if self.logarithm else (p * a, p * (a * a + log2))
        return [Jet(GroupTangents(x.groups, first), GroupTangents(x.groups, second))]

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
        return p, axis, lambda v: (p * v).sum(axis, keepdim=True)


# The safe one is 0 where all entries are masked: there every probability vanishes, and with it every derivative.
register("softmax _safe_softmax", Softmax(logarithm=False))
register("log_softmax", Softmax(logarithm=True))
