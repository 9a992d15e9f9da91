"""The secular equation as a picture: its pole, its root and the hard case, for two groups."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gnewton.cubic import Step, newton_step
from gnewton.plots import COLOURS, GREY, contours, new_figure
from gnewton.summary import Summary
from gnewton.teaching.widgets.figure_widget import FigureWidget, slider

Array = NDArray[np.float64]
LOWEST = (-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0)
ALONG = (0.0, 0.01, 0.1, 0.3, 1.0, 2.0)
STRENGTHS = (1.0, 1.5, 2.0, 3.0, 5.0, 8.0)
HIGHEST, ACROSS = 3.0, 1.0
REACH = 5.0
VIEW = (-5.0, 5.0, -3.5, 3.5)


class SecularExplorer(FigureWidget):
    """How long the cubic step is, and where: left the equation for sigma = lambda_int ||y|| / 2, right the model m(y).

    Two groups in invariant variables y = D eta, along the eigenvectors of K = D^-1 H-bar D^-1. ``lowest``: the lower
    curvature, the other is 3. ``along``: the gradient's component b along the lower one; across it is 1. ``strength``:
    lambda_int. Where the falling curve ||y(sigma)|| meets the straight line 2 sigma / lambda_int, to the right of the pole at
    sigma = -lowest, there is the minimum.

    >>> widget = SecularExplorer(lowest=-1.0, along=1.0, strength=2.0)
    >>> widget
    SecularExplorer: Lowest curvature -1, gradient 1 along it, strength 2: pole at sigma 1, root at 1.62; CONVERGED.
    >>> widget.along.value = 0.0; widget
    SecularExplorer: Lowest curvature -1, gradient 0 along it, strength 2: pole at sigma 1, root there too; HARD_CASE.
    """

    def __init__(self, lowest: float = -1.0, along: float = 1.0, strength: float = 2.0) -> None:
        self._contours: list[Any] = []
        self.lowest = slider("lowest curvature", LOWEST, lowest, lambda v: f"{v:g}")
        self.along = slider("gradient along it", ALONG, along, lambda v: f"{v:g}")
        self.strength = slider("cubic strength λ_int", STRENGTHS, strength, lambda v: f"{v:g}")
        self._prepare()
        super().__init__(self.figure, {"lowest": self.lowest, "along": self.along, "strength": self.strength})

    def step(self) -> Step:
        """The step of the present settings, D = I."""
        summary = Summary.from_tensors(
            gradient=[self.along.value, ACROSS], hessian=np.diag([self.lowest.value, HIGHEST]), third=[1.0, 1.0]
        )
        return newton_step(summary, cubic=self.strength.value)

    def draw(self) -> str:
        kappa, b = np.array([self.lowest.value, HIGHEST]), np.array([self.along.value, ACROSS])
        strength, pole = self.strength.value, 0.0 - self.lowest.value
        step, sigma = self.step(), np.linspace(0.0, REACH, 801)
        y = step.learning_rates.numpy()
        root = strength * step.radius / 2
        hard = step.status.name == "HARD_CASE"
        self._draw_equation(sigma, lengths(sigma, kappa, b), strength, max(pole, 0.0), root)
        self._draw_model(kappa, b, strength, y, hard)
        where = "root there too" if hard else f"root at {root:.3g}"
        pole_at = f"pole at sigma {pole:g}, " if pole >= 0 else "no pole, "
        return (
            f"Lowest curvature {self.lowest.value:g}, gradient {self.along.value:g} along it, strength {strength:g}: "
            f"{pole_at}{where}; {step.status.name}."
        )

    def _draw_equation(self, sigma: Array, length: Array, strength: float, pole: float, root: float) -> None:
        self._length.set_data(sigma, np.minimum(length, 10 * REACH))
        self._line.set_ydata(2 * sigma / strength)
        self._pole.set_xdata([pole, pole])
        self._forbidden.set_width(pole)
        self._root.set_data([root], [2 * root / strength])

    def _draw_model(self, kappa: Array, b: Array, strength: float, y: Array, hard: bool) -> None:
        right = self.figure.axes[1]
        for old in self._contours:
            old.remove()
        self._contours = [contours(right, lambda p, q: model(p, q, kappa, b, strength), VIEW)]
        least = max(0.0, -kappa[0])
        allowed = least + np.geomspace(1e-6, 1e3, 200)
        self._curve.set_data(*(b[:, None] / (kappa[:, None] + allowed)))
        # Mirrored along the lowest curvature, where the gradient has no part.
        minima = np.stack([y, y * [-1.0, 1.0]]) if hard else y[None]
        self._minima.set_data(*minima.T)

    def _prepare(self) -> None:
        self.figure = new_figure(columns=2, height=4.2)
        left, right = self.figure.axes
        (self._length,) = left.plot([], [], color=COLOURS[0], linewidth=2.2, label="length |y(σ)|")
        (self._line,) = left.plot(
            np.linspace(0, REACH, 801), np.zeros(801), color=COLOURS[1], linestyle="--", label="2σ / λ"
        )
        self._pole = left.axvline(0.0, color="black", linewidth=0.9, linestyle=":", label="pole")
        self._forbidden = left.axvspan(0.0, 1.0, color="#dddddd", zorder=0, label="not the global minimum")
        root: dict[str, Any] = {"marker": "o", "color": "black", "linestyle": "", "markersize": 8, "zorder": 5}
        (self._root,) = left.plot([], [], **root, label="root")
        left.set(xlim=(0, REACH), ylim=(0, 1.3 * REACH), xlabel="σ = λ |y| / 2", ylabel="length of the step")
        left.legend(fontsize=8, framealpha=0.9, loc="upper right", ncols=2)
        (self._curve,) = right.plot([], [], color=COLOURS[0], linewidth=1.8)
        (self._minima,) = right.plot([], [], **root)
        right.plot([0], [0], marker="+", color="black", markersize=9)
        right.set(xlim=VIEW[:2], ylim=VIEW[2:], aspect="equal", title="the model m(y), and y(σ) right of the pole")
        right.set(xlabel="y along the lowest curvature", ylabel="y across")
        right.axhline(0.0, color=GREY, linewidth=0.5)


def lengths(sigma: Array, kappa: Array, b: Array) -> Array:
    """|y(sigma)|, y_i = b_i / (kappa_i + sigma): (n,) -> (n,); infinite at a pole."""
    with np.errstate(divide="ignore"):
        y = [np.divide(bi, k + sigma, out=np.zeros_like(sigma), where=bi != 0) for bi, k in zip(b, kappa, strict=True)]
    return np.asarray(np.hypot(*y))


def model(p: Array, q: Array, kappa: Array, b: Array, strength: float) -> Array:
    """m(y) = -b.y + (kappa_1 p^2 + kappa_2 q^2) / 2 + strength |y|^3 / 6 at y = (p, q)."""
    return np.asarray(
        -b[0] * p - b[1] * q + (kappa[0] * p**2 + kappa[1] * q**2) / 2 + strength / 6 * np.hypot(p, q) ** 3
    )
