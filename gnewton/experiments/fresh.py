"""Twelve further networks, written down before the first of them was run, for a policy that was found with the first twelve in sight.

Recurrent, on text, with dropout, with a million parameters, on tables, with outliers, in other units. What is short enough for one
core and needs no download: the text is the manual that Python carries (``pydoc_data.topics``), the tables are scikit-learn's. Two of
them led to the last change of the policy, which ``later.py`` judges.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from gnewton import datasets, models
from gnewton.datasets import Dataset
from gnewton.experiments.networks import Problem, flat
from gnewton.experiments.unseen import pictures, rows, seed, taught

_LENGTH, _SEQUENCES = 32, 2000


@cache
def text() -> Dataset:
    """Stretches of 32 characters of Python's manual, as numbers below 96; the target of each is the character after it."""
    from pydoc_data.topics import topics

    letters = " ".join(topics[name] for name in sorted(topics))
    codes = torch.tensor([min(max(ord(c) - 32, 0), 95) for c in letters[: 3 * _SEQUENCES * _LENGTH]])
    starts = torch.randperm(len(codes) - _LENGTH - 1, generator=torch.Generator().manual_seed(0))
    stretches = torch.stack([codes[i : i + _LENGTH + 1] for i in starts[: _SEQUENCES + 500].tolist()])
    x, y = stretches[:, :-1], stretches[:, 1:]
    source = "Stretches of 32 characters of the manual in Python's pydoc_data.topics."
    return Dataset(x[:_SEQUENCES], y[:_SEQUENCES], x[_SEQUENCES:], y[_SEQUENCES:], "text", source)


def table(loader: str, seed: int = 0) -> Dataset:
    """A table of scikit-learn, every column with mean 0 and deviation 1; numbers as targets likewise."""
    from sklearn import datasets as tables

    x, y = (torch.from_numpy(part) for part in getattr(tables, loader)(return_X_y=True))
    x = ((x - x.mean(0)) / x.std(0)).float()
    if y.is_floating_point():
        y = ((y - y.mean()) / y.std()).float()[:, None]
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    x, y, cut = x[order], y[order], len(x) * 4 // 5
    return Dataset(x[:cut], y[:cut], x[cut:], y[cut:], loader, f"scikit-learn's {loader}, columns standardized.")


@cache
def cancer() -> Dataset:
    """569 tumours, 30 numbers each, two classes."""
    return table("load_breast_cancer")


@cache
def diabetes() -> Dataset:
    """442 patients, 10 numbers each, and how the disease went on."""
    return table("load_diabetes")


@cache
def outliers() -> Dataset:
    """The noisy regression of ``taught``, in which every twentieth target is twenty times as large."""
    data = taught()
    y = data.train_y.clone()
    y[::20] *= 20
    return replace(data, train_y=y, name="outliers", source=data.source + " Every twentieth target times 20.")


@cache
def tenfold() -> Dataset:
    """The 8 x 8 digits in another unit."""
    data = datasets.digits()
    return replace(data, train_x=10 * data.train_x, test_x=10 * data.test_x)


@cache
def copied() -> Dataset:
    """The 8 x 8 digits as their own targets."""
    data = pictures()
    return replace(data, train_y=data.train_x, test_y=data.test_x)


class Recurrent(nn.Module):
    """The state of a recurrent layer after the last entry of a sequence, classified.

    >>> Recurrent(nn.GRU(8, 5, batch_first=True), 5, 10)(torch.zeros(2, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(self, layer: nn.RNNBase, width: int, classes: int) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.layer(x)[0][:, -1])
        return out


class NextCharacter(nn.Module):
    """Characters (batch, length) to scores of the next one (batch, 96, length), by a layer that looks back.

    >>> NextCharacter(LookBack(16), 16)(torch.zeros(2, 32, dtype=torch.long)).shape
    torch.Size([2, 96, 32])
    """

    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.embed, self.layer, self.head = nn.Embedding(96, width), layer, nn.Linear(width, 96)

    def forward(self, x: Tensor) -> Tensor:
        states: Any = self.layer(self.embed(x))
        out: Tensor = self.head(states[0] if isinstance(states, tuple) else states)
        return out.transpose(1, 2)


class LookBack(nn.Module):
    """A transformer's encoder, two layers, in which every entry sees those before it alone.

    >>> LookBack(16)(torch.zeros(2, 32, 16)).shape
    torch.Size([2, 32, 16])
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(_LENGTH, width) / width**0.5)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.1, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(_LENGTH))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.encoder(x + self.position, mask=self.mask, is_causal=True)
        return out


class Mixer(nn.Module):
    """Rows and columns of a picture (batch, 8, 8) mixed in turn, beside shortcuts.

    >>> Mixer(8, 32)(torch.zeros(2, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(self, length: int, width: int, blocks: int = 3) -> None:
        super().__init__()
        self.embed = nn.Linear(length, width)
        self.rows = nn.ModuleList(_mixing(length) for _ in range(blocks))
        self.columns = nn.ModuleList(_mixing(width) for _ in range(blocks))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * blocks))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for i, (row, column) in enumerate(zip(self.rows, self.columns, strict=True)):
            x = x + row(self.norms[2 * i](x).transpose(1, 2)).transpose(1, 2)
            x = x + column(self.norms[2 * i + 1](x))
        out: Tensor = self.head(x.mean(1))
        return out


def _mixing(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))


def _gru() -> nn.Module:
    return Recurrent(nn.GRU(8, 48, batch_first=True), 48, 10)


def _lstm_text() -> nn.Module:
    return NextCharacter(nn.LSTM(64, 64, batch_first=True), 64)


def _transformer() -> nn.Module:
    return NextCharacter(LookBack(48), 48)


def _million() -> nn.Module:
    first = [nn.Conv2d(1, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU()]
    second = [nn.Conv2d(64, 128, 3, padding=1), nn.BatchNorm2d(128), nn.ReLU(), nn.MaxPool2d(2)]
    third = [nn.Conv2d(128, 256, 3, padding=1), nn.BatchNorm2d(256), nn.ReLU()]
    return nn.Sequential(*first, *second, *third, nn.Flatten(), nn.Linear(1024, 600), nn.ReLU(), nn.Linear(600, 10))


def _dropout() -> nn.Module:
    hidden = [layer for n in (64, 128) for layer in (nn.Linear(n, 128), nn.ReLU(), nn.Dropout(0.2))]
    return nn.Sequential(*hidden, nn.Linear(128, 10))


def _copying() -> nn.Module:
    inward = [nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.GELU(), nn.Conv2d(16, 8, 3, stride=2, padding=1), nn.GELU()]
    outward = [nn.ConvTranspose2d(8, 16, 2, stride=2), nn.GELU(), nn.ConvTranspose2d(16, 1, 2, stride=2)]
    return nn.Sequential(*inward, *outward)


def ten_epochs(
    name: str,
    title: str,
    build: Callable[[], nn.Module],
    data: Callable[[], Dataset],
    loss: nn.Module | None = None,
    batch: int = 100,
) -> Problem:
    loss = loss or nn.CrossEntropyLoss()
    return Problem(name, title, seed(build), data, loss, epochs=10, minutes=1, batch=batch, plateau=False)


FRESH = {
    problem.name: problem
    for problem in (
        ten_epochs("gru", "GRU of 48, eight rows of a digit", _gru, rows),
        ten_epochs("lstm-text", "LSTM of 64, next character", _lstm_text, text),
        ten_epochs("transformer-text", "transformer, 2 layers of 48, dropout 0.1, next character", _transformer, text),
        ten_epochs("million", "3 convolutions, batch norm, a million parameters", _million, pictures),
        ten_epochs(
            "cancer",
            "perceptron 30-64-64-2, ReLU, a table",
            lambda: models.perceptron([30, 64, 64, 2], "relu"),
            cancer,
            batch=32,
        ),
        ten_epochs(
            "diabetes",
            "perceptron 10-50-50-1, softplus, a table, squared error",
            lambda: models.perceptron([10, 50, 50, 1], "softplus"),
            diabetes,
            nn.MSELoss(),
            batch=32,
        ),
        ten_epochs(
            "outliers",
            "perceptron 20-64-64-1, tanh, outliers, Huber's loss",
            lambda: models.perceptron([20, 64, 64, 1]),
            outliers,
            nn.HuberLoss(),
        ),
        ten_epochs("dropout", "perceptron 64-128-128-10, ReLU, dropout 0.2", _dropout, datasets.digits),
        ten_epochs(
            "tenfold",
            "3 hidden layers of 64, ELU, inputs times 10",
            lambda: models.perceptron([64, 64, 64, 64, 10], "elu"),
            tenfold,
        ),
        ten_epochs(
            "wide", "perceptron 784-512-512-10, ReLU", lambda: models.perceptron([784, 512, 512, 10], "relu"), flat
        ),
        ten_epochs("mixer", "mixer, 3 blocks of width 32, layer norm", lambda: Mixer(8, 32), rows),
        ten_epochs("copier", "convolutional auto-encoder, GELU", _copying, copied, nn.MSELoss()),
    )
}
