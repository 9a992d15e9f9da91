"""Two values written to one place: torch does not say which one stays, and its gradient takes both.

``index_copy``, ``scatter``, ``index_put`` and item assignment read their gradient where they wrote. Where a place occurs
twice, one value is lost and both get the gradient of the place: it is the gradient of no function. Such a loss is refused.
What is accumulated (``index_add``, ``accumulate=True``) is a sum, and what is constant has no gradient to be wrong.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from types import EllipsisType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from gnewton.argument_names import with_torch_names
from gnewton.assumptions import assumption, check_argument
from gnewton.forgotten import with_forgotten
from gnewton.max_norm import is_limited, without_limit

Places = Callable[[Any, torch.Size], Tensor]


def _along_axis(node: Any, shape: torch.Size) -> Tensor:
    # Autograd keeps a negative axis as an unsigned number of 64 bits.
    axis = node._saved_dim - (node._saved_dim >> 63 << 64)
    # A number () has one place.
    places: Tensor = node._saved_index % (shape or (1,))[axis]
    return places.movedim(axis if places.dim() > 1 else 0, -1)


def _by_indices(node: Any, shape: torch.Size) -> Tensor:
    index = tuple(slice(None) if i is None else i for i in node._saved_indices)
    return _numbers(shape, node._input_metadata[0].device)[index].flatten()


def _numbers(shape: torch.Size, device: torch.device) -> Tensor:
    return torch.arange(shape.numel(), device=device).reshape(shape)


# Autograd's nodes: the function, which of its inputs it writes, and where to, row by row.
_WRITERS: dict[str, tuple[str, int, Places]] = {
    "IndexCopy": ("index_copy", 1, _along_axis),
    "IndexFill": ("index_fill", 1, _along_axis),
    "Scatter": ("scatter", 1, _along_axis),
    "IndexPut": ("index_put", 1, _by_indices),
    "Put": ("put", 1, lambda node, shape: (node._saved_index % shape.numel()).flatten()),
    "MaxUnpool2D": ("max_unpool2d", 0, lambda node, shape: node._saved_indices.flatten(-2)),
    "MaxUnpool3D": ("max_unpool3d", 0, lambda node, shape: node._saved_indices.flatten(-3)),
}
_NODE = re.compile(rf"(?:Unsafe)?({'|'.join(_WRITERS)})(?:Impl)?Backward\d+")


@cache
def _writer(node: str) -> tuple[str, int, Places] | None:
    kind = _NODE.fullmatch(node)
    return None if kind is None else _WRITERS[kind[1]]


def check_graph(nodes: Iterable[Any]) -> None:
    """Raises ValueError where a node of autograd's graph wrote two values, not both constant, to one place.

    >>> w = torch.ones(2, requires_grad=True)
    >>> check_graph([torch.zeros(3).index_copy(0, torch.tensor([0, 2]), w).grad_fn])
    >>> check_graph([torch.zeros(3).index_copy(0, torch.tensor([2, 2]), w).grad_fn])
    Traceback (most recent call last):
    ...
    ValueError: expected values written to distinct places, got index_copy with a place that occurs twice, ...
    """
    for node in nodes:
        name = node.name()
        if name == _STRIDED:
            _check_strided(node)
        writer = _writer(name)
        if writer is None or getattr(node, "_saved_accumulate", False):
            continue
        name, position, places = writer
        if any(edge[0] is not None for edge in node.next_functions[position : position + 1]):
            # A graph that was used up has no saved values: it is refused where it is differentiated.
            with suppress(RuntimeError):
                _check(name, places(node, torch.Size(node._input_metadata[0].shape)))


_STRIDED = "AsStridedScatterBackward0"


def _check_strided(node: Any) -> None:
    if node.next_functions[0][0] is not None:
        raise ValueError(
            "expected a gradient that torch computes right, got as_strided_scatter, of which that of the first argument is wrong; "
            "write slice_scatter, diagonal_scatter or index_put in its place"
        )


def check_write(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """The same of a call that ``writes`` into a view, where autograd's graph does not tell the places."""
    name = getattr(function, "__name__", "")
    if not (args and isinstance(args[0], Tensor) and torch.is_grad_enabled()):
        return
    target, *rest = args
    tensors = [t for t in (*rest, *kwargs.values()) if isinstance(t, Tensor)]
    if any(map(torch._C._functorch.is_functorch_wrapped_tensor, (target, *tensors))):
        return
    given = any(t.requires_grad for t in tensors)
    if (given or target.requires_grad) and target._is_view() and may_overlap(target):
        raise _error(f"{name} into a view that overlaps itself,")
    if given and name == "__setitem__" and not _is_basic(rest[0]):
        _check("an assignment to items", _numbers(target.shape, target.device)[rest[0]].flatten())
    elif given and target._is_view() and name in _IN_PLACE:
        check_graph([getattr(target.detach(), name[:-1])(*rest, **kwargs).grad_fn])


def check_kernel(name: str, args: Sequence[Any]) -> None:
    """The same of a kernel that writes into its first argument, called by a scripted module or a transformation of torch.func."""
    target, *rest = args
    if name not in _IN_PLACE or not target._is_view() or not any(_has_gradient(value) for value in rest):
        return
    kind = next(kind for kind, (function, *_) in _WRITERS.items() if f"{function}_" == name)
    if kind in ("IndexPut", "Put") and rest[2:] == [True]:
        return
    # What autograd's node would say, if there were one.
    said = {"_saved_dim": rest[0] % max(target.dim(), 1), "_saved_index": rest[1]} if _writes_along(kind) else {}
    node = SimpleNamespace(_saved_indices=rest[0], _input_metadata=[target], **({"_saved_index": rest[0]} | said))
    _check(name, _WRITERS[kind][2](node, target.shape))


def _writes_along(kind: str) -> bool:
    return _WRITERS[kind][2] is _along_axis


def _has_gradient(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


class WatchedCalls(TorchFunctionMode):
    """``check_write`` and ``check_argument`` of every call, where no other mode asks them; ``limited`` tells of a max_norm among them."""

    def __init__(self) -> None:
        super().__init__()
        self.limited = False

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = with_torch_names(function, args, kwargs)
        if writes(function):
            check_write(function, args, kwargs)
        elif is_limited(function, args, kwargs):
            self.limited = True
            args, kwargs = without_limit(function, args, kwargs)
        elif assumption(function):
            check_argument(function, args, kwargs)
        return function(*args, **with_forgotten(function, kwargs))


_IN_PLACE = {f"{name}_" for name, position, _ in _WRITERS.values() if position}
_OPERATORS = {f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow")}


@cache
def writes(function: Any) -> bool:
    """Whether a torch function writes into its first argument, by its name.

    >>> writes(Tensor.add_), writes(Tensor.add)
    (True, False)
    """
    name = getattr(function, "__name__", "")
    return name == "__setitem__" or name in _OPERATORS or (name.endswith("_") and not name.endswith("__"))


def _is_basic(index: Any) -> bool:
    entries = index if isinstance(index, tuple) else (index,)
    return all(entry is None or isinstance(entry, int | slice | EllipsisType) for entry in entries)


def may_overlap(view: Tensor) -> bool:
    """Whether two entries of a view may lie at one place of the memory: windows, diagonals of strides of one's own."""
    reach = 0
    for stride, size in sorted(zip(view.stride(), view.shape, strict=True)):
        if size > 1 and stride <= reach:
            return True
        reach += stride * (size - 1)
    return False


def _check(name: str, places: Tensor) -> None:
    if not places.is_meta and bool((places.reshape(*places.shape or (1,)).sort(-1).values.diff() == 0).any()):
        raise _error(f"{name} with a place that occurs twice,")


def _error(what: str) -> ValueError:
    return ValueError(
        f"expected values written to distinct places, got {what} where torch does not say which value stays, and its "
        "gradient takes both; write index_add, scatter_add or accumulate=True, or leave the repeated indices out"
    )
