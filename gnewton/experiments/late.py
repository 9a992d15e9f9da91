"""Why do rates per tensor slow down late: do they fit the noise of their summaries, or are they greedy?

Two questions to each network, beside one group for everything.

*Noise.* The adaptive setting of ``untuned`` three times: as it is, with 300 samples for a summary; with all samples for a summary; and
without any noise, with all samples for every gradient, too. All three are greedy: they look one step ahead. If noise slows the rates
down, they are not behind without it.

*Greed.* The first third of a run with one group leads to a moment late in training. From it rates are chosen that minimize the loss of all
samples after H steps, in the mean over draws of the batches (``horizon.py``), and are held for a run on other batches. "one batch" is the choice that a
single batch makes for 300 samples, one step ahead. If greed slows the rates down, those of a longer horizon end lower.

LeNet is where rates per tensor were seen to slow down: noise is asked about there, with a thousand digits, so that all of them are not too many,
and on a smaller convolutional network. Horizons are asked about on the smaller one alone, from one seed: derivatives through thirty steps are dear.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from matplotlib.axes import Axes
from torch import Tensor, nn
from tqdm import tqdm

from gnewton import plots
from gnewton.datasets import Dataset
from gnewton.experiments.experiment import Experiment, Results
from gnewton.experiments.horizon import Batch, Moment, Unrolled, minimize
from gnewton.experiments.methods import ADAPTIVE, METHODS, UNTUNED, WITH_ONE_GROUP, rmsprop
from gnewton.experiments.networks import SIX, Problem, images
from gnewton.experiments.pictures import name_curves
from gnewton.experiments.protocol import Plan
from gnewton.experiments.report import facts, geometric, markdown, round_numbers
from gnewton.experiments.runs import Run, endless, finite, load_or_compute, network, train
from gnewton.experiments.unseen import UNSEEN
from gnewton.optimizer import GroupedNewton
from gnewton.partition import Partition
from gnewton.training import fit

TITLE = "why rates per tensor slow down late: the noise of their summaries, or a horizon of one step"
PARTITIONS: Mapping[str, Callable[[nn.Module], Partition]] = {
    "per tensor": Partition.by_tensor,
    "one group": Partition.single,
}
NOISE = {"as it is": "300 samples", "all samples": "all samples", "no noise": "all, gradients too"}
# Steps ahead, and how many draws of the batches: more steps in all than there are groups, but for the first.
HORIZONS = {"one batch": (1, 1), "1": (1, 24), "3": (3, 12), "10": (10, 6), "30": (30, 3)}
_LATE, _LOOKS, _FIRST_RATE, _ROUNDING = 0.3, 10, 1e-3, 1e-8


def thousand() -> Dataset:
    """The first thousand digits, as images."""
    data = images()
    return replace(data, train_x=data.train_x[:1000], train_y=data.train_y[:1000])


LENET = replace(SIX["lenet"], title="LeNet, tanh, a thousand digits", data=thousand, epochs=20)
NETWORKS: Mapping[str, Problem] = {"lenet": LENET, "pooled": UNSEEN["pooled"]}
# What the question does not need: one group was never slow there, and all samples for every gradient are dear.
LEFT_OUT = {("lenet", "no noise", "one group")}
QUESTIONS: Mapping[str, tuple[str, ...]] = {"lenet": (*NOISE,), "pooled": (*NOISE, *HORIZONS)}


def measure(plan: Plan, command: str) -> Results:
    """All runs of the networks."""
    networks: dict[str, Results] = {}
    with tqdm(total=2 * sum(map(len, QUESTIONS.values())), desc="late", unit="row", disable=None) as bar:
        for key, problem in NETWORKS.items():
            networks[key] = {"title": problem.title, "parts": {}}
            for part in QUESTIONS[key]:
                entries = [(part, groups) for groups in PARTITIONS if (key, part, groups) not in LEFT_OUT]
                networks[key]["parts"][part] = {entry[1]: _runs(problem, plan, entry) for entry in entries}
                bar.update(len(PARTITIONS))
    return {"experiment": "late", "title": TITLE, "seeds": plan.seeds, "networks": networks} | facts(command)


def _runs(problem: Problem, plan: Plan, entry: tuple[str, str]) -> list[Results]:
    return [_kept(problem, plan, entry, seed) for seed in range(plan.seeds if entry[0] in NOISE else 1)]


def _kept(problem: Problem, plan: Plan, entry: tuple[str, str], seed: int) -> Results:
    part, groups = entry
    key = {"problem": problem.title, "method": part.replace(" ", "-"), "groups": groups, "seed": seed}
    one = replace(problem, epochs=plan.epochs(problem))
    question = _adaptive if part in NOISE else _held
    run: Results = load_or_compute(
        plan.place("late") / "runs", key | {"epochs": one.epochs}, lambda: question(one, part, groups, seed)
    )
    return run


# -- noise --------------------------------------------------------------------------------------------------------------


def _adaptive(problem: Problem, part: str, groups: str, seed: int) -> Run:
    """The losses of all samples, with renewed statistics, after each tenth of a run."""
    data, whole, steps = problem.data(), len(problem.data().train_x), _steps(problem)
    sizes = {"as it is": (problem.batch, 300), "all samples": (problem.batch, whole), "no noise": (whole, whole)}[part]
    method = METHODS["adaptive"] if groups == "per tensor" else WITH_ONE_GROUP
    epochs = problem.epochs if part != "no noise" else steps
    run = train(replace(problem, batch=sizes[0], curvature=sizes[1]), data, method, UNTUNED[0], seed, epochs)
    losses: list[Any] = run.get("renewed_losses") or run["train_losses"]
    tenths = [math.ceil(epochs * i / _LOOKS) - 1 for i in range(1, _LOOKS + 1)]
    return {"losses": [round_numbers(losses[i]) if i < len(losses) else None for i in tenths]}


def _steps(problem: Problem) -> int:
    return problem.epochs * len(problem.data().batches(problem.batch))


# -- greed --------------------------------------------------------------------------------------------------------------


def _held(problem: Problem, part: str, groups: str, seed: int) -> Run:
    """The rates for a horizon, and the losses of all samples before and after each tenth of a run with them."""
    data, (horizon, count) = problem.data(), HORIZONS[part]
    model, late = train_with_one_group(problem, seed)
    whole = data.train_x, data.train_y
    batches = endless(data.batches(problem.batch, _generator(3000 + seed)))
    draws = [[next(batches) for _ in range(horizon)] for _ in range(count)]
    judge = next(iter(data.batches(300, _generator(4000 + seed)))) if part == "one batch" else whole
    one = Unrolled(model, problem.loss, Partition.single(model), late)
    unrolled = Unrolled(model, problem.loss, PARTITIONS[groups](model), late)
    rates = minimize(one.objective(draws, judge), torch.tensor([_FIRST_RATE]))
    if groups != "one group":
        rates = minimize(unrolled.objective(draws, judge), rates.abs().expand(len(unrolled.partition)))
    losses = _run_on(unrolled, rates, batches, whole, _steps(problem))
    return {"rates": round_numbers(rates.tolist()), "names": list(unrolled.partition.names), "losses": losses}


def train_with_one_group(problem: Problem, seed: int) -> tuple[nn.Module, Moment]:
    """The network after the first third of a run of the adaptive setting with one group, and its RMSprop."""
    data, model = problem.data(), network(problem, seed)
    proposer = rmsprop(model)
    optimizer = GroupedNewton(Partition.single(model), proposer, **(ADAPTIVE | UNTUNED[0]))
    curvature = data.batches(min(300, len(data.train_x)), _generator(2000 + seed), drop_last=True)
    fit(
        model,
        optimizer,
        data.batches(problem.batch, _generator(1000 + seed)),
        loss_fn=problem.loss,
        epochs=max(1, int(_LATE * problem.epochs)),
        evaluate=None,
        curvature=endless(curvature, UNTUNED[0]["period"]),
        progress=False,
    )
    states = {name: proposer.state[p] for name, p in model.named_parameters()}
    squares, momenta = ({n: s[key].clone() for n, s in states.items()} for key in ("square_avg", "momentum_buffer"))
    return model.train(), Moment({n: p.detach().clone() for n, p in model.named_parameters()}, squares, momenta)


def _run_on(unrolled: Unrolled, rates: Tensor, batches: Iterator[Batch], whole: Batch, steps: int) -> list[Any]:
    moment, losses = unrolled.start, []
    for i in range(steps + 1):
        if i % (steps // _LOOKS) == 0:
            with torch.no_grad():
                losses.append(finite(unrolled.value(moment.parameters, whole).item()))
        moment = unrolled.advance(moment, rates, next(batches))
    return [None if loss is None else round_numbers(loss) for loss in losses]


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# -- what is shown ------------------------------------------------------------------------------------------------------


def mean(numbers: Results, network: str, part: str, groups: str) -> list[float]:
    """The losses after each tenth, geometric means over the seeds; nan where one is not finite, or was left out."""
    runs = [run["losses"] for run in numbers["networks"][network]["parts"][part].get(groups, ())] or [[None] * _LOOKS]
    return [geometric([math.nan if loss is None else loss for loss in losses]) for losses in zip(*runs, strict=True)]


def lag(numbers: Results, network: str, part: str) -> float:
    """The loss with rates per tensor over that with one group, at the end of the run."""
    tensor, one = (mean(numbers, network, part, groups)[-1] for groups in PARTITIONS)
    return tensor / one


def report(numbers: Results) -> str:
    """Two tables, of the loss at the end of the runs."""
    noise = f"Loss of all samples at the end, per tensor / one group, by the samples of a summary. Seeds: {numbers['seeds']}."
    greed = "The same after a run with held rates, by the number of steps that they were chosen for. Seeds: 1."
    return "\n\n".join([noise, _table(numbers, NOISE), greed, _table(numbers, {part: part for part in HORIZONS})])


def _table(numbers: Results, parts: Mapping[str, str]) -> str:
    rows = []
    for key in asked(numbers, parts):
        ends = [[mean(numbers, key, part, groups)[-1] for groups in PARTITIONS] for part in parts]
        rows.append(
            [
                numbers["networks"][key]["title"],
                *(" / ".join("-" if math.isnan(end) else f"{end:.2g}" for end in pair) for pair in ends),
            ]
        )
    return markdown(["network", *parts.values()], rows)


def asked(numbers: Results, parts: Mapping[str, Any]) -> list[str]:
    """The networks that were asked a question."""
    return [key for key, one in numbers["networks"].items() if set(parts) <= set(one["parts"])]


def figures(numbers: Results) -> dict[str, plots.Figure]:
    """The runs of the three amounts of noise, a panel for each network; then the loss at the end by the horizon."""
    noise, greed = asked(numbers, NOISE), asked(numbers, HORIZONS)
    shown = plots.new_figure(columns=len(noise) + len(greed), width=12.0, height=4.6)
    for ax, key in zip(shown.axes, noise, strict=False):
        _draw_noise(ax, numbers, key)
    for ax, key in zip(shown.axes[len(noise) :], greed, strict=True):
        _draw_greed(ax, numbers, key)
    for ax, key in zip(shown.axes, (*noise, *greed), strict=True):
        ax.set_title(numbers["networks"][key]["title"], fontsize=9)
        ax.set(yscale="log", ylabel="training loss")
    name_curves(shown)
    return {"late": shown}


def _draw_noise(ax: Axes, numbers: Results, key: str) -> None:
    for i, (part, words) in enumerate(NOISE.items()):
        for groups, line in zip(PARTITIONS, ("-", "--"), strict=True):
            losses = mean(numbers, key, part, groups)
            tenths = [10 * (j + 1) for j in range(len(losses))]
            # Below it a loss in float32 is rounding.
            shown = [max(loss, _ROUNDING) for loss in losses]
            (curve,) = ax.plot(tenths, shown, line, color=plots.COLOURS[i], label=f"{words}, {groups}")
            curve.set(marker=plots.MARKERS[i], markersize=4)
    ax.set_xlabel("part of the run (%)")


def _draw_greed(ax: Axes, numbers: Results, key: str) -> None:
    for groups, line in zip(PARTITIONS, ("o-", "s--"), strict=True):
        ends = [mean(numbers, key, part, groups)[-1] for part in HORIZONS]
        ax.plot(range(len(ends)), ends, line, color="black", label=groups)
    ax.set_xlabel("steps that held rates were chosen for")
    ax.set_xticks(range(len(HORIZONS)), list(HORIZONS))
    ax.legend()


EXPERIMENT = Experiment(
    name="late",
    title=TITLE,
    minutes=25,
    measure=measure,
    report=report,
    figures=figures,
    pictures=("late",),
    unread=("rates", "names"),
)
