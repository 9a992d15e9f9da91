"""Products of a value with a weight, or of two values: what all of them share, and the product entry by entry.

B(a, b) has the tangent  B(a_s, b) + B(a, b_s) , the second derivative  B(a_s, b_t) + B(a_t, b_s) , and no third one. So
H-bar gets entries between the groups that reach a and those that reach b. With B_t^T lambda for each tangent b_t, formed
once, they are plain scalar products with all the a_s.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from gnewton.derivatives.group_tangents import GroupTangents, lift, rows, scale, sum_tangents_to, sum_values_to, total
from gnewton.derivatives.operation import (
    Accumulator,
    Adjoint,
    Adjoints,
    AdjointTangents,
    Jet,
    Jets,
    NeedsAdjoint,
    Operation,
    Rule,
    register,
)

Pair = tuple[GroupTangents | None, GroupTangents | None]


class Product(Rule):
    """B(a, b), plus a term c that enters linearly.

    ``times``, ``pull_a`` and ``pull_b`` take stacked values: with a leading axis of length k, or 1 for a value that all
    groups share. A subclass writes these three and says where its arguments stand.
    """

    left = (0, "input")  # position and name of a
    right = (1, "other")  # of b

    def times(self, o: Operation, a: Tensor, b: Tensor) -> Tensor:
        """B(a, b)."""
        raise NotImplementedError

    def pull_a(self, o: Operation, adjoint: Tensor, b: Tensor) -> Tensor:
        """The adjoint of B in its first argument: (k, *shape of a)."""
        raise NotImplementedError

    def pull_b(self, o: Operation, adjoint: Tensor, a: Tensor) -> Tensor:
        """The adjoint of B in its second argument: (k, *shape of b)."""
        raise NotImplementedError

    def offset(self, o: Operation, c: GroupTangents | None) -> GroupTangents | None:
        """The tangent of the term c, in a shape that broadcasts to the output."""
        return c

    def offset_adjoint(self, o: Operation, m: GroupTangents | None, shape: Sequence[int]) -> GroupTangents | None:
        """The adjoint of ``offset``: (k, *shape)."""
        return sum_tangents_to(m, shape)

    def multiplications(self, o: Operation) -> int:
        """Multiplications in one B(a, b)."""
        return o.outputs[0].value.numel()

    def forward(self, o: Operation, jets: Jets, adjoints: Adjoints, sums: Accumulator) -> list[Jet]:
        a, b, c = self._jets(o, jets)
        adjoint = adjoints[0].value
        if a.first and b.first and adjoint is not None:
            self._add_hessian(o, (a.first, b.first), adjoint[None], sums)
            if sums.order == 3:
                self._add_third(o, a, b, adjoint[None], sums)
        # Formed before a's and b's tangents may be written into.
        curvature_term = self._curvature_term(o, a.first, b.first) if sums.order == 3 else None
        first = self.tangent(o, (a.first, b.first), self.offset(o, c.first))
        if sums.order < 3:
            return [Jet(first)]
        return [Jet(first, self.tangent(o, (a.second, b.second), self.offset(o, c.second), curvature_term))]

    def backward(
        self, o: Operation, jets: Jets, adjoints: Adjoints, needs: NeedsAdjoint, sums: Accumulator
    ) -> AdjointTangents:
        (a, _), (b, _), _ = self._jets(o, jets)
        m = adjoints[0].tangents
        if m and a and b:
            for t, group in enumerate(b.groups):
                # lambda^r . B(a_s, b_t): s reaches the first argument and t the second, or the other way round.
                block = m.rows() @ rows(self.times(o, a.values, b.values[t : t + 1])).T
                sums.full(m.groups, a.groups, [group], block[:, :, None])
                sums.full(m.groups, [group], a.groups, block[:, None, :])
        return [self._pull(o, i, (a, b), adjoints[0]) if needs[i] else None for i in range(len(o.inputs))]

    def has_curvature(self, o: Operation) -> bool:
        return None not in self._places(o)

    def cost(self, o: Operation) -> int:
        a, b = (len(o.inputs[i].groups) if i is not None else 0 for i in self._places(o))
        return (a + b + (min(a, b) if a and b else 0)) * self.multiplications(o)

    def tangent(self, o: Operation, pair: Pair, *more: GroupTangents | None) -> GroupTangents | None:
        """B(a_s, b) + B(a, b_s), and more terms."""
        a, b = pair
        terms = [
            a and self.times_right(o, a),
            b and GroupTangents(b.groups, self.times(o, o.value(*self.left)[None], b.values), owned=True),
        ]
        out = total([*terms, *more], o.outputs[0].value.shape)
        if out and (a or b):
            out.owned = True
        return out

    def times_right(self, o: Operation, a: GroupTangents) -> GroupTangents:
        """B(a_s, b); may write it into the memory of a_s where that is owned."""
        return GroupTangents(a.groups, self.times(o, a.values, o.value(*self.right)[None]), owned=True)

    def _add_hessian(
        self, o: Operation, pair: tuple[GroupTangents, GroupTangents], adjoint: Tensor, sums: Accumulator
    ) -> None:
        a, b = pair
        # One product per group on the side with fewer groups.
        if len(b.groups) <= len(a.groups):
            block = a.rows() @ rows(self.pull_a(o, adjoint, b.values)).T
        else:
            block = rows(self.pull_b(o, adjoint, a.values)) @ b.rows().T
        # Twice, and not its transpose as well: what is wanted is the symmetric part of the sum.
        sums.hessian(a.groups, b.groups, block.mul_(2))

    def _add_third(self, o: Operation, a: Jet, b: Jet, adjoint: Tensor, sums: Accumulator) -> None:
        """3 lambda . ( B(a2_s, b_s) + B(a_s, b2_s) )"""
        for left, right in ((a.second, b.first), (a.first, b.second)):
            common = _common(left, right)
            if left and right and common:
                pulled = rows(self.pull_a(o, adjoint, right.over(common)))
                sums.third(common, 3 * torch.linalg.vecdot(rows(left.over(common)), pulled))

    def _curvature_term(self, o: Operation, a: GroupTangents | None, b: GroupTangents | None) -> GroupTangents | None:
        """D^2 B [(a_s, b_s), (a_s, b_s)], for the groups that reach both."""
        common = _common(a, b)
        return GroupTangents(common, 2 * self.times(o, a.over(common), b.over(common))) if a and b and common else None

    def _pull(self, o: Operation, i: int, pair: Pair, adjoint: Adjoint) -> GroupTangents | None:
        """The adjoint tangents of the i-th input."""
        v, m, places = o.inputs[i], adjoint.tangents, self._places(o)
        if i not in places:
            return self.offset_adjoint(o, m, v.value.shape)
        pull, fixed, other = (
            (self.pull_a, o.value(*self.right), pair[1]),
            (self.pull_b, o.value(*self.left), pair[0]),
        )[places.index(i)]
        pulled = m and GroupTangents(m.groups, pull(o, m.values, fixed[None]), owned=True)
        if not other or adjoint.value is None:
            return total([pulled], v.value.shape)
        hvp = GroupTangents(other.groups, pull(o, adjoint.value[None], other.values), owned=True)
        return total([pulled, hvp], v.value.shape)

    def _places(self, o: Operation) -> tuple[int | None, int | None]:
        return o.place(*self.left), o.place(*self.right)

    def _jets(self, o: Operation, jets: Jets) -> tuple[Jet, Jet, Jet]:
        places = self._places(o)
        a, b = (Jet() if i is None else jets[i] for i in places)
        rest = [jet for i, jet in enumerate(jets) if i not in places]
        return a, b, rest[0] if rest else Jet()


class Multiply(Product):
    """a * b, entry by entry, with broadcasting."""

    def applies(self, o: Operation) -> bool:
        return super().applies(o) and all(isinstance(o.value(*place), Tensor) for place in (self.left, self.right))

    def times(self, o: Operation, a: Tensor, b: Tensor) -> Tensor:
        dim = o.outputs[0].value.dim()
        return lift(a, dim) * lift(b, dim)

    def times_right(self, o: Operation, a: GroupTangents) -> GroupTangents:
        out = scale(a, o.value(*self.right))
        assert out is not None
        return out

    def pull_a(self, o: Operation, adjoint: Tensor, b: Tensor) -> Tensor:
        return sum_values_to(self.times(o, adjoint, b), o.value(*self.left).shape)

    def pull_b(self, o: Operation, adjoint: Tensor, a: Tensor) -> Tensor:
        return sum_values_to(self.times(o, adjoint, a), o.value(*self.right).shape)


register("mul multiply __mul__ __rmul__", Multiply())


def _common(a: GroupTangents | None, b: GroupTangents | None) -> tuple[int, ...]:
    return tuple(g for g in a.groups if g in b.groups) if a and b else ()
