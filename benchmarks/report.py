"""Tables in Markdown, the numbers behind them in JSON, one folder for both."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
# Quick and partial runs go here, git-ignored: they must not replace numbers that were measured with care.
PARTIAL = Path(__file__).parents[1] / ".cache" / "benchmarks"


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table with columns padded to one width; a bar inside a cell is escaped.

    >>> print(table(["network", "S"], [["lenet", 10], ["a|b", 1]]))
    | network | S  |
    |---------|----|
    | lenet   | 10 |
    | a\\|b    | 1  |
    """
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


def save(folder: Path, name: str, text: str, numbers: Any) -> None:
    """Print a section; write FOLDER/NAME.md and FOLDER/NAME.json."""
    print(text + "\n", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text(text + "\n", encoding="utf-8")
    (folder / f"{name}.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


def number(value: float | None, digits: int = 3) -> str:
    """Three significant digits, never in powers of ten where that can be avoided; a dash for None.

    >>> number(1.9719), number(139.06), number(None)
    ('1.97', '139', '-')
    """
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:.{digits}g}"


def mebibytes(value: float | None) -> str:
    return "-" if value is None else number(value / 2**20)


def mark(met: bool | None) -> str:
    return {True: "yes", False: "NO", None: "-"}[met]
