"""What the wheel and the sdist hold: the library, the course and its licences, the same bytes each time, and little else.

Built once for all tests here (marker ``wheel``: it takes minutes, because the book is built twice).
"""

import re
import shutil
import subprocess
import sys
import tarfile
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[2]
FILES = "gnewton/course/files"
BOOK = f"{FILES}/book/_build/html"
LARGEST = 16_000_000  # bytes; 12.5 MB when this was written
# What a wheel may hold, by folder: anything else is an error, and so is a pattern that finds nothing.
ALLOWED = {
    "library": ("gnewton/*.py",),
    "numbers of the experiments": ("gnewton/experiments/*/*.json",),
    "figures that move": ("gnewton/teaching/static/*.js", "gnewton/teaching/static/*.css"),
    "settings of JupyterLab": ("gnewton/course/jupyter/labconfig/default_setting_overrides.json",),
    "notebooks": (f"{FILES}/notebooks/[01][0-9]-*.ipynb",),
    "pages that notebooks link to": (f"{FILES}/book/refresher.md", f"{FILES}/book/glossary.md"),
    "licences of the course": (f"{FILES}/notebooks/LICENSE", f"{FILES}/book/LICENSE"),
    "pages of the book": (f"{BOOK}/*.html", f"{BOOK}/searchindex.js", f"{BOOK}/objects.inv"),
    "pictures of the book": (f"{BOOK}/_images/*.png", f"{BOOK}/_images/*.svg"),
    "styles and scripts of the book": (f"{BOOK}/_static/*.css", f"{BOOK}/_static/*.js", f"{BOOK}/_static/*.woff*"),
    "MathJax": (f"{BOOK}/_static/mathjax/*.js", f"{BOOK}/_static/mathjax/*.woff"),
    "small files of the theme": (
        f"{BOOK}/_static/*.png",
        f"{BOOK}/_static/*.svg",
        f"{BOOK}/_static/*.html",
        f"{BOOK}/_static/*.ttf",
    ),
    "licences of what the book holds": (f"{BOOK}/_static/licences/*.txt", f"{BOOK}/_static/*LICENSE.txt"),
    "metadata": ("gnewton-*.dist-info/*",),
}
FORBIDDEN = ("*.map", "*.pyc", "*/.*", "tests/*", f"{BOOK}/_sources/*", f"{BOOK}/_static/mathjax/tex-svg*")


def unexpected(names: list[str]) -> list[str]:
    """The files that no pattern allows, or one forbids."""
    allowed = [pattern for patterns in ALLOWED.values() for pattern in patterns]
    return [
        name for name in names if not any(fnmatch(name, p) for p in allowed) or any(fnmatch(name, p) for p in FORBIDDEN)
    ]


def lacking(names: list[str]) -> list[str]:
    """The kinds of which there is no file."""
    return [kind for kind, patterns in ALLOWED.items() if not any(fnmatch(name, p) for name in names for p in patterns)]


def test_a_stranger_and_a_gap_are_noticed() -> None:
    assert unexpected(["gnewton/cubic.py", "gnewton/secret.txt", f"{BOOK}/_static/a.js.map"]) == [
        "gnewton/secret.txt",
        f"{BOOK}/_static/a.js.map",
    ]
    assert "notebooks" in lacking(["gnewton/cubic.py"])


# -- built ---------------------------------------------------------------------------------------------------------

wheel = pytest.mark.wheel


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist and the wheel made from it, and in ``again`` the same a second time, from a copy of the checkout."""
    if find_spec("build") is None or find_spec("sphinx") is None:
        pytest.skip("needs build and sphinx: make dist-test installs them")
    folder = tmp_path_factory.mktemp("dist")
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    for name in listing.rstrip("\0").split("\0"):
        copy = folder / "elsewhere" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy)  # with its mode: postBuild can be run
    for checkout, target in ((ROOT, folder), (folder / "elsewhere", folder / "again")):
        command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(target), str(checkout)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


def one(folder: Path, pattern: str) -> Path:
    (match,) = folder.glob(pattern)
    return match


@wheel
@pytest.mark.parametrize("kind", ["*.whl", "*.tar.gz"])
def test_two_builds_are_the_same_bytes(dist: Path, kind: str) -> None:
    first, second = one(dist, kind), one(dist / "again", kind)
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()


@wheel
def test_wheel_holds_what_it_should(dist: Path) -> None:
    with ZipFile(one(dist, "*.whl")) as file:
        names = file.namelist()
        times = {entry.date_time for entry in file.infolist()}
    assert unexpected(names) == []
    assert lacking(names) == []
    assert len([name for name in names if name.endswith(".ipynb")]) == len(list((ROOT / "notebooks").glob("*.ipynb")))
    assert len(times) == 1
    assert one(dist, "*.whl").stat().st_size < LARGEST


@wheel
def test_every_module_is_in_the_wheel(dist: Path) -> None:
    with ZipFile(one(dist, "*.whl")) as file:
        # The book has scripts to be downloaded.
        packed = {name for name in file.namelist() if name.endswith(".py") and not name.startswith(BOOK)}
    assert packed == {path.relative_to(ROOT).as_posix() for path in (ROOT / "gnewton").rglob("*.py")}


@wheel
def test_sdist_builds_tests_and_book(dist: Path) -> None:
    with tarfile.open(one(dist, "*.tar.gz")) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    wanted = ("pyproject.toml", "hatch_build.py", "LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "Makefile")
    assert set(wanted) <= names
    assert {"tests/conftest.py", "book/conf.py", "tools/ship_book.py", "book/_build/html/index.html"} <= names
    stray = (
        r"\.(?!github|devcontainer|gitignore)|learn|student|book/(notebooks|results)|tests/browser/screenshots|.*\.pyc"
    )
    assert [name for name in names if re.match(stray, name)] == []


@wheel
def test_twine_finds_nothing_to_complain_of(dist: Path) -> None:
    files = [str(one(dist, "*.whl")), str(one(dist, "*.tar.gz"))]
    done = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *files], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@wheel
def test_book_of_the_wheel_refers_to_nothing_that_is_not_there(dist: Path, tmp_path: Path) -> None:
    with ZipFile(one(dist, "*.whl")) as file:
        file.extractall(tmp_path)
    html = tmp_path / BOOK
    missing = set()
    for page in html.rglob("*.html"):
        for link in re.findall(r'(?:src|href)="([^"#?]+)', page.read_text(encoding="utf-8")):
            if not re.match(r"[a-z]+:|//|\$\{|\{\{", link) and not (page.parent / link).exists():
                missing.add(f"{page.relative_to(html)}: {link}")
    assert missing == set()
