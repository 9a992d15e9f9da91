"""A file that is written whole or not at all, whatever interrupts: Ctrl-C, a full disk, a quota."""

import os
from pathlib import Path


def write(file: Path, content: str | bytes) -> None:
    """Write a file, and its folder where there is none, whole or not at all; text as UTF-8.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write(Path(folder, "new", "a.txt"), "whole")
    ...     Path(folder, "new", "a.txt").read_text()
    'whole'
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    # Beside the file: on another disk the last step would be a copy, which can stop half way.
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
