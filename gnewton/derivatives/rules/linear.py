"""Operations without curvature: sums, multiples by a number, and whatever else only moves and adds scalars."""

import warnings
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor
from torch.func import jvp, vjp, vmap

from gnewton.derivatives.group_tangents import GroupTangents, dense, sum_tangents_to, total, union
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
from gnewton.derivatives.rules.generic import dots, gradient, leaves


class PiecewiseLinear(Rule):
    """Linear in all inputs together, or linear between the kinks. All groups at once, by torch.func."""

    curved = False

    def applies(self, o: Operation) -> bool:
        return True

    def forward(self, o: Operation, jets: Jets, adjoints: Adjoints, sums: Accumulator) -> list[Jet]:
        orders = zip(*(jet[: sums.order - 1] for jet in jets), strict=True)
        return [Jet(*tangents) for tangents in zip(*(self._push(o, list(t)) for t in orders), strict=True)]

    def backward(
        self, o: Operation, jets: Jets, adjoints: Adjoints, needs: NeedsAdjoint, sums: Accumulator
    ) -> AdjointTangents:
        tangents = [a.tangents for a in adjoints]
        groups = union(tangents)
        if not groups:
            return [None] * len(o.inputs)
        if _is_number(o):
            (m,) = dense(tangents, [o.outputs[0].value], groups)
            return [GroupTangents(groups, m.reshape(-1, *[1] * v.dim()) * v) for v in _slope(o)]
        pull = vjp(o.call, *(v.value for v in o.inputs))[1]
        stacked = dense(tangents, [v.value for v in o.outputs], groups)
        return [GroupTangents(groups, values) for values in vmap(lambda *m: pull(m))(*stacked)]

    def _push(self, o: Operation, tangents: Sequence[GroupTangents | None]) -> list[GroupTangents | None]:
        groups, x = union(tangents), tuple(v.value for v in o.inputs)
        if not groups:
            return [None] * len(o.outputs)
        directions = dense(tangents, x, groups)
        if _is_number(o):
            values = dots(directions, tuple(v[None] for v in _slope(o)))
            return [GroupTangents(groups, values.reshape(len(groups), *o.outputs[0].value.shape))]
        # torch's forward mode refuses values that keep one entry in several places, as expand() makes them.
        x = tuple(v.contiguous() if 0 in v.stride() else v for v in x)
        return [GroupTangents(groups, values) for values in vmap(lambda *d: jvp(o.call, x, d)[1])(*directions)]


def _is_number(o: Operation) -> bool:
    """Whether the output is one number, which has a gradient: one backward pass, whatever the number of groups."""
    return len(o.outputs) == 1 and o.outputs[0].value.numel() == 1


def _slope(o: Operation) -> tuple[Tensor, ...]:
    with torch.enable_grad():
        z = leaves([v.value for v in o.inputs])
        return gradient(o.call(*z)[0], z)


@cache
def load_forward_mode() -> None:
    """Let torch load what it loads at the first use of forward mode and of vmap.

    By way of torch.jit, which warns that it is deprecated; torch 2.6 loads its compiler, which fails where torch functions are
    disabled, as they are during a sweep.
    """
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning):  # the second one from torch 2.14 on
            warnings.simplefilter("ignore", category)
        zero = torch.zeros(1, device="cpu")
        vmap(lambda u: jvp(torch.sin, (u,), (u,))[1])(zero)


register("nan_to_num neg", PiecewiseLinear())


class Add(Rule):
    """a + alpha b or a - alpha b, with broadcasting; ``scaled`` is the place of b."""

    curved = False
    reads_inputs = False

    def __init__(self, sign: int, scaled: tuple[int, str] = (1, "other")) -> None:
        self.sign, self.scaled = sign, scaled

    def forward(self, o: Operation, jets: Jets, adjoints: Adjoints, sums: Accumulator) -> list[Jet]:
        shape = o.outputs[0].value.shape
        return [Jet(*(total(self._multiply(o, tangents), shape) for tangents in zip(*jets, strict=True)))]

    def backward(
        self, o: Operation, jets: Jets, adjoints: Adjoints, needs: NeedsAdjoint, sums: Accumulator
    ) -> AdjointTangents:
        return self._multiply(o, [sum_tangents_to(adjoints[0].tangents, v.value.shape) for v in o.inputs])

    def _multiply(self, o: Operation, tangents: Sequence[GroupTangents | None]) -> list[GroupTangents | None]:
        """Those of b times its factor."""
        factor, second = self.sign * o.argument(2, "alpha", 1), o.place(*self.scaled)
        return [
            GroupTangents(t.groups, t.values * factor) if t and i == second and factor != 1 else t
            for i, t in enumerate(tangents)
        ]


register("add __add__ __radd__", Add(1))
register("sub subtract __sub__", Add(-1))
register("rsub __rsub__", Add(-1, scaled=(0, "input")))


class Scale(Rule):
    """A product with a number, or a quotient by one."""

    curved = False
    reads_inputs = False

    def __init__(self, inverse: bool) -> None:
        self.inverse = inverse

    def applies(self, o: Operation) -> bool:
        return isinstance(o.argument(1, "other"), int | float) and o.place(0, "input") == 0 and not o.arguments[1]

    def forward(self, o: Operation, jets: Jets, adjoints: Adjoints, sums: Accumulator) -> list[Jet]:
        return [Jet(*(self._scale(o, t) for t in jets[0]))]

    def backward(
        self, o: Operation, jets: Jets, adjoints: Adjoints, needs: NeedsAdjoint, sums: Accumulator
    ) -> AdjointTangents:
        return [self._scale(o, adjoints[0].tangents)]

    def _scale(self, o: Operation, t: GroupTangents | None) -> GroupTangents | None:
        number = o.argument(1, "other")
        return t and GroupTangents(t.groups, t.values / number if self.inverse else t.values * number)


register("mul", Scale(inverse=False))
register("div", Scale(inverse=True))
