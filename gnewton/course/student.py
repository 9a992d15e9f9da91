"""The course to hand out: the notebooks without the cells tagged ``solution`` and without outputs.

They go into ``student/notebooks``, and the pages they link to beside that folder, as in the book. Both are made anew at
each run; nothing else in ``student`` is touched. The package still holds the solutions: this keeps them out of sight,
not secret.
"""

import copy
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SOLUTION = "solution"


def write_student(source: Path, target: Path, pages: Sequence[Path] = ()) -> str:
    """Write the students' notebooks, and take away those that the course has no more; what was done, in a line."""
    folder = target / source.name
    folder.mkdir(parents=True, exist_ok=True)
    names = {path.name for path in source.glob("*.ipynb")}
    for stale in folder.glob("*.ipynb"):
        if stale.name not in names:
            stale.unlink()
    for name in sorted(names):
        write(for_students(read(source / name)), folder / name)
    for page in pages:
        shutil.copyfile(page, target / page.name)
    return f"{len(names)} notebooks without solutions in {folder}"


def read(path: Path) -> Any:
    """A notebook of the course."""
    import nbformat

    return nbformat.reads(path.read_text(encoding="utf-8"), as_version=4)  # type: ignore[no-untyped-call]


def write(notebook: Any, path: Path) -> None:
    """Save a notebook as the course's are saved: UTF-8, the same ends of lines on every system."""
    import nbformat

    path.write_bytes((nbformat.writes(notebook) + "\n").encode())  # type: ignore[no-untyped-call]


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
