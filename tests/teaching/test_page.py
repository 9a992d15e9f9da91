"""What becomes of a notebook on its way to a page of the book: figures, derivations, questions, exercises, lighter pictures."""

import base64
import io
import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gnewton.teaching import QuadraticBowl, Walker, check, newton_cauchy, quiz
from gnewton.teaching.exercises.exercise import every
from gnewton.teaching.scene import SAVE_TABLES

BOOK = runpy.run_path(str(Path(__file__).parents[2] / "book" / "figures.py"))


def code(data=None, metadata=None, text=None, tags=()):
    output = {"output_type": "stream", "name": "stdout", "text": text}
    if data is not None:
        output = {"output_type": "display_data", "data": data, "metadata": metadata or {}}
    return {"cell_type": "code", "metadata": {"tags": [*tags]}, "outputs": [output]}


def adapted(cell):
    (page,) = BOOK["with_figures"]({"cells": [cell]}, "made-up")["cells"]
    return page


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Where the pictures go."""
    monkeypatch.setitem(BOOK["_move"].__globals__, "STATIC", tmp_path)
    monkeypatch.setenv(SAVE_TABLES, "1")
    return tmp_path


def shown(widget):
    data, metadata = widget._repr_mimebundle_()
    if "image/png" in data:
        data["image/png"] = base64.b64encode(data["image/png"]).decode()
    if "text/html" in data:
        data["text/html"] = data["text/html"].splitlines(keepends=True)  # as a notebook file has it
    return adapted(code(data, metadata))["outputs"][0]


def test_a_widget_becomes_a_figure_with_its_twin_its_words_and_its_numbers(folder):
    widget = QuadraticBowl()
    output = shown(widget)
    assert "gnewton" not in output["metadata"]
    assert "image/png" not in output["data"]
    page = output["data"]["text/html"]
    assert page.startswith('<figure class="gn-figure" data-gnewton><img src="../_static/figures/made-up-0.png"')
    assert f'alt="{widget.sentence}"' in page
    assert '"compute":"bowl"' in page
    assert (folder / "made-up-0.png").read_bytes() == widget.png


def test_a_derivation_keeps_its_lines_and_gets_its_residuals():
    walker = Walker(newton_cauchy())
    walker.describe = lambda: {"walker": [1e-10], "controls": [], "rows": ["1e-16"]}
    page = shown(walker)["data"]["text/html"]
    assert "data-gnewton-walker" in page
    assert newton_cauchy().to_html() in page
    assert page.count("<li") == len(newton_cauchy().lines)
    assert '"rows":["1e-16"]' in page


def test_a_question_shows_no_code():
    question = quiz("What is 1 + 1?", {"2": "Add them.", "11": "That joins the digits."}, right="2")
    data = {"text/plain": repr(question), "text/html": question._repr_html_()}
    assert adapted(code(data, tags=["hide-input"]))["metadata"]["tags"] == ["remove-input"]


def picture(width):
    buffer = io.BytesIO()
    Image.new("RGB", (width, 10)).save(buffer, "PNG")
    return {"image/png": base64.b64encode(buffer.getvalue()).decode()}


def test_only_a_picture_of_several_panels_scrolls_on_a_telephone():
    assert adapted(code(picture(920)))["metadata"]["mystnb"]["image"]["classes"] == "several-panels"
    assert "mystnb" not in adapted(code(picture(620)))["metadata"]


def test_sentences_break_and_columns_do_not():
    assert adapted(code(text="all of it: True\nand a line of its own\n"))["metadata"]["tags"] == ["sentences"]
    assert adapted(code(text="a        0.5\nlonger   1.5\n"))["metadata"]["tags"] == []
    assert adapted(code(picture(620)))["metadata"]["tags"] == []


@pytest.mark.parametrize("exercise", every(), ids=lambda one: one.number)
def test_an_exercise_has_all_its_hints_in_place_of_a_dead_verdict(capsys, exercise):
    def untouched(*_):
        raise NotImplementedError("your turn")

    check(exercise.number, untouched)
    (output,) = adapted(code(text=[capsys.readouterr().out]))["outputs"]
    page = output["data"]["text/html"]
    assert set(output) == {"output_type", "data", "metadata"}
    assert page.count("<summary>Hint ") == page.count("</details>") == len(exercise.hints)
    assert page.index("Hint 1 of") < page.index(f"Hint {len(exercise.hints)} of")
    assert f"Exercise {exercise.number}: your turn" in page


def test_a_solution_is_called_one_and_another_verdict_stays():
    cell = adapted(code(text=["Exercise 01.1: right\n  yes  it runs\n"], tags=["solution", "hide-cell"]))
    assert cell["metadata"]["mystnb"] == {"code_prompt_show": "Show the solution"}
    assert cell["outputs"][0]["text"] == ["Exercise 01.1: right\n  yes  it runs\n"]


def test_a_picture_is_lighter_and_looks_the_same():
    y, x = np.mgrid[:80, :120]
    given = np.stack([2 * x, y, 0 * x], axis=-1).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(given).save(buffer, "PNG", compress_level=0)
    before = base64.b64encode(buffer.getvalue()).decode()
    after = BOOK["lighten_picture"](before)
    assert len(after) < len(before)
    seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(after))).convert("RGB"), dtype=int)
    assert np.abs(seen - given).mean() < 12  # of 255: 256 colours for 9,600 different ones


# -- what a page need not load -----------------------------------------------------------------------------------------

SHOWN, LONG_NAME, HIDDEN = (
    '.fa-sun{--fa:"\\f185"}',
    '.fa-search,.fa-magnifying-glass{--fa:"\\f002"}',
    '.fa-bus{--fa:"\\f207"}',
)
REST = ".fa-lg{font-size:2em}html{color:red}"


def test_the_style_keeps_the_icons_that_are_named(tmp_path):
    style, script = tmp_path / "_static/styles/pydata-sphinx-theme.css", tmp_path / "_static/scripts/theme.js"
    for path in (style, script):
        path.parent.mkdir(parents=True)
    style.write_text(SHOWN + LONG_NAME + HIDDEN + REST, encoding="utf-8")
    script.write_text("button.classList.add('fa-sun')", encoding="utf-8")
    (script.parent / "fontawesome.js").write_text("every icon, fa-bus too", encoding="utf-8")
    (tmp_path / "index.html").write_text("<i class='fa-solid fa-magnifying-glass fa-lg'></i>", encoding="utf-8")
    runpy.run_path(str(Path(__file__).parents[2] / "book" / "light.py"))["lighten"](tmp_path)
    assert style.read_text(encoding="utf-8") == SHOWN + LONG_NAME + REST
