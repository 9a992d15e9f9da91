"""The reader's copy: what the reader touched is sacred, what the reader did not touch follows the course."""

import json
from pathlib import Path

import pytest

from gnewton.course.copies import copy_course


def notebook(source: str, **metadata: str) -> str:
    return json.dumps({"cells": [{"cell_type": "markdown", "source": source}], "metadata": metadata})


@pytest.fixture
def course(tmp_path: Path) -> Path:
    folder = tmp_path / "notebooks"
    folder.mkdir()
    (folder / "00-tour.ipynb").write_text(notebook("tour, first edition"))
    (folder / "01-bowls.ipynb").write_text(notebook("bowls, first edition"))
    (folder / "LICENSE").write_text("not a notebook")
    return folder


@pytest.fixture
def learn(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "learn"


def copy(course: Path, learn: Path, *pages: Path) -> str:
    return "\n".join(copy_course(course, learn, pages))


def texts(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.glob("*.ipynb")}


def test_copies_notebooks_and_nothing_else(course: Path, learn: Path) -> None:
    assert copy(course, learn) == ""
    assert texts(learn) == texts(course)
    assert sorted(path.name for path in learn.iterdir()) == [".copied.json", "00-tour.ipynb", "01-bowls.ipynb"]


def test_second_run_changes_no_file(course: Path, learn: Path) -> None:
    copy(course, learn)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in learn.glob("*.ipynb")}
    copy(course, learn)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in learn.glob("*.ipynb")} == before


def test_untouched_follows_the_course(course: Path, learn: Path) -> None:
    copy(course, learn)
    (course / "00-tour.ipynb").write_text(notebook("tour, second edition"))
    (course / "02-new.ipynb").write_text(notebook("new"))
    assert copy(course, learn) == ""
    assert texts(learn) == texts(course)


def test_opened_alone_is_untouched(course: Path, learn: Path) -> None:
    copy(course, learn)
    (learn / "00-tour.ipynb").write_text(notebook("tour, first edition", version="3.12.1"))
    (course / "00-tour.ipynb").write_text(notebook("tour, second edition"))
    assert copy(course, learn) == ""
    assert texts(learn) == texts(course)


def test_touched_stays_in_silence_while_the_course_rests(course: Path, learn: Path) -> None:
    copy(course, learn)
    (learn / "00-tour.ipynb").write_text(notebook("my notes"))
    assert copy(course, learn) == ""
    assert texts(learn)["00-tour.ipynb"] == notebook("my notes")


def test_touched_stays_and_says_so_when_the_course_moves(course: Path, learn: Path) -> None:
    copy(course, learn)
    (learn / "00-tour.ipynb").write_text(notebook("my notes"))
    (course / "00-tour.ipynb").write_text(notebook("tour, second edition"))
    for _ in range(2):
        (line,) = copy(course, learn).splitlines()
        assert str(learn / "00-tour.ipynb") in line
        assert "rename or delete" in line
        assert texts(learn)["00-tour.ipynb"] == notebook("my notes")


def test_the_advice_works(course: Path, learn: Path) -> None:
    copy(course, learn)
    (learn / "00-tour.ipynb").write_text(notebook("my notes"))
    (course / "00-tour.ipynb").write_text(notebook("tour, second edition"))
    (learn / "00-tour.ipynb").rename(learn / "mine.ipynb")
    assert copy(course, learn) == ""
    assert texts(learn) == texts(course) | {"mine.ipynb": notebook("my notes")}


def test_touched_back_to_the_new_edition_follows_again(course: Path, learn: Path) -> None:
    copy(course, learn)
    for edition in ("second", "third"):
        (course / "00-tour.ipynb").write_text(notebook(f"tour, {edition} edition"))
        (learn / "00-tour.ipynb").write_text(notebook("tour, second edition"))
        copy(course, learn)
    assert texts(learn) == texts(course)


def test_foreign_file_of_the_same_name_is_not_overwritten(course: Path, learn: Path) -> None:
    learn.mkdir(parents=True)
    (learn / "00-tour.ipynb").write_text("somebody else's, and damaged")
    assert "00-tour.ipynb" in copy(course, learn)
    assert texts(learn)["00-tour.ipynb"] == "somebody else's, and damaged"


def test_lost_record_overwrites_nothing(course: Path, learn: Path) -> None:
    copy(course, learn)
    (learn / "00-tour.ipynb").write_text(notebook("my notes"))
    (learn / ".copied.json").unlink()
    copy(course, learn)
    assert texts(learn) == texts(course) | {"00-tour.ipynb": notebook("my notes")}


@pytest.fixture
def page(course: Path) -> Path:
    """A page of the book that a notebook links to, and which links to a notebook."""
    path = course.parent / "refresher.md"
    path.write_text("# Refresher\n\nused in [tour](notebooks/00-tour.ipynb)\n\n## JVP, twice\n")
    (course / "00-tour.ipynb").write_text(notebook("see [here](../refresher.md#jvp-twice), [01](01-bowls.ipynb)"))
    return path


def test_pages_lie_beside_the_notebooks_and_links_follow(course: Path, learn: Path, page: Path) -> None:
    assert copy(course, learn, page) == ""
    assert texts(learn)["00-tour.ipynb"] == notebook("see [here](refresher.md#JVP,-twice), [01](01-bowls.ipynb)")
    assert (learn / "refresher.md").read_text() == "# Refresher\n\nused in [tour](00-tour.ipynb)\n\n## JVP, twice\n"


def test_a_copy_with_links_is_untouched_until_the_reader_changes_it(course: Path, learn: Path, page: Path) -> None:
    copy(course, learn, page)
    before = texts(learn)
    assert copy(course, learn, page) == ""
    assert texts(learn) == before
    page.write_text("# Refresher, second edition\n")
    (course / "00-tour.ipynb").write_text(notebook("second edition"))
    assert copy(course, learn, page) == ""
    assert (learn / "refresher.md").read_text() == "# Refresher, second edition\n"
    assert texts(learn)["00-tour.ipynb"] == notebook("second edition")


def test_a_page_that_the_reader_wrote_into_stays(course: Path, learn: Path, page: Path) -> None:
    copy(course, learn, page)
    (learn / "refresher.md").write_text("my notes")
    page.write_text("# Refresher, second edition\n")
    assert "refresher.md has your changes" in copy(course, learn, page)
    assert (learn / "refresher.md").read_text() == "my notes"


def test_other_ends_of_lines_are_no_change(course: Path, learn: Path, page: Path) -> None:
    copy(course, learn, page)
    for path in learn.glob("*"):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    page.write_text("# Refresher, second edition\n")
    (course / "00-tour.ipynb").write_text(notebook("second edition"))
    assert copy(course, learn, page) == ""
    assert (learn / "refresher.md").read_text() == "# Refresher, second edition\n"
    assert texts(learn)["00-tour.ipynb"] == notebook("second edition")


def test_a_copy_stays_as_it_was_checked_out_with_other_ends_of_lines(course: Path, learn: Path, page: Path) -> None:
    page.write_bytes(page.read_bytes().replace(b"\n", b"\r\n"))
    copy(course, learn, page)
    before = (learn / "refresher.md").read_bytes()
    assert copy(course, learn, page) == ""
    assert (learn / "refresher.md").read_bytes() == before
    assert b"(00-tour.ipynb)" in before
