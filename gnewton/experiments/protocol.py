"""Tune, then train from several seeds: the same budget for every method. The package's docstring states the rules."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gnewton.datasets import Dataset
from gnewton.experiments.methods import METHODS, PERIOD, Method, Settings
from gnewton.experiments.networks import Problem
from gnewton.experiments.runs import Run, finite, load_or_compute, network, train
from gnewton.partition import Partition

HOLD_OUT = 0.2
TUNING_SEEDS = 3
FINALISTS = 3


@dataclass(frozen=True)
class Plan:
    """Where the results lie, and how much is run: quick takes one epoch and the first two settings, to see that it works."""

    folder: Path
    seeds: int = 5
    quick: bool = False

    def place(self, name: str) -> Path:
        """The folder of an experiment; quick runs have their own, as they must not replace numbers taken with care."""
        return self.folder / (f"{name}-quick" if self.quick else name)

    def epochs(self, problem: Problem) -> int:
        return 1 if self.quick else problem.epochs

    def settings(self, method: Method) -> tuple[Settings, ...]:
        return method.settings[:2] if self.quick else method.settings


def compare(problem: Problem, plan: Plan, methods: Iterable[Method] = METHODS.values()) -> dict[str, Any]:
    """The numbers of one experiment: protocol, and for each method its tuning, its choice and its runs.

    What an earlier call finished is read, not run again.
    """
    methods, data = list(methods), problem.data()
    ready = [method for method in methods if method.installed]
    total = sum(_tuning_runs(len(plan.settings(method))) + plan.seeds for method in ready)
    with tqdm(total=total, desc=problem.name, unit="run", disable=None) as bar:
        race = _Race(problem, plan, data, data.hold_out(HOLD_OUT, seed=0), bar.update)
        results = {method.name: race.enter(method) if method.installed else _absent(method) for method in methods}
    return {
        "experiment": problem.name,
        "title": problem.title,
        "protocol": _facts(problem, plan, data, methods),
        "methods": results,
    }


@dataclass(frozen=True)
class _Race:
    problem: Problem
    plan: Plan
    data: Dataset
    validation: Dataset
    advance: Callable[[], Any]

    def enter(self, method: Method) -> dict[str, Any]:
        settings = self.plan.settings(method)
        losses = self.tune(method, settings) if len(settings) > 1 else [[]]
        best = choose(losses)
        return {
            "title": method.title,
            "installed": True,
            "settings": settings[best],
            "at_edge": at_edge(settings, best),
            "tuning": [
                {"settings": one, "validation_losses": [finite(loss) for loss in row]}
                for one, row in zip(settings, losses, strict=True)
                if row
            ],
            "runs": [{"seed": seed} | self.run(method, settings[best], seed) for seed in range(self.plan.seeds)],
        }

    def tune(self, method: Method, settings: tuple[Settings, ...]) -> list[list[float]]:
        """Losses on the held-out part, one row for each setting: of seed 0, and of all tuning seeds for the finalists."""
        losses = [[self.tuning_loss(method, one, 0)] for one in settings]
        finalists = 0
        for i in sorted(range(len(settings)), key=lambda i: losses[i]):
            # A finalist that diverges from another seed gives its place to the next.
            while len(losses[i]) < TUNING_SEEDS and math.isfinite(losses[i][-1]):
                losses[i].append(self.tuning_loss(method, settings[i], len(losses[i])))
            finalists += math.isfinite(losses[i][-1])
            if finalists == FINALISTS:
                break
        return losses

    def tuning_loss(self, method: Method, settings: Settings, seed: int) -> float:
        return validation_loss(self._load_or_run("tuning", method, settings, seed, self.validation))

    def run(self, method: Method, settings: Settings, seed: int) -> Run:
        return self._load_or_run("test", method, settings, seed, self.data)

    def _load_or_run(self, part: str, method: Method, settings: Settings, seed: int, data: Dataset) -> Run:
        epochs = self.plan.epochs(self.problem)
        key = {
            "problem": self.problem.title,
            "data": repr(data),
            "part": part,
            "method": method.name,
            "settings": settings,
            "seed": seed,
            "epochs": epochs,
            "batch": self.problem.batch,
            "curvature": self.problem.curvature,
        }

        def compute() -> Run:
            return train(self.problem, data, method, settings, seed, epochs, thorough=part == "test")

        run = load_or_compute(self.plan.place(self.problem.name) / "runs", key, compute)
        self.advance()
        return run


def choose(losses: Sequence[Sequence[float]]) -> int:
    """The setting whose worst tuning seed is best, among those that ran from the most seeds.

    >>> choose([[0.1, 0.9, 0.2], [0.3, 0.3, 0.4], [0.2, float("inf")], [0.25]])
    1
    """
    most = max(len(row) for row in losses)
    worst = [max(row, default=0.0) if len(row) == most else math.inf for row in losses]
    return min(range(len(losses)), key=lambda i: (worst[i], *losses[i][:1]))


def validation_loss(run: Run) -> float:
    """What the tuning minimises: the loss on the held-out part at the end, infinite for a run that diverged."""
    last = _last(run["test_losses"])
    return float("inf") if run["diverged"] or last is None else last


def at_edge(settings: tuple[Settings, ...], best: int) -> bool:
    """Whether a chosen number is the smallest or largest of three or more tried: beyond it might be a better one.

    >>> at_edge(({"lr": 0.1}, {"lr": 1.0}, {"lr": 10.0}), 2), at_edge(({"lr": 0.1}, {"lr": 1.0}, {"lr": 10.0}), 1)
    (True, False)
    """
    tried = {
        name: {one[name] for one in settings} for name, value in settings[best].items() if isinstance(value, float)
    }
    return any(len(values) > 2 and settings[best][name] in (min(values), max(values)) for name, values in tried.items())


def _tuning_runs(settings: int) -> int:
    return settings + min(settings, FINALISTS) * (TUNING_SEEDS - 1) if settings > 1 else 0


def _last(values: list[Any]) -> Any:
    return values[-1] if values else None


def _absent(method: Method) -> dict[str, Any]:
    return {"title": method.title, "installed": False, "needs": method.needs, "tuning": [], "runs": []}


def _facts(problem: Problem, plan: Plan, data: Dataset, methods: list[Method]) -> dict[str, Any]:
    model = network(problem, 0)
    steps = plan.epochs(problem) * len(data.batches(problem.batch))
    return {
        "quick": plan.quick,
        "seeds": plan.seeds,
        "epochs": plan.epochs(problem),
        "steps": steps,
        "batch": problem.batch,
        "curvature_batch": problem.curvature,
        "curvature_period": PERIOD,
        "settings_tried": {method.name: len(plan.settings(method)) for method in methods},
        "held_out_for_tuning": HOLD_OUT,
        "tuning_seeds": TUNING_SEEDS,
        "finalists": FINALISTS,
        "training_samples": len(data.train_x),
        "test_samples": len(data.test_x),
        "data": data.source,
        "parameters": sum(p.numel() for p in model.parameters()),
        "groups": len(Partition.by_tensor(model)),
    }
