"""Every public function and class: few arguments by position, each of many described; and a word that names nothing."""

import ast
import enum
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import gnewton as gn
from gnewton import teaching
from gnewton.derivatives import nested, operation, record, sweep, tape

ROOMS = ("average", "datasets", "direction", "exact", "models", "plots", "policies", "training")
OTHERS = {"gn.teaching": teaching} | {m.__name__: m for m in (nested, operation, record, sweep, tape)}

# What gnewton calls and others write, in the order of the equations; and a sentence: band("steps that rise", rises, 2, 25).
BY_POSITION = {
    "gnewton.derivatives.operation.Rule.forward",
    "gnewton.derivatives.operation.Rule.backward",
    "gnewton.derivatives.operation.Accumulator.full",
    "gn.teaching.band",
}


def is_record(kind: type) -> bool:
    """Results, which the library makes and a user reads: data classes, named tuples, enumerations, errors, protocols."""
    made = issubclass(kind, BaseException | tuple | enum.Enum)
    return made or hasattr(kind, "__dataclass_fields__") or bool(getattr(kind, "_is_protocol", False))


def own(module: Any) -> list[str]:
    return [n for n, o in vars(module).items() if n[0] != "_" and getattr(o, "__module__", None) == module.__name__]


def public() -> Iterator[tuple[str, Callable[..., Any]]]:
    doors = [("gn", gn, gn.__all__)]
    rooms = {f"gn.{room}": getattr(gn, room) for room in ROOMS} | OTHERS
    doors += [(name, room, getattr(room, "__all__", own(room))) for name, room in rooms.items()]
    for prefix, module, names in doors:
        for name in names:
            value = getattr(module, name)
            if inspect.isfunction(value) or (inspect.isclass(value) and not is_record(value)):
                yield f"{prefix}.{name}", value
            if inspect.isclass(value):
                methods = {n: getattr(f, "__func__", f) for n, f in vars(value).items() if not n.startswith("_")}
                yield from ((f"{prefix}.{name}.{n}", f) for n, f in methods.items() if inspect.isfunction(f))


PUBLIC = dict(public())


def arguments(function: Callable[..., Any]) -> list[inspect.Parameter]:
    variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    every = inspect.signature(function).parameters.values()
    return [p for p in every if p.name not in ("self", "cls") and p.kind not in variable]


def has_few_by_position(function: Callable[..., Any]) -> bool:
    return sum(p.kind is not inspect.Parameter.KEYWORD_ONLY for p in arguments(function)) <= 3


def describes_many(function: Callable[..., Any]) -> bool:
    if function.__name__ == "numbers":
        return True  # of a widget: its arguments are the controls, which the widget's own Args describe
    text, names = inspect.getdoc(function) or "", [p.name for p in arguments(function)]
    listed = text.partition("Args:\n")[2]
    return len(names) <= 3 or all(re.search(rf"(?m)^ +([\w, ]*, )?{name}(, [\w, ]*)?:", listed) for name in names)


@pytest.mark.parametrize("name", PUBLIC)
def test_at_most_three_arguments_go_by_position(name: str) -> None:
    assert has_few_by_position(PUBLIC[name]) or name in BY_POSITION, "put a * after the first two or three"


@pytest.mark.parametrize("name", PUBLIC)
def test_more_than_three_arguments_are_described_one_by_one(name: str) -> None:
    assert describes_many(PUBLIC[name]), "list them under Args:"


def test_the_walk_finds_what_it_should_and_the_tests_can_fail() -> None:
    assert {"gn.GroupedNewton", "gn.GroupedNewton.step", "gn.summarize", "gn.training.fit", "gn.models.vgg"} <= set(
        PUBLIC
    )
    assert {"gn.teaching.TapeViewer.numbers", "gnewton.derivatives.nested.summary_tensor"} <= set(PUBLIC)

    def four(a: int, b: int, c: int, d: int) -> None:
        """Args:
        a, b: described.
        c: described; of d nothing is said.
        """

    assert not has_few_by_position(four)
    assert not any(has_few_by_position(PUBLIC[name]) for name in BY_POSITION), "an exception that is none"
    assert not describes_many(four)


# It says that something was looked for, and not what it is.
EMPTY = "found"


def lines_that_name(word: str, source: str) -> list[int]:
    """The lines on which the word names a function, a class, a variable, an argument, an attribute or an import."""
    fields = ("id", "arg", "attr", "name", "asname")
    nodes = [node for node in ast.walk(ast.parse(source)) if word in [getattr(node, f, None) for f in fields]]
    return [node.lineno for node in nodes]


def test_a_name_says_what_a_thing_is() -> None:
    root = Path(__file__).parents[2]
    paths = [path for folder in ("gnewton", "tests", "benchmarks", "tools") for path in (root / folder).rglob("*.py")]
    assert Path(__file__) in paths
    lines = [f"{p}:{n}" for p in paths for n in lines_that_name(EMPTY, p.read_text(encoding="utf-8"))]
    assert not lines, f"call it by what it is (rate, table, matches), not {EMPTY}"


@pytest.mark.parametrize(
    "line",
    [
        "def found(): ...",
        "class found: ...",
        "def f(found): ...",
        "f(found=1)",
        "x.found = 1",
        "found = 1",
        "import a as found",
        "print(f'{found}')",
        "try: ...\nexcept E as found: ...",
    ],
)
def test_the_word_is_noticed_as_a_name_and_not_in_prose(line: str) -> None:
    prose = "# found\n'found'\n"
    assert lines_that_name(EMPTY, prose) == []
    assert len(lines_that_name(EMPTY, prose + line)) == 1
