"""What a row of the table is built from: a model and its loss, a closure as users write it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Built:
    """A model and its loss. train: its library wants training mode; stops: the loss holds some of its values by detach()."""

    model: nn.Module
    loss: Callable[[], Tensor]
    train: bool = False
    stops: bool = False


def labelled(model: nn.Module, train: bool = False, stops: bool = False, **arguments: Any) -> Built:
    """A model of transformers, which returns its own loss where it is given the labels."""
    return Built(model, lambda: model(**arguments).loss, train, stops)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape)


def tokens(*shape: int) -> Tensor:
    return torch.randint(1, 29, shape)
