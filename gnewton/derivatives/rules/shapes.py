"""The same scalars in another shape, order or number type."""

from collections.abc import Sequence

import torch.nn.functional as F

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
    Variable,
    register,
)
from gnewton.derivatives.rules.linear import PiecewiseLinear

register(
    """
    block_diag broadcast_tensors broadcast_to cartesian_prod channel_shuffle col2im column_stack combinations
    concatenate diag diag_embed diagonal double dsplit dstack expand expand_as flip fliplr flipud float fold hsplit
    hstack im2col meshgrid movedim moveaxis pixel_shuffle pixel_unshuffle repeat repeat_interleave roll rot90
    row_stack swapaxes swapdims tensor_split tile to type_as unsafe_chunk unsafe_split unsafe_split_with_sizes
    vsplit vstack
    """,
    PiecewiseLinear(),
)


class Reshape(Rule):
    """The same scalars in the same order."""

    curved = False
    reads_inputs = False

    def forward(self, o: Operation, jets: Jets, adjoints: Adjoints, sums: Accumulator) -> list[Jet]:
        return [Jet(*(_reshape(t, o.outputs[0]) for t in jets[0]))]

    def backward(
        self, o: Operation, jets: Jets, adjoints: Adjoints, needs: NeedsAdjoint, sums: Accumulator
    ) -> AdjointTangents:
        # A second input, whose shape is asked for, has no derivative.
        return [_reshape(adjoints[0].tangents, o.inputs[0]), *[None] * (len(o.inputs) - 1)]


def _reshape(t: GroupTangents | None, v: Variable) -> GroupTangents | None:
    return t and GroupTangents(t.groups, t.values.reshape(len(t.groups), *v.value.shape), t.owned)


class Pad(PiecewiseLinear):
    """A margin of a constant, or of the entries at the border."""

    reads_inputs = False

    def _push(self, o: Operation, tangents: Sequence[GroupTangents | None]) -> list[GroupTangents | None]:
        (t,) = tangents
        mode, margin = o.argument(2, "mode", "constant"), o.argument(1, "pad")
        if t is None:
            return [None]
        if mode == "constant":
            return [GroupTangents(t.groups, F.pad(t.values, margin))]
        # The border is taken of images with channels, in batches or not: those of all groups are one batch.
        batched = o.inputs[0].value.dim() == len(margin) // 2 + 2
        padded = F.pad(t.values.flatten(0, 1) if batched else t.values, margin, mode)
        return [GroupTangents(t.groups, padded.reshape(len(t.groups), *o.outputs[0].value.shape))]


register("pad", Pad())
register("alias clone contiguous flatten ravel reshape reshape_as squeeze unflatten unsqueeze view view_as", Reshape())
