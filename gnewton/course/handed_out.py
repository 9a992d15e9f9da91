"""What an instructor hands out, written so that nobody's work is lost.

``.written.json`` in the folder holds the hash of every file that a run wrote. What is not, byte for byte, what the last run wrote
is somebody's: it is neither overwritten nor taken away.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from gnewton.course.copies import check_folder, read_record, write_record
from gnewton.whole_file import write

RECORD = ".written.json"


def hand_out(files: Mapping[str, bytes], target: Path) -> None:
    """Write files in place of those of the last run, and take away what it wrote beside them that is no more.

    files: contents by their paths in ``target``, with slashes. Raises FileExistsError, with nothing changed, where others' files
    or changed ones lie; NotADirectoryError where a file stands in the place of a folder.
    """
    for folder in {(target / name).parent for name in files}:
        check_folder(folder)
    record = target / RECORD
    hashes = read_record(record)
    if others := [name for name in files if not _gives_way(target / name, files[name], hashes.get(name))]:
        raise FileExistsError(
            f"expected a folder of what gnewton wrote there last, got {target}, which holds {', '.join(sorted(others))} from "
            "elsewhere or with changes; name another folder, or rename or delete them (nothing was written)"
        )
    for name, content in files.items():
        if not _holds(target / name, digest(content)):
            write(target / name, content)
        # At once: what stops the next file must not make this one somebody's.
        if hashes.get(name) != digest(content):
            hashes[name] = digest(content)
            write_record(record, hashes)
    for path in _stale(files, target, hashes):
        path.unlink()
        if not any(path.parent.iterdir()):
            path.parent.rmdir()  # for nbgrader an empty folder would be an assignment
    write_record(record, {name: one for name, one in hashes.items() if name in files or _top(name) not in _tops(files)})


def _gives_way(path: Path, content: bytes, written: str | None) -> bool:
    """Whether nothing is lost when the content stands there."""
    return not os.path.lexists(path) or _holds(path, digest(content), written)


def _holds(path: Path, *hashes: str | None) -> bool:
    return path.is_file() and digest(path.read_bytes()) in hashes


def _stale(files: Mapping[str, bytes], target: Path, hashes: Mapping[str, str | None]) -> list[Path]:
    """What an earlier run wrote into the same folders, and nobody changed since.

    The names are those of the disk: a record can say anything, "../../notes.txt" too.
    """
    there = {path.relative_to(target).as_posix(): path for top in _tops(files) for path in (target / top).rglob("*")}
    return [path for name, path in there.items() if name not in files and name in hashes and _holds(path, hashes[name])]


def _tops(files: Mapping[str, bytes]) -> set[str]:
    """The folders in which this format writes: two formats can share a folder, and neither takes away the other's."""
    return {_top(name) for name in files} - set(files)


def _top(name: str) -> str:
    return name.partition("/")[0]


def digest(content: bytes) -> str:
    """The SHA-256 of every byte, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()
