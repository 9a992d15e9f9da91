"""Pooling and resampling of images."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gnewton.derivatives.group_tangents import GroupTangents
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
from gnewton.derivatives.rules.generic import leaves
from gnewton.derivatives.rules.linear import PiecewiseLinear

register("adaptive_max_pool1d adaptive_max_pool2d upsample_bilinear2d upsample_nearest2d", PiecewiseLinear())


class AveragePool(PiecewiseLinear):
    """Linear, sample by sample: the tangents of all groups are so many more samples."""

    reads_inputs = False

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def applies(self, o: Operation) -> bool:
        # Without an axis for the samples, the channels would be taken for it.
        return o.inputs[0].value.dim() == self.dim + 2

    def _push(self, o: Operation, tangents: Sequence[GroupTangents | None]) -> list[GroupTangents | None]:
        (t,) = tangents
        if t is None:
            return [None]
        (values,) = o.call(t.values.flatten(0, 1))
        return [GroupTangents(t.groups, values.reshape(len(t.groups), *o.outputs[0].value.shape))]

    def backward(
        self, o: Operation, jets: Jets, adjoints: Adjoints, needs: NeedsAdjoint, sums: Accumulator
    ) -> AdjointTangents:
        m = adjoints[0].tangents
        if m is None:
            return [None]
        with torch.enable_grad():
            z = leaves([o.inputs[0].value])
            (pulled,) = torch.autograd.grad(o.call(*z), z, (m.values,), is_grads_batched=True)
        return [GroupTangents(m.groups, pulled, owned=True)]


class MaxPool(Rule):
    """The greatest entry of each window: a choice, found once and made for all tangents."""

    curved = False
    reads_inputs = False

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def forward(self, o: Operation, jets: Jets, adjoints: Adjoints, sums: Accumulator) -> list[Jet]:
        index = self._choice(o)

        def pick(t: GroupTangents) -> GroupTangents:
            flat = t.values.flatten(-self.dim)
            values = flat.gather(-1, index.expand(len(flat), *index.shape))
            return GroupTangents(t.groups, values.reshape(len(flat), *o.others[0].shape))

        return [Jet(*(t and pick(t) for t in jets[0]))]

    def backward(
        self, o: Operation, jets: Jets, adjoints: Adjoints, needs: NeedsAdjoint, sums: Accumulator
    ) -> AdjointTangents:
        m, x = adjoints[0].tangents, o.inputs[0].value
        if m is None:
            return [None]
        flat = m.values.flatten(-self.dim)
        out = flat.new_zeros(len(flat), *x.flatten(-self.dim).shape)
        # Windows may overlap: an entry that two of them chose collects from both.
        out.scatter_add_(-1, self._choice(o).expand_as(flat), flat)
        return [GroupTangents(m.groups, out.reshape(len(flat), *x.shape))]

    def _choice(self, o: Operation) -> Tensor:
        """Which entry of the input each output is, in the last axes taken as one."""
        return o.others[0].flatten(-self.dim)


for n in (1, 2, 3):
    register(f"avg_pool{n}d adaptive_avg_pool{n}d", AveragePool(n))
    register(f"max_pool{n}d_with_indices", MaxPool(n))
