"""The quadratic bowl: gradient descent, one group and one group per coordinate, side by side."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gnewton.plots import Figure, contours, level_sets, new_figure, training_curves
from gnewton.teaching.widgets.figure_widget import FigureWidget, slider

Array = NDArray[np.float64]
STEPS = 25
CONDITIONS = (1, 2, 5, 10, 20, 50, 100)
VIEW = (-2.4, 2.4, -2.4, 2.4)
FLOOR = 1e-12


class QuadraticBowl(FigureWidget):
    """L = 1/2 theta^T A theta in two dimensions, with three paths from one start, and the loss of each by step.

    ``condition``: the condition number of A, whose smaller eigenvalue is 1. ``angle``: how far the bowl is turned, in
    degrees. ``start``: where on the circle of radius 2 the paths begin, in degrees.

    >>> widget = QuadraticBowl(condition=20, angle=30)
    >>> widget.angle.value = 0
    >>> widget
    QuadraticBowl: Condition number 20, turned by 0 degrees: after 25 steps gradient descent has loss ...
    """

    def __init__(self, condition: int = 20, angle: int = 30, start: int = 35) -> None:
        self.condition = slider("condition number", CONDITIONS, condition)
        self.angle = slider("turned by (degrees)", range(0, 181, 5), angle)
        self.start = slider("start at (degrees)", range(0, 361, 5), start)
        figure = new_figure(columns=2, height=4.4)
        self._left, self._right = figure.axes
        self._prepare(figure)
        super().__init__(figure, {"condition": self.condition, "angle": self.angle, "start": self.start})

    def _prepare(self, figure: Figure) -> None:
        """Draw everything once and keep the artists that ``draw`` moves."""
        matrix, paths = self._descents()
        level_sets(height_of(matrix), paths, extent=VIEW, ax=self._left)
        self._contours: Any = self._left.collections[0]
        self._lines = {line.get_label(): line for line in self._left.get_lines() if line.get_label() in paths}
        self._rings = [line for line in self._left.get_lines() if line.get_label() not in paths]
        flat = {name: (range(STEPS + 1), np.ones(STEPS + 1)) for name in paths}
        training_curves(flat, self._right, ylabel=f"loss (not below {FLOOR:.0e})", scale="log")
        self._curves = {line.get_label(): line for line in self._right.get_lines()}
        self._right.set_ylim(FLOOR / 3, 4 * max(CONDITIONS))
        # One legend beside both panels: over them it would hide a path in some state or other.
        for legend in filter(None, (ax.get_legend() for ax in figure.axes)):
            legend.remove()
        figure.legend(handles=list(self._curves.values()), loc="outside upper center", ncols=3, frameon=False)

    def draw(self) -> str:
        matrix, paths = self._descents()
        losses = {name: height(matrix, path) for name, path in paths.items()}
        self._contours.remove()
        self._contours = contours(self._left, height_of(matrix), VIEW)
        for name, path in paths.items():
            self._lines[name].set_data(*path.T)
            self._curves[name].set_ydata(np.maximum(losses[name], FLOOR))
        for ring in self._rings:
            ring.set_data(*next(iter(paths.values()))[:1].T)
        # Below the floor only rounding is left, which differs between processors.
        ends = ", ".join(f"{name} has loss {v[-1] if v[-1] > FLOOR else 0:.1g}" for name, v in losses.items())
        return f"Condition number {self.condition.value}, turned by {self.angle.value} degrees: after {STEPS} steps {ends}."

    def _descents(self) -> tuple[Array, dict[str, Array]]:
        matrix = bowl(self.condition.value, np.deg2rad(self.angle.value))
        turn = np.deg2rad(self.start.value)
        return matrix, descents(matrix, 2 * np.array([np.cos(turn), np.sin(turn)]))


def height_of(matrix: Array) -> Callable[[Array, Array], Array]:
    """The bowl as a function of x and y."""
    return lambda x, y: height(matrix, np.stack([x, y], axis=-1))


def bowl(condition: float, angle: float) -> Array:
    """A (2, 2) with eigenvalues 1 and ``condition``, its axes turned by ``angle`` radians."""
    c, s = np.cos(angle), np.sin(angle)
    q = np.array([[c, -s], [s, c]])
    return np.asarray(q @ np.diag([1.0, condition]) @ q.T)


def height(matrix: Array, theta: Array) -> Array:
    """1/2 theta^T A theta at the points theta (..., 2)."""
    return np.asarray(0.5 * np.einsum("...i,ij,...j->...", theta, matrix, theta))


def descents(matrix: Array, start: Array) -> dict[str, Array]:
    """The three paths (STEPS + 1, 2): gradient descent at rate 1 / largest eigenvalue, S = 1 and S = 2."""
    largest = np.linalg.eigvalsh(matrix)[-1]
    rules: dict[str, Callable[[Array], Array]] = {
        "gradient descent": lambda g: g / largest,
        "S = 1 (Cauchy)": lambda g: g * (g @ g) / (g @ matrix @ g) if g.any() else g,
        "S = 2 (Newton)": lambda g: np.asarray(np.linalg.solve(matrix, g), dtype=np.float64),
    }
    paths = {}
    for name, rule in rules.items():
        points = [start]
        for _ in range(STEPS):
            points.append(points[-1] - rule(matrix @ points[-1]))
        paths[name] = np.stack(points)
    return paths
