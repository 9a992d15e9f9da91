"""A figure that answers to its controls, described once: controls, panels and marks, and for each state numbers and a sentence.

Three readers take the same description: the browser (``static/figures.js``), matplotlib for the picture that stays where
nothing moves (``gnewton.teaching.picture``), and a screen reader, for which the sentence is the figure.
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from typing import Any, Literal

import numpy as np

Values = Mapping[str, Any]
Numbers = dict[str, Any]
# Whoever saves a notebook asks for the numbers of all states, which let a page answer without a kernel.
SAVE_TABLES = "GNEWTON_SAVE_TABLES"
KINDS = ("line", "points", "bars", "band", "heat", "contours", "rule", "span", "text", "cells")


@dataclass(frozen=True)
class Control:
    """A slider over a list of values, or a choice among them; ``at`` is the index of the first one, ``shown`` their texts."""

    name: str
    label: str
    values: tuple[Any, ...]
    at: int
    shown: tuple[str, ...]
    kind: Literal["slider", "choice"] = "slider"

    def index(self, value: Any) -> int:
        """Where a value stands; raises ValueError for one that the control does not have."""
        if value not in self.values:
            raise ValueError(
                f"expected for {self.name} one of {', '.join(self.shown)}, got {value!r}; choose one of these"
            )
        return self.values.index(value)


def slider(name: str, label: str, values: Sequence[Any], value: Any, shown: Callable[[Any], str] = str) -> Control:
    """A slider over ``values``, each read out as ``shown`` writes it."""
    return _control(name, label, values, value, shown)


def choice(name: str, label: str, values: Sequence[Any], value: Any, shown: Callable[[Any], str] = str) -> Control:
    """A list to choose from."""
    return replace(_control(name, label, values, value, shown), kind="choice")


def _control(name: str, label: str, values: Sequence[Any], value: Any, shown: Callable[[Any], str]) -> Control:
    control = Control(name, label, tuple(values), 0, tuple(shown(v) for v in values))
    return replace(control, at=control.index(value))


@dataclass(frozen=True)
class Axis:
    """One axis of a panel. ``linear``: where a "symlog" axis turns from linear to logarithmic. ``names``: one for each row,
    in place of numbers; row 0 stands at the top of a y axis."""

    label: str = ""
    limits: tuple[float, float] = (0.0, 1.0)
    scale: Literal["linear", "log", "symlog"] = "linear"
    linear: float = 1.0
    ticks: tuple[float, ...] | None = None
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Panel:
    """One pair of axes. ``equal``: a unit is as long on both. ``legend``: whether marks with a label are listed above it."""

    x: Axis
    y: Axis
    title: str = ""
    equal: bool = False
    height: int = 0


@dataclass(frozen=True)
class Mark:
    """Something drawn in a panel: ``kind`` is one of KINDS, ``look`` an index into the colours (or "ink", "muted").

    What the numbers of a state hold for it, by kind: line, points {x, y}; bars {values}; band {x, low, high}; heat {z} (rows) with {scale: {linear, high}}, or {shades};
    contours {z} (rows from the bottom, over the panel); rule {at}; span {low, high}; text {x, y, text};
    cells {text, fill} (rows of strings, and of indices into ``options["fills"]``). What never changes may stand in ``options``.
    """

    kind: str
    panel: int = 0
    look: int | str = 0
    label: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"expected a mark among {', '.join(KINDS)}, got {self.kind!r}")


@dataclass(frozen=True)
class Shown:
    """What one state shows: the numbers of every mark, the sentence, and what it changes about panels, by their index:
    {1: {"x": {"limits": (0, 5)}, "title": "..."}}."""

    numbers: Sequence[Numbers]
    sentence: str
    panels: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Scene:
    """Controls, panels and marks. ``compute``: the name of the browser's own function for the numbers, ``given`` what it needs;
    without it a page holds a table of all states, or shows the first one alone where ``table`` is False. ``drag``: which
    controls follow a pointer in a panel, {"panel": 0, "x": name, "y": name}, or "angle": the name of one in degrees, or
    "slope": that of v in a line 2 x / v, with "pole": that of v in a rule at x = -v.
    ``digits``: significant ones of a table's numbers.
    ``stacked``: every panel as wide as the figure, one below the other."""

    controls: tuple[Control, ...]
    panels: tuple[Panel, ...]
    marks: tuple[Mark, ...]
    compute: str = ""
    given: Mapping[str, Any] = field(default_factory=dict)
    table: bool = True
    drag: Mapping[str, Any] = field(default_factory=dict)
    digits: int = 5
    stacked: bool = False

    def values(self, state: Mapping[str, int]) -> dict[str, Any]:
        """The values of the controls whose indices are ``state``."""
        return {c.name: c.values[state[c.name]] for c in self.controls}

    def states(self) -> Iterator[dict[str, Any]]:
        """The values of the controls in every state, in the order of a table's rows: the last control moves first."""
        for values in product(*(c.values for c in self.controls)):
            yield dict(zip((c.name for c in self.controls), values, strict=True))

    def panels_of(self, shown: Shown) -> list[Panel]:
        """The panels as a state changes them."""
        return [change(panel, shown.panels.get(i, {})) for i, panel in enumerate(self.panels)]


def change(panel: Panel, changes: Mapping[str, Any]) -> Panel:
    """A panel with some of its fields, and some fields of its axes, replaced."""
    axes = {name: replace(getattr(panel, name), **changes[name]) for name in ("x", "y") if name in changes}
    return replace(panel, **{k: v for k, v in changes.items() if k not in axes}, **axes)


def to_json(scene: Scene, digits: int = 15) -> dict[str, Any]:
    """The description as plain lists and numbers, for the browser."""
    plain = {name: [asdict(one) for one in getattr(scene, name)] for name in ("controls", "panels", "marks")}
    source = {"compute": scene.compute, "given": dict(scene.given)} if scene.compute else {}
    described: dict[str, Any] = round_numbers(
        plain | source | {"drag": dict(scene.drag), "stacked": scene.stacked}, digits
    )
    return described


def table(scene: Scene, numbers: Callable[..., Shown]) -> dict[str, Any]:
    """Every state's numbers and sentence. What several states share stands once, in ``pool``; a row holds its index."""
    pool: dict[str, int] = {}
    kept: list[Any] = []
    rows = []
    for values in scene.states():
        shown = numbers(**values)
        rows.append(
            [_place(round_numbers(one, scene.digits), pool, kept) for one in [*shown.numbers, dict(shown.panels)]]
        )
        rows[-1].append(_place(shown.sentence, pool, kept))
    return {"pool": kept, "rows": rows}


def page_metadata(describe: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """The metadata of an output that a page comes alive from, where it was asked for; else nothing."""
    return {"gnewton": compact(describe())} if os.environ.get(SAVE_TABLES) else {}


def compact(described: Mapping[str, Any]) -> str:
    """A description as one string: a notebook file would give every number a line of its own."""
    return json.dumps(described, ensure_ascii=False, separators=(",", ":"), sort_keys=True)


def _place(piece: Any, pool: dict[str, int], kept: list[Any]) -> int:
    key = repr(piece)
    if key not in pool:
        pool[key] = len(kept)
        kept.append(piece)
    return pool[key]


def round_numbers(value: Any, digits: int) -> Any:
    """Nested data as JSON has it: floats with so many significant digits, None for what is not finite, arrays as lists."""
    if isinstance(value, Mapping):
        return {str(k): round_numbers(v, digits) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return round_numbers(value.tolist(), digits)
    if isinstance(value, list | tuple | range):
        return [round_numbers(v, digits) for v in value]
    if isinstance(value, float | np.floating):
        return _short(float(value), digits)
    if isinstance(value, np.integer | np.bool_):
        return value.item()
    return value


def _short(value: float, digits: int) -> float | int | None:
    if not math.isfinite(value):
        return None
    short = float(f"{value:.{digits}g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short
