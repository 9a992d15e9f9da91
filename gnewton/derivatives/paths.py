"""Curvature next to the parameters, pushed forwards instead of pulled back to: a shorter way to the full D3.

An activation after the first layer adds  lambda^r . D^2 o [x_s, x_t]  for every r, and its adjoint tangents lambda^r, one for
each of the S groups, would have to come back through the second layer. But only the first layer's groups reach it: there
are few pairs (s, t), and their second-order tangents  q_st = D^2 o [x_s, x_t]  can go forwards through that layer B instead,

    lambda_x^r . q_st  =  lambda^r . B(q_st, b)  +  lambda . B(q_st, b_r) .
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import torch
from torch import Tensor

from gnewton.derivatives.group_tangents import GroupTangents, rows
from gnewton.derivatives.operation import Accumulator, Adjoint, Jet, Jets, Operation, Variable
from gnewton.derivatives.rules.bilinear import Product
from gnewton.derivatives.rules.linear import PiecewiseLinear
from gnewton.derivatives.rules.pointwise import Pointwise, derivatives
from gnewton.derivatives.rules.pooling import MaxPool
from gnewton.derivatives.tape import Tape


@dataclass(frozen=True)
class Path:
    """From an activation with no curvature behind it, through operations without curvature, to a product."""

    start: Operation
    between: tuple[Operation, ...]
    end: Operation

    def values(self) -> set[Variable]:
        """The values on the path, which need no adjoint tangents."""
        return {v for o in (self.start, *self.between) for v in o.outputs}

    def operations(self) -> tuple[Operation, ...]:
        """Those before the end."""
        return self.start, *self.between


def find_paths(tape: Tape, most: int) -> dict[Operation, Path]:
    """The paths of a tape, by their ends. A path is worth it where its pairs of groups are fewer than ``most``."""
    behind = tape.behind_curvature()
    readers: dict[Variable, list[Operation]] = {}
    for o in tape.operations:
        for v in o.inputs:
            readers.setdefault(v, []).append(o)
    paths = []
    for o in tape.operations:
        k = len(o.inputs[0].groups)
        if isinstance(o.rule, Pointwise) and o.rule.curved and o.inputs[0] not in behind and k * (k + 1) // 2 < most:
            paths.append(_path_from(o, readers))
    return {path.end: path for path in paths if path}


def _path_from(start: Operation, readers: Mapping[Variable, list[Operation]]) -> Path | None:
    between: list[Operation] = []
    v = start.outputs[0]
    while len(readers.get(v, [])) == 1:
        o = readers[v][0]
        if isinstance(o.rule, Product):
            return Path(start, tuple(between), o) if o.place(*o.rule.left) == o.inputs.index(v) else None
        if not isinstance(o.rule, PiecewiseLinear | MaxPool) or len(o.inputs) > 1 or len(o.outputs) > 1:
            return None
        between.append(o)
        v = o.outputs[0]
    return None


def add_pairs(path: Path, x: GroupTangents | None, jets: Jets, adjoint: Adjoint, sums: Accumulator) -> None:
    """Add what the start of the path contributes to the full D3 through its second derivative.

    Args:
        x: the tangents of the start's input.
        jets: the tangents of the end's inputs.
        adjoint: of the end's output, with its tangents.
        sums: takes the contributions.
    """
    _, f2, _ = derivatives(path.start, 2)
    if x is None or f2 is None:
        return
    pairs = list(combinations_with_replacement(range(len(x.groups)), 2))
    q = GroupTangents(tuple(range(len(pairs))), x.values.new_empty(len(pairs), *f2.shape))
    for out, (s, t) in zip(q.values, pairs, strict=True):
        torch.mul(x.values[s], x.values[t], out=out).mul_(f2)
    for o in path.between:
        (jet,) = o.rule.forward(o, [Jet(q)], [Adjoint()], sums)
        assert jet.first is not None
        q = jet.first
    end, m = path.end.rule, adjoint.tangents
    assert isinstance(end, Product)
    if m:
        through = end.times(path.end, q.values, path.end.value(*end.right)[None])
        _add_symmetric(sums, m.groups, x.groups, m.rows() @ rows(through).T)
    factor = path.end.place(*end.right)
    b = None if factor is None else jets[factor].first
    if b and adjoint.value is not None:
        pulled = end.pull_a(path.end, adjoint.value[None], b.values)
        _add_symmetric(sums, b.groups, x.groups, rows(pulled) @ q.rows().T)


def _add_symmetric(sums: Accumulator, r: Sequence[int], groups: Sequence[int], values: Tensor) -> None:
    """D3[r, s, t] and D3[r, t, s] += values[:, i] for the i-th pair (s, t) of the groups."""
    block = values.new_empty(len(r), len(groups), len(groups))
    for i, (s, t) in enumerate(combinations_with_replacement(range(len(groups)), 2)):
        block[:, s, t] = block[:, t, s] = values[:, i]
    sums.full(r, groups, groups, block)
