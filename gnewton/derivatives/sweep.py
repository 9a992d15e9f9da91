"""The sweep: S tangents pushed through a tape, and the summaries that fall out of it.

The list is read once, forwards. Each operation turns the tangents of its inputs into those of its outputs and adds
lambda . D^2 o [x_s, x_t]  to H-bar, and, with second-order tangents, its part of the diagonal of D3; what no later
operation reads is freed. g-bar is the tangent of the loss itself. For the full D3 the first-order tangents are kept and
the list is read once more, backwards.

In multiplications this takes, for a chain of layers of width n and a batch of B,  3 + S/2  times n^2 B per layer for H-bar
and  3 + S  with the diagonal of D3, where a gradient takes 3: a tangent along the k-th layer's group exists from there on
only, which saves half of S.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain, combinations

import torch
from torch import Tensor

from gnewton.derivatives.pairs import add_pairs, ways
from gnewton.derivatives.rule import Jet
from gnewton.derivatives.stack import Stack, total
from gnewton.derivatives.tape import Operation, Tape, Variable
from gnewton.partition import Partition, accumulator_dtype

Direction = Mapping[str, Tensor]
Summaries = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]
MAX_MEMORY = 2e9


class NoRule(Exception):
    """torch cannot differentiate an operation of the tape alone, in forward mode and for many groups at once."""


def summary(
    tape: Tape,
    partition: Partition,
    direction: Direction,
    order: int = 3,
    full_third: bool = False,
    max_memory: float = MAX_MEMORY,
) -> Summaries:
    """g-bar (S,), H-bar (S, S), the diagonal of D3 (S,) and, if asked, all of D3 (S, S, S); float64; None above ``order``.

    Uses up the graph of the tape's value; raises NoRule for an operation that torch cannot follow in forward mode. ``max_memory``, in bytes, bounds the tangents: where those of all groups need
    more, blocks of groups are swept two at a time (three for the full D3), so that every pair meets; that takes longer.

    >>> import torch, gnewton as gn
    >>> from gnewton.derivatives.record import record
    >>> model = gn.models.Rosenbrock(2, dtype=torch.float64)
    >>> partition = gn.Partition.by_scalar(model)
    >>> summary(record(model, partition), partition, {"theta": torch.ones(2, dtype=torch.float64)}, order=2)[1]
    tensor([[1330.,  480.],
            [ 480.,  200.]], dtype=torch.float64)
    """
    with torch._C.DisableTorchFunction():
        tape.forget_unread()
    adjoints = tape.adjoints()
    # What is replayed are single operations, in the form in which they were recorded.
    with torch.no_grad(), torch._C.DisableTorchFunction():
        found: dict[str, Tensor] = {}
        meetings = list(_meetings(tape, len(partition), order, full_third, max_memory))
        for groups in meetings:
            sums = _Sums(partition, order, full_third)
            sweep = _Sweep(tape, adjoints, partial(_tangents, partition, direction, groups), sums)
            sweep.forward(keep_tangents=full_third, keep_adjoints=full_third or groups is not meetings[-1])
            if full_third:
                sweep.backward()
            found = _met(found, sums.tensors(), groups)
    full = found.get("full")
    third = found["third"] if full is None else full.diagonal().diagonal().clone()
    return found["gradient"], found["hessian"], third if order == 3 else None, full


class _Sums:
    """What the operations contribute, block by block, and the float64 tensors that the blocks make (a ``rule.Sums``)."""

    def __init__(self, partition: Partition, order: int, full: bool) -> None:
        # The full D3 holds its diagonal: no second-order tangents are needed.
        self.order = 2 if full else order
        self._axes = {"gradient": 1, "hessian": 2} | ({"full": 3} if full else {"third": 1})
        self.size, self._device = len(partition), partition.device
        self._dtype = accumulator_dtype(partition.device)
        self._blocks: dict[str, dict[tuple[tuple[int, ...], ...], Tensor]] = defaultdict(dict)

    def gradient(self, s: Sequence[int], values: Tensor) -> None:
        self._add("gradient", values, s)

    def hessian(self, s: Sequence[int], t: Sequence[int], block: Tensor) -> None:
        self._add("hessian", block, s, t)

    def third(self, s: Sequence[int], values: Tensor) -> None:
        self._add("third", values, s)

    def full(self, r: Sequence[int], s: Sequence[int], t: Sequence[int], block: Tensor) -> None:
        self._add("full", block, r, s, t)

    def tensors(self) -> dict[str, Tensor]:
        """gradient (S,), hessian (S, S) and either third (S,) or full (S, S, S)."""
        found = {name: self._assembled(name, axes) for name, axes in self._axes.items()}
        found["hessian"] = (found["hessian"] + found["hessian"].T) / 2
        if "full" in found:
            # Blocks of D3 were added with r in the first place only.
            t = found["full"]
            found["full"] = t + t.permute(1, 0, 2) + t.permute(1, 2, 0)
        return found

    def _add(self, name: str, block: Tensor, *groups: Sequence[int]) -> None:
        key, block = tuple(map(tuple, groups)), block.to(self._dtype)
        earlier = self._blocks[name].get(key)
        self._blocks[name][key] = block if earlier is None else earlier + block

    def _assembled(self, name: str, axes: int) -> Tensor:
        out = torch.zeros([self.size] * axes, dtype=self._dtype, device=self._device)
        for groups, block in self._blocks[name].items():
            out[_corner(groups, self._device)] += block
        return out


def _corner(groups: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, ...] | tuple[slice, ...]:
    """The index of the block where the i-th axis runs through the i-th groups; slices, which are faster, where they do."""
    if all(tuple(g) == tuple(range(g[0], g[0] + len(g))) for g in groups):
        return tuple(slice(g[0], g[0] + len(g)) for g in groups)
    last = len(groups) - 1
    return tuple(torch.tensor(g, device=device).reshape(-1, *[1] * (last - i)) for i, g in enumerate(groups))


def _met(found: dict[str, Tensor], part: dict[str, Tensor], groups: Sequence[int]) -> dict[str, Tensor]:
    """The entries between these groups are complete in ``part``; the others stay as they were found."""
    if not found:
        return part
    for name, values in part.items():
        corner = _corner([groups] * values.dim(), values.device)
        found[name][corner] = values[corner]
    return found


class _Sweep:
    def __init__(
        self, tape: Tape, adjoints: dict[Variable, Tensor], tangents: Callable[[str], Stack | None], sums: _Sums
    ) -> None:
        self._tape, self._adjoints, self._tangents, self._sums = tape, adjoints, tangents, sums
        self._jets: dict[Variable, Jet] = {}

    def forward(self, keep_tangents: bool, keep_adjoints: bool) -> None:
        last, result = self._tape.last_readers(), self._tape.result
        assert result is not None
        readers = Counter(v for o in self._tape.operations for v in o.inputs)
        end = self._last_straight_step(readers)
        for o in self._tape.operations:
            jets = [self._jet(v) for v in o.inputs]
            for v, jet in zip(o.inputs, jets, strict=True):
                # Who reads a stack first may hand parts of it on: only a sole reader may write into it.
                for stack in jet if keep_tangents or readers[v] > 1 else ():
                    if stack:
                        stack.owned = False
            if o is end:
                self._add_slopes(o.inputs, jets)
                return
            if any(jet.first for jet in jets):
                with _named(o):
                    moved = o.rule.forward(o, jets, self._adjoints_of(o), self._sums)
                self._jets.update(zip(o.outputs, moved, strict=True))
            for v in () if keep_tangents else o.inputs:
                if last[v] is o:
                    self._jets.pop(v, None)
            for v in () if keep_adjoints else o.outputs:
                if end is None or v not in end.inputs:
                    self._adjoints.pop(v, None)
        first = self._jet(result).first
        if first:
            self._sums.gradient(first.groups, first.values.flatten())

    def _last_straight_step(self, readers: Mapping[Variable, int]) -> Operation | None:
        # The adjoints of what it reads then hold its slopes: no need to differentiate it.
        if not self._tape.operations:
            return None
        o = self._tape.operations[-1]
        known = all(readers[v] == 1 and v in self._adjoints for v in o.inputs)
        return o if known and o.outputs[0] is self._tape.result and not o.rule.curved else None

    def _add_slopes(self, values: Sequence[Variable], jets: Sequence[Jet]) -> None:
        for v, (first, _) in zip(values, jets, strict=True):
            if first:
                self._sums.gradient(first.groups, first.rows() @ self._adjoints[v].flatten())

    def backward(self) -> None:
        moved: dict[Variable, list[Stack | None]] = {}
        found = ways(self._tape, self._sums.size)
        reached = self._tape.behind_curvature().difference(*(way.values() for way in found.values()))
        for o in reversed(self._tape.operations):
            jets = [self._jet(v) for v in o.inputs]
            arrived = [total(moved.pop(v, []), v.value.shape) for v in o.outputs]
            wanted = [v in reached for v in o.inputs]
            if not (any(arrived) or any(jet.first for jet in jets)) or not (
                any(wanted) or o.rule.bends(o) or o in found
            ):
                continue
            with _named(o):
                pulled = o.rule.backward(o, jets, self._adjoints_of(o), arrived, wanted, self._sums)
                if o in found:
                    x = self._jet(found[o].start.inputs[0]).first
                    add_pairs(found[o], x, jets, self._adjoints.get(o.outputs[0]), arrived[0], self._sums)
            for v, stack in zip(o.inputs, pulled, strict=True):
                if v in reached:
                    moved.setdefault(v, []).append(stack)
            for v in o.outputs:
                self._jets.pop(v, None)

    def _jet(self, v: Variable) -> Jet:
        if v.name is not None and v not in self._jets:
            self._jets[v] = Jet(self._tangents(v.name))
        return self._jets.get(v, Jet())

    def _adjoints_of(self, o: Operation) -> list[Tensor | None]:
        return [self._adjoints.get(v) for v in o.outputs]


@contextmanager
def _named(o: Operation) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise NoRule(f"{o.name} has no derivatives in forward mode ({str(error).splitlines()[0]})") from error


def _tangents(partition: Partition, direction: Direction, groups: Sequence[int], name: str) -> Stack | None:
    """The direction inside each group that has a part of the parameter: (k, *shape)."""
    here = tuple(g for g in partition.groups_in(name) if g in set(groups))
    if not here:
        return None
    label = partition.label(name)
    u = direction[name].to(partition.parameters[name])
    if isinstance(label, int):
        return Stack(here, u[None])
    inside = label == torch.tensor(here, device=u.device).reshape(-1, *[1] * u.dim())
    return Stack(here, torch.where(inside, u, 0))


def _meetings(tape: Tape, s: int, order: int, full: bool, max_memory: float) -> Iterator[tuple[int, ...]]:
    """Sets of groups to be swept together, so that any two (for the full D3, three) meet, within the memory."""
    per_group = tape.bytes_per_group(kept=full) * (2 if order == 3 and not full else 1)
    together = max_memory / max(per_group, 1)
    if together >= s:
        yield tuple(range(s))
        return
    meet = 3 if full else 2
    size = max(1, int(together // meet))
    blocks = [tuple(range(i, min(i + size, s))) for i in range(0, s, size)]
    for chosen in combinations(blocks, min(meet, len(blocks))):
        yield tuple(chain(*chosen))
