"""The ratio test: lambda_int learns from its predictions, as in adaptive cubic regularization.

    rho  =  (what the loss lost)  /  (what the model promised, -m)

A model that promised too much gets a stronger cubic term, and so shorter steps; one that kept its word a weaker one
(ARC: Cartis, Gould, Toint, Math. Program. 127, 2011). A new summary answers for its full step eta*: a part of it would
flatter any model. The step taken, lambda_1 eta*, must lower the loss: it is halved until it does. All of it on one batch:
rho of another one would be noise.

H-bar and D may be kept for several steps where g-bar is new at each. What goes stale first is not the curvature but the
slope: after a step along u the gradient along u is nearly gone, and taking the same step again overshoots. ``carried``
follows the length of u, to which H-bar and D belong. Kept curvature answers for the step taken, which costs no evaluation more.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gnewton.summary import Summary

LOWEST, HIGHEST = 1.0, 1e6
TOO_LOW = 0.25
_HALVINGS = 8


class Trial(NamedTuple):
    """rate: the part of eta* that was taken, 0 for none; after: the loss there; rho: nan where it was not asked for;
    halvings: of the rate; evaluations: of the loss."""

    rate: float
    after: float
    rho: float
    halvings: int
    evaluations: int


def tried(loss_at: Callable[[float], float], before: float, predicted: float, asked: float, lr: float) -> Trial:
    """Ask for rho at the step ``asked`` where the model promises something, then take lr, halved until the loss falls.

    ``loss_at(t)`` moves to theta - t U eta* and returns the loss there; ``predicted`` is what the model promises for
    t = ``asked``. Where eight halvings do not help ``loss_at`` is called with 0 at last.

    >>> tried(lambda t: (3 * t - 1) ** 2, before=1.0, predicted=1.0, asked=1.0, lr=1.0)
    Trial(rate=0.5, after=0.25, rho=-3.0, halvings=1, evaluations=2)
    """
    known = {asked: loss_at(asked)} if predicted > 0 else {}
    rho = (before - known[asked]) / predicted if known else math.nan
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
    """lambda_int after a trial: doubled for rho < 1/4, halved for rho > 3/4, within [1, 1e6]; as it was for nan.

    Not below 1: on a mini-batch rho says how the model did on these samples, and a weaker cubic term follows their noise.

    >>> judged(1.0, 0.1), judged(4.0, 0.5), judged(4.0, 0.9), judged(1.0, 0.9)
    (2.0, 4.0, 2.0, 1.0)
    """
    factor = 2.0 if rho < TOO_LOW else 0.5 if rho > 0.75 else 1.0
    return min(HIGHEST, max(LOWEST, cubic * factor))


def carried(summary: Summary, lengths: Tensor, gradient: Tensor, now: Tensor, value: float) -> Summary:
    """A summary with a new g-bar, (S,), and the curvature of an earlier one along a direction of other lengths.

    ``lengths`` and ``now`` (S,) are ||u_s|| then and now: H_st grows with each of its two, D_s, a cube root, with its one.

    >>> then = Summary.from_tensors(gradient=[1.0, 2.0], hessian=[[2.0, 1.0], [1.0, 2.0]], third=[8.0, 1.0])
    >>> here = carried(then, torch.tensor([1.0, 1.0]), torch.tensor([0.5, 0.5]), torch.tensor([10.0, 1.0]), 0.3)
    >>> here.hessian.tolist(), here.third.tolist()
    ([[200.0, 10.0], [10.0, 2.0]], [8000.0, 1.0])
    """
    assert summary.hessian is not None
    ratio = torch.where(lengths > 0, now / lengths, 0.0).to(summary.hessian)
    third = None if summary.third is None else summary.third * ratio**3
    hessian = summary.hessian * ratio * ratio[:, None]
    return Summary.from_tensors(gradient=gradient, hessian=hessian, third=third, value=value, names=summary.names)


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
