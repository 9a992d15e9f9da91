"""Every figure of the built book, opened from its file with every request refused: it moves, speaks, and is accessible.

The pages are found by looking into the book, so that a new figure is tested as soon as it is there.
"""

import json
import re
import runpy
from pathlib import Path

import pytest
from browser.figures import WALKER, described, fingered, opened
from browser.reading import HEIGHT, NARROW
from browser.test_book import PAGES

from gnewton.teaching.scene import Axis, Mark, Panel, Scene, Shown, choice, slider, table, to_json
from gnewton.teaching.widgets.figure_widget import STATIC

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[2]
BOOK = runpy.run_path(str(ROOT / "book" / "figures.py"))
HEAD = "<!doctype html><html lang='en' data-theme='light'><title>Made up</title><link rel=icon href='data:,'>"


def source(name):
    """What a page is made of; the figures of a notebook are saved in the metadata of its outputs."""
    if name.startswith("notebooks/"):
        return (ROOT / f"{name}.ipynb").read_text(encoding="utf-8")
    pages = [path for end in ("md", "rst") if (path := ROOT / "book" / f"{name}.{end}").exists()]
    return pages[0].read_text(encoding="utf-8") if pages else ""


def moving(name):
    text = source(name)
    return '"gnewton": "{' in text or "results/idea.html" in text


MOVING = [name for name in PAGES if moving(name)]


def violations(page, theme):
    """All that axe finds in the figures, light findings too."""
    from axe_playwright_python.sync_playwright import Axe

    # From a file axe may not fetch the style again, and would complain in the console that it tried.
    options = {"resultTypes": ["violations"], "preload": False}
    breaches = Axe().run(page, context=".gn-figure", options=options).response["violations"]
    return [f"{v['impact']} {v['id']} ({theme}): {v['nodes'][0]['html'][:120]}" for v in breaches]


def test_these_are_all_pages_with_figures(book_folder):
    """Every other page has none, and each of these has as many as its source."""
    texts = {name: (book_folder / f"{name}.html").read_text(encoding="utf-8") for name in PAGES}
    assert [name for name in PAGES if described(texts[name])] == MOVING
    for name in MOVING:
        saved = [json.loads(json.loads(one)) for one in re.findall(r'"gnewton": ("\{.*\}"),?\n', source(name))]
        assert len(described(texts[name])) == (sum("panels" in one for one in saved) or 1)
        assert len(described(texts[name], WALKER)) == sum("walker" in one for one in saved)


@pytest.mark.parametrize("name", MOVING)
def test_figures_answer_without_a_network(browser, book_folder, name):
    with opened(browser, book_folder / f"{name}.html") as page:
        said = page.complaints(violations)
    assert not said, "\n".join(said)


# -- on a telephone ------------------------------------------------------------------------------------------------------

DRAGGED = ("notebooks/01-quadratics", "notebooks/04-newton-fails")


def by_finger(browser, path, more=""):
    """The complaints of all figures of a page that can be dragged; ``more`` is a script that runs before the page's own."""
    context = browser.new_context(viewport={"width": NARROW, "height": HEIGHT}, has_touch=True, is_mobile=True)
    page = context.new_page()
    page.add_init_script(more)
    page.goto(path.resolve().as_uri())
    page.evaluate("() => window.MathJax?.startup?.promise")  # what is typeset late moves all below it
    specs = described(path.read_text(encoding="utf-8"))
    figures = [
        (box, spec) for box, spec in zip(page.locator("figure.gn-figure").all(), specs, strict=True) if spec["drag"]
    ]
    said = [line for figure in figures for line in fingered(page, *figure)]
    context.close()
    return figures and said


def test_every_page_with_a_handle_is_tried(book_folder):
    texts = {name: (book_folder / f"{name}.html").read_text(encoding="utf-8") for name in PAGES}
    assert tuple(name for name in PAGES if any(spec["drag"] for spec in described(texts[name]))) == DRAGGED


@pytest.mark.parametrize("name", DRAGGED)
def test_a_finger_drags_the_handle_and_scrolls_elsewhere(browser, book_folder, name):
    said = by_finger(browser, book_folder / f"{name}.html")
    assert not said, "\n".join(said)


DEAF = "document.addEventListener('touchstart', event => event.stopImmediatePropagation(), true)"


def test_a_handle_that_scrolls_away_is_noticed(browser, book_folder):
    said = by_finger(browser, book_folder / f"{DRAGGED[0]}.html", DEAF)
    assert [line for line in said if "on the handle scrolls" in line]


# -- made-up figures: each breaks one law, and is refused for it ------------------------------------------------------

CONTROLS = (slider("a", "strength λ_int", (1, 2, 3), 1, "{} times".format), choice("b", "which", ("x", "y"), "x"))
PANEL = Panel(Axis("x of it"), Axis("y"), "a title")


def shown(a, b):
    return Shown([{"x": [0, 1], "y": [0, a / 4 + (b == "y") / 8]}], f"The slope is {a}, for {b}.")


def a_figure(numbers=shown, panel=PANEL):
    scene = Scene(CONTROLS, (panel,), (Mark("line", label="a line"),))
    return to_json(scene) | {"sentence": numbers(1, "x").sentence, "table": table(scene, numbers)}


def planted(tmp_path, spec, more=""):
    """A page with this figure, with the book's own scripts and style."""
    parts = "".join(f"<script>{(STATIC / name).read_text()}</script>" for name in BOOK["SCRIPTS"])
    style = f"<style>body {{ color: #222; background: #fff }}{(STATIC / BOOK['STYLE']).read_text()}</style>"
    dark = "<script>matchMedia('(prefers-color-scheme: dark)').onchange = e => { document.documentElement.dataset.theme = e.matches ? 'dark' : 'light'; };</script>"
    paper = "<style>html[data-theme=dark] { --pst-color-text-base: #eee; --pst-color-background: #111; --pst-color-text-muted: #bbb }"
    paper += " html[data-theme=dark] body { color: #eee; background: #111 }</style>"
    figure = BOOK["figure"](spec, "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7")
    path = tmp_path / "page.html"
    path.write_text(f"{HEAD}{style}{paper}{dark}<body><main><h1>Made up</h1>{figure}{more}</main>{parts}", "utf-8")
    return path


def refused(browser, tmp_path, spec, more=""):
    with opened(browser, planted(tmp_path, spec, more)) as page:
        return page.complaints(violations)


def a_walker(rows=("1e-16 2e+00", "2e-16 3e-16")):
    """A derivation of two lines with one slider; the second line fails on the first example."""
    lines = "".join(f"<li>{n}<br><span class='gn-verdict'>checked: holds to 1e-10</span></li>" for n in "ab")
    spec = {"walker": [1e-10, 1e-10], "controls": to_json(Scene(CONTROLS[1:], (), ()))["controls"], "rows": rows}
    spec["controls"][0]["kind"] = "slider"
    return BOOK["walker"](spec, f"<b>Made up</b><ol>{lines}</ol>")


def test_a_derivation_is_walked_and_a_line_that_fails_is_noticed(browser, tmp_path):
    assert refused(browser, tmp_path, a_figure(), a_walker()) == []
    said = refused(browser, tmp_path, a_figure(), a_walker(("1e-16 2e-16", "2e-16 2e+00")))
    assert said == ["figure 1: checked: FAILS to 1e-10 (off by 2e+00)"]
    said = refused(browser, tmp_path, a_figure(), a_walker(("1e-16 2e-16",) * 2))
    assert said == ["figure 1: b: the same residuals"]


def test_a_sound_figure_is_accepted(browser, tmp_path):
    assert refused(browser, tmp_path, a_figure()) == []


def renamed(spec, label):
    return spec | {"controls": [spec["controls"][0] | {"label": label}, *spec["controls"][1:]]}


BROKEN = {
    "picture stays": lambda: (a_figure(lambda a, b: Shown(shown(1, b).numbers, shown(a, b).sentence)), ""),
    "sentence stays": lambda: (a_figure(lambda a, b: Shown(shown(a, b).numbers, "It is as it is.")), ""),
    "0 controls for": lambda: (a_figure() | {"controls": []}, ""),
    "critical label": lambda: (renamed(a_figure(), ""), ""),
    "on each other": lambda: (a_figure(panel=Panel(Axis(ticks=(0.5, 0.51)), Axis())), ""),
    "cut off": lambda: (a_figure(panel=Panel(Axis(), Axis(), "a long title, " * 12)), ""),
    "outside request": lambda: (a_figure(), "<img alt='far away' src='https://example.org/a.png'>"),
    "console": lambda: (a_figure(), "<script>console.error('something is wrong')</script>"),
    "another picture": lambda: (a_figure(), "<script>setInterval(() => document.querySelector('.gn-panels').append(' '), 5)</script>"),
}  # fmt: skip


@pytest.mark.parametrize("law", BROKEN)
def test_a_broken_figure_is_refused(browser, tmp_path, law):
    said = refused(browser, tmp_path, *BROKEN[law]())
    assert any(law in line for line in said)
