"""The eight methods, each with the six settings that it may choose from; the adaptive one has a single setting."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from gnewton.experiments.kfac import KFAC
from gnewton.experiments.networks import Problem
from gnewton.optimizer import GroupedNewton
from gnewton.partition import Partition

Batches = Iterator[tuple[Tensor, Tensor]]
Settings = dict[str, Any]
PERIOD = 10


@dataclass(frozen=True)
class Method:
    """One row of the race.

    settings: what is tried in the tuning, as many for every method; build(model, problem, batches, settings) makes the
    optimizer, where batches draws curvature batches without end; needs: a package that must be installed.
    """

    name: str
    title: str
    settings: tuple[Settings, ...]
    build: Callable[[nn.Module, Problem, Batches, Settings], torch.optim.Optimizer]
    needs: str = ""

    @property
    def installed(self) -> bool:
        """Whether the package that it needs is there."""
        return not self.needs or find_spec(self.needs) is not None


def grid(**values: tuple[Any, ...]) -> tuple[Settings, ...]:
    """Every combination of the values.

    >>> grid(lr=(0.1, 1.0), cubic=(1.0,))
    ({'lr': 0.1, 'cubic': 1.0}, {'lr': 1.0, 'cubic': 1.0})
    """
    return tuple(dict(zip(values, chosen, strict=True)) for chosen in product(*values.values()))


Proposers = Callable[[nn.Module], torch.optim.Optimizer]


def momentum(model: nn.Module) -> torch.optim.Optimizer:
    """The proposer of the paper's experiments."""
    return torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)


def rmsprop(model: nn.Module, eps: float = 1e-8) -> torch.optim.Optimizer:
    """Each entry of the gradient over its usual size, then momentum. ``eps`` has the unit of the gradient."""
    return torch.optim.RMSprop(model.parameters(), lr=1.0, momentum=0.9, eps=eps)


def _grouped_newton(
    partition: Callable[[nn.Module], Partition], proposer: Proposers = momentum, **fixed: Any
) -> Callable[[nn.Module, Problem, Batches, Settings], torch.optim.Optimizer]:
    def build(model: nn.Module, problem: Problem, batches: Batches, settings: Settings) -> torch.optim.Optimizer:
        usual = {"period": PERIOD, "remove_negative": True}
        return GroupedNewton(partition(model), proposer(model), **(usual | fixed | settings))

    return build


def _sgd(model: nn.Module, problem: Problem, batches: Batches, settings: Settings) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), momentum=0.9, **settings)


def _adam(model: nn.Module, problem: Problem, batches: Batches, settings: Settings) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), **settings)


def _lbfgs(model: nn.Module, problem: Problem, batches: Batches, settings: Settings) -> torch.optim.Optimizer:
    return torch.optim.LBFGS(model.parameters(), max_iter=4, history_size=10, **settings)


def _kfac(model: nn.Module, problem: Problem, batches: Batches, settings: Settings) -> torch.optim.Optimizer:
    assert isinstance(problem.loss, nn.CrossEntropyLoss | nn.MSELoss)
    return KFAC(model, problem.loss, batches, period=PERIOD, **settings)


_NEWTON = grid(lr=(0.3, 1.0), cubic=(1.0, 10.0, 100.0))
ADAPTIVE: dict[str, Any] = {"cubic": "adaptive", "remove_negative": False}
UNTUNED: tuple[Settings, ...] = ({"lr": 1.0, "period": 5},)

METHODS = {
    method.name: method
    for method in (
        Method("grouped-newton", "GroupedNewton", _NEWTON, _grouped_newton(Partition.by_tensor)),
        Method("diagonal", "GroupedNewton, diagonal", _NEWTON, _grouped_newton(Partition.by_tensor, diagonal=True)),
        Method("one-group", "GroupedNewton, S = 1", _NEWTON, _grouped_newton(Partition.single)),
        Method(
            "adaptive", "GroupedNewton, adaptive", UNTUNED, _grouped_newton(Partition.by_tensor, rmsprop, **ADAPTIVE)
        ),
        Method("sgd", "SGD, momentum 0.9", grid(lr=(0.003, 0.01, 0.05, 0.2, 1.0, 3.0)), _sgd),
        Method("adam", "Adam", grid(lr=(0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03)), _adam),
        Method("l-bfgs", "L-BFGS", grid(lr=(0.03, 0.3, 1.0), line_search_fn=(None, "strong_wolfe")), _lbfgs),
        Method("k-fac", "K-FAC", grid(lr=(0.01, 0.1), damping=(0.01, 0.1, 1.0)), _kfac, needs="curvlinops"),
    )
}
# The untuned runs have a second look at the adaptive step, with as many groups as SGD has.
WITH_ONE_GROUP = Method(
    "adaptive-one-group",
    "GroupedNewton, adaptive, S = 1",
    UNTUNED,
    _grouped_newton(Partition.single, rmsprop, **ADAPTIVE),
)
