"""What graders get: every exercise once, no solution handed out; and marks that come out right, through the tools themselves."""

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from gnewton.course import place
from gnewton.course.graders import exercises, nbgrader, otter, write_nbgrader, write_otter
from gnewton.course.grading import HIDDEN, require
from gnewton.course.student import read
from gnewton.teaching.exercises.exercise import every

COURSE = sorted(place.notebooks().glob("*.ipynb"))
FORMATS = {"otter": otter, "nbgrader": nbgrader}


def numbers(path: Path) -> list[str]:
    """The exercises of a notebook, as the package lists them."""
    return [exercise.number for exercise in every() if exercise.number.startswith(path.name[:2])]


# -- the tests that grade ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exercise", every(), ids=lambda exercise: exercise.number)
def test_solutions_pass_and_mistakes_fail_on_the_hidden_examples(exercise: Any) -> None:
    require(exercise.number, exercise.solution)
    for mistake in exercise.mistakes.values():
        with pytest.raises(AssertionError):
            require(exercise.number, mistake)


def test_an_answer_known_by_heart_fails() -> None:
    (exercise,) = [exercise for exercise in every() if exercise.number == "01.2"]
    known = {str(exercise.arguments(seed)): exercise.solution(*exercise.arguments(seed)) for seed in (0, 1)}
    require("01.2", lambda *arguments: known[str(arguments)], seeds=(0, 1))
    assert not set(HIDDEN) & {0, 1}
    with pytest.raises(KeyError):
        require("01.2", lambda *arguments: known[str(arguments)])


# -- the notebooks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", COURSE, ids=lambda path: path.stem)
def test_every_exercise_is_found_with_its_solution(path: Path) -> None:
    listed = [exercise for _, exercise in exercises(read(path)) if exercise]
    assert [exercise.number for exercise in listed] == numbers(path)


@pytest.mark.parametrize("convert", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("path", COURSE, ids=lambda path: path.stem)
def test_nothing_but_the_exercises_changes(path: Path, convert: Callable[[Any], Any]) -> None:
    whole, made = read(path), convert(read(path))
    nbformat.validate(made)
    assert [cell.id for cell in made.cells] == [cell.id for cell in convert(read(path)).cells]
    assert len({cell.id for cell in made.cells}) == len(made.cells)
    kept = {cell.id: cell.source for cell in made.cells}
    graded = {cell.id for cell, exercise in exercises(read(path)) if exercise}
    for cell in whole.cells:
        if cell.id not in graded and "solution" not in cell.metadata.get("tags", []):
            assert kept[cell.id] == cell.source
    assert [output for cell in made.cells for output in cell.get("outputs", [])] == []


def test_a_stub_without_a_solution_is_noticed() -> None:
    stub = 'def f(x):\n    raise NotImplementedError("your turn")\n\n\ncheck("00.1", f)'
    for cells in ([new_code_cell(stub)], [new_code_cell(stub), new_markdown_cell("later")]):
        with pytest.raises(ValueError, match="expected a stub and its solution"):
            otter(new_notebook(cells=cells))


def test_both_folders_are_written_twice_the_same(tmp_path: Path) -> None:
    for name, written in (("otter", write_otter), ("nbgrader", write_nbgrader)):
        text = [written(place.notebooks(), tmp_path / name, place.pages()) for _ in range(2)]
        assert text[0] == text[1]
        assert text[0].startswith("15 ")
    assert (tmp_path / "otter" / "refresher.md").exists()
    assert (tmp_path / "nbgrader" / "source" / "00-tour" / "refresher.md").exists()


# -- there and back, through the graders ---------------------------------------------------------------------------

NOTEBOOK = "00-tour"
RIGHT = {
    "take_step": "    return theta - eta[group] * u",
    "promised_loss": "    return loss - g @ eta + eta @ H @ eta / 2",
}
WRONG = RIGHT | {"promised_loss": "    return loss - g @ eta"}
TODO = re.compile(r'(    \.\.\.\n)?    raise NotImplementedError\("your turn"\)')

graders = pytest.mark.graders
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "JUPYTER_PLATFORM_DIRS": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}


def run(tool: str, *arguments: object, folder: Path) -> str:
    """A command of a grader, in a folder; all that it printed."""
    if find_spec(tool) is None:
        pytest.skip(f"needs {tool}: make graders-test installs it")
    script = Path(sys.executable).with_name(tool)
    # nbgrader looks for its own tools on the path.
    path = os.pathsep.join([str(script.parent), os.environ.get("PATH", "")])
    own = {
        name: str(folder / "own")
        for name in ("JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    }
    done = subprocess.run(
        [script, *map(str, arguments)],
        cwd=folder,
        env=os.environ | ENVIRONMENT | own | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def answered(handed_out: Path, answers: dict[str, str], to: Path) -> Path:
    """What a learner hands in: the notebook that was handed out, the stubs replaced by answers."""
    notebook = nbformat.read(handed_out, as_version=4)
    written = 0
    for cell in notebook.cells:
        for name, body in answers.items():
            if cell.source.startswith(f"def {name}("):
                cell.source, count = TODO.subn(body, cell.source)
                written += count
    assert written == len(answers)
    to.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, to)
    return to


def holds_no_solution(handed_out: Path) -> bool:
    return not any(body.strip() in handed_out.read_text(encoding="utf-8") for body in RIGHT.values())


@graders
def test_otter_there_and_back(tmp_path: Path) -> None:
    write_otter(place.notebooks(), tmp_path, place.pages())
    run("otter", "assign", tmp_path / "notebooks" / f"{NOTEBOOK}.ipynb", tmp_path / "dist", folder=tmp_path)
    (archive,) = (tmp_path / "dist" / "autograder").glob("*.zip")
    handed_out = tmp_path / "dist" / "student" / f"{NOTEBOOK}.ipynb"
    assert holds_no_solution(handed_out)
    marks = {}
    for who, answers in (("right", RIGHT), ("wrong", WRONG), ("untouched", {})):
        handed_in = answered(handed_out, answers, tmp_path / who / f"{NOTEBOOK}.ipynb")
        run("otter", "run", "-a", archive, "-o", tmp_path / who, handed_in, folder=tmp_path / who)
        results = json.loads((tmp_path / who / "results.json").read_text(encoding="utf-8"))
        marks[who] = {test["name"]: test["score"] for test in results["tests"] if test["name"].startswith("q")}
    assert marks == {
        "right": {"q00_1": 1, "q00_2": 1},
        "wrong": {"q00_1": 1, "q00_2": 0},
        "untouched": {"q00_1": 0, "q00_2": 0},
    }


@graders
def test_nbgrader_there_and_back(tmp_path: Path) -> None:
    write_nbgrader(place.notebooks(), tmp_path, place.pages())
    run("nbgrader", "generate_assignment", NOTEBOOK, folder=tmp_path)
    handed_out = tmp_path / "release" / NOTEBOOK / f"{NOTEBOOK}.ipynb"
    assert holds_no_solution(handed_out)
    for who, answers in (("right", RIGHT), ("wrong", WRONG), ("untouched", {})):
        answered(handed_out, answers, tmp_path / "submitted" / who / NOTEBOOK / f"{NOTEBOOK}.ipynb")
    run("nbgrader", "autograde", NOTEBOOK, folder=tmp_path)
    run("nbgrader", "export", "--to", tmp_path / "marks.csv", folder=tmp_path)
    with (tmp_path / "marks.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["assignment"] == NOTEBOOK]
    assert {row["student_id"]: (float(row["score"]), float(row["max_score"])) for row in rows} == {
        "right": (2, 2),
        "wrong": (1, 2),
        "untouched": (0, 2),
    }
