r"""One forward and one backward pass over a batch, with all that the second order needs of them.

Layer l = 1..L (index l - 1 in code) has the pre-activation z_l = V_l abar_{l-1}, V = [W | b], abar = [a; 1]. Backward,

    beta_l = W_{l+1}^T delta_{l+1},    delta_l = sigma'(z_l) beta_l,    k_l = sigma''(z_l) beta_l,

from delta_L, the gradient of the loss, and C_L, its Hessian. The gradient with respect to V_l is delta_l abar_{l-1}^T.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnewton.exact import loss as losses
from gnewton.exact.network import Network


@dataclass(frozen=True, eq=False)
class Passes:
    """The passes of B samples, in the parameters' dtype and on their device. Every list has one entry a layer.

    Args:
        network: the layers.
        weights: W_l (n_l, n_{l-1}), as they are in the model.
        biases: b_l (n_l,), or None.
        inputs: a_{l-1} (B, n_{l-1}).
        lengths: |abar_{l-1}|^2 (B, 1).
        z: the pre-activations (B, n_l).
        slopes: sigma'(z_l) (B, n_l), of the hidden layers.
        curvatures: k_l (B, n_l), of the hidden layers.
        deltas: delta_l (B, n_l).
        loss: values, delta_L and C_L of the B losses.
    """

    network: Network
    weights: list[Tensor]
    biases: list[Tensor | None]
    inputs: list[Tensor]
    lengths: list[Tensor]
    z: list[Tensor]
    slopes: list[Tensor]
    curvatures: list[Tensor]
    deltas: list[Tensor]
    loss: losses.Terms

    def __len__(self) -> int:
        """L, the number of layers."""
        return len(self.weights)

    def __repr__(self) -> str:
        widths = [self.weights[0].shape[1], *(len(W) for W in self.weights)]
        return f"Passes({self.samples} samples through {'-'.join(map(str, widths))})"

    @property
    def samples(self) -> int:
        """B."""
        return len(self.inputs[0])

    @property
    def values(self) -> Tensor:
        """The losses of the samples, (B,)."""
        return self.loss.values

    def extended_input(self, layer: int) -> Tensor:
        """abar_{l-1} of the layer with this index, (B, n_{l-1} + 1), or a_{l-1} where it has no bias."""
        a = self.inputs[layer]
        return a if self.biases[layer] is None else torch.cat([a, a.new_ones(len(a), 1)], 1)

    def gradient(self) -> dict[str, Tensor]:
        """The gradient of each sample's own loss: name -> (B, *shape)."""
        gradients = {}
        for layer, a, delta in zip(self.network.layers, self.inputs, self.deltas, strict=True):
            gradients[layer.weight_name] = delta[:, :, None] * a[:, None, :]
            if layer.bias_name is not None:
                gradients[layer.bias_name] = delta
        return gradients


def forward_backward(model: nn.Sequential, x: Tensor, y: Tensor, *, loss: losses.LossName = F.cross_entropy) -> Passes:
    """Run a batch through a network, forward and backward.

    Args:
        model: a Sequential of Linear and element-wise activations, in float32 or float64.
        x: (B, n_0), or (B, ...) where the model begins with Flatten, in the model's dtype.
        y: classes (B,) int64 or probabilities (B, n_L) for cross-entropy; targets (B, n_L) for the squared error.
        loss: "cross_entropy" or F.cross_entropy, "squared_error" (half the sum of squares) or F.mse_loss.

    An activation behind the last linear layer is part of the loss. Everything is per sample; nothing is averaged. The result
    keeps the weights as they are now, and the graph of x and y is not looked at.

    Raises TypeError or ValueError, naming the layer, for other networks, losses and shapes.

    >>> import gnewton as gn
    >>> model = gn.models.perceptron([3, 4, 2])
    >>> gn.exact.forward_backward(model, torch.zeros(5, 3), torch.zeros(5, dtype=torch.int64))
    Passes(5 samples through 3-4-2)
    """
    passes = run_passes(Network(model), x, y, losses.read(loss))
    biases = [None if b is None else b.clone() for b in passes.biases]
    return replace(passes, weights=[W.clone() for W in passes.weights], biases=biases)


@torch.no_grad()
def run_passes(network: Network, x: Tensor, y: Tensor, loss: losses.Loss) -> Passes:
    """The passes on the weights themselves, for use before they move."""
    network.check()
    a = _check_inputs(network, x)
    _check_targets(x, y)
    loss.check(y, len(a), network.layers[-1].shape[0])
    weights = [layer.linear.weight.detach() for layer in network.layers]
    biases: list[Tensor | None] = [
        None if layer.linear.bias is None else layer.linear.bias.detach() for layer in network.layers
    ]
    inputs, z, slopes, curvatures = [], [], [], []
    for layer, W, b in zip(network.layers, weights, biases, strict=True):
        inputs.append(a)
        z.append(F.linear(a, W, b))
        sigma = layer.activation(z[-1])
        slopes.append(sigma.slope)
        curvatures.append(sigma.curvature)
        a = sigma.value
    terms = loss(a, y).before(sigma) if network.has_output_activation else loss(a, y)
    deltas = [terms.delta]
    slopes.pop(), curvatures.pop()
    for i in reversed(range(len(slopes))):
        beta = deltas[0] @ weights[i + 1]
        deltas.insert(0, slopes[i] * beta)
        curvatures[i] = curvatures[i] * beta
    lengths = [_length(a, b) for a, b in zip(inputs, biases, strict=True)]
    return Passes(network, weights, biases, inputs, lengths, z, slopes, curvatures, deltas, terms)


@contextmanager
def solvable(passes: Passes) -> Iterator[None]:
    """An eigenvalue problem inside: what it cannot solve is a FloatingPointError where the passes are not finite."""
    try:
        yield
    except torch.linalg.LinAlgError as error:
        check_finite(passes, error)
        raise


def check_finite(passes: Passes, error: Exception | None = None) -> None:
    """Raises FloatingPointError for a loss or gradient that is not finite."""
    for what, tensors in (("loss", [passes.values]), ("gradient", passes.deltas)):
        if not all(bool(torch.isfinite(t).all()) for t in tensors):
            raise FloatingPointError(
                f"expected a finite {what}, got NaN or infinity; check the inputs or lower the learning rate"
            ) from error


def _length(a: Tensor, b: Tensor | None) -> Tensor:
    squares = a.square().sum(1, keepdim=True)
    return squares if b is None else squares + 1


def _check_targets(x: Tensor, y: Any) -> None:
    if not isinstance(y, Tensor):
        raise TypeError(f"expected y as a tensor, got {type(y).__name__}; write torch.as_tensor(y)")
    if y.is_floating_point() and y.dtype != x.dtype:
        raise ValueError(f"expected y of {x.dtype} as x is, got {y.dtype}; write y.to(x.dtype)")
    if y.device != x.device:
        raise ValueError(f"expected y on {x.device} as x is, got {y.device}; write y.to(x.device)")
    kind = x.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        raise ValueError(
            "expected no active autocast, got one around the passes, which have no digits to lose; leave it away"
        )


def _check_inputs(network: Network, x: Tensor) -> Tensor:
    """The inputs of the first layer, (B, n_0)."""
    W = network.layers[0].linear.weight
    if not isinstance(x, Tensor):
        raise TypeError(f"expected inputs as a tensor, got {type(x).__name__}; write torch.as_tensor(x)")
    rows = x.flatten(1) if network.flattens and x.ndim > 1 else x
    if rows.ndim != 2 or rows.shape[1] != W.shape[1] or not len(rows):
        raise ValueError(
            f"expected inputs of shape (samples, {W.shape[1]}), got {tuple(x.shape)}; a single sample is x[None]"
        )
    if (x.dtype, x.device) != (W.dtype, W.device):
        raise ValueError(
            f"expected inputs of {W.dtype} on {W.device} as the parameters are, got {x.dtype} on {x.device}; call x.to(...)"
        )
    return rows * network.input_scale if network.input_scale != 1 else rows
