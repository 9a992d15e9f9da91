"""Any operation, by autograd: what serves the functions that no rule is made for."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from gnewton.derivatives.group_tangents import GroupTangents, dense, rows, union
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
)

Tensors = tuple[Tensor, ...]


class Generic(Rule):
    """Any operation, by nested backward passes through that operation alone, group by group.

    It is what the slow engine does with the whole loss, and as right. torch.func would do all groups at once, but some of
    its formulas are wrong from the second order on, without any error (det, solve, lstm_cell).
    """

    def applies(self, o: Operation) -> bool:
        return True

    def forward(self, o: Operation, jets: Jets, adjoints: Adjoints, sums: Accumulator) -> list[Jet]:
        groups, x = union(jet.first for jet in jets), tuple(v.value for v in o.inputs)
        first, adjoint = dense([jet.first for jet in jets], x, groups), adjoint_values(o, adjoints)
        with torch.enable_grad():
            z = leaves((*x, *adjoint))
            slope = gradient(_dot(z[len(x) :], o.call(*z[: len(x)])), z[: len(x)], create_graph=True)
            # The adjoint is a variable too: the output's tangent is the derivative of  adjoint . D o [x_s]  along it.
            hvp = _columns(gradient(_dot(slope, d), z) for d in zip(*first, strict=True))
        sums.hessian(groups, groups, dots(hvp[: len(x)], first))
        out = [GroupTangents(groups, values) for values in hvp[len(x) :]]
        if sums.order < 3:
            return [Jet(tangents) for tangents in out]
        second = dense([jet.second for jet in jets], x, groups)
        curves = zip(zip(*first, strict=True), zip(*second, strict=True), strict=True)
        third, *out2 = _columns(_derivatives_along(o, adjoint, a, b) for a, b in curves)
        sums.third(groups, third)
        return [Jet(tangents, GroupTangents(groups, values)) for tangents, values in zip(out, out2, strict=True)]

    def backward(
        self, o: Operation, jets: Jets, adjoints: Adjoints, needs: NeedsAdjoint, sums: Accumulator
    ) -> AdjointTangents:
        x, adjoint = tuple(v.value for v in o.inputs), adjoint_values(o, adjoints)
        tangents = [*(jet.first for jet in jets), *(a.tangents for a in adjoints)]
        # With z = (x, lambda) it is all about  Phi(z) = lambda . o(x) : its Hessian along r, then its third derivative.
        groups = union(tangents)
        along = dense(tangents, (*x, *adjoint), groups)
        pulled, third = [], []
        with torch.enable_grad():
            z = leaves((*x, *adjoint))
            slope = gradient(_dot(z[len(x) :], o.call(*z[: len(x)])), z, create_graph=True)
            for r in zip(*along, strict=True):
                hvp = gradient(_dot(slope, r), z, create_graph=True)
                pulled.append(hvp[: len(x)])
                third.append(_columns(gradient(_dot(hvp, s), z) for s in zip(*along, strict=True)))
        # The block is symmetric and complete; it is added in three places, a third of it each time.
        sums.full(groups, groups, groups, torch.stack([dots(both, along) for both in third]) / 3)
        return [GroupTangents(groups, values.detach()) for values in _columns(pulled)]


def leaves(values: Sequence[Tensor]) -> Tensors:
    """The values without their graph, each to be differentiated with respect to."""
    return tuple(v.detach().requires_grad_() for v in values)


def gradient(scalar: Tensor, inputs: Tensors, create_graph: bool = False) -> Tensors:
    """The derivatives of a scalar, zeros where it does not depend on an input; the graph is kept."""
    if not scalar.requires_grad:
        return tuple(map(torch.zeros_like, inputs))
    return torch.autograd.grad(scalar, inputs, retain_graph=True, create_graph=create_graph, materialize_grads=True)


def dots(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """(k, l): the scalar products of k tuples with l tuples, each stacked entry by entry."""
    return torch.stack([rows(v) @ rows(w).T for v, w in zip(a, b, strict=True)]).sum(0)


def _derivatives_along(o: Operation, adjoint: Tensors, first: Tensors, second: Tensors) -> Tensors:
    """Along o(x + e first + e^2/2 second): adjoint . (the third derivative at e = 0), then the second of every output."""
    x = tuple(v.value for v in o.inputs)
    with torch.enable_grad():
        e, weights = x[0].new_zeros(()).requires_grad_(), leaves(adjoint)
        curve = (v + (e * a + e * e / 2 * b).to(v) for v, a, b in zip(x, first, second, strict=True))
        (slope,) = gradient(_dot(weights, o.call(*curve)), (e,), create_graph=True)
        (curvature,) = gradient(slope, (e,), create_graph=True)
        outputs = gradient(curvature, weights)
        return *gradient(curvature, (e,)), *outputs


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    return torch.stack([(v * w).sum() for v, w in zip(a, b, strict=True)]).sum()


def _columns(tuples: Iterable[Tensors]) -> Tensors:
    return tuple(torch.stack(column) for column in zip(*tuples, strict=True))
