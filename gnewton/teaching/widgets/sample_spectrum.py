"""The one-sample Hessian as a picture, its spectrum while the damping moves, and where the Newton direction points."""

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gnewton import exact
from gnewton.datasets import Dataset
from gnewton.models import perceptron
from gnewton.plots import COLOURS, GREY, new_figure, signed_log
from gnewton.teaching.widgets.figure_widget import FigureWidget, choice, slider

Array = NDArray[np.float64]
SAMPLES = 6
STATES = ("at the start", "after one epoch")
HIDDEN = (6, 6)
DAMPINGS = tuple(float(f"{rho:.2g}") for rho in np.geomspace(0.01, 100, 25))
EDGE = 1e-3  # an eigenvalue nearer to zero than this lies on the axis of the picture


class Point(NamedTuple):
    """One sample at one state of the network: its loss, H (P, P), its eigenvalues (m,) that need not be zero, where layers begin;
    and for every damping the cosines with -g of Newton's and of the saddle-free direction, and the last layer's share of Newton's."""

    loss: float
    hessian: Array
    eigenvalues: Array
    starts: list[int]
    newton: Array
    saddle_free: Array
    last: Array


class SampleSpectrum(FigureWidget):
    """One sample's Hessian H block by block, the eigenvalues of H + rho, and two directions as rho grows.

    ``state``: of the network, a perceptron with two hidden layers of six tanh units on digits of 4 x 4 pixels. ``sample``: which
    digit. ``damping``: rho. Left, H, logarithmic colours. Middle, its m = n_L + 2N eigenvalues plus rho: triangles below zero. Right, by
    damping, the cosine of a direction with -g (1 is gradient descent, below 0 it ascends) and the last layer's part of Newton's.

    >>> import gnewton as gn
    >>> widget = SampleSpectrum(gn.datasets.digits())
    >>> widget.damping.value = 100.0; widget
    SampleSpectrum: Sample 0 at the start, loss 2.6; rho = 100: 0 of 34 eigenvalues below zero. Newton's direction: cosine 1.00 with -g, ... of its square in the last layer.
    """

    def __init__(self, data: Dataset, state: str = STATES[0], sample: int = 0, damping: float = 0.1) -> None:
        self._x, self._y = small_digits(data)
        self._at = cache(self._point)  # a point takes a tenth of a second, and sliders come back
        self._networks = dict(zip(STATES, trained(self._x, self._y), strict=True))
        self.state = choice("network", STATES, state)
        self.sample = slider("sample", range(SAMPLES), sample)
        self.damping = slider("damping ρ", DAMPINGS, damping, lambda rho: f"{rho:g}")
        self._prepare()
        super().__init__(self.figure, {"state": self.state, "sample": self.sample, "damping": self.damping})

    def draw(self) -> str:
        point, rho = self._at(self.state.value, self.sample.value), self.damping.value
        shifted = point.eigenvalues + rho
        below, index = shifted < 0, np.arange(len(shifted))
        self._blocks.set_data(point.hessian)
        self._blocks.set_norm(signed_log(point.hessian))
        self._below.set_data(index[below], np.minimum(shifted[below], -EDGE))
        self._above.set_data(index[~below], np.maximum(shifted[~below], EDGE))
        for line, curve in zip(self._curves, (point.newton, point.saddle_free, point.last), strict=True):
            line.set_ydata(curve)
        self._here.set_xdata([rho, rho])
        at = DAMPINGS.index(rho)
        return (
            f"Sample {self.sample.value} {self.state.value}, loss {point.loss:.2g}; rho = {rho:g}: {below.sum()} of {len(shifted)} eigenvalues below zero. "
            f"Newton's direction: cosine {point.newton[at]:.2f} with -g, {point.last[at]:.0%} of its square in the last layer."
        )

    def _point(self, state: str, sample: int) -> Point:
        return examined(self._networks[state], self._x[sample], self._y[sample])

    def _prepare(self) -> None:
        self.figure = new_figure(columns=3, width=11.0, height=3.9)
        left, middle, right = self.figure.axes
        point = self._at(STATES[0], 0)
        self._blocks = left.imshow(point.hessian, cmap="RdBu_r", interpolation="nearest")
        edges = [*point.starts[1:], len(point.hessian)]
        for edge in point.starts[1:]:
            left.axhline(edge - 0.5, color="black", linewidth=0.8)
            left.axvline(edge - 0.5, color="black", linewidth=0.8)
        centres = [(a + b) / 2 for a, b in zip(point.starts, edges, strict=True)]
        names = [f"layer {i + 1}" for i in range(len(centres))]
        left.set_xticks(centres, names)
        left.set_yticks(centres, names, rotation=90, va="center")
        left.set_title("H, layer by layer")
        look: dict[str, Any] = {"linestyle": "", "markersize": 5}
        (self._below,) = middle.plot([], [], marker="v", color=COLOURS[1], label="below zero", **look)
        (self._above,) = middle.plot([], [], marker="o", color=COLOURS[0], fillstyle="none", label="above zero", **look)
        middle.axhline(0, color=GREY, linewidth=0.8)
        middle.set_yscale("symlog", linthresh=10 * EDGE, linscale=0.5)
        middle.set(xlim=(-1, len(point.eigenvalues)), ylim=(-300, 300), xlabel="index", title="eigenvalues of H + ρ")
        middle.minorticks_off()
        middle.legend(loc="upper left", fontsize=8)
        styles = (("Newton", "-", 0), ("saddle-free, |H|", "--", 2), ("last layer's share of Newton's", ":", 4))
        self._curves = [
            right.plot(DAMPINGS, np.zeros(len(DAMPINGS)), line, color=COLOURS[colour], label=name)[0]
            for name, line, colour in styles
        ]
        self._here = right.axvline(1.0, color=GREY, linewidth=1.0)
        right.axhline(0, color=GREY, linewidth=0.8)
        right.set(xscale="log", ylim=(-1.05, 1.05), xlabel="damping ρ", title="cosine with -g")
        right.minorticks_off()
        right.legend(loc="lower right", fontsize=8)


def small_digits(data: Dataset) -> tuple[Tensor, Tensor]:
    """The training digits averaged over 2 x 2 pixels and centred, (n, 16) in float64, and their classes."""
    x = data.train_x.double().reshape(-1, 4, 2, 4, 2).mean((2, 4)).flatten(1)
    return 2 * (x - x.mean(0)), data.train_y


def trained(x: Tensor, y: Tensor) -> tuple[nn.Sequential, nn.Sequential]:
    """The network at its start, and after one epoch of ``ExactNewton``, one sample a step."""
    start, later = (
        perceptron([16, *HIDDEN, 10], "tanh", generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        for _ in range(2)
    )
    optimizer = exact.ExactNewton(later)
    for batch in torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:, None]:
        optimizer.step(x[batch], y[batch])
    return start, later


def examined(network: nn.Sequential, x: Tensor, y: Tensor) -> Point:
    """What is drawn of one sample x (16,) of class y ()."""
    passes = exact.forward_backward(network, x[None], y[None])
    # As many copies of the sample as there are dampings: one sweep for all of them.
    copies = exact.forward_backward(network, x.expand(len(DAMPINGS), -1), y.expand(len(DAMPINGS)))
    rho = torch.tensor(DAMPINGS, dtype=torch.float64)
    newton, saddle_free = exact.newton_direction(copies, rho), exact.saddle_free_direction(copies, rho)
    squares = {name: part.flatten(1).square().sum(1) for name, part in newton.per_sample().items()}
    *_, last_weight, last_bias = squares.values()
    sizes = [layer.weight.numel() + layer.bias.numel() for layer in network if isinstance(layer, nn.Linear)]
    return Point(
        float(passes.values),
        exact.hessian.dense(passes)[0].numpy(),
        exact.spectrum.eigenvalues(passes)[0].numpy(),
        [0, *np.cumsum(sizes)[:-1].tolist()],
        cosine(copies, newton),
        cosine(copies, saddle_free),
        ((last_weight + last_bias) / sum(squares.values())).numpy(),
    )


def cosine(passes: exact.Passes, direction: exact.SampleDirections) -> Array:
    """The cosine between each sample's direction and its own -g, (B,): above 0 it descends."""
    both = [torch.cat([p.flatten(1) for p in d.values()], 1) for d in (direction.per_sample(), passes.gradient())]
    found: Array = (-direction.slope() / (both[0].norm(dim=1) * both[1].norm(dim=1))).numpy()
    return found
