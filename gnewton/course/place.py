"""Where the course lies: inside an installed package, or around the package in a checkout.

An installed package holds it under ``gnewton/course/files``, laid out as in the checkout (``hatch_build.py`` puts it there).
"""

from pathlib import Path

HERE = Path(__file__).parent
FILES = HERE / "files"
JUPYTER = HERE / "jupyter"  # settings of JupyterLab for the reader: no question about news, pages open rendered


def root() -> Path:
    """The folder that holds ``notebooks`` and ``book``; FileNotFoundError where there is none."""
    for folder in (FILES, HERE.parents[1]):
        if (folder / "notebooks" / "00-tour.ipynb").is_file():
            return folder
    raise FileNotFoundError(
        f"expected the course in {FILES} or beside the package, found none: install gnewton again, from its wheel"
    )


def notebooks() -> Path:
    """The folder of the notebooks."""
    return root() / "notebooks"


def pages() -> list[Path]:
    """The pages of the book that notebooks link to."""
    return [path for name in ("refresher", "glossary") if (path := root() / "book" / f"{name}.md").is_file()]


def book() -> Path:
    """The first page of the built book; FileNotFoundError, with what to do, where it was not built."""
    page = root() / "book" / "_build" / "html" / "index.html"
    if not page.is_file():
        raise FileNotFoundError(f"expected the built book at {page}, found none: in a checkout, make book builds it")
    return page
