"""A file is whole or absent, whatever stops the writing and wherever."""

from pathlib import Path

import pytest

from gnewton.whole_file import write

STOPS = {"Ctrl-C": KeyboardInterrupt(), "a full disk": OSError(28, "No space left on device")}


def half_way(stop):
    """A Path.write_bytes that stops after half of the content."""

    def write_bytes(path, content):
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise stop

    return write_bytes


def at_once(stop):
    def refuse(*_):
        raise stop

    return refuse


@pytest.mark.parametrize("stop", STOPS.values(), ids=STOPS)
@pytest.mark.parametrize(("step", "how"), [("write_bytes", half_way), ("replace", at_once)])
@pytest.mark.parametrize("before", [None, "old"])
def test_what_stops_the_writing_leaves_what_was_there(tmp_path, monkeypatch, before, step, how, stop):
    file = tmp_path / "one.json"
    if before:
        write(file, before)
    with monkeypatch.context() as patch:
        patch.setattr(Path, step, how(stop))
        with pytest.raises(type(stop)):
            write(file, "longer and new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ([before] if before else [])
    write(file, "longer and new")
    assert file.read_text() == "longer and new"


def test_plain_writing_is_seen_to_leave_a_half(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "write_bytes", half_way(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        (tmp_path / "one.json").write_bytes(b"abcd")
    assert (tmp_path / "one.json").read_bytes() == b"ab"
