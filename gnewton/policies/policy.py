"""What a policy is, and what the policies that step by the cubic model share."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from gnewton.cubic import CubicModel, NewtonStepError, Status, Step
from gnewton.line import Line
from gnewton.partition import Partition
from gnewton.policies.outcome import Outcome

Settings = Mapping[str, Any]
State = dict[str, Any]


class Policy(Protocol):
    """How far each group goes along u.

    Rates that only shrink on a schedule need no policy: ``torch.optim.lr_scheduler.StepLR(optimizer, 100, gamma=0.5)``
    halves all of them every 100 steps.

    A policy around another one hands ``needs_summary``, ``step`` and ``is_plain`` (through the function of that name, below) on, and
    keeps the inner state under a key of its own, ``state | {"inner": inner}``: two policies may use the same words.

    A saved state is loaded where ``repr(policy)`` is the same, or, without a ``__repr__``, where its settings are: write one, or be a data
    class, if the settings are not all of it.

    A policy may have ``is_plain(settings, state)``: whether the next step asks for no summary. Its gradient is then taken as any
    training loop does, without the checks of the closure, which the steps with a summary make.

    A policy may have ``hold(settings, state, partition)``: the rate of the next step and the state after it, where that step
    asks nothing of the line, else None; the parameters are still where that step begins. Where ``is_plain`` says so too, a
    proposer that can takes it by itself, and ``step`` is not called. A subclass needs a ``hold`` of its own: an inherited one
    knows nothing of what the subclass does in its step, and is not asked.
    """

    @property
    def settings(self) -> Mapping[str, Any]:
        """The policy's own numbers that may change while it trains, as it was made, by name; {} for none.

        GroupedNewton copies them into ``param_groups[0]``, beside its own settings, where schedulers and ``AsRate`` drive
        them. A name that GroupedNewton has itself is refused there.
        """

    def needs_summary(self, settings: Settings, state: State) -> bool:
        """Whether the next step will ask for a summary: the loss is then recorded while its gradient is taken.

        It is asked once when the optimizer is built, with no state. Raise ValueError there for settings that do not fit.
        """

    def step(self, line: Line, settings: Settings, state: State) -> tuple[Outcome | None, State]:
        """Move along the line; return what became of it and the new state, and leave the old state as it was.

        Args:
            line: the loss along u, and how to move. ``summary`` is the dear question, ``slope`` costs a gradient at most,
                ``loss_at`` an evaluation. ``loss_at``, ``move`` and ``take`` move, the last one at the proposer's own price.
            settings: ``param_groups[0]`` as it is now: GroupedNewton's settings and the policy's own, in one dictionary.
            state: what the last step returned, {} before the first: plain tensors and numbers, which are saved. Its "eta"
                (S,), on the CPU, is shown as ``optimizer.learning_rates``: the last step was -lr eta_s u_s. When a state is loaded,
                everything else moves to the parameters' device; bring back what is to be on the CPU (``.cpu()``).

        The proposer is asked for u when ``line.direction`` is first read. ``line.take`` does not read it where the proposer can
        take its step by itself; without either the proposer does not learn of this step's gradient.

        The outcome is None for a step without anything new to record. An error undoes the whole step.
        """


def is_plain(policy: Policy, settings: Settings, state: State) -> bool:
    """Whether the policy says that its next step asks for no summary, so that no closure needs to be checked."""
    return hasattr(policy, "is_plain") and bool(policy.is_plain(settings, state))


def held(policy: Policy, settings: Settings, state: State, partition: Partition) -> tuple[float, State] | None:
    """The rate of a step that asks nothing, and the state after it; None where the policy asks something, or does not say."""
    # An inherited one knows nothing of what a subclass, or this very object, does in its step.
    hold = vars(type(policy)).get("hold")
    own = callable(hold) and "step" not in getattr(policy, "__dict__", ())
    return hold(policy, settings, state, partition) if own and is_plain(policy, settings, state) else None  # type: ignore[misc]


def model_of(summary: Any, settings: Settings, cubic: float) -> CubicModel:
    """The cubic model of a summary, with ridge and diagonal as the optimizer has them."""
    return CubicModel(summary, cubic, settings["ridge"], settings["diagonal"])


def minimize(model: CubicModel, line: Line) -> Step:
    """The minimum of the model; where several ranks train, the one that the first of them found."""
    step, kinds = model.minimize(), list(Status)
    if line.partition.ranks.size == 1:
        return step
    numbers = [float(kinds.index(step.status)), step.radius, step.predicted_decrease]
    kind, radius, decrease, *_ = first = line.from_first(
        torch.cat([step.learning_rates.new_tensor(numbers), step.learning_rates])
    )
    return replace(
        step,
        status=kinds[int(kind)],
        radius=float(radius),
        predicted_decrease=float(decrease),
        learning_rates=first[3:],
    )


def smooth_rates(eta: Tensor, previous: Tensor | None, settings: Settings) -> Tensor:
    """eta without its negative rates, averaged with the previous eta, as ``remove_negative`` and ``eta_momentum`` say."""
    if settings["remove_negative"]:
        eta = eta.clamp(min=0.0)
    beta = settings["eta_momentum"]
    return beta * previous + (1 - beta) * eta if beta and previous is not None else eta


def predicted_decrease(model: CubicModel, step: Step, rate: float, eta: Tensor) -> float:
    """-m(rate eta); from the solver, to more digits, where that is the very step it found.

    Args:
        model: m.
        step: the model's minimum.
        rate: the part of eta, lambda_1 perhaps.
        eta: the rates, (S,).
    """
    if rate == 1 and eta is step.learning_rates and step.status.ok:
        return step.predicted_decrease
    return float(model.decrease(rate * eta))


def no_step(model: CubicModel, step: Step, settings: Settings, age: int = 0) -> Outcome:
    """The outcome where the model has no minimum: nothing moves. Raises NewtonStepError with on_failure="raise"."""
    if settings["on_failure"] == "raise":
        raise NewtonStepError(step)
    lr, predicted = float(settings["lr"]), float(model.decrease(step.learning_rates))
    return Outcome.of(model, step, lr=lr, predicted_decrease=predicted, age=age, message=step.message)
