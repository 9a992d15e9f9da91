"""Who takes part beside ``Calibrated``: the optimizers that people pick, each from a maintained package.

Adam, with a constant rate and with one that falls by a cosine, and the proposer of ours are tuned, the others have their documented defaults. Prodigy, schedule-free AdamW and D-Adaptation come
from the packages of their authors: prodigyopt, schedulefree, dadaptation.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import nn

from gnewton.cautious import CautiousAdam
from gnewton.optimizer import GroupedNewton
from gnewton.partition import Partition
from gnewton.policies import Calibrated

Optimizers = tuple[list[torch.optim.Optimizer], Any]
Build = Callable[[nn.Module, int, float | None], Optimizers]
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)


@dataclass(frozen=True)
class Peer:
    """One participant.

    Args:
        name, title: in the results, and in the tables.
        build: build(model, steps, lr) gives the optimizers that share the parameters, and a scheduler of every step or None;
            ``steps`` is the length of the run, ``lr`` the rate of a tuned one, else None.
    """

    name: str
    title: str
    build: Build


def _calibrated(model: nn.Module, steps: int, lr: float | None) -> Optimizers:
    return [GroupedNewton(Partition.single(model), proposer(model), policy=Calibrated())], None


def proposer(model: nn.Module, lr: float = 1.0) -> CautiousAdam:
    """Whose direction ours takes."""
    return CautiousAdam(model.parameters(), lr=lr)


def _adam(model: nn.Module, steps: int, lr: float | None) -> Optimizers:
    return [torch.optim.Adam(model.parameters(), lr=0.0 if lr is None else lr, fused=True)], None


def _annealed(model: nn.Module, steps: int, lr: float | None) -> Optimizers:
    (adam,), _ = _adam(model, steps, lr)
    return [adam], torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)


def _proposer(model: nn.Module, steps: int, lr: float | None) -> Optimizers:
    return [proposer(model, 0.0 if lr is None else lr)], None


def _cosine(model: nn.Module, steps: int, lr: float | None) -> Optimizers:
    adamw = torch.optim.AdamW(model.parameters(), fused=True)
    return [adamw], torch.optim.lr_scheduler.CosineAnnealingLR(adamw, steps)


def _muon(model: nn.Module, steps: int, lr: float | None) -> Optimizers:
    parameters = list(model.parameters())
    matrices = [p for p in parameters if p.ndim == 2][:-1]
    others = [p for p in parameters if all(p is not one for one in matrices)]
    muon = [torch.optim.Muon(matrices)] if matrices else []
    return [*muon, torch.optim.AdamW(others, fused=True)], None


def _of_package(package: str, name: str) -> Build:
    def build(model: nn.Module, steps: int, lr: float | None) -> Optimizers:
        return [getattr(import_module(package), name)(model.parameters())], None

    return build


OURS = Peer("calibrated", "Calibrated", _calibrated)
ADAM = Peer("adam", "Adam, tuned", _adam)
ANNEALED = Peer("annealed", "Adam, cosine, tuned", _annealed)
PROPOSER = Peer("proposer", "CautiousAdam, tuned", _proposer)
DEFAULTS = (
    Peer("adamw-cosine", "AdamW, cosine", _cosine),
    Peer("prodigy", "Prodigy", _of_package("prodigyopt", "Prodigy")),
    Peer("schedule-free", "schedule-free AdamW", _of_package("schedulefree", "AdamWScheduleFree")),
    Peer("d-adaptation", "D-Adaptation, Adam", _of_package("dadaptation", "DAdaptAdam")),
    Peer("muon", "Muon and AdamW", _muon),
)
