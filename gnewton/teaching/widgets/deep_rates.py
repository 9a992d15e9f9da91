"""The rates of a deep network, layer by layer: what depth and initialization do to them, at the start and after training."""

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import nn

from gnewton.cubic import newton_step
from gnewton.datasets import Dataset
from gnewton.direction import gradient
from gnewton.models import perceptron
from gnewton.partition import Partition
from gnewton.plots import COLOURS, array, heat_map, mark_signs, new_figure, signed_log
from gnewton.summary import summarize
from gnewton.teaching.widgets.figure_widget import FigureWidget, choice, slider
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
CLASSES = 10


class DeepRates(FigureWidget):
    """Four quantities by layer for tanh perceptrons of many depths and initializations, beside who interacts with whom.

    data: rows of numbers with classes 0 to 9; ``width``: of every hidden layer; ``samples``: so many of the training part
    give every summary, along their gradient, one group per tensor. ``depth``: hidden layers, one of DEPTHS. ``gain``: a
    weight is drawn with the standard deviation gain / sqrt fan_in, one of GAINS. ``moment``: one of MOMENTS, before or after
    ``epochs`` of Adam. ``quantity``: one of QUANTITIES; the step is that of lambda_int = 1. An open mark stands for a
    negative value, drawn at its size. The heat map is H-bar of the weights, scaled as in ``plots.long_range``. All is
    computed at construction, in float64.

    >>> import gnewton as gn
    >>> DeepRates(gn.datasets.digits(), depth=5, width=8, samples=50, epochs=1)
    DeepRates: 5 hidden layers, gain 1, at the start, η* of the weights: ...
    """

    def __init__(
        self,
        data: Dataset,
        depth: int = 20,
        gain: float = 1.0,
        moment: str = MOMENTS[0],
        quantity: str = "η*",
        width: int = 32,
        samples: int = 300,
        epochs: int = 3,
    ) -> None:
        data = data.to(dtype=torch.float64)
        self._found = {
            (d, g, m): layers
            for d, g in product(DEPTHS, GAINS)
            for m, layers in measured(data, d, g, width, samples, epochs).items()
        }
        self.depth = slider("hidden layers", DEPTHS, depth)
        self.gain = slider("gain of the weights", GAINS, gain, lambda g: f"{g:g}")
        self.moment = choice("when", MOMENTS, moment)
        self.quantity = choice("quantity", QUANTITIES, quantity)
        self._signs: list[Any] = []
        self._prepare()
        controls = {"depth": self.depth, "gain": self.gain, "moment": self.moment, "quantity": self.quantity}
        super().__init__(self.figure, controls)

    def draw(self) -> str:
        layers = self._found[self.depth.value, self.gain.value, self.moment.value]
        values = layers.quantities[self.quantity.value]
        for line, kind, sign in self._lines:
            there = sign * values[kind] > 0
            line.set_data(np.flatnonzero(there) + 1, np.abs(values[kind][there]))
        sizes = np.abs(np.concatenate(list(values.values())))
        sizes = sizes[sizes > 0]
        self._left.set(ylabel=QUANTITIES[self.quantity.value], xlim=(0.3, self.depth.value + 1.7))
        self._left.set_ylim(sizes.min() / 3, 30 * sizes.max())  # room for the legend above
        self._draw_interactions(layers.interactions)
        return self._sentence(values["weight"])

    def _sentence(self, weights: Array) -> str:
        below, size = int((weights < 0).sum()), np.abs(weights)
        return (
            f"{self.depth.value} hidden layers, gain {self.gain.value:g}, {self.moment.value}, {self.quantity.value} of the "
            f"weights: {below} of {len(weights)} negative, largest size {size.max() / size.min():.2g} times the smallest."
        )

    def _draw_interactions(self, matrix: Array) -> None:
        n = len(matrix)
        for sign in self._signs:
            sign.remove()
        self._picture.set_data(matrix)
        self._picture.set_extent((-0.5, n - 0.5, n - 0.5, -0.5))
        self._right.set(xlim=(-0.5, n - 0.5), ylim=(n - 0.5, -0.5))
        self._signs = mark_signs(self._right, matrix, self._norm)

    def _prepare(self) -> None:
        self.figure = new_figure(columns=2, width=9.6, height=4.2)
        self._left, self._right = self.figure.axes
        self._lines = [self._mark(kind, sign) for kind in KINDS for sign in (1, -1)]
        self._left.set(yscale="log", xlabel="layer", ylabel=QUANTITIES["η*"])
        self._left.xaxis.set_major_locator(MaxNLocator(integer=True))
        self._left.legend(fontsize=8, ncols=2, loc="upper center")
        self._prepare_interactions(max(DEPTHS) + 1)
        # Laid out once, with room for the widest numbers: they must push no label out of the picture later.
        self._left.set_ylim(1e-12, 1.0)
        self.figure.draw_without_rendering()
        self.figure.set_layout_engine("none")

    def _mark(self, kind: str, sign: int) -> tuple[Any, str, int]:
        index = KINDS.index(kind)
        colour, name = COLOURS[index], kind if sign > 0 else f"{kind}, negative"
        (line,) = self._left.plot([], [], linestyle="", marker="os"[index], markersize=6, color=colour, label=name)
        line.set_markerfacecolor(colour if sign > 0 else "white")
        return line, kind, sign

    def _prepare_interactions(self, layers: int) -> None:
        self._norm = signed_log(np.ones(1), decades=1.0)
        heat_map(np.eye(layers), ax=self._right, norm=self._norm, label="H_st / sqrt |H_ss H_tt|")
        self._picture = self._right.get_images()[0]
        self._signs = list(self._right.get_lines())
        ticks = range(0, layers, 4)
        shown = [str(n + 1) for n in ticks]
        self._right.set_xticks(ticks, shown, rotation=0, ha="center", fontsize=9)
        self._right.set_yticks(ticks, shown, fontsize=9)
        self._right.set(xlabel="layer", ylabel="layer")


@dataclass(frozen=True)
class Layers:
    """quantities: name -> {"weight" (L,), "bias" (L,)}; interactions (L, L): those of the weights."""

    quantities: dict[str, dict[str, Array]]
    interactions: Array


def measured(data: Dataset, depth: int, gain: float, width: int, samples: int, epochs: int) -> dict[str, Layers]:
    """What a network's layers are like at each of MOMENTS."""
    model = network(depth, gain, width, data.train_x.shape[1])
    found = {MOMENTS[0]: layers_of(model, data, samples)}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    fit(model, optimizer, data.batches(100, torch.Generator().manual_seed(0)), epochs=epochs, progress=False)
    return found | {MOMENTS[1]: layers_of(model, data, samples)}


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
