"""Choosing entries of a tensor by an index or a mask, and replacing them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gnewton.derivatives.group_tangents import GroupTangents, rows, sum_values_to, union
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
from gnewton.derivatives.rules.linear import PiecewiseLinear

register(
    """
    diagonal_scatter embedding gather index_add index_copy index_fill index_put index_select kthvalue masked_fill
    msort scatter_add select_scatter slice_scatter sort take_along_dim topk tril triu where
    """,
    PiecewiseLinear(),
)


class Scatter(PiecewiseLinear):
    """Entries put at some places, or their sums or means."""

    def applies(self, o: Operation) -> bool:
        return o.argument(4, "reduce") in (None, "sum", "mean")


register("scatter scatter_reduce", Scatter())


class Take(Rule):
    """The entries at some positions, counted in row-major order."""

    curved = False
    reads_inputs = False

    def positions(self, o: Operation) -> Tensor:
        """Which entries, in the shape of the output."""
        index: Tensor = o.value(1, "index")
        return index

    def forward(self, o: Operation, jets: Jets, adjoints: Adjoints, sums: Accumulator) -> list[Jet]:
        index = self.positions(o)
        return [Jet(*(t and GroupTangents(t.groups, _pick(t.values, index)) for t in jets[0]))]

    def backward(
        self, o: Operation, jets: Jets, adjoints: Adjoints, needs: NeedsAdjoint, sums: Accumulator
    ) -> AdjointTangents:
        m, x = adjoints[0].tangents, o.inputs[0].value
        if m is None:
            return [None]
        out = m.values.new_zeros(len(m.groups), x.numel())
        # An entry that was taken twice collects from both.
        out.index_add_(1, self.positions(o).flatten() % x.numel(), m.rows())
        return [GroupTangents(m.groups, out.reshape(len(out), *x.shape))]


register("take", Take())


class Rearrange(Take):
    """Some entries in some order, as the function itself tells when it is given their numbers."""

    def applies(self, o: Operation) -> bool:
        return len(o.inputs) == 1 and o.place(0, "input") == 0

    def positions(self, o: Operation) -> Tensor:
        x = o.inputs[0].value
        (numbers,) = o.call(torch.arange(x.numel(), device=x.device).reshape(x.shape))
        return numbers


register("as_strided masked_select unfold", Rearrange())


class Assign(Rule):
    """``writes.assign``: a tensor with the entries at some positions replaced by others, which may broadcast."""

    curved = False
    reads_inputs = False

    def applies(self, o: Operation) -> bool:
        return True

    def forward(self, o: Operation, jets: Jets, adjoints: Adjoints, sums: Accumulator) -> list[Jet]:
        return [Jet(*(self._push(o, tangents) for tangents in zip(*jets, strict=True)))]

    def backward(
        self, o: Operation, jets: Jets, adjoints: Adjoints, needs: NeedsAdjoint, sums: Accumulator
    ) -> AdjointTangents:
        m, positions = adjoints[0].tangents, o.value(1, "positions")
        if m is None:
            return [None] * len(o.inputs)
        pulled: list[GroupTangents | None] = []
        for i, v in enumerate(o.inputs):
            if i == o.place(0, "before"):
                values = m.rows().clone()
                values[:, positions.flatten()] = 0
                values = values.reshape(len(values), *v.value.shape)
            else:
                values = sum_values_to(_pick(m.values, positions), _written_shape(v.value, positions)).to(v.value.dtype)
                values = values.reshape(len(values), *v.value.shape)
            pulled.append(GroupTangents(m.groups, values))
        return pulled

    def _push(self, o: Operation, tangents: Sequence[GroupTangents | None]) -> GroupTangents | None:
        groups, y, positions = union(tangents), o.outputs[0].value, o.value(1, "positions")
        if not groups:
            return None
        before, new = (None if i is None else tangents[i] for i in (o.place(0, "before"), o.place(2, "new")))
        out = y.new_zeros(len(groups), y.numel()) if before is None else rows(before.over(groups)).clone()
        shape = () if new is None else _written_shape(new.values[0], positions)
        values = out.new_zeros(len(groups)) if new is None else new.over(groups).to(out.dtype)
        values = values.reshape(len(values), *[1] * (positions.dim() - len(shape)), *shape).expand(-1, *positions.shape)
        out[:, positions.flatten()] = rows(values)
        return GroupTangents(groups, out.reshape(len(out), *y.shape), owned=True)


register("assign", Assign())


def _written_shape(new: Tensor, positions: Tensor) -> Sequence[int]:
    """The shape of what is written, without leading axes of length 1 that the target does not have."""
    return new.shape[max(0, new.dim() - positions.dim()) :]


def _pick(stacked: Tensor, positions: Tensor) -> Tensor:
    """(k, *shape) -> (k, *positions.shape)"""
    return rows(stacked)[:, positions.flatten()].reshape(len(stacked), *positions.shape)
