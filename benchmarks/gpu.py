"""Everything that waits for an accelerator, in one run: ``python -m benchmarks.gpu``, or ``make gpu``.

Tests that need a device, agreement with the CPU for every network and partition of the benchmark, three notebooks on the
device, and what a step costs beside Adam's. Results go to ``benchmarks/results/gpu/CARD.json``; the book draws a page of
them. torch and numpy are enough, no network is asked for; without pytest or nbclient those two sections say so. Where there
is no accelerator, the list of what would run is printed, and that is all.
"""

import argparse
import json
import platform
import re
import statistics
import subprocess
import sys
import time as clock
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import gnewton as gn
from benchmarks.gpu_notebook import run_on
from benchmarks.networks import NETWORKS, PARTITIONS, Network, build, direction, partition
from benchmarks.report import RESULTS, table
from benchmarks.waits import Waits
from gnewton.policies import Calibrated

ROOT = Path(__file__).parents[1]
FOLDER = RESULTS / "gpu"
NOTEBOOKS = ("03-digits", "10-convolutions", "14-your-model")
BATCHES = (100, 10_000)
TIMED = ("perceptron", "lenet", "transformer")
PRECISIONS = ("float32", "TF32", "bfloat16")
AGREEMENT_BATCH = 10
REPEATS = 20

Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="All that needs an accelerator.")
    parser.add_argument("--section", choices=SECTIONS, action="append", help="this section; may be repeated")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the results go (benchmarks/results/gpu)")
    given = parser.parse_args(arguments)
    print(plan())
    if not torch.accelerator.is_available():
        print("\nno accelerator found: nothing of this was run, and nothing was written")
        return 0
    device = torch.accelerator.current_accelerator()
    assert device is not None  # there is one
    return measure(device, given.section or list(SECTIONS), given.folder)


def plan() -> str:
    """A table of what is run, and how much of it."""
    rows = [[name, section.__doc__.splitlines()[0].rstrip("."), count] for name, (section, count) in SECTIONS.items()]
    return table(["section", "what it does", "how many"], rows)


def measure(device: torch.device, sections: Sequence[str], folder: Path) -> int:
    """Run the sections one after the other; each is saved as soon as it has ended. 1 if one failed, else 0."""
    card = card_name(device)
    path = folder / f"{re.sub(r'[^a-z0-9]+', '-', card.lower()).strip('-')}.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    results |= facts(device, card)
    for name in sections:
        print(f"\n{name}", flush=True)
        results[name] = SECTIONS[name][0](device)
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    wrong = [f"{name}: {row['what']}" for name in sections for row in results[name] if row["ok"] is False]
    print("\n".join(["", f"Saved in {path}", *(f"Not right: {line}" for line in wrong)]))
    return 1 if wrong else 0


def card_name(device: torch.device) -> str:
    """What the maker calls the card; of those that torch cannot ask, the kind."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} {platform.machine()}"


def facts(device: torch.device, card: str) -> Row:
    """On what, with what, when."""
    versions = {"gnewton": gn.__version__, "torch": torch.__version__, "python": platform.python_version()}
    cuda = {"cuda": torch.version.cuda} if device.type == "cuda" else {}
    return {"card": card, "device": device.type, "versions": versions | cuda, "date": date.today().isoformat()}


# -- sections: each returns rows with "what" and "ok" (None: not run) ------------------------------------------------


def tests(device: torch.device) -> list[Row]:
    """The tests marked accelerator."""
    if find_spec("pytest") is None:
        return [{"what": "pytest", "ok": None, "why": "pytest is not installed"}]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-o",
        "addopts=--import-mode=importlib",
        "-m",
        "accelerator",
        "tests",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    words = done.stdout.strip().splitlines()[-1:]
    print(done.stdout[-3000:])
    return [{"what": f"tests on {device.type}", "ok": done.returncode == 0, "said": " ".join(words)}]


def agreement(
    device: torch.device, networks: Sequence[str] = tuple(NETWORKS), batch: int = AGREEMENT_BATCH
) -> list[Row]:
    """Summaries on the device against the CPU's in float64, for each network and partition."""
    rows = []
    for network in networks:
        for groups in PARTITIONS:
            for dtype, allowed in allowed_errors(device).items():
                rows.append(one_agreement(device, (network, groups, batch), dtype, allowed))
                print(rows[-1], flush=True)
    return rows


def allowed_errors(device: torch.device) -> dict[torch.dtype, float]:
    """Largest difference by dtype, relative to the largest entry: sums run in another order there. MPS has no float64."""
    narrow = {torch.float32: 2e-3}
    return narrow if device.type == "mps" else {torch.float64: 1e-9} | narrow


def one_agreement(device: torch.device, case: tuple[str, str, int], dtype: torch.dtype, allowed: float) -> Row:
    """One row: the errors of g-bar, H-bar and the order-3 diagonal."""
    network, groups, batch = case
    row: Row = {"what": f"{network}, {groups}, {name_of(dtype)}", "network": network, "groups": groups}

    def compare() -> Row:
        exact = summary(build(network, batch, torch.float64), groups)
        computed = summary(to_device(build(network, batch, dtype), device), groups)
        errors = {order: error(f, e) for order, f, e in zip(("1", "2", "3"), computed, exact, strict=True)}
        return {"ok": max(errors.values()) <= allowed, "errors": errors, "allowed": allowed}

    return row | {"dtype": name_of(dtype)} | attempted(compare)


def summary(net: Network, groups: str) -> list[Tensor]:
    """g-bar, H-bar and the order-3 diagonal on the CPU, along the direction that the CPU computes in float64."""
    parts = partition(groups, net.model)
    shadow = build(net.name, len(net.batch[1]), torch.float64)
    u = direction(shadow, partition(groups, shadow.model))
    there = {name: u[name].to(p) for name, p in parts.parameters.items()}
    computed = gn.summarize(net.loss, parts, there, engine="tape")
    return [t.cpu().double() for t in (computed.gradient, computed.hessian, computed.third) if t is not None]


def notebooks(device: torch.device, names: Sequence[str] = NOTEBOOKS) -> list[Row]:
    """Notebooks 03, 10 and 14 with their data and models on the device."""
    if find_spec("nbclient") is None or find_spec("matplotlib") is None:
        return [{"what": name, "ok": None, "why": "the extra lab is not installed"} for name in names]
    return [{"what": name} | attempted(lambda name=name: run_on(device.type, name)) for name in names]


def waits(device: torch.device) -> list[Row]:
    """How often the host waits for the device in one summary and in one step."""
    rows = []
    for network in ("tiny", *TIMED):
        net = to_device(build(network), device)
        for name, step in steps(net).items():
            step()
            with Waits(device) as seen:
                step()
            where = sorted({f"{file}:{line}" for file, line in seen.places})
            rows.append({"what": f"{network}, {name}", "ok": True, "waits": len(seen.places), "places": where})
            print(rows[-1], flush=True)
    return rows


def timings(device: torch.device, networks: Sequence[str] = TIMED, batches: Sequence[int] = BATCHES) -> list[Row]:
    """A step beside Adam's, batch 100 and 10,000, in float32, TF32 and bfloat16."""
    rows = []
    for network in networks:
        for batch in batches:
            for precision in PRECISIONS:
                case = {"network": network, "batch": batch, "precision": precision}
                row = {"what": f"{network}, batch {batch}, {precision}"} | case
                rows.append(row | attempted(lambda case=case: timed_steps(device, **case)))
                print(rows[-1], flush=True)
    return rows


def timed_steps(device: torch.device, network: str, batch: int, precision: str) -> Row:
    """Median milliseconds of each kind of step, host and device together."""
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    with tf32(precision == "TF32"):
        net = to_device(build(network, batch, dtype), device)
        milliseconds = {name: timed(step, device) for name, step in steps(net).items()}
    return {"ok": True, "milliseconds": milliseconds}


def steps(net: Network) -> dict[str, Callable[[], object]]:
    """One step of Adam, a summary of either order, a step of GroupedNewton that solves at each step and at every tenth."""
    parts = partition("by tensor", net.model)
    adam = torch.optim.Adam(net.model.parameters(), lr=1e-3)
    u = direction(net, parts)

    def adam_step() -> None:
        adam.zero_grad()
        net.loss().backward()
        adam.step()

    def newton(period: int) -> Callable[[], object]:
        proposer = torch.optim.RMSprop(net.model.parameters(), lr=1.0, momentum=0.9)
        optimizer = gn.GroupedNewton(parts, proposer, lr=0.1, period=period)
        return lambda: optimizer.step(net.loss)

    single = gn.Partition.single(net.model)
    calibrated, cautious = (
        gn.GroupedNewton(single, proposer, policy=Calibrated())
        for proposer in (
            torch.optim.Adam(net.model.parameters(), betas=(0.8, 0.9)),
            gn.CautiousAdam(net.model.parameters()),
        )
    )
    return {
        "Adam": adam_step,
        "Calibrated": lambda: calibrated.step(net.loss),
        "Calibrated, CautiousAdam": lambda: cautious.step(net.loss),
        "summary, order 2": lambda: gn.summarize(net.loss, parts, u, order=2),
        "summary, order 3": lambda: gn.summarize(net.loss, parts, u, order=3),
        "GroupedNewton": newton(1),
        "GroupedNewton, period 10": newton(10),
    }


SECTIONS: dict[str, tuple[Callable[[torch.device], list[Row]], int]] = {
    "tests": (tests, 1),
    "agreement": (agreement, len(NETWORKS) * len(PARTITIONS) * 2),
    "notebooks": (notebooks, len(NOTEBOOKS)),
    "waits": (waits, (1 + len(TIMED)) * 6),
    "timings": (timings, len(TIMED) * len(BATCHES) * len(PRECISIONS)),
}


# -- parts of them -------------------------------------------------------------------------------------------------


def attempted(function: Callable[[], Row]) -> Row:
    """What it returns; where it fails, why: one that fails must not hide the others."""
    try:
        return function()
    except Exception as problem:
        return {"ok": False, "why": f"{type(problem).__name__}: {str(problem)[:300]}"}


def to_device(net: Network, device: torch.device) -> Network:
    """The network with its data on the device."""
    net.model.to(device)
    x, y = net.batch
    net.batch = (x.to(device), y.to(device))
    return net


def error(computed: Tensor, exact: Tensor) -> float:
    """max |computed - exact| / max |exact|, where 0 / 0 is 0; infinite where something is not finite."""
    if not computed.isfinite().all():
        return float("inf")
    difference, scale = (computed - exact).abs().max().item(), exact.abs().max().item()
    return difference / scale if scale else difference


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@contextmanager
def tf32(on: bool) -> Iterator[None]:
    """Matrix products in TensorFloat-32 or not, as before afterwards."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if on else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def timed(step: Callable[[], object], device: torch.device, repeats: int = REPEATS) -> float:
    """Median milliseconds from one step's start to the end of all its work on the device; the first three do not count."""
    took = []
    for _ in range(repeats + 3):
        synchronize(device)
        start = clock.perf_counter()
        step()
        synchronize(device)
        took.append(1000 * (clock.perf_counter() - start))
    return statistics.median(took[3:])


def synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()


if __name__ == "__main__":
    sys.exit(main())
