"""What is measured: CPU time in units of one gradient, and peak memory.

One gradient is a forward pass and ``torch.autograd.grad`` of the same loss to all parameters, with torch's own fused
kernels. CPU time is that of the process (``time.process_time``): what another program does meanwhile is not counted.
"""

import gc
import math
import resource
import signal
import statistics
import sys
import time as clock
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import gnewton as gn
from benchmarks.networks import Network, build, direction, partition
from benchmarks.peers import PEERS
from benchmarks.real_networks import REAL, build_real, by_block
from gnewton.derivatives.record import record
from gnewton.derivatives.tape import Tape
from gnewton.loss import differentiable_mode

Row = dict[str, Any]
Subject = tuple[str, int]  # peer, order
# What a peer may fail with: an operation that it cannot follow, memory, time, its absence. Anything else is a mistake here.
EXPECTED = (RuntimeError, NotImplementedError, MemoryError, TimeoutError, ModuleNotFoundError, ValueError)


# -- time ----------------------------------------------------------------------------------------------------------


def time(
    network: str, groups: str, subjects: Sequence[Subject], seconds: float = 3.0, patience: float = 120.0
) -> dict[str, Any]:
    """CPU time of every subject (peer, order) in gradients: each run is paired with runs of the gradient just before.

    A subject gets about ``seconds``, and at least three pairs (one, if a single run is longer than ten times that). The
    first run of each is not counted. One that fails, or whose first run is longer than ``patience``, tells why.
    """
    net, parts, u = _problem(network, groups)
    gradient = _gradient_of(net)
    gradient(), gradient()
    rows, runs = [], {}
    for peer, order in subjects:
        function = _bound(peer, net, parts, u, order)
        took, why = _first_run(function, patience)
        rows.append({"peer": peer, "order": order, "why": why})
        if why is None:
            runs[peer, order] = _Pairs(gradient, function, took, seconds)
    # Else every collection walks through all that torch has loaded.
    gc.freeze()
    # Round after round, so that a slow minute of the machine strikes all subjects.
    while any(not pairs.enough for pairs in runs.values()):
        for pairs in runs.values():
            if not pairs.enough:
                pairs.another()
    for row in rows:
        if row["why"] is None:
            row |= runs[row["peer"], row["order"]].summary()
    return {"network": network, "groups": groups, "S": len(parts), "threads": torch.get_num_threads(), "rows": rows}


class _Pairs:
    """Runs of a gradient and of a subject in turn; the ratio of each pair."""

    def __init__(self, gradient: Callable[[], None], subject: Callable[[], None], took: float, seconds: float) -> None:
        unit = timed(gradient)[0]
        self._gradient, self._subject = gradient, subject
        # Short runs are repeated until they take 20 ms: the clock and a cold cache weigh nothing then.
        self._times = [max(1, math.ceil(0.02 / max(t, 1e-6))) for t in (unit, took)]
        cost = self._times[0] * unit + self._times[1] * took
        self._wanted = 1 if took > 10 * seconds else min(40, max(3, round(seconds / cost)))
        self._pairs: list[tuple[tuple[float, float], tuple[float, float]]] = []

    @property
    def enough(self) -> bool:
        return len(self._pairs) >= self._wanted

    def another(self) -> None:
        first, second = timed(self._gradient, self._times[0]), timed(self._subject, self._times[1])
        self._pairs.append((first, second))

    def summary(self) -> Row:
        ratios = [subject[0] / gradient[0] for gradient, subject in self._pairs]
        walls = [subject[1] / gradient[1] for gradient, subject in self._pairs]
        low, middle, high = _quartiles(ratios)
        return {
            "ratio": middle,
            "low": low,
            "high": high,
            "wall_ratio": statistics.median(walls),
            "seconds": statistics.median(subject[0] for _, subject in self._pairs),
            "gradient_seconds": statistics.median(gradient[0] for gradient, _ in self._pairs),
            "pairs": len(ratios),
        }


def timed(function: Callable[[], None], times: int = 1) -> tuple[float, float]:
    """CPU and wall seconds of one call; garbage is collected before, not during."""
    gc.collect()
    cpu, wall = clock.process_time(), clock.perf_counter()
    for _ in range(times):
        function()
    return (clock.process_time() - cpu) / times, (clock.perf_counter() - wall) / times


def _first_run(function: Callable[[], None], patience: float) -> tuple[float, str | None]:
    try:
        with alarm(patience):
            took = timed(function)[0]
            # The first run loads and builds things: only a long one tells how long the next will take.
            return took if took > 1 else timed(function)[0], None
    except EXPECTED as error:
        return math.inf, why(error)


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    def ring(*_: Any) -> None:
        raise TimeoutError(f"not done after {seconds:.0f} s")

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def why(error: Exception) -> str:
    """The reason in a few words, for a cell of a table.

    >>> why(MemoryError())
    'out of memory'
    """
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or "allocate memory" in text:
        return "out of memory"
    if isinstance(error, ModuleNotFoundError):
        return "not installed"
    if isinstance(error, TimeoutError):
        return text
    if "attempted to call in-place operation" in text:
        return "torch.func cannot update running statistics"
    return f"{type(error).__name__}: {text[:90]}"


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return (values[0],) * 3
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


# -- memory --------------------------------------------------------------------------------------------------------


def memory(network: str, groups: str, peer: str, order: int = 2) -> Row:
    """Peak resident memory, in bytes, that one run of ``peer`` ("gradient" or a peer's name) adds to what was there.

    There already: the interpreter, torch, the model, the data, the direction, and what a run on the tiny network and a
    flattening loads.
    """
    net, parts, u = _problem(network, groups)
    function = _gradient_of(net) if peer == "gradient" else _bound(peer, net, parts, u, order)
    tiny, tiny_parts, tiny_u = _problem("tiny", "by tensor")
    for warm_up in (_gradient_of(tiny), _bound("engine", tiny, tiny_parts, tiny_u, 3)):
        warm_up()
    # The engine moves tangents through shapes by torch.func, of which torch loads a part at the first use.
    torch.func.vmap(lambda d: torch.func.jvp(torch.ravel, (d,), (d,)))(torch.zeros(2, 3))
    torch.zeros(512, 512) @ torch.zeros(512, 512)
    gc.collect()
    before = _reset_peak()
    try:
        function()
    except EXPECTED as error:
        return {"why": why(error)}
    return {"bytes": _peak() - before, "why": None}


def _reset_peak() -> int:
    """Set the high-water mark to what is resident now, where the system allows it; the mark, in bytes."""
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    """The high-water mark of the resident memory, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # Linux's ru_maxrss begins with the parent's.
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


# -- the tape ------------------------------------------------------------------------------------------------------


def tape(network: str, groups: str) -> Row:
    """What the tape of one loss holds: operations, bytes of all recorded values, of the most that live at one time."""
    net, parts, _ = _problem(network, groups)
    with differentiable_mode(parts):
        recorded = record(net.loss, parts)
    return {
        "S": len(parts),
        "operations": len(recorded.operations),
        "recorded": _recorded_bytes(recorded),
        "alive": _alive_bytes(recorded),
        "missing": recorded.missing,
    }


def _recorded_bytes(recorded: Tape) -> int:
    """One copy of all recorded values; views of one storage are one value."""
    outputs = [v.value for o in recorded.operations for v in o.outputs]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in outputs}.values())


def _alive_bytes(recorded: Tape) -> int:
    """The largest set of intermediate values that were computed and are still to be read."""
    last = recorded.last_readers()
    alive, most = {}, 0
    for o in recorded.operations:
        alive |= {v: _bytes(v.value) for v in o.outputs}
        most = max(most, sum(alive.values()))
        for v in o.inputs:
            if last[v] is o:
                alive.pop(v, None)
    return most


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


# -- shared --------------------------------------------------------------------------------------------------------


def _problem(network: str, groups: str) -> tuple[Network, gn.Partition, dict[str, Tensor]]:
    net = build_real(network) if network in REAL else build(network)
    parts = by_block(net.model) if groups == "by block" else partition(groups, net.model)
    return net, parts, direction(net, parts)


def _gradient_of(net: Network) -> Callable[[], None]:
    parameters = [p for p in net.model.parameters() if p.requires_grad]

    def run() -> None:
        torch.autograd.grad(net.loss(), parameters)

    return run


def _bound(peer: str, net: Network, parts: gn.Partition, u: dict[str, Tensor], order: int) -> Callable[[], None]:
    def run() -> None:
        PEERS[peer].run(net, parts, u, order)

    return run
