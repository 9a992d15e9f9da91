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

from gnewton.derivatives.pointwise import Elementwise, MaxPool, derivatives
from gnewton.derivatives.products import Product
from gnewton.derivatives.rule import Jet, Straight, Sums, rows
from gnewton.derivatives.stack import Stack
from gnewton.derivatives.tape import Operation, Tape, Variable


@dataclass(frozen=True)
class Way:
    """From an activation with no curvature behind it, through operations without curvature, to a product."""

    start: Operation
    between: tuple[Operation, ...]
    end: Operation

    def values(self) -> set[Variable]:
        """The values on the way, which need no adjoint tangents."""
        return {v for o in (self.start, *self.between) for v in o.outputs}


def ways(tape: Tape, most: int) -> dict[Operation, Way]:
    """The ways of a tape by their ends, where at most so many groups are alive that their pairs are fewer than ``most``."""
    bent = tape.behind_curvature()
    readers: dict[Variable, list[Operation]] = {}
    for o in tape.operations:
        for v in o.inputs:
            readers.setdefault(v, []).append(o)
    found = {}
    for o in tape.operations:
        k = len(o.inputs[0].groups)
        if isinstance(o.rule, Elementwise) and o.rule.curved and o.inputs[0] not in bent and k * (k + 1) // 2 < most:
            way = _way(o, readers)
            if way:
                found[way.end] = way
    return found


def _way(start: Operation, readers: Mapping[Variable, list[Operation]]) -> Way | None:
    between: list[Operation] = []
    v = start.outputs[0]
    while len(readers.get(v, [])) == 1:
        o = readers[v][0]
        if isinstance(o.rule, Product):
            return Way(start, tuple(between), o) if o.place(0, "input") == o.inputs.index(v) else None
        if not isinstance(o.rule, Straight | MaxPool) or len(o.inputs) > 1 or len(o.outputs) > 1:
            return None
        between.append(o)
        v = o.outputs[0]
    return None


def add_pairs(
    way: Way, x: Stack | None, jets: Sequence[Jet], adjoint: Tensor | None, moved: Stack | None, sums: Sums
) -> None:
    """Add what the start of the way contributes to the full D3 through its second derivative.

    ``x`` are the tangents of the start's input, ``jets`` those of the end's inputs, ``adjoint`` and ``moved`` the adjoint
    of the end's output and its tangents.
    """
    _, bend, _ = derivatives(way.start, 2)
    if x is None or bend is None:
        return
    pairs = list(combinations_with_replacement(range(len(x.groups)), 2))
    q = Stack(tuple(range(len(pairs))), x.values.new_empty(len(pairs), *bend.shape))
    for out, (s, t) in zip(q.values, pairs, strict=True):
        torch.mul(x.values[s], x.values[t], out=out).mul_(bend)
    for o in way.between:
        (jet,) = o.rule.forward(o, [Jet(q)], [None], sums)
        assert jet.first is not None
        q = jet.first
    end = way.end.rule
    assert isinstance(end, Product)
    if moved:
        through = end.times(way.end, q.values, way.end.given(1, end.second)[None])
        _add(sums, moved.groups, x.groups, pairs, moved.rows() @ rows(through).T)
    factor = way.end.place(1, end.second)
    b = None if factor is None else jets[factor].first
    if b and adjoint is not None:
        pulled = end.pull_a(way.end, adjoint[None], b.values)
        _add(sums, b.groups, x.groups, pairs, rows(pulled) @ q.rows().T)


def _add(sums: Sums, r: Sequence[int], groups: Sequence[int], pairs: Sequence[tuple[int, int]], values: Tensor) -> None:
    block = values.new_empty(len(r), len(groups), len(groups))
    for i, (s, t) in enumerate(pairs):
        block[:, s, t] = block[:, t, s] = values[:, i]
    sums.full(r, groups, groups, block)
