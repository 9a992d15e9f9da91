"""Twelve more networks, written down when the last change of the policy had been made, and before the first of them was run.

That change was made for two networks of ``fresh.py``, which are fresh no more. These differ in what trains: gates, group norm,
separable and causal convolutions, dense shortcuts, a plain recurrent layer; counts, two-valued pixels, rare classes, smoothed labels,
small batches.
"""

from dataclasses import replace
from functools import cache

import torch
from torch import Tensor, nn

from gnewton import datasets, models
from gnewton.datasets import Dataset
from gnewton.experiments.fresh import Recurrent, table, ten_epochs, text
from gnewton.experiments.networks import flat
from gnewton.experiments.unseen import pictures, rows, taught


@cache
def wine() -> Dataset:
    """178 wines, 13 numbers each, three growers."""
    return table("load_wine")


@cache
def counts() -> Dataset:
    """Counts whose rate is e to the targets of ``taught``."""
    data, draw = taught(), torch.Generator().manual_seed(0)
    drawn = [torch.poisson(y.exp(), generator=draw) for y in (data.train_y, data.test_y)]
    source = data.source + " Counts drawn at the rate e^y."
    return replace(data, train_y=drawn[0], test_y=drawn[1], name="counts", source=source)


@cache
def inked() -> Dataset:
    """The 8 x 8 digits, whose pixels are to be told: ink or none."""
    data = datasets.digits()
    ink = [(x > x.mean()).float() for x in (data.train_x, data.test_x)]
    return replace(data, train_y=ink[0], test_y=ink[1])


@cache
def rare() -> Dataset:
    """The 8 x 8 digits with a tenth of those below five."""
    data = datasets.digits()
    keep = (data.train_y >= 5) | (torch.arange(len(data.train_y)) % 10 == 0)
    return replace(data, train_x=data.train_x[keep], train_y=data.train_y[keep])


class Dense(nn.Module):
    """Each layer sees the input and the outputs of all layers before it.

    >>> Dense(64, 32)(torch.zeros(2, 64)).shape
    torch.Size([2, 10])
    """

    def __init__(self, inputs: int, width: int, layers: int = 4) -> None:
        super().__init__()
        self.hidden = nn.ModuleList(nn.Linear(inputs + i * width, width) for i in range(layers))
        self.head = nn.Linear(inputs + layers * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.hidden:
            x = torch.cat([x, layer(x).relu()], 1)
        out: Tensor = self.head(x)
        return out


class Causal(nn.Module):
    """Characters (batch, length) to scores of the next one (batch, 96, length), by convolutions over those before it.

    >>> Causal(16)(torch.zeros(2, 32, dtype=torch.long)).shape
    torch.Size([2, 96, 32])
    """

    def __init__(self, width: int, layers: int = 3) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(96, width), nn.Conv1d(width, 96, 1)
        self.layers = nn.ModuleList(nn.Conv1d(width, width, 3, dilation=2**i) for i in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        states = self.embed(x).transpose(1, 2)
        for i, layer in enumerate(self.layers):
            states = states + layer(nn.functional.pad(states, (2 * 2**i, 0))).relu()
        out: Tensor = self.head(states)
        return out


class Bag(nn.Module):
    """Characters (batch, length) to scores of the last one's successor (batch, 96), from the mean of their embeddings.

    >>> Bag(16)(torch.zeros(2, 32, dtype=torch.long)).shape
    torch.Size([2, 96])
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bag, self.last = nn.EmbeddingBag(96, width), nn.Embedding(96, width)
        self.head = nn.Sequential(nn.Linear(2 * width, 64), nn.Tanh(), nn.Linear(64, 96))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.cat([self.bag(x), self.last(x[:, -1])], 1))
        return out


@cache
def endings() -> Dataset:
    """The stretches of ``text`` with the one character after their end as the target."""
    data = text()
    return replace(data, train_y=data.train_y[:, -1], test_y=data.test_y[:, -1])


def _recurrent() -> nn.Module:
    return Recurrent(nn.RNN(8, 64, batch_first=True), 64, 10)


def _group_norm() -> nn.Module:
    layers: list[nn.Module] = []
    for before, after, stride in ((1, 16, 1), (16, 32, 2), (32, 32, 2)):
        layers += [nn.Conv2d(before, after, 3, stride=stride, padding=1), nn.GroupNorm(4, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 10))


def _separable() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU6()]
    for before, after in ((16, 32), (32, 32)):
        layers += [nn.Conv2d(before, before, 3, stride=2, padding=1, groups=before), nn.Conv2d(before, after, 1)]
        layers += [nn.BatchNorm2d(after), nn.ReLU6()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def _gated() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 128), nn.GLU(), nn.Linear(64, 128), nn.GLU(), nn.Linear(64, 10))


LATER = {
    problem.name: problem
    for problem in (
        ten_epochs(
            "wine",
            "perceptron 13-32-32-3, softplus, a table",
            lambda: models.perceptron([13, 32, 32, 3], "softplus"),
            wine,
            batch=32,
        ),
        ten_epochs("recurrent", "plain recurrent layer of 64, eight rows of a digit", _recurrent, rows),
        ten_epochs("group-norm", "3 convolutions, group norm, ReLU", _group_norm, pictures),
        ten_epochs("separable", "separable convolutions, batch norm, ReLU6", _separable, pictures),
        ten_epochs("dense", "4 layers of 32, dense shortcuts, ReLU", lambda: Dense(64, 32), datasets.digits),
        ten_epochs("causal", "3 causal convolutions of 48, next character", lambda: Causal(48), text),
        ten_epochs("bag", "a bag of 32 characters, tanh, the next one", lambda: Bag(32), endings),
        ten_epochs("gated", "2 gated layers of 64, batches of 25", _gated, datasets.digits, batch=25),
        ten_epochs(
            "counts",
            "perceptron 20-64-64-1, tanh, counts",
            lambda: models.perceptron([20, 64, 64, 1]),
            counts,
            nn.PoissonNLLLoss(full=True),
        ),
        ten_epochs(
            "inked",
            "auto-encoder 64-32-8-32-64, ELU, two-valued pixels",
            lambda: models.perceptron([64, 32, 8, 32, 64], "elu"),
            inked,
            nn.BCEWithLogitsLoss(),
        ),
        ten_epochs(
            "rare",
            "perceptron 64-64-64-10, sigmoid, rare classes",
            lambda: models.perceptron([64, 64, 64, 10], "sigmoid"),
            rare,
        ),
        ten_epochs(
            "smoothed",
            "4 hidden layers of 96, ReLU, smoothed labels",
            lambda: models.perceptron([784, 96, 96, 96, 96, 10], "relu"),
            flat,
            nn.CrossEntropyLoss(label_smoothing=0.1),
        ),
    )
}
