"""A feed-forward network as a chain of layers z_l = W_l a_{l-1} + b_l, a_l = sigma_l(z_l), read from nn.Sequential."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from gnewton.exact.activation import Activation, compose, identity, is_elementwise, read, scale
from gnewton.exact.unaltered import check_unaltered, differentiable_twice
from gnewton.models.networks import ScaledLinear
from gnewton.storage import check_apart


@dataclass(frozen=True)
class Layer:
    """A linear layer and the activation behind it; the names are those of ``model.named_parameters()``."""

    linear: nn.Linear
    name: str
    activation: Activation = identity

    @property
    def bias_name(self) -> str | None:
        """None without a bias."""
        return None if self.linear.bias is None else f"{self.name}bias"

    @property
    def weight_name(self) -> str:
        """The weight's name in the model."""
        return f"{self.name}weight"

    @property
    def shape(self) -> tuple[int, int, bool]:
        """Outputs n_l, inputs n_{l-1}, and whether there is a bias."""
        return self.linear.out_features, self.linear.in_features, self.linear.bias is not None


class Network:
    """The layers of a ``torch.nn.Sequential`` of Linear and element-wise activations, nested ones included.

    The last activation, if any, belongs to the loss. ``gn.models.perceptron`` returns such a model, with ``scaling=True``
    too. Flatten may come first. Raises TypeError or ValueError, with a sentence that names the layer, for anything else.
    """

    def __init__(self, model: nn.Sequential) -> None:
        _check_model(model)
        self.layers: tuple[Layer, ...] = ()
        self.input_scale, self.flattens = 1.0, False
        for name, module in _leaves(model):
            self._append(name, module)
        _check_parameters(self.parameters, model)
        self._model = model
        self._read = _describe(model)

    def check(self) -> None:
        """Raises ValueError where the model was altered since it was read: a hook, another forward, other layers."""
        _check_model(self._model)
        now = _describe(self._model)
        if len(now) != len(self._read) or any(
            m is not before or options != then for (m, options), (before, then) in zip(now, self._read, strict=True)
        ):
            raise ValueError(
                "expected the layers and activations that were read, got others in the model, or other options of theirs; build the "
                "optimizer anew"
            )
        _check_parameters(self.parameters, self._model)

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The model's parameters by name, in the model's order."""
        parameters: dict[str, Tensor] = {}
        for layer in self.layers:
            parameters[layer.weight_name] = layer.linear.weight
            if layer.bias_name is not None:
                parameters[layer.bias_name] = layer.linear.bias
        return parameters

    @property
    def has_output_activation(self) -> bool:
        """Whether an activation stands between the last linear layer and the loss."""
        return self.layers[-1].activation is not identity

    @property
    def hidden(self) -> int:
        """N, the number of hidden units."""
        return sum(layer.linear.out_features for layer in self.layers[:-1])

    def _append(self, name: str, module: nn.Module) -> None:
        label = f"{name} ({type(module).__name__})"
        if type(module) in (nn.Linear, ScaledLinear):
            assert isinstance(module, nn.Linear)
            self._scale(module.in_features**-0.5 if isinstance(module, ScaledLinear) else 1.0)
            self.layers += (Layer(module, f"{name}."),)
        elif type(module) is nn.Flatten and not self.layers:
            if (module.start_dim, module.end_dim) != (1, -1):
                raise ValueError(
                    f"expected Flatten of all but the samples, got {label} with {module}; use nn.Flatten()"
                )
            self.flattens = True
        elif type(module) is not nn.Identity:
            _check_activation(label, module)
            if not self.layers:
                raise ValueError(f"expected a linear layer first, got {label}; apply it to the inputs beforehand")
            self._activate(read(module))

    def _activate(self, activation: Activation) -> None:
        last = self.layers[-1]
        self.layers = (*self.layers[:-1], replace(last, activation=compose(last.activation, activation)))

    def _scale(self, factor: float) -> None:
        """A factor on the inputs of the next layer is one on the outputs of the last."""
        if factor == 1.0:
            return
        if not self.layers:
            self.input_scale = factor
            return
        last = self.layers[-1]
        self.layers = (*self.layers[:-1], replace(last, activation=scale(last.activation, factor)))


def _leaves(module: nn.Sequential, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    # Not named_children(), which leaves out a module that comes a second time.
    for name, child in module._modules.items():
        assert child is not None
        if type(child) is nn.Sequential:
            yield from _leaves(child, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", child


def _describe(model: nn.Sequential) -> list[tuple[nn.Module, dict[str, Any]]]:
    """All leaves, and the plain options of each, such as a slope or a threshold."""
    return [
        (m, {key: v for key, v in vars(m).items() if isinstance(v, int | float | str) and key != "training"})
        for _, m in _leaves(model)
    ]


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Sequential) or any(
        getattr(type(model), name) is not getattr(nn.Sequential, name) for name in ("forward", "__call__", "__iter__")
    ):
        raise TypeError(
            f"expected a torch.nn.Sequential of Linear and element-wise activations, got {type(model).__name__}, whose "
            "forward could do anything; write the network as nn.Sequential, or use GroupedNewton"
        )
    for name, module in model.named_modules():
        check_unaltered(module, f"{name} ({type(module).__name__})" if name else "the model")


def _check_activation(label: str, module: nn.Module) -> None:
    if isinstance(module, nn.Softmax | nn.LogSoftmax):
        raise ValueError(f"expected logits, got {label}; leave it out: the cross-entropy applies softmax itself")
    drops = isinstance(module, nn.modules.dropout._DropoutNd)
    held = any(True for _ in module.parameters()) or any(True for _ in module.buffers())
    if drops or held or not is_elementwise(module):
        raise ValueError(
            f"expected linear layers and element-wise activations, got {label}; exact Newton covers feed-forward networks "
            "alone: leave the layer out, or use GroupedNewton, which takes any model"
        )
    if not differentiable_twice(module):
        raise ValueError(
            f"expected an activation whose derivatives are those of its values, got {label}; its backward is no derivative, "
            "or cannot be differentiated: write it in torch's operations, or use GroupedNewton"
        )


def _check_parameters(parameters: dict[str, Tensor], model: nn.Module) -> None:
    if not parameters:
        raise ValueError("expected at least one linear layer, got none; add nn.Linear")
    seen: dict[int, str] = {}
    check_apart(parameters if len({id(p) for p in parameters.values()}) == len(parameters) else {})
    first_name, first = next(iter(parameters.items()))
    if first.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"expected parameters in float32 or float64, got {first.dtype}; convert the model")
    for name, p in parameters.items():
        if id(p) in seen:
            raise ValueError(
                f"expected each layer to have its own parameters, got {name} tied to {seen[id(p)]}; untie them"
            )
        if not p.requires_grad:
            raise ValueError(f"expected every parameter to move, got {name} frozen; call requires_grad_() on it")
        if (p.dtype, p.device) != (first.dtype, first.device):
            got = f"{name} of {p.dtype} on {p.device} and {first_name} of {first.dtype} on {first.device}"
            raise ValueError(f"expected one dtype and device, got {got}; call model.to(...)")
        seen[id(p)] = name
    others = [name for name, p in model.named_parameters(remove_duplicate=False) if name not in parameters]
    if others:
        raise ValueError(
            f"expected parameters of linear layers alone, got {', '.join(others)}; take them out of the model"
        )
