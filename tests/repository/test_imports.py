"""The arrows of the design point one way, nothing imports itself, and importing gnewton needs torch and numpy alone."""

import ast
import subprocess
import sys
from collections.abc import Container, Iterator, Mapping
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "gnewton"

# A module imports only what stands before it. "gnewton" is the package itself, which imports all that stands before it.
ORDER = (
    "caller",
    "whole_file",
    "console",
    "models",
    "datasets",
    "storage",
    "interrupts",
    "ranks",
    "buckets",
    "sharded",
    "partition",
    "complex_parameters",
    "replicas",
    "undo",
    "weight_average",
    "contraction",
    "recurrent",
    "transposed",
    "margins",
    "forgotten",
    "argument_names",
    "assumptions",
    "max_norm",
    "repeated",
    "special",
    "elementary",
    "loss",
    "direction",
    "derivatives",
    "summary",
    "secular",
    "cubic",
    "average",
    "hooks",
    "cautious",
    "proposer",
    "line",
    "policies",
    "settings",
    "saved_state",
    "held",
    "optimizer",
    "checkpoint",
    "schedules",
    "stochastic",
    "tuning",
    "monitor",
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


def targets(source: str, package: str) -> Iterator[str]:
    """The dotted names that a source imports, anywhere in it: in functions and for type checkers too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = resolve_name("." * node.level + (node.module or ""), package) if node.level else node.module or ""
            yield from (f"{module}.{alias.name}" for alias in node.names)


def imported(source: str, package: str = "gnewton") -> Iterator[str]:
    """The rooms of gnewton that a source imports."""
    yield from (room for name in targets(source, package) for room in rooms_of(name))


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


# -- no circles: package, benchmarks and tests, with imports inside functions and for type checkers -------------------


def modules() -> dict[str, Path]:
    """Every module by the name under which it is imported: those of the tests start below ``tests``."""
    paths = {}
    for root, folder in ((ROOT, "gnewton"), (ROOT, "benchmarks"), (ROOT / "tests", ".")):
        for path in sorted((root / folder).rglob("*.py")):
            paths[".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")] = path
    return paths


def dependencies(sources: Mapping[str, str], packages: Container[str] = ()) -> dict[str, set[str]]:
    """For each module the modules that it imports anywhere in its source; those in ``packages`` are folders."""
    graph: dict[str, set[str]] = {}
    for name, source in sources.items():
        home = name if name in packages else name.rpartition(".")[0]
        names = {nearest(one, sources) for one in targets(source, home)}
        graph[name] = {one for one in names if one is not None and one != name}
    return graph


def nearest(name: str, known: Container[str]) -> str | None:
    """a.b.c -> a.b where c is a name in the module a.b."""
    parts = name.split(".")
    return next((one for n in range(len(parts), 0, -1) if (one := ".".join(parts[:n])) in known), None)


def circular(graph: Mapping[str, set[str]]) -> set[str]:
    """The modules from which a chain of imports leads back to themselves."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = list(graph[start])
        while waiting:
            one = waiting.pop()
            if one not in seen:
                seen.add(one)
                waiting += graph[one]
        return seen

    return {name for name in graph if name in reached(name)}


def test_no_module_imports_itself_over_others() -> None:
    paths = modules()
    sources = {name: path.read_text(encoding="utf-8") for name, path in paths.items()}
    assert not circular(dependencies(sources, {name for name, path in paths.items() if path.name == "__init__.py"}))


def test_the_graph_sees_every_room() -> None:
    graph = dependencies({name: path.read_text(encoding="utf-8") for name, path in modules().items()})
    assert "gnewton.partition" in graph["gnewton.summary"]
    assert "gnewton.teaching" in graph["benchmarks.widgets"], "inside a function"
    assert "support.problems" in graph["support.zoo"]


@pytest.mark.parametrize(
    "back",
    [
        "import p.a",
        "from p import a",
        "from p.a import f",
        "from . import a",
        "from .a import f",
        "def g():\n    from p import a",
        "if TYPE_CHECKING:\n    from p.a import f",
    ],
)
def test_a_circle_is_found(back: str) -> None:
    sources = {"p": "", "p.a": "from p.b import g", "p.b": "from p import c", "p.c": back, "p.d": "from p import a"}
    assert circular(dependencies(sources, {"p"})) == {"p.a", "p.b", "p.c"}
    assert not circular(dependencies(sources | {"p.c": "import torch"}, {"p"}))


# -- what importing gnewton loads -------------------------------------------------------------------------------------


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
