"""Quotients of two tensors, entry by entry.

With  y b = a  the derivatives along a curve follow one from the other:  y_s = (a_s - y b_s) / b ,

    D^2 y [s, t]    = -(y_s b_t + y_t b_s) / b
    D^3 y [r, s, t] =  2 (y_r b_s b_t + y_s b_r b_t + y_t b_r b_s) / b^2 .
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from gnewton.derivatives.group_tangents import GroupTangents, lift, rows, scale, sum_tangents_to, total
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
from gnewton.derivatives.rules.pointwise import add_cubes


class Divide(Rule):
    """a / b, with broadcasting."""

    reads_outputs = True

    def applies(self, o: Operation) -> bool:
        # Keywords would be a rounding mode.
        return super().applies(o) and isinstance(o.value(1, "other"), Tensor) and not o.arguments[1]

    def has_curvature(self, o: Operation) -> bool:
        return o.place(1, "other") is not None

    def forward(self, o: Operation, jets: Jets, adjoints: Adjoints, sums: Accumulator) -> list[Jet]:
        a, b = (Jet() if i is None else jets[i] for i in self._places(o))
        first, b1, b2 = self._quotient(o, a.first, b.first), self._full(o, b.first), self._full(o, b.second)
        adjoint = adjoints[0].value
        weights = None if adjoint is None else (adjoint / o.value(1, "other")).flatten()
        if first and b1 and weights is not None:
            block = -(first.rows() * weights) @ b1.rows().T
            sums.hessian(first.groups, b1.groups, block)
            sums.hessian(b1.groups, first.groups, block.T)
        if sums.order < 3:
            return [Jet(first)]
        cross = first and b1 and GroupTangents(b1.groups, -2 * first.over(b1.groups) * b1.values, owned=True)
        second = self._quotient(o, a.second, b.second, cross)
        for y, d in ((second, b1), (first, b2)):
            if y and d and weights is not None:
                sums.third(d.groups, -3 * torch.linalg.vecdot(rows(y.over(d.groups)) * weights, d.rows()))
        return [Jet(first, second)]

    def backward(
        self, o: Operation, jets: Jets, adjoints: Adjoints, needs: NeedsAdjoint, sums: Accumulator
    ) -> AdjointTangents:
        (adjoint, m), places, b = adjoints[0], self._places(o), o.value(1, "other")
        a1, b1 = (None if i is None else jets[i].first for i in places)
        y1, b1 = self._quotient(o, a1, b1), self._full(o, b1)
        m = m and GroupTangents(m.groups, m.values / b)
        if m and y1 and b1:
            for t, group in enumerate(b1.groups):
                block = -rows(m.values * b1.values[t]) @ y1.rows().T
                sums.full(m.groups, y1.groups, [group], block[:, :, None])
                sums.full(m.groups, [group], y1.groups, block[:, None, :])
        weights = None if adjoint is None else adjoint / b
        if b1 and weights is not None:
            add_cubes(sums, y1, b1, 2 * weights / b)
        return [self._pull(o, i, m, (y1, b1), weights) if needs[i] else None for i in range(len(o.inputs))]

    def _pull(
        self,
        o: Operation,
        i: int,
        m: GroupTangents | None,
        tangents: tuple[GroupTangents | None, GroupTangents | None],
        weights: Tensor | None,
    ) -> GroupTangents | None:
        """The derivatives of lambda / b, or of -lambda y / b, along the groups; ``m`` is lambda^s / b, ``weights`` lambda / b."""
        y, b, (y1, b1) = o.outputs[0].value, o.value(1, "other"), tangents
        if i == o.place(0, "input"):
            terms = [m]
            curvature_term = None if b1 is None or weights is None else scale(b1, -weights / b)
        else:
            terms = [m and GroupTangents(m.groups, -m.values * y)]
            if y1 and weights is not None:
                terms.append(GroupTangents(y1.groups, y1.values * -weights))
            curvature_term = None if b1 is None or weights is None else scale(b1, weights / b * y)
        return sum_tangents_to(total([*terms, curvature_term], y.shape), o.inputs[i].value.shape)

    def _quotient(
        self, o: Operation, a: GroupTangents | None, b: GroupTangents | None, more: GroupTangents | None = None
    ) -> GroupTangents | None:
        """(a_s - y b_s + more) / b"""
        y, divisor = o.outputs[0].value, o.value(1, "other")
        b = b and GroupTangents(b.groups, -y * lift(b.values, y.dim()), owned=True)
        numerator = total([a, b, more], y.shape)
        return numerator and GroupTangents(numerator.groups, numerator.values / divisor, owned=True)

    def _full(self, o: Operation, t: GroupTangents | None) -> GroupTangents | None:
        """Tangents in the shape of the output."""
        shape: Sequence[int] = o.outputs[0].value.shape
        return t and GroupTangents(t.groups, lift(t.values, len(shape)).expand(-1, *shape))

    def _places(self, o: Operation) -> tuple[int | None, int | None]:
        return o.place(0, "input"), o.place(1, "other")


register("div divide true_divide __truediv__", Divide())
