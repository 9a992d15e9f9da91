"""The quadratic bowl: gradient descent, one group and one group per coordinate, side by side."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from gnewton.plots import level_sets, new_figure, training_curves
from gnewton.teaching.figure_widget import FigureWidget, slider

Array = NDArray[np.float64]
STEPS = 25


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
        self.condition = slider("condition number", [1, 2, 5, 10, 20, 50, 100], condition)
        self.angle = slider("turned by (degrees)", range(0, 181, 5), angle)
        self.start = slider("start at (degrees)", range(0, 361, 5), start)
        figure = new_figure(columns=2, height=4.4)
        super().__init__(figure, {"condition": self.condition, "angle": self.angle, "start": self.start})

    def draw(self) -> str:
        matrix = bowl(self.condition.value, np.deg2rad(self.angle.value))
        turn = np.deg2rad(self.start.value)
        paths = descents(matrix, 2 * np.array([np.cos(turn), np.sin(turn)]))
        left, right = self.figure.axes
        left.clear()
        right.clear()
        level_sets(lambda x, y: height(matrix, np.stack([x, y], -1)), paths, (-2.4, 2.4, -2.4, 2.4), ax=left)
        losses = {name: height(matrix, path) for name, path in paths.items()}
        floor = 1e-12
        training_curves(
            {n: (range(len(v)), np.maximum(v, floor)) for n, v in losses.items()}, right, ylabel="loss", scale="log"
        )
        right.set_ylim(floor / 2, 4 * self.condition.value)
        ends = ", ".join(f"{name} has loss {values[-1]:.1g}" for name, values in losses.items())
        return f"Condition number {self.condition.value}, turned by {self.angle.value} degrees: after {STEPS} steps {ends}."


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
