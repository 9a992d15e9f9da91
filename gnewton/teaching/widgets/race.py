"""The race explorer: who leads, at which budget, counted in what, and whether the seeds agree."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gnewton.experiments.pictures import mean_curve
from gnewton.experiments.report import apart, spread
from gnewton.teaching.scene import Axis, Mark, Panel, Scene, Shown, choice, slider
from gnewton.teaching.widgets.figure_widget import FigureWidget

Array = NDArray[np.float64]
Results = Mapping[str, Any]

AXES = ("steps", "seconds")
BUDGETS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
OURS = ("grouped-newton", "diagonal", "one-group", "adaptive")
SHAPES = ("circle", "square", "triangle", "diamond", "down", "cross", "plus", "bar")
FEW = 4  # curves that may have a band
BEYOND = 2.5  # medians: where the panel of the ranges ends


class RaceExplorer(FigureWidget):
    """The shipped races: curves with the range over the seeds, a budget, and the losses that it buys, seed by seed.

    The losses are means over mini-batches, as the curves are, not those of the whole training part, as in the tables. All
    races have the methods of the first.

    Args:
        races: name -> results, as ``gnewton.experiments.load`` gives them.
        network: one of the names, the first by default.
        unit: what is counted, "steps" or "seconds" (processor time).
        shown: "all" methods, "ours" or "others".
        budget: the fraction of all the steps, or of the slowest method's time; who is done earlier waits at the last loss.

    Raises ValueError without races.

    >>> from gnewton.experiments import load
    >>> RaceExplorer({"mlp": load("mlp")}, budget=1.0)
    RaceExplorer: mlp, 240 steps: ...
    """

    def __init__(
        self,
        races: Mapping[str, Results],
        *,
        network: str | None = None,
        unit: str = "steps",
        shown: str = "all",
        budget: float = 1.0,
    ) -> None:
        if not races:
            raise ValueError("expected at least one race, got none; write RaceExplorer({'mlp': load('mlp')})")
        self._races = dict(races)
        controls = (
            choice("network", "network", tuple(self._races), network or next(iter(self._races))),
            choice("unit", "count", AXES, unit),
            choice("shown", "methods", ("all", "ours", "others"), shown),
            slider("budget", "budget", BUDGETS, budget, lambda b: f"1/{1 / b:.0f}" if b < 1 else "all of it"),
        )
        methods = next(iter(self._races.values()))["methods"]
        self._rows = tuple(methods)
        titles = tuple(one["title"] for one in methods.values())
        super().__init__(Scene(controls, *_picture(titles), digits=3, stacked=True))

    def numbers(self, *, network: str, unit: str, shown: str, budget: float) -> Shown:
        race = self._races[network]
        seen = {name: one for name, one in race["methods"].items() if one["runs"] and is_shown(name, shown)}
        end = budget * (float(race["protocol"]["steps"]) if unit == "steps" else slowest(race["methods"]))
        bought = {name: losses_at(one["runs"], end, unit) for name, one in seen.items()}
        whole = {name: one for name, one in seen.items() if all(run["steps"] for run in one["runs"])}
        curves = {name: mean_curve(one["runs"]) for name, one in whole.items()}
        # A run that is far away, or diverged, must not squeeze the others together.
        edge = BEYOND * float(np.median(np.concatenate(list(bought.values()))))
        edge = edge if math.isfinite(edge) else 1.0
        spent = f"{end:.0f} steps" if unit == "steps" else f"{end:.2g} s"
        said = f"{network}, {spent}: {ranking({seen[n]['title']: values for n, values in bought.items()})}"
        left, right = self._curves(curves, unit), self._ranges(bought, edge)
        limits = {0: limits_of(curves, unit, end), 1: {"x": {"limits": (0.0, 1.04 * edge)}}}
        return Shown([*left, {"at": end}, *right, {"at": edge}], said, limits)

    def _curves(self, curves: Mapping[str, Array], unit: str) -> list[dict[str, Any]]:
        """The bands over the seeds, then the means; nothing for a method that is not shown."""
        x = AXES.index(unit)
        every = [curves.get(name, np.zeros((5, 0))) for name in self._rows]
        # Eight bands on top of each other could not be told apart.
        spread = [c if len(curves) <= FEW else np.zeros((5, 0)) for c in every]
        return [{"x": c[x], "low": c[3], "high": c[4]} for c in spread] + [{"x": c[x], "y": c[2]} for c in every]

    def _ranges(self, bought: Mapping[str, Array], edge: float) -> list[dict[str, Any]]:
        """A line from the best to the worst seed, then a mark for each seed."""
        losses = [np.minimum(bought.get(name, np.zeros(0)), edge) for name in self._rows]
        spans = [
            {"x": [v.min(), v.max()] if len(v) else [], "y": [i, i] if len(v) else []} for i, v in enumerate(losses)
        ]
        return spans + [{"x": v, "y": [i] * len(v)} for i, v in enumerate(losses)]


def _picture(titles: tuple[str, ...]) -> tuple[tuple[Panel, ...], tuple[Mark, ...]]:
    """The loss of every method over the steps or the seconds, and what each of its seeds reached."""
    panels = (
        Panel(Axis(scale="log"), Axis("loss of the mini-batches", scale="log")),
        Panel(Axis("loss of each seed (dotted: this or more)"), Axis(names=titles)),
    )
    places = range(len(titles))
    marks = (
        *(Mark("band", 0, i) for i in places),
        *(Mark("line", 0, i, title, {"every": 6, "shape": SHAPES[i], "end": True}) for i, title in enumerate(titles)),
        Mark("rule", 0, "ink"),
        *(Mark("line", 1, i, "", {"width": 5, "faint": 0.4, "dash": ""}) for i in places),
        *(Mark("points", 1, i, "", {"shape": SHAPES[i], "size": 4}) for i in places),
        Mark("rule", 1, "muted", "", {"dash": "2 3"}),
    )
    return panels, marks


def is_shown(name: str, shown: str) -> bool:
    """Whether a method belongs to "all", "ours" or "others"."""
    return bool(shown == "all" or (name in OURS) == (shown == "ours"))


def limits_of(curves: Mapping[str, Array], unit: str, end: float) -> dict[str, Any]:
    """Axes that hold all curves; a method that explodes leaves the picture, and must not flatten the others."""
    x = AXES.index(unit)
    across = 0.8 * min(c[x, 0] for c in curves.values()), 1.2 * max(end, *(c[x, -1] for c in curves.values()))
    up = min(c[3].min() for c in curves.values()) / 1.5, 3 * float(np.median([c[2, 0] for c in curves.values()]))
    label = "step" if unit == "steps" else "processor time (s)"
    return {"x": {"limits": across, "label": label}, "y": {"limits": up}}


def slowest(methods: Mapping[str, Results]) -> float:
    """The mean seconds of the method that takes longest for its steps."""
    times = [[run["seconds"][-1] for run in one["runs"] if run["seconds"]] for one in methods.values()]
    return max(float(np.mean(one)) for one in times if one)


def losses_at(runs: Sequence[Results], end: float, unit: str) -> Array:
    """The loss of each run when ``end`` steps or seconds are spent (n,); infinite where it had diverged by then.

    >>> runs = [{"steps": [10, 20], "losses": [1.0, 0.5], "diverged": False}, {"steps": [10], "losses": [1.0], "diverged": True}]
    >>> losses_at(runs, 15, "steps")
    array([0.75,  inf])
    """
    return np.array([_loss_at(run, end, unit) for run in runs])


def _loss_at(run: Results, end: float, unit: str) -> float:
    if not run[unit] or (run["diverged"] and end > run[unit][-1]):
        return math.inf
    return float(np.interp(end, run[unit], run["losses"]))


def ranking(bought: Mapping[str, Array]) -> str:
    """Who leads, and with whose range over the seeds the leader's overlaps.

    >>> ranking({"A": np.array([0.2, 0.3]), "B": np.array([0.1, 0.1]), "C": np.array([0.1, 0.4])})
    'B leads with 0.1 (0.1 to 0.1); its range touches that of C.'
    """
    first, *others = sorted(bought, key=lambda title: float(bought[title].mean()))
    if not np.isfinite(bought[first]).all():
        return "every method diverged from some seed."
    near = [title for title in others if not apart(bought[first], bought[title])]
    touched = f"its range touches that of {'; '.join(near)}" if near else "its range touches no other"
    return f"{first} leads with {spread(bought[first])}; {touched}."
