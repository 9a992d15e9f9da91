"""Every page of the book as a reader sees it: offline, typeset, whole, on a wide and a narrow screen, by day and by night."""

from base64 import b64encode
from pathlib import Path

import pytest
from browser.reading import THEMES, reading

pytestmark = pytest.mark.browser

BOOK = Path(__file__).parents[2] / "book"
PAGES = sorted(
    [path.stem for end in ("md", "rst") for path in BOOK.glob(f"*.{end}")]
    + [f"notebooks/{path.stem}" for path in (BOOK.parent / "notebooks").glob("*.ipynb")]
    + ["genindex", "py-modindex", "search"]
)


def test_these_are_all_pages(book_folder):
    """A page that was built earlier and has no source any more goes with ``rm -r book/_build``."""
    built = (path.relative_to(book_folder).with_suffix("") for path in book_folder.rglob("*.html"))
    assert sorted(path.as_posix() for path in built if path.parts[0] != "_static") == PAGES


@pytest.mark.parametrize("name", PAGES)
def test_page_reads_well(browser, book, name):
    with reading(browser, f"{book}/{name}.html") as page:
        said = page.complaints()
    assert not said, "\n".join(said)


@pytest.mark.parametrize("name", PAGES)
def test_photograph(browser, book, screenshots, name):
    """Nothing is judged here: pictures for a person to look at."""
    with reading(browser, f"{book}/{name}.html") as page:
        page.photograph(screenshots, f"book-{name.replace('/', '-')}")


@pytest.mark.parametrize("name", ["index", "notebooks/02-summary"])
def test_page_reads_well_without_a_server(browser, book_folder, name):
    with reading(browser, (book_folder / f"{name}.html").resolve().as_uri()) as page:
        said = page.complaints()
    assert not said, "\n".join(said)


PAPER = """([picture, page]) => {
  const pen = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const brightness = source => {
    pen.canvas.width = source.width; pen.canvas.height = source.height;
    pen.drawImage(source, 0, 0);
    const [r, g, b] = pen.getImageData(2, 2, 1, 1).data;
    return Math.round((r + g + b) / 3);
  };
  return Promise.all([picture, page].map(async one => {
    const image = new Image();
    image.src = 'data:image/png;base64,' + one;
    await image.decode();
    return brightness(image);
  }));
}"""


def papers(page, image):
    """How bright the paper of a picture is, in its corner, and the page beside it."""
    image.scroll_into_view_if_needed()
    box = image.bounding_box()
    beside = {"x": box["x"] - 8, "y": box["y"] - 8, "width": 6, "height": 6}
    shots = page.screenshot(clip=box), page.screenshot(clip=beside)
    return page.evaluate(PAPER, [b64encode(shot).decode() for shot in shots])


@pytest.mark.parametrize("theme", THEMES)
def test_a_picture_has_the_paper_of_its_page(browser, book, theme):
    with reading(browser, f"{book}/notebooks/03-digits.html") as reader:
        reader.wear(theme)
        image = reader.page.locator(".cell_output > img").first
        picture, page = papers(reader.page, image)
        assert abs(picture - page) <= 3
        assert (page > 200) == (theme == "light")
        if theme == "dark":
            image.evaluate("image => image.style.filter = 'none'")  # as it was saved
            picture, page = papers(reader.page, image)
            assert picture - page > 100


def test_a_page_is_printed_in_its_light_theme(browser, book):
    with reading(browser, f"{book}/notebooks/03-digits.html") as reader:
        reader.wear("dark")
        reader.page.evaluate("""() => {
          const page = document.documentElement, image = document.querySelector('.cell_output > img');
          window.printed = [];
          addEventListener('beforeprint', () => printed.push(page.dataset.theme, getComputedStyle(image).filter));
        }""")
        reader.page.pdf(page_ranges="1")
        assert reader.page.evaluate("printed") == ["light", "none"]
        assert reader.page.evaluate("document.documentElement.dataset.theme") == "dark"


# -- made-up pages: each breaks one law, and is refused for it alone --------------------------------------------------

DOT = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
FOLLOWS = """<script>
  const dark = matchMedia('(prefers-color-scheme: dark)'), wear = () => document.documentElement.dataset.theme = dark.matches ? 'dark' : 'light';
  wear(); dark.onchange = wear;
</script>"""
SOUND = f"""<p>An image <img src="{DOT}" alt="a dot">, a formula <span class="math"><mjx-container>x</mjx-container></span>,
  <code>\\(code\\) and $x$</code>, $5 and a table that scrolls for itself:</p>
  <div style="overflow-x: auto"><table><tr><td><div style="width: 2000px">wide</div></td></tr></table></div>"""
BROKEN = {
    "image not loaded": "<img src='data:image/png;base64,AAAA' alt='nothing'>",
    "outside request": "<link rel='preload' as='font' crossorigin href='https://example.org/letters.woff2'>",
    "merror": "<mjx-container><mjx-merror>Undefined control sequence</mjx-merror></mjx-container>",
    "raw mathematics": "<p>so that \\(\\eta\\) falls</p>",
    "raw mathematics: a command": "<p>so that \\nabla L falls</p>",
    "raw mathematics: dollars": "<p>so that $x + y$ falls</p>",
    "not typeset": "<div class='math'>x + y</div>",
    "scrolls to": "<table id='wide'><tr><td><div style='width: 600px'>wide</div></td></tr></table>",
    "scrolls to when open": "<details><summary>more</summary><div style='width: 2000px'>wide</div></details>",
    "console": "<script>console.error('something is wrong')</script>",
    "page error": "<script>nobody.knows.this()</script>",
    "data-theme": "<script>dark.onchange = null</script>",
}


def refused(browser, served, folder, body):
    (folder / "page.html").write_text(
        f"<!doctype html><title>made up</title><link rel=icon href='data:,'><body>{FOLLOWS}{body}</body>"
    )
    with reading(browser, f"{served(folder)}/page.html") as page:
        return page.complaints()


def test_a_sound_page_is_accepted(browser, served, tmp_path):
    assert refused(browser, served, tmp_path, SOUND) == []


@pytest.mark.parametrize("law", BROKEN)
def test_a_broken_page_is_refused(browser, served, tmp_path, law):
    said = refused(browser, served, tmp_path, SOUND + BROKEN[law])
    assert any(complaint.startswith(law.partition(":")[0].removesuffix(" when open")) for complaint in said)
    # A request that fails is told by the console too, and a wide page at both widths.
    assert len(said) == 1 or law in ("outside request", "scrolls to when open")
