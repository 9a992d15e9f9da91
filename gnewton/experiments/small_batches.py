"""Twelve networks with batches of 8 to 32, written down when the policy's interval of t* had been changed, before their first run.

That change was made for small batches, on nine networks of the first three dozens with batches of 100, 25 and 10, so that none of
the three dozens judges it. These differ from them in their networks, data and losses, too.
"""

from dataclasses import replace
from functools import cache

from torch import Tensor, nn

from gnewton import datasets, models
from gnewton.datasets import Dataset
from gnewton.experiments.fresh import Recurrent, table, ten_epochs, text
from gnewton.experiments.unseen import pictures, rows


@cache
def iris() -> Dataset:
    """150 flowers, 4 numbers each, three kinds."""
    return table("load_iris")


@cache
def own_targets() -> Dataset:
    """The 8 x 8 digits as their own targets."""
    data = datasets.digits()
    return replace(data, train_y=data.train_x, test_y=data.test_x)


@cache
def noisy() -> Dataset:
    """A regression from 10 numbers to one, with noise of deviation 0.3."""
    return datasets.teacher_student((10, 20, 1), samples=600, test_samples=300, noise=0.3)


class Convolved(nn.Module):
    """Characters (batch, length) to scores of the next one (batch, 96, length), from the last five.

    >>> import torch
    >>> Convolved(16)(torch.zeros(2, 32, dtype=torch.long)).shape
    torch.Size([2, 96, 32])
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed, self.look, self.head = nn.Embedding(96, width), nn.Conv1d(width, 64, 5), nn.Conv1d(64, 96, 1)

    def forward(self, x: Tensor) -> Tensor:
        seen = nn.functional.pad(self.embed(x).transpose(1, 2), (4, 0))
        out: Tensor = self.head(self.look(seen).tanh())
        return out


def _hidden(norm: type[nn.Module]) -> nn.Module:
    layers = [layer for _ in range(3) for layer in (nn.Linear(64, 64), norm(64), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(64, 10))


def _silu() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU(), nn.Linear(48, 10))


def _leaky() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 80), nn.LeakyReLU(), nn.Linear(80, 40), nn.LeakyReLU(), nn.Linear(40, 10))


def _convolutions(*after: nn.Module) -> nn.Module:
    features = [nn.Conv2d(1, 8, 3, padding=1), nn.GELU(), nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.GELU()]
    return nn.Sequential(*features, *after, nn.Flatten(), nn.Linear(256, 10))


def _lstm() -> nn.Module:
    return Recurrent(nn.LSTM(8, 32, batch_first=True), 32, 10)


SMALL_BATCHES = {
    problem.name: problem
    for problem in (
        ten_epochs("iris", "perceptron 4-16-16-3, tanh, a table, 8", lambda: models.perceptron([4, 16, 16, 3]), iris, batch=8),
        ten_epochs("silu", "2 hidden layers of 48, SiLU, 16", _silu, datasets.digits, batch=16),
        ten_epochs("batch-norm", "3 hidden layers of 64, batch norm, ReLU, 16", lambda: _hidden(nn.BatchNorm1d), datasets.digits, batch=16),
        ten_epochs("rms-norm", "3 hidden layers of 64, RMS norm, ReLU, 20", lambda: _hidden(nn.RMSNorm), datasets.digits, batch=20),
        ten_epochs("margin", "perceptron 64-80-40-10, leaky ReLU, margins, 25", _leaky, datasets.digits, nn.MultiMarginLoss(), batch=25),
        ten_epochs("encoder", "auto-encoder 64-24-64, tanh, 16", lambda: models.perceptron([64, 24, 64]), own_targets, nn.MSELoss(), batch=16),
        ten_epochs("noisy", "perceptron 10-40-40-1, ReLU, noise, 10", lambda: models.perceptron([10, 40, 40, 1], "relu"), noisy, nn.MSELoss(), batch=10),
        ten_epochs("absolute", "perceptron 10-40-1, ELU, noise, absolute error, 20", lambda: models.perceptron([10, 40, 1], "elu"), noisy, nn.L1Loss(), batch=20),
        ten_epochs("convolutions", "2 convolutions, GELU, 16", _convolutions, pictures, batch=16),
        ten_epochs("channels", "2 convolutions, GELU, a tenth of the channels dropped, 32", lambda: _convolutions(nn.Dropout2d(0.1)), pictures, batch=32),
        ten_epochs("lstm", "LSTM of 32, eight rows of a digit, 25", _lstm, rows, batch=25),
        ten_epochs("convolved", "a convolution over 5 characters, tanh, the next one, 20", lambda: Convolved(24), text, batch=20),
    )
}  # fmt: skip
