"""The p-norm of vectors along some axes.

With  N = |x|_p ,  z = x / N  and  A_st = sum |z|^(p-2) x_s x_t  the derivatives of one norm are

    N_s   = sum sgn(z) |z|^(p-1) x_s
    N_st  = (p-1) / N   (A_st - N_s N_t)
    N_rst = (p-1) / N^2 ((p-2) sum sgn(z) |z|^(p-3) x_r x_s x_t - (p-1) (N_r A_st + N_s A_rt + N_t A_rs) + (2p-1) N_r N_s N_t) .
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

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
from gnewton.derivatives.rules.linear import PiecewiseLinear
from gnewton.derivatives.rules.norms import from_cells, to_cells
from gnewton.derivatives.rules.pointwise import add_cubes


class Powers(NamedTuple):
    """Of each cell, a vector whose norm is taken: N (c,), and sgn(z) |z|^(p-1), |z|^(p-2), sgn(z) |z|^(p-3) (c, n)."""

    norm: Tensor
    one: Tensor
    two: Tensor
    three: Tensor | None


class VectorNorm(Rule):
    """N = |x|_p with p = 2 or p >= 3, which is smooth but where the whole vector vanishes; with another p > 1 between zeros.

    At a zero the third derivative of these is infinite: the summary is then not finite, and asked of nested passes.
    """

    reads_outputs = True

    def applies(self, o: Operation) -> bool:
        p = o.argument(1, "ord", 2)
        plain = o.argument(4, "dtype") is None and isinstance(p, int | float) and o.inputs[0].value.dim() > 0
        return super().applies(o) and plain and 1 < p < float("inf")

    def forward(self, o: Operation, jets: Jets, adjoints: Adjoints, sums: Accumulator) -> list[Jet]:
        ((x, x2),), (adjoint,), p = jets, adjoint_values(o, adjoints), o.argument(1, "ord", 2)
        assert x is not None
        a = to_cells(x.values, self._axes(o))
        powers, weights = self._powers(o, a), adjoint.flatten()
        n1 = (powers.one * a).sum(2)
        scaled = weights * (p - 1) / powers.norm
        gram = rows(a * (powers.two * scaled[:, None])) @ rows(a).T
        sums.hessian(x.groups, x.groups, gram - (n1 * scaled) @ n1.T)
        first = self._result(o, x.groups, n1)
        if sums.order < 3:
            return [Jet(first)]
        b = torch.zeros_like(a) if x2 is None else to_cells(x2.over(x.groups), self._axes(o))
        ratio = (p - 1) / powers.norm
        square, mixed, m1 = _pairings(powers, a, b)
        n2 = ratio * (square - n1 * n1) + m1
        cubes = 0 if powers.three is None else (p - 2) * (powers.three * a**3).sum(2)
        n3 = ratio / powers.norm * (cubes - 3 * (p - 1) * n1 * square + (2 * p - 1) * n1**3)
        sums.third(x.groups, (n3 + 3 * ratio * (mixed - n1 * m1)) @ weights)
        return [Jet(first, self._result(o, x.groups, n2))]

    def backward(
        self, o: Operation, jets: Jets, adjoints: Adjoints, needs: NeedsAdjoint, sums: Accumulator
    ) -> AdjointTangents:
        x, m, (adjoint,), p = jets[0].first, adjoints[0].tangents, adjoint_values(o, adjoints), o.argument(1, "ord", 2)
        axes, shape = self._axes(o), o.inputs[0].value.shape
        a = None if x is None else to_cells(x.values, axes)
        powers, weights = self._powers(o, a), adjoint.flatten()
        pulled = None if m is None else rows(m.values)
        out = [] if m is None or pulled is None else [GroupTangents(m.groups, pulled[..., None] * powers.one)]
        if x is not None and a is not None:
            n1, ratio = (powers.one * a).sum(2), (p - 1) / powers.norm
            pairs = torch.einsum("scn,tcn->stc", a * powers.two, a)
            curvature = pairs - n1[:, None] * n1
            if m and pulled is not None:
                sums.full(m.groups, x.groups, x.groups, torch.einsum("rc,stc->rst", pulled * ratio, curvature))
            # What is symmetric in all three places is spread over them, as blocks of D3 are added three times.
            level = n1 * (weights * ratio / powers.norm)
            mixed = (2 * p - 1) / 3 * n1[:, None] * n1 - (p - 1) * pairs
            sums.full(x.groups, x.groups, x.groups, torch.einsum("rc,stc->rst", level, mixed))
            if powers.three is not None:
                third = powers.three * ((p - 2) / 3 * weights * ratio / powers.norm)[:, None]
                cells = GroupTangents(x.groups, a)
                add_cubes(sums, cells, cells, third)
            hvp = (weights * ratio)[:, None] * (powers.two * a - powers.one * n1[..., None])
            out.append(GroupTangents(x.groups, hvp))
        tangents = total(out, powers.one.shape)
        return [tangents and GroupTangents(tangents.groups, from_cells(tangents.values, axes, shape))]

    def _powers(self, o: Operation, tangents: Tensor | None) -> Powers:
        p, x = o.argument(1, "ord", 2), to_cells(o.inputs[0].value[None], self._axes(o))[0]
        norm = o.outputs[0].value.flatten()
        if tangents is not None:
            # A vector that vanishes, and does not move, has the norm 0 around here; one that moves has no derivative.
            still = (norm == 0) & (tangents == 0).all(2).all(0)
            norm = torch.where(still, 1.0, norm)
        z = x / norm[:, None]
        if p == 2:
            return Powers(norm, z, torch.ones_like(z), None)
        size, sign = z.abs(), z.sign()
        return Powers(norm, sign * size ** (p - 1), size ** (p - 2), sign * size ** (p - 3))

    def _axes(self, o: Operation) -> Sequence[int]:
        dim: Any = o.argument(2, "dim")
        if dim is None or len([dim] if isinstance(dim, int) else dim) == 0:
            return list(range(o.inputs[0].value.dim()))
        return [dim] if isinstance(dim, int) else list(dim)

    def _result(self, o: Operation, groups: tuple[int, ...], values: Tensor) -> GroupTangents:
        return GroupTangents(groups, values.reshape(len(values), *o.outputs[0].value.shape))


def _pairings(powers: Powers, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A of the first tangents with themselves and with the second ones, and N' of the second ones."""
    return (powers.two * a * a).sum(2), (powers.two * a * b).sum(2), (powers.one * b).sum(2)


class Polyhedral(PiecewiseLinear):
    """The sum of the sizes, or the greatest of them: p = 1 and p = infinity."""

    def applies(self, o: Operation) -> bool:
        return o.argument(1, "ord", 2) in (1, float("inf"), -float("inf")) and o.argument(4, "dtype") is None


register("linalg_vector_norm", VectorNorm())
register("linalg_vector_norm", Polyhedral())
