"""The package works from a source tree on the path, without being installed."""

import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]


def site_without_gnewton(folder: Path) -> Path:
    """A folder that holds what the interpreter has installed, all but the package itself."""
    installed = Path(torch.__file__).parents[1]
    for path in installed.iterdir():
        if "gnewton" not in path.name:
            (folder / path.name).symlink_to(path)
    return folder


def test_it_is_imported_from_a_source_tree(tmp_path: Path) -> None:
    # -S: no site-packages, so that no installed copy's metadata is found.
    command = [sys.executable, "-S", "-c", "import gnewton as gn; print(gn.__version__); print(gn.__file__)"]
    path = f"{ROOT}:{site_without_gnewton(tmp_path)}"
    run = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": path}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    version, file = run.stdout.splitlines()
    assert version == "unknown"
    assert Path(file) == ROOT / "gnewton" / "__init__.py"
