"""Where the contributions of the operations come together: blocks between groups, and the tensors that they make."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from gnewton.partition import Partition, accumulator_dtype


class BlockAccumulator:
    """An ``operation.Accumulator`` that keeps the sum of each block, in float64.

    Args:
        partition: gives the number of groups S and the device.
        order: the highest order of the summaries.
        full: all of D3 is wanted, and not its diagonal alone.
    """

    def __init__(self, partition: Partition, order: int, full: bool) -> None:
        # The full D3 holds its diagonal: no second-order tangents are needed.
        self.order = 2 if full else order
        highest = {"full": 3} if full else {"third": 1} if order == 3 else {}
        self._axes = {"gradient": 1, "hessian": 2} | highest
        self.size, self._device = len(partition), partition.device
        self._dtype = accumulator_dtype(partition.device)
        self._blocks: dict[str, dict[tuple[tuple[int, ...], ...], Tensor]] = defaultdict(dict)

    def gradient(self, s: Sequence[int], values: Tensor) -> None:
        """g-bar[s] += values (len(s),)."""
        self._add("gradient", values, s)

    def hessian(self, s: Sequence[int], t: Sequence[int], block: Tensor) -> None:
        self._add("hessian", block, s, t)

    def third(self, s: Sequence[int], values: Tensor) -> None:
        self._add("third", values, s)

    def full(self, r: Sequence[int], s: Sequence[int], t: Sequence[int], block: Tensor) -> None:
        self._add("full", block, r, s, t)

    def tensors(self) -> dict[str, Tensor]:
        """gradient (S,), hessian (S, S) and, at order 3, either third (S,) or full (S, S, S)."""
        tensors = {name: self._assemble(name, axes) for name, axes in self._axes.items()}
        tensors["hessian"] = (tensors["hessian"] + tensors["hessian"].T) / 2
        if "full" in tensors:
            # Blocks of D3 were added with r in the first place only.
            t = tensors["full"]
            tensors["full"] = t + t.permute(1, 0, 2) + t.permute(1, 2, 0)
        return tensors

    def _add(self, name: str, block: Tensor, *groups: Sequence[int]) -> None:
        blocks, key = self._blocks[name], tuple(map(tuple, groups))
        # A block that stays alone is widened where it is added to the whole.
        blocks[key] = blocks[key].to(self._dtype) + block if key in blocks else block

    def _assemble(self, name: str, axes: int) -> Tensor:
        out = torch.zeros([self.size] * axes, dtype=self._dtype, device=self._device)
        for groups, block in self._blocks[name].items():
            corner = _corner(groups, self._device)
            if isinstance(corner[0], slice):
                out[corner].add_(block)  # in one pass, as slices are views
            else:
                out[corner] += block
        return out


def merge(tensors: dict[str, Tensor], part: dict[str, Tensor], groups: Sequence[int]) -> dict[str, Tensor]:
    """The tensors with the entries between these groups, which are complete in ``part``, taken from there."""
    if not tensors:
        return part
    for name, values in part.items():
        corner = _corner([groups] * values.dim(), values.device)
        tensors[name][corner] = values[corner]
    return tensors


def _corner(groups: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, ...] | tuple[slice, ...]:
    """The index of the block where the i-th axis runs through the i-th groups; slices, which are faster, where they do."""
    if all(tuple(g) == tuple(range(g[0], g[0] + len(g))) for g in groups):
        return tuple(slice(g[0], g[0] + len(g)) for g in groups)
    last = len(groups) - 1
    return tuple(torch.tensor(g, device=device).reshape(-1, *[1] * (last - i)) for i, g in enumerate(groups))
