"""What a summary of a real network costs: gradients, by order, and peak memory, each at default settings."""

from typing import Any

from benchmarks.measure import Row
from benchmarks.plan import Plan
from benchmarks.process import run
from benchmarks.report import mark, mebibytes, number, save, table
from benchmarks.sections import at_most, cell

GPT, RESNET, IN_PLACE = "GPT-2 small, 1 x 64 tokens", "ResNet-50, 4 x 3 x 96 x 96", "ResNet-50, activations in place"
LSTM, GRU = "LSTM, 2 layers", "GRU, 2 layers"
# (network, partition): gradients asked at order 2 and 3, at most; None is not asked.
ASKED: dict[tuple[str, str], tuple[float | None, float | None]] = {
    (GPT, "by block"): (4.5, 8.0),
    (GPT, "by tensor"): (36.0, None),
    (RESNET, "by layer"): (20.0, 40.0),
    (IN_PLACE, "by layer"): (20.0, 40.0),
    ("Llama, tiny", "by layer"): (None, 20.0),
    ("BERT with padding, tiny", "by layer"): (None, 22.0),
    ("Whisper, tiny", "by layer"): (None, 14.5),
    (LSTM, "by tensor"): (None, None),
    (GRU, "by tensor"): (None, None),
}
QUICK = [("Llama, tiny", "by layer"), (GRU, "by tensor")]


def real(plan: Plan) -> None:
    """Real networks at default settings, one thread; recurrent ones beside nested passes."""
    cases = [
        case for case in (QUICK if plan.quick else ASKED) if case[0] in (LSTM, GRU) or not transformers_is_missing()
    ]
    results = [_measured(network, groups, plan) for network, groups in cases]
    header = ["network", "partition", "S", "order", "engine", "asked", "met", "nested", "peak, MiB", "of a gradient"]
    rows = [_row(r, order, plan) for r in results for order in (2, 3)]
    save(plan.folder, "real", f"## Real networks, one thread, in gradients\n\n{table(header, rows)}", results)


def transformers_is_missing() -> bool:
    """Whether its networks have to be left out; says so."""
    try:
        from transformers import GPT2LMHeadModel  # noqa: F401
    except ImportError as error:
        print(f"left out: networks of transformers, which cannot be imported here ({error})")
        return True
    return False


def _measured(network: str, groups: str, plan: Plan) -> dict[str, Any]:
    peers = ["engine", *(["oracle"] if network in (LSTM, GRU) else [])]
    asked = [(peer, order) for order in (2, 3) for peer in peers]
    timed = run("time", network=network, groups=groups, subjects=asked, seconds=plan.seconds, patience=600.0)
    peaks = {
        name: run("memory", network=network, groups=groups, peer=peer, order=order)
        for name, peer, order in (("gradient", "gradient", 2), ("2", "engine", 2), ("3", "engine", 3))
    }
    return timed | {"peaks": peaks}


def _row(result: dict[str, Any], order: int, plan: Plan) -> list[Any]:
    network, groups, peaks = result["network"], result["groups"], result["peaks"]
    rows: dict[str, Row] = {row["peer"]: row for row in result["rows"] if row["order"] == order}
    ours, nested = rows["engine"], rows.get("oracle")
    most = nested.get("ratio") if nested else ASKED[network, groups][order - 2]
    met = at_most(ours.get("ratio"), most)
    plan.failures += [f"real: {network}, {groups}, order {order}"] if met is False else []
    sizes = [mebibytes(peaks[name].get("bytes")) for name in (str(order), "gradient")]
    beside = cell(nested) if nested else "-"
    return [network, groups, result["S"], order, cell(ours), number(most), mark(met), beside, *sizes]
