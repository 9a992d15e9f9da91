"""What differs in another arithmetic is found and named with both outputs, and nothing else is.

The notebook is planted: its first cell is the same everywhere, each of the others differs in one variant alone.
"""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "elsewhere.py"
VARIANTS = runpy.run_path(str(TOOL))["VARIANTS"]

CELLS = {
    "print(1 + 1)": "2\n",
    "import os; print('oldest kernels', 'default' == os.environ.get('ATEN_CPU_CAPABILITY'))": "oldest kernels False\n",
    # A pixel of these pictures is one of 17 grey levels.
    "import gnewton as gn; print(len(gn.datasets.digits().train_x.unique()), 'levels')": "17 levels\n",
}


def elsewhere(*arguments: object) -> subprocess.CompletedProcess[str]:
    # The kernels are chosen by the tool alone, so that the test says the same wherever it runs.
    env = {name: value for name, value in os.environ.items() if name != "ATEN_CPU_CAPABILITY"}
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    """Saved as it comes out on a machine with kernels of its own."""
    cells = [
        new_code_cell(source, execution_count=count, outputs=[new_output("stream", name="stdout", text=text)])
        for count, (source, text) in enumerate(CELLS.items(), start=1)
    ]
    kernel = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), tmp_path / "planted.ipynb")
    return tmp_path


def compared(variant: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return elsewhere(variant, "--", "--nbval", "-o", "addopts=", "-p", "no:cacheprovider", "--color=no", folder)


@pytest.mark.parametrize(
    ("variant", "cell", "saved", "got"),
    [
        ("sse", 1, "oldest kernels False", "oldest kernels True"),
        ("perturbed", 2, "17 levels", r"\d{3,} levels"),
    ],
)
def test_a_cell_that_differs_is_named_with_both_outputs(
    notebook: Path, variant: str, cell: int, saved: str, got: str
) -> None:
    run = compared(variant, notebook)
    assert run.returncode == 1
    assert re.search(rf"'{saved}\\n' == '{got}\\n'", run.stdout), run.stdout
    assert re.search(rf"(?m)^{variant} +3 +1  \S*planted\S* Cell {cell}$", run.stdout), run.stdout


def test_what_pytest_cannot_run_is_no_success(tmp_path: Path) -> None:
    run = elsewhere("threads", "--", "--no-such-option", tmp_path)
    assert run.returncode != 0
    assert "pytest ran no test, exit status 4" in run.stdout


def test_an_unknown_variant_is_refused() -> None:
    run = elsewhere("sse3", "--", "notebooks")
    assert run.returncode != 0
    assert "expected variants out of sse, avx2, threads, perturbed, got sse3" in run.stderr


def test_every_variant_is_described_and_differs_from_the_others() -> None:
    described = TOOL.read_text(encoding="utf-8").split('"""')[1]
    assert all(re.search(rf"(?m)^{variant} ", described) for variant in VARIANTS)
    settings = [tuple(sorted(environment.items())) for environment in VARIANTS.values()]
    assert len(set(settings)) == len(settings)
