"""The networks of the paper: perceptrons, an auto-encoder, LeNet and the VGG family, all initialized alike.

Weights come from N(0, sigma_w^2 / fan_in), biases are 0 (Wolinski, arXiv 2312.03885, appendix F). Numbers are drawn in
float64 on the CPU, so that one seed gives one network on every device and, but for rounding, in every dtype.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnewton.models.device import default_device

# The factor sigma_w in N(0, sigma_w^2 / fan_in): it keeps the variance of the signal near 1 from layer to layer (that of
# a sigmoid unit shrinks, whose slope is at most 1/4).
_ACTIVATIONS: dict[str, tuple[type[nn.Module], float]] = {
    "tanh": (nn.Tanh, 1.0),
    "sigmoid": (nn.Sigmoid, 1.0),
    "elu": (nn.ELU, math.sqrt(2)),
    "relu": (nn.ReLU, math.sqrt(2)),
    "softplus": (nn.Softplus, 1.0),
}
_VGG: dict[int, tuple[int, ...]] = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
_CHANNELS = (64, 128, 256, 512, 512)


def perceptron(
    widths: Sequence[int],
    activation: str = "tanh",
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    scaling: bool = False,
) -> nn.Sequential:
    """A multi-layer perceptron: linear layers of the given widths with an activation between them.

    Weights are drawn from N(0, sigma_w^2 / fan_in) with sigma_w = 1 for "tanh" (and "sigmoid", "softplus") and sqrt 2 for
    "elu" and "relu"; biases are 0 (Wolinski, arXiv 2312.03885, appendix F). They are drawn in float64 on the CPU: one seed
    gives one network on every device and, but for rounding, in every dtype.

    Args:
        widths: of input, hidden layers and output.
        activation: "tanh", "sigmoid", "elu", "relu" or "softplus". ReLU has no curvature: with the squared error and one
            group per tensor its order-3 summary vanishes.
        generator: a CPU generator; given one, torch's global random state does not move.
        dtype, device: of the parameters; None for torch's defaults.
        scaling: the parameters are sqrt(fan_in) times these weights, of variance sigma_w^2, and every layer divides its
            input by sqrt(fan_in). The network computes the same; its gradients are sqrt(fan_in) times smaller.

    Raises ValueError for fewer than two widths, a width below 1 or an unknown activation.

    >>> model = perceptron([64, 32, 10], generator=torch.Generator().manual_seed(0))
    >>> [(name, tuple(p.shape)) for name, p in model.named_parameters()]
    [('0.weight', (32, 64)), ('0.bias', (32,)), ('2.weight', (10, 32)), ('2.bias', (10,))]
    >>> model(torch.zeros(5, 64)).shape
    torch.Size([5, 10])
    """
    _check_perceptron(widths, activation)
    act, sigma = _ACTIVATIONS[activation]
    new = _Layers(sigma, generator, dtype, device, scaling)
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [new.linear(fan_in, fan_out), act()]
    return nn.Sequential(*layers[:-1])


def autoencoder(
    widths: Sequence[int],
    activation: str = "tanh",
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    scaling: bool = False,
) -> nn.Sequential:
    """A perceptron down to the narrowest of ``widths`` and back up: its output is as wide as its input.

    Args:
        widths: from the input to the narrowest layer.
        activation, generator, dtype, device, scaling: as in ``perceptron``, and so are initialization and errors.

    >>> [layer.weight.shape[0] for layer in autoencoder([784, 64, 8])[::2]]
    [64, 8, 64, 784]
    """
    return perceptron(
        [*widths, *widths[-2::-1]], activation, generator=generator, dtype=dtype, device=device, scaling=scaling
    )


def lenet(
    inputs: tuple[int, int, int] = (3, 32, 32),
    classes: int = 10,
    *,
    activation: str = "tanh",
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    scaling: bool = False,
) -> nn.Sequential:
    """LeNet: two convolutions 5 x 5 of 6 and 16 channels, each averaged over 2 x 2, then linear layers of 120 and 84.

    Args:
        inputs: (channels, 32, 32) or (channels, 28, 28), which the first convolution pads by 2.
        classes: the number of outputs.
        activation, generator, dtype, device, scaling: as in ``perceptron``.

    Raises ValueError for other image sizes, no classes or an unknown activation. (LeCun et al., 1998.)

    >>> lenet((1, 28, 28))(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """
    channels, padding = _check_image(inputs, classes, activation)
    act, sigma = _ACTIVATIONS[activation]
    new = _Layers(sigma, generator, dtype, device, scaling)
    return nn.Sequential(
        *(new.convolution(channels, 6, 5, padding), act(), nn.AvgPool2d(2)),
        *(new.convolution(6, 16, 5), act(), nn.AvgPool2d(2), nn.Flatten()),
        *(new.linear(400, 120), act(), new.linear(120, 84), act(), new.linear(84, classes)),
    )


def vgg(
    depth: int = 11,
    width: float = 1.0,
    *,
    batch_norm: bool = False,
    inputs: tuple[int, int, int] = (3, 32, 32),
    classes: int = 10,
    activation: str = "elu",
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    scaling: bool = False,
) -> nn.Sequential:
    """VGG-11, 13, 16 or 19 for small images, without dropout: convolutions 3 x 3 in five stages, then three linear layers.

    Args:
        depth: 11, 13, 16 or 19.
        width: a factor on all channels (64 to 512) and on the 4,096 units of the linear layers, rounded to at least 1.
        batch_norm: after each convolution, which then has no bias.
        inputs: (channels, 32, 32) or (channels, 28, 28), which is padded by 2 with zeros.
        classes: the number of outputs.
        activation, generator, dtype, device, scaling: as in ``perceptron``.

    Raises ValueError for another depth or image size, a width that is not
    positive, no classes, or an unknown activation. (Simonyan and Zisserman, arXiv 1409.1556.)

    >>> model = vgg(11, width=1 / 32, inputs=(1, 28, 28))
    >>> model(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """
    channels, padding = _check_image(inputs, classes, activation)
    if depth not in _VGG or not 0 < width < math.inf:
        raise ValueError(
            f"expected depth {', '.join(map(str, _VGG))} and width > 0, got {depth} and {width}; choose one"
        )
    act, sigma = _ACTIVATIONS[activation]
    new = _Layers(sigma, generator, dtype, device, scaling)
    layers: list[nn.Module] = [nn.ZeroPad2d(padding)] if padding else []
    for repeats, full in zip(_VGG[depth], _CHANNELS, strict=True):
        for _ in range(repeats):
            before, channels = channels, max(1, round(full * width))
            norm = [nn.BatchNorm2d(channels, dtype=dtype, device=device)] if batch_norm else []
            # Batch norm subtracts any bias that comes before it: a parameter without a gradient, but with roundings.
            layers += [new.convolution(before, channels, 3, 1, bias=not batch_norm), *norm, act()]
        layers.append(nn.MaxPool2d(2))
    units = max(1, round(4096 * width))
    head = [new.linear(channels, units), act(), new.linear(units, units), act(), new.linear(units, classes)]
    return nn.Sequential(*layers, nn.Flatten(), *head)


class ScaledLinear(nn.Linear):
    """x / sqrt(fan_in) W^T + b: the weights have the variance of the signal."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., fan_in) -> (..., fan_out)"""
        return F.linear(input / math.sqrt(self.in_features), self.weight, self.bias)


class ScaledConv2d(nn.Conv2d):
    """The convolution of x / sqrt(fan_in), where fan_in is the number of weights of one output channel."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, K, H', W')"""
        return super().forward(input / math.sqrt(self.weight[0].numel()))


Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


@dataclass(frozen=True)
class _Layers:
    """Layers drawn from one generator."""

    sigma: float
    generator: torch.Generator | None
    dtype: torch.dtype | None
    device: torch.device | str | None
    scaling: bool

    def linear(self, fan_in: int, fan_out: int) -> nn.Linear:
        kind = ScaledLinear if self.scaling else nn.Linear
        return self._draw(kind(fan_in, fan_out, device="meta", dtype=self.dtype))

    def convolution(self, channels: int, out: int, kernel: int, padding: int = 0, bias: bool = True) -> nn.Conv2d:
        kind = ScaledConv2d if self.scaling else nn.Conv2d
        return self._draw(kind(channels, out, kernel, padding=padding, bias=bias, device="meta", dtype=self.dtype))

    def _draw(self, layer: Layer) -> Layer:
        # Built on the meta device: its own initialization would draw from the global random state.
        shape, fan_in = layer.weight.shape, layer.weight[0].numel()
        weight = torch.randn(shape, generator=self.generator, dtype=torch.float64, device="cpu") * self.sigma
        layer = layer.to_empty(device=self.device or default_device())
        with torch.no_grad():
            layer.weight.copy_(weight if self.scaling else weight / math.sqrt(fan_in))
            if layer.bias is not None:
                layer.bias.zero_()
        return layer


def _check_image(inputs: tuple[int, int, int], classes: int, activation: str) -> tuple[int, int]:
    """The number of channels, and the padding that makes the image 32 x 32."""
    _check_activation(activation)
    if classes < 1:
        raise ValueError(f"expected at least one class, got {classes}; give the number of outputs")
    if len(inputs) != 3 or inputs[0] < 1 or tuple(inputs[1:]) not in ((28, 28), (32, 32)):
        raise ValueError(
            f"expected images (channels, 28, 28) or (channels, 32, 32), got {tuple(inputs)}; resize or pad them"
        )
    return inputs[0], (32 - inputs[1]) // 2


def _check_perceptron(widths: Sequence[int], activation: str) -> None:
    if len(widths) < 2 or min(widths) < 1:
        raise ValueError(f"expected two or more widths >= 1, got {list(widths)}; write [inputs, hidden, ..., outputs]")
    _check_activation(activation)


def _check_activation(activation: str) -> None:
    if activation not in _ACTIVATIONS:
        known = ", ".join(_ACTIVATIONS)
        raise ValueError(f"expected an activation among {known}, got {activation!r}; choose one of them")
