"""Do the cross-group terms of H-bar matter? Full H-bar, its diagonal and S = 1, on three networks.

Each twice: with rates that are kept for ten steps, from the runs of the experiments of these networks, and with rates
that are computed anew at every step, tuned and run by the same protocol. What the age of the rates does stands apart so.
"""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from gnewton import plots
from gnewton.datasets import Dataset
from gnewton.direction import gradient
from gnewton.experiments.experiment import Experiment, Results
from gnewton.experiments.methods import METHODS, Method, Settings
from gnewton.experiments.networks import PROBLEMS, Problem
from gnewton.experiments.pictures import name_curves, panels
from gnewton.experiments.protocol import Plan, compare
from gnewton.experiments.race import UNREAD
from gnewton.experiments.report import facts, markdown, results, table, verdict
from gnewton.experiments.runs import Run, load_or_compute, network, train
from gnewton.partition import Partition
from gnewton.summary import summarize

TITLE = "full H-bar, its diagonal, one group (S = 1) on mlp, deep and lenet; H-bar of deep as a heat map"
NETWORKS = ("mlp", "deep", "lenet")
_KEPT = ("grouped-newton", "diagonal", "one-group")
_DISTANCES = ((1, 1), (2, 5), (6, 10), (11, 20))


def fresh(method: Method) -> Method:
    """The method with new learning rates at every step.

    >>> fresh(METHODS["diagonal"]).name, fresh(METHODS["diagonal"]).settings[0]
    ('diagonal-fresh', {'lr': 0.3, 'cubic': 1.0, 'period': 1})
    """
    settings = tuple(one | {"period": 1} for one in method.settings)
    return replace(method, name=f"{method.name}-fresh", title=f"{method.title}, fresh rates", settings=settings)


def measure(plan: Plan, command: str) -> Results:
    """The methods on the three networks, and H-bar of ``deep`` before and after training.

    Tuned and run as in the experiments of these networks, whose runs are read where they are there.
    """
    kept_rates = [METHODS[name] for name in _KEPT]
    methods = [*kept_rates, *map(fresh, kept_rates)]
    compared = {name: compare(PROBLEMS[name], plan, methods) for name in NETWORKS}
    settings = compared["deep"]["methods"]["grouped-newton"]["settings"]
    return {
        "experiment": "interaction",
        "title": TITLE,
        **facts(command),
        "networks": {name: results(one, command) for name, one in compared.items()},
        "hessians": _load_or_compute(PROBLEMS["deep"], plan, settings),
    }


def _load_or_compute(problem: Problem, plan: Plan, settings: Settings) -> Run:
    epochs = plan.epochs(problem)
    key = {"problem": problem.title, "method": "hessians", "seed": 0, "settings": settings, "epochs": epochs}
    return load_or_compute(
        plan.place("interaction") / "runs", key, lambda: hessians(problem, problem.data(), settings, epochs)
    )


def hessians(problem: Problem, data: Dataset, settings: Settings, epochs: int) -> Run:
    """H-bar, normalised, along the gradient of the first 500 training samples, before and after training from seed 0.

    names: the S groups; layers: the layer of each; before, after: H_st / sqrt |H_ss H_tt| (S, S), three digits.
    """
    model = network(problem, 0)
    before, partition = _hessian(model, problem, data), Partition.by_tensor(model)
    train(problem, data, METHODS["grouped-newton"], settings, 0, epochs, thorough=False, model=model)
    layers = [partition.members(s)[0].rsplit(".", 1)[0] for s in range(len(partition))]
    numbers = {layer: index for index, layer in enumerate(dict.fromkeys(layers))}
    return {
        "names": list(partition.names),
        "layers": [numbers[layer] for layer in layers],
        "before": normalize(before),
        "after": normalize(_hessian(model, problem, data)),
    }


def _hessian(model: nn.Module, problem: Problem, data: Dataset) -> NDArray[np.float64]:
    x, y = data.train_x[: problem.curvature], data.train_y[: problem.curvature]
    partition = Partition.by_tensor(model)

    def loss() -> torch.Tensor:
        value: torch.Tensor = problem.loss(model(x), y)
        return value

    return plots.array(summarize(loss, partition, gradient(loss, partition), order=2).hessian)


def normalize(hessian: NDArray[np.float64]) -> list[list[float | None]]:
    """H_st / sqrt |H_ss H_tt|, which no rescaling of a group changes; None where a group has no curvature of its own.

    >>> normalize(np.array([[4.0, 3.0], [3.0, -9.0]]))
    [[1.0, 0.5], [0.5, -1.0]]
    """
    root = np.sqrt(np.abs(np.diagonal(hessian)))
    root[root == 0] = np.nan
    scaled = hessian / root / root[:, None]
    return [[float(f"{value:.3g}") if np.isfinite(value) else None for value in row] for row in scaled.tolist()]


def report(numbers: Results) -> str:
    """Tables and verdicts of the three networks, then how far across the layers of ``deep`` the groups interact."""
    parts = []
    for name, one in numbers["networks"].items():
        parts += [f"## {name}: {one['title']}", table(one), verdict(one)]
    return "\n\n".join([*parts, "## Long-range terms of deep", long_range_table(numbers["hessians"])])


def long_range_table(measured: Run) -> str:
    """The median size of H_st / sqrt |H_ss H_tt| over pairs of groups in layers 1, 2 to 5, ... apart."""
    layers = np.array(measured["layers"])
    apart = np.abs(layers[:, None] - layers)
    matrices = [np.abs(np.array(measured[when], float)) for when in ("before", "after")]
    body = []
    for low, high in _DISTANCES:
        pairs = (apart >= low) & (apart <= high)
        body.append([f"{low}" if low == high else f"{low} to {high}", *(_median(sizes[pairs]) for sizes in matrices)])
    return markdown(["layers apart", "median size at initialization", "after training"], body)


def _median(sizes: NDArray[np.float64]) -> str:
    known = sizes[np.isfinite(sizes)]
    return f"{np.median(known):.2g}" if known.size else "-"


def figures(numbers: Results) -> dict[str, plots.Figure]:
    """The curves, one row for each network, and the two heat maps."""
    curves = plots.new_figure(rows=len(numbers["networks"]), columns=2, width=11.0)
    for row, one in enumerate(numbers["networks"].values()):
        panels(curves.axes[2 * row : 2 * row + 2], one)
    name_curves(curves)
    maps, measured = plots.new_figure(columns=2, width=13.0, height=5.6), numbers["hessians"]
    for ax, when, title in zip(
        maps.axes[:2], ("before", "after"), ("at initialization", "after training"), strict=True
    ):
        # Already normalised: doing so again changes nothing.
        plots.long_range(np.array(measured[when], float), measured["names"], ax)
        ax.set_title(title)
    return {"interaction": curves, "interaction-hessians": maps}


EXPERIMENT = Experiment(
    name="interaction",
    title=TITLE,
    minutes=60,
    measure=measure,
    report=report,
    figures=figures,
    pictures=("interaction", "interaction-hessians"),
    after=NETWORKS,
    unread=UNREAD,
)
