r"""One learning rate, found in the first steps, then held, and lowered when it has done its work: the price of the proposer and little more.

After a step of length tau along u, the next batch b tells three numbers: its loss where the step began, its loss where the step
ended, and its slope there. They determine a parabola, and its minimum is the rate that b would have chosen:

    L_b(theta + tau u - t u)  ~  phi_0 - a t + c t^2 / 2,      c = 2 (phi_0 - phi_1 - g.u tau) / tau^2,      a = g.u + c tau

Another batch than the one that chose u must judge it, or the noise of that batch counts as descent. A and C are sums of a and c
over some ten steps; A / C is the rate, and t* = A / (C eta) says how many times longer it is than the rate in use.

Early, A / C hardly depends on the rate in use, and comes near the one that a search would find. Later t* falls, for two reasons: the
curvature follows the rate (Cohen et al., Gradient descent on neural networks typically occurs at the edge of stability, ICLR 2021),
and where noise gives what the steps take, t* is 1/2 for every rate. (In a bowl of curvature h, where the gradients of batches have
the variance sigma^2, gradient descent at the rate eta comes to rest at the variance eta sigma^2 / (h (2 - eta h)), and there
E[a] / E[c] = eta / 2.) At t* = 1 the step is the greedy one; at t* = 1/2 the next
batch gains nothing by it. So while the rate is searched t* may lie between 0.7 and 1. Afterwards a t* below 0.9 says that the rate has
done its work: it shrinks, by a tenth at a look at most, and not below a tenth of what was found. It grows where t* is above 2; above 1
or 1.5 already, the noise of small batches made it grow.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gnewton.caller import warn
from gnewton.cubic import Status, Step
from gnewton.line import Line
from gnewton.partition import Partition
from gnewton.policies.outcome import Outcome
from gnewton.policies.policy import Settings, State, model_of, no_step
from gnewton.policies.ratio_test import backtracking_line_search, uniform_step
from gnewton.summary import Summary, is_finite
from gnewton.undo import Parameters

# Where t* may lie while the rate is searched, and afterwards.
SEARCHED, GUARDED = (0.7, 1.0), (0.9, 2.0)
# The first look may make good for the tenth below. Afterwards a look, whose batch may be an odd one, at most trebles the rate; and
# where the minimum of the parabola lies before the start, no length fits: the rate is halved.
_FIRST_LOOK, _FINDING, _GUARDING, _CLIMBED = (0.05, 10.0), (0.05, 3.0), (0.9, 1.1), 0.5
_FINDING_MEMORY, _GUARDING_MEMORY = 0.6, 0.8
# From below: a step that is too long can make the curvature that fits it, and stays (layer norm, whose loss bounds every step).
_FIRST = 0.1
# The search ends early after three looks in a row that change the rate by less than a tenth, but not before the sixth: further ones
# seldom change it.
_CALM, _LITTLE, _FEWEST = 3, 0.1, 6
# After the search it does not fall below this part of what was found: noise lowers it a little at every look.
_FLOOR = 0.1
# From so many steps in a row on that find no first rate it says so.
_PATIENCE = 3


class Calibrated:
    """One rate for all groups, found in the first ``steps`` steps or fewer, then looked at every ``period`` steps.

    Args:
        steps: how many steps look for the rate at most. Each costs one more evaluation of the loss. From the sixth
            look on it ends as soon as three in a row have changed the rate by less than a tenth.
        period: steps between two looks afterwards. In between the proposer takes its own step, at its own price.
        weight_decay: the part of every parameter that a step takes away, times lambda_1 and not times the rate.

    The first rate is a tenth of Newton's along u, of one exact summary, and halved until the loss falls: no number with a unit is chosen, so
    that another unit of the loss or of the parameters changes nothing (where the proposer's own eps has no part in it).
    A step that was far too long is shortened on the next batch, in place of a new step.

    State: eta (S,); step, how many were taken; sums, A and C; early_rate, what the search found so far or None; looked, how many looks it
    took, and calm, how many of them in a row changed it by less than a tenth; taken, the length of the last step, and previous, the parameters
    before it, or None where the next step does not look back. Before the first rate: failed, how many steps in a row found none; from the
    third on each is an outcome that was not accepted.

    Raises ValueError for numbers out of range.

    >>> import torch, gnewton as gn
    >>> model = gn.models.Quadratic([1.0, 4.0], dtype=torch.float64)
    >>> adam = gn.CautiousAdam(model.parameters())
    >>> optimizer = gn.GroupedNewton(gn.Partition.single(model), adam, policy=Calibrated())
    >>> losses = [optimizer.step(model).item() for _ in range(60)]
    >>> losses[-1] < 1e-3 * losses[0]
    True
    """

    def __init__(self, *, steps: int = 15, period: int = 10, weight_decay: float = 0.0) -> None:
        for name, number in (("steps", steps), ("period", period)):
            if not (isinstance(number, int) and number >= 1):
                raise ValueError(f"expected {name} of at least 1, got {number!r}; Calibrated() has {name} that fit")
        _check_decay(weight_decay)
        self.steps, self.period, self.weight_decay = steps, period, weight_decay

    def __repr__(self) -> str:
        return f"Calibrated(steps={self.steps}, period={self.period}, weight_decay={self.weight_decay})"

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"weight_decay": self.weight_decay}

    def needs_summary(self, settings: Settings, state: State) -> bool:
        return state.get("eta") is None

    def is_plain(self, settings: Settings, state: State) -> bool:
        return not self.needs_summary(settings, state)

    def hold(self, settings: Settings, state: State, partition: Partition) -> tuple[float, State] | None:
        if state["previous"] is not None or settings["weight_decay"]:
            return None
        after = _after(settings, state)
        if self._looks_after(after):
            after["previous"] = Parameters(partition).values
        return after["taken"], after

    def _looks_after(self, state: State) -> bool:
        """Whether the step after this one looks back at it."""
        return self._searches(state) or int(state["step"]) % self.period == 0

    def _searches(self, state: State) -> bool:
        """Whether the rate is still to be found."""
        calm = state.get("calm", 0) >= _CALM and state.get("looked", 0) >= _FEWEST
        return int(state["step"]) <= self.steps and not calm

    def step(self, line: Line, settings: Settings, state: State) -> tuple[Outcome | None, State]:
        _check_decay(settings["weight_decay"])  # it may have been changed since
        if state.get("eta") is None:
            return self._start(line, settings, state)
        look = look_back(line, state["previous"], state["taken"])
        if look is None:
            self._say_if_blind(state)
            return None, self._advance(line, settings, state)
        searches = self._searches(state)
        state, ratio, factor = self._judge(look, state)
        outcome = _outcome(look, settings, state, ratio)
        if searches and factor < 0.5:
            # The gradient here says little of where the run will be: the proposer does not learn of it.
            line.shorten(state["previous"], factor)
            return outcome, state | {"previous": None, "step": state["step"] + 1}
        return outcome, self._advance(line, settings, state)

    def _start(self, line: Line, settings: Settings, before: State) -> tuple[Outcome | None, State]:
        summary = line.summary(order=2)
        if summary is None:
            return None, {}
        eta, lr = line.from_first(_FIRST * uniform_step(summary)), float(settings["lr"])
        if not eta[0] > 0:
            return _no_start(summary, settings, before, _obstacle(summary))
        search = backtracking_line_search(lambda t: line.loss_at(t * eta), line.value, 0.0, 1.0, lr)
        line.objective.restore()
        if search.rate == 0 < lr:
            obstacle = Status.UNBOUNDED, "no length of a step along the proposer's direction lowers the loss"
            return _no_start(summary, settings, before, obstacle)
        state = {
            "eta": eta * 0.5**search.halvings,
            "step": 0,
            "sums": [0.0, 0.0],
            "early_rate": None,
            "looked": 0,
            "calm": 0,
        }
        return None, self._advance(line, settings, state)

    def _say_if_blind(self, state: State) -> None:
        """Warns, at the end of the search, where no look has said anything."""
        if state["step"] == self.steps and not state.get("looked", 0):
            warn(
                f"the rate was not found: in {self.steps} steps no look said anything, as the loss changes by less than its rounding, "
                "or on a straight line; return a loss in float32 (logits.float()) and without large constants. Until a look says "
                "something, the first rate stays, a tenth of Newton's",
                UserWarning,
            )

    def _judge(self, look: "Look", state: State) -> tuple[State, float, float]:
        """The state with the new rate, t*, and the factor on the rate."""
        # Where no look has said anything yet (all below rounding), the rate is still to be found.
        early, rate = self._searches(state) or state["early_rate"] is None, _rate(state)
        memory = _FINDING_MEMORY if early else _GUARDING_MEMORY
        slope, curvature = (memory * old + new for old, new in zip(state["sums"], look[:2], strict=True))
        ratio = newton_ratio(slope, curvature, rate)
        lowest, highest = _bounds(early, state)
        bounds = (lowest if ratio >= 0 else max(lowest, _CLIMBED), highest)
        factor = change(ratio, SEARCHED if early else GUARDED, bounds)
        rate = factor * rate if early else max(factor * rate, _FLOOR * state["early_rate"])
        after = {"eta": torch.full_like(state["eta"], rate), "sums": [slope, curvature]}
        if early:
            calm = state.get("calm", 0) + 1 if abs(math.log(factor)) <= _LITTLE else 0
            after |= {"early_rate": rate, "looked": state.get("looked", 0) + 1, "calm": calm}
        return state | after, ratio, factor

    def _advance(self, line: Line, settings: Settings, state: State) -> State:
        """Take the step; what the next one needs of it."""
        after = _after(settings, state)
        if settings["weight_decay"]:
            line.shrink(1 - float(settings["lr"]) * settings["weight_decay"])
        previous = None
        if self._looks_after(after):
            # Without weight decay they are where this step began, and a look has copied them already.
            previous = (Parameters(line.partition) if settings["weight_decay"] else line.objective.start).values
        line.take(after["taken"])
        return after | {"previous": previous}


def _check_decay(weight_decay: Any) -> None:
    if not (isinstance(weight_decay, int | float | Tensor) and 0 <= weight_decay < 1):
        raise ValueError(f"expected 0 <= weight_decay < 1, got {weight_decay!r}; 1e-4 is usual")


def _obstacle(summary: Summary) -> tuple[Status, str]:
    """Why there is no first rate along u."""
    slope = float(summary.gradient.sum())
    if not is_finite(summary):
        return (
            Status.NOT_FINITE,
            "slope or curvature along the proposer's step is not a finite number: rescale the loss",
        )
    if slope == 0:
        return (
            Status.STATIONARY,
            "the loss does not change along the proposer's step: its lr is 0, the gradient is, or the loss too large or small for its dtype",
        )
    return Status.UNBOUNDED, "the loss climbs along the proposer's step: it maximizes, or another batch chose it"


def _no_start(
    summary: Summary, settings: Settings, before: State, obstacle: tuple[Status, str]
) -> tuple[Outcome | None, State]:
    """What becomes of a step without a first rate. Raises NewtonStepError with on_failure="raise"."""
    failed = before.get("failed", 0) + 1
    # Some proposers (SOAP) begin with a step of zero, and a batch of its own may see u climb.
    if failed < _PATIENCE:
        return None, {"failed": failed}
    status, message = obstacle
    step = Step(torch.zeros(len(summary), dtype=torch.float64), status, math.nan, 0.0, message)
    return no_step(model_of(summary, settings, 0.0), step, settings), {"failed": failed}


class Look(NamedTuple):
    """a and c of the parabola, per unit of u, and the loss before and after the step."""

    slope: float
    curvature: float
    before: float
    after: float


def look_back(line: Line, previous: dict[str, Tensor] | None, taken: float) -> Look | None:
    """The parabola of this batch along the last step; None where there is none, or where rounding hides the curvature.

    Args:
        line: at the end of the last step, on another batch.
        previous: the parameters before it, or None.
        taken: its length, in units of u.
    """
    if previous is None or not taken:
        return None
    last = line.look_back(previous)
    bend = last.before - last.after - last.slope
    if not abs(bend) > 4 * last.rounding * (abs(last.before) + abs(last.after)):
        return None
    slope, curvature = parabola(last.before, last.after, last.slope, 1.0)
    return Look(slope / taken, curvature / taken**2, last.before, last.after)


def parabola(before: float, after: float, slope: float, step: float) -> tuple[float, float]:
    """a and c of phi(t) = before - a t + c t^2 / 2, which at t = ``step`` has the value ``after`` and falls by ``slope``.

    >>> parabola(before=2.0, after=0.5, slope=1.0, step=1.0)
    (2.0, 1.0)
    """
    curvature = 2 * (before - after - slope * step) / step**2
    return slope + curvature * step, curvature


def newton_ratio(slope: float, curvature: float, rate: float) -> float:
    """t*, Newton's step over the rate: without curvature infinite where it falls, and 0 where it rises.

    >>> newton_ratio(2.0, 4.0, 0.25), newton_ratio(1.0, -1.0, 0.25), newton_ratio(-1.0, -1.0, 0.25)
    (2.0, inf, 0.0)
    """
    if curvature > 0:
        return slope / curvature / rate
    return math.inf if slope > 0 else 0.0


def change(ratio: float, interval: tuple[float, float], bounds: tuple[float, float]) -> float:
    """The factor on the rate, between the bounds, that brings t* back to the nearer end of the interval.

    >>> [change(ratio, (0.5, 1.0), (0.05, 10.0)) for ratio in (3.0, 0.7, 0.25, -1.0, math.inf)]
    [3.0, 1.0, 0.5, 0.05, 10.0]
    """
    shortest, longest = interval
    wanted = ratio / longest if ratio > longest else ratio / shortest if ratio < shortest else 1.0
    return min(max(wanted, bounds[0]), bounds[1])


def _bounds(early: bool, state: State) -> tuple[float, float]:
    """Between which factors a look changes the rate."""
    if not early:
        return _GUARDING
    return _FINDING if state.get("looked", 0) else _FIRST_LOOK


def _after(settings: Settings, state: State) -> State:
    """The state after a step of the rate; while a schedule is at 0, nothing is taken and nothing can be found."""
    taken = float(settings["lr"]) * _rate(state)
    return state | {"step": state["step"] + bool(taken), "taken": taken}


def _rate(state: State) -> float:
    rate: float = state["eta"].tolist()[0]
    return rate


def _outcome(look: Look, settings: Settings, state: State, ratio: float) -> Outcome:
    return Outcome(
        value=look.after,
        gradient=torch.tensor([look.slope], dtype=torch.float64),
        hessian=torch.tensor([[look.curvature]], dtype=torch.float64),
        metric=None,
        learning_rates=state["eta"],
        lr=float(settings["lr"]),
        status="CONVERGED",
        predicted_decrease=math.nan,
        actual_decrease=look.before - look.after,
        cubic=0.0,
        newton_ratio=ratio,
        evaluations=1,
    )
