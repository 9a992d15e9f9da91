"""The book as it ships in the wheel: ``python tools/ship_book.py TARGET``, with the extra ``book`` installed.

Built anew from this checkout, without a network, then freed of maps for debuggers and translations of the theme. The licences of
what stays are laid beside it.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import distribution
from pathlib import Path

ROOT = Path(__file__).parents[1]
# No copies of the sources, so no button that would download them.
SETTINGS = ("html_copy_source=0", "html_theme_options.use_download_button=false")
BUNDLED = ("pydata-sphinx-theme", "sphinx", "sphinx-book-theme", "sphinx-mathjax-offline")
MATHJAX_NOTICE = "MathJax, https://www.mathjax.org, is licensed under the Apache License 2.0: https://www.apache.org/licenses/LICENSE-2.0\n"


def main(target: Path) -> None:
    """Build, prune and move into place: nothing is there while it is not whole."""
    with tempfile.TemporaryDirectory() as folder:
        html, rest = Path(folder) / "html", Path(folder) / "doctrees"
        build(html, rest)
        prune(html)
        add_licences(html / "_static" / "licences")
        shutil.copytree(html, target)


def build(html: Path, doctrees: Path) -> None:
    """Sphinx, in a process of its own; its warnings are errors."""
    settings = [word for setting in SETTINGS for word in ("-D", setting)]
    command = [sys.executable, "-m", "sphinx", "-W", "-n", "--keep-going", "-q", "-d", str(doctrees), *settings]
    subprocess.run([*command, str(ROOT / "book"), str(html)], check=True)


def prune(html: Path) -> None:
    """Take away what no page loads."""
    for path in sorted(html.rglob("*")):
        if path.is_file() and not needed(path.relative_to(html).as_posix()):
            path.unlink()
    for folder in sorted((path for path in html.rglob("*") if path.is_dir()), reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()


def needed(name: str) -> bool:
    """Whether a file of the built book belongs into the wheel.

    >>> [needed(name) for name in ("index.html", "_static/scripts/bootstrap.js.map")]
    [True, False]
    """
    return not (name.endswith(".map") or name == ".buildinfo" or name.startswith(("_static/locales/", "_sources/")))


def add_licences(folder: Path) -> None:
    """The licences of the packages whose files the book holds."""
    folder.mkdir()
    (folder / "MathJax.txt").write_bytes(MATHJAX_NOTICE.encode())
    for name in BUNDLED:
        files = [file for file in distribution(name).files or [] if "/licenses/" in file.as_posix()]
        for file in files:
            shutil.copyfile(Path(str(file.locate())), folder / f"{name}.txt")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Build the book as it ships in the wheel.")
    parser.add_argument("target", type=Path, help="a folder that is not there yet")
    main(parser.parse_args().target)
