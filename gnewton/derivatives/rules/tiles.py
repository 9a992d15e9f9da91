"""Stacked tangents in pieces that stay in a processor's cache while several operations pass over them."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from torch import Tensor

_BYTES = 2**19  # some of this size, a tangent and its temporaries, fit into the cache of one core


def tiles(stacked: Tensor, reduced: Sequence[int]) -> Iterator[Callable[[Tensor], Tensor]]:
    """Functions that cut the same piece out of a stack (k, *shape) and out of what broadcasts to it.

    A piece holds whole cells: it is cut along an axis that no mean is taken over. An accelerator gets everything at once, since
    there each piece would be a launch.

    Args:
        stacked: what is cut.
        reduced: negative axes that means are taken over.

    >>> import torch
    >>> [cut(torch.zeros(2, 3)).shape for cut in tiles(torch.zeros(7, 2, 3), [-1])]
    [torch.Size([2, 3])]
    """
    free = [axis for axis in range(1 - stacked.dim(), 0) if axis not in reduced]
    size = stacked.numel() * stacked.element_size()
    if stacked.device.type != "cpu" or not free or size <= _BYTES:
        yield lambda t: t
        return
    axis = max(free, key=stacked.size)
    length = stacked.size(axis)
    step = max(1, length * _BYTES // size)
    for start in range(0, length, step):
        yield partial(_cut, axis, start, min(step, length - start))


def _cut(axis: int, start: int, length: int, t: Tensor) -> Tensor:
    return t.narrow(axis, start, length)
