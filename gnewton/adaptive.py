"""The ratio test: lambda_int learns from its predictions, as in adaptive cubic regularization.

    rho  =  (what the loss lost at eta*) / (what the model promised, -m(eta*))

A model that promised too much gets a stronger cubic term, and so shorter steps; one that kept its word a weaker one
(ARC: Cartis, Gould, Toint, Math. Program. 127, 2011). The step taken, lambda_1 eta*, must lower the loss by itself: it is
halved until it does. All of it on one batch: rho of another one would be noise.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gnewton.summary import Summary

LOWEST, HIGHEST = 1e-3, 1e6
_HALVINGS = 8


class Trial(NamedTuple):
    """rate: the part of eta* that was taken, 0 for none; after: the loss there; rho: nan where it was not asked for;
    halvings: of the rate; evaluations: of the loss."""

    rate: float
    after: float
    rho: float
    halvings: int
    evaluations: int


def tried(loss_at: Callable[[float], float], before: float, predicted: float, lr: float) -> Trial:
    """Ask for rho at the full step where the model promises something, then take lr of it, halved until the loss falls.

    ``loss_at(t)`` moves to theta - t U eta* and returns the loss there. Where eight halvings do not help it is called with
    0 at last.

    >>> tried(lambda t: (3 * t - 1) ** 2, before=1.0, predicted=1.0, lr=1.0)
    Trial(rate=0.5, after=0.25, rho=-3.0, halvings=1, evaluations=2)
    """
    known = {1.0: loss_at(1.0)} if predicted > 0 else {}
    rho = (before - known[1.0]) / predicted if known else math.nan
    if known and math.isnan(rho):
        # A loss that is no number is as bad as an infinite one; nan is for a rho that was not asked for.
        rho = -math.inf
    for halvings in range(_HALVINGS + 1):
        rate = lr * 0.5**halvings
        after = known[rate] if rate in known and not halvings else loss_at(rate)
        known[rate] = after
        if after < before or lr == 0:
            return Trial(rate, after, rho, halvings, len(known))
    return Trial(0.0, loss_at(0.0), rho, _HALVINGS, len(known))


def judged(cubic: float, rho: float) -> float:
    """lambda_int after a trial: doubled for rho < 1/4, halved for rho > 3/4, within [1e-3, 1e6]; as it was for nan.

    >>> judged(1.0, 0.1), judged(1.0, 0.5), judged(1.0, 0.9), judged(1e-3, 0.9)
    (2.0, 1.0, 0.5, 0.001)
    """
    factor = 2.0 if rho < 0.25 else 0.5 if rho > 0.75 else 1.0
    return min(HIGHEST, max(LOWEST, cubic * factor))


def line_rates(summary: Summary) -> Tensor:
    """One rate for all groups, (S,): where the cubic term vanishes and no lambda_int bounds the model, u as a whole is left.

    Newton's step along u, g / |h| with g and h the sums of g-bar and H-bar; without curvature, the step to where the
    tangent meets zero. Float64 on the CPU.

    >>> line_rates(Summary.from_tensors(gradient=[1.0, 3.0], hessian=[[2.0, 0.0], [0.0, 6.0]]))
    tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    assert summary.hessian is not None
    g, h = float(summary.gradient.sum()), float(summary.hessian.sum())
    rate = g / abs(h) if h else abs(float(summary.value)) / g if g else 0.0
    return torch.full((len(summary),), rate, dtype=torch.float64, device="cpu")
