"""A scene: what its controls accept, and what becomes of its numbers on the way to a page."""

import json

import numpy as np
import pytest

from gnewton.teaching.scene import Axis, Mark, Panel, Scene, Shown, choice, round_numbers, slider, table, to_json


def a_scene():
    controls = (slider("a", "first", (1, 2, 3), 2), choice("b", "second", ("x", "y"), "x"))
    return Scene(controls, (Panel(Axis("x"), Axis("y")),), (Mark("line", label="a line"), Mark("bars")))


def numbers(a, b):
    return Shown([{"x": [0, 1], "y": [0, a / 3]}, {"values": [1.0, np.nan]}], f"{a} and {b}.", {0: {"title": b}})


def test_a_value_that_a_control_does_not_have_is_refused_by_name():
    with pytest.raises(ValueError, match="expected for a one of 1, 2, 3, got 4"):
        slider("a", "first", (1, 2, 3), 4)


def test_an_unknown_kind_of_mark_is_refused():
    with pytest.raises(ValueError, match="expected a mark among line, points"):
        Mark("circle")


def test_states_come_in_the_order_of_a_tables_rows():
    assert [tuple(one.values()) for one in a_scene().states()] == [
        (1, "x"), (1, "y"), (2, "x"), (2, "y"), (3, "x"), (3, "y")
    ]  # fmt: skip


def test_every_row_of_a_table_is_what_the_function_says_of_its_state():
    scene = a_scene()
    made = table(scene, numbers)
    for values, row in zip(scene.states(), made["rows"], strict=True):
        *marks, panels, sentence = (made["pool"][i] for i in row)
        shown = numbers(**values)
        assert sentence == shown.sentence
        assert marks == [round_numbers(one, scene.digits) for one in shown.numbers]
        assert panels == round_numbers(shown.panels, scene.digits)


def test_what_states_share_stands_in_a_table_once():
    made = table(a_scene(), numbers)
    # The bars are the same in all six states, the line in two of each three.
    assert len({row[1] for row in made["rows"]}) == 1
    assert len({row[0] for row in made["rows"]}) == 3


def test_a_description_is_plain_json_without_nan():
    text = json.dumps(to_json(a_scene()) | {"table": table(a_scene(), numbers)}, allow_nan=False)
    assert json.loads(text)["controls"][0]["values"] == [1, 2, 3]


def test_rounding_keeps_so_many_digits_and_writes_whole_numbers_short():
    assert round_numbers({"v": np.array([1 / 3, 2.0, np.inf]), "n": np.int64(3)}, 3) == {"v": [0.333, 2, None], "n": 3}


def test_a_state_changes_panels_and_axes_and_leaves_the_scene_as_it_was():
    scene = a_scene()
    (panel,) = scene.panels_of(Shown([], "", {0: {"title": "new", "x": {"limits": (0, 9)}}}))
    assert (panel.title, panel.x.limits, panel.x.label) == ("new", (0, 9), "x")
    assert scene.panels[0].title == ""
