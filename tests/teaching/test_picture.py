"""The picture of a state: every kind of mark is drawn from its numbers, and leaves a trace."""

import base64
import io

import matplotlib.ticker
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from support.widgets import MAKERS

from gnewton.teaching import picture
from gnewton.teaching.scene import KINDS, Axis, Mark, Panel, Scene, Shown

ROWS = ("one", "two")
SHADES = base64.b64encode(np.array([127, -127, 60], dtype=np.int8).tobytes()).decode()
# kind -> its axes, options and numbers
DRAWN = {
    "line": ((), {"every": 2, "end": True}, {"x": [0.0, 0.3, 0.6, 1.0], "y": [0.1, 0.4, None, 0.9]}),
    "points": ((), {"open": True}, {"x": [0.5], "y": [0.5]}),
    "bars": (ROWS, {}, {"values": [0.5, -0.2]}),
    "band": ((), {}, {"x": [0.0, 1.0], "low": [0.0, 0.2], "high": [0.5, 0.9]}),
    "heat": (ROWS, {"scale": {"linear": 0.1, "high": 1.0}}, {"z": [[1.0, -0.5], [0.2, 0.0]]}),
    "contours": ((), {}, {"f": lambda x, y: x**2 + y**2}),
    "rule": ((), {"dash": "2 3"}, {"at": 0.3}),
    "span": ((), {}, {"low": 0.2, "high": 0.6}),
    "text": ((), {}, {"x": [0.5], "y": [0.5], "text": ["here"]}),
    "cells": (ROWS, {"fills": ["unknown", "value"]}, {"text": [["1"], [""]], "fill": [[1], [0]]}),
}


def pixels(kind, numbers, label="named"):
    names, options, _ = DRAWN[kind]
    panel = Panel(Axis("x", names=names if kind == "heat" else ()), Axis("y", names=names))
    scene = Scene((), (panel,), (Mark(kind, 0, 1, label, options),))
    data = picture.png(picture.draw(scene, Shown([numbers], "A sentence.")))
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_every_kind_of_mark_is_tried_here():
    assert set(DRAWN) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mark_leaves_a_trace_that_its_numbers_move(kind):
    numbers = DRAWN[kind][2]
    here = pixels(kind, numbers)
    if kind == "contours":
        moved = {"z": np.add.outer(np.arange(5.0), np.arange(5.0))}
    else:
        moved = {k: _changed(v) for k, v in numbers.items()}
    there = pixels(kind, moved)
    assert here.shape[1] == there.shape[1] == int(picture.WIDTH * picture.DPI)
    assert here.shape != there.shape or (here != there).any()


def _changed(value):
    """Another number of the same kind in every place."""
    if isinstance(value, list):
        return [_changed(v) for v in value]
    if isinstance(value, str):
        return value and "9"
    return value if value is None or isinstance(value, int) else value / 2 + 0.1


def test_shades_are_drawn_as_a_matrix_of_bytes():
    plain = pixels("heat", {"shades": {"columns": 2, "data": SHADES}})
    other = pixels("heat", {"shades": {"columns": 2, "data": SHADES.replace("f", "A")}})
    assert (plain != other).any()


def test_what_is_fixed_in_a_mark_needs_no_numbers():
    scene = Scene((), (Panel(Axis(), Axis()),), (Mark("line", options={"fixed": {"x": [0, 1], "y": [0, 1]}}),))
    (line,) = picture.draw(scene, Shown([{}], "")).axes[0].get_lines()
    assert line.get_ydata().tolist() == [0, 1]


# -- tick labels do not overlap ------------------------------------------------------------------------------------------


def overlapping(figure):
    """Neighbouring tick labels of an axis that lie on each other, once it is drawn; slanted ones apart, whose boxes are
    larger than their letters."""
    FigureCanvasAgg(figure).draw()
    said = []
    for axis in (axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)):
        low, high = sorted(axis.get_view_interval())
        seen = [t.label1 for t in axis.get_major_ticks() if low <= t.get_loc() <= high and not t.label1.get_rotation()]
        boxes = [label.get_window_extent() for label in seen]
        pairs = zip(seen, seen[1:], boxes, boxes[1:], strict=False)
        said += [f"{a.get_text()} and {b.get_text()}" for a, b, here, there in pairs if here.overlaps(there)]
    return said


@pytest.mark.parametrize("kind", MAKERS, ids=lambda kind: kind.__name__)
def test_tick_labels_of_a_figure_do_not_overlap(kind):
    assert overlapping(MAKERS[kind]().figure) == []


def drawn_axes(panels, **axis):
    """A row of empty panels with this axis upright and lying."""
    panel = Panel(Axis("x", **axis), Axis("y", **axis))
    return picture.draw(Scene((), (panel,) * panels, ()), Shown([], "A sentence."))


@pytest.mark.parametrize("panels", [1, 2, 3])
@pytest.mark.parametrize("scale", ["linear", "log", "symlog"])
@pytest.mark.parametrize("seed", range(4))
def test_tick_labels_of_any_axis_do_not_overlap(scale, panels, seed):
    draw = np.random.default_rng(seed)
    low, high = 10.0 ** -draw.integers(1, 6), 10.0 ** draw.uniform(1, 6)
    left = {"linear": -high * draw.uniform(), "log": low, "symlog": -high * 10 ** -draw.uniform(0, 6)}[scale]
    figure = drawn_axes(panels, scale=scale, linear=low, limits=(left, high))
    assert overlapping(figure) == []
    assert all(len(axis.get_majorticklocs()) >= 2 for ax in figure.axes for axis in (ax.xaxis, ax.yaxis))


def test_tick_labels_that_overlap_are_noticed(monkeypatch):
    assert overlapping(drawn_axes(3, ticks=(0.5, 0.51))) == ["0.50 and 0.51"] * 6
    monkeypatch.setattr(
        picture, "_Decades", lambda linear: matplotlib.ticker.SymmetricalLogLocator(base=10, linthresh=linear)
    )
    assert overlapping(drawn_axes(3, scale="symlog", linear=0.01, limits=(-300, 300)))
