"""Every notebook in JupyterLab: it runs without an error, its widgets move, its derivations can be walked to the end."""

import re
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest
from browser.lab import Notebook, until
from browser.reading import HEIGHT, WIDE, watch
from nbformat.v4 import new_code_cell, new_notebook

from gnewton import teaching

pytestmark = pytest.mark.browser

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
PUBLIC = {name: getattr(teaching, name) for name in teaching.__all__}
PICTURES = {name for name, it in PUBLIC.items() if isinstance(it, type) and issubclass(it, teaching.FigureWidget)}


def saved(name, kinds):
    """What the widgets of these kinds say in the saved outputs of a notebook, one text a widget."""
    cells = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", []) if "data" in output]
    texts = [output.data.get("text/plain", "").partition(": ") for output in outputs]
    return [text for kind, _, text in texts if kind in kinds]


def having(*kinds):
    """Those tests alone that concern notebooks with a widget of these kinds."""
    names = [name for name in NOTEBOOKS if saved(name, kinds)]
    return pytest.mark.parametrize("notebook", names, indirect=True)


@contextmanager
def opened(browser, lab, name):
    context = browser.new_context(viewport={"width": WIDE, "height": HEIGHT})
    page = context.new_page()
    try:
        events = watch(page)
        notebook = Notebook(page, lab.url(name))
        notebook.name, notebook.events, notebook.errors = name, events, notebook.run_all()
        yield notebook
        notebook.close()
    finally:
        context.close()


@pytest.fixture(scope="module")
def notebook(request, browser, lab):
    """A notebook after Run All Cells."""
    with opened(browser, lab, request.param) as notebook:
        yield notebook


@pytest.mark.parametrize("notebook", NOTEBOOKS, indirect=True)
def test_runs_without_an_error(notebook, screenshots):
    notebook.page.screenshot(path=screenshots / f"lab-{notebook.name}.png")
    assert notebook.errors == []
    assert notebook.events == []


@having(*PICTURES)
def test_sliders_move_the_picture(notebook, screenshots):
    widgets = notebook.pictures()
    assert len(widgets) == len(saved(notebook.name, PICTURES))
    for number, widget in enumerate(widgets):
        if widget.can("Start"):
            continue  # a live training: its sliders wait for the next start
        moves = [widget.move(slider) for slider in widget.sliders()]
        widget.box.screenshot(path=screenshots / f"lab-{notebook.name}-{number}.png")
        assert any(after[0] != before[0] for before, after in moves)
        assert all(after != before for before, after in moves)
        assert all(slider.get_attribute("aria-valuetext") for slider in widget.sliders())
        assert widget.unnamed() == []
        assert not re.match(r"\w*(Error|Exception): ", widget.sentence())


@having("Walker")
def test_derivation_can_be_walked_to_its_end(notebook, screenshots):
    walkers = notebook.walkers()
    texts = saved(notebook.name, {"Walker"})
    assert len(walkers) == len(texts)
    for number, (walker, text) in enumerate(zip(walkers, texts, strict=True)):
        shown, lines = map(int, re.search(r"(\d+) of (\d+) lines", text).groups())
        for line in range(shown + 1, lines + 1):
            assert walker.click("Next", line)
        assert not walker.can("Next")
        assert walker.click("Back", lines - 1)
        assert walker.click("Show all", lines)
        walker.box.screenshot(path=screenshots / f"lab-{notebook.name}-walker-{number}.png")
        assert walker.verdicts() == ["holds"] * lines
        assert walker.mistakes() == 0


@having("LiveTraining")
def test_another_cell_answers_while_the_training_runs(notebook, screenshots):
    (training,) = [widget for widget in notebook.pictures() if widget.can("Start")]
    training.sliders()[0].press("ArrowRight")
    assert "reset for the new settings" in training.wait_for("reset")
    notebook.write("live.running, len(live.losses)")
    training.click("Start")
    answer, seconds = notebook.answer()
    training.click("Pause")
    paused = training.wait_for("paused")
    training.box.screenshot(path=screenshots / f"lab-{notebook.name}-paused.png")
    (screenshots / f"lab-{notebook.name}-answer.txt").write_text(f"{answer} after {seconds:.2f} s\n")
    assert answer.startswith("(True, ")
    notebook.page.wait_for_timeout(500)  # the picture follows a running training four times a second
    assert training.sentence() == paused


def test_a_figure_answers_while_the_kernel_works(browser, lab):
    with opened(browser, lab, "05-third-order") as notebook:
        (figure,) = notebook.pictures()
        notebook.write("import time; time.sleep(600)")
        notebook.page.keyboard.press("Control+Enter")
        until(notebook.status, lambda status: status == "busy")
        before, after = figure.move(figure.sliders()[0])
        assert after[0] != before[0]
        assert after[1] != before[1]
        assert notebook.status() == "busy"


def test_an_error_is_noticed(browser, lab):
    cells = [new_code_cell("import math"), new_code_cell("1 / 0"), new_code_cell("math.pi")]
    kernel = {"name": "python3", "display_name": "Python 3"}  # else JupyterLab asks which one
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), lab.root / "broken.ipynb")
    with opened(browser, lab, "broken") as notebook:
        assert notebook.errors == ["ZeroDivisionError: division by zero"]
