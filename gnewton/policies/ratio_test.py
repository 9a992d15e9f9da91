"""The adaptive policy: lambda_int and the length of the step follow what the loss did (adaptive cubic regularization).

    rho  =  (what the loss lost)  /  (what the model predicted, -m)

Where rho is low the cubic term gets stronger, and steps shorter. Where it is high the term gets weaker (ARC: Cartis, Gould,
Toint, Math. Program. 127, 2011). Test a new summary with its full step eta*; short steps make any model look good. The step
taken, lambda_1 eta*, must lower the loss: it is halved until it does. All of it is measured on one batch, as the rho of
another batch would be noise.

H-bar and D may serve for several steps; g-bar is new at each. The slope goes stale first, not the curvature: after a step
along u the gradient along u is nearly gone, and the same step again would overshoot. H-bar and D belong to a length of u,
and are rescaled when u has another one. Cached curvature is tested with the step taken, which costs no further evaluation.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from gnewton.cubic import Status
from gnewton.line import Line
from gnewton.policies.outcome import Outcome
from gnewton.policies.policy import Settings, State, minimize, model_of, no_step, predicted_decrease, smooth_rates
from gnewton.summary import Summary

LOWEST, HIGHEST = 1.0, 1e6
LOW_RATIO, HIGH_RATIO = 0.25, 0.75
_HALVINGS = 8


class RatioTest:
    """lambda_int learns from its predictions; no step raises the loss of the batch that judges it.

    H-bar and D are kept for at most ``period`` steps and until they fail the test. Each step has a new g-bar, for one more
    gradient. Where nothing bounds the model one rate for all groups is left (``uniform_step``).

    State: eta (S,); age, the steps since H-bar and D were computed; cubic, lambda_int; cached_curvature, a summary and the
    lengths (S,) of its direction, or None.
    """

    settings: ClassVar[Mapping[str, Any]] = {}

    def needs_summary(self, settings: Settings, state: State) -> bool:
        return state.get("cached_curvature") is None or state["age"] >= settings["period"]

    def step(self, line: Line, settings: Settings, state: State) -> tuple[Outcome | None, State]:
        summary, age = self._summary(line, settings, state)
        if summary is None:
            return None, state | {"cached_curvature": None}
        model = model_of(summary, settings, state.get("cubic", LOWEST))
        step = minimize(model, line)
        if not step.status.ok and step.status is not Status.UNBOUNDED:
            return no_step(model, step, settings, age), state | {"eta": None, "cached_curvature": None}
        eta = step.learning_rates if step.status.ok else line.from_first(uniform_step(summary))
        eta, lr = smooth_rates(eta, state.get("eta"), settings), float(settings["lr"])
        tested = lr if age else 1.0
        predicted = predicted_decrease(model, step, tested, eta) if step.status.ok else 0.0
        search = _search(line, eta, predicted, tested, lr)
        facts = search.facts(line.value) | {"predicted_decrease": predicted_decrease(model, step, search.rate, eta)}
        outcome = Outcome.of(model, step, learning_rates=eta, age=age, **facts)
        cached = state["cached_curvature"] if age and search.rho >= LOW_RATIO else None
        if age == 0 and settings["period"] > 1:
            cached = {"summary": summary.state_dict(), "lengths": line.lengths()}
        return outcome, {
            "eta": None if search.rate == 0 < lr else eta * 0.5**search.halvings,
            "age": age + 1,
            "cubic": update_regularization(outcome.cubic, search.rho),
            "cached_curvature": cached,
        }

    def _summary(self, line: Line, settings: Settings, state: State) -> tuple[Summary | None, int]:
        """g-bar, H-bar and D for this step, and the age of H-bar and D."""
        if not self.needs_summary(settings, state):
            summary = _cached_summary(line, state["cached_curvature"])
            if summary is not None:
                return summary, state["age"]
        return line.summary(order=3), 0


def _search(line: Line, eta: Tensor, predicted: float, tested: float, lr: float) -> "LineSearchResult":
    """The search along eta; nothing is evaluated where no group moves."""
    if not eta.any():
        return LineSearchResult(lr, line.value, math.nan, 0, 0)
    return backtracking_line_search(lambda t: line.loss_at(t * eta), line.value, predicted, tested, lr)


def _cached_summary(line: Line, cached: Mapping[str, Any]) -> Summary | None:
    """g-bar of now with the cached H-bar and D, rescaled; None where they know nothing of a group that begins to move."""
    slope, then = line.slope(), cached["lengths"].cpu()  # a state that was loaded may be on the device
    now, curvature = line.lengths(), Summary.from_state_dict(cached["summary"])
    if bool(((then == 0) & (now > 0)).any()):
        return None
    curvature = curvature.with_tensors(t.cpu() for t in curvature.tensors())
    curvature = curvature.rescaled(torch.where(then > 0, now / then, 0.0))
    return replace(curvature, value=slope.value, gradient=slope.gradient)


class LineSearchResult(NamedTuple):
    """rate: the part of eta* that was taken, 0 for none; loss: the loss there; rho: nan where it was not asked for;
    halvings: of the rate; evaluations: of the loss."""

    rate: float
    loss: float
    rho: float
    halvings: int
    evaluations: int

    def facts(self, before: float) -> dict[str, Any]:
        """The fields of an ``Outcome`` that the search knows; ``before`` is the loss at t = 0."""
        lost = before - self.loss
        return {"lr": self.rate, "actual_decrease": lost, "rho": self.rho, "evaluations": self.evaluations}


def backtracking_line_search(
    loss_at: Callable[[float], float], before: float, predicted: float, tested: float, lr: float
) -> LineSearchResult:
    """Measure rho at the step ``tested``, then take lr, halved until the loss falls.

    Args:
        loss_at: ``loss_at(t)`` moves to theta - t U eta* and returns the loss there. The last call says where to stay; it is
            with 0 where eight halvings do not help.
        before: the loss at t = 0.
        predicted: the decrease that the model predicts for t = ``tested``; where it is not positive, rho is not measured.
        tested: the t of rho.
        lr: lambda_1, the largest t to stay at.

    >>> backtracking_line_search(lambda t: (3 * t - 1) ** 2, before=1.0, predicted=1.0, tested=1.0, lr=1.0)
    LineSearchResult(rate=0.5, loss=0.25, rho=-3.0, halvings=1, evaluations=2)
    """
    known = {tested: loss_at(tested)} if predicted > 0 else {}
    rho = (before - known[tested]) / predicted if known else math.nan
    if known and math.isnan(rho):
        # A loss that is no number is as bad as an infinite one; nan is for a rho that was not asked for.
        rho = -math.inf
    for halvings in range(_HALVINGS + 1):
        rate = lr * 0.5**halvings
        loss = known[rate] if rate in known and not halvings else loss_at(rate)
        known[rate] = loss
        if loss < before or lr == 0:
            return LineSearchResult(rate, loss, rho, halvings, len(known))
    return LineSearchResult(0.0, loss_at(0.0), rho, _HALVINGS, len(known))


def update_regularization(cubic: float, rho: float) -> float:
    """The next lambda_int: doubled for rho < 1/4, halved for rho > 3/4, within [1, 1e6]; unchanged for nan.

    Not below 1: on a mini-batch rho says how the model did on these samples, and a weaker cubic term follows their noise.

    >>> [update_regularization(cubic, rho) for cubic, rho in ((1.0, 0.1), (4.0, 0.5), (4.0, 0.9), (1.0, 0.9))]
    [2.0, 4.0, 2.0, 1.0]
    """
    factor = 2.0 if rho < LOW_RATIO else 0.5 if rho > HIGH_RATIO else 1.0
    return min(HIGHEST, max(LOWEST, cubic * factor))


def uniform_step(summary: Summary) -> Tensor:
    """One rate for all groups, (S,): where no cubic term bounds the model, u as a whole is left.

    Newton's step along u is g / |h|, g and h the sums of g-bar and H-bar. Without curvature it is the step to where the
    tangent meets zero. Float64 on the CPU.

    >>> uniform_step(Summary.from_tensors(gradient=[1.0, 3.0], hessian=[[2.0, 0.0], [0.0, 6.0]]))
    tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    assert summary.hessian is not None
    g, h = float(summary.gradient.sum()), float(summary.hessian.sum())
    rate = g / abs(h) if h else abs(float(summary.value)) / g if g else 0.0
    return torch.full((len(summary),), rate, dtype=torch.float64, device="cpu")
