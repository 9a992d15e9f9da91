"""Requirement 6: how time grows with the number of groups and with depth, on log axes, beside the peers."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.plan import Plan
from benchmarks.process import run
from benchmarks.report import number, save, table
from benchmarks.sections import require_agreement, subjects

# 32 linear layers: 64 tensors, in S consecutive groups.
CHAIN = "chain-32-128"
GROUPS = (2, 4, 8, 16, 32, 64)
DEPTHS = (5, 10, 20, 40, 80)
WIDTH = 128
# Grey tells them apart as well: marker, line style.
STYLES = {
    "engine": ("o", "-"),
    "tightened": ("s", "--"),
    "paper": ("^", ":"),
    "torch.func": ("D", "-."),
    "gradient": ("", "-"),
}


def growth(plan: Plan) -> None:
    """Two sweeps with the same subjects; one table of slopes and one figure."""
    peers = ["engine", "tightened", "paper"] + ([] if plan.quick else ["torch.func"])
    require_agreement([run("agree", network=CHAIN, groups="in 8", batch=10, subjects=subjects(peers))])
    step = 2 if plan.quick else 1
    against_groups = [(s, _timed(CHAIN, f"in {s}", peers, plan)) for s in GROUPS[::step]]
    against_depth = [(d, _timed(f"chain-{d}-{WIDTH}", "by tensor", peers, plan)) for d in DEPTHS[::step]]
    sweeps = {"S": against_groups, "depth": against_depth}
    rows = [_row(axis, points, peer, order) for axis, points in sweeps.items() for peer, order in subjects(peers)]
    header = ["against", "subject", "order", "from", "to", "CPU seconds", "slope", "last slope"]
    save(plan.folder, "growth", "## Growth, one thread\n\n" + table(header, rows), sweeps)
    figure(sweeps, peers, plan.folder)


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """The exponent k of y ~ x^k, by least squares on logarithms.

    >>> round(slope([1, 2, 4], [3, 12, 48]), 12)
    2.0
    """
    xs, ys = [math.log(v) for v in x], [math.log(v) for v in y]
    mx, my = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((a - mx) * (b - my) for a, b in zip(xs, ys, strict=True)) / sum((a - mx) ** 2 for a in xs)


def _timed(network: str, groups: str, peers: Sequence[str], plan: Plan) -> dict[str, Any]:
    return run(
        "time",
        network=network,
        groups=groups,
        subjects=subjects(peers),
        seconds=plan.seconds / 2,
        patience=plan.patience,
    )


def _series(points: Sequence[tuple[int, dict[str, Any]]], peer: str, order: int) -> tuple[list[int], list[float]]:
    measured = [(x, row) for x, result in points for row in result["rows"]]
    kept = [(x, r["seconds"]) for x, r in measured if (r["peer"], r["order"], r["why"]) == (peer, order, None)]
    return [x for x, _ in kept], [t for _, t in kept]


def _gradients(points: Sequence[tuple[int, dict[str, Any]]]) -> tuple[list[int], list[float]]:
    """One gradient's seconds, where any subject was timed: a slow one may have run out of patience."""
    timed = [(x, [r["gradient_seconds"] for r in result["rows"] if r["why"] is None]) for x, result in points]
    return [x for x, seconds in timed if seconds], [seconds[0] for _, seconds in timed if seconds]


def _row(axis: str, points: Sequence[tuple[int, dict[str, Any]]], peer: str, order: int) -> list[Any]:
    x, t = _series(points, peer, order)
    if len(x) < 2:
        return [axis, peer, order, "-", "-", "-", "-", "-"]
    slopes = [number(slope(x, t)), number(slope(x[-2:], t[-2:]))]
    return [axis, peer, order, x[0], x[-1], f"{t[0]:.2g} to {t[-1]:.2g}", *slopes]


def figure(sweeps: Mapping[str, Any], peers: Sequence[str], folder: Path) -> None:
    """FOLDER/growth.png: CPU seconds against S and against depth, one row per order."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    labels = {
        "S": f"groups S ({CHAIN.split('-')[1]} layers of {WIDTH})",
        "depth": f"layers of {WIDTH}, one group per tensor",
    }
    canvas, axes = plt.subplots(2, 2, figsize=(7, 6), sharey="row", layout="constrained")
    for row, order in zip(axes, (2, 3), strict=True):
        for ax, (axis, points) in zip(row, sweeps.items(), strict=True):
            for peer in peers:
                marker, line = STYLES[peer]
                ax.loglog(
                    *_series(points, peer, order),
                    line,
                    marker=marker,
                    color="black",
                    markerfacecolor="white",
                    label=peer,
                )
            ax.loglog(*_gradients(points), color="0.6", label="one gradient")
            ax.set(xlabel=labels[axis], ylabel="CPU seconds", title=f"order {order}")
            ax.set_xticks([x for x, _ in points], [str(x) for x, _ in points], minor=False)
            ax.minorticks_off()
    canvas.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    canvas.savefig(folder / "growth.png", dpi=120)
    plt.close(canvas)
