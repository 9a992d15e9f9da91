"""The course to hand out: the notebooks without the cells tagged ``solution`` and without outputs.

They go into ``student/notebooks``, and the pages they link to beside that folder, as in the book. Each run makes anew what the
last one wrote; nothing else in ``student`` is touched. The package still holds the solutions: this keeps them out of sight,
not secret.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gnewton.course.handed_out import hand_out

SOLUTION = "solution"


def write_student(source: Path, target: Path, pages: Sequence[Path] = ()) -> str:
    """Write the students' notebooks, and take away those that the course has no more; what was done, in a line."""
    paths = sorted(source.glob("*.ipynb"))
    notebooks = {f"{source.name}/{path.name}": content(for_students(read(path))) for path in paths}
    hand_out(notebooks | contents(pages), target)
    return f"{len(notebooks)} notebooks without solutions in {target / source.name}"


def contents(pages: Sequence[Path]) -> dict[str, bytes]:
    """Pages by their names, as they are."""
    return {page.name: page.read_bytes() for page in pages}


def read(path: Path) -> Any:
    """A notebook of the course."""
    import nbformat

    return nbformat.reads(path.read_text(encoding="utf-8"), as_version=4)  # type: ignore[no-untyped-call]


def content(notebook: Any) -> bytes:
    """A notebook as the course's are saved: UTF-8, the same ends of lines on every system."""
    import nbformat

    return (nbformat.writes(notebook) + "\n").encode()  # type: ignore[no-untyped-call,no-any-return]


def for_students(notebook: Any) -> Any:
    """The notebook without its solutions, as if nobody had run it."""
    notebook = copy.deepcopy(notebook)
    notebook.cells = [cell for cell in notebook.cells if not is_solution(cell)]
    return without_outputs(notebook)


def is_solution(cell: Any) -> bool:
    """Whether the cell holds the course's own answer."""
    return SOLUTION in cell.metadata.get("tags", [])


def without_outputs(notebook: Any) -> Any:
    """The same notebook, changed in place to one that nobody has run."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return notebook
