"""The course to hand out: the notebooks without the cells tagged ``solution`` and without outputs.

They go into ``student/notebooks``, and the pages they link to beside that folder, as in the book. Both are made anew at
each run; nothing else in ``student`` is touched. ``.written.json`` beside the notebooks names those that a run wrote:
no other is overwritten or taken away. The package still holds the solutions: this keeps them out of sight,
not secret.
"""

import copy
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gnewton.course.copies import digest, read_record

SOLUTION = "solution"
RECORD = ".written.json"


def write_student(source: Path, target: Path, pages: Sequence[Path] = ()) -> str:
    """Write the students' notebooks, and take away those that the course has no more; what was done, in a line."""
    folder = target / source.name
    notebooks = {path.name: for_students(read(path)) for path in sorted(source.glob("*.ipynb"))}
    write_all(notebooks, folder)
    for page in pages:
        shutil.copyfile(page, target / page.name)
    return f"{len(notebooks)} notebooks without solutions in {folder}"


def write_all(notebooks: Mapping[str, Any], folder: Path) -> None:
    """Write notebooks by their names, in place of those of the last run; FileExistsError, with nothing written, where others lie."""
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / RECORD
    written = read_record(record).keys()
    if others := sorted(name for name in notebooks if name not in written and (folder / name).exists()):
        raise FileExistsError(
            f"expected a folder for the notebooks to hand out, got {folder}, which holds {', '.join(others)} from elsewhere; name "
            "another folder, or delete them"
        )
    for stale in written - notebooks.keys():
        (folder / stale).unlink(missing_ok=True)
    for name, notebook in notebooks.items():
        write(notebook, folder / name)
    hashes = {name: digest((folder / name).read_bytes()) for name in notebooks}
    record.write_text(json.dumps(hashes, indent=1) + "\n", encoding="utf-8")


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
