"""What a page of the book loads, uncompressed, when it is opened from its file and read to the end."""

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from browser.reading import TYPESET
from browser.test_book import PAGES

pytestmark = pytest.mark.browser

LARGEST = 2_000_000  # bytes
LARGEST_SCRIPTS = 60_000  # of figures and derivations, with their style


def loaded(browser, path):
    """Every file that the page asks for, itself among them, and its bytes."""
    page, files = browser.new_page(), {}
    page.on("request", lambda request: files.setdefault(Path(unquote(urlsplit(request.url).path)), 0))
    page.goto(path.resolve().as_uri())
    page.evaluate(TYPESET)
    page.evaluate("() => document.fonts.ready")
    page.close()
    return {file: file.stat().st_size for file in files if file.is_file()}


@pytest.mark.parametrize("name", [name for name in PAGES if name == "index" or name.startswith("notebooks/")])
def test_a_page_is_light(browser, book_folder, name):
    files = loaded(browser, book_folder / f"{name}.html")
    assert {".html", ".js", ".css", ".woff2"} <= {file.suffix for file in files}
    heaviest = sorted(files, key=files.get, reverse=True)[:8]
    assert sum(files.values()) < LARGEST, "\n".join(f"{files[file]:,} {file.name}" for file in heaviest)
    ours = [size for file, size in files.items() if file.parent.name == "figures" and file.suffix != ".png"]
    assert 0 < sum(ours) < LARGEST_SCRIPTS


def twins(browser, path, scripts):
    """The pictures of figures that the page loads, with its scripts or where none may run."""
    context = browser.new_context(java_script_enabled=scripts)
    page, asked = context.new_page(), []
    page.on("requestfinished", lambda request: asked.append(Path(urlsplit(request.url).path)))
    page.goto(path.resolve().as_uri())
    context.close()
    return {file.name for file in asked if file.suffix == ".png" and file.parent.name == "figures"}


def test_the_picture_of_a_figure_is_loaded_where_no_script_runs(browser, book_folder):
    path = book_folder / "notebooks" / "04-newton-fails.html"
    saved = set(re.findall(r'src="[^"]*/figures/([^"]+\.png)"', path.read_text(encoding="utf-8")))
    assert len(saved) == 2
    assert twins(browser, path, scripts=False) == saved
    assert twins(browser, path, scripts=True) == set()


def test_every_file_is_counted(browser, tmp_path):
    (tmp_path / "much.js").write_text("/*" + "x" * 5000 + "*/")
    (tmp_path / "page.html").write_text("<!doctype html><link rel=icon href='data:,'><script src='much.js'></script>")
    files = loaded(browser, tmp_path / "page.html")
    assert {file.name: size > 5000 for file, size in files.items()} == {"page.html": False, "much.js": True}
