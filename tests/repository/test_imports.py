"""The arrows of the design point one way, and importing gnewton needs torch and numpy alone."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "gnewton"

# A module imports only what stands before it. "gnewton" is the package itself, which imports all that stands before it.
ORDER = (
    "caller",
    "models",
    "datasets",
    "partition",
    "undo",
    "elementary",
    "loss",
    "direction",
    "derivatives",
    "summary",
    "secular",
    "cubic",
    "average",
    "proposer",
    "line",
    "policies",
    "settings",
    "saved_state",
    "optimizer",
    "schedules",
    "stochastic",
    "tuning",
    "exact",
    "gnewton",
    "training",
    "plots",
    "experiments",
    "teaching",
    "course",
    "__main__",
)
HEAVY = {"ipywidgets", "matplotlib", "sklearn", "tqdm", "pandas", "IPython"}


def room(path: Path) -> str:
    """gnewton/cubic.py -> cubic; gnewton/derivatives/nested.py -> derivatives; gnewton/__init__.py -> gnewton."""
    first = path.relative_to(PACKAGE).parts[0]
    return "gnewton" if first == "__init__.py" else first.removesuffix(".py")


def dotted(path: Path) -> str:
    """The package that relative imports in this file start from."""
    return ".".join(("gnewton", *path.relative_to(PACKAGE).parts[:-1]))


def imported(source: str, package: str = "gnewton") -> Iterator[str]:
    """The rooms of gnewton that a source imports, anywhere in it: in functions and for type checkers too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name for alias in node.names for name in rooms_of(alias.name))
        elif isinstance(node, ast.ImportFrom):
            module = resolve_name("." * node.level + (node.module or ""), package) if node.level else node.module or ""
            for alias in node.names:
                yield from rooms_of(f"{module}.{alias.name}")


def rooms_of(name: str) -> Iterator[str]:
    top, *rest = name.split(".")
    if top == "gnewton":
        yield rest[0] if rest and rest[0] in ORDER else "gnewton"


def backward(source: str, here: str, package: str = "gnewton") -> list[str]:
    """The rooms that a source in room ``here`` must not import."""
    return [name for name in imported(source, package) if name != here and ORDER.index(name) >= ORDER.index(here)]


FILES = sorted(PACKAGE.rglob("*.py"))


def test_every_module_has_its_place() -> None:
    assert {room(path) for path in FILES} == set(ORDER), "give a new module its place in ORDER"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    assert not backward(path.read_text(encoding="utf-8"), room(path), dotted(path))


@pytest.mark.parametrize(
    "source",
    [
        "import gnewton.optimizer",
        "from gnewton import optimizer",
        "from gnewton.optimizer import GroupedNewton",
        "from . import optimizer",
        "from .optimizer import GroupedNewton",
        "def f():\n    from gnewton.plots import heat_map",
        "import gnewton as gn",
        "from gnewton import Partition",
    ],
)
def test_backward_import_is_found(source: str) -> None:
    assert backward(source, "cubic")


def test_forward_import_is_allowed() -> None:
    assert not backward(
        "import torch\nfrom gnewton.partition import Partition\nfrom .loss import differentiable_mode", "cubic"
    )


def python(code: str) -> str:
    """What a fresh interpreter prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def loaded(statement: str) -> set[str]:
    """The heavy packages that a statement loads, beyond those that torch itself loads where it finds them (tqdm)."""
    code = f"import sys, torch; before = set(sys.modules); {statement}; print(*(set(sys.modules) - before))"
    return HEAVY & set(python(code).split())


def test_importing_gnewton_loads_nothing_heavy() -> None:
    assert loaded("import gnewton") == set()


def test_heavy_packages_are_seen_when_they_come() -> None:
    assert "matplotlib" in loaded("import gnewton; gnewton.plots")


def test_importing_gnewton_needs_nothing_heavy() -> None:
    # None in sys.modules makes an import fail as if the package were not installed.
    assert python(f"import sys; sys.modules.update(dict.fromkeys({HEAVY!r})); import gnewton; print(1)") == "1\n"
