"""The secular equation as a picture: its pole, its root and the hard case, for two groups."""

import numpy as np
from numpy.typing import NDArray

from gnewton.cubic import Step, newton_step
from gnewton.summary import Summary
from gnewton.teaching.scene import Axis, Mark, Numbers, Panel, Scene, Shown, slider
from gnewton.teaching.widgets.figure_widget import FigureWidget

Array = NDArray[np.float64]
LOWEST = (-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0)
ALONG = (0.0, 0.01, 0.1, 0.3, 1.0, 2.0)
STRENGTHS = (1.0, 1.5, 2.0, 3.0, 5.0, 8.0)
HIGHEST, ACROSS = 3.0, 1.0
REACH = 5.0
VIEW = (-5.0, 5.0, -3.5, 3.5)


class SecularExplorer(FigureWidget):
    """How long the cubic step is, and where: left the equation for sigma = lambda_int ||y|| / 2, right the model m(y).

    Two groups in invariant variables y = D eta, along the eigenvectors of K = D^-1 H-bar D^-1. The falling curve is
    ||y(sigma)||, the straight line 2 sigma / lambda_int. Right of the pole at sigma = -lowest they meet at the minimum.
    The straight line and the pole can be dragged.

    Args:
        lowest: the lower curvature; the other one is 3.
        along: the gradient's component b along it; across it is 1.
        strength: lambda_int.

    >>> widget = SecularExplorer(lowest=-1.0, along=1.0, strength=2.0)
    >>> widget
    SecularExplorer: Lowest curvature -1, gradient 1 along it, strength 2: pole at σ = 1, root at 1.62; CONVERGED.
    >>> widget.along.value = 0.0; widget
    SecularExplorer: Lowest curvature -1, gradient 0 along it, strength 2: pole at σ = 1, root there too; HARD_CASE.
    """

    def __init__(self, lowest: float = -1.0, along: float = 1.0, strength: float = 2.0) -> None:
        controls = (
            slider("lowest", "lowest curvature", LOWEST, lowest, "{:g}".format),
            slider("along", "gradient along it", ALONG, along, "{:g}".format),
            slider("strength", "cubic strength λ_int", STRENGTHS, strength, "{:g}".format),
        )
        equation = Panel(Axis("σ, added to the curvature", (0, REACH)), Axis("length of the step", (0, 1.3 * REACH)))
        plane = [
            Axis(label, view) for label, view in (("y along the lowest curvature", VIEW[:2]), ("y across it", VIEW[2:]))
        ]
        model = Panel(plane[0], plane[1], "the model m(y), and y(σ) right of the pole")
        dot = {"shape": "circle", "size": 5}
        marks = (
            Mark("span", 0, "muted", "not the global minimum"),
            Mark("rule", 0, "ink", "pole", {"dash": "2 3"}),
            Mark("line", 0, 0, "length |y(σ)|"),
            Mark("line", 0, 1, "2σ / λ_int"),
            Mark("points", 0, "ink", "root, minimum", dot),
            Mark("contours", 1, "muted"),
            Mark("line", 1, 0),
            Mark("points", 1, "ink", "", dot),
            Mark("points", 1, "ink", "", {"shape": "plus", "size": 5}),
        )
        given = {"highest": HIGHEST, "across": ACROSS, "reach": REACH}
        drag = {"panel": 0, "slope": "strength", "pole": "lowest"}
        super().__init__(Scene(controls, (equation, model), marks, "secular", given, drag=drag))

    def step(self) -> Step:
        """The step of the present settings, D = I."""
        return cubic_step(self.lowest.value, self.along.value, self.strength.value)

    def numbers(self, lowest: float, along: float, strength: float) -> Shown:
        kappa, b = np.array([lowest, HIGHEST]), np.array([along, ACROSS])
        step, sigma, pole = cubic_step(lowest, along, strength), np.linspace(0.0, REACH, 401), 0.0 - lowest
        y, root, hard = step.learning_rates.numpy(), strength * step.radius / 2, step.status.name == "HARD_CASE"
        allowed = max(0.0, -lowest) + np.geomspace(1e-6, 1e3, 200)
        curve = b[:, None] / (kappa[:, None] + allowed)
        # Mirrored along the lowest curvature, where the gradient has no part.
        minima = np.stack([y, y * [-1.0, 1.0]]) if hard else y[None]
        equation: list[Numbers] = [
            {"low": 0.0, "high": max(pole, 0.0)},
            {"at": max(pole, 0.0)},
            {"x": sigma, "y": np.minimum(lengths(sigma, kappa, b), 10 * REACH)},
            {"x": [0.0, REACH], "y": [0.0, 2 * REACH / strength]},
            {"x": [root], "y": [2 * root / strength]},
        ]
        plane = [{"x": x, "y": y} for x, y in (curve, minima.T)]
        surface = {"f": lambda p, q: model(p, q, kappa, b, strength)}
        where = "root there too" if hard else f"root at {root:.3g}"
        pole_at = f"pole at σ = {pole:g}, " if pole >= 0 else "no pole, "
        said = f"Lowest curvature {lowest:g}, gradient {along:g} along it, strength {strength:g}: {pole_at}{where}; "
        return Shown([*equation, surface, *plane, {"x": [0.0], "y": [0.0]}], said + f"{step.status.name}.")


def cubic_step(lowest: float, along: float, strength: float) -> Step:
    """The step of these settings, D = I."""
    hessian = np.diag([lowest, HIGHEST])
    return newton_step(
        Summary.from_tensors(gradient=[along, ACROSS], hessian=hessian, third=[1.0, 1.0]), cubic=strength
    )


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
