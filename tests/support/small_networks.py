"""Small networks in float64, and the slow way to everything: torch.func on the model's own forward, then dense algebra.

No line of ``gnewton.exact`` is in it, except the wrapper that makes a layer of torch.sin.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacrev, vmap

import gnewton as gn

DTYPE = torch.float64


def half_squares(output: Tensor, y: Tensor) -> Tensor:
    return (output - y).square().sum(1).mean() / 2


@dataclass
class Case:
    model: nn.Sequential
    x: Tensor
    y: Tensor
    loss: Callable[[Tensor, Tensor], Tensor]

    @property
    def named(self):
        """How gnewton is told the loss."""
        return "squared_error" if self.loss is half_squares else self.loss

    @property
    def passes(self) -> gn.exact.Passes:
        return gn.exact.forward_backward(self.model, self.x, self.y, loss=self.named)

    @cached_property
    def theta(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.model.parameters()])

    def outputs(self, theta: Tensor, x: Tensor) -> Tensor:
        """The model's outputs (B, n) as a function of all parameters in a row."""
        parts = theta.split([p.numel() for p in self.model.parameters()])
        named = {n: t.view(p.shape) for (n, p), t in zip(self.model.named_parameters(), parts, strict=True)}
        return functional_call(self.model, named, (x,))

    def one(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return self.loss(self.outputs(theta, x[None]), y[None])

    @cached_property
    def hessians(self) -> Tensor:
        return vmap(hessian(self.one), (None, 0, 0))(self.theta, self.x, self.y)

    @cached_property
    def gradients(self) -> Tensor:
        return vmap(grad(self.one), (None, 0, 0))(self.theta, self.x, self.y)

    @cached_property
    def jacobians(self) -> Tensor:
        """Of the model's outputs, (B, n, P)."""
        return vmap(jacrev(lambda t, x: self.outputs(t, x[None])[0]), (None, 0))(self.theta, self.x)

    def newton(self, rho: Tensor | float, kappa: float = 0.0, extra: Tensor | float = 0.0) -> Tensor:
        """-(H + rho + kappa)^{-1} (g + kappa theta + extra), (B, P); rho a number, (B, 1) or (B, P)."""
        diagonal = (torch.as_tensor(rho, dtype=DTYPE) + kappa).expand_as(self.gradients)
        return torch.linalg.solve(
            self.hessians + torch.diag_embed(diagonal), -(self.gradients + kappa * self.theta + extra)
        )


def row(tensors: dict[str, Tensor], samples: bool = True) -> Tensor:
    """Named tensors in a row: (B, P), or (P,) where they have no samples."""
    return torch.cat([t.flatten(1) if samples else t.flatten() for t in tensors.values()], -1)


def unrow(model: nn.Module, values: Tensor) -> dict[str, Tensor]:
    """(B, P) or (P,) as named tensors."""
    parts = values.split([p.numel() for p in model.parameters()], -1)
    return {
        n: t.reshape(*values.shape[:-1], *p.shape) for (n, p), t in zip(model.named_parameters(), parts, strict=True)
    }


def gap(computed: Tensor, expected: Tensor) -> float:
    """The largest relative error of rows, in the Euclidean norm."""
    assert computed.shape == expected.shape
    return float(((computed - expected).norm(dim=-1) / expected.norm(dim=-1)).max())


def chain(widths, activation, output=None, biases=None):
    """Linear layers with an activation between them, and perhaps one behind them."""
    layers = []
    for i, (n, k) in enumerate(pairwise(widths)):
        layers += [nn.Linear(n, k, bias=biases is None or biases[i]), activation()]
    return nn.Sequential(*layers[:-1], *([] if output is None else [output()]))


def squared(make):
    return lambda: (make(), half_squares, "targets")


def mse(make):
    return lambda: (make(), F.mse_loss, "targets")


def classes(make):
    return lambda: (make(), F.cross_entropy, "classes")


def shared_activation():
    act = nn.Tanh()
    return nn.Sequential(nn.Linear(4, 5), act, nn.Linear(5, 3), act, nn.Linear(3, 3))


def sine():
    return gn.exact.Elementwise(torch.sin)


# Biases everywhere, sigma' != 0: the theorem of rank and inertia holds.
SMOOTH = {
    "one layer, cross-entropy": classes(lambda: chain([4, 3], nn.Tanh)),
    "one layer, squares": squared(lambda: chain([4, 3], nn.Tanh)),
    "one layer, tanh output": squared(lambda: chain([4, 3], nn.Tanh, nn.Tanh)),
    "tanh": classes(lambda: chain([5, 4, 3], nn.Tanh)),
    "sigmoid, mse": mse(lambda: chain([5, 4, 3], nn.Sigmoid)),
    "softplus, one output": squared(lambda: chain([3, 5, 1], nn.Softplus)),
    "tanh, sigmoid output": squared(lambda: chain([4, 5, 3], nn.Tanh, nn.Sigmoid)),
    "two hidden": classes(lambda: chain([4, 5, 3, 3], nn.Softplus)),
    "two hidden, tanh output": squared(lambda: chain([4, 3, 5, 2], nn.Tanh, nn.Tanh)),
    "three hidden": squared(lambda: chain([3, 4, 3, 4, 2], nn.ELU)),
    "wider than the input": classes(lambda: chain([1, 6, 2], nn.Tanh)),
    "narrow": squared(lambda: chain([3, 1, 2, 1], nn.Sigmoid)),
}
# The Hessian, its spectrum and the directions hold here too.
OTHERS = {
    "relu": classes(lambda: chain([4, 6, 5, 3], nn.ReLU)),
    "gelu": squared(lambda: chain([4, 5, 3], nn.GELU)),
    "silu": classes(lambda: chain([4, 5, 3, 3], nn.SiLU)),
    "sine": squared(lambda: chain([4, 5, 2], sine)),
    "by autograd": classes(lambda: chain([4, 5, 3], nn.Softsign)),
    "two activations": classes(lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Softplus(), nn.Linear(5, 3))),
    "no activation": classes(lambda: nn.Sequential(nn.Linear(4, 5), nn.Identity(), nn.Linear(5, 3))),
    "one module twice": classes(shared_activation),
    "nested": classes(lambda: nn.Sequential(nn.Sequential(nn.Linear(4, 5), nn.Tanh()), nn.Sequential(nn.Linear(5, 3)))),
    "scaled": classes(lambda: gn.models.perceptron([4, 5, 3, 3], "tanh", scaling=True)),
    "no biases": squared(lambda: chain([4, 5, 3, 2], nn.Tanh, biases=[False] * 3)),
    "some biases": classes(lambda: chain([4, 5, 4, 3], nn.Tanh, biases=[False, True, False])),
    "cross-entropy of tanh": classes(lambda: chain([4, 5, 3], nn.Tanh, nn.Tanh)),
    "one layer, cross-entropy of tanh": classes(lambda: chain([4, 3], nn.Tanh, nn.Tanh)),
    "soft labels": lambda: (chain([4, 5, 3], nn.Tanh), F.cross_entropy, "probabilities"),
}
CASES = SMOOTH | OTHERS


def build(name: str, samples: int = 3, seed: int = 0) -> Case:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, loss, kind = CASES[name]()
        model = model.to(DTYPE)
        with torch.no_grad():
            for p in model.parameters():
                p.normal_(std=0.8)
        layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
        outputs = layers[-1].out_features
        x = torch.randn(samples, layers[0].in_features, dtype=DTYPE)
        y = {
            "targets": torch.randn(samples, outputs, dtype=DTYPE),
            "classes": torch.randint(outputs, (samples,)),
            "probabilities": torch.rand(samples, outputs, dtype=DTYPE).softmax(1),
        }[kind]
    return Case(model, x, y, loss)
