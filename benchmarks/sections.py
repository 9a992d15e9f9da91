"""The sections of the report, one function each: it measures, prints its table and saves it.

What was asked of the engine stands beside what was measured.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks import agreement
from benchmarks.measure import Row, Subject
from benchmarks.networks import PARTITIONS
from benchmarks.peers import PEERS
from benchmarks.plan import Plan
from benchmarks.process import all_threads, run
from benchmarks.report import mark, mebibytes, number, save, table

# By tensor, one thread, in gradients, at most: (order 2, order 3).
ASKED = {"perceptron": (2.2, 3.0), "20x256": (9.0, 18.0), "20x1024": (5.5, 9.0), "lenet": (4.5, 8.0)}
# The paper's algorithm, the faster of its two forms, takes at least so many times as long: (order 2, order 3).
ASKED_OF_PAPER = {"perceptron": (4.0, 5.0), "20x256": (6.0, 6.0), "20x1024": (6.0, 6.0), "lenet": (2.5, 2.5)}
FULL_THIRD_ASKED = 2.0
# Samples of the agreement check, where the oracle is too slow or too large at 100.
FEWER_SAMPLES = {"20x1024": 10, "vgg11": 20, "residual": 10, "transformer": 10, "tiny": 32}


def subjects(peers: Iterable[str], orders: Sequence[int] = (2, 3)) -> list[Subject]:
    return [(peer, order) for order in orders for peer in peers if order in PEERS[peer].orders]


# -- 1 -------------------------------------------------------------------------------------------------------------


def agree(plan: Plan) -> None:
    """Requirement 1. Raises RuntimeError where a peer is wrong: nothing would be worth comparing."""
    results = []
    for network in plan.networks:
        for groups in plan.partitions:
            checked = subjects([p for p in plan.peers if p != "engine"] if groups == "by tensor" else ["tightened"])
            batch = 10 if plan.quick else FEWER_SAMPLES.get(network, 100)
            results.append(run("agree", network=network, groups=groups, batch=batch, subjects=checked))
    header = ["network", "partition", "S", "batch", "float64", "float32 (oracle): order 1", "2", "3", "3 full", "met"]
    save(
        plan.folder,
        "agreement",
        _titled("Agreement with the float64 oracle", table(header, map(_agreement_row, results))),
        results,
    )
    plan.failures += [f"agreement: {r['network']}, {r['groups']}" for r in results if not agreement.passes(r)]
    require_agreement(results)


def require_agreement(results: Iterable[Mapping[str, Any]]) -> None:
    """Raises RuntimeError where a peer ran and was wrong."""
    wrong = [f"{r['network']}, {r['groups']}: {', '.join(w)}" for r in results if (w := agreement.disagreeing(r))]
    if wrong:
        raise RuntimeError(
            f"expected peers that agree with the oracle, got {'; '.join(wrong)}; mend them before timing"
        )


def _agreement_row(r: dict[str, Any]) -> list[str]:
    narrow = [
        f"{r['float32'][k]:.0e} ({r['oracle32'][k]:.0e})" if k in r["float32"] else "-"
        for k in ("1", "2", "3", "3 full")
    ]
    worst = f"{max(r['float64'].values()):.0e}"
    return [r["network"], r["groups"], r["S"], r["batch"], worst, *narrow, mark(agreement.passes(r))]


# -- 2 -------------------------------------------------------------------------------------------------------------


def work(plan: Plan) -> None:
    """Requirement 2: one group per tensor, one thread, engine and peers, in gradients."""
    for order in (2, 3):
        peers = [p for p in plan.peers if order in PEERS[p].orders]
        results = [
            run(
                "time",
                network=n,
                groups="by tensor",
                subjects=subjects(peers, [order]),
                seconds=plan.seconds,
                patience=plan.patience,
            )
            for n in plan.seven
        ]
        header = ["network", "S", "counted", *peers, "asked", "met", "paper / engine", "asked", "met", "short / engine"]
        rows = [_work_row(r, peers, order, plan) for r in results]
        title = f"Order {order}, one group per tensor, one thread, in gradients"
        save(plan.folder, f"work-order-{order}", _titled(title, table(header, rows)), results)


def _work_row(result: dict[str, Any], peers: Sequence[str], order: int, plan: Plan) -> list[str]:
    name, rows = result["network"], {row["peer"]: row for row in result["rows"]}
    most, least = (asked[name][order - 2] if name in asked else None for asked in (ASKED, ASKED_OF_PAPER))
    engine = rows["engine"].get("ratio")
    gain, short = (_quotient(rows[p], rows["engine"]) if p in rows else None for p in ("paper", "paper, short"))
    met = at_most(engine, most), at_most(least, gain)
    plan.failures += [
        f"order {order}: {name}, {what}" for what, m in zip(("work", "gain"), met, strict=True) if m is False
    ]
    counted = 1 + result["S"] / (6 if order == 2 else 3)
    cells = [cell(rows[p]) for p in peers]
    asked = [number(most), mark(met[0]), number(gain), number(least), mark(met[1]), number(short)]
    return [name, result["S"], number(counted), *cells, *asked]


def other_partitions(plan: Plan) -> None:
    """Requirement 2, its end: by layer, by kind and single, against the tightened nested version; and all threads."""
    cases = [(n, g, 1) for n in plan.seven for g in plan.partitions if g != "by tensor"]
    if not plan.quick:
        cases += [(n, "by tensor", all_threads()) for n in plan.seven]
    pairs = subjects(["engine", "tightened"])
    results = [
        run("time", threads, network=n, groups=g, subjects=pairs, seconds=plan.seconds / 2) for n, g, threads in cases
    ]
    header = [
        "network",
        "partition",
        "S",
        "threads",
        "engine 2",
        "tightened 2",
        "met",
        "engine 3",
        "tightened 3",
        "met",
    ]
    rows = [_against_tightened(r, plan) for r in results]
    save(
        plan.folder,
        "partitions",
        _titled("Other partitions, and all threads, in gradients", table(header, rows)),
        results,
    )


def _against_tightened(result: dict[str, Any], plan: Plan) -> list[str]:
    rows = {(row["peer"], row["order"]): row for row in result["rows"]}
    cells = []
    for order in (2, 3):
        ours, theirs = rows["engine", order], rows["tightened", order]
        asked = result["threads"] == 1 and result["groups"] in ("by layer", "single")
        met = at_most(ours.get("ratio"), theirs.get("ratio")) if asked else None
        if met is False:
            plan.failures.append(f"order {order}: {result['network']}, {result['groups']}, slower than tightened")
        cells += [cell(ours), cell(theirs), mark(met)]
    return [result["network"], result["groups"], result["S"], result["threads"], *cells]


# -- 3 -------------------------------------------------------------------------------------------------------------


def full_third(plan: Plan) -> None:
    """Requirement 3: all of D3 against its diagonal, at S = 8 and 10."""
    networks = [n for n in plan.networks if n in ("perceptron", "lenet")]
    pairs = [("engine", 3), ("full third", 3)]
    results = [run("time", network=n, groups="by tensor", subjects=pairs, seconds=plan.seconds) for n in networks]
    rows = []
    for r in results:
        diagonal, full = r["rows"]
        quotient = _quotient(full, diagonal)
        met = at_most(quotient, FULL_THIRD_ASKED)
        rows.append([r["network"], r["S"], cell(diagonal), cell(full), number(quotient), FULL_THIRD_ASKED, mark(met)])
        plan.failures += [f"full third: {r['network']}"] if met is False else []
    header = ["network", "S", "diagonal of D3", "all of D3", "all / diagonal", "asked", "met"]
    save(plan.folder, "full-third", _titled("The full order-3 tensor, in gradients", table(header, rows)), results)


# -- 4 -------------------------------------------------------------------------------------------------------------


def memory(plan: Plan) -> None:
    """Requirement 4: peak memory at order 2, each number from a process of its own."""
    results = []
    for network in plan.seven:
        for groups in plan.partitions:
            peaks = {
                p: run("memory", network=network, groups=groups, peer=p) for p in ("gradient", "engine", "tightened")
            }
            results.append(
                {"network": network, "groups": groups, "peaks": peaks} | run("tape", network=network, groups=groups)
            )
    header = ["network", "partition", "S", "gradient", "recorded", "alive", "bound", "engine", "met", "tightened"]
    text = _titled("Peak memory at order 2, MiB", table(header, [_memory_row(r, plan) for r in results]))
    save(plan.folder, "memory", text, results)


def bound(gradient: float, recorded: float, alive: float, s: int) -> float:
    """The gradient's peak, one copy of all recorded values, and 3 S times the largest simultaneously live set."""
    return gradient + recorded + 3 * s * alive


def _memory_row(r: dict[str, Any], plan: Plan) -> list[str]:
    peaks = {p: peak.get("bytes") for p, peak in r["peaks"].items()}
    most = bound(peaks["gradient"], r["recorded"], r["alive"], r["S"])
    met = at_most(peaks["engine"], most)
    plan.failures += [f"memory: {r['network']}, {r['groups']}"] if not met else []
    sizes = map(mebibytes, (peaks["gradient"], r["recorded"], r["alive"], most, peaks["engine"]))
    return [r["network"], r["groups"], r["S"], *sizes, mark(met), mebibytes(peaks["tightened"])]


# -- 5 -------------------------------------------------------------------------------------------------------------


def tiny(plan: Plan) -> None:
    """Requirement 5: 64-32-10 at batch 32, where nothing is computed and all is overhead."""
    results = []
    for groups in PARTITIONS:
        timed = run(
            "time", network="tiny", groups=groups, subjects=subjects(["engine", "oracle"]), seconds=plan.seconds / 2
        )
        results.append(timed | run("tape", network="tiny", groups=groups))
    rows = [_tiny_row(r, order, plan) for r in results for order in (2, 3)]
    header = [
        "partition",
        "S",
        "order",
        "engine, ms",
        "oracle, ms",
        "met",
        "operations",
        "engine per operation, microseconds",
    ]
    save(plan.folder, "tiny", _titled("A tiny network, 64-32-10, batch 32", table(header, rows)), results)


def _tiny_row(r: dict[str, Any], order: int, plan: Plan) -> list[str]:
    ours, oracle = (row for row in r["rows"] if row["order"] == order)
    met = at_most(ours.get("ratio"), oracle.get("ratio"))
    plan.failures += [f"tiny: {r['groups']}, order {order}"] if met is False else []
    times = [number(row["seconds"] * 1e3) if row["why"] is None else row["why"] for row in (ours, oracle)]
    each = number(ours["seconds"] / r["operations"] * 1e6) if ours["why"] is None else "-"
    return [r["groups"], r["S"], order, *times, mark(met), r["operations"], each]


# -- shared --------------------------------------------------------------------------------------------------------


def _titled(title: str, text: str) -> str:
    return f"## {title}\n\n{text}"


def cell(row: Row) -> str:
    """The median ratio with its quartiles, or why there is none."""
    return row["why"] or f"{number(row['ratio'])} ({number(row['low'])} to {number(row['high'])})"


def _quotient(above: Row, below: Row) -> float | None:
    return None if above["why"] or below["why"] else above["ratio"] / below["ratio"]


def at_most(value: float | None, limit: float | None) -> bool | None:
    return None if value is None or limit is None else value <= limit
