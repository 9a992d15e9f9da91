"""Whatever lies in a folder to hand out, of whatever format: what is not what was written there last stays as it is."""

import itertools
import json
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from gnewton.course import copies, handed_out
from gnewton.course.copies import copy_course
from gnewton.course.graders import write_nbgrader, write_otter
from gnewton.course.handed_out import RECORD, hand_out
from gnewton.course.student import write_student

FORMATS = {"plain": write_student, "otter": write_otter, "nbgrader": write_nbgrader}
every_format = pytest.mark.parametrize("written", FORMATS.values(), ids=FORMATS)
NAMES = ("00-tour", "01-bowls")


def edition(folder, text):
    """A course of two notebooks and a page, as a folder and its pages."""
    notebooks, page = folder / "notebooks", folder / "refresher.md"
    notebooks.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        cells = [new_markdown_cell(f"# {name}, {text}", id="title"), new_code_cell("1 + 1", id="sum")]
        cells[1].outputs = [new_output("stream", text="2")]
        nbformat.write(new_notebook(cells=cells), notebooks / f"{name}.ipynb")
    page.write_text(f"# Refresher, {text}\n")
    return notebooks, [page]


def everything(folder):
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def handed(folder):
    """Every file but the records."""
    records = (RECORD, copies.RECORD)
    return {name: content for name, content in everything(folder).items() if Path(name).name not in records}


def whole(written, tmp_path, text):
    """What a format writes into a new folder."""
    course, pages = edition(tmp_path / f"course {text}", text)
    written(course, tmp_path / f"whole {text}", pages)
    return handed(tmp_path / f"whole {text}")


@every_format
def test_what_was_not_touched_follows_the_course(tmp_path, written):
    for text in ("first", "second"):
        course, pages = edition(tmp_path / "course", text)
        written(course, tmp_path / "out", pages)
        assert handed(tmp_path / "out") == whole(written, tmp_path, text)


PUT = {
    "from elsewhere": lambda path: path.write_text("mine"),
    "a folder": lambda path: path.mkdir(),
    "a link": lambda path: path.symlink_to("nowhere"),
}


@every_format
@pytest.mark.parametrize("how", ["changed", *PUT])
@pytest.mark.parametrize("text", ["first", "second"])
def test_any_file_that_is_not_ours_stops_everything(tmp_path, written, how, text):
    names = whole(written, tmp_path, "first").keys()
    for place, name in enumerate(sorted(names)):
        out = tmp_path / f"out {place}"
        course, pages = edition(tmp_path / "course", "first")
        if how == "changed":
            written(course, out, pages)
            with (out / name).open("ab") as file:
                file.write(b" ")
        else:
            (out / name).parent.mkdir(parents=True)
            PUT[how](out / name)
        course, pages = edition(tmp_path / "course", text)
        before = everything(out)
        with pytest.raises(FileExistsError, match=r"which holds .* name another folder, or rename or delete") as error:
            written(course, out, pages)
        assert name in str(error.value)
        assert everything(out) == before
        # The control: what it advises helps.
        (out / name).rename(tmp_path / f"mine {place}")
        written(course, out, pages)
        assert handed(out) == whole(written, tmp_path, text)


@every_format
def test_a_file_in_the_place_of_a_folder_is_said(tmp_path, written):
    course, pages = edition(tmp_path / "course", "first")
    folders = {Path(name).parent for name in whole(written, tmp_path, "first")}
    for place, folder in enumerate(sorted(folders)):
        out = tmp_path / f"out {place}"
        (out / folder).parent.mkdir(parents=True, exist_ok=True)
        (out / folder).write_text("mine")
        before = everything(tmp_path)
        with pytest.raises(NotADirectoryError, match=r"expected a folder, got the file .* rename the file"):
            written(course, out, pages)
        assert everything(tmp_path) == before


@every_format
def test_what_the_course_has_no_more_goes_and_what_was_changed_stays(tmp_path, written):
    course, pages = edition(tmp_path / "course", "first")
    for out in (tmp_path / "changed", tmp_path / "as it was"):
        written(course, out, pages)
    gone = {name for name in handed(tmp_path / "changed") if "01-bowls" in name}
    for name in gone:
        (tmp_path / "changed" / name).write_text("mine")
    (course / "01-bowls.ipynb").unlink()
    for out, stay in ((tmp_path / "changed", gone), (tmp_path / "as it was", set())):
        written(course, out, pages)
        assert {name for name in handed(out) if "01-bowls" in name} == stay
    assert not list((tmp_path / "as it was").rglob("*01-bowls*")), "an empty folder is an assignment for nbgrader"


@pytest.mark.parametrize(("one", "other"), [("plain", "nbgrader"), ("nbgrader", "plain")])
def test_two_formats_share_a_folder(tmp_path, one, other):
    course, pages = edition(tmp_path / "course", "first")
    for name in (one, other, one):
        FORMATS[name](course, tmp_path / "out", pages)
    apart = [whole(FORMATS[name], tmp_path / name, "first") for name in (one, other)]
    assert handed(tmp_path / "out") == apart[0] | apart[1]


ODD = ["../../p.txt", "../p.txt", "/p.txt", "", ".", "..", "notebooks", "a\0b", "x" * 5000, "notebooks/../../p.txt"]


@pytest.mark.parametrize("name", ODD, ids=lambda name: repr(name[:20]))
@pytest.mark.parametrize("value", ["x", None, 3, ["x"], {}])
def test_a_record_can_say_anything_and_nothing_outside_is_touched(tmp_path, name, value):
    course, pages = edition(tmp_path / "course", "first")
    mine = tmp_path / "p.txt"
    mine.write_text("mine")
    out = tmp_path / "out"
    out.mkdir()
    # With the right hash, too: it lies outside.
    for hashed in (value, handed_out.digest(b"mine")):
        (out / RECORD).write_text(json.dumps({name: hashed}))
        write_student(course, out, pages)
        assert mine.read_text() == "mine"
        assert handed(out) == whole(write_student, tmp_path, "first")


@pytest.mark.parametrize("damaged", ["", "{", "[1, 2]", "null", "[" * 100_000, "\xff"])
def test_after_a_damaged_record_every_file_is_somebodys(tmp_path, damaged):
    hand_out({"a/b.txt": b"first"}, tmp_path)
    (tmp_path / RECORD).write_bytes(damaged.encode("latin-1"))
    with pytest.raises(FileExistsError, match=r"a/b\.txt"):
        hand_out({"a/b.txt": b"second"}, tmp_path)
    hand_out({"a/b.txt": b"first"}, tmp_path)  # the same bytes lose nothing, and are ours again
    hand_out({"a/b.txt": b"second"}, tmp_path)
    assert (tmp_path / "a" / "b.txt").read_text() == "second"


STOPS = {"Ctrl-C": KeyboardInterrupt(), "a quota": OSError(122, "Disk quota exceeded")}


def stopping_at(count, stop):
    """Path.write_bytes that stops half way in its call number ``count``."""
    calls = itertools.count()
    write_bytes = Path.write_bytes

    def stopped(path, content):
        if next(calls) == count:
            write_bytes(path, content[: len(content) // 2])
            raise stop
        return write_bytes(path, content)

    return stopped


def copied(course, out, pages):
    assert copy_course(course, out, pages) == []


@pytest.mark.parametrize("stop", STOPS.values(), ids=STOPS)
@pytest.mark.parametrize("written", [*FORMATS.values(), copied], ids=[*FORMATS, "lab"])
def test_a_run_that_was_stopped_anywhere_can_be_repeated(tmp_path, monkeypatch, written, stop):
    out = tmp_path / "out"
    for count in itertools.count():
        course, pages = edition(tmp_path / "course", f"edition {count}")
        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_bytes", stopping_at(count, stop))
            try:
                written(course, out, pages)
                break
            except type(stop):
                pass
        written(course, out, pages)
        assert handed(out) == whole(written, tmp_path, f"edition {count}")
    assert count >= 6  # three files and their lines in the record
