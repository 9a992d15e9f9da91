"""What a page of the book loads, uncompressed, when it is opened from its file and read to the end."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from browser.reading import TYPESET
from browser.test_book import PAGES

pytestmark = pytest.mark.browser

LARGEST = 2_000_000  # bytes
# The numbers of all states of their figures: fifteen training runs, six spectra, five races.
MORE = {"notebooks/09-noise": 2_300_000, "notebooks/12-one-sample": 2_300_000, "notebooks/13-race": 2_300_000}


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
    assert sum(files.values()) < MORE.get(name, LARGEST), "\n".join(f"{files[file]:,} {file.name}" for file in heaviest)


def test_every_file_is_counted(browser, tmp_path):
    (tmp_path / "much.js").write_text("/*" + "x" * 5000 + "*/")
    (tmp_path / "page.html").write_text("<!doctype html><link rel=icon href='data:,'><script src='much.js'></script>")
    files = loaded(browser, tmp_path / "page.html")
    assert {file.name: size > 5000 for file, size in files.items()} == {"page.html": False, "much.js": True}
