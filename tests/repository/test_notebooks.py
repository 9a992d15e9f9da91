"""Conventions of every notebook in notebooks/. That it still runs is nbval's part: ``make notebooks-test``.

nbval compares nothing where nothing was saved, so the laws here first make sure that there is something to compare.
Each law takes a notebook and returns what is wrong with it; each refuses a made-up notebook that breaks it alone.
"""

import ast
import json
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
from support.training_flow import RUN, TRAINS, TRUTH, Flow, is_band

from gnewton.teaching.exercises.exercise import YOUR_TURN, every

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SAVING = runpy.run_path(str(ROOT / "tools" / "save_notebooks.py"))

WIDGET_VIEW = SAVING["WIDGET_VIEW"]
LARGEST = 1_000_000  # bytes
FEWEST_ASSERTS = 5
MOST_IGNORED = 3
MOST_REASONS = 3  # cells that show a number of a run which is the same everywhere
NOT_YET: set[int] = set()
MOST_LINES = 15  # of code in a cell; the set-up cell may be longer
UNCHECKED_TAGS = {"nbval-skip", "nbval-raises-exception", "raises-exception"}
OUTPUT_WIDGETS = {"Output", "interact", "interact_manual", "interactive", "interactive_output"}
RECALLED = 5
READY, READINESS, ALONG_THE_WAY = "## Ready?", 3, 2  # quizzes at the start, and at least so many later
NEEDED_SETTINGS = {"GroupedNewton": {"lr", "cubic", "period"}, "newton_step": {"cubic"}}
OPENING = ("After this notebook you can", "**Time:**", "**Needs:**", "**GPU:**")

# A number with a unit of measurement; not \times of LaTeX, and not S, the number of groups.
UNIT = re.compile(
    r"(?<![\w.^_{])\.?\d[\d.,]*(\\[,;]|[\s~-])*(s|ms|µs|μs|us|ns|\\?%|[kKMG]i?B"
    r"|(?i:secs?|seconds?|milliseconds?|per cent|percent|times|x faster|x slower))(?![\w/])"
    r"|(?i:\baccurac(?:y|ies)\b[^.\n|\d]{0,20}\.?\d|\.?\d[\d.,]*\s*accuracy\b)"
)
# Why a cell may be ignored; that a run differs between processors is none: print bounds.
CLOCK = re.compile(r"\b(time|times|seconds|device|torchvision)\b")
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
        f"no clock, device or file in metadata.gnewton.reason: {cell.source[:60]!r}"
        for cell in ignored
        if not CLOCK.search(str(cell.metadata.get("gnewton", {}).get("reason", "")))
    ]
    complaints += [
        f"asserts what may differ from run to run: {cell.source[:60]!r}"
        for cell in ignored
        if any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(cell.source)))
    ]
    return complaints + [
        f"not checked: {cell.source[:60]!r}"
        for cell in code_cells(notebook)
        if tags(cell) & UNCHECKED_TAGS or re.search(r"#\s*(NBVAL|PYTEST_VALIDATE)_", cell.source)
    ]


def asserts_its_lesson(notebook: NotebookNode) -> list[str]:
    # An assert without a name in it (True, 1 + 1 == 2) says nothing about the lesson; a band asserts its bounds.
    asserts = [
        node
        for cell in code_cells(notebook)
        for node in ast.walk(tree(cell))
        if is_band(node)
        or (isinstance(node, ast.Assert) and any(isinstance(part, ast.Name) for part in ast.walk(node.test)))
    ]
    return [] if len(asserts) >= FEWEST_ASSERTS else [f"{len(asserts)} asserts"]


def prints_the_same_everywhere(notebook: NotebookNode) -> list[str]:
    """What a cell shows of a training run is bounds (``band``) or an asserted comparison; else it says why it is the same."""
    flow, cells = Flow(), code_cells(notebook)
    complaints = []
    for cell, following in zip(cells, [*cells[1:], new_code_cell()], strict=True):
        shown = shown_by(flow, cell)
        reason = str(cell.metadata.get("gnewton", {}).get("same_everywhere", ""))
        told = [source for level, source in shown if level == RUN]
        if bool(told) != bool(reason.strip()):
            complaints.append(f"{told or 'nothing'} of a run, and the reason {reason!r}: {cell.source[:60]!r}")
        if any(level == TRUTH for level, _ in shown) and not (states(cell) or states(following)):
            complaints.append(f"a comparison that is not asserted: {cell.source[:60]!r}")
    reasons = sum("same_everywhere" in cell.metadata.get("gnewton", {}) for cell in cells)
    return complaints + ([f"{reasons} reasons"] if reasons > MOST_REASONS else [])


def shown_by(flow: Flow, cell: NotebookNode) -> list[tuple[int, str]]:
    """What of a cell's code is to be seen in its saved outputs, where these are compared; a figure's text says nothing."""
    body = tree(cell).body
    printed = flow.cell(body)
    if "nbval-ignore-output" in tags(cell):
        return []
    streams = [out for out in cell.outputs if out.output_type == "stream"]
    results = [out for out in cell.outputs if out not in streams]
    figures = all(out.get("data", {}).get("text/plain", "").startswith("<Figure size") for out in results)
    return (printed if streams or not figures else []) + ([] if figures else flow.last(body))


def states(cell: NotebookNode) -> bool:
    return any(isinstance(node, ast.Assert) or is_band(node) for node in ast.walk(tree(cell)))


def describes_its_pictures(notebook: NotebookNode) -> list[str]:
    pictures = [cell for cell in code_cells(notebook) if any(shows_picture(out) for out in cell.outputs)]
    texts = [str(cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")).strip() for cell in pictures]
    complaints = [f"no alt: {cell.source[-60:]!r}" for cell, alt in zip(pictures, texts, strict=True) if not alt]
    return complaints + [f"alt used twice: {alt!r}" for alt in set(texts) if alt and texts.count(alt) > 1]


def needs_no_script(notebook: NotebookNode) -> list[str]:
    """Where nothing renders a widget (nbviewer, VS Code without its extension, paper) another kind of data is shown."""
    saved = [
        (out.data, json.loads(out.metadata.gnewton))
        for out in outputs(notebook)
        if "gnewton" in out.get("metadata", {})
    ]
    complaints = []
    for data, described in saved:
        said, kind = data.get("text/plain", ""), "text/html" if "walker" in described else "image/png"
        if kind not in data or WIDGET_VIEW in data:
            complaints.append(f"no {kind}, or a view that needs a kernel beside it: {said[:60]}")
        if not said.endswith(described.get("sentence", ".")):
            complaints.append(f"its text is not its sentence: {said[:60]}")
    return complaints


def shows_picture(output: NotebookNode) -> bool:
    return any(mime.startswith("image/") for mime in output.get("data", {}))


def sets_its_tables(notebook: NotebookNode) -> list[str]:
    """In the book a table of Markdown that a cell puts out stays raw text, unless its format is named."""
    cells = [
        cell
        for cell in code_cells(notebook)
        for out in cell.outputs
        if "|---" in out.get("data", {}).get("text/markdown", "")
    ]
    return [f"no format: {c.source!r}" for c in cells if c.metadata.get("mystnb", {}).get("markdown_format") != "myst"]


def measures_in_code(notebook: NotebookNode) -> list[str]:
    """A measured number in prose goes stale; constants of the problem are exempt by the tag ``given``."""
    prose = [cell.source for cell in notebook.cells if cell.cell_type == "markdown" and "given" not in tags(cell)]
    return [f"measured number in prose: {match.group()!r}" for text in prose for match in UNIT.finditer(text)]


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
    return [f"path or address: {match.group()!r}" for text in texts(notebook) for match in MACHINE.finditer(text)]


def titles(cell: NotebookNode) -> list[str]:
    """The headings of a Markdown cell, none for code."""
    return re.findall(r"(?m)^#+ .*$", cell.source) if cell.cell_type == "markdown" else []


def is_quiz(cell: NotebookNode) -> bool:
    return cell.cell_type == "code" and bool(calls(cell, "quiz"))


def calls(cell: NotebookNode, name: str) -> list[ast.Call]:
    """The calls of a function, or of a method of this name."""
    nodes = [node for node in ast.walk(tree(cell)) if isinstance(node, ast.Call)]
    return [node for node in nodes if name in (getattr(node.func, "id", None), getattr(node.func, "attr", None))]


def is_hidden(cell: NotebookNode) -> bool:
    """Folded in JupyterLab; the book's tag is the law's own matter."""
    return bool(cell.metadata.get("jupyter", {}).get("source_hidden"))


def checks_readiness(notebook: NotebookNode) -> list[str]:
    sections = [n for n, cell in enumerate(notebook.cells) if any(t.startswith("## ") for t in titles(cell))]
    if not sections or READY not in titles(notebook.cells[sections[0]]):
        return [f"the first section is not {READY!r}"]
    first, rest = notebook.cells[sections[0]], notebook.cells[sections[0] + 1 :]
    complaints = (
        [] if "](../refresher.md#" in first.source else ["the readiness check points to no section of the refresher"]
    )
    if not all(is_quiz(cell) for cell in rest[:READINESS]):
        complaints.append(f"{READY!r} is not followed by {READINESS} quizzes")
    if (count := sum(is_quiz(cell) for cell in rest[READINESS:])) < ALONG_THE_WAY:
        complaints.append(f"{count} quizzes along the way")
    return complaints


def hides_the_answers(notebook: NotebookNode) -> list[str]:
    """A quiz stands alone in its cell, and its source, which tells the answer, is folded."""
    quizzes = [cell for cell in notebook.cells if is_quiz(cell)]
    folded = [cell for cell in quizzes if is_hidden(cell) and "hide-input" in tags(cell) and len(tree(cell).body) == 1]
    return [f"open, or not alone: {cell.source[:60]!r}" for cell in quizzes if cell not in folded]


def has_living_links(notebook: NotebookNode) -> list[str]:
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\(([^)\s]+)\)", prose)
    return [f"dead link: {link}" for link in links if "://" not in link and link not in places()]


def links_its_words(notebook: NotebookNode) -> list[str]:
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    return [] if "](../glossary.md#" in prose else ["no word is linked to the glossary"]


def places() -> set[str]:
    """What a notebook can link to without a network: notebooks, the book's pages, their sections."""
    links = {path.name for path in NOTEBOOKS}
    for page in (ROOT / "book").glob("*.md"):
        headings = re.findall(r"(?m)^#+ (.*)$", page.read_text(encoding="utf-8"))
        links |= {f"../{page.name}"} | {f"../{page.name}#{anchor(heading)}" for heading in headings}
    return links


def anchor(heading: str) -> str:
    """As the book makes it: in small letters, without signs, hyphens for spaces."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def pairs_its_exercises(notebook: NotebookNode) -> list[str]:
    """Task, stub, solution, one after the other; all those of this notebook that there are."""
    number = notebook.cells[0].source[2:4]
    starts = [n for n, cell in enumerate(notebook.cells) if is_exercise(cell) and "solution" not in tags(cell)]
    complaints = [text for n in starts for text in wrong_with_pair(*notebook.cells[n - 1 : n + 2])]
    if (solutions := [cell for cell in notebook.cells if "solution" in tags(cell)]) and len(solutions) != len(starts):
        complaints.append(f"{len(solutions)} cells tagged solution, {len(starts)} stubs")
    asked = [exercise_number(notebook.cells[n]) for n in starts]
    expected = [exercise.number for exercise in every() if exercise.number.startswith(f"{number}.")]
    return complaints + ([] if asked == expected != [] else [f"exercises {asked}, expected {expected}"])


def is_exercise(cell: NotebookNode) -> bool:
    return cell.cell_type == "code" and bool(calls(cell, "check"))


def exercise_number(cell: NotebookNode) -> str:
    return str(ast.literal_eval(calls(cell, "check")[0].args[0]))


def wrong_with_pair(task: NotebookNode, stub: NotebookNode, solution: NotebookNode | None = None) -> list[str]:
    number = exercise_number(stub)
    complaints = []
    if not any(title.startswith(f"### Exercise {number} · ") for title in titles(task)):
        complaints.append(f"no '### Exercise {number} · ...' above its stub")
    if shape(stub) != (number, True):
        complaints.append(f"{number}: the stub is not one function that raises {YOUR_TURN!r}, and its check")
    if solution is None or not {"solution", "hide-cell"} <= tags(solution) or not is_hidden(solution):
        complaints.append(f"{number}: no hidden cell tagged solution and hide-cell below the stub")
    elif shape(solution) != (number, False) or names(solution)[0] != f"solution_{number.replace('.', '_')}":
        complaints.append(f"{number}: the solution does not define solution_{number.replace('.', '_')} and check it")
    elif names(solution)[1:] != names(stub)[1:]:
        complaints.append(f"{number}: stub and solution take different arguments")
    return complaints


def shape(cell: NotebookNode) -> tuple[str, bool] | None:
    """The number that a cell of one function and its check asks for, and whether the function is a stub."""
    match tree(cell).body:
        case [ast.FunctionDef() as function, ast.Expr(ast.Call(args=[ast.Constant(), ast.Name(id=name)]))]:
            raises = ast.unparse(function.body[-1]) == f"raise NotImplementedError({YOUR_TURN!r})"
            return (exercise_number(cell), raises) if name == function.name else None
    return None


def names(cell: NotebookNode) -> list[str]:
    """The name of the cell's first function and those of its arguments."""
    function = next(node for node in tree(cell).body if isinstance(node, ast.FunctionDef))
    return [function.name, *(argument.arg for argument in function.args.args)]


def needs_no_answer(notebook: NotebookNode) -> list[str]:
    """No cell uses what the learner, or a solution, has written: Run All reaches the end without either."""
    exercises = [cell for cell in notebook.cells if is_exercise(cell)]
    written = {node.name for cell in exercises for node in tree(cell).body if isinstance(node, ast.FunctionDef)}
    others = [cell for cell in code_cells(notebook) if cell not in exercises]
    used = {node.id for cell in others for node in ast.walk(tree(cell)) if isinstance(node, ast.Name)}
    return [f"{name} belongs to an exercise, and another cell uses it" for name in sorted(written & used)]


def recalls_five(notebook: NotebookNode) -> list[str]:
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    _, _, end = prose.partition("## Recall\n")
    asked = re.findall(r"(?m)^(\d+)\. ", end)
    complaints = [] if asked == [str(n + 1) for n in range(RECALLED)] else [f"recall asks {asked or 'nothing'}"]
    return complaints + [
        f"no {text}" for text in ("**Summary.**", "**Where next.**", "**References.**") if text not in end
    ]


def lists_what_to_try(notebook: NotebookNode) -> list[str]:
    """What to try with a figure, and what is then seen, is a list: one item can be done, and come back to, after the other."""
    lines = [line for cell in notebook.cells if cell.cell_type == "markdown" for line in cell.source.splitlines()]
    return [line[:60] for line in lines if re.search(r"\*(Try|See):\*", line) and not line.startswith("- *Try:*")]


def names_its_settings(notebook: NotebookNode) -> list[str]:
    """A changed default must not change a lesson."""
    complaints = []
    for name, needed in NEEDED_SETTINGS.items():
        for call in (call for cell in code_cells(notebook) for call in calls(cell, name)):
            given = {keyword.arg for keyword in call.keywords}
            if None not in given and needed - given:  # None: **settings
                complaints.append(f"{name} without {', '.join(sorted(needed - given))}: {ast.unparse(call)[:60]}")
    return complaints


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
        prints_the_same_everywhere,
        describes_its_pictures,
        needs_no_script,
        sets_its_tables,
        measures_in_code,
        has_no_output_widget,
        has_short_cells,
        opens_as_agreed,
        is_set_up_once,
        names_no_machine,
        checks_readiness,
        hides_the_answers,
        has_living_links,
        links_its_words,
        pairs_its_exercises,
        needs_no_answer,
        recalls_five,
        lists_what_to_try,
        names_its_settings,
    )
}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.parametrize("law", LAWS)
def test_law_holds(path: Path, law: str) -> None:
    complaints = LAWS[law](nbformat.read(path, as_version=4))
    assert not complaints, "\n".join(complaints)


def misnumbered(names: list[str]) -> list[str]:
    """The names that break the numbering 00-..., 01-..., without gaps but for those not written yet."""
    numbers = (number for number in count() if number not in NOT_YET)
    return [name for name, number in zip(sorted(names), numbers, strict=False) if not is_number(name, number)]


def is_number(name: str, number: int) -> bool:
    return re.fullmatch(rf"{number:02d}-[a-z0-9-]+\.ipynb", name) is not None


def test_numbers_have_no_gaps() -> None:
    assert not misnumbered([path.name for path in NOTEBOOKS])


# -- every law can fail ------------------------------------------------------------------------------------------


# What a cell may show of a training run, and of what stands beside it.
TRAINING = [
    new_code_cell(
        "run = fit(x, optimizer, epochs=9)\nruns = {'a': run}",
    ),
    new_code_cell(
        "band('loss', run.losses[-1], at_most=0.1)\nband('steps that rose', sum(l > 2 for l in run.losses), 1, 9)",
        outputs=[new_output("stream", text="loss: at most 0.1\n")],
    ),
    new_code_cell(
        "for name, one in runs.items():\n    print(f'{name}: low: {one.losses[-1] < 1}')\n    assert one.losses[-1] < 1",
        outputs=[new_output("stream", text="a: low: True\n")],
    ),
    new_code_cell(
        "print(3 * 0.1, [name for name, _ in runs.items()] == ['a'])\nassert runs",
        outputs=[new_output("stream", text="0.3 True\n")],
    ),
    new_code_cell("draw(run)", outputs=[new_output("execute_result", {"text/plain": "<Figure size 10x10>"})]),
    new_code_cell(
        "run",
        metadata={"gnewton": {"same_everywhere": "a contraction in double precision"}},
        outputs=[new_output("execute_result", {"text/plain": "9 epochs: 0.5"})],
    ),
]


def good() -> NotebookNode:
    """A made-up notebook that obeys every law; the broken ones below differ from it in one thing."""
    opening = "# 00 · Bowls\n\nAfter this notebook you can\n\n- a\n- b\n- c\n\n**Time:** ten minutes. **Needs:** - **GPU:** no"
    asserts = "\n".join(f"assert x > {-n}" for n in range(FEWEST_ASSERTS - 4))  # the training cells hold four
    picture = new_output("display_data", {"image/png": "aGk=", "text/plain": "Bowl: it is steep."})
    picture.metadata.gnewton = json.dumps({"sentence": "it is steep."})
    cells = [
        new_markdown_cell(opening),
        new_code_cell("import gnewton as gn\nx = 1"),
        new_markdown_cell(
            "With 8 x 8 [seeds](../glossary.md#seed), $3 \\times 3$ blocks and $\\theta_1 s$ the loss falls 3 decades in 2 S + 1 passes."
        ),
        new_code_cell("print(x)", outputs=[new_output("stream", text="1\n")]),
        new_code_cell(asserts, outputs=[picture], metadata={"mystnb": {"image": {"alt": "A bowl."}}}),
        new_markdown_cell("The bowl is 100 times steeper.", metadata={"tags": ["given"]}),
        *deepcopy(TRAINING),
        new_markdown_cell(f"{READY}\n\n[Unsure?](../refresher.md#autograd-twice) [01](01-quadratics.ipynb)"),
        *[quiz_cell(n) for n in range(READINESS + ALONG_THE_WAY)],
        *exercise_cells("00.1"),
        *exercise_cells("00.2"),
        new_code_cell(
            "gn.GroupedNewton(x, lr=1, cubic=1, period=1)\ngn.GroupedNewton(x, **x)\ngn.newton_step(x, cubic=1)"
        ),
        new_markdown_cell("## Recall\n\n1. a\n2. b\n3. c\n4. d\n5. e\n\n**Summary.** **Where next.** **References.**"),
    ]
    for number, cell in enumerate((cell for cell in cells if cell.cell_type == "code"), 1):
        cell.execution_count = number
    return SAVING["cleaned"](new_notebook(cells=cells))


def quiz_cell(n: int) -> NotebookNode:
    hidden = {"tags": ["hide-input"], "jupyter": {"source_hidden": True}}
    return new_code_cell(f"quiz('{n}?', {{'yes': 'a', 'no': 'b'}}, right='no')", metadata=hidden)


def exercise_cells(number: str) -> list[NotebookNode]:
    stub, solution = f"stub_{number.replace('.', '_')}", f"solution_{number.replace('.', '_')}"
    hidden = {"tags": ["solution", "hide-cell"], "jupyter": {"source_hidden": True}}
    return [
        new_markdown_cell(f"### Exercise {number} · Double it"),
        new_code_cell(f"def {stub}(a):\n    raise NotImplementedError('your turn')\n\n\ncheck('{number}', {stub})"),
        new_code_cell(f"def {solution}(a):\n    return 2 * a\n\n\ncheck('{number}', {solution})", metadata=hidden),
    ]


def at(notebook: NotebookNode, text: str) -> int:
    """The place of the first cell with this text."""
    return next(n for n, cell in enumerate(notebook.cells) if text in cell.source)


def ignored(notebook: NotebookNode, reason: str, source: str = "x") -> None:
    cell = new_code_cell(source, execution_count=1 + len(code_cells(notebook)))
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


def shows(notebook: NotebookNode, source: str, reason: str | None = None) -> None:
    """A cell after a training run, with a number among its outputs."""
    outputs = [new_output("stream", text="0.123 of 7\n"), new_output("execute_result", {"text/plain": "0.123"})]
    metadata = {} if reason is None else {"gnewton": {"same_everywhere": reason}}
    count = 1 + len(code_cells(notebook))
    notebook.cells.append(new_code_cell(source, execution_count=count, outputs=outputs, metadata=metadata))


def without_alt(notebook: NotebookNode, alt: str) -> None:
    notebook.cells[4].metadata.mystnb.image.alt = alt


def same_alt(notebook: NotebookNode) -> None:
    notebook.cells.append(deepcopy(notebook.cells[4]))
    notebook.cells[-1].update(id="another", execution_count=len(code_cells(notebook)))


def replaced(notebook: NotebookNode, old: str, new: str) -> None:
    cell = next(cell for cell in notebook.cells if old in cell.source)
    cell.source = cell.source.replace(old, new)


# Each shows a number, a count or a name that a training run decides.
SHOWN = [
    "print(run.losses[-1])",
    "run.losses[-1]",
    "run",
    "display(run)",
    "print(f'loss {run.losses[-1]:.2f}')",
    "print('loss {:.2f}'.format(run.losses[-1]))",
    "print('loss %.2f' % run.losses[-1])",
    "print(*run.losses)",
    "print(sum(loss > 2 for loss in run.losses))",
    "print(len([loss for loss in run.losses if loss > 2]))",
    "print(next(i for i, loss in enumerate(run.losses) if loss < 1))",
    "print(min(runs, key=lambda name: runs[name].losses[-1]))",
    "print(sorted({u.status for u in optimizer.history}))",
    "for name, one in runs.items():\n    print(name, one.losses[-1])",
    "for i, loss in enumerate(run.losses):\n    print(i, loss)",
    "losses = torch.tensor(run.losses)\nlow, high = losses.aminmax()\nprint(f'{low:.2g}')",
    "pd.DataFrame({name: one.losses for name, one in runs.items()})",
    "rows = []\nfor one in runs.values():\n    rows.append([one.losses[-1]])\nprint(rows)",
    "table = {}\ntable['a'] = run.losses[-1]\nprint(table)",
    "def tell(one):\n    print(one.losses[-1])\n\n\ntell(run)",
    "def tell():\n    print(run.losses[-1])\n\n\ntell()",
    "def last(one):\n    return one.losses[-1]\n\n\nprint(last(run))",
    "def again():\n    return fit(x, optimizer).losses\n\n\nprint(again()[-1])",
    "def again():\n    print(fit(x, optimizer).losses)\n\n\nagain()",
    "def again():\n    return fit(x, optimizer).losses\n\n\ndef more():\n    return again()\n\n\nprint(more()[-1])",
    "again = lambda: fit(x, optimizer)\nprint(again().losses)",
    "class Loop:\n    def go(self):\n        return optimizer.step(x)\n\n\nprint(Loop().go())",
    "def loss():\n    return model(x)\n\n\nfit(model, optimizer)\nprint(loss())",
    "n = 0\nwhile optimizer.step(x) > 0.1:\n    n += 1\nprint(n)",
    "for n in range(99):\n    if optimizer.step(x) < 0.1:\n        break\nprint(n)",
    "n = 0\nfor loss in run.losses:\n    if loss > 2:\n        n += 1\nprint(n)",
    "far = []\nfor loss in run.losses:\n    if loss > 2:\n        far.append(1)\nprint(len(far))",
    "theta = start\nfor _ in range(9):\n    theta = theta - 0.1 * slope(theta)\nprint(theta)",
    "for _ in range(9):\n    theta -= 0.1 * slope(theta)\nprint(theta)",
    "def move(p):\n    p.sub_(slope(p))\n\n\nfor _ in range(9):\n    move(p)\n    now = value(p)\nprint(now)",
    "live = LiveTraining(make, settings)\nlive.advance(50)\nlive",
    "DeepRates(data)",
    "with warnings.catch_warnings(record=True) as caught:\n    fit(x, optimizer)\nprint(len(caught))",
    "band('loss', run.losses[-1], at_most=2 * run.losses[-1])",
    "band(f'loss {run.losses[-1]}', run.losses[-1], at_most=2)",
    "print(f'{optimizer.step(x):.2f}')",
]


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
    ("links_its_words", lambda nb: replaced(nb, "../glossary.md#seed", "../glossary.md")),
    ("ends_well", lambda nb: more_output(nb, "error", ename="ValueError", evalue="no", traceback=[])),
    ("ends_well", lambda nb: more_output(nb, "stream", name="stderr", text="a warning")),
    ("is_small", lambda nb: more_prose(nb, "a" * LARGEST)),
    ("is_compared", many_ignored),
    ("is_compared", lambda nb: ignored(nb, " ")),
    ("is_compared", lambda nb: ignored(nb, "the time of a step", "assert 2 * fast < slow")),
    ("is_compared", lambda nb: ignored(nb, "rounding on another processor moves a training run")),
    ("is_compared", lambda nb: nb.cells[3].metadata.update(tags=["nbval-skip"])),
    ("is_compared", lambda nb: nb.cells[3].metadata.update(tags=["raises-exception"])),
    ("is_compared", lambda nb: replaced(nb, "print(x)", "# NBVAL_IGNORE_OUTPUT\nprint(x)")),
    ("asserts_its_lesson", lambda nb: replaced(nb, "assert x > 0", "x > 0")),
    ("asserts_its_lesson", lambda nb: replaced(nb, "assert x > 0", "assert True")),
    *[("prints_the_same_everywhere", lambda nb, source=source: shows(nb, source)) for source in SHOWN],
    ("prints_the_same_everywhere", lambda nb: shows(nb, "print(run.losses[-1] < 1)")),
    ("prints_the_same_everywhere", lambda nb: shows(nb, "print('low' if run.losses[-1] < 1 else 'high')")),
    ("prints_the_same_everywhere", lambda nb: shows(nb, SHOWN[0], reason=" ")),
    ("prints_the_same_everywhere", lambda nb: shows(nb, "print(1)", reason="not needed")),
    ("prints_the_same_everywhere", lambda nb: [shows(nb, SHOWN[0], reason="calm") for _ in range(MOST_REASONS)]),
    ("describes_its_pictures", lambda nb: without_alt(nb, "  ")),
    ("describes_its_pictures", lambda nb: nb.cells[4].metadata.pop("mystnb")),
    ("describes_its_pictures", same_alt),
    ("needs_no_script", lambda nb: nb.cells[4].outputs[0].data.pop("image/png")),
    ("needs_no_script", lambda nb: nb.cells[4].outputs[0].data.update({"text/plain": "<Bowl object>"})),
    ("needs_no_script", lambda nb: nb.cells[4].outputs[0].data.update({WIDGET_VIEW: {}})),
    (
        "needs_no_script",
        lambda nb: nb.cells[4].outputs[0].metadata.update(gnewton='{"walker": [], "sentence": "it is steep."}'),
    ),
    ("sets_its_tables", lambda nb: nb.cells[4].outputs[0].data.update({"text/markdown": "| a |\n|---|\n| 1 |"})),
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
    ("checks_readiness", lambda nb: replaced(nb, READY, "## Set?")),
    ("checks_readiness", lambda nb: nb.cells.insert(1, new_markdown_cell("## Bowls"))),
    ("checks_readiness", lambda nb: replaced(nb, "#autograd-twice", "")),
    ("checks_readiness", lambda nb: nb.cells.insert(at(nb, "quiz('1?'"), new_markdown_cell("Sure?"))),
    ("checks_readiness", lambda nb: nb.cells.pop(at(nb, "quiz("))),
    ("hides_the_answers", lambda nb: nb.cells[at(nb, "quiz(")].metadata.pop("jupyter")),
    ("hides_the_answers", lambda nb: nb.cells[at(nb, "quiz(")].metadata.pop("tags")),
    ("hides_the_answers", lambda nb: replaced(nb, "quiz('0?'", "x\nquiz('0?'")),
    ("has_living_links", lambda nb: replaced(nb, "#autograd-twice", "#autograd-thrice")),
    ("has_living_links", lambda nb: replaced(nb, "01-quadratics", "01-quartics")),
    ("pairs_its_exercises", lambda nb: replaced(nb, "### Exercise 00.1 ·", "### Exercise 00.2 ·")),
    ("pairs_its_exercises", lambda nb: replaced(nb, "your turn", "not mine")),
    (
        "pairs_its_exercises",
        lambda nb: replaced(nb, "check('00.1', stub_00_1)", "stub_00_1(1)\ncheck('00.1', stub_00_1)"),
    ),
    ("pairs_its_exercises", lambda nb: replaced(nb, "check('00.1', stub_00_1)", "check('00.1', stub_00_2)")),
    ("pairs_its_exercises", lambda nb: replaced(nb, "check('00.1', solution", "check('00.2', solution")),
    ("pairs_its_exercises", lambda nb: replaced(nb, "def solution_00_1(a)", "def solution_00_1(b)")),
    ("pairs_its_exercises", lambda nb: nb.cells[at(nb, "def solution_00_1")].metadata.pop("jupyter")),
    ("pairs_its_exercises", lambda nb: nb.cells[at(nb, "def solution_00_1")].metadata.update(tags=["solution"])),
    ("pairs_its_exercises", lambda nb: nb.cells.pop(at(nb, "def solution_00_1"))),
    ("pairs_its_exercises", lambda nb: nb.cells.insert(at(nb, "def solution_00_1"), new_markdown_cell("Solution"))),
    ("pairs_its_exercises", lambda nb: nb.cells[3].metadata.update(tags=["solution"])),
    (
        "pairs_its_exercises",
        lambda nb: nb.cells.__delitem__(slice(at(nb, "Exercise 00.2"), at(nb, "solution_00_2") + 1)),
    ),
    ("needs_no_answer", lambda nb: more_code(nb, "print(stub_00_1)")),
    ("needs_no_answer", lambda nb: more_code(nb, "solution_00_2(1)")),
    ("recalls_five", lambda nb: replaced(nb, "5. e\n", "")),
    ("recalls_five", lambda nb: replaced(nb, "## Recall", "## Remember")),
    ("recalls_five", lambda nb: replaced(nb, "**Where next.**", "")),
    ("lists_what_to_try", lambda nb: more_prose(nb, "*Try:* go left. *See:* it grows.")),
    ("lists_what_to_try", lambda nb: more_prose(nb, "- *Try:* go left.\n\n*See:* it grows.")),
    ("names_its_settings", lambda nb: replaced(nb, "cubic=1, ", "")),
    ("names_its_settings", lambda nb: replaced(nb, "newton_step(x, cubic=1)", "newton_step(x)")),
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


def trainers(source: str) -> set[str]:
    """The widgets of a module that trains, examples in docstrings aside."""
    code = "\n".join(line for line in source.splitlines() if not line.lstrip().startswith((">>>", "...")))
    names = re.findall(r"(?m)^class (\w+)\(FigureWidget\)", code)
    return set(names) if re.search(r"\boptimizer\.step\(|\bfit\(", code) else set()


def test_every_widget_that_trains_is_known_to_the_flow() -> None:
    modules = (ROOT / "gnewton" / "teaching" / "widgets").glob("*.py")
    names = set().union(*(trainers(path.read_text(encoding="utf-8")) for path in modules))
    assert names >= {"DeepRates", "InvarianceTwins", "SampleSpectrum"}  # the search finds what it should
    assert names <= TRAINS
