"""The saddle explorer: four ways to step on L = 1/2 (ab - 1)^2, each with a first step of the same length."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gnewton.cubic import newton_step
from gnewton.summary import Summary
from gnewton.teaching.scene import Axis, Mark, Panel, Scene, Shown, choice, slider
from gnewton.teaching.widgets.figure_widget import FigureWidget

Array = NDArray[np.float64]
Rule = Callable[[Array, Array], Array]
STEPS = 12
PLACES = tuple(float(x) for x in np.round(np.arange(-2.0, 2.01, 0.1), 1) + 0.0)
LENGTHS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0)
REMEDIES = ("gradient", "Newton, shortened", "trust region", "cubic term")
REACH = 2.4
REACHED = tuple(float(r) for r in np.geomspace(0.01, 3.0, 60))
FLOOR, FAR = 1e-6, 1e3


class SaddleExplorer(FigureWidget):
    """The path of one remedy over the level sets of L = 1/2 (ab - 1)^2, and the loss by step.

    L has its minima on ab = 1 and a saddle at (0, 0). The dotted line is where the first step ends, for all lengths. The
    metric is that of the parameters, D = I.

    Args:
        a, b: the start; it can be dragged in the picture.
        remedy: which rule steps, one of REMEDIES.
        length: how long its first step may be. The rate, fraction, radius or lambda_int that makes it so is kept.

    >>> widget = SaddleExplorer(a=0.8, b=-0.3, remedy="Newton, shortened", length=3.0)
    >>> widget
    SaddleExplorer: From (0.8, -0.3), Newton, shortened, first step at most 3 long: after 12 steps loss 0.5, at the saddle.
    >>> widget.remedy.value, widget.length.value = "cubic term", 1.0; widget
    SaddleExplorer: From (0.8, -0.3), cubic term, first step at most 1 long: after 12 steps loss 0, at a minimum.
    """

    def __init__(
        self, a: float = 0.8, b: float = -0.3, *, remedy: str = "Newton, shortened", length: float = 1.0
    ) -> None:
        controls = (
            slider("a", "start at a", PLACES, a, "{:g}".format),
            slider("b", "start at b", PLACES, b, "{:g}".format),
            choice("remedy", "remedy", REMEDIES, remedy),
            slider("length", "first step at most", LENGTHS, length, "{:g} long".format),
        )
        plane = Panel(Axis("a", (-REACH, REACH)), Axis("b", (-REACH, REACH)), equal=True)
        losses = Panel(Axis("step", (0, STEPS)), Axis("loss (axis ends at 10⁻⁶)", (FLOOR, 1e4), "log"))
        branch = np.linspace(1 / 2.6, 2.6, 60)
        wide = {"width": 5, "faint": 0.6, "dash": ""}
        marks = (
            Mark("contours", 0, "muted"),
            Mark("line", 0, 2, "minima", wide | {"fixed": {"x": branch, "y": 1 / branch}}),
            Mark("line", 0, 2, "", wide | {"fixed": {"x": -branch, "y": -1 / branch}}),
            Mark("points", 0, 1, "saddle", {"shape": "cross", "size": 6, "fixed": {"x": [0.0], "y": [0.0]}}),
            Mark("line", 0, "ink", "ends of first steps", {"dash": "2 3"}),
            Mark("line", 0, 0, "path", {"every": 1, "shape": "circle"}),
            Mark("points", 0, "ink", "", {"open": True, "shape": "circle", "size": 8}),
            Mark("rule", 1, "muted", "", {"axis": "y", "at": 0.5, "dash": "7 4"}),
            Mark("line", 1, 0, "", {"every": 1, "shape": "circle"}),
            Mark(
                "text",
                1,
                "muted",
                "",
                {"x": [STEPS - 0.2], "y": [1.1], "text": ["loss at the saddle"], "anchor": "end"},
            ),
        )
        given = {"steps": STEPS, "floor": FLOOR, "far": FAR, "reaches": REACHED}
        drag = {"panel": 0, "x": "a", "y": "b"}
        super().__init__(Scene(controls, (plane, losses), marks, "saddle", given, drag=drag))

    def numbers(self, *, a: float, b: float, remedy: str, length: float) -> Shown:
        start = np.array([a, b])
        points = path(start, rule(remedy, start, length))
        reached = np.stack([start, *(start - rule(remedy, start, r)(*derivatives(start)) for r in REACHED)])
        losses, away = height(*points.T), np.linalg.norm(points[-1])
        at = "at the saddle" if away < 1e-2 else "far away" if away > FAR else "still on its way"
        at = "at a minimum" if losses[-1] < 1e-6 else at
        end = losses[-1] if losses[-1] > 1e-12 else 0.0
        plane = [{"x": x, "y": y} for x, y in (reached.T, points.T, start[:, None])]
        curve = {"x": range(STEPS + 1), "y": np.maximum(losses, FLOOR)}
        said = f"From ({a:g}, {b:g}), {remedy}, first step at most {length:g} long: after {STEPS} steps loss {end:.2g}, {at}."
        return Shown([{"f": height}, {}, {}, {}, *plane, {}, curve, {}], said)


def height(a: Any, b: Any) -> Any:
    """L = 1/2 (ab - 1)^2."""
    return (a * b - 1) ** 2 / 2


def derivatives(point: Array) -> tuple[Array, Array]:
    """The gradient (2,) and the Hessian (2, 2) of L."""
    a, b = point
    mixed = 2 * a * b - 1
    return (a * b - 1) * np.array([b, a]), np.array([[b * b, mixed], [mixed, a * a]])


def rule(remedy: str, start: Array, length: float) -> Rule:
    """What the remedy takes off the parameters, (g, H) -> (2,), set so that its step from ``start`` is at most ``length`` long."""
    g, H = derivatives(start)
    if remedy == "gradient":
        rate = length / (np.linalg.norm(g) or 1.0)
        return lambda g, H: np.asarray(rate * g)
    if remedy == "Newton, shortened":
        part = min(1.0, length / (float(np.linalg.norm(newton(g, H))) or 1.0))
        return lambda g, H: part * newton(g, H)
    if remedy == "trust region":
        return lambda g, H: trust_region(g, H, length)[0]
    step, sigma = trust_region(g, H, length)
    strength = 2 * sigma / (float(np.linalg.norm(step)) or 1.0)
    return lambda g, H: cubic_step(g, H, strength)


def path(start: Array, taken: Rule) -> Array:
    """STEPS steps, (STEPS + 1, 2); a path that has left for good stands still, before its numbers overflow."""
    points = [start]
    for _ in range(STEPS):
        here = points[-1]
        points.append(here - taken(*derivatives(here)) if np.linalg.norm(here) < FAR else here)
    return np.stack(points)


def newton(g: Array, H: Array) -> Array:
    """H^-1 g, of least norm where H is singular."""
    return np.asarray(np.linalg.lstsq(H, g, rcond=None)[0])


def trust_region(g: Array, H: Array, radius: float) -> tuple[Array, float]:
    """The minimizer s (S,) of -g.s + s.Hs/2 over |s| <= radius, and its sigma >= 0 with (H + sigma I) s = g.

    >>> step, sigma = trust_region(np.array([1.0, 4.0]), np.array([[1.0, 6.0], [6.0, 16.0]]), radius=0.5)
    >>> round(float(np.linalg.norm(step)), 9), bool(sigma > 1.1)
    (0.5, True)
    """
    kappa, Q = np.linalg.eigh(H)
    b = Q.T @ g
    base = max(0.0, -float(kappa[0]))
    # Rounding leaves a little where the gradient is orthogonal to the lowest curvature.
    b[np.abs(b) < 1e-13 * np.linalg.norm(b)] = 0.0
    s = _over(b, kappa + base)
    if np.linalg.norm(s) > radius:
        base = _root(kappa, b, radius, base)
        s = _over(b, kappa + base)
    elif kappa[0] < 0:  # the hard case: along the lowest curvature the rest of the radius is free
        s[0] = np.copysign(math.sqrt(max(radius**2 - float(s @ s), 0.0)), Q[np.flatnonzero(Q[:, 0])[0], 0])
    return Q @ s, base


def _root(kappa: Array, b: Array, radius: float, low: float) -> float:
    """The sigma where |b / (kappa + sigma)| = radius, above ``low``, where it is larger."""
    high = low + float(np.linalg.norm(b)) / radius
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if np.linalg.norm(_over(b, kappa + middle)) > radius else (low, middle)
    return high


def _over(b: Array, kappa: Array) -> Array:
    """b / kappa: 0 where b is 0, infinite at a pole."""
    with np.errstate(divide="ignore"):
        return np.divide(b, kappa, out=np.zeros_like(b), where=b != 0)


def cubic_step(g: Array, H: Array, strength: float) -> Array:
    """The minimizer of -g.s + s.Hs/2 + strength |s|^3 / 6; at strength 0 the stationary point."""
    summary = Summary.from_tensors(gradient=g, hessian=H, third=np.ones(len(g)))
    step = newton_step(summary, strength, on_failure="report")
    return np.asarray(step.learning_rates.numpy())
