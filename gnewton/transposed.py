"""Transposed convolutions with an output padding, written out: torch's formula for their second derivative hands it to a plain
convolution, which takes none.

What the padding adds at the far end of an axis is a part of the whole result that would have been cut off, or a margin without
any product: so the whole is computed, cut, and the bias added last.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Numbers = int | Sequence[int]


def _conv_transpose(
    own: Callable[..., Tensor],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Numbers = 1,
    padding: Numbers = 0,
    output_padding: Numbers = 0,
    groups: int = 1,
    dilation: Numbers = 1,
) -> Tensor:
    """``torch.conv_transpose1d``, 2d or 3d.

    >>> x, w = torch.ones(1, 1, 3), torch.ones(1, 1, 2)
    >>> _conv_transpose(torch.conv_transpose1d, x, w, None, 2, 1, 1)
    tensor([[[1., 1., 1., 1., 1.]]])
    """
    axes = max(weight.dim() - 2, 1)
    steps, cut, more, apart = (_as_list(n, axes) for n in (stride, padding, output_padding, dilation))
    fits = _fit(more, steps, apart) and len(cut) == axes
    if not fits or (bias is not None and bias.shape != (weight.shape[1] * groups,)):
        return own(input, weight, bias, stride, padding, output_padding, groups, dilation)  # which says why not
    whole = own(input, weight, None, steps, [0] * axes, [0] * axes, groups, apart)
    margins = [margin for p, m in zip(reversed(cut), reversed(more), strict=True) for margin in (-p, m - p)]
    result = F.pad(whole, margins)
    return result if bias is None else result + bias.to(result.dtype).reshape(-1, *[1] * axes)


def _fit(more: Sequence[int], steps: Sequence[int], apart: Sequence[int]) -> bool:
    """Whether torch takes the output padding: it is below stride or dilation along each axis."""
    alike = len(more) == len(steps) == len(apart)
    return alike and all(0 <= m < max(both) for m, *both in zip(more, steps, apart, strict=True))


def _as_list(numbers: Numbers, axes: int) -> list[int]:
    values = [numbers] if isinstance(numbers, int) else list(numbers)
    return values * axes if len(values) == 1 else values


def _written_out(own: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function by its parts, and by itself where it has no output padding."""

    def run(*args: Any, **kwargs: Any) -> Tensor:
        more = args[5] if len(args) > 5 else kwargs.get("output_padding", 0)
        if not any(more if isinstance(more, Sequence) else (more,)):
            return own(*args, **kwargs)
        return _conv_transpose(own, *args, **kwargs)

    return run


WRITTEN_OUT: dict[Any, Callable[..., Tensor]] = {}
for _axes in (1, 2, 3):
    _own, _packet = (getattr(home, f"conv_transpose{_axes}d") for home in (torch, torch.ops.aten))
    # Exported programs call the same functions by the names of torch's operator library.
    _homes = (_own, _packet, *(getattr(_packet, name) for name in _packet.overloads()))
    WRITTEN_OUT |= dict.fromkeys(_homes, _written_out(_own))
