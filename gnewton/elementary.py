"""Norm layers written out in elementary operations, whose derivatives are right to every order.

torch computes layer norm, batch norm, instance norm and weight norm by fused kernels. Their first and second derivatives
are right, but the derivative of the double backward treats the saved mean and variance as constants: the third order comes
out wrong without any error (weight norm already at the second). Written out, each step is an operation that autograd
differentiates to any order. `tests/test_elementary.py` shows both facts.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class ElementaryNorms(TorchFunctionMode):
    """While it is active, norm layers run as elementary operations; values agree with torch's to rounding.

    >>> x = torch.randn(4, 3)
    >>> with ElementaryNorms():
    ...     y = F.layer_norm(x, (3,))
    >>> torch.allclose(y, F.layer_norm(x, (3,)), atol=1e-5)
    True
    """

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _WRITTEN_OUT.get(function, function)(*args, **(kwargs or {}))


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    """``torch.layer_norm`` over the last ``len(normalized_shape)`` axes."""
    return _affine(_standardized(input, tuple(range(-len(normalized_shape), 0)), eps), weight, bias)


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """``F.batch_norm`` of (N, C, ...), its running statistics updated in training as torch does."""
    if not training:
        # With given statistics it is an affine map; the fused kernel differentiates that correctly.
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    axes = (0, *range(2, input.dim()))
    _update(running_mean, running_var, input, axes, momentum)
    return _affine(_standardized(input, axes, eps), _channels(weight, input), _channels(bias, input))


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """``F.instance_norm`` of (N, C, ...)."""
    if not use_input_stats or running_mean is not None:
        return F.instance_norm(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
    axes = tuple(range(2, input.dim()))
    return _affine(_standardized(input, axes, eps), _channels(weight, input), _channels(bias, input))


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """``torch._weight_norm``: g v / ||v||, the norm over all axes but ``dim`` (-1: over all)."""
    axes = [axis for axis in range(v.dim()) if axis != dim % v.dim()] if dim != -1 else list(range(v.dim()))
    return v * (g / v.square().sum(axes, keepdim=True).sqrt())


def _standardized(x: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
    centred = x - x.mean(axes, keepdim=True)
    return centred * (centred.square().mean(axes, keepdim=True) + eps).rsqrt()


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _channels(parameter: Tensor | None, input: Tensor) -> Tensor | None:
    return None if parameter is None else parameter.reshape(1, -1, *[1] * (input.dim() - 2))


@torch.no_grad()
def _update(mean: Tensor | None, variance: Tensor | None, x: Tensor, axes: tuple[int, ...], momentum: float) -> None:
    if mean is not None:
        mean.lerp_(x.mean(axes).to(mean), momentum)
    if variance is not None:
        variance.lerp_(x.var(axes).to(variance), momentum)


_WRITTEN_OUT: dict[Any, Callable[..., Any]] = {
    F.layer_norm: layer_norm,
    torch.layer_norm: layer_norm,
    F.batch_norm: batch_norm,
    F.instance_norm: instance_norm,
    torch._weight_norm: weight_norm,
}
