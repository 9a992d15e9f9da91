"""Make or refresh the reader's own copy of the notebooks: ``python tools/copy_notebooks.py notebooks learn``.

A notebook that the reader has not touched follows the course; one that differs from what was copied in stays as it is.
"Touched" is decided by the cells: ``.copied.json`` in the target holds the hash of those that were copied in. The rest of
the file does not count, because JupyterLab adds the interpreter's version to a notebook that was only opened.
"""

import hashlib
import json
import shutil
import sys
from contextlib import suppress
from pathlib import Path

RECORD = ".copied.json"


def main(source: Path, target: Path) -> None:
    """Copy every notebook of ``source`` that ``target`` lacks or has untouched; say in one line what was left alone."""
    target.mkdir(parents=True, exist_ok=True)
    record = target / RECORD
    copied = json.loads(record.read_text()) if record.exists() else {}
    for notebook in sorted(source.glob("*.ipynb")):
        copied[notebook.name] = refresh(notebook, target / notebook.name, copied.get(notebook.name))
    record.write_text(json.dumps(copied, indent=1) + "\n")


def refresh(notebook: Path, copy: Path, copied: str | None) -> str | None:
    """Bring one copy up to date if that loses nothing; return the hash of what was last copied in."""
    new, current = digest(notebook), digest(copy) if copy.exists() else None
    if current == new:
        return new
    if current is None or current == copied:
        shutil.copyfile(notebook, copy)
        return new
    if copied != new:
        print(f"{copy} has your changes and the course has a newer one: rename or delete yours, run again to get it")
    return copied


def digest(path: Path) -> str:
    """The SHA-256 of a notebook's cells, in hexadecimal; of the whole file if it is no notebook."""
    content = path.read_bytes()
    # A damaged file is the reader's, to be kept like any other change.
    with suppress(ValueError, KeyError, TypeError):
        content = json.dumps(json.loads(content)["cells"], sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: copy_notebooks.py SOURCE TARGET")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
