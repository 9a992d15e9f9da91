"""The tangents of one value along several groups, without the zeros.

Most values depend on a few groups only. The first layer's output depends on that layer's own, a weight on itself. So the
group indices are kept and, in the same order, the tangents. A group that is not listed has tangent zero.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Rows for the groups that come next: after a convolution, scale and shift of the batch norm.
_SPARE = 2


@dataclass(eq=False)
class GroupTangents:
    """``values`` (k, *shape of the value), one tangent for each of the k ``groups``.

    ``owned``: nobody else reads this memory, so that the last reader may write into it. ``room``: memory of which the values are
    the first k rows; what is behind them is free.

    >>> GroupTangents((2, 5), torch.tensor([[1.0], [3.0]])).over((5, 0))
    tensor([[3.],
            [0.]])
    """

    groups: tuple[int, ...]
    values: Tensor
    owned: bool = False
    room: Tensor | None = None

    def over(self, groups: Sequence[int]) -> Tensor:
        """The tangents along exactly these groups, zeros where there is none: (len(groups), *shape)."""
        if tuple(groups) == self.groups:
            return self.values
        out = self.values.new_zeros(len(groups), *self.values.shape[1:])
        here = [(i, self.groups.index(g)) for i, g in enumerate(groups) if g in self.groups]
        for i, j in here:
            out[i] = self.values[j]
        return out

    def result(self) -> "GroupTangents":
        """Where tangents of the same groups and shape can be written: here, if nobody else reads them, or in new memory."""
        if self.owned and self.values.is_contiguous():
            return self
        fresh = torch.empty_like(self.values, memory_format=torch.contiguous_format)
        return GroupTangents(self.groups, fresh, owned=True)

    def rows(self) -> Tensor:
        """(k, number of scalars): one row per group."""
        return rows(self.values)


def union(terms: Iterable[GroupTangents | None]) -> tuple[int, ...]:
    """The groups of any of the terms, each once, in order of first appearance."""
    return tuple(dict.fromkeys(g for t in terms if t for g in t.groups))


def dense(terms: Sequence[GroupTangents | None], values: Sequence[Tensor], groups: Sequence[int]) -> tuple[Tensor, ...]:
    """The tangents of each value over the same groups, zeros for None: (len(groups), *shape) tensors."""
    return tuple(
        v.new_zeros(len(groups), *v.shape) if t is None else t.over(groups) for t, v in zip(terms, values, strict=True)
    )


def total(terms: Sequence[GroupTangents | None], shape: Sequence[int]) -> GroupTangents | None:
    """The sum of tangents that broadcast to one shape; None stands for zero. Owned memory may be written into.

    >>> total([GroupTangents((0,), torch.ones(1, 2)), GroupTangents((0, 1), torch.ones(2, 2)), None], (2,)).values
    tensor([[2., 2.],
            [1., 1.]])
    """
    present = [s for s in terms if s is not None]
    if not present:
        return None
    # The longest keeps its order, so that most rows are copied in one piece.
    present.sort(key=lambda s: -len(s.groups))
    groups = union(present)
    values = [lift(s.values, len(shape)).expand(-1, *shape) for s in present]
    if len(values) == 1:
        return GroupTangents(groups, values[0], present[0].owned and values[0].shape == present[0].values.shape)
    if len(groups) == sum(len(s.groups) for s in present):
        return _append(present[0], groups, values)
    if groups != present[0].groups:
        out = values[0].new_zeros(len(groups), *shape)
        out[: len(values[0])] = values[0]
    else:
        out = values[0] if present[0].owned and values[0].is_contiguous() else values[0].clone()
    for term, value in zip(present[1:], values[1:], strict=True):
        add_rows(out, groups, term.groups, value)
    return GroupTangents(groups, out, owned=True)


def _append(longest: GroupTangents, groups: tuple[int, ...], values: Sequence[Tensor]) -> GroupTangents:
    """Tangents of different groups, one behind the other: in the room behind the longest where there is enough."""
    start, shape, room = len(longest.groups), values[0].shape[1:], longest.room
    if not longest.owned or room is None or len(room) < len(groups) or room.shape[1:] != shape:
        room = values[0].new_empty(len(groups) + _SPARE, *shape)
        room[:start] = values[0]
    for value in values[1:]:
        room[start : start + len(value)] = value
        start += len(value)
    return GroupTangents(groups, room[:start], owned=True, room=room)


def scale(s: GroupTangents | None, factor: Tensor) -> GroupTangents | None:
    """Each tangent times ``factor``, in their own memory where they are owned.

    >>> scale(GroupTangents((0, 1), torch.ones(2, 3)), torch.tensor([[1.0], [2.0]])).values.shape
    torch.Size([2, 2, 3])
    """
    if s is None:
        return None
    shape = s.values.shape[1:]
    broadcasts = all(n in (1, m) for n, m in zip(reversed(factor.shape), reversed(shape), strict=False))
    if s.owned and factor.dim() <= len(shape) and broadcasts:
        s.values.mul_(factor)
        return s
    return GroupTangents(s.groups, lift(s.values, factor.dim()) * factor, owned=True)


def add_rows(out: Tensor, groups: tuple[int, ...], some: tuple[int, ...], values: Tensor) -> None:
    """Add the tangents of some of the groups to stacked values, in place."""
    start = groups.index(some[0])
    if groups[start : start + len(some)] == some:
        out[start : start + len(some)].add_(values)
    else:
        rows = torch.tensor([groups.index(g) for g in some], device=out.device)
        out.index_add_(0, rows, values.expand(-1, *out.shape[1:]))


def lift(values: Tensor, dim: int) -> Tensor:
    """Stacked values with axes of length 1 put in, so that each tangent broadcasts as a tensor of ``dim`` axes.

    >>> lift(torch.zeros(4, 3), 2).shape
    torch.Size([4, 1, 3])
    """
    missing = dim - (values.dim() - 1)
    return values.reshape(values.shape[0], *[1] * missing, *values.shape[1:]) if missing > 0 else values


def sum_tangents_to(t: GroupTangents | None, shape: Sequence[int]) -> GroupTangents | None:
    """The adjoint of broadcasting: each tangent summed to ``shape``.

    >>> sum_tangents_to(GroupTangents((0,), torch.ones(1, 3, 2)), (2,)).values
    tensor([[3., 3.]])
    """
    return t and GroupTangents(t.groups, sum_values_to(t.values, shape))


def sum_values_to(values: Tensor, shape: Sequence[int]) -> Tensor:
    """Stacked values (k, ...) summed to (k, *shape)."""
    extra = values.dim() - 1 - len(shape)
    target = [1] * extra + list(shape)
    axes = [i + 1 for i, n in enumerate(target) if n == 1 and values.shape[i + 1] != 1]
    reduced = values.sum(axes, keepdim=True) if axes else values
    return reduced.reshape(len(values), *shape)


def rows(stacked: Tensor) -> Tensor:
    """(k, *shape) -> (k, number of scalars)."""
    return stacked.reshape(stacked.shape[0], -1)
