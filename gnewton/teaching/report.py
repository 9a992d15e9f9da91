"""What a learner did with the exercises of one notebook, as a file to hand in."""

import json
import sys
from pathlib import Path
from typing import Any

import gnewton
from gnewton.teaching.exercises.exercise import RECORDS, Record, every

NOTE = "Formative: made on the learner's own machine, and easily forged. Not for marks."


def report(notebook: str, name: str = "", folder: str | Path = ".") -> None:
    """Write ``report-03.json``: each exercise of the notebook, passed or not, with its checks and hints since the kernel started.

    notebook: two digits, "03"; name: the learner's, as they like to be called; folder: where the file goes, an older one
    there is replaced. An exercise that was right once counts as passed. What ``check`` was asked of the course's own solutions
    does not count. Raises ValueError for a notebook without exercises.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     report("01", name="Ada", folder=folder)
    01.1 not tried, 01.2 not tried, 01.3 not tried
    Written to report-01.json. Formative: made on the learner's own machine, and easily forged. Not for marks.
    """
    numbers = [exercise.number for exercise in every() if exercise.number.startswith(f"{notebook}.")]
    if not numbers:
        known = ", ".join(sorted({exercise.number[:2] for exercise in every()}))
        raise ValueError(f"expected the number of a notebook with exercises, one of {known}, got {notebook!r}")
    exercises = {number: result(RECORDS.get(number, Record())) for number in numbers}
    content = {
        "note": NOTE,
        "gnewton": gnewton.__version__,
        "notebook": notebook,
        "name": name,
        "exercises": exercises,
    }
    path = Path(folder) / f"report-{notebook}.json"
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    sys.stdout.write(", ".join(f"{number} {said['result']}" for number, said in exercises.items()) + "\n")
    sys.stdout.write(f"Written to {path.name}. {NOTE}\n")


def result(record: Record) -> dict[str, Any]:
    """A record in the words of the file."""
    said = "passed" if record.passed else "not yet" if record.checks else "not tried"
    return {"result": said, "checks": record.checks, "hints": record.hints, "lines": list(record.lines)}
