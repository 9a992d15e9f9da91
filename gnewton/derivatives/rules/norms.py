"""Norm layers."""

from collections.abc import Sequence
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
from gnewton.derivatives.rules.tiles import tiles


class Standardize(Rule):
    """y = c r  with  c = x - mean(x)  and  r = (mean(c^2) + eps)^(-1/2)  over some axes: the core of the norm layers."""

    def applies(self, o: Operation) -> bool:
        return super().applies(o) and o.inputs[0].value.numel() > 0

    def forward(self, o: Operation, jets: Jets, adjoints: Adjoints, sums: Accumulator) -> list[Jet]:
        ((x, x2),), (adjoint,) = jets, adjoint_values(o, adjoints)
        assert x is not None
        value, eps = o.inputs[0].value, o.argument(2, "eps")
        axes = [axis % value.dim() - value.dim() for axis in o.argument(1, "axes")]

        mean = partial(torch.mean, dim=axes, keepdim=True)
        c = value - mean(value)
        r = (mean(c * c) + eps).rsqrt()
        size = c.numel() // r.numel()
        pull = size * mean(adjoint * c)
        first = x.result()
        second = GroupTangents(x.groups, torch.empty_like(first.values), owned=True) if sums.order == 3 else None
        x2_values = None if x2 is None else x2.over(x.groups)
        for cut in tiles(x.values, axes):
            c0, r0, v, pull0 = map(cut, (c, r, adjoint, pull))
            # Written where x_s was read, if nobody else reads it.
            c1 = torch.sub(cut(x.values), mean(cut(x.values)), out=cut(first.values))
            q1 = 2 * mean(c0 * c1)  # the derivatives of mean(c^2), and then of r
            r1 = -(r0**3) * q1 / 2
            pull1 = size * mean(v * c1)
            gram = (rows(c1) * (-pull0 * r0**3 / size).expand_as(c0).flatten()) @ rows(c1).T
            cross = rows(pull1) @ rows(r1).T
            curvature = rows(pull0 * r0**5 * q1) @ rows(q1).T * 0.75
            sums.hessian(x.groups, x.groups, gram + cross + cross.T + curvature)
            if second:
                c2 = torch.zeros_like(c1) if x2_values is None else cut(x2_values) - mean(cut(x2_values))
                q2, q3 = 2 * mean(c1 * c1 + c0 * c2), 6 * mean(c1 * c2)
                r2 = 0.75 * r0**5 * q1 * q1 - r0**3 * q2 / 2
                r3 = -1.875 * r0**7 * q1**3 + 2.25 * r0**5 * q1 * q2 - r0**3 * q3 / 2
                third = 3 * size * mean(v * c2) * r1 + 3 * pull1 * r2 + pull0 * r3
                sums.third(x.groups, rows(third).sum(1))
                cut(second.values).copy_(c2.mul_(r0).addcmul_(c1, r1, value=2).addcmul_(c0, r2))
            c1.mul_(r0).addcmul_(c0, r1)
        return [Jet(first, second)]

    def backward(
        self, o: Operation, jets: Jets, adjoints: Adjoints, needs: NeedsAdjoint, sums: Accumulator
    ) -> AdjointTangents:
        x, m, (adjoint,) = jets[0].first, adjoints[0].tangents, adjoint_values(o, adjoints)
        value, axes, eps = o.inputs[0].value, o.argument(1, "axes"), o.argument(2, "eps")
        # All in the layout (groups, cells, entries of a cell): a cell is what shares one mean and one variance.
        c = _centre(to_cells(value[None], axes))[0]
        n, r = c.shape[1], (c.square().mean(1) + eps).rsqrt()
        pulled = None if m is None else to_cells(m.values, axes)
        out = []
        if m and pulled is not None:
            pullback = pulled * r[:, None] - c * (r**3 * (pulled * c).mean(2))[..., None]
            out.append(GroupTangents(m.groups, _centre(pullback)))
        if x:
            a, weights = _centre(to_cells(x.values, axes)), to_cells(adjoint[None], axes)[0]
            v, pairs = 2 * (c * a).mean(2), 2 / n * torch.einsum("scn,tcn->stc", a, a)
            slope = -(r**3) * v / 2
            curvature = 0.75 * r**5 * v[:, None] * v - r**3 * pairs / 2
            if m and pulled is not None:
                sums.full(m.groups, x.groups, x.groups, _third_along(pulled, a, c, slope, curvature))
            along, level = (weights * a).sum(2), (weights * c).sum(1)
            mixed = torch.einsum("rc,stc->rst", along, curvature)
            sums.full(x.groups, x.groups, x.groups, _add_third_of_root(mixed, level, r, v, pairs))
            hvp = weights * slope[..., None] - c * (along * r**3)[..., None] / n
            hvp = hvp + (level * 1.5 * r**5 * v)[..., None] * c / n - (level * r**3)[:, None] * a / n
            out.append(GroupTangents(x.groups, _centre(hvp)))
        tangents = total(out, c.shape)
        return [tangents and GroupTangents(tangents.groups, from_cells(tangents.values, axes, value.shape))]


register("standardize", Standardize())


def _third_along(pulled: Tensor, a: Tensor, c: Tensor, slope: Tensor, curvature: Tensor) -> Tensor:
    """The second derivative of y = c r along two tangents, times ``pulled``; slope and curvature are those of r."""
    along, level = torch.einsum("rcn,scn->rsc", pulled, a), (pulled * c).sum(2)
    cross = torch.einsum("rsc,tc->rst", along, slope)
    return cross + cross.mT + torch.einsum("rc,stc->rst", level, curvature)


def _add_third_of_root(mixed: Tensor, level: Tensor, r: Tensor, v: Tensor, pairs: Tensor) -> Tensor:
    """``mixed`` and the third derivative of r, times ``level``; v and pairs are the first and second one of mean(c^2)."""
    twist = -1.875 * torch.einsum("c,rc,sc,tc->rst", level * r**7, v, v, v)
    # What is symmetric in two places only is spread over all three where blocks of D3 are added.
    return mixed + torch.einsum("rc,stc->rst", 0.75 * level * r**5 * v, pairs) + twist / 3


def to_cells(stacked: Tensor, axes: Sequence[int]) -> Tensor:
    """(k, *shape) -> (k, cells, entries): the axes that a mean is taken over come last, as one."""
    dims = [axis % (stacked.dim() - 1) + 1 for axis in axes]
    last = stacked.movedim(dims, list(range(-len(dims), 0))).flatten(-len(dims))
    return last.reshape(len(stacked), last.shape[1:-1].numel(), last.shape[-1])


def from_cells(cells: Tensor, axes: Sequence[int], shape: Sequence[int]) -> Tensor:
    """The inverse of ``to_cells``."""
    dims = [axis % len(shape) for axis in axes]
    others = [n for i, n in enumerate(shape) if i not in dims]
    values = cells.reshape(len(cells), *others, *(shape[i] for i in dims))
    return values.movedim(list(range(-len(dims), 0)), [i + 1 for i in dims])


def _centre(cells: Tensor) -> Tensor:
    return cells - cells.mean(-1, keepdim=True)
