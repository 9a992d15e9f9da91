"""``python -m benchmarks``: every section; ``--quick`` in ten minutes; ``--only NETWORK`` for one network."""

import argparse
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import exact, figures, gpu, growth, profile, real, sections, steps, widgets
from benchmarks.networks import NETWORKS
from benchmarks.plan import Plan
from benchmarks.process import all_threads
from benchmarks.report import PARTIAL, RESULTS, save, table

SECTIONS = {
    "agreement": sections.agree,
    "work": sections.work,
    "partitions": sections.other_partitions,
    "full-third": sections.full_third,
    "memory": sections.memory,
    "tiny": sections.tiny,
    "steps": steps.step_times,
    "profile": profile.profile,
    "real": real.real,
    "growth": growth.growth,
    "exact": exact.exact,
    "widgets": widgets.widgets,
    "figures": figures.figures,
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="What one summary costs, against peers.")
    parser.add_argument(
        "--quick", action="store_true", help="short measurements, fewer peers and partitions: ten minutes"
    )
    parser.add_argument("--only", choices=NETWORKS, metavar="NETWORK", help=f"one network: {', '.join(NETWORKS)}")
    parser.add_argument("--section", choices=SECTIONS, action="append", help="this section; may be repeated")
    parser.add_argument("--seconds", type=float, help="seconds per measurement (2; quick: 0.5)")
    parser.add_argument("--device", default="cpu", help="cuda, mps: what waits for an accelerator, as make gpu")
    given = parser.parse_args(arguments)
    if given.device != "cpu":
        sys.exit(_on(given.device))
    plan = Plan(
        networks=[given.only] if given.only else list(NETWORKS),
        seconds=given.seconds or (0.5 if given.quick else 2.0),
        quick=given.quick,
        folder=PARTIAL if given.quick or given.only or given.seconds else RESULTS,
    )
    _machine(plan.folder)
    for name in given.section or _sections(given.only):
        SECTIONS[name](plan)
    print("Not met: " + "; ".join(plan.failures) if plan.failures else "Everything asked for here is met.")
    print(f"Saved in {plan.folder}")


def _on(device: str) -> int | str:
    """All that is measured on an accelerator; what is missing where there is none."""
    # torch 2.6, built for CUDA, raises where there is no card.
    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if here is None or here.type != device:
        return f"expected a device of type {device}, got {here or 'none'}: nothing was measured; make gpu lists what would be"
    return gpu.main([])


def _sections(only: str | None) -> list[str]:
    """All of them; for one network those that are about it."""
    if only is None:
        return list(SECTIONS)
    about = {"tiny": ["agreement", "tiny"]}.get(only, ["agreement", "work", "partitions", "memory"])
    return about + (["full-third"] if only in ("perceptron", "lenet") else [])


def _machine(folder: Path) -> None:
    """What the numbers were measured on."""
    facts = {
        "processor": _processor(),
        "system": platform.system(),
        "threads": all_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    save(folder, "machine", table(list(facts), [list(facts.values())]), facts)


def _processor() -> str:
    known = Path("/proc/cpuinfo")
    lines = known.read_text().splitlines() if known.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
