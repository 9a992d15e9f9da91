"""A race that takes a second: a small teacher-student regression, or digits, two methods, few steps."""

from pathlib import Path

import torch
from torch import nn

from gnewton import datasets, models
from gnewton.experiments.methods import METHODS, Method
from gnewton.experiments.networks import Problem

RESULTS = Path(__file__).parents[2] / "results"
TINY = Problem(
    "tiny",
    "perceptron 3-4-1, tanh",
    lambda generator: models.perceptron([3, 4, 1], "tanh", generator=generator),
    lambda: datasets.teacher_student((3, 4, 1), samples=60, test_samples=20, seed=100),
    nn.MSELoss(),
    epochs=2,
    minutes=0,
    batch=16,
    curvature=32,
)


def digits() -> Problem:
    """Classes, so that there are accuracies."""
    return Problem(
        "digits",
        "perceptron 64-8-10, tanh",
        lambda generator: models.perceptron([64, 8, 10], "tanh", generator=generator),
        datasets.digits,
        nn.CrossEntropyLoss(),
        epochs=1,
        minutes=0,
    )


def method(name: str, *settings: dict[str, float]) -> Method:
    """A method of the table with other settings."""
    known = METHODS[name]
    return Method(known.name, known.title, settings or known.settings, known.build, known.needs)


def missing(name: str) -> Method:
    """A method whose package is not there."""
    return Method(name, name.upper(), ({"lr": 0.1},) * 6, METHODS["sgd"].build, needs="a_package_that_is_not_there")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
