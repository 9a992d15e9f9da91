"""The figures as a reader meets them, in Chromium: script a frame on a page of the book, key to picture in JupyterLab."""

import os
import re
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.plan import Plan
from benchmarks.process import ROOT
from benchmarks.report import mark, save, table
from benchmarks.widgets import percentile

BOOK = ROOT / "book" / "_build" / "html"
ASKED_FRAME, ASKED_KEY = 8.0, 40.0  # milliseconds, for the median
MOVES, KEYS = 40, 12
BUSY = 2.0  # a load average that a browser and a kernel by themselves do not reach
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")

# Every control of a figure through its values and back, a frame each: milliseconds of script, numbers and drawing together.
FRAMES = """async ([index, moves]) => {
  const figure = gnewton.figures[index], box = document.querySelectorAll('figure[data-gnewton]')[index], times = [];
  const frame = () => new Promise(requestAnimationFrame);
  for (const control of figure.spec.controls) {
    const last = control.shown.length - 1, start = figure.state[control.name];
    for (let k = 1; k <= moves; k++) {
      const round = k % (2 * last), before = box.dataset.draws;
      figure.move({ [control.name]: round <= last ? round : 2 * last - round });
      await frame(); await frame();
      if (box.dataset.draws !== before) times.push(+box.dataset.ms);
    }
    figure.move({ [control.name]: start });
    await frame();
  }
  return times;
}"""
# From the key's event to the change of the picture.
LISTEN = """box => {
  let pressed = 0;
  box.times = [];
  document.addEventListener('keydown', () => { pressed = performance.now(); }, true);
  new MutationObserver(() => { if (pressed) { box.times.push(performance.now() - pressed); pressed = 0; } })
    .observe(box.querySelector('.gn-panels'), { subtree: true, childList: true, attributes: true });
}"""


def figures(plan: Plan) -> None:
    """Both, where there is a Chromium, playwright and a built book; else a line that says what is missing."""
    if missing := lacking():
        print(f"The figures in a browser were left out: {missing}.", flush=True)
        return
    with chromium() as browser:
        page = [one for path in _pages(plan) for one in frames(browser, path)]
        lab = [one for name in _names(plan) for one in keys(browser, name)]
    results = {"page": page, "lab": lab, "load": os.getloadavg()[2]}
    save(plan.folder, "figures", report(results), results)
    slow = [one for one in page if statistics.median(one["ms"]) > ASKED_FRAME]
    late = [one for one in lab if statistics.median(one["ms"]) > ASKED_KEY]
    plan.failures += [f"figure: {one['page']}, {one['figure']}" for one in (*slow, *late)]


def lacking() -> str:
    """What is not there of the browser, its driver and the book; nothing where all is."""
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "playwright is missing, make browser-test installs it"
    if not any(map(shutil.which, CHROMIUM)):
        return "no Chromium was found, make chromium installs one"
    return "" if (BOOK / "index.html").exists() else "there is no built book, make book"


def report(results: dict[str, Any]) -> str:
    """The words and the table of what was measured."""
    page, lab = ([statistics.median(one["ms"]) for one in results[name]] for name in ("page", "lab"))
    met = sum(v <= ASKED_FRAME for v in page), sum(v <= ASKED_KEY for v in lab)
    words = (
        f"On a page: medians of {min(page):.1f} to {max(page):.1f} ms of script a frame, at most {ASKED_FRAME:.0f} asked, "
        f"which {met[0]} of {len(page)} figures meet. In JupyterLab, from the key to the changed picture: medians of "
        f"{min(lab):.0f} to {max(lab):.0f} ms, at most {ASKED_KEY:.0f} asked, which {met[1]} of {len(lab)} meet."
    )
    if (load := results.get("load", 0.0)) > BUSY:
        words += f" Other work ran beside JupyterLab: the load average was {load:.1f}."
    live = {(one["page"], one["figure"]): one for one in results["lab"]}
    rows = [_row(one, live.get((one["page"], one["figure"]))) for one in results["page"]]
    header = ["page", "figure", "numbers", "script a frame: median ms", "95th percentile", "met"]
    header += ["key to picture, live: median ms", "95th percentile", "met"]
    return f"## The figures in a browser\n\n{words}\n\n{table(header, rows)}"


def _row(one: dict[str, Any], live: dict[str, Any] | None) -> list[Any]:
    return [one["page"], one["figure"], one["source"], *_cells(one, ASKED_FRAME), *_cells(live, ASKED_KEY)]


def _cells(one: dict[str, Any] | None, asked: float) -> list[str]:
    if one is None:
        return ["-"] * 3
    middle = statistics.median(one["ms"])
    return [f"{middle:.1f}", f"{percentile(one['ms'], 95):.1f}", mark(middle <= asked)]


@contextmanager
def chromium() -> Iterator[Any]:
    """Chromium without a window."""
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, CHROMIUM)))
    with sync_playwright() as running:
        browser = running.chromium.launch(executable_path=path, chromium_sandbox=False)
        yield browser
        browser.close()


def _pages(plan: Plan) -> list[Path]:
    pages = [path for path in sorted(BOOK.rglob("*.html")) if "data-gnewton>" in path.read_text(encoding="utf-8")]
    return pages[:: 6 if plan.quick else 1]


def _names(plan: Plan) -> list[str]:
    return [path.stem for path in _pages(plan) if re.match(r"\d\d-", path.stem)]


def frames(browser: Any, path: Path) -> list[dict[str, Any]]:
    """Milliseconds of script for every frame of every figure of a page, opened from its file."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(path.resolve().as_uri())
    page.evaluate("async () => { await window.MathJax?.startup?.promise; }")
    sources = page.evaluate("gnewton.figures.map(f => f.spec.compute || (f.spec.table ? 'table' : 'still'))")
    timings = [
        {"page": path.stem, "figure": i, "source": source, "ms": page.evaluate(FRAMES, [i, MOVES])}
        for i, source in enumerate(sources)
    ]
    page.close()
    return timings


def keys(browser: Any, name: str) -> list[dict[str, Any]]:
    """Milliseconds from key to picture for every figure of a notebook, after Run All Cells in JupyterLab."""
    sys.path.append(str(ROOT / "tests"))  # the tests drive JupyterLab as a person does
    from browser.lab import Notebook, jupyterlab

    with tempfile.TemporaryDirectory() as folder, jupyterlab(Path(folder)) as lab:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        notebook = Notebook(page, lab.url(name))
        if errors := notebook.run_all():
            raise RuntimeError(f"expected {name} to run, got {errors}; mend it before timing")
        timings = [
            {"page": name, "figure": i, "ms": times}
            for i, figure in enumerate(notebook.pictures())
            if not figure.can("Start") and (times := _pressed(page, figure.box))
        ]
        notebook.close()
        page.close()
    return timings


def _pressed(page: Any, box: Any) -> list[float]:
    box.evaluate(LISTEN)
    for control in box.locator(".gn-control input, .gn-control select").all():
        slider = control.get_attribute("type") == "range"
        ahead, behind = ("ArrowRight", "ArrowLeft") if slider else ("ArrowDown", "ArrowUp")
        control.press("Home")
        page.wait_for_timeout(300)
        for k in range(KEYS):
            control.press(ahead if k % 2 == 0 else behind)
            page.wait_for_timeout(120)  # a person's pace
    times: list[float] = box.evaluate("box => box.times")
    return times
