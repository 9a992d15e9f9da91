"""Where a summary's time goes: gradients spent in each kind of operation."""

import time as clock
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gnewton as gn
from benchmarks import measure
from benchmarks.plan import Plan
from benchmarks.process import run
from benchmarks.report import number, save, table
from gnewton.derivatives.operation import Operation, Rule

NETWORKS = ("residual", "transformer")
REPEATS = 5


def profile(plan: Plan) -> None:
    """The networks whose price is far above what is counted."""
    networks = [n for n in plan.networks if n in NETWORKS]
    results = [run("profile", network=n, order=order) for n in networks for order in (2, 3)]
    names = sorted(
        {name for r in results for name in r["operations"]}, key=lambda n: -results[-1]["operations"].get(n, 0)
    )
    shown = [n for n in names if max(r["operations"].get(n, 0) for r in results) >= 0.05]
    header = ["network", "order", "all", "gradient and recording", *shown]
    rows = [
        [r["network"], r["order"], number(r["all"]), number(r["all"] - r["rules"]), *_cells(r, shown)] for r in results
    ]
    text = "## Where the time goes: by tensor, one thread, in gradients\n\n" + table(header, rows)
    save(plan.folder, "profile", text, results)


def times(network: str, order: int) -> dict[str, Any]:
    """The median run: all of it, what the rules take, and by name of the operation, in gradients."""
    net, parts, u = measure._problem(network, "by tensor")
    gradient = measure._gradient_of(net)
    gradient(), gn.summarize(net.loss, parts, u, order=order)
    runs = [_one(net, parts, u, order) for _ in range(REPEATS)]
    unit = sorted(measure.timed(gradient)[0] for _ in range(REPEATS))[REPEATS // 2]
    whole, spent = sorted(runs, key=lambda r: r[0])[REPEATS // 2]
    by_name = {name: seconds / unit for name, seconds in spent.items()}
    return {
        "network": network,
        "order": order,
        "all": whole / unit,
        "rules": sum(by_name.values()),
        "operations": by_name,
    }


def _one(net: Any, parts: gn.Partition, u: Any, order: int) -> tuple[float, Counter[str]]:
    with timed_rules() as spent:
        whole = measure.timed(lambda: gn.summarize(net.loss, parts, u, order=order))[0]
    return whole, spent


@contextmanager
def timed_rules() -> Iterator[Counter[str]]:
    """Inside, the CPU seconds in the forward sweep of each rule are added up by the operation's name."""
    spent: Counter[str] = Counter()
    inside: list[Operation] = []
    kept = {kind: kind.__dict__["forward"] for kind in _kinds(Rule) if "forward" in kind.__dict__}

    def timing(forward: Any) -> Any:
        def timed(self: Rule, o: Operation, *arguments: Any) -> Any:
            if inside:  # a rule that calls its parent's
                return forward(self, o, *arguments)
            inside.append(o)
            start = clock.process_time()
            try:
                return forward(self, o, *arguments)
            finally:
                spent[o.name] += clock.process_time() - start
                inside.clear()

        return timed

    try:
        for kind, forward in kept.items():
            kind.forward = timing(forward)  # type: ignore[method-assign]
        yield spent
    finally:
        for kind, forward in kept.items():
            kind.forward = forward  # type: ignore[method-assign]


def _kinds(kind: type) -> Iterator[type]:
    yield kind
    for one in kind.__subclasses__():
        yield from _kinds(one)


def _cells(result: dict[str, Any], names: list[str]) -> list[str]:
    return [number(result["operations"][name]) if name in result["operations"] else "-" for name in names]
