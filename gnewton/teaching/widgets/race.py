"""The race explorer: who leads, at which budget, counted in what, and whether the seeds agree."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import NullFormatter
from numpy.typing import NDArray

from gnewton.experiments.pictures import mean_curve
from gnewton.experiments.report import apart, spread
from gnewton.plots import GREY, new_figure, style
from gnewton.teaching.widgets.figure_widget import FigureWidget, choice, slider

Array = NDArray[np.float64]
Results = Mapping[str, Any]

AXES = ("steps", "seconds")
BUDGETS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
OURS = ("grouped-newton", "diagonal", "one-group", "adaptive")
BEYOND = 2.5  # medians: where the panel of the ranges ends


class RaceExplorer(FigureWidget):
    """The shipped races: curves with the range over the seeds, a budget, and the losses that it buys, seed by seed.

    races: name -> results, as ``gnewton.experiments.load`` gives them. ``network``: one of the names. ``unit``: what is
    counted, "steps" or "seconds" (processor time). ``shown``: "all" methods, "ours" or "others". ``budget``: the fraction of
    all the steps, or of the slowest method's time; who is done earlier waits at the last loss. The losses are means over
    mini-batches, as the curves are, not those of the whole training part, as in the tables. All races have the
    methods of the first. Raises ValueError without races.

    >>> from gnewton.experiments import load
    >>> RaceExplorer({"mlp": load("mlp")}, budget=1.0)
    RaceExplorer: mlp, 240 steps: ...
    """

    def __init__(
        self,
        races: Mapping[str, Results],
        network: str | None = None,
        unit: str = "steps",
        shown: str = "all",
        budget: float = 1.0,
    ) -> None:
        if not races:
            raise ValueError("expected at least one race, got none; write RaceExplorer({'mlp': load('mlp')})")
        self._races = dict(races)
        self.network = choice("network", self._races, network or next(iter(self._races)))
        self.unit = choice("count", AXES, unit)
        self.shown = choice("methods", ("all", "ours", "others"), shown)
        self.budget = slider("budget", BUDGETS, budget, lambda b: f"1/{1 / b:.0f}" if b < 1 else "all of it")
        self._prepare()
        controls = {"network": self.network, "unit": self.unit, "shown": self.shown, "budget": self.budget}
        super().__init__(self.figure, controls)

    def draw(self) -> str:
        race = self._races[self.network.value]
        seen = {name: one for name, one in race["methods"].items() if one["runs"] and self._is_shown(name)}
        end = self.budget.value * self._whole(race)
        bought = {name: losses_at(one["runs"], end, self.unit.value) for name, one in seen.items()}
        self._draw_curves(seen, end)
        self._draw_ranges(bought)
        spent = f"{end:.0f} steps" if self.unit.value == "steps" else f"{end:.2g} s"
        return f"{self.network.value}, {spent}: {ranking({seen[n]['title']: values for n, values in bought.items()})}"

    def _whole(self, race: Results) -> float:
        return float(race["protocol"]["steps"]) if self.unit.value == "steps" else slowest(race["methods"])

    def _is_shown(self, name: str) -> bool:
        return bool(self.shown.value == "all" or (name in OURS) == (self.shown.value == "ours"))

    def _draw_curves(self, seen: Mapping[str, Results], end: float) -> None:
        whole = {name: one for name, one in seen.items() if all(run["steps"] for run in one["runs"])}
        curves = {name: mean_curve(one["runs"]) for name, one in whole.items()}
        x = AXES.index(self.unit.value)
        for place, name in enumerate(self._rows):
            curve = curves.get(name, np.full((5, 1), np.nan))
            self._lines[place].set_data(curve[x], curve[2])
            self._bands[place].remove()
            look = {"color": style(place)["color"], "alpha": 0.15, "linewidth": 0}
            self._bands[place] = self._left.fill_between(curve[x], curve[3], curve[4], **look)
        self._mark.set_xdata([end, end])
        self._left.set_xlabel("step" if self.unit.value == "steps" else "processor time (s)")
        self._left.set_xlim(
            0.8 * min(c[x, 0] for c in curves.values()), 1.2 * max(end, *(c[x, -1] for c in curves.values()))
        )
        # The median: a method that explodes leaves the picture, and must not flatten the others.
        highest = float(np.median([c[2, 0] for c in curves.values()]))
        self._left.set_ylim(min(c[3].min() for c in curves.values()) / 1.5, 3 * highest)

    def _draw_ranges(self, bought: Mapping[str, Array]) -> None:
        # A run that is far away, or diverged, must not squeeze the others together.
        edge = BEYOND * float(np.median(np.concatenate(list(bought.values()))))
        edge = edge if math.isfinite(edge) else 1.0
        for row, name in enumerate(self._rows):
            values = np.minimum(bought.get(name, np.full(1, np.nan)), edge)
            self._bars[row].set_data([values.min(), values.max()], [row, row])
            self._seeds[row].set_data(values, np.full(len(values), row))
        self._edge.set_xdata([edge, edge])
        self._right.set_xlim(0, 1.04 * edge)

    def _prepare(self) -> None:
        self.figure = new_figure(columns=2, width=9.6, height=4.2)
        self._left, self._right = self.figure.axes
        methods = next(iter(self._races.values()))["methods"]
        self._rows, looks = list(methods), [style(place) for place in range(len(methods))]
        self._lines = [self._left.plot([], [], **look, linewidth=1.6)[0] for look in looks]
        self._bands = [self._left.fill_between([], [], []) for _ in looks]
        self._mark = self._left.axvline(1.0, color="black", linewidth=1.0)
        self._left.set(xscale="log", yscale="log", ylabel="loss of the mini-batches")
        self._left.xaxis.set_minor_formatter(NullFormatter())
        self._left.yaxis.set_minor_formatter(NullFormatter())
        self._bars = [self._right.plot([], [], color=look["color"], linewidth=4, alpha=0.35)[0] for look in looks]
        self._seeds = [self._right.plot([], [], "|", color=look["color"], markersize=13)[0] for look in looks]
        self._edge = self._right.axvline(1.0, color=GREY, linewidth=1.0, linestyle=":")
        self._right.set_yticks(range(len(methods)), [one["title"] for one in methods.values()])
        self._right.tick_params(axis="y", length=0, pad=36)
        for row, look in enumerate(looks):  # the curves are told apart by their dashes, in grey too
            place = self._right.get_yaxis_transform()
            self._right.plot([-0.13, -0.02], [row, row], **look, linewidth=1.6, transform=place, clip_on=False)
        self._right.set(ylim=(len(methods) - 0.5, -0.5))
        self._right.set_xlabel("loss by seed (dotted: beyond, or diverged)")


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
