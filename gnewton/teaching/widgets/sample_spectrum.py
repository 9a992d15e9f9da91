"""The one-sample Hessian as a picture, its spectrum while the damping moves, and where the Newton direction points."""

import base64
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gnewton import exact
from gnewton.datasets import Dataset
from gnewton.models import perceptron
from gnewton.teaching.scene import Axis, Mark, Numbers, Panel, Scene, Shown, choice, slider
from gnewton.teaching.widgets.figure_widget import FigureWidget

Array = NDArray[np.float64]
SAMPLES = 6
STATES = ("at the start", "after one epoch")
HIDDEN = (6, 6)
DAMPINGS = tuple(float(f"{rho:.2g}") for rho in np.geomspace(0.01, 100, 25))
CURVES = (("Newton", 0), ("saddle-free, |H|", 2), ("last layer's share of Newton's", 1))
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

    Left, H, logarithmic colours. Middle, its m = n_L + 2N eigenvalues plus rho: triangles below zero. Right, by damping, the
    cosine of a direction with -g (1 is gradient descent, below 0 it ascends) and the last layer's part of Newton's.

    Args:
        data: digits of 8 x 8 pixels; they become 4 x 4.
        state: of the network, a perceptron with two hidden layers of six tanh units, at its start or after one epoch.
        sample: which digit.
        damping: rho.

    >>> import gnewton as gn
    >>> widget = SampleSpectrum(gn.datasets.digits())
    >>> widget.damping.value = 100.0; widget
    SampleSpectrum: Sample 0 at the start, loss 2.6; ρ = 100: 0 of 34 eigenvalues below zero. Newton's direction: cosine 1.00 with -g, ... of its squared length in the last layer.
    """

    def __init__(self, data: Dataset, *, state: str = STATES[0], sample: int = 0, damping: float = 0.1) -> None:
        self._x, self._y = small_digits(data)
        self._at = cache(self._point)  # a point takes a tenth of a second, and sliders come back
        self._networks = dict(zip(STATES, train(self._x, self._y), strict=True))
        controls = (
            choice("state", "network", STATES, state),
            slider("sample", "sample", range(SAMPLES), sample),
            slider("damping", "damping ρ", DAMPINGS, damping, "{:g}".format),
        )
        starts, size = self._at(STATES[0], 0).starts, len(self._at(STATES[0], 0).hessian)
        whole = Axis(limits=(0, size), ticks=(0, *starts[1:], size))
        downwards = Axis("row of H", limits=(size, 0), ticks=(0, *starts[1:], size))
        values = Axis("eigenvalue + ρ", (-300, 300), "symlog", 10 * EDGE)
        cosines = Panel(
            Axis("damping ρ", (DAMPINGS[0], DAMPINGS[-1]), "log"), Axis("cosine with −g, or share", (-1.05, 1.05))
        )
        panels = (
            Panel(Axis("column of H", limits=whole.limits, ticks=whole.ticks), downwards, "H, a line where a layer ends", height=200),
            Panel(Axis("index of the eigenvalue", (-1, 34)), values),
            cosines,
        )  # fmt: skip
        edges = (Mark("rule", 0, "ink", "", {"axis": axis, "at": at}) for at in starts[1:] for axis in ("x", "y"))
        curves = (Mark("line", 2, look, name) for name, look in CURVES)
        marks = (
            Mark("heat", options={"signs": False}),
            *edges,
            Mark("points", 1, 1, "eigenvalue below zero", {"shape": "down", "size": 3.4}),
            Mark("points", 1, 0, "above zero", {"shape": "circle", "open": True, "size": 3}),
            *curves,
            Mark("rule", 2, "muted", "", {"dash": "2 3"}),
        )
        super().__init__(Scene(controls, panels, marks, digits=3))

    def numbers(self, state: str, sample: int, damping: float) -> Shown:
        point = self._at(state, sample)
        shifted = point.eigenvalues + damping
        below, index = shifted < 0, np.arange(len(shifted))
        eigenvalues = [
            {"x": index[below], "y": np.minimum(shifted[below], -EDGE)},
            {"x": index[~below], "y": np.maximum(shifted[~below], EDGE)},
        ]
        curves = [{"x": DAMPINGS, "y": curve} for curve in (point.newton, point.saddle_free, point.last)]
        at = DAMPINGS.index(damping)
        edges: list[Numbers] = [{}] * (2 * len(point.starts[1:]))
        said = (
            f"Sample {sample} {state}, loss {point.loss:.2g}; ρ = {damping:g}: {below.sum()} of {len(shifted)} eigenvalues below zero. "
            f"Newton's direction: cosine {point.newton[at]:.2f} with -g, {point.last[at]:.0%} of its squared length in the last layer."
        )
        limits = {1: {"x": {"limits": (-1, len(shifted))}}}
        return Shown([{"shades": shades(point.hessian)}, *edges, *eigenvalues, *curves, {"at": damping}], said, limits)

    def _point(self, state: str, sample: int) -> Point:
        return examine(self._networks[state], self._x[sample], self._y[sample])


def shades(matrix: Array) -> dict[str, Any]:
    """A large symmetric matrix as bytes for a picture: of every 2 x 2 entries the one of largest size, on a logarithmic scale
    of three decades, from -127 to 127. The lower triangle, read by rows, in base 64."""
    n = len(matrix) + len(matrix) % 2
    padded = np.zeros((n, n))
    padded[: len(matrix), : len(matrix)] = matrix
    blocks = padded.reshape(n // 2, 2, n // 2, 2).transpose(0, 2, 1, 3).reshape(n // 2, n // 2, 4)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(-1)[..., None], -1)[..., 0]
    size = np.abs(largest) / (np.abs(largest).max() or 1.0)
    shade = np.where(size < 1e-3, size * 1e3, 1 + np.log10(np.maximum(size, 1e-3)) + 3) / 4
    levels = np.round(127 * np.sign(largest) * shade).astype(np.int8)
    return {"columns": n // 2, "data": base64.b64encode(levels[np.tril_indices(n // 2)].tobytes()).decode()}


def small_digits(data: Dataset) -> tuple[Tensor, Tensor]:
    """The training digits averaged over 2 x 2 pixels and centred, (n, 16) in float64, and their classes."""
    x = data.train_x.double().reshape(-1, 4, 2, 4, 2).mean((2, 4)).flatten(1)
    return 2 * (x - x.mean(0)), data.train_y


def train(x: Tensor, y: Tensor) -> tuple[nn.Sequential, nn.Sequential]:
    """The network at its start, and after one epoch of ``ExactNewton``, one sample a step."""
    start, later = (
        perceptron([16, *HIDDEN, 10], "tanh", generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        for _ in range(2)
    )
    optimizer = exact.ExactNewton(later)
    for batch in torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:, None]:
        optimizer.step(x[batch], y[batch])
    return start, later


def examine(network: nn.Sequential, x: Tensor, y: Tensor) -> Point:
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
    cosines: Array = (-direction.slope() / (both[0].norm(dim=1) * both[1].norm(dim=1))).numpy()
    return cosines
