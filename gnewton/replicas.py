"""Whether the ranks hold the same model, settings and state: what is checked before they train together, and again and again."""

import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from gnewton.partition import Partition
from gnewton.storage import is_dtensor

PERIOD = 100  # steps between two checks
_ODD = 0x9E3779B97F4A7C15 - (1 << 64)  # 2^64 over the golden ratio, as a signed number


class Replicas:
    """The ranks of a partition, which are to hold the same numbers: the first check compares them, and every hundredth."""

    def __init__(self, partition: Partition) -> None:
        self._partition = partition
        self._is_checked = False

    def check(self, step: int, state: Callable[[], Mapping[str, Any]]) -> None:
        """Raises ValueError on a rank that differs from the first one; the others hear of it at their next call.

        Args:
            step: the number of the step.
            state: returns the optimizer's saved state.
        """
        if self._partition.ranks.size > 1 and not (self._is_checked and step % PERIOD):
            _compare(self._partition, dict(state()))
            self._is_checked = True


def _compare(partition: Partition, state: dict[str, Any]) -> None:
    state.pop("history", None)  # what is past decides nothing
    state.pop("shards", None)  # each rank has rows of its own
    shapes = [(name, tuple(p.shape), str(p.dtype)) for name, p in partition.parameters.items()]
    compared = {
        "partition": [partition.names, shapes, *(partition.label(name) for name in partition.parameters)],
        "parameters": list(partition.parameters.values()),
        "settings": state.pop("param_groups"),
        "optimizer state": state,
    }
    mine = torch.tensor([hash_of(one) for one in compared.values()], device=partition.device)
    (first,) = partition.ranks.from_first("replicas", [mine])
    differing = [what for what, same in zip(compared, (mine == first).tolist(), strict=True) if not same]
    if differing:
        raise ValueError(
            f"expected the {' and '.join(differing)} of rank 0 on every rank, got others; seed every rank alike, load the same "
            "checkpoint, or build the Partition on DistributedDataParallel(model), which sends rank 0's parameters to all"
        )


def hash_of(value: Any) -> int:
    """64 bits of all tensors, numbers and words inside, in their order; another one where a single number differs.

    >>> hash_of({"a": torch.ones(2)}) == hash_of({"a": torch.ones(2)}) != hash_of({"a": torch.tensor([1.0, 1.0000001])})
    True
    """
    total = 0
    for leaf in _leaves(value):
        total = (total * 31 + leaf) & (2**64 - 1)
    return total - (1 << 64) if total >> 63 else total


def _leaves(value: Any) -> Iterator[int]:
    if isinstance(value, Mapping):
        for name, one in value.items():
            yield zlib.crc32(str(name).encode())
            yield from _leaves(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _leaves(one)
    elif isinstance(value, Tensor):
        # Each rank has rows of its own where a tensor is sharded: there is nothing to compare.
        yield 0 if is_dtensor(value) else _bits(value)
    else:
        yield zlib.crc32(repr(value).encode())


def _bits(tensor: Tensor) -> int:
    """A sum of the numbers' bits with odd weights, modulo 2^64: no change of a single number goes unseen."""
    real = torch.view_as_real(tensor.detach().resolve_conj()) if tensor.is_complex() else tensor.detach()
    flat = real.reshape(-1).contiguous()
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = flat.view(kinds[flat.element_size()]).to(torch.int64)
    weights = torch.arange(len(bits), device=bits.device).mul_(2).add_(1).mul_(_ODD)
    return int((bits * weights).sum())
