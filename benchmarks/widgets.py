"""How long a widget takes from a moved control to the new picture, for every widget as it stands in its notebook."""

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
ASKED = 200.0  # milliseconds, for 95 of 100 redraws
MOVES = 40


def widgets(plan: Plan) -> None:
    """Every control of every widget moved through its values, again and again; median and 95th percentile."""
    names = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
    results = [one for name in names[:: 6 if plan.quick else 1] for one in run("redraw", notebook=name)["widgets"]]
    header = ["notebook", "widget", "control", "moves", "median ms", "95th percentile ms", "met"]
    title = f"## Redraws: CPU time from a moved control to the new picture, one thread, at most {ASKED:.0f} ms asked"
    save(plan.folder, "widgets", f"{title}\n\n{table(header, [_row(one, plan) for one in results])}", results)


def _row(one: dict[str, Any], plan: Plan) -> list[Any]:
    middle, late = statistics.median(one["ms"]), percentile(one["ms"], 95)
    if late > ASKED:
        plan.failures.append(f"redraw: {one['notebook']}, {one['widget']}, {one['control']}")
    facts = [one["notebook"], one["widget"], one["control"], len(one["ms"])]
    return [*facts, f"{middle:.0f}", f"{late:.0f}", mark(late <= ASKED)]


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
        for control, taken in _moved(widget):
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


def _moved(widget: Any) -> Iterator[tuple[str, list[float]]]:
    for name, control in vars(widget).items():
        values = _values(control)
        if len(values) < 2:
            continue
        start = control.value
        times = [_milliseconds(widget, control, value) for value in _round(values)]
        control.value = start
        yield name, times


def _values(control: Any) -> list[Any]:
    """What a slider of choices, a list or a check box can be set to; nothing for what is no control of that kind."""
    if hasattr(control, "_options_full"):
        return [value for _, value in control._options_full]
    return [control.value, not control.value] if isinstance(getattr(control, "value", None), bool) else []


def _round(values: list[Any]) -> list[Any]:
    """To the end and back, each step another value, as often as it takes."""
    way = [*values[1:], *values[-2::-1]]
    return [way[i % len(way)] for i in range(MOVES)]


def _milliseconds(widget: Any, control: Any, value: Any) -> float:
    """Until the new picture is handed over; until all is done where the picture is the same."""
    handed: list[float] = []

    def note(_: Any) -> None:
        handed.append(time.process_time())

    widget._image.observe(note, names="value")
    start = time.process_time()
    control.value = value
    note(None)
    widget._image.unobserve(note, names="value")
    return 1000 * (handed[0] - start)
