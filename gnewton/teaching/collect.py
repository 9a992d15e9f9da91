"""The reports of a class as one table: ``python -m gnewton.teaching.collect FOLDER > class.csv``.

One row per report below the folder, one column per exercise. The reports are formative and easily forged: read the table as
what a class finds hard, not as marks.
"""

import csv
import json
import re
import sys
from pathlib import Path
from typing import Any, TextIO

from gnewton.console import run

EXERCISE = re.compile(r"[0-9]{2}\.[0-9]+")


def main(arguments: list[str], out: TextIO, err: TextIO) -> int:
    """Write the table to ``out``, and one line to ``err`` for each file that is no report; 2 if called wrongly, else 0."""
    if len(arguments) != 1 or not Path(arguments[0]).is_dir():
        err.write(f"usage: python -m gnewton.teaching.collect FOLDER, expected one folder, got {arguments}\n")
        return 2
    reports = {}
    for path in sorted(Path(arguments[0]).rglob("*.json")):
        try:
            reports[path] = row(path)
        # Whatever is in the folder, and whatever its file says: one learner's is no reason to lose a class's.
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            err.write(f"{path}: left out, no report of gnewton\n")
    exercises = sorted({number for report in reports.values() for number in report if EXERCISE.fullmatch(number)})
    writer = csv.DictWriter(out, ["file", "name", "notebook", "passed", *exercises], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({"file": plain(str(path.relative_to(arguments[0]))), **report} for path, report in reports.items())
    return 0


def row(path: Path) -> dict[str, Any]:
    """One report in one line. Raises an error of Python's for what is none."""
    content = json.loads(path.read_text(encoding="utf-8-sig"))  # editors of Windows put a mark in front
    results = {number: plain(said["result"]) for number, said in content["exercises"].items()}
    if odd := [number for number in results if not EXERCISE.fullmatch(number)]:
        raise ValueError(f"expected exercises such as 01.2, got {odd[0]!r}")
    passed = f"{list(results.values()).count('passed')} of {len(results)}"
    return {"name": plain(content["name"]), "notebook": plain(content["notebook"]), "passed": passed, **results}


def plain(text: str) -> str:
    """The text, so that no spreadsheet takes it for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


if __name__ == "__main__":
    sys.exit(run("gnewton.teaching.collect", lambda: main(sys.argv[1:], sys.stdout, sys.stderr)))
