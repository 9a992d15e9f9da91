"""The picture of one state of a scene, by matplotlib: what stays where nothing moves."""

import base64
import io
import math
import re
import textwrap
from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, Normalize, SymLogNorm
from matplotlib.ticker import Locator, MaxNLocator
from PIL import Image

from gnewton.plots import COLOURS, DASHES, GREY, MARKERS, Figure
from gnewton.teaching.scene import Axis, Mark, Numbers, Panel, Scene, Shown

WIDTH, DPI = 7.04, 200  # inches of the book's column, two pixels for each of a screen
LINE = 0.16  # inches of a line of the sentence
SIGNED = LinearSegmentedColormap.from_list("signed", ["#2166ac", "#ffffff", "#b2182b"])
SHAPES = ("circle", "square", "triangle", "diamond", "down", "cross", "plus", "bar")
_MARKERS = dict(zip(SHAPES, ("o", "s", "^", "D", "v", "x", "+", "|"), strict=True))


def draw(scene: Scene, shown: Shown) -> Figure:
    """One state of a scene as a figure as wide as the book's column, two dots for each pixel of a plain screen.

    Its sentence stands below: many a page shows the picture alone.

    >>> from gnewton.teaching.scene import Axis, Mark, Panel, Scene, Shown
    >>> scene = Scene((), (Panel(Axis("x"), Axis("y")),), (Mark("line", label="a line"),))
    >>> figure = draw(scene, Shown([{"x": [0, 1], "y": [0, 1]}], "A line rises."))
    >>> figure.axes[0].get_xlabel()
    'x'
    """
    panels = scene.panels_of(shown)
    rows, columns = (len(panels), 1) if scene.stacked else (1, len(panels))
    caption = textwrap.wrap(shown.sentence, 118)
    height = rows * _height(panels, columns) + LINE * len(caption)
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    with matplotlib.rc_context({"font.size": 8}):
        figure.supxlabel("\n".join(caption), x=0.01, ha="left", fontsize=8)
        axes = np.ravel(figure.subplots(rows, columns))
        for ax, panel in zip(axes, panels, strict=True):
            _frame(ax, panel)
        for mark, numbers in zip(scene.marks, shown.numbers, strict=True):
            _DRAW[mark.kind](axes[mark.panel], mark, mark.options.get("fixed", {}) | numbers)
        for i, ax in enumerate(axes):
            _name_ends(ax, [(m, n) for m, n in zip(scene.marks, shown.numbers, strict=True) if m.panel == i])
        handles = {label: h for ax in axes for h, label in zip(*ax.get_legend_handles_labels(), strict=True)}
        if handles:
            figure.set_figheight(height + LINE * math.ceil(len(handles) / 3))
            figure.legend(
                handles.values(), handles.keys(), loc="outside upper center", ncols=3, frameon=False, fontsize=8
            )
    return figure


def png(figure: Figure) -> bytes:
    """The figure as the bytes of a PNG of 128 colours: a third of the bytes of one with all, and no eye sees it."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    buffer = io.BytesIO()
    image.quantize(128, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def typeset(text: str) -> str:
    r"""The letters after the underscore of λ_int or H_ss as a subscript, for matplotlib.

    >>> typeset("own rate g_s / H_ss of log_softmax")
    'own rate g$_\\mathrm{s}$ / H$_\\mathrm{ss}$ of log_softmax'
    """
    return re.sub(r"(?<![^\W_])([^\W\d_]\u0304?)_([a-z]+)", r"\1$_\\mathrm{\2}$", text)


def _height(panels: list[Panel], columns: int) -> float:
    each = WIDTH / columns
    rows = [p.height / 100 or 0.26 * len(p.y.names) + 0.9 for p in panels if p.y.names]
    return max([min(3.1, each * 0.85), *rows])


def _frame(ax: Axes, panel: Panel) -> None:
    for axis, name in ((panel.x, "x"), (panel.y, "y")):
        _scale(ax, axis, name)
    ax.set(xlabel=typeset(panel.x.label), ylabel=typeset(panel.y.label))
    if panel.title:
        ax.set_title(typeset(panel.title), fontsize=8.5, loc="left")
    ax.set_aspect("equal" if panel.equal else "auto")
    ax.tick_params(labelsize=7.5)
    ax.grid(color="#e4e4e4", linewidth=0.6)
    ax.set_axisbelow(True)


def _scale(ax: Axes, axis: Axis, name: str) -> None:
    limits, ticks, labels = axis.limits, axis.ticks, None
    if axis.names:
        limits = (len(axis.names) - 0.5, -0.5) if name == "y" else (-0.5, len(axis.names) - 0.5)
        ticks, labels = tuple(range(len(axis.names))), axis.names
    getattr(ax, f"set_{name}scale")(axis.scale, **({"linthresh": axis.linear} if axis.scale == "symlog" else {}))
    getattr(ax, f"set_{name}lim")(limits)
    if axis.scale != "log":
        places = _Decades(axis.linear) if axis.scale == "symlog" else MaxNLocator("auto", steps=[1, 2, 5, 10])
        getattr(ax, f"{name}axis").set_major_locator(places)
    if ticks is not None:
        slanted = {"rotation": 40, "ha": "right"} if labels and name == "x" else {}
        getattr(ax, f"set_{name}ticks")(ticks, labels, **slanted)
    getattr(ax, f"{name}axis").minorticks_off()


class _Decades(Locator):
    """Powers of ten on both sides of zero, as many as there is room for: matplotlib's own locator takes them all."""

    def __init__(self, linear: float) -> None:
        self.zero = math.ceil(math.log10(linear) - 1e-9) - 1  # zero stands one decade before the first power

    def __call__(self) -> Any:
        axis: Any = self.axis
        left, right = (self._decades(end) for end in np.sort(axis.get_view_interval()) * [-1, 1])
        # Beside each other powers of ten take more room than the numbers that matplotlib counts.
        room = max(2.0, axis.get_tick_space() * (0.75 if axis.axis_name == "x" else 1.0))
        every = max(1, math.ceil((left + right) / room))
        # From the ends inwards, so that an end has a number, and never nearer to zero than to each other.
        below, above = (10.0 ** (self.zero + np.arange(n, every - 1, -every)) for n in (left, right))
        return np.concatenate([-below, [0.0], above[::-1]])

    def _decades(self, end: float) -> int:
        """From zero to this end."""
        return max(0, math.floor(math.log10(end) + 1e-9) - self.zero) if end > 0 else 0


def _colour(mark: Mark) -> str:
    named = {"ink": "black", "muted": GREY}
    return named[mark.look] if isinstance(mark.look, str) else COLOURS[mark.look % len(COLOURS)]


def _look(mark: Mark) -> dict[str, Any]:
    """Colour and label; a name at the end of the curve needs none in the legend."""
    label = "" if mark.options.get("end") else mark.label
    return {"color": _colour(mark), "alpha": mark.options.get("faint"), "label": typeset(label) or None}


def _dashes(mark: Mark) -> Any:
    given = mark.options.get("dash")
    if given is not None:
        return (0, tuple(float(v) / 2 for v in given.split())) if given else "-"
    return DASHES[mark.look % len(DASHES)] if isinstance(mark.look, int) else "-"


def _marker(mark: Mark) -> str:
    index = mark.look if isinstance(mark.look, int) else 0
    return _MARKERS[mark.options["shape"]] if "shape" in mark.options else MARKERS[index % len(MARKERS)]


def _floats(values: Any) -> Any:
    return np.asarray([np.nan if v is None else v for v in values], dtype=np.float64)


def _line(ax: Axes, m: Mark, n: Numbers) -> None:
    marks = {"marker": _marker(m), "markevery": m.options["every"], "markersize": 3.5} if m.options.get("every") else {}
    width = m.options.get("width", 2) * 0.75
    ax.plot(_floats(n["x"]), _floats(n["y"]), linestyle=_dashes(m), linewidth=width, **marks, **_look(m))


def _points(ax: Axes, m: Mark, n: Numbers) -> None:
    hollow: dict[str, Any] = {"markerfacecolor": "none"} if m.options.get("open") else {}
    size = m.options.get("size", 4) * 1.2
    ax.plot(_floats(n["x"]), _floats(n["y"]), linestyle="", marker=_marker(m), markersize=size, **hollow, **_look(m))


def _bars(ax: Axes, m: Mark, n: Numbers) -> None:
    values, digits = _floats(n["values"]), m.options.get("digits", 2)
    rows = np.arange(len(values)) + m.options.get("shift", 0.0)
    bars = ax.barh(rows, values, height=m.options.get("thick", 0.62), **_look(m))
    left, right = sorted(ax.get_xlim())
    for i, (bar, v) in enumerate(zip(bars, values, strict=True)):
        if v < 0:  # told apart without colour, too
            bar.set(facecolor="none", edgecolor=_colour(m), linestyle="--")
        if digits and np.isfinite(v):
            text = n["text"][i] if "text" in n else f"{v:.{digits}g}"
            place: dict[str, Any] = {"va": "center", "ha": "left" if v >= 0 else "right", "fontsize": 7}
            ax.text(min(max(v, left), right), rows[i], f" {text} ", **place)


def _band(ax: Axes, m: Mark, n: Numbers) -> None:
    ax.fill_between(_floats(n["x"]), _floats(n["low"]), _floats(n["high"]), color=_colour(m), alpha=0.16, linewidth=0)


def _heat(ax: Axes, m: Mark, n: Numbers) -> None:
    z = _unpack(n["shades"]) if "shades" in n else np.array([_floats(row) for row in n["z"]])
    scale = {"linear": 1.0, "high": 1.0} if "shades" in n else n.get("scale") or m.options["scale"]
    norm: Any = SymLogNorm(linthresh=scale["linear"], vmin=-scale["high"], vmax=scale["high"], base=10)
    if "shades" in n:
        norm = Normalize(-1.0, 1.0)
    extent = (*ax.get_xlim(), *ax.get_ylim())
    ax.imshow(z, cmap=SIGNED, norm=norm, aspect="auto", interpolation="nearest", extent=extent)
    ax.grid(False)
    if m.options.get("signs") is not False and max(z.shape) <= 24:
        strong = np.abs(np.asarray(norm(z)) - 0.5) > 0.08
        for sign, marker in ((1, "+"), (-1, "_")):
            at = np.nonzero(strong & (sign * z > 0))
            ax.plot(at[1], at[0], linestyle="", marker=marker, color="black", markersize=min(6, 90 / len(z)))


def _unpack(shades: Numbers) -> Any:
    n = shades["columns"]
    levels, lower = np.zeros((n, n)), np.tril_indices(n)
    levels[lower] = np.frombuffer(base64.b64decode(shades["data"]), dtype=np.int8)
    levels.T[lower] = levels[lower]
    return levels / 127


def _contours(ax: Axes, m: Mark, n: Numbers) -> None:
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    if "f" in n:
        x, y = np.meshgrid(np.linspace(left, right, 161), np.linspace(bottom, top, 161))
        z = np.asarray(n["f"](x, y))
    else:
        z = np.asarray(n["z"])
        x, y = np.meshgrid(np.linspace(left, right, z.shape[1]), np.linspace(bottom, top, z.shape[0]))
    above = np.geomspace(1e-3, 1.0, m.options.get("levels", 12)) * np.ptp(z)
    ax.contour(x, y, z, levels=z.min() + above, colors=GREY, linewidths=0.6)


def _rule(ax: Axes, m: Mark, n: Numbers) -> None:
    at = n.get("at", m.options.get("at"))
    if at is not None:
        line = ax.axvline if m.options.get("axis", "x") == "x" else ax.axhline
        line(at, linewidth=m.options.get("width", 1.2) * 0.75, linestyle=_dashes(m), **_look(m))


def _span(ax: Axes, m: Mark, n: Numbers) -> None:
    low, high = (float(n.get(name, m.options.get(name, 0.0))) for name in ("low", "high"))
    area = ax.axvspan if m.options.get("axis", "x") == "x" else ax.axhspan
    area(low, high, color="#dddddd", zorder=0, label=typeset(m.label) or None)


def _text(ax: Axes, m: Mark, n: Numbers) -> None:
    where = m.options | n
    side = {"start": "left", "middle": "center", "end": "right"}[m.options.get("anchor", "start")]
    for x, y, text in zip(where["x"], where["y"], where["text"], strict=True):
        ax.text(x, y, text, ha=side, va="center", fontsize=7.5, color="#555555")


def _cells(ax: Axes, m: Mark, n: Numbers) -> None:
    colours = {"unknown": "white", "value": "#e8e8e8", "adjoint": "#bcd9ee", "tangent": "#f3cfb4"}
    fills = [[colours[m.options["fills"][i]] for i in row] for row in n["fill"]]
    rows, columns = len(fills), len(fills[0])
    ax.grid(False)
    for j in range(rows):
        for i in range(columns):
            ax.fill([i - 0.5, i + 0.5, i + 0.5, i - 0.5], [j - 0.5, j - 0.5, j + 0.5, j + 0.5], fills[j][i], ec=GREY)
            ax.text(i, j, n["text"][j][i], ha="center", va="center", fontsize=6.5)


def _name_ends(ax: Axes, drawn: list[tuple[Mark, Numbers]]) -> None:
    """Names at the ends of curves, apart from each other."""
    named = [(m, m.options.get("fixed", {}) | n) for m, n in drawn if m.options.get("end")]
    ends = [(ax.transData.transform((0, y[-1]))[1], m) for m, n in named if len(y := _finite(n["y"]))]
    if not ends:
        return
    low, high = ax.transAxes.transform([(0, 0), (0, 1)])[:, 1]
    last = -np.inf
    for height, m in sorted(ends, key=lambda one: float(one[0])):
        last = max(min(max((height - low) / (high - low), 0.0), 1.0), last + 0.07)
        ax.annotate(m.label, (1.02, last), xycoords="axes fraction", fontsize=7.5, va="center", color=_colour(m))


def _finite(values: Any) -> Any:
    floats = _floats(values)
    return floats[np.isfinite(floats)]


_DRAW: dict[str, Callable[[Axes, Mark, Numbers], None]] = {
    "line": _line,
    "points": _points,
    "bars": _bars,
    "band": _band,
    "heat": _heat,
    "contours": _contours,
    "rule": _rule,
    "span": _span,
    "text": _text,
    "cells": _cells,
}
