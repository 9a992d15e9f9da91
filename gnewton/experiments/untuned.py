"""One setting for six networks, against Adam and SGD tuned for each: how far does ``cubic="adaptive"`` come untuned?

Loss is that of the whole training part, in evaluation mode, as a geometric mean over the seeds. Adam and SGD with momentum
choose among seven learning rates by the loss on a held-out fifth of the training part, from seed 0: once for 3 epochs and
once for 10, so that each comparison meets the rate that is best for it. No schedule anywhere.

These are the six networks on which the setting was found; ``unseen.py`` has six others, on which nothing was chosen.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from tqdm import tqdm

from gnewton import plots
from gnewton.experiments import twins
from gnewton.experiments.experiment import Experiment, Results
from gnewton.experiments.methods import ADAPTIVE, METHODS, UNTUNED, WITH_ONE_GROUP, Method, grid
from gnewton.experiments.networks import SIX, Problem
from gnewton.experiments.pictures import name_curves
from gnewton.experiments.protocol import HOLD_OUT, Plan
from gnewton.experiments.report import facts, markdown, round_numbers
from gnewton.experiments.runs import Run, load_or_compute, network, train
from gnewton.partition import Partition

TITLE = "one setting of the adaptive step on six networks, beside tuned Adam and SGD; badly scaled on purpose"
RATES = {
    "adam": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
    "sgd": (3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0),
}
BUDGETS = (3, 10)
SOON = 5
OURS = {"adaptive": "GroupedNewton, one setting", "one-group": "the same, one group"}


def measure(plan: Plan, command: str) -> Results:
    """All runs of the six networks, and the badly scaled twins."""
    measured = trials("untuned", TITLE, SIX, plan)
    return measured | facts(command) | {"scaled": twins.losses(epochs=1 if plan.quick else 10)}


def trials(name: str, title: str, problems: Mapping[str, Problem], plan: Plan) -> Results:
    """All runs of some networks."""
    runs = len(RATES) * (len(RATES["adam"]) + len(BUDGETS) * plan.seeds) + len(OURS) * plan.seeds
    with tqdm(total=len(problems) * runs, desc=name, unit="run", disable=None) as bar:
        networks = {key: _Trials(name, problem, plan, bar.update).results() for key, problem in problems.items()}
    about = {"experiment": name, "title": title, "setting": _setting(problems), "seeds": plan.seeds}
    return about | {"networks": networks}


def _setting(problems: Mapping[str, Problem]) -> Results:
    (sizes,) = {(one.curvature, one.batch) for one in problems.values()}
    named = {"direction": "RMSprop", "momentum": 0.9, "curvature_batch": sizes[0], "batch": sizes[1]}
    return UNTUNED[0] | ADAPTIVE | named


@dataclass(frozen=True)
class _Trials:
    experiment: str
    problem: Problem
    plan: Plan
    advance: Callable[[], Any]

    def results(self) -> Results:
        peers = {name: self.tune(METHODS[name]) for name in RATES}
        ours = dict(zip(OURS, (METHODS["adaptive"], WITH_ONE_GROUP), strict=True))
        model = network(self.problem, 0)
        return {
            "title": self.problem.title,
            "data": self.problem.data().source,
            "parameters": sum(p.numel() for p in model.parameters()),
            "groups": len(Partition.by_tensor(model)),
            "steps_per_epoch": len(self.problem.data().batches(self.problem.batch)),
            **{key: [self.run(one, UNTUNED[0], seed) for seed in range(self.plan.seeds)] for key, one in ours.items()},
            **peers,
        }

    def tune(self, method: Method) -> Results:
        tried = [self._run("tuning", method, one, 0) for one in grid(lr=RATES[method.name])]
        results: Results = {"rates": list(RATES[method.name]), "validation": [run["test_losses"] for run in tried]}
        for budget in BUDGETS:
            best = min(range(len(tried)), key=lambda i: loss_after(tried[i], budget, "test_losses"))
            rate = RATES[method.name][best]
            runs = [self.run(method, {"lr": rate}, seed) for seed in range(self.plan.seeds)]
            results[f"for {budget} epochs"] = {"lr": rate, "runs": runs}
        return results

    def run(self, method: Method, settings: dict[str, Any], seed: int) -> Results:
        run = self._run("test", method, settings, seed)
        names = ("train_losses", "test_losses", "test_accuracies", "cpu_seconds", "diverged")
        return {"seed": seed} | {name: round_numbers(run[name]) for name in (*names, "renewed_losses") if name in run}

    def _run(self, part: str, method: Method, settings: dict[str, Any], seed: int) -> Run:
        problem, epochs = self.problem, self.plan.epochs(self.problem)
        names = {"problem": problem.title, "part": part, "method": method.name, "settings": settings, "seed": seed}
        sizes = {"epochs": epochs, "batch": problem.batch, "curvature": problem.curvature}

        def compute() -> Run:
            data = problem.data() if part == "test" else problem.data().hold_out(HOLD_OUT, seed=0)
            return train(problem, data, method, settings, seed, epochs)

        run = load_or_compute(self.plan.place(self.experiment) / "runs", names | sizes, compute)
        self.advance()
        return run


def loss_after(run: Results, epochs: int, part: str = "train_losses") -> float:
    """The loss after so many epochs, or after the last where there are fewer; infinite for a run that diverged.

    >>> loss_after({"diverged": False, "train_losses": [0.5, 0.25, 0.125]}, 2)
    0.25
    """
    losses = run[part][:epochs]
    return math.inf if run["diverged"] or not losses or losses[-1] is None else float(losses[-1])


def mean_loss(runs: Sequence[Results], epochs: int) -> float:
    """The geometric mean over the seeds.

    >>> mean_loss([{"diverged": False, "train_losses": [0.1]}, {"diverged": False, "train_losses": [0.4]}], 1)
    0.2...
    """
    return float(np.exp(np.mean([np.log(loss_after(run, epochs)) for run in runs])))


def seconds_to(runs: Sequence[Results], loss: float) -> float:
    """Processor seconds until the mean loss falls to ``loss``, between epochs by interpolation; infinite where it never does."""
    epochs = len(runs[0]["train_losses"])
    losses = np.minimum.accumulate([mean_loss(runs, epoch + 1) for epoch in range(epochs)])
    seconds = np.mean([run["cpu_seconds"] for run in runs], axis=0)
    first = int(np.argmax(losses <= loss))
    if losses[first] > loss:
        return math.inf
    if not first:
        return float(seconds[0])
    return float(np.interp(-np.log(loss), -np.log(losses[first - 1 : first + 1]), seconds[first - 1 : first + 1]))


def ratios(one: Results, ours: str = "adaptive") -> dict[str, float]:
    """What is asked of a network: our loss over the better peer's after 3 and 10 epochs, and the ratio of times.

    time: processor seconds to the loss that Adam, tuned for 3 epochs, has after 5, over Adam's own.
    """
    by_budget = {}
    for budget in BUDGETS:
        peers = [mean_loss(one[name][f"for {budget} epochs"]["runs"], budget) for name in RATES]
        by_budget[f"after {budget}"] = mean_loss(one[ours], budget) / min(peers)
    adam = one["adam"]["for 3 epochs"]["runs"]
    target = mean_loss(adam, SOON)
    return by_budget | {
        "time": seconds_to(one[ours], target) / float(np.mean([r["cpu_seconds"][:SOON][-1] for r in adam]))
    }


def with_renewed_statistics(one: Results) -> Results | None:
    """A network's results with every loss as measured after its running statistics were renewed; None without batch norm."""
    if "renewed_losses" not in one["adaptive"][0]:
        return None

    def exchange(runs: list[Results]) -> list[Results]:
        return [run | {"train_losses": run["renewed_losses"]} for run in runs]

    peers = {
        name: {key: tuned | {"runs": exchange(tuned["runs"])} for key, tuned in _budgets(one[name])} for name in RATES
    }
    ours = {name: exchange(one[name]) for name in OURS}
    return one | {"title": "(statistics renewed)"} | ours | peers


def _budgets(peer: Results) -> list[tuple[str, Results]]:
    return [(f"for {budget} epochs", peer[f"for {budget} epochs"]) for budget in BUDGETS]


# -- what is shown ------------------------------------------------------------------------------------------------------


def report(numbers: Results) -> str:
    """The tables of the six networks, losses and times, and the words under them."""
    soon, late = BUDGETS
    loss = ["network", "groups"]
    for head in (f"loss after {soon} epochs", f"after {late}"):
        loss += [head, "Adam", "SGD", "ratio"]
    time = ["network", "time to Adam's loss, in Adam's", "one group", "ms per step", "one group", "Adam"]
    looks = [look for one in numbers["networks"].values() for look in (one, with_renewed_statistics(one)) if look]
    losses = markdown(loss, [_losses(look, ours) for look in looks for ours in OURS])
    tables = losses, markdown(time, [_times(look) for look in looks])
    return "\n\n".join([*tables, *(f"{_head(ours)}\n\n{verdict(numbers, ours)}" for ours in OURS)])


def _head(ours: str) -> str:
    return {"adaptive": "One group per tensor:", "one-group": "One group for the whole network (S = 1):"}[ours]


def _title(one: Results, ours: str) -> list[str]:
    return [one["title"] if ours == "adaptive" else "", str(one["groups"]) if ours == "adaptive" else "1"]


def _losses(one: Results, ours: str) -> list[str]:
    against_peers, line = ratios(one, ours), _title(one, ours)
    for budget in BUDGETS:
        peers = [f"{mean_loss(one[n][f'for {budget} epochs']['runs'], budget):.3g}" for n in RATES]
        line += [f"{mean_loss(one[ours], budget):.3g}", *peers, f"{against_peers[f'after {budget}']:.2f}"]
    return line


def _times(one: Results) -> list[str]:
    times = [ratios(one, ours)["time"] for ours in OURS]
    told = [f"{time:.2g}" if math.isfinite(time) else f"not in {BUDGETS[-1]} epochs" for time in times]
    runs = (*(one[ours] for ours in OURS), one["adam"]["for 3 epochs"]["runs"])
    return [one["title"], *told, *(_step_time(some, one) for some in runs)]


def _step_time(runs: Sequence[Results], one: Results) -> str:
    steps = len(runs[0]["train_losses"]) * one["steps_per_epoch"]
    return f"{1000 * np.mean([run['cpu_seconds'][-1] for run in runs]) / steps:.3g}"


def verdict(numbers: Results, ours: str = "adaptive") -> str:
    """How many of the networks meet what was asked; and how many runs diverged."""
    all_ratios = {name: ratios(one, ours) for name, one in numbers["networks"].items()}
    runs = [run for one in numbers["networks"].values() for run in one[ours]]

    def those(name: str, most: float) -> str:
        met = [network for network, network_ratios in all_ratios.items() if network_ratios[name] <= most]
        return f"{len(met)} of {len(all_ratios)}" + (f" ({', '.join(met)})" if met else "")

    return "\n".join(
        [
            f"* {sum(run['diverged'] for run in runs)} of {len(runs)} runs of the adaptive step diverged.",
            f"* After 3 epochs its loss is within 1.15 times that of the better peer on {those('after 3', 1.15)}; "
            f"after 10 on {those('after 10', 1.15)}.",
            f"* It takes at most 5 times Adam's time to the loss that Adam has after {SOON} epochs on {those('time', 5.0)}.",
        ]
    )


def figures(numbers: Results) -> dict[str, plots.Figure]:
    """The loss by epochs on the six networks; the badly scaled twins where they were run."""
    curves = plots.new_figure(rows=2, columns=3, width=11.0, height=6.4)
    for ax, one in zip(curves.axes, numbers["networks"].values(), strict=True):
        _draw(ax, one)
    name_curves(curves)
    scaled = {"untuned-scaled": twins.figure(numbers["scaled"])} if "scaled" in numbers else {}
    return {numbers["experiment"]: curves} | scaled


def _draw(ax: Axes, one: Results) -> None:
    runs = {title: one[ours] for ours, title in OURS.items()}
    runs |= {METHODS[n].title + ", tuned": one[n]["for 10 epochs"]["runs"] for n in RATES}
    epochs = range(1, 1 + len(one["adaptive"][0]["train_losses"]))
    curves = {name: (epochs, [mean_loss(some, epoch) for epoch in epochs]) for name, some in runs.items()}
    plots.training_curves(curves, ax, xlabel="epoch", scale="log")
    ax.set_title(one["title"], fontsize=9)
    if legend := ax.get_legend():
        legend.remove()


UNREAD = ("test_losses", "test_accuracies", "validation")
EXPERIMENT = Experiment(
    name="untuned",
    title=TITLE,
    minutes=sum(problem.minutes for problem in SIX.values()),
    measure=measure,
    report=report,
    figures=figures,
    pictures=("untuned", "untuned-scaled"),
    unread=(*UNREAD, "scaled"),
)
