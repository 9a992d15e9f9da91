"""What an operation does to tangents: the shape of a rule, and the generic one.

Let  y = o(x)  be one operation,  x_s  the tangent of its inputs along u_s  and  lambda = dL/dy  its adjoint. Along the
path  x + e x_s + e^2/2 x2_s  the tangents of the output are

    first order    y_s  = D o [x_s]
    second order   y2_s = D o [x2_s] + D^2 o [x_s, x_s]

and the operation contributes to the summaries

    H-bar_st  +=  lambda . D^2 o [x_s, x_t]
    D3_sss    +=  lambda . ( D^3 o [x_s, x_s, x_s] + 3 D^2 o [x_s, x2_s] ) .

For the full order-3 tensor the list is read backwards once more, with the tangents of the adjoints, lambda^s:

    lambda_x^s  =  D o^T [lambda^s]  +  D^2 o [x_s, .]^T lambda
    D3_rst  +=  lambda . D^3 o [x_r, x_s, x_t]  +  lambda^r . D^2 o [x_s, x_t]  +  the same with lambda^s, lambda^t

(Wigner's 2n + 1 rule: first-order tangents alone give order 3). All inputs are treated as one tuple, so that a group
which reaches an operation through several arguments gets its cross terms.
"""

import warnings
from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.func import jvp, vjp, vmap

from gnewton.derivatives.stack import Stack, union

if TYPE_CHECKING:
    from gnewton.derivatives.tape import Operation

Tensors = tuple[Tensor, ...]
Adjoints = Sequence[Tensor | None]
Moved = Sequence[Stack | None]
Wanted = Sequence[bool]


class Jet(NamedTuple):
    """The tangents of one value, of the first and, where order 3 is wanted, of the second order; None is zero."""

    first: Stack | None = None
    second: Stack | None = None


class Sums(Protocol):
    """Where rules add what an operation contributes. ``order`` 3 asks for second-order tangents."""

    order: int

    def hessian(self, s: Sequence[int], t: Sequence[int], block: Tensor) -> None:
        """H-bar[s, t] += block (len(s), len(t))."""

    def third(self, s: Sequence[int], values: Tensor) -> None:
        """D3[s, s, s] += values (len(s),)."""

    def full(self, r: Sequence[int], s: Sequence[int], t: Sequence[int], block: Tensor) -> None:
        """D3[r, s, t], D3[s, r, t] and D3[s, t, r] += block (len(r), len(s), len(t))."""


class Rule:
    """``curved``: D^2 o is not zero. ``repeatable``: known to draw no random numbers, so that it may run again.

    ``reads_inputs``, ``reads_outputs``: needs the values of the operation's inputs and outputs, not their shapes alone.
    """

    curved = True
    repeatable = True
    reads_inputs = True
    reads_outputs = False

    def forward(self, o: "Operation", jets: Sequence[Jet], adjoints: Adjoints, sums: Sums) -> list[Jet]:
        """The jets of the outputs; adds to H-bar and to the diagonal of D3."""
        raise NotImplementedError

    def backward(
        self, o: "Operation", jets: Sequence[Jet], adjoints: Adjoints, moved: Moved, wanted: Wanted, sums: Sums
    ) -> Moved:
        """lambda_x^s of the ``wanted`` inputs from lambda^s of the outputs (``moved``); adds to the full D3."""
        raise NotImplementedError

    def bends(self, o: "Operation") -> bool:
        """Whether D^2 o is not zero in the inputs that are variables."""
        return self.curved

    def cost(self, o: "Operation") -> int:
        """Multiplications for the first-order tangents and the share of H-bar, in the closed form or as if it were."""
        return sum(v.value.numel() * len(v.groups) for v in o.outputs) * (2 if self.curved else 1)


class Generic(Rule):
    """Any operation, by nested backward passes through that operation alone, group by group.

    It is what the slow engine does with the whole loss, and as right. torch.func would do all groups at once, but some of
    its formulas are wrong from the second order on, without any error (det, solve, lstm_cell).
    """

    repeatable = False

    def forward(self, o: "Operation", jets: Sequence[Jet], adjoints: Adjoints, sums: Sums) -> list[Jet]:
        groups, x, first = _along_groups(o, [jet.first for jet in jets])
        adjoint = filled(adjoints, o)
        with torch.enable_grad():
            z = _leaves((*x, *adjoint))
            slope = _gradient(_dot(z[len(x) :], o.call(*z[: len(x)])), z[: len(x)], again=True)
            # The adjoint is a variable too: the output's tangent is the derivative of  adjoint . D o [x_s]  along it.
            turned = _columns(_gradient(_dot(slope, d), z) for d in zip(*first, strict=True))
        sums.hessian(groups, groups, _dots(turned[: len(x)], first))
        out = [Stack(groups, values) for values in turned[len(x) :]]
        if sums.order < 3:
            return [Jet(stack) for stack in out]
        second = dense([jet.second for jet in jets], x, groups)
        paths = zip(zip(*first, strict=True), zip(*second, strict=True), strict=True)
        third, *bent = _columns(_along(o, x, adjoint, a, b) for a, b in paths)
        sums.third(groups, third)
        return [Jet(stack, Stack(groups, values)) for stack, values in zip(out, bent, strict=True)]

    def backward(
        self, o: "Operation", jets: Sequence[Jet], adjoints: Adjoints, moved: Moved, wanted: Wanted, sums: Sums
    ) -> Moved:
        groups = union([*(jet.first for jet in jets), *moved])
        x, adjoint = tuple(v.value for v in o.inputs), filled(adjoints, o)
        # With z = (x, lambda) it is all about  Phi(z) = lambda . o(x) : its gradient, moved once, and once more.
        along = (*dense([jet.first for jet in jets], x, groups), *dense(moved, adjoint, groups))
        once, twice = [], []
        with torch.enable_grad():
            z = _leaves((*x, *adjoint))
            slope = _gradient(_dot(z[len(x) :], o.call(*z[: len(x)])), z, again=True)
            for r in zip(*along, strict=True):
                turned = _gradient(_dot(slope, r), z, again=True)
                once.append(turned[: len(x)])
                twice.append(_columns(_gradient(_dot(turned, s), z) for s in zip(*along, strict=True)))
        # The block is symmetric and complete; it is added in three places, a third of it each time.
        sums.full(groups, groups, groups, torch.stack([_dots(both, along) for both in twice]) / 3)
        return [Stack(groups, values.detach()) for values in _columns(once)]


class Straight(Generic):
    """No curvature: a choice, a permutation or a sum of scalars. All groups at once, by torch.func."""

    curved = False
    repeatable = True

    def forward(self, o: "Operation", jets: Sequence[Jet], adjoints: Adjoints, sums: Sums) -> list[Jet]:
        orders = zip(*(jet[: sums.order - 1] for jet in jets), strict=True)
        return [Jet(*stacks) for stacks in zip(*(self._pushed(o, list(stacks)) for stacks in orders), strict=True)]

    def backward(
        self, o: "Operation", jets: Sequence[Jet], adjoints: Adjoints, moved: Moved, wanted: Wanted, sums: Sums
    ) -> Moved:
        groups = union(moved)
        if not groups:
            return [None] * len(o.inputs)
        x, shifts = (v.value for v in o.inputs), dense(moved, [v.value for v in o.outputs], groups)
        pull = vjp(o.call, *x)[1]
        return [Stack(groups, values) for values in vmap(lambda *m: pull(m))(*shifts)]

    def _pushed(self, o: "Operation", stacks: Sequence[Stack | None]) -> list[Stack | None]:
        groups, x, directions = _along_groups(o, stacks)
        if not groups:
            return [None] * len(o.outputs)
        if len(o.outputs) == 1 and o.outputs[0].value.numel() == 1:
            # A scalar has a gradient: one backward pass, whatever the number of groups.
            with torch.enable_grad():
                z = _leaves(x)
                slope = _gradient(o.call(*z)[0], z)
            values = _dots(directions, tuple(v[None] for v in slope))
            return [Stack(groups, values.reshape(len(groups), *o.outputs[0].value.shape))]
        _load_forward_mode()
        tangents = vmap(lambda *d: jvp(o.call, x, d)[1])(*directions)
        return [Stack(groups, values) for values in tangents]


class PerSample(Straight):
    """Linear, sample by sample: the tangents of all groups are so many more samples."""

    reads_inputs = False

    def _pushed(self, o: "Operation", stacks: Sequence[Stack | None]) -> list[Stack | None]:
        (s,) = stacks
        if s is None:
            return [None]
        (moved,) = o.call(s.values.flatten(0, 1))
        return [Stack(s.groups, moved.reshape(len(s.groups), *o.outputs[0].value.shape))]

    def backward(
        self, o: "Operation", jets: Sequence[Jet], adjoints: Adjoints, moved: Moved, wanted: Wanted, sums: Sums
    ) -> Moved:
        (m,) = moved
        if m is None:
            return [None]
        with torch.enable_grad():
            z = _leaves([o.inputs[0].value])
            (pulled,) = torch.autograd.grad(o.call(*z), z, (m.values,), is_grads_batched=True)
        return [Stack(m.groups, pulled, owned=True)]


def dense(stacks: Sequence[Stack | None], values: Sequence[Tensor], groups: Sequence[int]) -> Tensors:
    """Each stack over the same groups, zeros for None: (len(groups), *shape) tensors."""
    return tuple(
        v.new_zeros(len(groups), *v.shape) if stack is None else stack.over(groups)
        for stack, v in zip(stacks, values, strict=True)
    )


def filled(adjoints: Adjoints, o: "Operation") -> Tensors:
    """The adjoints of all outputs, zeros where the loss does not depend on one."""
    return tuple(torch.zeros_like(v.value) if a is None else a for a, v in zip(adjoints, o.outputs, strict=True))


def rows(stacked: Tensor) -> Tensor:
    """(k, *shape) -> (k, number of scalars)."""
    return stacked.reshape(len(stacked), -1)


def _along_groups(o: "Operation", stacks: Sequence[Stack | None]) -> tuple[tuple[int, ...], Tensors, Tensors]:
    groups = union(stacks)
    x = tuple(v.value for v in o.inputs)
    return groups, x, dense(stacks, x, groups)


def _along(o: "Operation", x: Tensors, adjoint: Tensors, first: Tensors, second: Tensors) -> Tensors:
    """Along o(x + e first + e^2/2 second): adjoint . (the third derivative at e = 0), then the second of every output."""
    with torch.enable_grad():
        e, weights = torch.zeros_like(x[0].flatten()[0]).requires_grad_(), _leaves(adjoint)
        moved = (v + (e * a + e * e / 2 * b).to(v) for v, a, b in zip(x, first, second, strict=True))
        (slope,) = _gradient(_dot(weights, o.call(*moved)), (e,), again=True)
        (bend,) = _gradient(slope, (e,), again=True)
        outputs = _gradient(bend, weights)
        return *_gradient(bend, (e,)), *outputs


@cache
def _load_forward_mode() -> None:
    # torch loads a part of it at the first use, by way of torch.jit, which warns that it is deprecated.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        jvp(torch.sin, (torch.zeros((), device="cpu"),), (torch.ones((), device="cpu"),))


def _leaves(values: Sequence[Tensor]) -> Tensors:
    return tuple(v.detach().requires_grad_() for v in values)


def _gradient(scalar: Tensor, inputs: Tensors, again: bool = False) -> Tensors:
    if not scalar.requires_grad:
        return tuple(map(torch.zeros_like, inputs))
    return torch.autograd.grad(scalar, inputs, retain_graph=True, create_graph=again, materialize_grads=True)


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    return torch.stack([(v * w).sum() for v, w in zip(a, b, strict=True)]).sum()


def _dots(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """(k, l): the scalar products of k tuples with l tuples, each stacked entry by entry."""
    return torch.stack([rows(v) @ rows(w).T for v, w in zip(a, b, strict=True)]).sum(0)


def _columns(tuples: Iterable[Tensors]) -> Tensors:
    return tuple(torch.stack(column) for column in zip(*tuples, strict=True))
