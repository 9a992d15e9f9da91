"""A notebook of the course with its data and models on a device: the package's makers are given ``device=`` by default."""

import functools
import inspect
import time as clock
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = Path(__file__).parents[1] / "notebooks"
TIMEOUT = 300


def run_on(device: str, name: str) -> dict[str, Any]:
    """Run all cells; whether they ran, and the seconds."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    first = f"import gnewton\nfrom benchmarks.gpu_notebook import prefer\n\nprefer({device!r}, gnewton.datasets, gnewton.models)"
    notebook.cells.insert(0, nbformat.v4.new_code_cell(first))
    start = clock.perf_counter()
    resources = {"metadata": {"path": str(FOLDER.parent)}}  # benchmarks is found from there
    NotebookClient(notebook, kernel_name="python3", timeout=TIMEOUT, resources=resources).execute()
    return {"ok": True, "seconds": clock.perf_counter() - start}


def prefer(device: str, *modules: ModuleType) -> None:
    """Give every public function of the modules that takes ``device`` this one where the caller names none."""
    for module in modules:
        for name, function in list(vars(module).items()):
            if inspect.isfunction(function) and "device" in inspect.signature(function).parameters:
                setattr(module, name, _preferring(function, device))


def _preferring(function: Any, device: str) -> Any:
    @functools.wraps(function)
    def with_device(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **{"device": device} | kwargs)

    return with_device
