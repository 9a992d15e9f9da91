"""Several processes: what a step sends, what it takes at 1, 2 and 4 processes, and a model of both up to 10,000 devices.

Each process has 128 samples of its own, whatever their number. The model, with the constants of the link measured here:

    seconds(N)  =  processor seconds(1)  +  latency * collectives * log2(N)  +  seconds a byte * bytes * 2 (N - 1) / N

A tree of log2(N) hops for what is small, a ring for what is large. It knows nothing of overlap, of slow neighbours, or of
links between machines that differ from those inside one.
"""

import math
import os
from collections.abc import Iterable, Sequence

from gnewton import plots
from gnewton.experiments.experiment import Experiment, Results
from gnewton.experiments.pictures import name_curves
from gnewton.experiments.processes import METHODS, measure_gradient, measure_link, measure_methods, run_processes
from gnewton.experiments.protocol import Plan
from gnewton.experiments.report import facts, markdown, round_numbers

TITLE = "several processes: bytes, collectives and seconds, beside DistributedDataParallel with Adam"
PROCESSES = (1, 2, 4)
DEVICES = (2, 10, 100, 1000, 10_000)
ROUNDS, BLOCKS, STEPS, REPEATS, GRADIENTS = 2, 3, 10, 200, 40


def measure(plan: Plan, command: str) -> Results:
    """Run every method at 1, 2 and 4 processes."""
    processes = PROCESSES[:2] if plan.quick else PROCESSES
    link = run_processes(2, measure_link, 3 if plan.quick else REPEATS)[0]
    sent = run_processes(2, measure_gradient, 3 if plan.quick else GRADIENTS)[0]
    # In turns: what else the machine does comes and goes.
    rounds = [
        {size: run_processes(size, measure_methods, BLOCKS, STEPS) for size in processes}
        for _ in range(1 if plan.quick else ROUNDS)
    ]
    methods = {
        name: {
            "title": title,
            "processes": {
                str(size): _summarize([[rank[name] for rank in one[size]] for one in rounds]) for size in processes
            },
        }
        for name, (title, _) in METHODS.items()
    }
    return facts(command) | {
        "experiment": "scaling",
        "title": TITLE,
        "cores_for_processes": os.cpu_count(),
        "link": {name: round_numbers(value) for name, value in link.items()},
        "gradient": {name: _rounded(value) for name, value in sent.items()},
        "methods": methods,
    }


def _rounded(value: Results | int) -> Results | int:
    return value if isinstance(value, int) else {name: round_numbers(ms) for name, ms in value.items()}


def _summarize(rounds: Sequence[Sequence[Results]]) -> Results:
    """One process's numbers: all of them send the same; a block of steps takes what its slowest process takes.

    The fastest block: what a machine does when others leave it alone.
    """
    times = {"ms": "seconds", "processor_ms": "processor"}
    fastest = {
        name: min(1000 * max(block) for ranks in rounds for block in _blocks(ranks, times[name])) for name in times
    }
    return {name: round_numbers(ms) for name, ms in fastest.items()} | {
        name: rounds[0][0][name] for name in ("bytes", "collectives", "scalars", "groups")
    }


def _blocks(ranks: Sequence[Results], name: str) -> Iterable[tuple[float, ...]]:
    """For each block of steps its time on every rank."""
    return zip(*(one[name] for one in ranks), strict=True)


def predict(numbers: Results, name: str, devices: int) -> float:
    """Milliseconds a step on so many devices, by the model.

    >>> link = {"latency": 1e-3, "seconds_per_byte": 0.0}
    >>> one, two = {"processor_ms": 5.0}, {"bytes": 100, "collectives": 2}
    >>> predict({"link": link, "methods": {"a": {"processes": {"1": one, "2": two}}}}, "a", 8)
    11.0
    """
    link, processes = numbers["link"], numbers["methods"][name]["processes"]
    sent = processes["2"]
    hops = sent["collectives"] * math.log2(devices)
    seconds = link["latency"] * hops + link["seconds_per_byte"] * sent["bytes"] * 2 * (devices - 1) / devices
    return float(processes["1"]["processor_ms"] + 1000 * seconds)


def report(numbers: Results) -> str:
    """Two tables: what was measured, and what the model says."""
    one, link = next(iter(numbers["methods"].values()))["processes"]["1"], numbers["link"]
    return "\n\n".join(
        [
            f"A perceptron of {one['scalars']:,} scalars in {one['groups']} groups, 128 samples a process, gloo on one machine of "
            f"{numbers['cores_for_processes']} cores, which had other work as well. Milliseconds of each process's processor, and in brackets of the clock, in the fastest block of {STEPS} steps.",
            _measured(numbers),
            _gradient(numbers["gradient"]),
            f"The link between two processes here: {1e6 * link['latency']:.3g} microseconds for an all-reduce, and "
            f"{1e9 * link['seconds_per_byte']:.3g} nanoseconds a byte. With these constants the model says, in ms a step:",
            _modelled(numbers),
        ]
    )


def _measured(numbers: Results) -> str:
    """What a step sends, and its milliseconds on one machine."""
    methods = {method["title"]: method["processes"] for method in numbers["methods"].values()}
    sizes = next(iter(methods.values()))
    header = ["method", "bytes a step", "all-reduces a step"]
    header += [f"ms, {size} process{'es' * (size != '1')}" for size in sizes]
    rows = [
        [title, f"{processes['2']['bytes']:,.0f}", f"{processes['2']['collectives']:.3g}"]
        + [f"{one['processor_ms']:.3g} ({one['ms']:.3g})" for one in processes.values()]
        for title, processes in methods.items()
    ]
    return markdown(header, rows)


def _gradient(sent: Results) -> str:
    """What is gained by sending a gradient while it is computed."""
    ways = {
        "alone": "on one process alone",
        "one piece": "sent afterwards, in one piece",
        "buckets": "sent meanwhile, in buckets",
    }
    rows = [[title, f"{sent[way]['processor_ms']:.3g} ({sent[way]['ms']:.3g})"] for way, title in ways.items()]
    return (
        f"A gradient of {sent['scalars']:,} scalars between two processes, in {sent['all-reduces']} buckets; the fastest of {GRADIENTS}:\n\n"
        + markdown(["the gradient", "ms"], rows)
    )


def _modelled(numbers: Results) -> str:
    """Milliseconds a step on many devices."""
    rows = [
        [method["title"], *(f"{predict(numbers, name, devices):.3g}" for devices in DEVICES)]
        for name, method in numbers["methods"].items()
    ]
    return markdown(["method", *(f"{devices:,} devices" for devices in DEVICES)], rows)


def figures(numbers: Results) -> dict[str, plots.Figure]:
    """Measured milliseconds against processes, and the model's up to 10,000 devices."""
    drawn = plots.new_figure(columns=2, width=11.0, height=4.6)
    left, right = drawn.axes
    for i, (name, method) in enumerate(numbers["methods"].items()):
        sizes = [int(size) for size in method["processes"]]
        left.plot(
            sizes,
            [one["processor_ms"] for one in method["processes"].values()],
            label=method["title"],
            **plots.style(i, marker=True),
        )
        right.plot(DEVICES, [predict(numbers, name, devices) for devices in DEVICES], **plots.style(i, marker=True))
    left.set(xlabel="processes on one machine", ylabel="processor ms a step, measured", xticks=sizes, yscale="log")
    right.set(xlabel="devices", ylabel="ms a step, by the model", xscale="log", yscale="log")
    name_curves(drawn)
    return {"scaling": drawn}


EXPERIMENT = Experiment(
    name="scaling",
    title=TITLE,
    minutes=5,
    measure=measure,
    report=report,
    figures=figures,
    pictures=("scaling",),
)
