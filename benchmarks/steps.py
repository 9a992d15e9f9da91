"""A training step on a network so small that Python is most of it: milliseconds beside Adam's."""

from typing import Any

from benchmarks import measure
from benchmarks.gpu import steps
from benchmarks.networks import build
from benchmarks.plan import Plan
from benchmarks.process import run
from benchmarks.report import number, save, table

NETWORK = "small"


def step_times(plan: Plan) -> None:
    """64-32-32-10, batch 100: every kind of step in turn, in one run."""
    result = run("steps", network=NETWORK, seconds=plan.seconds)
    adam = result["milliseconds"]["Adam"]
    rows = [[name, number(ms), number(ms / adam)] for name, ms in result["milliseconds"].items()]
    text = "## A step on 64-32-32-10, batch 100, one thread\n\n" + table(["step", "ms of CPU", "of Adam's"], rows)
    save(plan.folder, "steps", text, result)


def times(network: str, seconds: float) -> dict[str, Any]:
    """Median CPU milliseconds of each kind of step; round after round, so that a slow minute strikes all of them."""
    names = list(steps(build(network)))
    runs: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(max(3, round(seconds * 10))):
        for name in names:
            # Early in a training of its own: at a loss of nearly zero a line search tries many times, as roundings will have it.
            step = steps(build(network))[name]
            for _ in range(20):  # past the steps that look for a rate
                step()
            runs[name].append(measure.timed(step, 20)[0] * 1e3)
    return {"network": network, "milliseconds": {name: sorted(ms)[len(ms) // 2] for name, ms in runs.items()}}
