"""The course to hand out: ``python tools/student_notebooks.py notebooks student [page.md ...]``.

The notebooks without the cells tagged ``solution`` and without outputs, in ``student/notebooks``, and the pages they link to
beside that folder, as in the book. Both are made anew at each run; nothing else in ``student`` is touched. The package
still holds the solutions: this keeps them out of sight, not secret.
"""

import copy
import shutil
import sys
from pathlib import Path

import nbformat
from nbformat import NotebookNode

SOLUTION = "solution"


def main(source: Path, target: Path, pages: list[Path]) -> None:
    """Write the students' notebooks, and take away those that the course has no more."""
    folder = target / source.name
    folder.mkdir(parents=True, exist_ok=True)
    names = {path.name for path in source.glob("*.ipynb")}
    for stale in folder.glob("*.ipynb"):
        if stale.name not in names:
            stale.unlink()
    for name in sorted(names):
        notebook = for_students(nbformat.read(source / name, as_version=4))
        (folder / name).write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
    for page in pages:
        shutil.copyfile(page, target / page.name)
    print(f"{len(names)} notebooks without solutions in {folder}")


def for_students(notebook: NotebookNode) -> NotebookNode:
    """The notebook without its solutions, as if nobody had run it."""
    notebook = copy.deepcopy(notebook)
    notebook.cells = [cell for cell in notebook.cells if SOLUTION not in cell.metadata.get("tags", [])]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return notebook


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: student_notebooks.py SOURCE TARGET [PAGE ...]")
    main(Path(sys.argv[1]), Path(sys.argv[2]), [Path(page) for page in sys.argv[3:]])
