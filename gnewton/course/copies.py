"""The reader's own copy of the course, made or refreshed: what the reader touched is never overwritten.

A notebook that the reader has not touched follows the course; one that differs from what was copied in stays as it is.
"Touched" is decided by the cells: ``.copied.json`` in the copy holds the hash of those that were copied in. The rest of
the file does not count, because JupyterLab adds the interpreter's version to a notebook that was only opened.

The pages, which stand one folder up in the book, are laid beside the notebooks, and the links between them follow.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

RECORD = ".copied.json"


def copy_course(source: Path, target: Path, pages: Sequence[Path] = ()) -> list[str]:
    """Copy every notebook of ``source`` and every page that ``target`` lacks or has untouched; what was left alone, a line each."""
    target.mkdir(parents=True, exist_ok=True)
    record = target / RECORD
    copied = read_record(record)
    left = []
    for path in [*sorted(source.glob("*.ipynb")), *pages]:
        new = in_one_folder(path.read_bytes(), source.name, pages)
        copied[path.name], same = refresh(new, target / path.name, copied.get(path.name))
        if not same:
            left.append(
                f"{target / path.name} has your changes and the course has a newer one: "
                "rename or delete yours, run again to get it"
            )
    record.write_text(json.dumps(copied, indent=1) + "\n", encoding="utf-8")
    return left


def read_record(record: Path) -> dict[str, str | None]:
    """The hashes by the names of what was written; nothing where there is no record, or a damaged one: all is then the reader's."""
    with suppress(FileNotFoundError, ValueError):
        read = json.loads(record.read_text(encoding="utf-8"))
        return read if isinstance(read, dict) else {}
    return {}


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
        copy.write_bytes(content)
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
