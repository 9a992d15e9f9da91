"""The laws of every widget of the course, one table: found by looking, so that a new widget is here or the test fails.

Each control is moved to the ends and the middle of its values, in the picture, in the sentence and back.
"""

from contextlib import contextmanager
from functools import cache
from html import escape
from types import MethodType

import ipywidgets
import pytest
import torch
from support.widgets import MAKERS, controls, drawn, every_widget, options
from traitlets import TraitError

from gnewton import teaching
from gnewton.plots import new_figure
from gnewton.teaching import FigureWidget
from gnewton.teaching.widgets.figure_widget import choice, slider

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
    values = [value for value in options(control) if value != control.value]
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
    picture, data, sentence = widget.png, drawn(widget), widget.sentence
    with put_back(moved):
        for value in others(moved):
            moved.value = value
            assert widget._status.value == ""
            assert (widget.png != picture and drawn(widget) != data) or (name, control) in SAME_PICTURE
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
            # The first drawing fixes where the panels lie: the pixels may differ.
            assert drawn(given) == drawn(widget)


@pytest.mark.parametrize(("name", "control"), PAIRS)
def test_a_value_that_is_none_of_the_controls_is_refused(made, name, control):
    with pytest.raises(ValueError, match=r"expected .* to be one of .*, got 'nonsense'"):
        MAKERS[SCENES[name]](**{control: "nonsense"})
    widget = made(name)
    picture = widget.png
    with pytest.raises(TraitError, match="Invalid selection"):
        controls(widget)[control].value = "nonsense"
    assert widget.png == picture


@pytest.mark.parametrize("name", SCENES)
def test_without_a_kernel_the_picture_and_its_sentence_remain(made, name):
    widget = made(name)
    bundle = widget._repr_mimebundle_()
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    assert data["image/png"] == widget.png
    assert data["text/plain"] == repr(widget) == f"{name}: {widget.sentence}"
    assert widget.png.startswith(b"\x89PNG")
    assert widget.figure._repr_png_().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", SCENES)
def test_below_the_controls_are_the_picture_and_its_sentence(made, name):
    widget = made(name)
    assert list(widget.children[-3:]) == [widget._image, widget._caption, widget._status]
    assert widget._caption.value == escape(widget.sentence)
    # Read aloud in the place of the picture: words, never the repr of something.
    assert widget.sentence.endswith(".")
    assert len(widget.sentence) > 20
    assert not any(code in widget.sentence for code in ("tensor(", "array(", "object at", "None", "float64("))


@pytest.mark.parametrize("name", SCENES)
def test_every_control_has_a_name_and_works_by_keyboard(made, name):
    widget = made(name)
    shown = controls(widget).values()
    assert shown
    assert all(one.description for one in shown)
    assert all(isinstance(one, ipywidgets.SelectionSlider | ipywidgets.Dropdown) for one in shown)
    assert not any(isinstance(child, ipywidgets.Output) for child in widget.children)


@pytest.mark.parametrize("name", SCENES)
def test_an_error_while_redrawing_shows_in_the_status_line_and_goes_away(made, name):
    widget = made(name)
    control = next(iter(controls(widget).values()))
    picture, sentence = widget.png, widget.sentence

    def fail(self):
        raise ZeroDivisionError("<none> left")

    with put_back(control):
        widget.draw = MethodType(fail, widget)
        control.value = others(control)[0]
        assert widget._status.value == "<b>ZeroDivisionError:</b> &lt;none&gt; left"
        assert (widget.png, widget.sentence) == (picture, sentence)
        del widget.draw
    assert widget._status.value == ""


@pytest.mark.parametrize(("name", "control"), PAIRS)
def test_no_label_leaves_the_picture(made, name, control):
    widget = made(name)
    moved = controls(widget)[control]
    with put_back(moved):
        for value in others(moved):
            moved.value = value
            for axes in widget.figure.axes:
                box = axes.get_tightbbox()
                # The box of a rotated word is larger than its letters, by a pixel or two.
                assert min(box.x0, box.y0) >= -2, value
                assert box.x1 <= widget.figure.bbox.x1, value
                assert box.y1 <= widget.figure.bbox.y1, value


@pytest.mark.parametrize("name", SCENES)
def test_random_numbers_and_grad_mode_stay(name):
    before = torch.get_rng_state()
    widget = MAKERS[SCENES[name]]()
    control = next(iter(controls(widget).values()))
    control.value = others(control)[0]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.is_grad_enabled()


# -- the parts that all are made of ------------------------------------------------------------------------------------


def test_an_error_at_construction_is_raised_in_the_cell():
    class Failing(FigureWidget):
        def draw(self):
            return f"Level {1 / 0}."

    with pytest.raises(ZeroDivisionError):
        Failing(new_figure(), {})


@pytest.mark.parametrize("make", [slider, choice])
def test_a_control_offers_its_values_and_begins_with_one_of_them(make):
    assert options(make("level", [1.0, 3.0], 3.0)) == [1.0, 3.0]
    with pytest.raises(ValueError, match=r"expected level to be one of 1.0, 3.0, got 2.0"):
        make("level", [1.0, 3.0], 2.0)
