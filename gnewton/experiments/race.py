"""The races: eight methods on one network, tuned alike, with equal budgets. ``protocol.py`` is how they are run."""

from collections.abc import Iterable

from gnewton.experiments.experiment import Experiment, Results
from gnewton.experiments.methods import METHODS, Method
from gnewton.experiments.networks import PROBLEMS, Problem
from gnewton.experiments.pictures import figure
from gnewton.experiments.protocol import compare
from gnewton.experiments.report import results, table, verdict

UNREAD = ("epoch_steps", "train_accuracies", "reason", "notes")


def race(problem: Problem, methods: Iterable[Method] = tuple(METHODS.values())) -> Experiment:
    """The race on one network."""
    return Experiment(
        name=problem.name,
        title=problem.title,
        minutes=problem.minutes,
        measure=lambda plan, command: results(compare(problem, plan, methods), command),
        report=report,
        figures=lambda numbers: {problem.name: figure(numbers)},
        pictures=(problem.name,),
        unread=UNREAD,
    )


def report(numbers: Results) -> str:
    """The table, and who wins."""
    return f"{table(numbers)}\n\n{verdict(numbers)}"


EXPERIMENTS = tuple(map(race, PROBLEMS.values()))
