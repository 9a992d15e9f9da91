"""A parameter's memory: whole on this process, and apart from that of the others."""

from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn

_SHARDED = {
    "DTensor": "FSDP2's fully_shard and tensor parallelism make it",
    "FlatParameter": "FullyShardedDataParallel makes it",
    "ShardedTensor": "torch.distributed makes it",
}


def check_whole(name: str, parameter: Any) -> None:
    """Raises TypeError for a parameter of which this process holds a part."""
    kinds = {kind.__name__ for kind in type(parameter).__mro__}
    kind = next((kind for kind in _SHARDED if kind in kinds), None)
    if kind is not None or hasattr(parameter, "_is_flat_param"):
        kind = kind or "FlatParameter"
        raise TypeError(
            f"expected whole tensors, got a {kind} for {name} ({_SHARDED[kind]}), of which each rank holds a part; write "
            "Partition.by_layer(fully_shard(model)) for the whole model, on a mesh of one dimension, or leave the sharding out, and "
            "share the samples among replicas in DistributedDataParallel"
        )


def is_dtensor(tensor: Any) -> bool:
    """Whether a tensor is spread over processes.

    >>> is_dtensor(torch.ones(2))
    False
    """
    kind = type(tensor)
    return kind not in (Tensor, nn.Parameter) and any(one.__name__ == "DTensor" for one in kind.__mro__)


def check_apart(parameters: dict[str, Tensor]) -> None:
    """Raises ValueError where two parameters, or two entries of one, are the same memory: to move one moves the other.

    >>> w = torch.zeros(4)
    >>> check_apart({"a": w[:2], "b": w[2:]})
    """
    for name, p in parameters.items():
        if p.layout is torch.strided and torch._debug_has_internal_overlap(p) == 1:
            raise ValueError(
                f"expected entries with a place of their own, got {name}, whose entries share memory (expand?); "
                f"write nn.Parameter({name}.detach().clone())"
            )
    spans = sorted((*_span(p), name) for name, p in parameters.items() if _has_memory(p))
    for i, (_, end, first) in enumerate(spans):
        overlapping = takewhile(lambda span: span[0] < end, spans[i + 1 :])  # noqa: B023 - read at once
        for _, _, second in overlapping:
            if _share(parameters[first], parameters[second]):
                raise ValueError(
                    f"expected parameters with memory of their own, got {first} and {second} on the same: to move one moves "
                    "the other, and autograd does not know; use one parameter in both places (tie them), or clone one"
                )


def _has_memory(p: Tensor) -> bool:
    return p.layout is torch.strided and not p.is_meta and p.numel() > 0


def _span(p: Tensor) -> tuple[int, int]:
    """The first byte and the one after the last."""
    extent = sum((size - 1) * stride for size, stride in zip(p.shape, p.stride(), strict=True)) + 1
    return p.data_ptr(), p.data_ptr() + extent * p.element_size()


def _share(p: Tensor, q: Tensor) -> bool:
    """Whether two tensors with overlapping spans have a byte in common: interleaved ones (w[::2], w[1::2]) have none."""
    if p.is_contiguous() or q.is_contiguous():
        return True
    start = min(p.data_ptr(), q.data_ptr())
    return bool(torch.isin(_bytes(p, start), _bytes(q, start)).any())


def _bytes(p: Tensor, start: int) -> Tensor:
    offsets = torch.full(p.shape, p.data_ptr() - start, device="cpu")
    for axis, (size, stride) in enumerate(zip(p.shape, p.stride(), strict=True)):
        steps = torch.arange(size, device="cpu") * stride * p.element_size()
        offsets += steps.reshape(-1, *[1] * (p.dim() - axis - 1))
    return offsets.flatten()
