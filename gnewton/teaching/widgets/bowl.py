"""The quadratic bowl: gradient descent, one group and one group per coordinate, side by side."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from gnewton.teaching.scene import Axis, Mark, Panel, Scene, Shown, slider
from gnewton.teaching.widgets.figure_widget import FigureWidget

Array = NDArray[np.float64]
STEPS = 25
CONDITIONS = (1, 2, 5, 10, 20, 50, 100)
REACH = 2.4
FLOOR, TOP = 1e-5, 400.0
NAMES = ("gradient descent", "S = 1 (Cauchy)", "S = 2 (Newton)")


class QuadraticBowl(FigureWidget):
    """L = 1/2 theta^T A theta in two dimensions, with three paths from one start, and the loss of each by step.

    Args:
        condition: the condition number of A, whose smaller eigenvalue is 1; one of CONDITIONS.
        angle: how far the bowl is turned, in degrees, in steps of 5.
        start: where on the circle of radius 2 the paths begin, in degrees; it can be dragged in the picture.

    >>> widget = QuadraticBowl(condition=20, angle=30)
    >>> widget.angle.value = 0
    >>> widget
    QuadraticBowl: Condition number 20, turned by 0°: after 25 steps gradient descent has loss ...
    """

    def __init__(self, condition: int = 20, angle: int = 30, start: int = 40) -> None:
        controls = (
            slider("condition", "condition number", CONDITIONS, condition),
            slider("angle", "bowl turned by", range(0, 181, 5), angle, "{}°".format),
            slider("start", "start at", range(0, 361, 5), start, "{}°".format),
        )
        plane = [Axis(f"{which} parameter", (-REACH, REACH)) for which in ("first", "second")]
        loss = Axis("loss (axis ends at 10⁻⁵)", (FLOOR, TOP), "log")
        panels = (Panel(plane[0], plane[1], equal=True), Panel(Axis("step", (0, STEPS)), loss))
        marks = (
            Mark("contours", look="muted"),
            *(Mark("line", 0, i, name, {"every": 1}) for i, name in enumerate(NAMES)),
            Mark("points", 0, "ink", "", {"open": True, "shape": "circle", "size": 8}),
            *(Mark("line", 1, i, name, {"every": 4}) for i, name in enumerate(NAMES)),
        )
        given = {"steps": STEPS, "floor": FLOOR, "names": NAMES}
        super().__init__(Scene(controls, panels, marks, "bowl", given, drag={"panel": 0, "angle": "start"}))

    def numbers(self, condition: int, angle: int, start: int) -> Shown:
        matrix, turn = bowl(condition, np.deg2rad(angle)), np.deg2rad(start)
        paths = descents(matrix, 2 * np.array([np.cos(turn), np.sin(turn)]))
        losses = {name: height(matrix, path) for name, path in paths.items()}
        planes = [{"x": path[:, 0], "y": path[:, 1]} for path in paths.values()]
        # What has left the picture below stays at its edge.
        curves = [{"x": range(STEPS + 1), "y": np.maximum(v, FLOOR)} for v in losses.values()]
        first = {"x": planes[0]["x"][:1], "y": planes[0]["y"][:1]}
        ends = ", ".join(f"{name} has loss {v[-1] if v[-1] > 1e-12 else 0:.1g}" for name, v in losses.items())
        said = f"Condition number {condition}, turned by {angle}°: after {STEPS} steps {ends}."
        return Shown([{"f": height_of(matrix)}, *planes, first, *curves], said)


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
    rules: tuple[Callable[[Array], Array], ...] = (
        lambda g: g / largest,
        lambda g: g * (g @ g) / (g @ matrix @ g) if g.any() else g,
        lambda g: np.asarray(np.linalg.solve(matrix, g), dtype=np.float64),
    )
    paths = {}
    for name, rule in zip(NAMES, rules, strict=True):
        points = [start]
        for _ in range(STEPS):
            points.append(points[-1] - rule(matrix @ points[-1]))
        paths[name] = np.stack(points)
    return paths
