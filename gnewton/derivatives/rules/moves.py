"""Functions that move scalars along axes: tangents of all groups move together, as views where torch makes views."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from gnewton.derivatives.group_tangents import GroupTangents, dense, union
from gnewton.derivatives.operation import Operation, Ref, register, substitute
from gnewton.derivatives.rules.linear import PiecewiseLinear


class Move(PiecewiseLinear):
    """D o [x_s] = o(x_s): the function itself, on stacked tangents, whose axes are one further to the right.

    ``axes`` are the position, the name and the default of each argument that counts axes from the left. What is given in
    another way goes through forward mode, as all that is linear.
    """

    def __init__(self, *axes: tuple[int, str, int | None]) -> None:
        self.axes = axes

    def is_plain(self, o: Operation) -> bool:
        """Whether the arguments are such that the axes can be counted one further."""
        tensors: list[Tensor] = [v.value for v in o.inputs]
        substitute(o.arguments, Tensor, tensors.append)
        # cat lets an empty tensor of one axis pass among others, and promotes types.
        alike = len({t.dim() for t in tensors}) == 1 and len({t.dtype for t in tensors}) == 1
        return alike and all(type(o.argument(*axis)) is int for axis in self.axes)

    def _push(self, o: Operation, tangents: Sequence[GroupTangents | None]) -> list[GroupTangents | None]:
        groups = union(tangents)
        if not groups or not self.is_plain(o):
            return super()._push(o, tangents)
        result = self._on_stacks(o, dense(tangents, [v.value for v in o.inputs], groups))
        chosen = [result] if o.picks is None else [result[i] for i in o.picks]
        return [GroupTangents(groups, values) for values in chosen]

    def _on_stacks(self, o: Operation, stacks: Sequence[Tensor]) -> Any:
        k = len(stacks[0])
        args, kwargs = substitute(o.arguments, Tensor, lambda t: t.new_zeros(()).expand(k, *t.shape))
        args, kwargs = substitute((args, kwargs), Ref, lambda ref: stacks[ref.index])
        args, kwargs = list(args), dict(kwargs)
        for position, name, default in self.axes:
            if position < len(args):
                args[position] = _right(args[position])
            else:
                kwargs[name] = _right(kwargs.get(name, default))
        return o.function(*args, **kwargs)


class Transpose(Move):
    """x.T or x.t() of a matrix, or of fewer axes."""

    def is_plain(self, o: Operation) -> bool:
        return o.inputs[0].value.dim() <= 2

    def _on_stacks(self, o: Operation, stacks: Sequence[Tensor]) -> Any:
        return stacks[0].mT if stacks[0].dim() == 3 else stacks[0]


class Swap(Move):
    """x.transpose(0, 1); a number, which has no axis, takes 0 as well."""

    def is_plain(self, o: Operation) -> bool:
        return o.inputs[0].value.dim() > 0 and super().is_plain(o)


class Permute(Move):
    """x.permute(2, 0, 1) or permute((2, 0, 1))."""

    def is_plain(self, o: Operation) -> bool:
        return not o.arguments[1]

    def _on_stacks(self, o: Operation, stacks: Sequence[Tensor]) -> Any:
        n, given = o.inputs[0].value.dim(), o.arguments[0][1:]
        axes = given[0] if isinstance(given[0], tuple | list) else given
        return stacks[0].permute(0, *(axis % n + 1 for axis in axes))


class Index(Move):
    """x[...] by numbers, slices, None and Ellipsis."""

    def is_plain(self, o: Operation) -> bool:
        return all(type(i) in (int, slice, type(None), type(...)) for i in _entries(o))

    def _on_stacks(self, o: Operation, stacks: Sequence[Tensor]) -> Any:
        return stacks[0][(slice(None), *_entries(o))]


def _entries(o: Operation) -> tuple[Any, ...]:
    index = o.arguments[0][1]
    return index if isinstance(index, tuple) else (index,)


def _right(axis: Any) -> Any:
    return axis + 1 if axis >= 0 else axis


_DIM = (1, "dim", None)
register("chunk split split_with_sizes", Move((2, "dim", 0)))
register("unbind", Move((1, "dim", 0)))
register("cat concat stack", Move((1, "dim", 0)))
register("narrow select", Move(_DIM))
register("transpose", Swap((1, "dim0", None), (2, "dim1", None)))
register("mT mH adjoint", Move())
register("t T", Transpose())
register("permute", Permute())
register("__getitem__", Index())
