"""A network and its badly scaled twin: the same function in other units, trained by each method.

The twin stores the k-th layer divided by a number and multiplies by it on the way. Whoever asks the gradient alone for the
size of a step finds slopes that are too small or too large by the square of that number; with one learning rate per group
the units drop out of U eta*.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from gnewton import datasets, models, plots
from gnewton.experiments.methods import ADAPTIVE, UNTUNED, rmsprop
from gnewton.experiments.pictures import name_curves
from gnewton.experiments.runs import finite
from gnewton.optimizer import GroupedNewton
from gnewton.partition import Partition
from gnewton.training import fit

Losses = dict[str, dict[str, list[float | None]]]

SCALES = (1e-3, 1e3, 1e-3)
RATES = {"Adam": 0.01, "SGD, momentum 0.9": 0.1}


class Twin(nn.Module):
    """A perceptron whose k-th layer is stored divided by ``scales[k]``: the same function of its input, but for rounding.

    >>> plain, x = models.perceptron([3, 4, 2], dtype=torch.float64), torch.ones(5, 3, dtype=torch.float64)
    >>> before = plain(x)
    >>> torch.allclose(Twin(plain, [1e-3, 1e3])(x), before)
    True
    """

    def __init__(self, model: nn.Sequential, scales: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        linear = [layer for layer in model if isinstance(layer, nn.Linear)]
        self.scales = dict(zip(linear, scales, strict=True))
        with torch.no_grad():
            for layer, scale in self.scales.items():
                for p in layer.parameters():
                    p.div_(scale)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.model:
            # A linear layer times its scale is linear in weight and bias alike.
            x = layer(x) * (self.scales[layer] if isinstance(layer, nn.Linear) else 1.0)
        return x


def losses(epochs: int = 10) -> Losses:
    """For each method and each of "plain", "scaled": the mini-batch losses by step, float64, the 8 x 8 digits."""
    return {name: {kind: _train(name, kind, epochs) for kind in ("plain", "scaled")} for name in (_OURS, *RATES)}


_OURS = "GroupedNewton, one setting"


def _optimizer(name: str, model: nn.Module) -> torch.optim.Optimizer:
    if name == _OURS:
        # Next to the gradients of the twin 1e-8 is not small.
        return GroupedNewton(Partition.by_tensor(model), rmsprop(model, eps=1e-30), **(UNTUNED[0] | ADAPTIVE))
    build: Callable[..., torch.optim.Optimizer] = torch.optim.Adam if name == "Adam" else torch.optim.SGD
    options = {} if name == "Adam" else {"momentum": 0.9}
    return build(model.parameters(), lr=RATES[name], **options)


def _train(name: str, kind: str, epochs: int) -> list[float | None]:
    data = datasets.digits(dtype=torch.float64)
    plain = models.perceptron([64, 32, 32, 10], "tanh", generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = Twin(plain, SCALES if kind == "scaled" else [1.0] * len(SCALES))
    optimizer = _optimizer(name, model)
    loader, other = (data.batches(n, torch.Generator().manual_seed(n), drop_last=True) for n in (100, 300))
    curvature = other if name == _OURS else None
    history = fit(
        model, optimizer, loader, loss_fn=nn.CrossEntropyLoss(), epochs=epochs, curvature=curvature, progress=False
    )
    return [finite(float(f"{loss:.8g}")) for loss in history.losses]


def apart(one: Sequence[float | None], other: Sequence[float | None]) -> float:
    """The largest relative difference of two curves.

    >>> apart([1.0, 0.5], [1.0, 0.25])
    1.0
    """
    return max((abs(a - b) / abs(b) for a, b in zip(one, other, strict=True) if a is not None and b), default=0.0)


def figure(measured: Losses) -> plots.Figure:
    """One panel for each method: the network and its twin."""
    drawn = plots.new_figure(columns=len(measured), width=11.0, height=3.8)
    for ax, (name, curves) in zip(drawn.axes, measured.items(), strict=True):
        titles = {"plain": "the network", "scaled": "its badly scaled twin"}
        lines = {titles[kind]: (range(len(curve)), np.array(curve, float)) for kind, curve in curves.items()}
        plots.training_curves(lines, ax, xlabel="step", scale="log")
        ax.set(title=name, ylim=(0.002, 20))
        if legend := ax.get_legend():
            legend.remove()
    name_curves(drawn)
    return drawn
