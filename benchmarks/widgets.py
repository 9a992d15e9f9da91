"""How long Python takes from a moved control to the numbers that the browser draws, for every widget in its notebook."""

import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.plan import Plan
from benchmarks.process import ROOT, run
from benchmarks.report import mark, save, table

NOTEBOOKS = ROOT / "notebooks"
ASKED = 40.0  # milliseconds, for 95 of 100 moves
MOVES = 40
# Medians of the fastest and the slowest control when matplotlib drew every picture, by this section, on 28 November 2026.
BEFORE = 55, 159


def widgets(plan: Plan) -> None:
    """Every control of every widget moved through its values, again and again; median and 95th percentile."""
    names = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
    results = [one for name in names[:: 6 if plan.quick else 1] for one in run("redraw", notebook=name)["widgets"]]
    save(plan.folder, "widgets", report(results), results)
    late = [one for one in results if percentile(one["ms"], 95) > ASKED]
    plan.failures += [f"redraw: {one['notebook']}, {one['widget']}, {one['control']}" for one in late]


def report(results: list[dict[str, Any]]) -> str:
    """The words and the table of what was measured."""
    middles = [statistics.median(one["ms"]) for one in results]
    met = sum(percentile(one["ms"], 95) <= ASKED for one in results)
    words = (
        f"Medians of {min(middles):.1f} to {max(middles):.0f} ms; {met} of {len(results)} controls stay within {ASKED:.0f} ms for 95 of "
        f"100 moves. When matplotlib drew every picture in Python, the medians were {BEFORE[0]} to {BEFORE[1]} ms."
    )
    title = f"## Redraws: CPU time from a moved control to its numbers, one thread, at most {ASKED:.0f} ms asked"
    header = ["notebook", "widget", "control", "moves", "median ms", "95th percentile ms", "met"]
    return f"{title}\n\n{words}\n\n{table(header, [_row(one) for one in results])}"


def _row(one: dict[str, Any]) -> list[Any]:
    middle, late = statistics.median(one["ms"]), percentile(one["ms"], 95)
    facts = [one["notebook"], one["widget"], one["control"], len(one["ms"])]
    return [*facts, f"{middle:.1f}", f"{late:.1f}", mark(late <= ASKED)]


def percentile(values: list[float], percent: int) -> float:
    """The smallest value that so many of a hundred do not exceed.

    >>> percentile([float(v) for v in range(1, 101)], 95)
    95.0
    """
    ordered = sorted(values)
    return ordered[max(0, -(-percent * len(ordered) // 100) - 1)]


# -- in a process of its own ----------------------------------------------------------------------------------------


def redraw(notebook: str) -> dict[str, Any]:
    """Run a notebook's cells, then move the controls of the widgets that it made."""
    times: dict[tuple[str, str], list[float]] = {}
    for widget in _made(NOTEBOOKS / f"{notebook}.ipynb"):
        for control, taken in _time_controls(widget):
            times.setdefault((type(widget).__name__, control), []).extend(taken)
    return {"widgets": [{"notebook": notebook, "widget": w, "control": c, "ms": ms} for (w, c), ms in times.items()]}


def _made(path: Path) -> list[Any]:
    """The widgets that the cells of a notebook make. Raises what a cell raises."""
    import matplotlib
    import nbformat
    from IPython.core.interactiveshell import InteractiveShell

    from gnewton.teaching import FigureWidget

    matplotlib.use("Agg")
    made: list[Any] = []
    begin = FigureWidget.__init__

    def noted(self: Any, *arguments: Any, **named: Any) -> None:
        begin(self, *arguments, **named)
        made.append(self)

    shell = InteractiveShell()
    with patch.object(FigureWidget, "__init__", noted):
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "code":
                shell.run_cell(cell.source, silent=True).raise_error()
    return made


def _time_controls(widget: Any) -> Iterator[tuple[str, list[float]]]:
    for control in widget.scene.controls:
        handle = getattr(widget, control.name)
        start = handle.value
        times = [_milliseconds(handle, value) for value in _round(list(control.values))]
        handle.value = start
        yield control.name, times


def _round(values: list[Any]) -> list[Any]:
    """To the end and back, each step another value, as often as it takes."""
    way = [*values[1:], *values[-2::-1]]
    return [way[i % len(way)] for i in range(MOVES)]


def _milliseconds(handle: Any, value: Any) -> float:
    """Until the numbers are handed over; next to nothing where the browser computes them itself."""
    start = time.process_time()
    handle.value = value
    return 1000 * (time.process_time() - start)
