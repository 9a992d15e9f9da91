"""Exact Newton directions of one sample's loss: time against width and depth, for one sample and for 64 at once."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.growth import slope
from benchmarks.plan import Plan
from benchmarks.process import run
from benchmarks.report import mark, number, save, table

WIDTHS = (8, 16, 32, 64, 128, 256, 512, 1024)  # three hidden layers
DEPTHS = (2, 4, 8, 16, 32, 64)  # hidden layers of DEEP_WIDTH
DEEP_WIDTH = 64
BATCHES = (1, 64)
DTYPES = ("float32", "float64")
COMPARED = ("gradient", "sweep", "|H|", "dense")
# Widths above which a way takes minutes or the machine's memory: (one sample, 64 at once).
LARGEST = {"gradient": (1024, 1024), "sweep": (1024, 256), "|H|": (256, 64), "dense": (32, 16)}
DEEPEST = {"gradient": (64, 64), "sweep": (64, 64), "|H|": (16, 4), "dense": (0, 0)}
STYLES = {"gradient": ("", "-"), "sweep": ("o", "-"), "|H|": ("s", "--"), "dense": ("^", ":")}
TOLERANCE = 1e-10
# At B = 64, one by one over batched at width 16, and the sweep over the solves in it; the shortcut at 1024.
ASKED = {"batched": 10.0, "solves": 3.0, "shortcut": 20.0}

Points = Sequence[tuple[int, Mapping[str, Any]]]
Curves = dict[str, dict[str, list[tuple[int, dict[str, Any]]]]]


def exact(plan: Plan) -> None:
    """Agreement first, then growth against width and depth, and what was asked of batches and of the shortcut."""
    agreement = {h: run("one sample agrees", width=12, hidden=h, batch=5) for h in (1, 3)}
    if max(agreement.values()) > TOLERANCE:
        raise RuntimeError(f"expected ways that agree, got relative differences {agreement}; mend them before timing")
    curves = {axis: _curves(axis, plan) for axis in ("width", "depth")}
    asked = _asked(plan)
    parts = [
        "## Exact directions of one sample's loss, one thread, CPU milliseconds",
        f"Three hidden layers of n units, tanh, 10 outputs. The ways agree to {max(agreement.values()):.0e} in float64.",
        _times(curves["width"], "n"),
        f"Hidden layers of {DEEP_WIDTH} units.",
        _times(curves["depth"], "layers"),
        "Slopes on log axes, between the last two points and over all.",
        table(["against", "B", "numbers", "way", "last", "all"], list(_slopes(curves))),
        "What was asked.",
        table(["what", "width", "B", "numbers", "ratio", "asked", "met"], [_asked_row(one, plan) for one in asked]),
    ]
    save(plan.folder, "exact", "\n\n".join(parts), {"agreement": agreement, "curves": curves, "asked": asked})
    figure(curves, plan.folder)


def _curves(axis: str, plan: Plan) -> Curves:
    values, most = (WIDTHS, LARGEST) if axis == "width" else (DEPTHS, DEEPEST)
    curves: Curves = {}
    for batch in BATCHES:
        for dtype in DTYPES:
            points = []
            for n in values[:: 2 if plan.quick else 1]:
                ways = [way for way in COMPARED if n <= most[way][BATCHES.index(batch)]]
                size = {"width": n, "hidden": 3} if axis == "width" else {"width": DEEP_WIDTH, "hidden": n}
                points.append((n, _timed(size, batch, dtype, ways, plan)))
            curves.setdefault(str(batch), {})[dtype] = points
    return curves


def _timed(size: Mapping[str, int], batch: int, dtype: str, ways: Iterable[str], plan: Plan) -> dict[str, Any]:
    limits = {"seconds": plan.seconds / 2, "patience": plan.patience}
    return run("one sample", **size, batch=batch, dtype=dtype, ways=list(ways), **limits)


def _seconds(result: Mapping[str, Any], way: str) -> float | None:
    seconds: float | None = result["ways"].get(way, {}).get("seconds")
    return seconds


def _times(curves: Curves, name: str) -> str:
    header = ["B", "numbers", name, "parameters", *COMPARED]
    rows = [
        [batch, dtype, n, result["parameters"], *(_milliseconds(_seconds(result, way)) for way in COMPARED)]
        for batch, by_dtype in curves.items()
        for dtype, points in by_dtype.items()
        for n, result in points
    ]
    return table(header, rows)


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else number(1000 * seconds)


def _series(points: Points, way: str) -> tuple[list[int], list[float]]:
    kept = [(n, t) for n, result in points if (t := _seconds(result, way)) is not None]
    return [n for n, _ in kept], [t for _, t in kept]


def _slopes(curves: Mapping[str, Curves]) -> Iterable[list[Any]]:
    for axis, by_batch in curves.items():
        for batch, by_dtype in by_batch.items():
            for dtype, points in by_dtype.items():
                for way in COMPARED:
                    x, t = _series(points, way)
                    if len(x) > 1:
                        yield [axis, batch, dtype, way, number(slope(x[-2:], t[-2:])), number(slope(x, t))]


def _asked(plan: Plan) -> list[dict[str, Any]]:
    """What was asked, as ratios."""
    ratios = []
    for dtype in DTYPES:
        for width in (16, 32, 64):
            result = _timed({"width": width, "hidden": 3}, 64, dtype, ["sweep alone", "one by one", "solves"], plan)
            batched, alone, solves = (_seconds(result, way) for way in ("sweep alone", "one by one", "solves"))
            least = ASKED["batched"] if width == 16 else None
            assert batched is not None
            ratios.append(_ratio("one by one / batched", width, 64, dtype, alone / batched, least, True))
            ratios.append(_ratio("sweep / its solves", width, 64, dtype, batched / solves, ASKED["solves"], False))
        result = _timed({"width": 1024, "hidden": 1}, 1, dtype, ["sweep alone", "shortcut alone"], plan)
        whole, short = (_seconds(result, way) for way in ("sweep alone", "shortcut alone"))
        assert whole is not None
        ratios.append(_ratio("sweep / shortcut", 1024, 1, dtype, whole / short, ASKED["shortcut"], True))
    return ratios


def _ratio(
    what: str, width: int, batch: int, dtype: str, ratio: float, asked: float | None, at_least: bool
) -> dict[str, Any]:
    met = None if asked is None else ratio >= asked if at_least else ratio <= asked
    facts = {"what": what, "width": width, "batch": batch, "dtype": dtype}
    return facts | {"ratio": ratio, "asked": asked, "at least": at_least, "met": met}


def _asked_row(one: Mapping[str, Any], plan: Plan) -> list[Any]:
    if one["met"] is False:
        plan.failures.append(f"exact: {one['what']}, width {one['width']}, {one['dtype']}")
    asked = "-" if one["asked"] is None else f"at {'least' if one['at least'] else 'most'} {number(one['asked'])}"
    return [one["what"], one["width"], one["batch"], one["dtype"], number(one["ratio"]), asked, mark(one["met"])]


def figure(curves: Mapping[str, Curves], folder: Path) -> None:
    """FOLDER/exact.png: CPU seconds against width and depth; float64 in black, float32 in grey."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    canvas, axes = plt.subplots(2, 2, figsize=(7, 6), sharey="row", layout="constrained")
    labels = {"width": "units n of three hidden layers", "depth": f"hidden layers of {DEEP_WIDTH} units"}
    for row, batch in zip(axes, map(str, BATCHES), strict=True):
        for ax, (axis, by_batch) in zip(row, curves.items(), strict=True):
            for dtype, points in by_batch[batch].items():
                _draw(ax, points, dtype)
            ax.set(
                xlabel=labels[axis], ylabel="CPU seconds", title="one sample" if batch == "1" else f"{batch} samples"
            )
            values = [n for n, _ in by_batch[batch]["float64"]]
            ax.set_xticks(values, [str(n) for n in values])
            ax.minorticks_off()
    named = axes[0, 0].get_legend_handles_labels()
    canvas.legend(*named, loc="outside lower center", ncols=4, frameon=False, title="black: float64, grey: float32")
    canvas.savefig(folder / "exact.png", dpi=120)
    plt.close(canvas)


def _draw(ax: Any, points: Points, dtype: str) -> None:
    color = "black" if dtype == "float64" else "0.6"
    for way, (marker, line) in STYLES.items():
        label = {"label": way} if dtype == "float64" else {}
        ax.loglog(*_series(points, way), line, marker=marker, color=color, markerfacecolor="white", **label)
