"""The laws of every widget of the course, one table: found by looking, so that a new widget is here or the test fails.

Each control is moved to the ends and the middle of its values, in the picture, in the sentence and back.
"""

import json
import math
import re
from base64 import b64encode
from contextlib import contextmanager
from functools import cache
from html import escape

import pytest
import torch
from support.widgets import MAKERS, TRAININGS, controls, drawn, every_widget

from gnewton import teaching
from gnewton.teaching import FigureWidget
from gnewton.teaching.scene import SAVE_TABLES, Axis, Panel, Scene, Shown, choice, slider, to_json

# What need not change, with the reason; anything else must.
SAME_SENTENCE = {
    ("TaylorSlice", "reach"): "the sentence speaks of t = 1, wherever the picture ends",
    ("PartitionExplorer", "view"): "another picture of the same step",
    ("RaceExplorer", "shown"): "the leader may be among those that stay",
}
SAME_PICTURE = {("LiveTraining", "set_rate"): "a slider says what the next run will be; test_live.py resets"}
SCENES = {kind.__name__: kind for kind in MAKERS}
PAIRS = [(name, control) for name, kind in SCENES.items() for control in controls(MAKERS[kind]())]


@pytest.fixture(scope="module")
def made():
    """Each widget once: a law leaves it as it was."""
    return cache(lambda name: MAKERS[SCENES[name]]())


def others(control):
    """The ends and the middle of its values, but for the present one."""
    values = [value for value in control.options if value != control.value]
    return [values[i] for i in sorted({0, len(values) // 2, len(values) - 1})]


@contextmanager
def put_back(control):
    """The widget leaves as it came, also where a law fails."""
    start = control.value
    try:
        yield
    finally:
        control.value = start


def test_the_table_has_every_widget_and_the_course_offers_each():
    assert every_widget() == set(MAKERS)
    offered = {one for one in map(vars(teaching).get, teaching.__all__) if isinstance(one, type)}
    assert {one for one in offered if issubclass(one, FigureWidget)} == {*MAKERS, FigureWidget}


def test_exceptions_are_of_controls_that_are_there():
    assert {*SAME_SENTENCE, *SAME_PICTURE} <= set(PAIRS)


@pytest.mark.parametrize(("name", "control"), PAIRS)
def test_a_control_moves_picture_data_and_sentence_and_back(made, name, control):
    widget = made(name)
    moved = controls(widget)[control]
    data, sentence = drawn(widget), widget.sentence
    with put_back(moved):
        for value in others(moved):
            moved.value = value
            assert widget._problem == ""
            assert (drawn(widget) != data) or (name, control) in SAME_PICTURE
            assert (widget.sentence != sentence) or (name, control) in SAME_SENTENCE
    assert (drawn(widget), widget.sentence) == (data, sentence)


@pytest.mark.parametrize(("name", "control"), PAIRS)
def test_a_state_given_at_construction_is_the_state_that_the_control_reaches(made, name, control):
    widget = made(name)
    moved = controls(widget)[control]
    value = others(moved)[-1]
    given = MAKERS[SCENES[name]](**{control: value})
    assert controls(given)[control].value == value
    if (name, control) not in SAME_PICTURE:
        with put_back(moved):
            moved.value = value
            assert repr(given) == repr(widget)
            assert drawn(given) == drawn(widget)


@pytest.mark.parametrize(("name", "control"), PAIRS)
def test_a_value_that_is_none_of_the_controls_is_refused(made, name, control):
    refused = rf"expected for {control} one of .*, got 'nonsense'"
    with pytest.raises(ValueError, match=refused):
        MAKERS[SCENES[name]](**{control: "nonsense"})
    widget = made(name)
    before = repr(widget)
    with pytest.raises(ValueError, match=refused):
        controls(widget)[control].value = "nonsense"
    assert repr(widget) == before


@pytest.mark.parametrize("name", SCENES)
def test_without_a_kernel_the_picture_and_its_sentence_remain(made, name, monkeypatch):
    monkeypatch.delenv(SAVE_TABLES, raising=False)
    widget = made(name)
    data, metadata = widget._repr_mimebundle_()
    assert metadata == {"image/png": {"alt": widget.sentence, "width": 704}}
    assert data["image/png"] == widget.png
    assert data["text/plain"] == repr(widget) == f"{name}: {widget.sentence}"
    assert widget.png.startswith(b"\x89PNG")
    # Read aloud in the place of the picture: words, never the repr of something.
    assert widget.sentence.endswith(".")
    assert len(widget.sentence) > 20
    assert not any(code in widget.sentence for code in ("tensor(", "array(", "object at", "None", "float64("))


def test_nbconvert_shows_the_picture_and_its_sentence_without_a_script(made):
    nbconvert, nbformat = pytest.importorskip("nbconvert"), pytest.importorskip("nbformat")
    widget = made("QuadraticBowl")
    data, metadata = widget._repr_mimebundle_()
    data = {kind: data[kind] for kind in ("text/plain", "image/png")}  # as a notebook is saved
    data["image/png"] = b64encode(data["image/png"]).decode()
    output = nbformat.v4.new_output("display_data", data=data, metadata=metadata)
    cell = nbformat.v4.new_code_cell("QuadraticBowl()", outputs=[output])
    for template in ("lab", "classic"):
        exporter = nbconvert.HTMLExporter(template_name=template)
        page, _ = exporter.from_notebook_node(nbformat.v4.new_notebook(cells=[cell]))
        (image,) = re.findall(r"<img[^>]*>", page)
        assert data["image/png"] in image
        assert 'width="704"' in image
    assert f'alt="{escape(widget.sentence)}"' in image  # the template "lab" has no place for it
    # So the picture itself says it.
    assert " ".join(widget.figure.get_supxlabel().split()) == widget.sentence


@pytest.mark.parametrize("name", SCENES)
def test_a_page_is_given_what_it_needs_to_move(monkeypatch, name):
    monkeypatch.setenv(SAVE_TABLES, "1")
    widget = MAKERS[SCENES[name]]()
    saved = widget._repr_mimebundle_()[1]["gnewton"]
    spec = json.loads(saved)
    assert spec["sentence"] == widget.sentence
    assert "NaN" not in saved
    assert len(saved) < 500_000
    moved = [control["name"] for control in spec["controls"]]
    if widget.scene.table:  # else the picture stands still without a kernel
        assert set(controls(widget)) <= set(moved)
    if "table" in spec:
        assert len(spec["table"]["rows"]) == math.prod(len(control["values"]) for control in spec["controls"])


@pytest.mark.parametrize("name", SCENES)
def test_every_control_has_a_name_and_its_values_are_read_out_by_their_meaning(made, name):
    widget = made(name)
    shown = to_json(widget.scene)["controls"]
    assert shown
    assert all(control["label"] for control in shown)
    assert all(control["kind"] in ("slider", "choice") for control in shown)
    assert all(len(set(control["shown"])) == len(control["values"]) > 1 for control in shown)


@pytest.mark.parametrize("name", SCENES)
def test_an_error_while_redrawing_is_told_and_goes_away(made, name):
    widget = made(name)
    control = next(iter(controls(widget).values()))
    widget.redraw()  # else a figure that was shown has the numbers of all states
    answer, sentence = widget._answer, widget.sentence

    def fail(**values):
        raise ZeroDivisionError("<none> left")

    with put_back(control):
        widget.numbers = fail
        control.value = others(control)[0]
        if widget.scene.compute:  # the browser answers; Python is asked for the sentence alone
            with pytest.raises(ZeroDivisionError):
                widget.sentence  # noqa: B018
        else:
            assert widget._problem == "ZeroDivisionError: <none> left"
            assert widget._answer == answer
        del widget.numbers
    assert widget._problem == ""
    assert widget.sentence == sentence


@pytest.mark.parametrize("name", SCENES)
def test_a_shown_figure_knows_all_its_states_until_its_numbers_may_have_changed(name):
    widget = MAKERS[SCENES[name]]()
    assert widget._table is None
    widget._repr_mimebundle_()
    if widget.scene.compute or not widget.scene.table:
        assert widget._table is None
        return
    pool, rows = widget._table["pool"], widget._table["rows"]
    for values, row in zip(widget.scene.states(), rows, strict=True):
        assert pool[row[-1]] == widget.numbers(**values).sentence
    first = next(iter(controls(widget).values()))
    first.value = others(first)[0]
    assert widget._answer is None  # the browser has it
    widget.redraw()
    assert widget._table is None
    assert widget._answer["sentence"] == widget.sentence


def test_a_state_that_fails_is_no_hindrance_for_the_others():
    widget = MAKERS[SCENES["CubicBound"]]()
    numbers, control = widget.numbers, widget.strength

    def fragile(**values):
        if values["strength"] == 10.0:
            raise ZeroDivisionError("<none> left")
        return numbers(**values)

    widget.numbers = fragile
    widget._repr_mimebundle_()
    assert widget._table is None
    control.value = 10.0
    assert widget._problem == "ZeroDivisionError: <none> left"
    control.value = 3.0
    assert widget._problem == ""
    assert widget._answer["sentence"] == widget.sentence


@pytest.mark.parametrize(("name", "control"), PAIRS)
def test_no_label_leaves_the_picture(made, name, control):
    widget = made(name)
    moved = controls(widget)[control]
    with put_back(moved):
        moved.value = others(moved)[-1]
        figure = widget.figure
        figure.draw_without_rendering()
        for axes in figure.axes:
            box = axes.get_tightbbox()
            # The box of a rotated word is larger than its letters, by a pixel or two.
            assert min(box.x0, box.y0) >= -2
            assert box.x1 <= figure.bbox.x1 + 2
            assert box.y1 <= figure.bbox.y1 + 2


@pytest.mark.parametrize("name", SCENES)
def test_random_numbers_and_grad_mode_stay(name):
    TRAININGS.clear()
    before = torch.get_rng_state()
    widget = MAKERS[SCENES[name]]()
    control = next(iter(controls(widget).values()))
    control.value = others(control)[0]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.is_grad_enabled()


# -- the parts that all are made of ------------------------------------------------------------------------------------


def test_an_error_at_construction_is_raised_in_the_cell():
    class Failing(FigureWidget):
        def numbers(self, level):
            return Shown([], f"Level {1 / 0}.")

    with pytest.raises(ZeroDivisionError):
        Failing(Scene((slider("level", "level", [1.0, 3.0], 3.0),), (Panel(Axis(), Axis()),), ()))


@pytest.mark.parametrize("make", [slider, choice])
def test_a_control_offers_its_values_and_begins_with_one_of_them(make):
    assert make("level", "how high", [1.0, 3.0], 3.0).values == (1.0, 3.0)
    with pytest.raises(ValueError, match=r"expected for level one of 1.0, 3.0, got 2.0"):
        make("level", "how high", [1.0, 3.0], 2.0)
