"""What the wheel and the sdist hold beside the library: the notebooks, and the book as pages that read offline.

An editable installation reads the course from its checkout, and builds nothing. An sdist carries the built book, so that a
wheel can be made of it without Sphinx. Building needs no network, but an interpreter with the extra ``book``: this one, that
of the active environment or that of the checkout's ``.venv``. Where there is none the package is built without the book, and
says so; with GNEWTON_BOOK=required, as ``make dist`` sets it, it is not built.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

BUILT = "book/_build/html"
FILES = "gnewton/course/files"  # gnewton.course.place reads them there
PAGES = ("book/refresher.md", "book/glossary.md", "book/LICENSE", "notebooks/LICENSE")
NEEDS = "import sphinx, myst_nb, sphinx_book_theme, sphinxcontrib.bibtex, gnewton, matplotlib"


class CourseHook(BuildHookInterface):
    """Called by hatchling for each target."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the course to what is packed."""
        if version == "editable":
            return
        self._scratch = tempfile.mkdtemp()
        book = self._book(Path(self._scratch) / "html")
        if self.target_name == "wheel":
            build_data["force_include"] |= {str(Path(self.root, page)): f"{FILES}/{page}" for page in self._course()}
        if book is not None:
            prefix = "" if self.target_name == "sdist" else f"{FILES}/"
            build_data["force_include"][str(book)] = prefix + BUILT

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Leave nothing behind."""
        shutil.rmtree(getattr(self, "_scratch", ""), ignore_errors=True)

    def _course(self) -> list[str]:
        notebooks = sorted(path.name for path in Path(self.root, "notebooks").glob("*.ipynb"))
        return [*(f"notebooks/{name}" for name in notebooks), *PAGES]

    def _book(self, target: Path) -> Path | None:
        """The folder of the built book; None, after a word, where it cannot be built."""
        root = Path(self.root)
        if (root / "PKG-INFO").is_file():  # an unpacked sdist: there it was built with the rest
            return root / BUILT if (root / BUILT / "index.html").is_file() else None
        python = next((python for python in interpreters(root) if can_build(python)), None)
        if python is not None:
            subprocess.run([python, str(root / "tools" / "ship_book.py"), str(target)], check=True, env=plain())
            return target
        missing = (
            "expected an interpreter that can build the book, found none: "
            "pip install -e '.[book]' in this or an active environment, or in .venv"
        )
        if os.environ.get("GNEWTON_BOOK") == "required":
            raise RuntimeError(missing)
        self.app.display_warning(f"The book is left out: {missing}")
        return None


def interpreters(root: Path) -> Iterator[str]:
    """This one, the active environment's, the checkout's. Isolated builds run in an environment of their own."""
    yield sys.executable
    for folder in (os.environ.get("VIRTUAL_ENV"), root / ".venv"):
        for inside in ("bin/python", "Scripts/python.exe"):
            if folder and (python := Path(folder) / inside).exists():
                yield str(python)


def can_build(python: str) -> bool:
    """Whether this interpreter has the extra ``book``."""
    return subprocess.run([python, "-c", NEEDS], capture_output=True, env=plain(), check=False).returncode == 0


def plain() -> dict[str, str]:
    """The environment without what an isolated build adds for its own interpreter."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_"))}
