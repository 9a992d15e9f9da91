"""The memory of a sweep, counted before it begins, and the blocks of groups that fit into what there is.

At each operation the tangents that are still to be read are alive, each value's for its own groups only. The direction
itself serves as the tangent of a parameter that lies in one group, and takes nothing. The bytes of several groups add up, so that
one table, operations by groups, tells the peak of every block.
"""

import os
from collections.abc import Iterator, Sequence
from itertools import chain, combinations
from pathlib import Path
from typing import NamedTuple

import torch

from gnewton.derivatives.operation import Operation, Variable
from gnewton.derivatives.rules.bilinear import Product
from gnewton.derivatives.rules.generic import Generic
from gnewton.derivatives.rules.linear import PiecewiseLinear
from gnewton.derivatives.rules.norms import Standardize
from gnewton.derivatives.rules.pointwise import Pointwise
from gnewton.derivatives.rules.shapes import Reshape
from gnewton.derivatives.rules.softmax import Softmax
from gnewton.derivatives.tape import Tape
from gnewton.partition import Partition

Groups = Sequence[int]
Share = tuple[Groups, int]  # so many bytes for each of these groups
_LITTLE = 1e8  # taken without asking: less would mean many sweeps, and hardly help a machine that is full


class Step(NamedTuple):
    """What an operation adds to the memory in use, what it needs while it runs, and what is freed after it."""

    added: list[Share]
    working: list[Share]
    freed: list[Share]


def peak(tape: Tape, partition: Partition, order: int, full: bool = False) -> int:
    """The bytes that a sweep of all groups takes: the adjoints, the tangents where most are alive, an operation's copies.

    >>> import torch, gnewton as gn
    >>> from gnewton.derivatives.record import record
    >>> w = torch.nn.Parameter(torch.ones(1000, dtype=torch.float64))
    >>> partition = gn.Partition.from_groups({"w": {"w": w}})
    >>> peak(record(lambda: w.tanh().sum(), partition), partition, order=2)  # tanh'(w) u, a copy, an adjoint; w's is u itself
    24000
    """
    most = alive = _adjoint_bytes(tape)
    for step in _steps(tape, partition, order, full):
        alive += _sum(step.added)
        most = max(most, alive + _sum(step.working))
        alive -= _sum(step.freed)
    return most


def group_blocks(
    tape: Tape, partition: Partition, order: int, full: bool, max_memory: float | None
) -> Iterator[tuple[int, ...]]:
    """Sets of groups to be swept together, so that any two (for the full D3, three) meet, within the memory.

    None is what is available; the machine is asked only where it matters. Where not even two groups (three) fit, they are
    swept nevertheless: it cannot be done with fewer.
    """
    if max_memory is None and _at_most(tape, len(partition)) <= _LITTLE:
        yield tuple(range(len(partition)))
        return
    needed = peak(tape, partition, order, full)
    if max_memory is None:
        max_memory = needed if needed <= _LITTLE else available(partition.device)
    meet, blocks = 3 if full else 2, [tuple(range(len(partition)))]
    if needed > max_memory:
        room = max_memory - _adjoint_bytes(tape)
        blocks = _split(_table(tape, partition, order, full), room / meet)
    blocks = _agreed(blocks, partition)
    for chosen in combinations(blocks, min(meet, len(blocks))):
        yield tuple(chain(*chosen))


def available(device: torch.device) -> float:
    """The bytes that a sweep may take where nobody says how many: half of what is free on the device now.

    >>> available(torch.device("cpu")) > 0
    True
    """
    if device.type == "meta":
        return float("inf")
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return (torch.cuda.mem_get_info(device)[0] + cached) / 2
    return max(min(_free_in_machine(), _free_in_container()) / 2, _LITTLE)


def _free_in_machine() -> float:
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        if "MemAvailable" in fields:
            return 1024.0 * int(fields["MemAvailable"].split()[0])
    try:
        # No system but Linux tells what is free in a standard way: half of the whole.
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2
    except (AttributeError, ValueError, OSError):
        return 4e9


def _free_in_container(root: Path = Path("/sys/fs/cgroup")) -> float:
    try:
        limit, used = ((root / name).read_text().strip() for name in ("memory.max", "memory.current"))
        # Files that were read and may be forgotten count as used there.
        fields = dict(line.split() for line in (root / "memory.stat").read_text().splitlines())
        return float("inf") if limit == "max" else float(int(limit) - int(used) + int(fields["inactive_file"]))
    except (OSError, ValueError, KeyError):
        return float("inf")


# -- counting --------------------------------------------------------------------------------------------------------


def _at_most(tape: Tape, groups: int) -> int:
    """More bytes than any sweep takes: every value at once for all groups, two jets, and ten copies or one for each pair."""
    return 2 * groups * (groups + 10) * sum(_bytes(v) for o in tape.operations for v in (*o.inputs, *o.outputs))


def _adjoint_bytes(tape: Tape) -> int:
    """The adjoints, which are all there when the sweep begins."""
    return sum(_bytes(v) for o in tape.operations if o.rule.has_curvature(o) for v in o.outputs)


def _steps(tape: Tape, partition: Partition, order: int, full: bool) -> Iterator[Step]:
    jets, last = 2 if order == 3 and not full else 1, tape.last_readers()
    held: set[Variable] = set()

    def share(v: Variable) -> Share:
        if v.name is None:
            return v.groups, jets * _bytes(v)
        # A parameter of several groups gets a copy of the direction for each; it has no second-order tangent.
        # So it does where the direction must be gathered.
        return v.groups, 0 if isinstance(partition.label(v.name), int) and v.again is None else _bytes(v)

    for o in tape.operations:
        new = [v for v in dict.fromkeys((*o.inputs, *o.outputs)) if v not in held]
        held.update(new)
        done = [] if full else [v for v in dict.fromkeys(o.inputs) if last[v] is o]
        held.difference_update(done)
        yield Step([share(v) for v in new], _working(o, jets), [share(v) for v in done])
    if full:
        yield from _steps_back(tape, range(len(partition)))


def _steps_back(tape: Tape, everyone: Groups) -> Iterator[Step]:
    """The way back: adjoint tangents, along any group, of the values behind curvature; first-order tangents are freed."""
    behind = tape.behind_curvature()
    waiting: set[Variable] = set()
    for o in reversed(tape.operations):
        new = [v for v in dict.fromkeys(o.inputs) if v in behind and v not in waiting]
        waiting.update(new)
        done = [v for v in o.outputs if v in waiting]
        # By autograd alone, the products of each group with each other are there at once, and each group's graph.
        copies = len(everyone) + 4 if isinstance(o.rule, Generic) else 2
        working = [(everyone, copies * sum(map(_bytes, (*o.inputs, *o.outputs))))]
        freed = [(v.groups, _bytes(v)) for v in o.outputs] + [(everyone, _bytes(v)) for v in done]
        yield Step([(everyone, _bytes(v)) for v in new], working, freed)


def _working(o: Operation, jets: int) -> list[Share]:
    """The copies that a rule holds at once, beside the tangents that it reads and returns, where it holds most."""
    groups, rule = o.outputs[0].groups, o.rule
    inputs, outputs = (sum(map(_bytes, variables)) for variables in (o.inputs, o.outputs))
    if isinstance(rule, Reshape):
        return []
    if isinstance(rule, Pointwise):
        return [(groups, outputs)]
    if isinstance(rule, Softmax | Standardize):
        # On a processor they work in small tiles; an accelerator has one tile.
        return [] if o.outputs[0].value.device.type == "cpu" else [(groups, outputs * (3 if jets == 1 else 5))]
    if isinstance(rule, Product):
        return _working_of_product(o, jets)
    if isinstance(rule, PiecewiseLinear):
        # Several inputs are filled up with zeros to the same groups, parameters too.
        return [(groups, outputs + (inputs if len(o.inputs) > 1 else 0))]
    return [(groups, 4 * jets * (inputs + outputs))]


def _working_of_product(o: Operation, jets: int) -> list[Share]:
    groups, outputs = o.outputs[0].groups, sum(map(_bytes, o.outputs))
    factors = [o.inputs[i] for i in _places(o) if i is not None]
    if len(factors) < 2:
        return [(groups, outputs)]
    a, b = factors
    # One product with the adjoint for each group of the side that has fewer.
    pulled = (b.groups, _bytes(a)) if len(b.groups) <= len(a.groups) else (a.groups, _bytes(b))
    if b.name is not None:
        return [pulled, (b.groups, jets * outputs), (groups, outputs)]
    # Both products are there before they are added; to multiply stacks, torch repeats the fixed stack of matrices.
    repeated = sum(_bytes(v) for v in factors if v.value.dim() > 2)
    return [pulled, (groups, jets * outputs + repeated)]


def _places(o: Operation) -> tuple[int | None, int | None]:
    """Where a product's two factors stand among the inputs."""
    assert isinstance(o.rule, Product)
    return o.place(*o.rule.left), o.place(*o.rule.right)


def _bytes(v: Variable) -> int:
    return v.value.numel() * v.value.element_size()


def _sum(shares: Sequence[Share]) -> int:
    return sum(len(groups) * size for groups, size in shares)


def _table(tape: Tape, partition: Partition, order: int, full: bool) -> torch.Tensor:
    """The bytes in use (operations, S), group by group."""
    alive, rows = torch.zeros(len(partition), dtype=torch.float64, device="cpu"), []
    for step in _steps(tape, partition, order, full):
        alive = _add(alive, step.added)
        rows.append(_add(alive, step.working))
        alive = _add(alive, step.freed, -1)
    return torch.stack(rows)


def _add(alive: torch.Tensor, shares: Sequence[Share], sign: int = 1) -> torch.Tensor:
    out = alive.clone()
    for groups, size in shares:
        out[list(groups)] += sign * size
    return out


def _agreed(blocks: list[tuple[int, ...]], partition: Partition) -> list[tuple[int, ...]]:
    """Blocks that end where they do on any of the ranks that gather weights together: none takes more than it would alone."""
    if partition.weights is None:
        return blocks
    ends = torch.zeros(len(partition), device=partition.device)
    ends[[block[-1] for block in blocks]] = 1
    marked = partition.weights.shards.ranks.sum("blocks", ends).tolist()
    out: list[tuple[int, ...]] = [()]
    for group, mark in enumerate(marked):
        out[-1] += (group,)
        if mark and group + 1 < len(marked):
            out.append(())
    return out


def _split(table: torch.Tensor, room: float) -> list[tuple[int, ...]]:
    """Neighbouring groups put together as long as the peak of a block stays within the room."""
    blocks: list[tuple[int, ...]] = []
    together = torch.zeros_like(table[:, 0])
    for group, column in enumerate(table.unbind(1)):
        if blocks and float((together + column).max()) <= room:
            blocks[-1] += (group,)
            together = together + column
        else:
            blocks.append((group,))
            together = column
    return blocks
