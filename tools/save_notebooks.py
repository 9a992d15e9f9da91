"""Execute notebooks and save them with clean outputs: ``python tools/save_notebooks.py notebooks [03 ...]``.

Clean means that running again changes no byte (cells tagged ``nbval-ignore-output`` apart) and that a page without a
kernel shows every picture: no timings, no widget state, no widget views, no version of the interpreter.
Nothing is saved when a cell fails, writes to stderr, or when the file would be larger than 1 MB.
"""

import argparse
import copy
import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellControlSignal, DeadKernelError
from nbformat import NotebookNode

LARGEST = 1_000_000  # bytes
CELL_TIMEOUT = 120  # seconds, as in `make notebooks-test`
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
LANGUAGE = {
    "file_extension": ".py",
    "mimetype": "text/x-python",
    "name": "python",
    "nbconvert_exporter": "python",
    "pygments_lexer": "ipython3",
}


class NotSaved(Exception):
    """Why a notebook was left as it was."""


def main(folder: Path, numbers: list[str]) -> int:
    """Save the chosen notebooks, all of them by default; return the number of those that could not be saved."""
    failures = 0
    for path in chosen(folder, numbers):
        try:
            print(f"{path}: {save(path)}", flush=True)
        except NotSaved as reason:
            failures += 1
            print(f"{path}: left as it was. {reason}", file=sys.stderr, flush=True)
    return failures


def chosen(folder: Path, numbers: list[str]) -> list[Path]:
    """The notebooks whose names start with one of the numbers."""
    paths = sorted(folder.glob("*.ipynb"))
    for number in numbers:
        if not any(path.name.startswith(number) for path in paths):
            sys.exit(f"expected the number of a notebook in {folder}, got {number!r}; choose one of {names(paths)}")
    return [path for path in paths if not numbers or path.name.startswith(tuple(numbers))]


def names(paths: list[Path]) -> str:
    """The notebooks' names, for a message."""
    return ", ".join(path.stem for path in paths) or "(none yet)"


def save(path: Path) -> str:
    """Execute, clean and save one notebook; return how long it took and how large it is."""
    start = time.perf_counter()
    notebook = nbformat.read(path, as_version=4)
    run(notebook, path.parent)
    text = nbformat.writes(cleaned(notebook)) + "\n"
    if (size := len(text.encode())) > LARGEST:
        raise NotSaved(f"Expected at most {LARGEST:,} bytes, got {size:,}; print less or draw smaller figures")
    # Written beside and renamed, so that an interruption never leaves half a notebook.
    beside = path.with_suffix(".saving")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)
    return f"{time.perf_counter() - start:.1f} s, {size / 1000:.0f} kB"


def run(notebook: NotebookNode, folder: Path) -> None:
    """Execute all cells in place, in the notebook's folder as JupyterLab does."""
    started: list[int] = []
    try:
        try:
            execute(notebook, folder, started)
        except (RuntimeError, AssertionError):
            if started:
                raise
            # The kernel did not come up: its ports may be another's between their choice and its start.
            execute(notebook, folder, started)
    except (CellControlSignal, DeadKernelError) as error:
        raise NotSaved(f"Cell {started[-1]} failed:\n{error}") from error
    for index, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                raise NotSaved(f"Cell {index} wrote to stderr; catch the warning, or print it:\n{output.text}")


def execute(notebook: NotebookNode, folder: Path, started: list[int]) -> None:
    """Execute all cells; the numbers of those that were begun are appended to ``started``."""
    client = NotebookClient(
        notebook,
        kernel_name=KERNEL["name"],
        timeout=CELL_TIMEOUT,
        record_timing=False,
        store_widget_state=False,
        resources={"metadata": {"path": str(folder)}},
        on_cell_start=lambda cell, cell_index: started.append(cell_index),
    )
    # A widget then writes the numbers of all its states beside its picture, for pages without a kernel.
    client.execute(env=os.environ | {"GNEWTON_SAVE_TABLES": "1"})


def cleaned(notebook: NotebookNode) -> NotebookNode:
    """The notebook without what differs between runs and machines, or needs a kernel to be seen."""
    notebook = copy.deepcopy(notebook)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    notebook.metadata.pop("widgets", None)
    notebook.metadata.update(kernelspec=KERNEL, language_info=LANGUAGE)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = merged(cell.outputs)
        for output in cell.get("outputs", []):
            # A page without a kernel would show "model not found" in place of the picture beside it.
            output.get("data", {}).pop(WIDGET_VIEW, None)
    return nbformat.from_dict(notebook)


def merged(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """The outputs with neighbouring prints joined: they arrive in chunks whose number depends on the clock."""
    result: list[NotebookNode] = []
    for output in outputs:
        last = result[-1] if result else {}
        if output.output_type == "stream" and output.name == last.get("name"):
            last["text"] += output.text
        else:
            result.append(output)
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Execute notebooks and save them with clean outputs.")
    parser.add_argument("folder", type=Path, help="of the notebooks")
    parser.add_argument("numbers", nargs="*", metavar="number", help="such as 03; all of them without one")
    given = parser.parse_args()
    sys.exit(1 if main(given.folder, given.numbers) else 0)
