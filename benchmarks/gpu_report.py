"""The page of the book about accelerators, drawn from ``benchmarks/results/gpu/*.json``."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import number, table

NOT_MEASURED = "**Not yet measured.** Nothing of the package has run on an accelerator so far; `make gpu` on a machine that has one does all that is listed above and fills this page."


def page(folder: Path) -> str:
    """All cards, one section each; a sentence where there is none."""
    cards = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    return "\n\n".join(map(card, cards)) if cards else NOT_MEASURED


def card(results: Mapping[str, Any]) -> str:
    """One card: what was right, what was not, the errors and the times."""
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    parts = [f"## {results['card']}", f"{results['date']}, {versions}.", verdicts(results)]
    if rows := results.get("agreement"):
        parts += ["Largest error of a summary, by network:", table(["network", "dtype", "error"], worst(rows))]
    if rows := results.get("timings"):
        parts += ["Milliseconds a step:", times(rows)]
    return "\n\n".join(parts)


def verdicts(results: Mapping[str, Any]) -> str:
    """How many rows of each section were right, and each that was not, with its reason."""
    sections = {name: rows for name, rows in results.items() if isinstance(rows, list)}
    lines = []
    for name, rows in sections.items():
        ran = [row for row in rows if row["ok"] is not None]
        lines.append(f"* {name}: {sum(row['ok'] for row in ran)} of {len(ran)} right, {len(rows) - len(ran)} not run")
        lines += [f"  * {row['what']}: {row.get('why', 'off by more than allowed')}" for row in ran if not row["ok"]]
    return "\n".join(lines)


def worst(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The largest error over partitions and orders, by network and dtype; a dash where it failed."""
    largest: dict[tuple[str, str], float | None] = {}
    for row in rows:
        key, errors = (row["network"], row["dtype"]), row.get("errors")
        before = largest.get(key, 0.0)
        largest[key] = None if errors is None or before is None else max(before, *errors.values())
    return [[*key, "-" if error is None else f"{error:.0e}"] for key, error in largest.items()]


def times(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line a case, one column a kind of step."""
    kinds = list(next((row["milliseconds"] for row in rows if "milliseconds" in row), {}))
    lines = [[row["what"], *(number(row.get("milliseconds", {}).get(kind)) for kind in kinds)] for row in rows]
    return table(["case", *kinds], lines)
