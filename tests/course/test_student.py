"""What students get is the course without its solutions and outputs, and nothing else is different."""

import difflib
import json
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from gnewton.course.copies import RECORD, copy_course
from gnewton.course.graders import write_otter
from gnewton.course.student import for_students, write_student

ROOT = Path(__file__).parents[2]
COURSE = sorted((ROOT / "notebooks").glob("*.ipynb"))


def made_up():
    stub = new_code_cell("def f(): ...", id="stub", execution_count=1, outputs=[new_output("stream", text="your turn")])
    solution = new_code_cell("def solution(): ...", id="solved", metadata={"tags": ["solution", "hide-cell"]})
    return new_notebook(cells=[new_markdown_cell("# Exercises", id="title"), stub, solution])


def lines(notebook):
    return json.dumps(notebook, indent=1, sort_keys=True).splitlines()


def without(notebook):
    """The same by another way: text for text, cell by cell."""
    plain = json.loads(nbformat.writes(notebook))
    cells = [cell for cell in plain["cells"] if "solution" not in cell["metadata"].get("tags", [])]
    emptied = [cell | {"outputs": [], "execution_count": None} if "outputs" in cell else cell for cell in cells]
    return plain | {"cells": emptied}


@pytest.mark.parametrize("path", COURSE, ids=lambda path: path.stem)
def test_only_solutions_and_outputs_are_gone(path):
    whole = nbformat.read(path, as_version=4)
    students = json.loads(nbformat.writes(for_students(whole)))
    assert students == without(whole), "\n".join(difflib.unified_diff(lines(students), lines(without(whole))))
    left = [cell for cell in whole.cells if "solution" not in cell.metadata.get("tags", [])]
    assert [cell["id"] for cell in students["cells"]] == [cell.id for cell in left]
    assert "def solution_" not in nbformat.writes(for_students(whole))


def test_a_solution_and_an_output_are_seen_to_go():
    students = for_students(made_up())
    assert [cell.id for cell in students.cells] == ["title", "stub"]
    assert students.cells[1].outputs == []
    assert students.cells[1].execution_count is None
    nbformat.validate(students)


def test_the_course_itself_is_left_alone():
    whole = made_up()
    for_students(whole)
    assert whole == made_up()


def test_a_folder_is_made_anew_and_other_files_stay(tmp_path):
    course, student, page = tmp_path / "notebooks", tmp_path / "student", tmp_path / "refresher.md"
    course.mkdir()
    page.write_text("# Refresher")
    for name in ("00-tour", "01-bowls"):
        nbformat.write(made_up(), course / f"{name}.ipynb")
    assert "2 notebooks" in write_student(course, student, [page])
    (student / "notes.txt").write_text("mine")
    (course / "01-bowls.ipynb").rename(course / "01-valleys.ipynb")
    write_student(course, student, [page])
    files = sorted(str(path.relative_to(student)) for path in student.rglob("*") if path.is_file())
    assert files == [
        ".written.json",
        "notebooks/00-tour.ipynb",
        "notebooks/01-valleys.ipynb",
        "notes.txt",
        "refresher.md",
    ]
    before = {path: path.read_bytes() for path in student.rglob("*.ipynb")}
    write_student(course, student, [page])
    assert {path: path.read_bytes() for path in student.rglob("*.ipynb")} == before


def everything(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("where", ["another's notebook", "the course itself", "through a link"])
@pytest.mark.parametrize("written", [write_student, write_otter])
def test_no_notebook_from_elsewhere_is_overwritten_or_taken_away(tmp_path, written, where):
    course, own = tmp_path / "clone" / "notebooks", tmp_path / "own"
    course.mkdir(parents=True)
    (own / "notebooks").mkdir(parents=True)
    ran = new_code_cell("1 + 1", id="sum", outputs=[new_output("stream", text="2")])
    nbformat.write(new_notebook(cells=[ran]), course / "00-tour.ipynb")
    (own / "notebooks" / "mine.ipynb").write_text("mine")
    (own / "notebooks" / "00-tour.ipynb").write_text("mine, too")
    (tmp_path / "link").symlink_to(tmp_path / "clone", target_is_directory=True)
    target = {"another's notebook": own, "the course itself": tmp_path / "clone", "through a link": tmp_path / "link"}
    before = everything(tmp_path)
    with pytest.raises(FileExistsError, match=r"which holds notebooks/00-tour\.ipynb from elsewhere or with"):
        written(course, target[where])
    assert everything(tmp_path) == before
    # The control: without that one it writes, twice, and still leaves the others.
    (own / "notebooks" / "00-tour.ipynb").unlink()
    for _ in range(2):
        written(course, own)
    assert (own / "notebooks" / "mine.ipynb").read_text() == "mine"


@pytest.mark.parametrize("damaged", ["", "{", "[1, 2]", "null", '{"00-tour.ipynb": '])
def test_after_a_damaged_record_every_notebook_is_the_reader_s(tmp_path, damaged):
    course, copy = tmp_path / "notebooks", tmp_path / "copy"
    course.mkdir()
    nbformat.write(made_up(), course / "00-tour.ipynb")
    copy_course(course, copy)
    (copy / RECORD).write_text(damaged)
    (copy / "00-tour.ipynb").write_text("mine")
    assert len(copy_course(course, copy)) == 1
    assert (copy / "00-tour.ipynb").read_text() == "mine"


def test_students_copies_are_not_tracked():
    assert "student/" in (ROOT / ".gitignore").read_text().splitlines()
