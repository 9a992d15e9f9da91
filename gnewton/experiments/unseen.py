"""Six further networks on which nothing was chosen: fixed, with their data, before the first of them was run.

The one setting of ``cubic="adaptive"`` was found on the six of ``networks.py``, with their losses in sight. What it is worth
elsewhere can only be seen elsewhere: other activations, norms, shortcuts, attention, a regression. Their layers are
initialized as torch does it.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor, nn

from gnewton import datasets, models
from gnewton.datasets import Dataset
from gnewton.experiments import untuned
from gnewton.experiments.experiment import Experiment, Results
from gnewton.experiments.networks import Problem, flat
from gnewton.experiments.protocol import Plan
from gnewton.experiments.report import facts

Build = Callable[[], nn.Module]


@cache
def pictures() -> Dataset:
    """The 8 x 8 digits as images of 1 x 8 x 8."""
    data = datasets.digits()
    return replace(data, train_x=data.train_x.reshape(-1, 1, 8, 8), test_x=data.test_x.reshape(-1, 1, 8, 8))


@cache
def rows() -> Dataset:
    """The 8 x 8 digits as sequences of eight rows."""
    data = datasets.digits()
    return replace(data, train_x=data.train_x.reshape(-1, 8, 8), test_x=data.test_x.reshape(-1, 8, 8))


@cache
def taught() -> Dataset:
    """A noisy regression from 20 numbers to one."""
    return datasets.teacher_student((20, 30, 1), samples=1500, test_samples=500, noise=0.1)


class Shortcut(nn.Module):
    """act(x + f(x)): two convolutions with batch norm beside the way of the input.

    >>> Shortcut(4)(torch.zeros(2, 4, 8, 8)).shape
    torch.Size([2, 4, 8, 8])
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.activation = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.activation(x + self.body(x))
        return out


class Attention(nn.Module):
    """Sequences (batch, length, inputs) with learned positions through a transformer's encoder; their mean is classified.

    >>> Attention(inputs=8, length=8, width=16)(torch.zeros(2, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self, inputs: int, length: int, width: int, heads: int = 4, layers: int = 2, classes: int = 10
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(inputs, width)
        self.position = nn.Parameter(torch.randn(length, width) / width**0.5)
        layer = nn.TransformerEncoderLayer(width, heads, 2 * width, dropout=0.0, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.encoder(self.embed(x) + self.position).mean(1))
        return out


def _relu() -> nn.Module:
    return models.perceptron([784, 128, 64, 10], "relu")


def _layer_norm() -> nn.Module:
    hidden = [layer for n in (64, 96, 96) for layer in (nn.Linear(n, 96), nn.LayerNorm(96), nn.GELU())]
    return nn.Sequential(*hidden, nn.Linear(96, 10))


def _max_pooling() -> nn.Module:
    features = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*features, nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10))


def _residual() -> nn.Module:
    stem = [nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.SiLU()]
    blocks = [Shortcut(16) for _ in range(3)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


def _attention() -> nn.Module:
    return Attention(inputs=8, length=8, width=32)


def _regression() -> nn.Module:
    return models.perceptron([20, 64, 64, 1])


def seed(build: Build) -> Callable[[torch.Generator], nn.Module]:
    """torch's own initialization, from a generator; torch's global random state does not move."""

    def network(generator: torch.Generator) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
            return build()

    return network


def _unseen(name: str, title: str, build: Build, data: Callable[[], Dataset], minutes: float) -> Problem:
    loss = nn.MSELoss() if data is taught else nn.CrossEntropyLoss()
    sizes = {"epochs": 10, "curvature": 300}
    return Problem(name, title, seed(build), data, loss, minutes=minutes, plateau=False, **sizes)


UNSEEN = {
    problem.name: problem
    for problem in (
        _unseen("relu", "perceptron 784-128-64-10, ReLU", _relu, flat, 0.6),
        _unseen("layer-norm", "3 hidden layers of 96, layer norm, GELU", _layer_norm, datasets.digits, 0.3),
        _unseen("pooled", "2 convolutions, ReLU, max pooling", _max_pooling, pictures, 1),
        _unseen("residual", "3 residual blocks, batch norm, SiLU", _residual, pictures, 7),
        _unseen("attention", "transformer, 2 layers of width 32", _attention, rows, 3),
        _unseen("regression", "perceptron 20-64-64-1, tanh, squared error", _regression, taught, 0.1),
    )
}

TITLE = "the same setting on six networks on which nothing was chosen"


def measure(plan: Plan, command: str) -> Results:
    """All runs of the six networks."""
    return untuned.trials("unseen", TITLE, UNSEEN, plan) | facts(command)


EXPERIMENT = Experiment(
    name="unseen",
    title=TITLE,
    minutes=sum(problem.minutes for problem in UNSEEN.values()),
    measure=measure,
    report=untuned.report,
    figures=untuned.figures,
    pictures=("unseen",),
    unread=untuned.UNREAD,
)
