"""The figures of an experiment: loss by steps and by seconds, with the spread over the seeds as a band."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from gnewton import plots

Results = dict[str, Any]


def figure(numbers: Results) -> plots.Figure:
    """Training loss of one experiment against steps and against seconds, side by side."""
    drawn = plots.new_figure(columns=2, width=11.0, height=4.6)
    panels(drawn.axes, numbers)
    name_curves(drawn)
    return drawn


def name_curves(drawn: plots.Figure) -> None:
    """The legend of the first panel, below all of them."""
    lines, names = drawn.axes[0].get_legend_handles_labels()
    # In inches: a letter, and the piece of line before a name.
    columns = int(drawn.get_figwidth() / (0.075 * max(map(len, names)) + 0.6))
    drawn.legend(lines, names, loc="outside lower center", ncols=min(4, columns), frameon=False)


def panels(axes: Sequence[Axes], numbers: Results) -> None:
    """Draw into two Axes: means over the seeds, the band from the smallest to the largest."""
    methods = [
        method
        for method in numbers["methods"].values()
        if method["runs"] and all(run["steps"] for run in method["runs"])
    ]
    curves = {method["title"]: mean_curve(method["runs"]) for method in methods}
    for ax, unit, x in ((axes[0], "step", 0), (axes[1], "time (s)", 1)):
        plots.training_curves({name: (c[x], c[2]) for name, c in curves.items()}, ax, xlabel=unit, scale="log")
        for index, curve in enumerate(curves.values()):
            ax.fill_between(curve[x], curve[3], curve[4], color=plots.style(index)["color"], alpha=0.15, linewidth=0)
        ax.set_title(numbers["title"], fontsize=9)
        # One legend names the curves of both panels, below them, where it hides none.
        if legend := ax.get_legend():
            legend.remove()
        ax.set_ylim(*_range(list(curves.values())))


def mean_curve(runs: Sequence[Results]) -> NDArray[np.float64]:
    """(5, n): step, seconds, loss (means over the seeds), smallest and largest loss, as far as all seeds came."""
    n = min(len(run["steps"]) for run in runs)
    steps, seconds, losses = (np.array([run[key][:n] for run in runs], float) for key in ("steps", "seconds", "losses"))
    return np.stack([steps.mean(0), seconds.mean(0), losses.mean(0), losses.min(0), losses.max(0)])


def _range(curves: Sequence[NDArray[np.float64]]) -> tuple[float, float]:
    # A run that explodes leaves the picture; it must not flatten all others.
    start = max(float(curve[2][0]) for curve in curves)
    lowest = min(float(curve[3].min(where=curve[3] > 0, initial=start)) for curve in curves)
    return lowest / 1.5, 3 * start
