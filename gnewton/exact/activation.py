"""Element-wise activations with two derivatives: closed forms for the usual ones, autograd for the rest."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ActivationValues(NamedTuple):
    """An activation at z: the values and its first two derivatives, each of the shape of z."""

    value: Tensor
    slope: Tensor
    curvature: Tensor


Activation = Callable[[Tensor], ActivationValues]


class Elementwise(nn.Module):
    """A function of one number as a layer: ``nn.Sequential(nn.Linear(2, 3), Elementwise(torch.sin), ...)``.

    function: maps a tensor to one of the same shape, entry by entry, and can be differentiated twice by autograd.

    >>> Elementwise(torch.sin)(torch.zeros(2))
    tensor([0., 0.])
    """

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, z: Tensor) -> Tensor:
        """z of any shape -> the same shape."""
        return self.function(z)

    def extra_repr(self) -> str:
        """The function's name."""
        return getattr(self.function, "__name__", repr(self.function))


def read(module: nn.Module) -> Activation:
    """The closed form of a layer's activation, or its derivatives by autograd."""
    # The type itself: a subclass may compute something else.
    closed = _MODULES.get(type(module))
    return (closed and closed(module)) or by_autograd(module)


def identity(z: Tensor) -> ActivationValues:
    """sigma(z) = z."""
    return ActivationValues(z, torch.ones_like(z), torch.zeros_like(z))


def compose(inner: Activation, outer: Activation) -> Activation:
    """outer(inner(z)) by the chain rule: (f o g)'' = f''(g) g'^2 + f'(g) g''."""
    if inner is identity:
        return outer

    def composition(z: Tensor) -> ActivationValues:
        g = inner(z)
        f = outer(g.value)
        return ActivationValues(f.value, f.slope * g.slope, f.curvature * g.slope.square() + f.slope * g.curvature)

    return composition


def scale(activation: Activation, factor: float) -> Activation:
    """factor sigma(z)."""
    return lambda z: ActivationValues(*(factor * part for part in activation(z)))


def by_autograd(function: Callable[[Tensor], Tensor]) -> Activation:
    """Value and derivatives of any element-wise function that autograd differentiates twice."""

    def activation(z: Tensor) -> ActivationValues:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            # A copy, for functions that work in place.
            value = function(z.clone())
            # The entries do not interact, so that the gradient of the sum holds every derivative.
            slope = derivative(value, z)
            curvature = derivative(slope, z)
        return ActivationValues(value.detach(), slope.detach(), curvature.detach())

    return activation


def is_elementwise(module: nn.Module) -> bool:
    """Whether the module does to a matrix what it does to each of its numbers alone."""
    z = torch.linspace(-2, 2, 6, dtype=torch.float64, device="cpu").reshape(2, 3)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            together = module(z.clone())
            alone = torch.stack([module(one.reshape(1, 1)).reshape(()) for one in z.flatten()]).reshape(z.shape)
        # Convolutions, norms, attention: each refuses a matrix in its own way.
        except Exception:
            return False
    return bool(together.shape == z.shape and torch.allclose(together, alone, equal_nan=True))


def derivative(value: Tensor, z: Tensor) -> Tensor:
    """The derivative by z of a value that depends on it entry by entry, with its graph; zeros where it does not depend on it."""
    if not value.requires_grad:
        return torch.zeros_like(z)
    (slope,) = torch.autograd.grad(value.sum(), z, create_graph=True, allow_unused=True)
    return torch.zeros_like(z) if slope is None else slope


def _tanh(z: Tensor) -> ActivationValues:
    a = torch.tanh(z)
    s = 1 - a * a
    return ActivationValues(a, s, -2 * a * s)


def _sigmoid(z: Tensor) -> ActivationValues:
    a = torch.sigmoid(z)
    s = a * (1 - a)
    return ActivationValues(a, s, s * (1 - 2 * a))


def _relu(z: Tensor) -> ActivationValues:
    return ActivationValues(torch.relu(z), (z > 0).to(z.dtype), torch.zeros_like(z))


def _silu(z: Tensor) -> ActivationValues:
    g = torch.sigmoid(z)
    return ActivationValues(z * g, g * (1 + z * (1 - g)), g * (1 - g) * (2 + z * (1 - 2 * g)))


def _gelu(z: Tensor) -> ActivationValues:
    below = torch.special.ndtr(z)
    density = torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    return ActivationValues(z * below, below + z * density, density * (2 - z * z))


def _sin(z: Tensor) -> ActivationValues:
    a = torch.sin(z)
    return ActivationValues(a, torch.cos(z), -a)


def _elu(alpha: float) -> Activation:
    def activation(z: Tensor) -> ActivationValues:
        a, negative = F.elu(z, alpha), z <= 0
        # alpha exp(z) is both derivatives there; at 0 torch takes the slope from the left and the curvature from the right.
        return ActivationValues(a, torch.where(negative, a + alpha, 1.0), torch.where(z < 0, a + alpha, 0.0))

    return activation


def _softplus(beta: float, threshold: float) -> Activation:
    def activation(z: Tensor) -> ActivationValues:
        # Beyond the threshold torch's softplus is the identity.
        g, linear = torch.sigmoid(beta * z), beta * z > threshold
        curvature = torch.where(linear, 0.0, beta * g * (1 - g))
        return ActivationValues(F.softplus(z, beta, threshold), torch.where(linear, 1.0, g), curvature)

    return activation


_FUNCTIONS: dict[Any, Activation] = {
    torch.sin: _sin,
    torch.tanh: _tanh,
    torch.sigmoid: _sigmoid,
    torch.relu: _relu,
    F.relu: _relu,
    F.silu: _silu,
    F.gelu: _gelu,
    F.elu: _elu(1.0),
    F.softplus: _softplus(1.0, 20.0),
}
_MODULES: dict[type[nn.Module], Callable[[Any], Activation | None]] = {
    nn.Tanh: lambda module: _tanh,
    nn.Sigmoid: lambda module: _sigmoid,
    nn.ReLU: lambda module: _relu,
    nn.SiLU: lambda module: _silu,
    nn.GELU: lambda module: _gelu if module.approximate == "none" else None,
    nn.ELU: lambda module: _elu(module.alpha),
    nn.Softplus: lambda module: _softplus(module.beta, module.threshold),
    Elementwise: lambda module: _FUNCTIONS.get(module.function),
}
