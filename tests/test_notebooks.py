"""Conventions of every notebook in notebooks/. That it still runs is nbval's part: ``make notebooks-test``.

nbval compares nothing where nothing was saved, so the laws here first make sure that there is something to compare.
Each law takes a notebook and returns what is wrong with it; each refuses a made-up notebook that breaks it alone.
"""

import ast
import re
import runpy
from collections.abc import Callable, Iterator
from copy import deepcopy
from itertools import count
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SAVING = runpy.run_path(str(ROOT / "tools" / "save_notebooks.py"))

LARGEST = 1_000_000  # bytes
FEWEST_ASSERTS = 5
MOST_IGNORED = 3
MOST_LINES = 15  # of code in a cell; the set-up cell may be longer
UNCHECKED_TAGS = {"nbval-skip", "nbval-raises-exception", "raises-exception"}
OUTPUT_WIDGETS = {"Output", "interact", "interact_manual", "interactive", "interactive_output"}
OPENING = ("After this notebook you can", "**Time:**", "**Needs:**", "**GPU:**")

# A number with a unit of measurement; not \times of LaTeX, and not S, the number of groups.
UNIT = re.compile(
    r"(?<![\w.^_{])\.?\d[\d.,]*(\\[,;]|[\s~-])*(s|ms|µs|μs|us|ns|\\?%|[kKMG]i?B"
    r"|(?i:secs?|seconds?|milliseconds?|per cent|percent|times|x faster|x slower))(?![\w/])"
    r"|(?i:\baccurac(?:y|ies)\b[^.\n|\d]{0,20}\.?\d|\.?\d[\d.,]*\s*accuracy\b)"
)
MACHINE = re.compile(
    r"0x[0-9a-f]{6,}|ipykernel_\d+|site-packages|[A-Z]:\\Users"
    r"|(?<![\w/.:<])/(?:home|root|Users|tmp|var|usr|opt|mnt|private|work|srv)/",
)

Law = Callable[[NotebookNode], list[str]]


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def outputs(notebook: NotebookNode) -> Iterator[NotebookNode]:
    for cell in code_cells(notebook):
        yield from cell.outputs


def tags(cell: NotebookNode) -> set[str]:
    return set(cell.metadata.get("tags", []))


def tree(cell: NotebookNode) -> ast.Module:
    """The cell's syntax tree; lines for IPython alone are left out."""
    return ast.parse(re.sub(r"(?m)^\s*[%!].*$", "", cell.source))


# -- the laws ----------------------------------------------------------------------------------------------------


def is_executed_in_order(notebook: NotebookNode) -> list[str]:
    counts = [cell.execution_count for cell in code_cells(notebook)]
    complaints = [] if counts == list(range(1, len(counts) + 1)) else [f"execution counts {counts}: make notebooks"]
    return complaints + ([] if any(outputs(notebook)) else ["no saved output at all"])


def ends_well(notebook: NotebookNode) -> list[str]:
    bad = [out for out in outputs(notebook) if out.output_type == "error" or out.get("name") == "stderr"]
    return [f"saved {out.get('ename') or 'stderr'}" for out in bad]


def is_saved_clean(notebook: NotebookNode) -> list[str]:
    clean = SAVING["cleaned"](notebook) == notebook
    return [] if clean else ["timings, widget state, widget views or a foreign kernel are saved: make notebooks"]


def is_valid(notebook: NotebookNode) -> list[str]:
    ids = [cell.get("id") for cell in notebook.cells]
    if len(set(ids) - {None}) < len(ids):
        return ["a cell without an id, or two with the same"]
    try:
        nbformat.validate(notebook)
    except nbformat.ValidationError as error:
        return [str(error)]
    return []


def is_small(notebook: NotebookNode) -> list[str]:
    size = len(nbformat.writes(notebook).encode())
    return [] if size <= LARGEST else [f"{size:,} bytes"]


def is_compared(notebook: NotebookNode) -> list[str]:
    """Few cells escape the comparison of outputs, each with a reason; none escapes execution."""
    ignored = [cell for cell in code_cells(notebook) if "nbval-ignore-output" in tags(cell)]
    complaints = [f"{len(ignored)} cells ignored"] if len(ignored) > MOST_IGNORED else []
    complaints += [
        f"no metadata.gnewton.reason: {cell.source[:60]!r}"
        for cell in ignored
        if not str(cell.metadata.get("gnewton", {}).get("reason", "")).strip()
    ]
    return complaints + [
        f"not checked: {cell.source[:60]!r}"
        for cell in code_cells(notebook)
        if tags(cell) & UNCHECKED_TAGS or re.search(r"#\s*(NBVAL|PYTEST_VALIDATE)_", cell.source)
    ]


def asserts_its_lesson(notebook: NotebookNode) -> list[str]:
    # An assert without a name in it (True, 1 + 1 == 2) says nothing about the lesson.
    asserts = [
        node
        for cell in code_cells(notebook)
        for node in ast.walk(tree(cell))
        if isinstance(node, ast.Assert) and any(isinstance(part, ast.Name) for part in ast.walk(node.test))
    ]
    return [] if len(asserts) >= FEWEST_ASSERTS else [f"{len(asserts)} asserts"]


def describes_its_pictures(notebook: NotebookNode) -> list[str]:
    pictures = [cell for cell in code_cells(notebook) if any(shows_picture(out) for out in cell.outputs)]
    texts = [str(cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")).strip() for cell in pictures]
    complaints = [f"no alt: {cell.source[-60:]!r}" for cell, alt in zip(pictures, texts, strict=True) if not alt]
    return complaints + [f"alt used twice: {alt!r}" for alt in set(texts) if alt and texts.count(alt) > 1]


def shows_picture(output: NotebookNode) -> bool:
    return any(mime.startswith("image/") for mime in output.get("data", {}))


def measures_in_code(notebook: NotebookNode) -> list[str]:
    """A measured number in prose goes stale; constants of the problem are exempt by the tag ``given``."""
    prose = [cell.source for cell in notebook.cells if cell.cell_type == "markdown" and "given" not in tags(cell)]
    return [f"measured number in prose: {found.group()!r}" for text in prose for found in UNIT.finditer(text)]


def has_no_output_widget(notebook: NotebookNode) -> list[str]:
    nodes = [node for cell in code_cells(notebook) for node in ast.walk(tree(cell))]
    names = {getattr(node, "id", None) or getattr(node, "attr", None) or getattr(node, "name", None) for node in nodes}
    return [f"{name}: nbclient hangs on Output widgets" for name in sorted(OUTPUT_WIDGETS & names)]


def has_short_cells(notebook: NotebookNode) -> list[str]:
    lines = [[line for line in cell.source.splitlines() if line.strip()] for cell in code_cells(notebook)]
    return [f"{len(cell)} lines: {cell[0]!r}" for cell in lines[1:] if len(cell) > MOST_LINES]


def opens_as_agreed(notebook: NotebookNode) -> list[str]:
    first = notebook.cells[0]
    if first.cell_type != "markdown" or not re.match(r"# \d\d · \S", first.source):
        return ["the first cell does not start with '# NN · Title'"]
    complaints = [f"the first cell lacks {text!r}" for text in OPENING if text not in first.source]
    if len(re.findall(r"(?m)^- ", first.source)) < 3:
        complaints.append("fewer than three objectives")
    if len(re.findall(r"(?m)^# ", "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown"))) > 1:
        complaints.append("more than one title")
    return complaints


def is_set_up_once(notebook: NotebookNode) -> list[str]:
    first, *others = code_cells(notebook) or [new_code_cell()]
    complaints = [] if "import gnewton as gn" in first.source else ["the first code cell does not import gnewton as gn"]
    imports = [cell for cell in others if any(isinstance(n, ast.Import | ast.ImportFrom) for n in ast.walk(tree(cell)))]
    return complaints + [f"import after the set-up cell: {cell.source[:60]!r}" for cell in imports]


def names_no_machine(notebook: NotebookNode) -> list[str]:
    return [f"path or address: {found.group()!r}" for text in texts(notebook) for found in MACHINE.finditer(text)]


def texts(notebook: NotebookNode) -> Iterator[str]:
    """Everything saved that is read as text; pictures are not."""
    yield str(notebook.metadata)
    for cell in notebook.cells:
        yield cell.source
        yield str(cell.metadata)
        for out in cell.get("outputs", []):
            yield str(out.get("text", ""))
            yield from (str(data) for mime, data in out.get("data", {}).items() if not mime.startswith("image/"))


LAWS: dict[str, Law] = {
    law.__name__: law
    for law in (
        is_valid,
        is_saved_clean,
        is_executed_in_order,
        ends_well,
        is_small,
        is_compared,
        asserts_its_lesson,
        describes_its_pictures,
        measures_in_code,
        has_no_output_widget,
        has_short_cells,
        opens_as_agreed,
        is_set_up_once,
        names_no_machine,
    )
}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.parametrize("law", LAWS)
def test_law_holds(path: Path, law: str) -> None:
    complaints = LAWS[law](nbformat.read(path, as_version=4))
    assert not complaints, "\n".join(complaints)


def misnumbered(names: list[str]) -> list[str]:
    """The names that break the numbering 00-..., 01-..., without gaps."""
    return [name for name, number in zip(sorted(names), count(), strict=False) if not is_number(name, number)]


def is_number(name: str, number: int) -> bool:
    return re.fullmatch(rf"{number:02d}-[a-z0-9-]+\.ipynb", name) is not None


def test_numbers_have_no_gaps() -> None:
    assert not misnumbered([path.name for path in NOTEBOOKS])


# -- every law can fail ------------------------------------------------------------------------------------------


def good() -> NotebookNode:
    """A made-up notebook that obeys every law; the broken ones below differ from it in one thing."""
    opening = "# 00 · Bowls\n\nAfter this notebook you can\n\n- a\n- b\n- c\n\n**Time:** ten minutes. **Needs:** - **GPU:** no"
    asserts = "\n".join(f"assert x > {-n}" for n in range(FEWEST_ASSERTS))
    picture = new_output("display_data", {"image/png": "aGk=", "text/plain": "a bowl"})
    cells = [
        new_markdown_cell(opening),
        new_code_cell("import gnewton as gn\nx = 1"),
        new_markdown_cell(
            "With 8 x 8 digits, $3 \\times 3$ blocks and $\\theta_1 s$ the loss falls 3 decades in 2 S + 1 passes."
        ),
        new_code_cell("print(x)", outputs=[new_output("stream", text="1\n")]),
        new_code_cell(asserts, outputs=[picture], metadata={"mystnb": {"image": {"alt": "A bowl."}}}),
        new_markdown_cell("The bowl is 100 times steeper.", metadata={"tags": ["given"]}),
    ]
    for number, cell in enumerate((cell for cell in cells if cell.cell_type == "code"), 1):
        cell.execution_count = number
    return SAVING["cleaned"](new_notebook(cells=cells))


def ignored(notebook: NotebookNode, reason: str) -> None:
    cell = new_code_cell("x", execution_count=1 + len(code_cells(notebook)))
    cell.metadata.update(tags=["nbval-ignore-output"], gnewton={"reason": reason})
    notebook.cells.append(cell)


def many_ignored(notebook: NotebookNode) -> None:
    for _ in range(MOST_IGNORED + 1):
        ignored(notebook, "the clock")


def more_code(notebook: NotebookNode, source: str) -> None:
    notebook.cells.append(new_code_cell(source, execution_count=1 + len(code_cells(notebook))))


def more_prose(notebook: NotebookNode, source: str) -> None:
    notebook.cells.append(new_markdown_cell(source))


def more_output(notebook: NotebookNode, *args: object, **kwargs: object) -> None:
    notebook.cells[3].outputs.append(new_output(*args, **kwargs))


def without_outputs(notebook: NotebookNode) -> None:
    for cell in code_cells(notebook):
        cell.outputs = []


def without_alt(notebook: NotebookNode, alt: str) -> None:
    notebook.cells[4].metadata.mystnb.image.alt = alt


def same_alt(notebook: NotebookNode) -> None:
    notebook.cells.append(deepcopy(notebook.cells[4]))
    notebook.cells[-1].update(id="another", execution_count=4)


def replaced(notebook: NotebookNode, old: str, new: str) -> None:
    cell = next(cell for cell in notebook.cells if old in cell.source)
    cell.source = cell.source.replace(old, new)


BAD: list[tuple[str, Callable[[NotebookNode], object]]] = [
    ("is_valid", lambda nb: nb.cells[1].update(outputs=[NotebookNode(output_type="rumour")])),
    ("is_valid", lambda nb: nb.cells[0].update(id=nb.cells[1].id)),
    ("is_saved_clean", lambda nb: nb.metadata.update(widgets={})),
    ("is_saved_clean", lambda nb: nb.cells[1].metadata.update(execution={"shell.execute_reply": "09:00"})),
    ("is_saved_clean", lambda nb: nb.cells[4].outputs[0].data.update({SAVING["WIDGET_VIEW"]: {"model_id": "1"}})),
    ("is_saved_clean", lambda nb: nb.metadata.language_info.update(version="3.11.7")),
    ("is_saved_clean", lambda nb: nb.metadata.kernelspec.update(name="my-kernel")),
    ("is_saved_clean", lambda nb: more_output(nb, "stream", text="2\n")),
    ("is_executed_in_order", without_outputs),
    ("is_executed_in_order", lambda nb: nb.cells[3].update(execution_count=None)),
    ("is_executed_in_order", lambda nb: nb.cells[3].update(execution_count=7)),
    ("ends_well", lambda nb: more_output(nb, "error", ename="ValueError", evalue="no", traceback=[])),
    ("ends_well", lambda nb: more_output(nb, "stream", name="stderr", text="a warning")),
    ("is_small", lambda nb: more_prose(nb, "a" * LARGEST)),
    ("is_compared", many_ignored),
    ("is_compared", lambda nb: ignored(nb, " ")),
    ("is_compared", lambda nb: nb.cells[3].metadata.update(tags=["nbval-skip"])),
    ("is_compared", lambda nb: nb.cells[3].metadata.update(tags=["raises-exception"])),
    ("is_compared", lambda nb: replaced(nb, "print(x)", "# NBVAL_IGNORE_OUTPUT\nprint(x)")),
    ("asserts_its_lesson", lambda nb: replaced(nb, "assert x > 0", "x > 0")),
    ("asserts_its_lesson", lambda nb: replaced(nb, "assert x > 0", "assert True")),
    ("describes_its_pictures", lambda nb: without_alt(nb, "  ")),
    ("describes_its_pictures", lambda nb: nb.cells[4].metadata.pop("mystnb")),
    ("describes_its_pictures", same_alt),
    *[
        ("measures_in_code", lambda nb, text=text: more_prose(nb, text))
        for text in (
            "It takes 3 s.",
            "about 0.3s",
            "in 40 ms per step",
            "about 20 seconds",
            "$94\\,\\%$ of them",
            "12.5% less",
            "is 3 times faster",
            "a 3-times gain",
            "1,000 times",
            "needs 2 GB",
            "an accuracy of .94",
            "accuracy is about 0.94",
            "0.94 accuracy",
        )
    ],
    ("has_no_output_widget", lambda nb: more_code(nb, "from ipywidgets import interact\ninteract(f, x=3)")),
    ("has_no_output_widget", lambda nb: more_code(nb, "with widgets.Output():\n    f()")),
    ("has_no_output_widget", lambda nb: more_code(nb, "@interact\ndef f(x): ...")),
    ("has_short_cells", lambda nb: more_code(nb, "x\n" * (MOST_LINES + 1))),
    ("opens_as_agreed", lambda nb: replaced(nb, "# 00 · Bowls", "Bowls")),
    ("opens_as_agreed", lambda nb: nb.cells.insert(0, new_code_cell())),
    ("opens_as_agreed", lambda nb: replaced(nb, "- c\n", "")),
    ("opens_as_agreed", lambda nb: replaced(nb, "**GPU:**", "")),
    ("opens_as_agreed", lambda nb: more_prose(nb, "# Another title")),
    ("is_set_up_once", lambda nb: replaced(nb, "import gnewton as gn\n", "")),
    ("is_set_up_once", lambda nb: more_code(nb, "import torch")),
    ("names_no_machine", lambda nb: more_output(nb, "stream", text="<object at 0x7f00deadbeef>")),
    ("names_no_machine", lambda nb: more_output(nb, "display_data", {"text/plain": "see /home/ann/data.csv"})),
    ("names_no_machine", lambda nb: more_output(nb, "stream", text="/tmp/ipykernel_77/1.py:3")),
    ("names_no_machine", lambda nb: more_code(nb, 'open("C:\\\\Users\\\\ann")'.replace("\\\\", "\\"))),
]


def test_good_notebook_passes_every_law() -> None:
    assert {name: law(good()) for name, law in LAWS.items()} == {name: [] for name in LAWS}


@pytest.mark.parametrize(("law", "spoil"), BAD, ids=[f"{law}-{number}" for number, (law, _) in enumerate(BAD)])
def test_law_refuses(law: str, spoil: Callable[[NotebookNode], object]) -> None:
    notebook = good()
    spoil(notebook)
    assert LAWS[law](notebook)


def test_every_law_has_a_notebook_that_it_refuses() -> None:
    assert {law for law, _ in BAD} == set(LAWS)


@pytest.mark.parametrize(
    "names", [["01-a.ipynb"], ["00-a.ipynb", "02-c.ipynb"], ["00-a.ipynb", "00-b.ipynb"], ["a.ipynb"]]
)
def test_gaps_in_numbers_are_refused(names: list[str]) -> None:
    assert misnumbered(names)
