"""Writing into a tensor, said without writing: the entries of a view are a choice from its base, a write replaces them.

A view shares the memory of its base, so that a write through it changes the base and every other view. On the tape nothing
changes: there is the base before and after,  after = assign(before, positions, new) , and a view that is read later is
take(after, positions)  anew. Both are linear.
"""

from typing import Any

import torch
from torch import Tensor

# They change the shape of a tensor, not its entries.
RESHAPING = {
    *("as_strided_", "resize_", "resize_as_", "set_", "squeeze_", "swapaxes_", "swapdims_", "t_", "transpose_"),
    *("unsqueeze_", "detach_", "requires_grad_", "rename_"),
}
_REPLACING = {"__setitem__", "copy_", "fill_", "zero_"}


def assign(before: Tensor, positions: Tensor, new: Any) -> Tensor:
    """``before`` with the entries at ``positions``, counted in row-major order, replaced by ``new``, which may broadcast.

    >>> assign(torch.zeros(2, 2), torch.tensor([1, 2]), torch.tensor([5.0, 6.0]))
    tensor([[0., 5.],
            [6., 0.]])
    """
    values = torch.as_tensor(new, dtype=before.dtype, device=before.device)
    values = values.reshape(values.shape[max(0, values.dim() - positions.dim()) :]).expand(positions.shape)
    return before.flatten().index_put((positions,), values).reshape(before.shape)


def base_of(tensor: Tensor) -> Tensor:
    """The tensor that a view looks into; itself where it is no view."""
    base = tensor._base
    return tensor if base is None else base


def positions_in(base: Tensor, view: Tensor) -> Tensor:
    """Where in the base, counted in row-major order, each entry of the view lies.

    >>> x = torch.zeros(2, 3)
    >>> positions_in(x, x[:, 1])
    tensor([1, 4])
    """
    numbers = torch.arange(base.numel(), device=base.device).view(base.shape)
    if view is base:
        return numbers
    laid_out = torch.empty_strided(base.shape, base.stride(), dtype=torch.long, device=base.device).copy_(numbers)
    return laid_out.as_strided(view.shape, view.stride(), view.storage_offset() - base.storage_offset())


def replaces(name: str) -> bool:
    """Whether an in-place function puts values in the place of others, whatever those were."""
    return name in _REPLACING


def replacement(name: str, args: Any, kwargs: Any, positions: Tensor) -> tuple[Tensor, Any]:
    """Of a replacing function: the positions that it writes to, of those of its target, and what it writes there."""
    rest = args[1:]
    if name == "__setitem__":
        return positions[rest[0]], rest[1]
    if name == "zero_":
        return positions, 0
    return positions, rest[0] if rest else next(iter(kwargs.values()))


def storage(tensor: Tensor) -> int:
    """The memory that a tensor looks into; of a sparse one, which has several, the tensor itself."""
    return int(tensor.untyped_storage()._cdata) if tensor.layout == torch.strided else id(tensor)
