"""Matrix equations: solve, inverse, triangular systems, Cholesky factors, logarithms of determinants.

y solves an equation that is bilinear in y and in what is given. For  A y = b , with  w = A^-T lambda ,

    y_s   = A^-1 (b_s - A_s y)            y2_s = A^-1 (b2_s - A2_s y - 2 A_s y_s)
    H     :  -w . (A_s y_t + A_t y_s)     D3   :  -3 w . (A_s y2_s + A2_s y_s)
    w_s   = A^-T (lambda^s - A_s^T w)     full :  -w_r . (A_s y_t + A_t y_s), over the three places of r

and the adjoints of b and A are w and -w y^T. For  L L^T = A  the same holds with L in the place of A and of y. Of the
logarithm of a determinant, with  C_s = A^-1 A_s ,  the derivatives are traces: tr C_s, -tr C_s C_t and tr C_r (C_s C_t + C_t C_s).
"""

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
    register,
)

Tangents = GroupTangents | None


def _map(t: Tangents, function: Callable[[Tensor], Tensor]) -> Tangents:
    return t and GroupTangents(t.groups, function(t.values))


def _side_by_side(function: Callable[[Tensor], Tensor], stacked: Tensor) -> Tensor:
    """A linear function of columns, (..., n, k), of many such matrices (S, ..., n, k) at once."""
    columns = stacked.movedim(0, -1)
    return function(columns.flatten(-2)).reshape(columns.shape).movedim(-1, 0)


def _squares(o: Operation) -> bool:
    a = o.value(0, "A")
    return isinstance(a, Tensor) and a.dim() >= 2 and a.shape[-1] == a.shape[-2] and a.numel() > 0


class Solve(Rule):
    """A y = b, with b a matrix of the same batch, or a vector."""

    reads_outputs = True
    left, right = (0, "A"), (1, "B")

    def applies(self, o: Operation) -> bool:
        a, b = o.value(*self.left), o.value(*self.right)
        if not (super().applies(o) and _squares(o) and isinstance(b, Tensor) and len(o.outputs) < 2):
            return False
        known = len(o.arguments[0]) <= 2 and not o.arguments[1].keys() - {"A", "B", "left"}
        alike = a.shape[:-1] == b.shape[:-1] if a.dim() == b.dim() else a.dim() == 2 and b.dim() == 1
        return known and alike and o.argument(9, "left", True) is True

    def solver(self, o: Operation, transposed: bool) -> Callable[[Tensor], Tensor]:
        """A^-1, or A^-T, of columns."""
        factors = torch.linalg.lu_factor(o.value(*self.left))
        return lambda columns: torch.linalg.lu_solve(*factors, columns, adjoint=transposed)

    def part(self, o: Operation, a: Tensor) -> Tensor:
        """What of a tangent of A the equation reads."""
        return a

    def forward(self, o: Operation, jets: Jets, adjoints: Adjoints, sums: Accumulator) -> list[Jet]:
        (a1, b1), (a2, b2) = self._both(o, [j.first for j in jets]), self._both(o, [j.second for j in jets])
        y, solve = self._matrix(o, o.outputs[0].value), self.solver(o, False)
        first = self._solved(solve, b1, _map(a1, lambda v: v @ -y))
        w = self._w(o, adjoints[0].value)
        if a1 and first and w is not None:
            block = rows(a1.values.mT @ -w) @ first.rows().T
            sums.hessian(a1.groups, first.groups, block)
            sums.hessian(first.groups, a1.groups, block.T)
        if sums.order < 3:
            return [Jet(self._tangents(o, first))]
        cross = a1 and first and GroupTangents(a1.groups, -2 * a1.values @ first.over(a1.groups))
        second = self._solved(solve, b2, _map(a2, lambda v: v @ -y), cross)
        for a, other in ((a1, second), (a2, first)):
            if a and other and w is not None:
                pulled = rows(a.values.mT @ w)
                sums.third(a.groups, -3 * torch.linalg.vecdot(pulled, rows(other.over(a.groups))))
        return [Jet(self._tangents(o, first), self._tangents(o, second))]

    def backward(
        self, o: Operation, jets: Jets, adjoints: Adjoints, needs: NeedsAdjoint, sums: Accumulator
    ) -> AdjointTangents:
        a1, b1 = self._both(o, [j.first for j in jets])
        y, w = self._matrix(o, o.outputs[0].value), self._w(o, adjoints[0].value)
        first = self._solved(self.solver(o, False), b1, _map(a1, lambda v: v @ -y))
        m = _map(adjoints[0].tangents, lambda v: self._matrix(o, v))
        ws = self._solved(self.solver(o, True), m, None if w is None else _map(a1, lambda v: v.mT @ -w))
        if ws and a1 and first:
            for s, group in enumerate(a1.groups):
                block = rows(a1.values[s].mT @ -ws.values) @ first.rows().T
                sums.full(ws.groups, [group], first.groups, block[:, None, :])
                sums.full(ws.groups, first.groups, [group], block[:, :, None])
        pulled: list[Tangents] = [None] * len(o.inputs)
        if (i := o.place(*self.right)) is not None:
            pulled[i] = self._tangents(o, ws)
        if (i := o.place(*self.left)) is not None:
            terms = (_map(ws, lambda v: v @ -y.mT), None if w is None else _map(first, lambda v: -w @ v.mT))
            pulled[i] = _map(total(terms, o.inputs[i].value.shape), lambda v: self.part(o, v))
        return pulled

    def _solved(self, solve: Callable[[Tensor], Tensor], *terms: Tangents) -> Tangents:
        shape = next((t.values.shape[1:] for t in terms if t), ())
        return _map(total(terms, shape), lambda v: _side_by_side(solve, v))

    def _w(self, o: Operation, adjoint: Tensor | None) -> Tensor | None:
        return None if adjoint is None else self.solver(o, True)(self._matrix(o, adjoint))

    def _both(self, o: Operation, tangents: list[Tangents]) -> tuple[Tangents, Tangents]:
        i, j = o.place(*self.left), o.place(*self.right)
        a = None if i is None else _map(tangents[i], lambda v: self.part(o, v))
        return a, None if j is None else _map(tangents[j], lambda v: self._matrix(o, v))

    def _is_vector(self, o: Operation) -> bool:
        return o.outputs[0].value.dim() == 1

    def _matrix(self, o: Operation, values: Tensor) -> Tensor:
        return values[..., None] if self._is_vector(o) else values

    def _tangents(self, o: Operation, t: Tangents) -> Tangents:
        return _map(t, lambda v: v[..., 0]) if self._is_vector(o) else t


class Inverse(Solve):
    """A y = 1."""

    def applies(self, o: Operation) -> bool:
        return len(o.inputs) == 1 and _squares(o) and not o.arguments[1].keys() - {"A"}

    def solver(self, o: Operation, transposed: bool) -> Callable[[Tensor], Tensor]:
        inverse = o.outputs[0].value.mT if transposed else o.outputs[0].value
        return lambda columns: inverse @ columns

    def _both(self, o: Operation, tangents: list[Tangents]) -> tuple[Tangents, Tangents]:
        return tangents[0], None

    def _is_vector(self, o: Operation) -> bool:
        return False


class SolveTriangular(Solve):
    """A y = b, where A is one triangle of what is given."""

    def applies(self, o: Operation) -> bool:
        a, b = o.value(*self.left), o.value(*self.right)
        plain = isinstance(b, Tensor) and Rule.applies(self, o) and _squares(o) and len(o.arguments[0]) == 2
        known = not o.arguments[1].keys() - {"upper", "left", "unitriangular"}
        return plain and known and a.shape[:-1] == b.shape[:-1] and o.argument(9, "left", True) is True

    def solver(self, o: Operation, transposed: bool) -> Callable[[Tensor], Tensor]:
        a, upper, unit = o.value(*self.left), o.argument(9, "upper"), o.argument(9, "unitriangular", False)
        matrix = a.mT if transposed else a
        return lambda b: torch.linalg.solve_triangular(matrix, b, upper=upper != transposed, unitriangular=unit)

    def part(self, o: Operation, a: Tensor) -> Tensor:
        least = 1 if o.argument(9, "unitriangular", False) else 0
        return a.triu(least) if o.argument(9, "upper") else a.tril(-least)

    def _is_vector(self, o: Operation) -> bool:
        return False


register("linalg_solve", Solve())
register("linalg_inv inverse", Inverse())
register("linalg_solve_triangular", SolveTriangular())


class Cholesky(Rule):
    """L L^T = A, with the symmetric part of A, as torch's gradient has it."""

    reads_inputs, reads_outputs = False, True

    def applies(self, o: Operation) -> bool:
        return len(o.inputs) == 1 and len(o.arguments[0]) == 1 and not o.arguments[1] and o.value(0, "A").numel() > 0

    def forward(self, o: Operation, jets: Jets, adjoints: Adjoints, sums: Accumulator) -> list[Jet]:
        factor, adjoint, a = o.outputs[0].value, adjoints[0].value, jets[0]
        first = _map(a.first, lambda v: _tangent(factor, v))
        m = None if adjoint is None else _adjoint(factor, adjoint)
        pulled = None if m is None else _map(first, lambda v: -2 * m @ v)
        if first and pulled:
            sums.hessian(first.groups, first.groups, pulled.rows() @ first.rows().T)
        if sums.order < 3:
            return [Jet(first)]
        cross = _map(first, lambda v: -2 * v @ v.mT)
        second = _map(total((a.second, cross), factor.shape), lambda v: _tangent(factor, v))
        if first and second and pulled:
            products = torch.linalg.vecdot(pulled.rows(), rows(second.over(first.groups)))
            sums.third(first.groups, 3 * products)
        return [Jet(first, second)]

    def backward(
        self, o: Operation, jets: Jets, adjoints: Adjoints, needs: NeedsAdjoint, sums: Accumulator
    ) -> AdjointTangents:
        factor, (adjoint, tangents) = o.outputs[0].value, adjoints[0]
        first = _map(jets[0].first, lambda v: _tangent(factor, v))
        bent = None
        if adjoint is not None:
            m = _adjoint(factor, adjoint)
            bent = _map(first, lambda v: -2 * m @ v)
        ms = _map(total((tangents, bent), factor.shape), lambda v: _adjoint(factor, v))
        if ms and first:
            for s, group in enumerate(first.groups):
                block = rows(-2 * ms.values @ first.values[s]) @ first.rows().T
                sums.full(ms.groups, [group], first.groups, block[:, None, :])
        return [ms]


def _half(lower: Tensor) -> Tensor:
    """The lower triangle with half of the diagonal."""
    return lower.tril() - torch.diag_embed(lower.diagonal(dim1=-2, dim2=-1) / 2)


def _tangent(factor: Tensor, a: Tensor) -> Tensor:
    """X, lower triangular, with  X L^T + L X^T = (a + a^T) / 2 ."""
    inner = torch.linalg.solve_triangular(factor, (a + a.mT) / 2, upper=False)
    return factor @ _half(torch.linalg.solve_triangular(factor, inner.mT, upper=False).mT)


def _adjoint(factor: Tensor, adjoint: Tensor) -> Tensor:
    """The adjoint of ``_tangent``: a symmetric matrix."""
    inner = torch.linalg.solve_triangular(factor.mT, _half(factor.mT @ adjoint.tril()), upper=True)
    outer: Tensor = torch.linalg.solve_triangular(factor.mT, inner.mT, upper=True)
    return (outer + outer.mT) / 2


register("linalg_cholesky cholesky", Cholesky())


class LogDeterminant(Rule):
    """log |det A|."""

    def applies(self, o: Operation) -> bool:
        return len(o.inputs) == 1 and len(o.arguments[0]) == 1 and not o.arguments[1] and _squares(o)

    def forward(self, o: Operation, jets: Jets, adjoints: Adjoints, sums: Accumulator) -> list[Jet]:
        first, second = (self._solved(o, t) for t in jets[0])
        adjoint = adjoints[-1].value
        if first and adjoint is not None:
            weighted = first.values * adjoint[..., None, None]
            sums.hessian(first.groups, first.groups, -(rows(weighted.mT) @ first.rows().T))
            if sums.order > 2:
                bent = 2 * first.values @ first.values
                bent = bent - 3 * second.over(first.groups) if second else bent
                sums.third(first.groups, torch.linalg.vecdot(rows(weighted.mT), rows(bent)))
        out = _map(first, _trace)
        cross = _map(first, lambda v: -_trace(v @ v))
        out2 = total((_map(second, _trace), cross), o.outputs[-1].value.shape) if sums.order > 2 else None
        # Of a real matrix the sign, which slogdet returns before, is constant.
        return [*[Jet()] * (len(o.outputs) - 1), Jet(out, out2)]

    def backward(
        self, o: Operation, jets: Jets, adjoints: Adjoints, needs: NeedsAdjoint, sums: Accumulator
    ) -> AdjointTangents:
        (adjoint, m), a = adjoints[-1], o.inputs[0].value
        first = self._solved(o, jets[0].first)
        inverse = torch.linalg.inv(a).mT
        if m and first:
            for s, group in enumerate(first.groups):
                block = -m.rows() @ rows(_trace(first.values[s] @ first.values)).T
                sums.full(m.groups, [group], first.groups, block[:, None, :])
        terms = [_map(m, lambda v: v[..., None, None] * inverse)]
        if first and adjoint is not None:
            weighted = first.values * adjoint[..., None, None]
            for s, group in enumerate(first.groups):
                both = weighted @ first.values[s] + first.values[s] @ weighted
                # Symmetric and complete, it is added in three places.
                sums.full(first.groups, [group], first.groups, (rows(both.mT) @ first.rows().T / 3)[:, None, :])
            terms.append(_map(first, lambda v: -adjoint[..., None, None] * (inverse @ v.mT)))
        return [total(terms, a.shape)]

    def _solved(self, o: Operation, t: Tangents) -> Tangents:
        factors = torch.linalg.lu_factor(o.inputs[0].value)
        return _map(t, lambda v: _side_by_side(lambda columns: torch.linalg.lu_solve(*factors, columns), v))


def _trace(stacked: Tensor) -> Tensor:
    traces: Tensor = stacked.diagonal(dim1=-2, dim2=-1).sum(-1)
    return traces


register("logdet linalg_slogdet slogdet", LogDeterminant())
