"""The same scalars in another shape, order or number type."""

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
    broadcast_to col2im diag diag_embed diagonal double dstack expand expand_as flip float fold hsplit hstack im2col
    movedim moveaxis pixel_shuffle pixel_unshuffle repeat repeat_interleave roll rot90 swapaxes swapdims
    tensor_split tile to type_as vsplit vstack
    """,
    PiecewiseLinear(),
)


class Reshape(Rule):
    """The same scalars in the same order."""

    curved = False
    reads_inputs = False

    def applies(self, o: Operation) -> bool:
        return len(o.inputs) == 1

    def forward(self, o: Operation, jets: Jets, adjoints: Adjoints, sums: Accumulator) -> list[Jet]:
        return [Jet(*(_reshape(t, o.outputs[0]) for t in jets[0]))]

    def backward(
        self, o: Operation, jets: Jets, adjoints: Adjoints, needs: NeedsAdjoint, sums: Accumulator
    ) -> AdjointTangents:
        return [_reshape(adjoints[0].tangents, o.inputs[0])]


def _reshape(t: GroupTangents | None, v: Variable) -> GroupTangents | None:
    return t and GroupTangents(t.groups, t.values.reshape(len(t.groups), *v.value.shape), t.owned)


register("alias clone contiguous flatten ravel reshape reshape_as squeeze unflatten unsqueeze view view_as", Reshape())
