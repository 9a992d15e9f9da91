"""The rates of a deep network, layer by layer: what depth and initialization do to them, at the start and after training."""

from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from gnewton.cubic import newton_step
from gnewton.datasets import Dataset
from gnewton.direction import gradient
from gnewton.models import perceptron
from gnewton.partition import Partition
from gnewton.plots import array
from gnewton.summary import summarize
from gnewton.teaching.scene import Axis, Mark, Panel, Scene, Shown, choice, slider
from gnewton.teaching.widgets.figure_widget import FigureWidget
from gnewton.training import fit

Array = NDArray[np.float64]

DEPTHS = (5, 10, 20)
GAINS = (0.7, 1.0, 1.5)
MOMENTS = ("at the start", "after training")
QUANTITIES = {
    "gradient": "length of the gradient |u_s|",
    "curvature": "curvature H_ss / |u_s|²",
    "own rate": "own rate g_s / H_ss",
    "η*": "rate in the step η*",
}
KINDS = ("weight", "bias")
SHAPES = ("circle", "square")
CLASSES = 10


class DeepRates(FigureWidget):
    """Four quantities by layer for tanh perceptrons of many depths and initializations, beside who interacts with whom.

    An open mark stands for a negative value, drawn at its size. The heat map is H-bar of the weights, scaled as in
    ``plots.long_range``. All is computed at construction, in float64.

    Args:
        data: rows of numbers with classes 0 to 9.
        depth: hidden layers, one of DEPTHS.
        gain: a weight is drawn with the standard deviation gain / sqrt fan_in; one of GAINS.
        moment: one of MOMENTS, before or after training.
        quantity: one of QUANTITIES; the step is that of lambda_int = 1.
        width: of every hidden layer.
        samples: so many of the training part give every summary, along their gradient, one group per tensor.
        epochs: of Adam.

    >>> import gnewton as gn
    >>> DeepRates(gn.datasets.digits(), depth=5, width=8, samples=50, epochs=1)
    DeepRates: 5 hidden layers, gain 1, at the start, η* of the weights: ...
    """

    def __init__(
        self,
        data: Dataset,
        *,
        depth: int = 20,
        gain: float = 1.0,
        moment: str = MOMENTS[0],
        quantity: str = "η*",
        width: int = 32,
        samples: int = 300,
        epochs: int = 3,
    ) -> None:
        data = data.to(dtype=torch.float64)
        self._layers = {
            (d, g, m): layers
            for d, g in product(DEPTHS, GAINS)
            for m, layers in measure(data, d, g, width, samples, epochs).items()
        }
        controls = (
            slider("depth", "hidden layers", DEPTHS, depth),
            slider("gain", "gain of the weights", GAINS, gain, "{:g}".format),
            choice("moment", "when", MOMENTS, moment),
            choice("quantity", "quantity", tuple(QUANTITIES), quantity),
        )
        left, right = Panel(Axis("layer"), Axis("", scale="log")), Panel(Axis(), Axis("layer"), height=260)
        points = [
            Mark("points", 0, i, kind if sign > 0 else f"{kind}, negative", {"shape": SHAPES[i], "open": sign < 0})
            for i, kind in enumerate(KINDS)
            for sign in (1, -1)
        ]
        super().__init__(Scene(controls, (left, right), (*points, Mark("heat", 1)), digits=4))

    def numbers(self, *, depth: int, gain: float, moment: str, quantity: str) -> Shown:
        layers = self._layers[depth, gain, moment]
        values = layers.quantities[quantity]
        points = []
        for kind in KINDS:
            for sign in (1, -1):
                there = np.flatnonzero(sign * values[kind] > 0)
                points.append({"x": there + 1, "y": np.abs(values[kind][there])})
        sizes = np.abs(np.concatenate(list(values.values())))
        sizes = sizes[sizes > 0]
        limits = (sizes.min() / 3, 3 * sizes.max())
        numbered = tuple(str(n) if n % 4 == 1 else "" for n in range(1, len(layers.interactions) + 1))
        left = {"x": {"limits": (0.3, depth + 1.7)}, "y": {"limits": limits, "label": QUANTITIES[quantity]}}
        right = {"x": {"names": numbered}, "y": {"names": numbered}, "title": "H̄ of the weights, diagonal of ±1"}
        scale = {"linear": 0.1, "high": max(1.0, float(np.abs(layers.interactions).max()))}
        said = self._sentence((depth, gain, moment, quantity), values["weight"])
        return Shown([*points, {"z": layers.interactions, "scale": scale}], said, {0: left, 1: right})

    def _sentence(self, chosen: tuple[int, float, str, str], weights: Array) -> str:
        depth, gain, moment, quantity = chosen
        below, size = int((weights < 0).sum()), np.abs(weights)
        return (
            f"{depth} hidden layers, gain {gain:g}, {moment}, {quantity} of the "
            f"weights: {below} of {len(weights)} negative, largest size {size.max() / size.min():.2g} times the smallest."
        )


@dataclass(frozen=True)
class Layers:
    """quantities: name -> {"weight" (L,), "bias" (L,)}; interactions (L, L): those of the weights."""

    quantities: dict[str, dict[str, Array]]
    interactions: Array


def measure(data: Dataset, depth: int, gain: float, width: int, samples: int, epochs: int) -> dict[str, Layers]:
    """What a network's layers are like at each of MOMENTS."""
    model = network(depth, gain, width, data.train_x.shape[1])
    moments = {MOMENTS[0]: layers_of(model, data, samples)}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    fit(model, optimizer, data.batches(100, torch.Generator().manual_seed(0)), epochs=epochs, progress=False)
    return moments | {MOMENTS[1]: layers_of(model, data, samples)}


def network(depth: int, gain: float, width: int, inputs: int) -> nn.Sequential:
    """A tanh perceptron whose weights come from N(0, gain^2 / fan_in)."""
    generator = torch.Generator().manual_seed(0)
    model = perceptron([inputs, *[width] * depth, CLASSES], "tanh", generator=generator, dtype=torch.float64)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("weight"):
                p.mul_(gain)
    return model


def layers_of(model: nn.Sequential, data: Dataset, samples: int) -> Layers:
    """The quantities and interactions of a network where it stands."""
    partition = Partition.by_tensor(model)

    def loss() -> torch.Tensor:
        return F.cross_entropy(model(data.train_x[:samples]), data.train_y[:samples])

    summary = summarize(loss, partition, gradient(loss, partition), order=3)
    g, H = array(summary.gradient), array(summary.hessian)
    own = H.diagonal()
    values = {
        "gradient": np.sqrt(g),
        "curvature": own / g,
        "own rate": g / own,
        "η*": array(newton_step(summary, cubic=1.0).learning_rates),
    }
    root = np.sqrt(np.abs(own[::2]))  # of the weights; the biases lie between
    return Layers(
        {name: {"weight": v[::2], "bias": v[1::2]} for name, v in values.items()}, H[::2, ::2] / root / root[:, None]
    )
