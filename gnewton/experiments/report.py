"""What becomes of the numbers: a small JSON file, a table and a verdict in words."""

import json
import math
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Results = dict[str, Any]
Values = NDArray[np.float64]

_POINTS = 40


def results(compared: Results, command: str) -> Results:
    """The numbers of ``protocol.compare`` as they are shipped: curves thinned, and what they were measured with."""
    steps = compared["protocol"]["steps"]
    methods = {
        name: method | {"runs": [thin(run, steps) for run in method["runs"]]}
        for name, method in compared["methods"].items()
    }
    return facts(command) | compared | {"methods": methods}


def facts(command: str) -> Results:
    """Command, date, versions and machine; no path, no host name."""
    return {"command": command, "date": datetime.now(UTC).date().isoformat()} | circumstances()


def circumstances() -> Results:
    """Versions and machine: with others of them the same run gives other numbers, and takes other seconds."""
    return {
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES},
        "machine": {"processor": _processor(), "cores": os.cpu_count(), "threads": _threads()},
    }


_PACKAGES = ("gnewton", "torch", "curvlinops-for-pytorch")


def thin(run: Results, steps: int) -> Results:
    """A run with its per-step curve in at most 40 blocks: mean loss, and step and processor seconds at the end of each.

    >>> run = {"losses": [3.0, 1.0, 2.0], "seconds": [0.1, 0.2, 0.3], "epoch_steps": [3], "cpu_seconds": [0.6]}
    >>> thin(run, steps=80)["losses"], thin(run, steps=80)["seconds"]
    ([2.0, 2.0], [0.4, 0.6])
    """
    size, n, seconds = math.ceil(steps / _POINTS), len(run["losses"]), processor_seconds(run)
    ends = [min(start + size, n) for start in range(0, n, size)]
    losses = [float(np.mean(run["losses"][start:end])) for start, end in pairwise([0, *ends])]
    shown = run | {"losses": losses, "seconds": [seconds[end - 1] for end in ends], "steps": ends}
    return {name: round_numbers(value) for name, value in shown.items() if name != "cpu_seconds"}


def processor_seconds(run: Results) -> list[float]:
    """The time of each step on a clock that other programs do not move: (steps,).

    Wall-clock seconds of the steps, stretched within each epoch so that its end falls on its processor seconds.
    """
    steps = run["epoch_steps"]
    wall = [run["seconds"][end - 1] for end in steps if end]
    return [float(t) for t in np.interp(run["seconds"], [0.0, *wall], [0.0, *run["cpu_seconds"][: len(wall)]])]


def round_numbers(value: Any, digits: int = 5) -> Any:
    """Numbers of so many digits, in lists of lists.

    >>> round_numbers([1 / 3, [2, None]])
    [0.33333, [2, None]]
    """
    if isinstance(value, list):
        return [round_numbers(one, digits) for one in value]
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value


def text(numbers: Results) -> str:
    """JSON with one line per list of numbers.

    >>> print(text({"a": {"b": [1, 2]}, "c": []}))
    {
     "a": {
      "b": [1, 2]
     },
     "c": []
    }
    """
    return _lines(numbers, "")


def _lines(value: Any, indent: str) -> str:
    inner = indent + " "
    if isinstance(value, dict) and value:
        parts = [f"{json.dumps(key)}: {_lines(one, inner)}" for key, one in value.items()]
        opening, closing = "{}"
    elif isinstance(value, list) and any(isinstance(one, dict | list) for one in value):
        parts = [_lines(one, inner) for one in value]
        opening, closing = "[]"
    else:
        return json.dumps(value, allow_nan=False)
    return f"{opening}\n{inner}" + f",\n{inner}".join(parts) + f"\n{indent}{closing}"


# -- the table -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One method over its seeds: (n,) arrays, infinite where a run diverged."""

    name: str
    title: str
    settings: str
    by_steps: Values
    by_seconds: Values
    test: Values
    accuracy: Values
    seconds: Values
    step: float
    diverged: int


def rows(numbers: Results) -> list[Row]:
    """The methods that ran, the lowest training loss at the end first."""
    ran = {name: method for name, method in numbers["methods"].items() if method["runs"]}
    budget = time_budget(numbers)
    table = [_row(name, method, budget) for name, method in ran.items()]
    return sorted(table, key=lambda row: row.by_steps.mean())


def time_budget(numbers: Results) -> float:
    """Seconds in which the fastest method takes all its steps: the time at which all are compared."""
    total = numbers["protocol"]["steps"]
    times = [
        [run["seconds"][-1] / run["steps"][-1] * total for run in method["runs"] if run["steps"]]
        for method in numbers["methods"].values()
    ]
    return min(float(np.mean(one)) for one in times if one)


def _row(name: str, method: Results, budget: float) -> Row:
    runs = method["runs"]
    return Row(
        name,
        method["title"],
        ", ".join(f"{key} {value}" for key, value in method["settings"].items()) + " (edge)" * method["at_edge"],
        _over(runs, lambda run: run["train_losses"][-1]),
        _over(runs, lambda run: float(np.interp(budget, run["seconds"], run["losses"]))),
        _over(runs, lambda run: run["test_losses"][-1]),
        _over(runs, lambda run: run["test_accuracies"][-1] if run["test_accuracies"] else math.nan),
        np.array([run["seconds"][-1] if run["seconds"] else math.nan for run in runs]),
        float(np.median([run["seconds"][-1] / run["steps"][-1] for run in runs if run["steps"]] or [math.nan])),
        sum(run["diverged"] for run in runs),
    )


def _over(runs: Sequence[Results], value: Callable[[Results], float | None]) -> Values:
    values = [None if run["diverged"] else value(run) for run in runs]
    return np.array([math.inf if one is None else one for one in values])


def table(numbers: Results) -> str:
    """The results as a Markdown table: means over the seeds, smallest and largest in brackets."""
    budget = time_budget(numbers)
    head = [
        "method",
        "setting",
        f"training loss, {numbers['protocol']['steps']} steps",
        f"training loss, {budget:.2g} s",
    ]
    head += ["test loss", "test accuracy", "seconds", "ms per step", "diverged"]
    body = [
        [
            row.title,
            row.settings,
            *(spread(values) for values in (row.by_steps, row.by_seconds, row.test, row.accuracy)),
            f"{row.seconds.mean():.2g}",
            f"{1000 * row.step:.3g}",
            f"{row.diverged} of {len(row.seconds)}",
        ]
        for row in rows(numbers)
    ]
    absent = [method for method in numbers["methods"].values() if not method["installed"]]
    body += [[method["title"], f"not installed: {method['needs']}", *["-"] * (len(head) - 2)] for method in absent]
    return markdown(head, body)


def geometric(values: Sequence[float]) -> float:
    """The geometric mean.

    >>> geometric([1.0, 4.0])
    2.0
    """
    return float(np.exp(np.mean(np.log(values))))


def markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table.

    >>> print(markdown(["a", "b"], [["1", "2"]]))
    | a | b |
    |---|---|
    | 1 | 2 |
    """
    lines = ["| " + " | ".join(line) + " |" for line in (head, *body)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def spread(values: Values) -> str:
    """Mean and, in brackets, smallest and largest.

    >>> spread(np.array([0.1, 0.2, 0.3])), spread(np.array([1.0, np.inf])), spread(np.array([np.nan]))
    ('0.2 (0.1 to 0.3)', 'diverged', '-')
    """
    if np.isnan(values).any():
        return "-"
    if not np.isfinite(values).all():
        return "diverged"
    return f"{values.mean():.3g} ({values.min():.3g} to {values.max():.3g})"


# -- the verdict ---------------------------------------------------------------------------------------------------


def verdict(numbers: Results, ours: str = "grouped-newton") -> str:
    """Who wins by steps, by seconds and on the test part, and where GroupedNewton loses; one line each."""
    table, steps, budget = rows(numbers), numbers["protocol"]["steps"], time_budget(numbers)
    views: tuple[tuple[str, Callable[[Row], Values]], ...] = (
        (f"By steps (training loss after {steps})", lambda row: row.by_steps),
        (
            f"By seconds (training loss after {budget:.2g} s, in which the fastest method takes all its steps)",
            lambda row: row.by_seconds,
        ),
        (f"On the test part (loss after {steps} steps)", lambda row: row.test),
    )
    lines = []
    for title, value in views:
        ranked = sorted(table, key=lambda row: value(row).mean())
        lines.append(f"* {title}: {_winner(ranked, value)} {_place(ranked, value, ours)}")
    return "\n".join([*lines, *_price(table, ours)])


def _winner(ranked: Sequence[Row], value: Callable[[Row], Values]) -> str:
    first = f"{ranked[0].title} wins with {spread(value(ranked[0]))}"
    if len(ranked) == 1:
        return first + "."
    second = f"{ranked[1].title} follows with {spread(value(ranked[1]))}"
    return f"{first}; {second}, {'apart' if apart(value(ranked[0]), value(ranked[1])) else 'within the spread'}."


def _place(ranked: Sequence[Row], value: Callable[[Row], Values], ours: str) -> str:
    names = [row.name for row in ranked]
    if ours not in names:
        return ""
    place = names.index(ours)
    if place == 0:
        return f"{ranked[0].title} loses to none."
    own = value(ranked[place])
    lost = [row.title + ("" if apart(value(row), own) else " (within the spread)") for row in ranked[:place]]
    return f"{ranked[place].title} is {place + 1} of {len(names)} and loses to {'; '.join(lost)}."


def apart(one: Values, other: Values) -> bool:
    """Whether the ranges over the seeds have nothing in common.

    >>> apart(np.array([1.0, 2.0]), np.array([2.5, 3.0])), apart(np.array([1.0, 2.0]), np.array([1.5, 3.0]))
    (True, False)
    """
    return bool(one.max() < other.min() or other.max() < one.min())


def _price(table: Sequence[Row], ours: str) -> list[str]:
    steps = {row.name: row.step for row in table}
    if ours not in steps:
        return []
    prices = [f"{steps[ours] / steps[row.name]:.2g} of {row.title}" for row in table if row.name in ("sgd", "adam")]
    return [f"* A step of GroupedNewton takes the time of {' and '.join(prices)}."] if prices else []


# -- where it was measured -----------------------------------------------------------------------------------------


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    known = Path("/proc/cpuinfo")
    lines = known.read_text(encoding="utf-8").splitlines() if known.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _threads() -> int:
    import torch

    return torch.get_num_threads()
