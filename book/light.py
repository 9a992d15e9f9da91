"""What a page need not load: every icon as a script (the style has them as letters), names of icons that no page shows, parts
of MathJax without a task here, the search outside its page."""

import re
from pathlib import Path

PARTS = ("core", "input/tex", "output/chtml", "a11y/assistive-mml")  # the last one for screen readers
KEPT = ("startup.js", *(f"{part}.js" for part in PARTS), "input/tex/extensions/", "output/chtml/fonts/")
ICONS = re.compile(r'\s*<script defer src="[^"]*/fontawesome\.js[^"]*"></script>')
SEARCH = re.compile(r'\s*<script src="[^"]*(?:searchtools|language_data|searchindex)\.js[^"]*"></script>')
# What gives an icon's name its letter, in the style: two thousand of them.
NAMES = re.compile(r'((?:\.fa-[\w-]+,?)+)\{--fa:"[^"]*"(?:;--fa--fa:"[^"]*")?\}')


def lighten(book: Path) -> None:
    """The built book without them."""
    for path in [*book.glob("*.html"), *book.glob("notebooks/*.html")]:
        text = ICONS.sub("", path.read_text(encoding="utf-8"))
        path.write_text(text if path.name == "search.html" else SEARCH.sub("", text), encoding="utf-8")
    for path in (book / "_static" / "scripts").glob("fontawesome.js*"):
        path.unlink()
    _drop_icons(book)
    mathjax = book / "_static" / "mathjax"
    for path in sorted(mathjax.rglob("*"), reverse=True):
        if path.is_dir():
            if not any(path.iterdir()):
                path.rmdir()
        elif not path.relative_to(mathjax).as_posix().startswith(KEPT):
            path.unlink()


def _drop_icons(book: Path) -> None:
    """The style without the letters of icons that neither a page nor a script names."""
    naming = (path for path in book.rglob("*") if path.suffix in (".html", ".js"))
    named = set(re.findall(r"fa-[\w-]+", "\n".join(path.read_text(encoding="utf-8") for path in naming)))
    style = book / "_static" / "styles" / "pydata-sphinx-theme.css"
    used = lambda rule: not named.isdisjoint(rule[1].replace(".", "").split(","))  # noqa: E731
    style.write_text(NAMES.sub(lambda rule: rule[0] * used(rule), style.read_text("utf-8")), encoding="utf-8")
