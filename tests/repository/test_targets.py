"""Every target works as the first command in a fresh clone, wherever that lies.

This is what can be held without installing anything: ``make -n`` prints what a target would run. ``make test-alone`` runs it.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INSTALLS_NOTHING = {"help", "clean", "chromium", "image", "release-check", "test-alone"}
ARGUMENTS = {"test-torch": ["TORCH=2.9.1"]}


def targets() -> list[str]:
    (line,) = re.findall(r"(?m)^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"))
    return line.split()


def clone(tmp_path: Path) -> Path:
    """What make reads, in a folder with a space in its name."""
    folder = tmp_path / "g newton"
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    return folder


def dry_run(folder: Path, target: str) -> str:
    command = ["make", "--dry-run", "--no-print-directory", target, *ARGUMENTS.get(target, [])]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


def complaints(printed: str, folder: Path) -> list[str]:
    """What would fail in a fresh clone: a path that a space breaks, or a program started before its folders are there."""
    reasons = ["names the folder, whose name may have a space"] if str(folder) in printed else []
    installs = [printed.find(words) for words in ("mkdir -p .cache", "-m venv", "-m pip install")]
    return reasons + ([] if installs == sorted(installs) and installs[0] >= 0 else ["installs before .cache is made"])


@pytest.mark.parametrize("target", sorted(set(targets()) - INSTALLS_NOTHING))
def test_a_target_makes_its_folders_installs_and_stays_relative(tmp_path: Path, target: str) -> None:
    folder = clone(tmp_path)
    assert complaints(dry_run(folder, target), folder) == []


@pytest.mark.parametrize("target", sorted(INSTALLS_NOTHING))
def test_other_targets_need_nothing(tmp_path: Path, target: str) -> None:
    folder = clone(tmp_path)
    printed = dry_run(folder, target)
    assert "pip install" not in printed
    assert str(folder) not in printed


@pytest.mark.parametrize(
    ("recipe", "complaint"),
    [("echo $(CURDIR)", "names the folder"), ("true", "installs before")],
    ids=["absolute", "cache"],
)
def test_a_target_that_breaks_it_is_noticed(tmp_path: Path, recipe: str, complaint: str) -> None:
    folder = clone(tmp_path)
    with (folder / "Makefile").open("a", encoding="utf-8") as makefile:
        makefile.write(f"\nplanted:\n\t{recipe}\n")
    (reason, *_) = complaints(dry_run(folder, "planted"), folder)
    assert reason.startswith(complaint)


def test_another_torch_is_asked_for_with_its_version(tmp_path: Path) -> None:
    run = subprocess.run(["make", "test-torch"], cwd=clone(tmp_path), capture_output=True, text=True)
    assert run.returncode != 0
    assert "make test-torch TORCH=2.9.1" in run.stdout
