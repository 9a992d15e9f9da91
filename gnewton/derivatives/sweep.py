"""The sweep: S tangents pushed through a tape, and the summaries that fall out of it.

The list is read once, forwards. Each operation turns the tangents of its inputs into those of its outputs and adds
lambda . D^2 o [x_s, x_t]  to H-bar, and, with second-order tangents, its part of the diagonal of D3; what no later
operation reads is freed. g-bar is the tangent of the loss itself. For the full D3 the first-order tangents are kept and
the list is read once more, backwards.

In multiplications this takes, for a chain of layers of width n and a batch of B,  3 + S/2  times n^2 B per layer for H-bar
and  3 + S  with the diagonal of D3, where a gradient takes 3: a tangent along the k-th layer's group exists from there on
only, which saves half of S.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor

from gnewton.derivatives.accumulator import BlockAccumulator, merge
from gnewton.derivatives.group_tangents import GroupTangents, total
from gnewton.derivatives.memory import group_blocks
from gnewton.derivatives.operation import Adjoint, Jet, Jets, Operation, Variable
from gnewton.derivatives.paths import add_pairs, find_paths
from gnewton.derivatives.price import warn_if_long, with_progress
from gnewton.derivatives.rules.linear import load_forward_mode
from gnewton.derivatives.tape import Tape
from gnewton.partition import Partition
from gnewton.ranks import RankError

Direction = Mapping[str, Tensor]
Summaries = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]


class NoRule(Exception):
    """torch cannot differentiate an operation of the tape alone, in forward mode and for many groups at once."""


def summary(
    tape: Tape,
    partition: Partition,
    direction: Direction,
    *,
    order: int = 3,
    full_third: bool = False,
    max_memory: float | None = None,
) -> Summaries:
    """g-bar (S,), H-bar (S, S), the diagonal of D3 (S,) and, if asked, all of D3 (S, S, S); float64; None above ``order``.

    Uses up the graph of the tape's value. Raises NoRule for an operation that torch cannot follow in forward mode.

    Args:
        tape: a complete record of the loss.
        partition: that of the record, S groups.
        direction: by parameter name, each in the parameter's shape.
        order: 1, 2 or 3, the highest to compute.
        full_third: all of D3, and not its diagonal alone.
        max_memory: in bytes, bounds the tangents; None is half of the memory that is free. Where all groups need more, blocks
            of groups are swept two at a time (three for the full D3), so that every pair meets. That takes longer.

    >>> import torch, gnewton as gn
    >>> from gnewton.derivatives.record import record
    >>> model = gn.models.Rosenbrock(2, dtype=torch.float64)
    >>> partition = gn.Partition.by_scalar(model)
    >>> summary(record(model, partition), partition, {"theta": torch.ones(2, dtype=torch.float64)}, order=2)[1]
    tensor([[1330.,  480.],
            [ 480.,  200.]], dtype=torch.float64)
    """
    load_forward_mode()
    with torch._C.DisableTorchFunction():
        tape.drop_unread_values()
    adjoints = tape.adjoints()
    # What is replayed are single operations, in the form in which they were recorded.
    with torch._C.DisableTorchFunction(), torch.no_grad():
        tensors: dict[str, Tensor] = {}
        blocks = list(group_blocks(tape, partition, order, full_third, max_memory))
        warn_if_long(tape, blocks, order)
        for groups in with_progress(blocks):
            sums = BlockAccumulator(partition, order, full_third)
            sweep = _Sweep(tape, adjoints, partial(_tangents, partition, direction, frozenset(groups)), sums)
            sweep.forward(keep_tangents=full_third, keep_adjoints=full_third or groups is not blocks[-1])
            if full_third:
                sweep.backward()
            tensors = merge(tensors, sums.tensors(), groups)
    full = tensors.get("full")
    third = tensors.get("third") if full is None else full.diagonal().diagonal().clone()
    return tensors["gradient"], tensors["hessian"], third, full


class _Sweep:
    def __init__(
        self,
        tape: Tape,
        adjoints: dict[Variable, Tensor],
        tangents: Callable[[str], GroupTangents | None],
        sums: BlockAccumulator,
    ) -> None:
        self._tape, self._adjoints, self._tangents, self._sums = tape, adjoints, tangents, sums
        self._jets: dict[Variable, Jet] = {}

    def forward(self, keep_tangents: bool, keep_adjoints: bool) -> None:
        last, result = self._tape.last_readers(), self._tape.result
        assert result is not None
        readers = Counter([v for o in self._tape.operations for v in o.inputs])
        end = self._last_linear_step(readers)
        for o in self._tape.operations:
            jets = [self._jet(v) for v in o.inputs]
            for v, jet in zip(o.inputs, jets, strict=True):
                # Who reads tangents first may hand parts of them on: only a sole reader may write into them.
                if keep_tangents or readers[v] > 1:
                    _disown(jet)
            if o is end:
                self._add_slopes(o.inputs, jets)
                return
            if any(jet.first for jet in jets):
                try:
                    with o.values_made():
                        out = o.rule.forward(o, jets, [Adjoint(self._adjoints.get(v)) for v in o.outputs], self._sums)
                except RuntimeError as error:
                    _raise_named(error, o)
                    raise
                self._jets.update(zip(o.outputs, out, strict=True))
            for v in o.inputs:
                if last[v] is o and not (keep_tangents and _is_kept(v)):
                    self._jets.pop(v, None)
            for v in () if keep_adjoints else o.outputs:
                if end is None or v not in end.inputs:
                    self._adjoints.pop(v, None)
        first = self._jet(result).first
        if first:
            self._sums.gradient(first.groups, first.values.flatten())

    def _last_linear_step(self, readers: Mapping[Variable, int]) -> Operation | None:
        # The adjoints of what it reads then hold its slopes: no need to differentiate it.
        if not self._tape.operations:
            return None
        o = self._tape.operations[-1]
        known = all(readers[v] == 1 and v in self._adjoints for v in o.inputs)
        return o if known and o.outputs[0] is self._tape.result and not o.rule.curved else None

    def _add_slopes(self, values: Sequence[Variable], jets: Jets) -> None:
        for v, (first, _) in zip(values, jets, strict=True):
            if first:
                self._sums.gradient(first.groups, first.rows() @ self._adjoints[v].flatten())

    def backward(self) -> None:
        terms: dict[Variable, list[GroupTangents | None]] = {}
        paths = find_paths(self._tape, self._sums.size)
        reached = self._tape.behind_curvature().difference(*(path.values() for path in paths.values()))
        for o in reversed(self._tape.operations):
            jets = [self._jet(v) for v in o.inputs]
            adjoints = [Adjoint(self._adjoints.get(v), total(terms.pop(v, []), v.value.shape)) for v in o.outputs]
            needs = [v in reached for v in o.inputs]
            alive = any(a.tangents for a in adjoints) or any(jet.first for jet in jets)
            if not alive or not (any(needs) or o.rule.has_curvature(o) or o in paths):
                continue
            try:
                with ExitStack() as values:
                    for one in (o, *(paths[o].operations() if o in paths else ())):
                        values.enter_context(one.values_made())
                    pulled = o.rule.backward(o, jets, adjoints, needs, self._sums)
                    if o in paths:
                        x = self._jet(paths[o].start.inputs[0]).first
                        add_pairs(paths[o], x, jets, adjoints[0], self._sums)
            except RuntimeError as error:
                _raise_named(error, o)
                raise
            for v, tangents in zip(o.inputs, pulled, strict=True):
                if v in reached:
                    terms.setdefault(v, []).append(tangents)
            for v in (*o.outputs, *(v for v in o.inputs if not _is_kept(v))):
                self._jets.pop(v, None)

    def _jet(self, v: Variable) -> Jet:
        if v.name is not None and v not in self._jets:
            self._jets[v] = Jet(self._tangents(v.name))
        return self._jets.get(v, Jet())


def _disown(jet: Jet) -> None:
    for tangents in jet:
        if tangents:
            tangents.owned = False


def _is_kept(v: Variable) -> bool:
    # The direction along a weight that can be gathered again can so, too.
    return v.name is None or v.again is None


def _raise_named(error: RuntimeError, o: Operation) -> None:
    """Raise the error of torch as a NoRule that names the operation; return where memory or another rank is to blame."""
    if not isinstance(error, torch.OutOfMemoryError | RankError):
        raise NoRule(f"{o.name} has no derivatives in forward mode ({str(error).splitlines()[0]})") from error


def _tangents(partition: Partition, direction: Direction, groups: frozenset[int], name: str) -> GroupTangents | None:
    """The direction inside each group that has a part of the parameter: (k, *shape)."""
    here = tuple(g for g in partition.groups_in(name) if g in groups)
    if not here:
        return None
    label = partition.label(name)
    u = direction[name].to(partition.parameters[name])
    if isinstance(label, int):
        return GroupTangents(here, u[None])
    inside = label == torch.tensor(here, device=u.device).reshape(-1, *[1] * u.dim())
    return GroupTangents(here, torch.where(inside, u, 0))
