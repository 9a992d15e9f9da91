"""The reader's own copy of the course, made or refreshed: what the reader touched is never overwritten.

A notebook that the reader has not touched follows the course; one that differs from what was copied in stays as it is.
"Touched" is decided by the cells: ``.copied.json`` in the copy holds the hash of those that were copied in. The rest of
the file does not count, because JupyterLab adds the interpreter's version to a notebook that was only opened.

The pages, which stand one folder up in the book, are laid beside the notebooks, and the links between them follow.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from gnewton.whole_file import write

RECORD = ".copied.json"


def copy_course(source: Path, target: Path, pages: Sequence[Path] = ()) -> list[str]:
    """Copy every notebook of ``source`` and every page that ``target`` lacks or has untouched; what was left alone, a line each."""
    check_folder(target)
    target.mkdir(parents=True, exist_ok=True)
    record = target / RECORD
    copied = read_record(record)
    left = []
    for path in [*sorted(source.glob("*.ipynb")), *pages]:
        new, before = in_one_folder(path.read_bytes(), source.name, pages), copied.get(path.name)
        copied[path.name], same = refresh(new, target / path.name, before)
        # At once: what stops the next copy must not make this one the reader's.
        if copied[path.name] != before:
            write_record(record, copied)
        if not same:
            left.append(
                f"{target / path.name} has your changes and the course has a newer one: "
                "rename or delete yours, run again to get it"
            )
    return left


def check_folder(folder: Path) -> None:
    """NotADirectoryError where a file stands in the place of the folder, or of one around it."""
    for one in (folder, *folder.parents):
        if os.path.lexists(one) and not one.is_dir():
            raise NotADirectoryError(f"expected a folder, got the file {one}; name another folder, or rename the file")


def read_record(record: Path) -> dict[str, str | None]:
    """The hashes by the names of what was written; nothing where there is no record, or a damaged one: all is then the reader's."""
    with suppress(FileNotFoundError, ValueError, RecursionError):
        read = json.loads(record.read_text(encoding="utf-8"))
        return read if isinstance(read, dict) else {}
    return {}


def write_record(record: Path, hashes: Mapping[str, str | None]) -> None:
    """Keep the hashes of what was written, by the names."""
    write(record, json.dumps(hashes, indent=1) + "\n")


def in_one_folder(content: bytes, notebooks: str, pages: Sequence[Path]) -> bytes:
    """The content with its Markdown links as they are when notebooks and pages lie in one folder, opened in JupyterLab."""
    text = content.decode().replace(f"]({notebooks}/", "](")
    for page in pages:
        text = text.replace(f"](../{page.name}", f"]({page.name}")
        for heading in re.findall(r"(?m)^#+ (.*)$", page.read_text(encoding="utf-8")):
            # The book writes a section's address in small letters and without signs, JupyterLab as the heading stands.
            in_book = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
            text = text.replace(f"]({page.name}#{in_book})", f"]({page.name}#{heading.replace(' ', '-')})")
    return text.encode()


def refresh(content: bytes, copy: Path, copied: str | None) -> tuple[str | None, bool]:
    """Bring one copy up to date if that loses nothing; the hash of what was last copied in, and False where a newer one waits."""
    new, current = digest(content), digest(copy.read_bytes()) if copy.exists() else None
    if current == new:
        return new, True
    if current is None or current == copied:
        write(copy, content)
        return new, True
    return copied, copied == new


def digest(content: bytes) -> str:
    """The SHA-256 of a notebook's cells, in hexadecimal; of the whole content, whatever its ends of lines, if it is no notebook."""
    # Windows and git may write other ends of lines into a page that nobody touched; inside a notebook they are JSON's.
    content = content.replace(b"\r\n", b"\n")
    # A damaged file is the reader's, to be kept like any other change.
    with suppress(ValueError, KeyError, TypeError):
        content = json.dumps(json.loads(content)["cells"], sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()
