"""Every page of the book by axe-core, in both themes: no violation that it calls serious or critical.

All violations, the lighter ones too, are listed in accessibility.txt beside the screenshots.
"""

import pytest
from browser.reading import HEIGHT, NARROW, THEMES, reading
from browser.test_book import DOT, PAGES

pytestmark = pytest.mark.browser

SEVERE = ("serious", "critical")


def violations(page, theme):
    """One line each: impact, rule, theme, selectors."""
    from axe_playwright_python.sync_playwright import Axe

    page.wear(theme)
    breaches = Axe().run(page.page, options={"resultTypes": ["violations"]}).response["violations"]
    selectors = [[" ".join(map(str, node["target"])) for node in one["nodes"]] for one in breaches]
    return [f"{v['impact']} {v['id']} ({theme}): {'; '.join(at)}" for v, at in zip(breaches, selectors, strict=True)]


def severe(lines):
    return [line for line in lines if line.startswith(SEVERE)]


@pytest.fixture(scope="module")
def listed(screenshots):
    """Writes down what was found on a page."""
    with (screenshots / "accessibility.txt").open("w") as log:
        yield lambda name, lines: log.writelines(f"{name}: {line}\n" for line in lines)


@pytest.mark.parametrize("name", PAGES)
def test_page_is_accessible(browser, book, listed, name):
    with reading(browser, f"{book}/{name}.html") as page:
        lines = [line for theme in THEMES for line in violations(page, theme)]
    listed(name, lines)
    assert not severe(lines), "\n".join(severe(lines))


def test_the_keyboard_scrolls_what_is_wider_than_a_telephone(browser, book):
    # Equations, code and a picture of several panels: each of them stands out of a window so narrow.
    with reading(browser, f"{book}/notebooks/05-third-order.html") as page:
        page.page.set_viewport_size({"width": NARROW, "height": HEIGHT})
        assert severe(violations(page, "light")) == []
        page.page.evaluate("document.querySelectorAll('[tabindex]').forEach(box => box.removeAttribute('tabindex'))")
        (line,) = severe(violations(page, "light"))
    assert line.startswith("serious scrollable-region-focusable")


# -- made-up pages -----------------------------------------------------------------------------------------------------

SOUND = f"<main><h1>Made up</h1><p>An image: <img src='{DOT}' alt='a dot'></p></main>"
BROKEN = {
    "critical image-alt": f"<img src='{DOT}'>",
    "critical button-name": "<button></button>",
    "serious color-contrast": "<p style='color: #aaa; background: #fff'>hardly seen</p>",
    "serious summary-name": "<details><summary></summary>more</details>",
}


@pytest.mark.parametrize("law", ["", *BROKEN])
def test_violations_are_noticed(browser, served, tmp_path, law):
    body = SOUND.replace("</main>", f"{BROKEN.get(law, '')}</main>")
    (tmp_path / "page.html").write_text(
        f"<!doctype html><html lang='en'><title>Made up</title><link rel=icon href='data:,'><body>{body}</body>"
    )
    with reading(browser, f"{served(tmp_path)}/page.html") as page:
        lines = severe(violations(page, "light"))
    assert [line.startswith(law) for line in lines] == [True] * bool(law)
