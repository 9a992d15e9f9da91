"""Runs of GroupedNewton whose states an earlier version saved: how each is built, and how it goes on."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gnewton as gn

FILE = Path(__file__).parent / "saved_0.1.0.dev0.pt"
BEFORE, AFTER = 4, 5

Proposers = Callable[[nn.Module], torch.optim.Optimizer]


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)


def rmsprop(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.RMSprop(model.parameters(), lr=1.0, momentum=0.9)


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=0.01)


RUNS: dict[str, tuple[Proposers | None, dict[str, Any]]] = {
    "fixed": (None, {"lr": 0.3, "cubic": 1.0, "period": 1}),
    "rates reused, momentum": (sgd, {"lr": 0.3, "cubic": 1.0, "period": 3, "eta_momentum": 0.5}),
    "order 2 with a ridge, Adam": (adam, {"lr": 0.3, "cubic": 0.0, "ridge": 1.0, "period": 2}),
    "adaptive": (None, {"lr": 1.0, "cubic": "adaptive", "period": 1}),
    "adaptive, curvature kept, RMSprop": (rmsprop, {"lr": 0.5, "cubic": "adaptive", "period": 5}),
    "adaptive, curvature kept, momentum": (sgd, {"lr": 0.5, "cubic": "adaptive", "period": 5}),
    "exponential average": (sgd, {"lr": 0.3, "cubic": 1.0, "period": 1, "average": gn.average.Exponential(0.7)}),
    "windows, adaptive": (None, {"lr": 0.5, "cubic": "adaptive", "period": 2, "average": gn.average.Windows(2, 1)}),
}


def build(name: str) -> tuple[nn.Module, gn.GroupedNewton, Callable[[], Tensor]]:
    """Model, optimizer and loss of a run, all from numbers that are written out: no random numbers, which versions change."""
    model = gn.models.perceptron([3, 3, 2], dtype=torch.float64)
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(torch.arange(p.numel(), dtype=p.dtype).add(i).mul(1.3).sin().reshape(p.shape))
    x = torch.arange(24, dtype=torch.float64).mul(0.7).cos().reshape(8, 3)
    y = torch.arange(8) % 3 % 2
    proposer, settings = RUNS[name]
    optimizer = gn.GroupedNewton(gn.Partition.by_tensor(model), proposer and proposer(model), **settings)
    return model, optimizer, lambda: F.cross_entropy(model(x), y)


def go_on(model: nn.Module, optimizer: gn.GroupedNewton, loss: Callable[[], Tensor]) -> dict[str, Any]:
    """What the next steps give: the losses, and the parameters at the end."""
    losses = [float(optimizer.step(loss)) for _ in range(AFTER)]
    return {"losses": losses, "parameters": [p.detach().clone() for p in model.parameters()]}


def save() -> None:
    """Write the file; run by the version whose states are to be read for good."""
    runs = {}
    for name in RUNS:
        model, optimizer, loss = build(name)
        for _ in range(BEFORE):
            optimizer.step(loss)
        # The momentum in a state is the optimizer's own tensor, and goes on with the run.
        saved = copy.deepcopy({"model": dict(model.state_dict()), "optimizer": optimizer.state_dict()})
        runs[name] = saved | go_on(model, optimizer, loss)
    torch.save(runs, FILE)
