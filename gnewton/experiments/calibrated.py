"""One rate that is found in the first steps, against tuned Adam and the rules that promise a training without tuning.

The networks are the six of ``untuned``, the six of ``unseen``, with which in sight
the policy was found; the twelve of ``fresh``, written down before the first of them was run, two of which led to the bounds on a
look; the twelve of ``later``, written down after these, one of which led to the interval of t*; and the twelve of
``small_batches``, written down after that last change.

Adam is the fused one. It chooses among seven rates on a held-out fifth, from seed 0: for 3 epochs and for 10, as it is and with the
same averaged parameters. The proposer of ours is tuned likewise, with the average alone, to tell what the rate does and what the
proposer does; and so is Adam whose rate falls by a cosine over the 10 epochs, as it is. Every other method has its documented defaults. Losses are those of the whole training part, as geometric means over
the seeds; seconds are processor time, an epoch of each method in turn in one process.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from gnewton import plots
from gnewton.experiments.experiment import Experiment, Results
from gnewton.experiments.fresh import FRESH
from gnewton.experiments.later import LATER
from gnewton.experiments.lockstep import race
from gnewton.experiments.networks import SIX, Problem
from gnewton.experiments.peers import ADAM, ANNEALED, DEFAULTS, OURS, PROPOSER, RATES, Peer
from gnewton.experiments.pictures import name_curves
from gnewton.experiments.protocol import HOLD_OUT, Plan
from gnewton.experiments.report import facts, geometric, markdown, round_numbers
from gnewton.experiments.runs import finite, load_or_compute
from gnewton.experiments.small_batches import SMALL_BATCHES
from gnewton.experiments.unseen import UNSEEN
from gnewton.experiments.untuned import BUDGETS, SOON, mean_loss, seconds_to

TITLE = "a rate found in the first steps, against tuned Adam and rules without a rate, on 48 networks"
DOZENS: dict[str, Mapping[str, Problem]] = {
    "in sight": SIX | UNSEEN,
    "fresh": FRESH,
    "later": LATER,
    "small batches": SMALL_BATCHES,
}
PLAIN, AVERAGED = "losses", "averaged_losses"
TEST = {PLAIN: "test", AVERAGED: "averaged_test"}
# Who chooses a rate, by the loss of which parameters, after how many epochs.
CHOICES = tuple(
    (peer, kind, budget)
    for peer, kind, budgets in (
        (ADAM, PLAIN, BUDGETS),
        (ADAM, AVERAGED, BUDGETS),
        (PROPOSER, AVERAGED, BUDGETS),
        (ANNEALED, PLAIN, BUDGETS[-1:]),
    )
    for budget in budgets
)
# Below it float32 tells no losses apart: each sample's is a difference of numbers near 1 or larger.
LEAST = 1e-7


def measure(plan: Plan, command: str) -> Results:
    """What is reported of the networks, from all their runs."""
    with tqdm(total=sum(map(len, DOZENS.values())), desc="calibrated", unit="network", disable=None) as bar:
        networks = {}
        for dozen, problems in DOZENS.items():
            for key, problem in problems.items():
                one = trials(problem, plan)
                # The runs, a megabyte and a half, lie in files of their own; what is reported of them is here.
                networks[key] = {"dozen": dozen} | {name: value for name, value in one.items() if name != "runs"}
                bar.update()
    return {"experiment": "calibrated", "title": TITLE, "seeds": plan.seeds, "networks": networks} | facts(command)


def trials(problem: Problem, plan: Plan) -> Results:
    """The tuning of Adam, and every method from every seed, of one network."""
    chosen = _tuned(problem, plan)
    entries: dict[str, tuple[Peer, float | None]] = {OURS.name: (OURS, None)}
    for peer in (ADAM, PROPOSER, ANNEALED):
        rates = {rate for what, rate in chosen.items() if what.startswith(peer.name)}
        entries |= {f"{peer.name} {lr:g}": (peer, lr) for lr in sorted(rates)}
    entries |= {peer.name: (peer, None) for peer in DEFAULTS}
    races = [_kept(problem, plan, "race", entries, seed) for seed in range(plan.seeds)]
    steps = len(problem.data().batches(problem.batch))
    about = {"title": problem.title, "steps_per_epoch": steps, "tuned": chosen, "seeds": plan.seeds}
    one: Results = about | {"runs": {name: [run[name] for run in races] for name in entries}}
    return one | {"reported": condense(one, problem)}


def _tuned(problem: Problem, plan: Plan) -> dict[str, float]:
    """The rates of Adam and of the proposer alone, by what they are chosen for: "adam, losses, 3 epochs"."""
    entries = {f"{peer.name} {lr:g}": (peer, lr) for peer in (ADAM, PROPOSER, ANNEALED) for lr in RATES}
    tried = _kept(problem, plan, "tuning", entries, 0)
    chosen = {}
    for peer, kind, budget in CHOICES:
        ends = [mean_loss([_view(tried[f"{peer.name} {lr:g}"], kind)], budget) for lr in RATES]
        chosen[f"{peer.name}, {kind}, {budget} epochs"] = RATES[int(np.argmin(ends))]
    return chosen


def _kept(problem: Problem, plan: Plan, part: str, entries: Any, seed: int) -> Results:
    epochs = plan.epochs(problem)
    data = problem.data() if part == "race" else problem.data().hold_out(HOLD_OUT, seed=0)
    key = {"problem": problem.title, "method": part, "entries": sorted(entries), "seed": seed, "epochs": epochs}
    measured = "train" if part == "race" else "test"
    return load_or_compute(
        plan.place("calibrated") / "runs", key, lambda: race(problem, data, entries, seed, epochs, part=measured)
    )


# -- what is asked ------------------------------------------------------------------------------------------------------


def _view(run: Results, kind: str) -> Results:
    """A run as ``untuned`` reads it; the plain one does not pay for an average."""
    paid = run["averaging_seconds"] if kind == PLAIN else [0.0] * len(run["cpu_seconds"])
    seconds = [whole - part for whole, part in zip(run["cpu_seconds"], paid, strict=True)]
    losses = [loss if loss is None else max(loss, LEAST) for loss in run[kind]]
    return {"train_losses": losses, "cpu_seconds": seconds, "diverged": run["diverged"]}


def views(one: Results, name: str, kind: str = AVERAGED) -> list[Results]:
    """The runs of a method, with the losses of one kind."""
    return [_view(run, kind) for run in one["runs"][name]]


def tuned(one: Results, kind: str, budget: int, peer: Peer = ADAM) -> list[Results]:
    """The runs of Adam, or of another that is tuned, at the rate that was chosen for a kind of loss and a budget."""
    return views(one, _name(one, kind, budget, peer), kind)


def _name(one: Results, kind: str, budget: int, peer: Peer) -> str:
    return f"{peer.name} {one['tuned'][f'{peer.name}, {kind}, {budget} epochs']:g}"


def ratios(one: Results) -> dict[str, float]:
    """Ours over tuned Adam's: the loss after 3 and 10 epochs, the time to its loss after 5, both with the same average.

    "steps": the same in steps; "plain time": against Adam without an average; "step": the time of a step; "best after 10": over the
    better one of its rates for 3 and for 10 epochs. "proposer after 3" and so on: over the proposer alone, tuned; "annealed after 10":
    over Adam whose rate falls by a cosine, without an average.
    """
    ours, quotients = views(one, OURS.name), {}
    for before, peer in (("", ADAM), ("proposer ", PROPOSER)):
        for budget in BUDGETS:
            theirs = mean_loss(tuned(one, AVERAGED, budget, peer), budget)
            quotients[f"{before}after {budget}"] = mean_loss(ours, budget) / theirs
        ends = [mean_loss(tuned(one, AVERAGED, budget, peer), BUDGETS[-1]) for budget in BUDGETS]
        quotients[f"{before}best after {BUDGETS[-1]}"] = mean_loss(ours, BUDGETS[-1]) / min(ends)
        theirs_soon = tuned(one, AVERAGED, BUDGETS[0], peer)
        quotients[f"{before}time"] = _time_to(ours, theirs_soon)
        quotients[f"{before}step"] = _seconds(ours) / _seconds(theirs_soon)
    quotients["steps"] = _time_to(*(_in_epochs(runs) for runs in (ours, tuned(one, AVERAGED, BUDGETS[0]))))
    quotients["plain time"] = _time_to(ours, tuned(one, PLAIN, BUDGETS[0]))
    last = BUDGETS[-1]
    quotients[f"annealed after {last}"] = mean_loss(ours, last) / mean_loss(tuned(one, PLAIN, last, ANNEALED), last)
    return quotients


def _time_to(ours: Sequence[Results], theirs: Sequence[Results]) -> float:
    """The time of ours to the loss of theirs after five epochs, over theirs."""
    own = float(np.mean([run["cpu_seconds"][:SOON][-1] for run in theirs]))
    return seconds_to(ours, mean_loss(theirs, SOON)) / own


def _in_epochs(runs: Sequence[Results]) -> list[Results]:
    """The runs by a clock that counts epochs."""
    return [run | {"cpu_seconds": [1.0 + epoch for epoch in range(len(run["cpu_seconds"]))]} for run in runs]


def _seconds(runs: Sequence[Results]) -> float:
    return float(np.mean([run["cpu_seconds"][-1] for run in runs]))


def against(one: Results, name: str) -> dict[str, float]:
    """A method of the defaults over ours, at its better kind of parameters: losses, and the time to the loss of ours after 5."""
    ours, quotients = views(one, OURS.name), {}
    both = [views(one, name, kind) for kind in (PLAIN, AVERAGED)]
    for budget in BUDGETS:
        quotients[f"after {budget}"] = min(mean_loss(runs, budget) for runs in both) / mean_loss(ours, budget)
    target = mean_loss(ours, SOON)
    own = float(np.mean([run["cpu_seconds"][:SOON][-1] for run in ours]))
    return quotients | {"time": min(seconds_to(runs, target) for runs in both) / own}


def on_test(one: Results) -> dict[str, list[float | None]]:
    """Loss and accuracy of the test part after 10 epochs, means over the seeds: ours, averaged Adam's, and Adam's with a cosine.

    The accuracy is None where there are no classes, the loss infinite where a run diverged.
    """
    last, entries = BUDGETS[-1], {OURS.name: (OURS.name, AVERAGED)}
    for peer, kind in ((ADAM, AVERAGED), (ANNEALED, PLAIN)):
        entries[peer.name] = _name(one, kind, last, peer), kind
    return {key: _mean_test([run[TEST[kind]] for run in one["runs"][name]]) for key, (name, kind) in entries.items()}


def _mean_test(ends: Sequence[Sequence[float | None]]) -> list[float | None]:
    losses, rights = zip(*ends, strict=True)
    loss = math.inf if None in losses else geometric([max(loss, LEAST) for loss in losses])
    return [loss, None if None in rights else float(np.mean(rights))]


def condense(one: Results, problem: Problem) -> Results:
    """What the report says of a network: numbers that are infinite are None."""
    ours, sooner, later = views(one, OURS.name), *(tuned(one, AVERAGED, budget) for budget in BUDGETS)
    steps = problem.epochs * one["steps_per_epoch"]
    numbers = {
        "diverged": sum(run["diverged"] for run in one["runs"][OURS.name]),
        "ratios": ratios(one),
        "losses": [
            mean_loss(runs, n) for n, peer in zip(BUDGETS, (sooner, later), strict=True) for runs in (ours, peer)
        ],
        "milliseconds": [1000 * _seconds(runs) / steps for runs in (ours, sooner)],
        "test": on_test(one),
        "rate": geometric([run["rate"] for run in one["runs"][OURS.name]]),
        "against": {peer.name: against(one, peer.name) for peer in DEFAULTS},
    }
    return {key: _finite(value) for key, value in numbers.items()}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return round_numbers(finite(value), digits=4) if isinstance(value, float) else value


# -- what is shown ------------------------------------------------------------------------------------------------------


def report(numbers: Results) -> str:
    """The tables: tuned Adam network by network, and the rules without a rate in the geometric mean."""
    dozens = [dozen for dozen in DOZENS if of(numbers, dozen)]
    tables = [f"{_head(numbers, dozen)}:\n\n{_table(numbers, dozen)}\n\n{verdict(numbers, dozen)}" for dozen in dozens]
    notes = [f"{note}." for note in numbers.get("notes", [])]
    others = ["Over ours, geometric means:", _others(numbers)]
    tests = [
        f"After {BUDGETS[-1]} epochs, on the test part (accuracy in per cent where there are classes):",
        _tests(numbers),
    ]
    return "\n\n".join([*tables, *others, *tests, *notes])


def _head(numbers: Results, dozen: str) -> str:
    words = {
        "in sight": "networks that were in sight when the rule was found",
        "fresh": "fresh networks, two of which led to its bounds on a look",
        "later": "networks written down after that, one of which led to its interval of t*",
        "small batches": "networks of small batches, written down after that last change",
    }
    return f"{len(of(numbers, dozen))} of {len(DOZENS[dozen])} {words[dozen]}"


def of(numbers: Results, dozen: str) -> dict[str, Results]:
    """The networks of one dozen."""
    return {key: one for key, one in numbers["networks"].items() if one["dozen"] == dozen}


def _table(numbers: Results, dozen: str) -> str:
    head = ["network", "seeds", "loss after 3 epochs", "averaged Adam", "ratio", "after 10", "averaged Adam", "ratio"]
    head += ["time to Adam's loss after 5", "to plain Adam's", "ms per step", "Adam's", "rate at the end", "Adam's"]
    return markdown(head, [_line(one) for one in of(numbers, dozen).values()])


def _line(one: Results) -> list[str]:
    reported, line = one["reported"], [one["title"], str(one["seeds"])]
    for budget, losses in zip(BUDGETS, (reported["losses"][:2], reported["losses"][2:]), strict=True):
        line += [*("-" if loss is None else f"{loss:.3g}" for loss in losses)]
        line.append(_time(reported["ratios"][f"after {budget}"], "-"))
    line += [_time(reported["ratios"][name]) for name in ("time", "plain time")]
    rates = sorted({one["tuned"][f"{ADAM.name}, {AVERAGED}, {budget} epochs"] for budget in BUDGETS})
    line += [f"{milliseconds:.3g}" for milliseconds in reported["milliseconds"]]
    return [*line, f"{reported['rate']:.2g}", " / ".join(f"{rate:g}" for rate in rates)]


def _time(ratio: float | None, never: str = f"not in {BUDGETS[-1]} epochs") -> str:
    return never if ratio is None else f"{ratio:.2f}"


def verdict(numbers: Results, dozen: str) -> str:
    """How many of the networks meet what was asked; and how many runs diverged."""
    networks = of(numbers, dozen)
    ratios = {key: one["reported"]["ratios"] for key, one in networks.items()}

    def those(name: str, most: float) -> str:
        missed = [key for key, ratio in ratios.items() if ratio[name] is None or ratio[name] > most]
        return f"{len(ratios) - len(missed)} of {len(ratios)}" + (f" (not {', '.join(missed)})" if missed else "")

    diverged, runs = (
        sum(numbers)
        for numbers in zip(*((one["reported"]["diverged"], one["seeds"]) for one in networks.values()), strict=True)
    )
    return "\n".join(
        [
            f"* {diverged} of {runs} runs diverged.",
            f"* Loss at most 1.15 times averaged Adam's after 3 epochs on {those('after 3', 1.15)}, after 10 on {those('after 10', 1.15)}.",
            f"* Steps to averaged Adam's loss after 5 epochs at most 1.0 on {those('steps', 1.0)}.",
            f"* Time to averaged Adam's loss at most 1.0 on {those('time', 1.0)}, at most 1.5 on {those('time', 1.5)}.",
            f"* Time to plain Adam's loss at most 1.0 on {those('plain time', 1.0)}.",
            f"* A step at most 1.15 times its proposer's on {those('proposer step', 1.15)}, Adam's on {those('step', 1.15)}.",
            f"* Over its proposer, averaged and tuned, geometric means: {_proposer(ratios)}.",
            f"* Loss after {BUDGETS[-1]} over that of Adam, tuned, with a cosine and no average: {_against_annealed(networks)}.",
            f"* On the test part after {BUDGETS[-1]}, beside averaged Adam: {_say_tests(networks, ADAM.name)}.",
            f"* There, beside Adam with a cosine: {_say_tests(networks, ANNEALED.name)}.",
        ]
    )


def _against_annealed(networks: Mapping[str, Results]) -> str:
    name = f"annealed after {BUDGETS[-1]}"
    ratios = [one["reported"]["ratios"][name] for one in networks.values()]
    kept = [ratio for ratio in ratios if ratio]
    mean = f"{geometric(kept):.2f}" if kept else "-"
    return f"{mean} in the mean, at most 1.0 on {sum(ratio <= 1 for ratio in kept)} of {len(ratios)}"


def compare_tests(networks: Mapping[str, Results], name: str) -> dict[str, list[float]]:
    """Ours beside another on the test part: "losses", ours over theirs; "accuracies", ours minus theirs, where there are classes."""
    pairs = [(one["reported"]["test"][OURS.name], one["reported"]["test"][name]) for one in networks.values()]
    return {
        "losses": [ours[0] / theirs[0] for ours, theirs in pairs if ours[0] and theirs[0]],
        "accuracies": [ours[1] - theirs[1] for ours, theirs in pairs if None not in (ours[1], theirs[1])],
    }


def _say_tests(networks: Mapping[str, Results], name: str) -> str:
    compared = compare_tests(networks, name)
    losses, gains = compared["losses"], compared["accuracies"]
    mean = f"{geometric(losses):.2f}" if losses else "-"
    higher, equal = sum(gain > 0 for gain in gains), sum(gain == 0 for gain in gains)
    return (
        f"{mean} times its loss in the mean, lower on {sum(loss < 1 for loss in losses)} of {len(losses)}; accuracy higher on "
        f"{higher}, equal on {equal}, lower on {len(gains) - higher - equal}"
    )


def _tests(numbers: Results) -> str:
    head = ["network", "loss, ours", "averaged Adam", "Adam, cosine", "accuracy, ours", "averaged Adam", "Adam, cosine"]
    rows = []
    for one in numbers["networks"].values():
        ends = [one["reported"]["test"][name] for name in (OURS.name, ADAM.name, ANNEALED.name)]
        losses = ["diverged" if loss is None else f"{loss:.3g}" for loss, _ in ends]
        rows.append([one["title"], *losses, *("" if right is None else f"{100 * right:.1f}" for _, right in ends)])
    return markdown(head, rows)


def _proposer(ratios: Mapping[str, Mapping[str, float | None]]) -> str:
    words = {
        "proposer after 3": "loss after 3 epochs",
        "proposer after 10": "after 10",
        "proposer time": "time to its loss after 5",
    }
    kept = {name: [ratio for one in ratios.values() if (ratio := one[name])] for name in words}
    means = {name: f"{geometric(kept[name]):.2f}" if kept[name] else "-" for name in words}
    return ", ".join(f"{words[name]} {means[name]} on {len(kept[name])} of {len(ratios)}" for name in words)


def _others(numbers: Results) -> str:
    head = ["method", *(f"{what}, {dozen}" for dozen in DOZENS for what in ("after 3", "after 10", "time"))]
    rows = [
        [peer.title, *(cell for dozen in DOZENS for cell in _means(numbers, dozen, peer.name))] for peer in DEFAULTS
    ]
    return markdown(head, rows)


def _means(numbers: Results, dozen: str, name: str) -> list[str]:
    entries = [one["reported"]["against"][name] for one in of(numbers, dozen).values()]
    kept = {key: [one[key] for one in entries if one[key]] for key in ("after 3", "after 10", "time")}
    cells = [f"{geometric(kept[key]):.2f}" if kept[key] else "-" for key in ("after 3", "after 10")]
    times = f"{geometric(kept['time']):.2f} on {len(kept['time'])} of {len(entries)}" if kept["time"] else "never"
    return [*cells, times]


def figures(numbers: Results) -> dict[str, plots.Figure]:
    """Ours over averaged Adam's, a row for each network: the losses and the time."""
    shown = plots.new_figure(rows=len(DOZENS), columns=1, width=7.0, height=14.0)
    for ax, dozen in zip(shown.axes, DOZENS, strict=True):
        ratios = {key: one["reported"]["ratios"] for key, one in of(numbers, dozen).items()}
        for marker, name, words in (
            ("o", "after 3", "loss after 3 epochs"),
            ("s", "after 10", "after 10"),
            ("D", "time", "time"),
        ):
            ax.plot(
                [math.nan if one[name] is None else one[name] for one in ratios.values()],
                range(len(ratios)),
                marker,
                label=words,
                alpha=0.8,
            )
        ax.axvline(1.0, color="gray", linewidth=1)
        ax.set(xscale="log", xlabel="ours over averaged Adam's, tuned", title=dozen)
        ax.set_yticks(range(len(ratios)), list(ratios))
        ax.invert_yaxis()
    name_curves(shown)
    return {"calibrated": shown}


EXPERIMENT = Experiment(
    name="calibrated",
    title=TITLE,
    minutes=130,
    measure=measure,
    report=report,
    figures=figures,
    pictures=("calibrated",),
)
