r"""Does a rate per group, calibrated in fifteen steps along Adam, beat one rate that is found in the same way?

Each look takes the exact summary along the last step, on the next batch: g-bar (S,) at its end and H-bar (S, S). With tau_s the
rate of group s in that step, a_s = (g-bar + H-bar 1)_s / tau_s and C_st = H-bar_st / (tau_s tau_t) are slope and curvature where
the step began, per unit of u. At the common rate e of step 15 the mean of r = a - C e 1 over the last ten looks is what a rate of
its own would still gain in each group. It is pooled by its noise, as James and Stein do, and solved for:

    delta = |C|^{-1} (w r),    w_s = max(0, 1 - V_s / r_s^2),    eta_s = e + delta_s, within a factor of e

V_s is the variance of the mean. |C| has the absolute eigenvalues, at least a hundredth of the largest, of C with unit diagonal.
The proportions are then held, and the common rate is guarded as ever.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from gnewton import plots
from gnewton.experiments.experiment import Experiment, Results
from gnewton.experiments.lockstep import race
from gnewton.experiments.networks import SIX, Problem
from gnewton.experiments.peers import OURS, Optimizers, Peer
from gnewton.experiments.protocol import Plan
from gnewton.experiments.report import facts, geometric, markdown, round_numbers
from gnewton.experiments.runs import load_or_compute
from gnewton.experiments.unseen import UNSEEN
from gnewton.experiments.untuned import BUDGETS, mean_loss
from gnewton.line import Line
from gnewton.optimizer import GroupedNewton
from gnewton.partition import Partition
from gnewton.policies.calibrated import Calibrated
from gnewton.policies.policy import Settings, State

TITLE = "a rate per group from exact summaries in the first steps, against one rate"
NETWORKS: Mapping[str, Problem] = SIX | UNSEEN
# The dearest have fewer seeds.
SEEDS = {"lenet": 2, "vgg-batch-norm": 1, "residual": 2}
_STEPS, _LOOKS = 15, 10
_FLATTEST = 1e-2
Array = NDArray[np.float64]


class AllLooks(Calibrated):
    """The one rate, for which every one of the first steps looks. The shipped results are from before its bounds for odd batches."""

    def _searches(self, state: State) -> bool:
        return bool(state["step"] <= self.steps)


class PerGroup(AllLooks):
    """One rate for each group, in proportions that are found when the common rate is.

    Args:
        bound: the largest factor between a group's rate and the common one.
        pooled: whether noise shrinks a group's rate towards the common one.
    """

    def __init__(self, bound: float = 4.0, pooled: bool = True) -> None:
        super().__init__(steps=_STEPS)
        self.bound, self.pooled = bound, pooled

    def step(self, line: Line, settings: Settings, state: State) -> tuple[Any, State]:
        looks = list(state.get("looks", ()))
        if state.get("previous") is not None and state["step"] <= self.steps:
            looks.append(self._summary(line, state))
        outcome, after = super().step(line, settings, state)
        if after and after["step"] == self.steps + 1 and "proportions" not in after:
            rate = float(after["eta"][0])
            factors = proportions(looks[-_LOOKS:], rate, self.bound, self.pooled)
            return outcome, after | {"looks": [], "proportions": torch.from_numpy(factors)}
        return outcome, after | {"looks": looks[-_LOOKS:]} if after else after

    def _advance(self, line: Line, settings: Settings, state: State) -> State:
        held = state.get("proportions")
        if held is None:
            return super()._advance(line, settings, state)
        take, line.take = line.take, lambda rate: line.move(rate * held)  # type: ignore[method-assign]
        try:
            return super()._advance(line, settings, state)
        finally:
            line.take = take  # type: ignore[method-assign]

    def _summary(self, line: Line, state: State) -> tuple[torch.Tensor, torch.Tensor]:
        """a (S,) and C (S, S) of this batch, per unit of u."""
        last = {
            name: previous - line.partition.parameters[name].detach() for name, previous in state["previous"].items()
        }
        summary = line.along(last).summary(order=2)
        assert summary is not None
        assert summary.hessian is not None
        tau = state["taken"]
        return (summary.gradient + summary.hessian.sum(1)) / tau, summary.hessian / tau**2


def proportions(looks: list[tuple[torch.Tensor, torch.Tensor]], rate: float, bound: float, pooled: bool) -> Array:
    """eta_s / e, (S,), between 1 / bound and bound.

    Args:
        looks: a (S,) and C (S, S) of several batches.
        rate: e.
        bound: the largest factor.
        pooled: whether to shrink by noise.

    >>> one = torch.tensor([2.0, 1.0], dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    >>> proportions([one, one], rate=1.0, bound=4.0, pooled=True)
    array([2., 1.])
    """
    slopes, curvatures = (np.stack([part.numpy() for part in parts]) for parts in zip(*looks, strict=True))
    residuals = slopes - rate * curvatures.sum(2)
    mean, noise = residuals.mean(0), residuals.var(0, ddof=1) / len(looks)
    if pooled:
        mean = mean * np.maximum(0.0, 1 - noise / np.maximum(mean**2, np.finfo(float).tiny))
    curvature = curvatures.mean(0)
    unit = 1 / np.sqrt(np.maximum(np.abs(curvature.diagonal()), np.finfo(float).tiny))
    values, vectors = np.linalg.eigh(unit[:, None] * (curvature + curvature.T) / 2 * unit)
    values = np.maximum(np.abs(values), _FLATTEST * np.abs(values).max())
    delta = unit * (vectors @ ((vectors.T @ (unit * mean)) / values))
    factors: Array = np.clip(1 + delta / rate, 1 / bound, bound)
    return factors


def _adam(model: nn.Module) -> torch.optim.Adam:
    """Every scalar moves at every step, so that a group's rate alone decides how far."""
    return torch.optim.Adam(model.parameters(), lr=1.0, betas=(0.8, 0.9), fused=True)


def _one_rate(model: nn.Module, steps: int, lr: float | None) -> Optimizers:
    return [GroupedNewton(Partition.single(model), _adam(model), policy=AllLooks(steps=_STEPS))], None


def _grouped(
    partition: Callable[[nn.Module], Partition], **options: Any
) -> Callable[[nn.Module, int, float | None], Optimizers]:
    def build(model: nn.Module, steps: int, lr: float | None) -> Optimizers:
        return [GroupedNewton(partition(model), _adam(model), policy=PerGroup(**options))], None

    return build


PEERS = (
    Peer(OURS.name, "one rate", _one_rate),
    Peer("tensor-4", "per tensor, pooled, within 4", _grouped(Partition.by_tensor)),
    Peer("tensor-2", "per tensor, pooled, within 2", _grouped(Partition.by_tensor, bound=2.0)),
    Peer("tensor-raw", "per tensor, not pooled, within 4", _grouped(Partition.by_tensor, pooled=False)),
    Peer("layer-2", "per layer, pooled, within 2", _grouped(Partition.by_layer, bound=2.0)),
    Peer("kind-2", "weights and biases, pooled, within 2", _grouped(Partition.by_kind, bound=2.0)),
)


def measure(plan: Plan, command: str) -> Results:
    """All runs of the networks."""
    seeds = {key: min(plan.seeds, SEEDS.get(key, plan.seeds)) for key in NETWORKS}
    with tqdm(total=sum(seeds.values()), desc="groups", unit="race", disable=None) as bar:
        networks = {}
        for key, problem in NETWORKS.items():
            races = [_race(problem, plan, seed) for seed in range(seeds[key])]
            bar.update(seeds[key])
            one = {
                "title": problem.title,
                "seeds": seeds[key],
                "runs": {p.name: [run[p.name] for run in races] for p in PEERS},
            }
            ratios = {p.name: {str(b): round_numbers(ratio(one, p.name, b)) for b in BUDGETS} for p in PEERS[1:]}
            networks[key] = one | {"ratios": ratios}
    return {"experiment": "groups", "title": TITLE, "seeds": plan.seeds, "networks": networks} | facts(command)


def _race(problem: Problem, plan: Plan, seed: int) -> Results:
    entries, epochs = {peer.name: (peer, None) for peer in PEERS}, plan.epochs(problem)
    key = {"problem": problem.title, "method": "groups", "entries": sorted(entries), "seed": seed, "epochs": epochs}
    compute = lambda: race(problem, problem.data(), entries, seed, epochs)  # noqa: E731
    losses: Results = load_or_compute(plan.place("groups") / "runs", key, compute)
    return losses


def ratio(one: Results, name: str, budget: int) -> float:
    """The averaged loss of a method over that of the one rate."""
    theirs, ours = (
        [run | {"train_losses": run["averaged_losses"]} for run in one["runs"][n]] for n in (name, OURS.name)
    )
    return mean_loss(theirs, budget) / mean_loss(ours, budget)


def table(numbers: Results) -> dict[str, dict[int, list[float]]]:
    """For each way of grouping and each budget the ratios, by network."""
    networks = numbers["networks"].values()
    return {p.name: {b: [one["ratios"][p.name][str(b)] for one in networks] for b in BUDGETS} for p in PEERS[1:]}


def report(numbers: Results) -> str:
    """The loss over that of the one rate, after 3 / 10 epochs."""
    entries, titles = table(numbers), {peer.name: peer.title for peer in PEERS}
    head = ["loss over one rate's, after 3 / 10 epochs", *numbers["networks"], "geometric mean"]
    rows = []
    for name, ratios in entries.items():
        pairs = [
            *zip(*(ratios[budget] for budget in BUDGETS), strict=True),
            tuple(geometric(ratios[b]) for b in BUDGETS),
        ]
        rows.append([titles[name], *(f"{soon:.2f} / {late:.2f}" for soon, late in pairs)])
    fewer = [f"{key} {one['seeds']}" for key, one in numbers["networks"].items() if one["seeds"] < numbers["seeds"]]
    note = f"\n\n{numbers['seeds']} seeds each; {', '.join(fewer)}." if fewer else ""
    return markdown(head, rows) + note


def figures(numbers: Results) -> dict[str, plots.Figure]:
    """A row for each way of grouping, a mark for each network."""
    shown, entries = plots.new_figure(columns=2, width=11.0, height=3.4), table(numbers)
    for ax, budget in zip(shown.axes, BUDGETS, strict=True):
        for i, ratios in enumerate(entries.values()):
            ax.plot(ratios[budget], [i] * len(ratios[budget]), "o", color="C0", alpha=0.7)
            ax.plot([geometric(ratios[budget])], [i], "|", color="black", markersize=18)
        ax.axvline(1.0, color="gray", linewidth=1)
        ax.set(xscale="log", xlabel="loss over that of one rate", title=f"after {budget} epochs")
        low, high = ax.get_xlim()
        ax.set_xticks([t for t in (0.25, 0.5, 1, 2, 4, 8, 16) if low <= t <= high], minor=False)
        ax.xaxis.set_major_formatter("{x:g}")
        ax.minorticks_off()
        ax.set_yticks(range(len(entries)), [peer.title for peer in PEERS[1:]])
        ax.invert_yaxis()
    return {"groups": shown}


EXPERIMENT = Experiment(
    name="groups",
    title=TITLE,
    minutes=22,
    measure=measure,
    report=report,
    figures=figures,
    pictures=("groups",),
    unread=("runs",),
)
