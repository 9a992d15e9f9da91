"""The problems: a network, its data and its loss; five for the race, six for the runs without tuning."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import nn

from gnewton import datasets, models
from gnewton.datasets import Dataset


@dataclass(frozen=True)
class Problem:
    """What is trained, on what, and for how long.

    network(generator) builds the model; data() is a Dataset; loss(output, target) is a mean over the batch. epochs, batch
    and curvature (samples) are those of the protocol, plateau whether the learning rate falls where the loss stays; minutes
    is what the whole experiment takes on one core.
    """

    name: str
    title: str
    network: Callable[[torch.Generator], nn.Module]
    data: Callable[[], Dataset]
    loss: nn.Module
    epochs: int
    minutes: float
    batch: int = 100
    curvature: int = 500
    plateau: bool = True


@cache
def flat() -> Dataset:
    """The digits as rows of 784 numbers."""
    return datasets.mnist_5k()


@cache
def images() -> Dataset:
    """The digits as images of 1 x 28 x 28."""
    return datasets.mnist_5k(shape="image")


@cache
def autoencoder_digits() -> Dataset:
    """The digits as their own targets."""
    data = flat()
    return replace(data, train_y=data.train_x, test_y=data.test_x)


_CLASSES = nn.CrossEntropyLoss()


def _perceptron(widths: list[int], activation: str) -> Callable[[torch.Generator], nn.Module]:
    return lambda generator: models.perceptron(widths, activation, generator=generator)


PROBLEMS = {
    problem.name: problem
    for problem in (
        Problem(
            "mlp",
            "perceptron 784-256-64-10, tanh",
            lambda g: models.perceptron([784, 256, 64, 10], "tanh", generator=g),
            flat,
            _CLASSES,
            epochs=6,
            minutes=2,
        ),
        Problem(
            "deep",
            "20 hidden layers of 64, ELU",
            lambda g: models.perceptron([784, *[64] * 20, 10], "elu", generator=g),
            flat,
            _CLASSES,
            epochs=5,
            minutes=4,
        ),
        Problem(
            "lenet",
            "LeNet 6-16-120-84, tanh, images of 28 x 28",
            lambda g: models.lenet((1, 28, 28), 10, activation="tanh", generator=g),
            images,
            _CLASSES,
            epochs=3,
            minutes=5,
        ),
        Problem(
            "vgg",
            "VGG-11 with an eighth of its channels, ELU, images of 28 x 28",
            lambda g: models.vgg(11, width=1 / 8, inputs=(1, 28, 28), activation="elu", generator=g),
            images,
            _CLASSES,
            epochs=2,
            minutes=16,
        ),
        Problem(
            "autoencoder",
            "auto-encoder 784-256-64-16-64-256-784, tanh, squared error",
            lambda g: models.autoencoder([784, 256, 64, 16], "tanh", generator=g),
            autoencoder_digits,
            nn.MSELoss(),
            epochs=4,
            minutes=4,
        ),
    )
}


def _small_problem(
    name: str, title: str, network: Callable[[torch.Generator], nn.Module], data: Callable[[], Dataset], minutes: float
) -> Problem:
    loss = nn.MSELoss() if data is autoencoder_digits else _CLASSES
    return Problem(name, title, network, data, loss, epochs=10, minutes=minutes, curvature=300, plateau=False)


SIX = {
    problem.name: problem
    for problem in (
        _small_problem(
            "tanh", "perceptron 64-32-32-10, tanh", _perceptron([64, 32, 32, 10], "tanh"), datasets.digits, 0.2
        ),
        _small_problem(
            "deep-tanh", "8 hidden layers of 48, tanh", _perceptron([64, *[48] * 8, 10], "tanh"), datasets.digits, 0.5
        ),
        _small_problem(
            "elu", "3 hidden layers of 64, ELU", _perceptron([64, 64, 64, 64, 10], "elu"), datasets.digits, 0.3
        ),
        _small_problem(
            "lenet", "LeNet, tanh", lambda g: models.lenet((1, 28, 28), 10, activation="tanh", generator=g), images, 6
        ),
        _small_problem(
            "vgg-batch-norm",
            "VGG-11 with batch norm, a sixteenth of its channels, ELU",
            lambda g: models.vgg(11, 1 / 16, batch_norm=True, inputs=(1, 28, 28), activation="elu", generator=g),
            images,
            21,
        ),
        _small_problem(
            "autoencoder",
            "auto-encoder 784-256-64-16, tanh",
            lambda g: models.autoencoder([784, 256, 64, 16], "tanh", generator=g),
            autoencoder_digits,
            2,
        ),
    )
}
