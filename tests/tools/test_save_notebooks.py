"""Saved outputs are clean: a second run changes no byte, a picture stays a picture, a failure changes nothing.

The notebooks here are made up. Each run starts a kernel, so that a few runs share many claims.
"""

import importlib.util
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "save_notebooks.py"

PICTURE = """
import base64, sys, time
import ipywidgets
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)

class Widget(ipywidgets.VBox):
    def __repr__(self):
        return "one dot"

    def _repr_mimebundle_(self, **options):
        view = super()._repr_mimebundle_(**options)
        return view | {"image/png": base64.b64encode(PNG).decode(), "text/plain": repr(self)}

Widget([ipywidgets.Image(value=PNG)])
"""
PRINTS = """
from IPython.display import display
for n in range(3):
    print(n); sys.stdout.flush(); time.sleep(0.02)
display(Widget())
print("below the picture")
"""
CLOCK = "print(time.time_ns())"


def write(path: Path, *cells: NotebookNode) -> Path:
    nbformat.write(
        new_notebook(
            cells=list(cells), metadata={"widgets": {}, "kernelspec": {"name": "mine", "display_name": "Mine"}}
        ),
        path,
    )
    return path


def run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True)


def save(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run(TOOL, *arguments)


def without_ignored(path: Path) -> str:
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if "nbval-ignore-output" in cell.metadata.get("tags", []):
            cell.outputs = []
    return nbformat.writes(notebook)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A notebook with a widget, prints in chunks, a clock and a file beside it, saved once."""
    folder = tmp_path_factory.mktemp("notebooks")
    (folder / "beside.txt").write_text("found")
    path = write(
        folder / "00-widgets.ipynb",
        new_markdown_cell("# Widgets", id="title"),
        new_code_cell(PICTURE, id="picture", metadata={"execution": {"iopub.status.busy": "09:00"}}),
        new_code_cell(PRINTS, id="prints"),
        new_code_cell(CLOCK, id="clock", metadata={"tags": ["nbval-ignore-output"]}),
        new_code_cell("open('beside.txt').read()", id="beside", execution_count=77),
    )
    result = save(folder)
    assert result.returncode == 0, result.stderr
    assert f"{path}: " in result.stdout
    assert " s, " in result.stdout
    return path


def test_saves_what_a_reader_without_a_kernel_sees(saved: Path) -> None:
    notebook = nbformat.read(saved, as_version=4)
    picture, prints, _, beside = notebook.cells[1:]
    assert set(picture.outputs[0].data) == {"image/png", "text/plain"}
    assert [out.get("text") for out in prints.outputs] == ["0\n1\n2\n", None, "below the picture\n"]
    assert beside.outputs[0].data["text/plain"] == "'found'"


def test_keeps_ids_and_drops_what_differs_between_runs(saved: Path) -> None:
    notebook = nbformat.read(saved, as_version=4)
    assert [cell.id for cell in notebook.cells] == ["title", "picture", "prints", "clock", "beside"]
    assert [cell.execution_count for cell in notebook.cells[1:]] == [1, 2, 3, 4]
    assert notebook.cells[1].metadata == {}
    assert "widgets" not in notebook.metadata
    assert notebook.metadata.kernelspec.name == "python3"
    assert "version" not in notebook.metadata.language_info


def test_second_run_changes_only_ignored_cells(saved: Path) -> None:
    before, text = without_ignored(saved), saved.read_text()
    assert save(saved.parent, "00").returncode == 0
    assert without_ignored(saved) == before
    assert saved.read_text() != text, "the clock should have moved"
    assert sorted(path.name for path in saved.parent.iterdir()) == ["00-widgets.ipynb", "beside.txt"]


def nbval(path: Path) -> subprocess.CompletedProcess[str]:
    sanitize = ROOT / "tests" / "nbval_sanitize.cfg"
    return run("-m", "pytest", "-p", "no:cacheprovider", "--nbval", "--nbval-sanitize-with", sanitize, path)


def test_strict_nbval_passes_without_the_widget_view(saved: Path) -> None:
    result = nbval(saved)
    assert result.returncode == 0, result.stdout
    assert "4 passed" in result.stdout


def test_strict_nbval_refuses_another_output(saved: Path, tmp_path: Path) -> None:
    other = tmp_path / saved.name
    other.write_text(
        saved.read_text().replace("below the picture", "above the picture", 1).replace("'found'", "'lost'")
    )
    (tmp_path / "beside.txt").write_text("found")
    result = nbval(other)
    assert result.returncode == 1
    assert "2 failed" in result.stdout


BAD = {
    "00-error": ("def f():\n    return 1 / 0\nf()", "Cell 1 failed", "return 1 / 0"),
    "01-stderr": ("import warnings\nwarnings.warn('beware')", "Cell 1 wrote to stderr", "beware"),
    "02-size": ("print('a' * 1_100_000)", "at most 1,000,000 bytes", "smaller figures"),
}


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[Path, bytes], str]:
    """A folder with three notebooks that cannot be saved and a good one, as they were before, and what saving said."""
    folder = tmp_path_factory.mktemp("bad")
    for name, (source, *_) in BAD.items():
        write(folder / f"{name}.ipynb", new_code_cell("1"), new_code_cell(source), new_code_cell("2"))
    write(folder / "03-good.ipynb", new_code_cell("1"))
    before = {path: path.read_bytes() for path in folder.iterdir()}
    result = save(folder)
    assert result.returncode == 1
    return folder, before, result.stderr


def test_failure_is_told_and_changes_nothing(failed: tuple[Path, dict[Path, bytes], str]) -> None:
    folder, before, said = failed
    for name, (_, *messages) in BAD.items():
        path = folder / f"{name}.ipynb"
        assert path.read_bytes() == before[path]
        assert all(message in said for message in (str(path), *messages))
    assert set(folder.iterdir()) == set(before)


def test_failure_does_not_stop_the_others(failed: tuple[Path, dict[Path, bytes], str]) -> None:
    good = failed[0] / "03-good.ipynb"
    assert nbformat.read(good, as_version=4).cells[0].execution_count == 1


def test_number_chooses(failed: tuple[Path, dict[Path, bytes], str]) -> None:
    assert save(failed[0], "03").returncode == 0, "the three that fail should not have run"


def test_a_kernel_that_does_not_come_up_is_started_once_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flaky(notebook: object, folder: Path, started: list[int]) -> None:
        calls.append(folder)
        if len(calls) == 1 or all_fail:
            raise RuntimeError("Kernel died before replying to kernel_info")

    spec = importlib.util.spec_from_file_location("save_notebooks", TOOL)
    assert spec is not None
    assert spec.loader is not None
    save_notebooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(save_notebooks)
    monkeypatch.setattr(save_notebooks, "execute", flaky)
    for all_fail in (False, True):
        calls: list[Path] = []
        with pytest.raises(RuntimeError) if all_fail else nullcontext():
            save_notebooks.run(nbformat.v4.new_notebook(), tmp_path)
        assert len(calls) == 2


def test_unknown_number_is_refused_with_those_there_are(tmp_path: Path) -> None:
    write(tmp_path / "01-good.ipynb")
    result = save(tmp_path, "07")
    assert result.returncode == 1
    assert "'07'" in result.stderr
    assert "01-good" in result.stderr
