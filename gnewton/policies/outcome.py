"""What became of one computation of the learning rates: for the history, for warnings, for plots."""

from copy import copy
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor

from gnewton.cubic import CubicModel, Step

HISTORY_BYTES = 64e6
_HISTORY_RECORDS = 1000
_NAN = float("nan")


def history_length(groups: int) -> int:
    """How many outcomes of this many groups are kept.

    >>> history_length(4), history_length(5000)
    (1000, 10)
    """
    return int(max(10, min(_HISTORY_RECORDS, HISTORY_BYTES / (8 * groups**2))))


@dataclass(frozen=True, eq=False, kw_only=True)
class Outcome:
    """One computation of the learning rates; tensors are float64 on the CPU.

    Args:
        step: the step's number, from 0.
        value: the loss on the curvature batch.
        gradient: g-bar, (S,).
        hessian: H-bar, (S, S); None where S is so large that ten of them would take 64 MB.
        metric: the diagonal of D, (S,); None without the cubic term.
        learning_rates: eta, (S,). The step was -lr eta_s u_s.
        lr: lambda_1, after halvings where cubic is "adaptive"; 0 for a step not taken.
        status: the name of a ``Status``.
        predicted_decrease: -m at the step taken, lambda_1 eta.
        actual_decrease: what the loss of the curvature batch then lost; nan where no step was taken.
        cubic: lambda_int of this step.
        rho: actual over predicted decrease: of the full step eta for a new summary, of lambda_1 eta for cached
            curvature; nan where it was not asked for.
        newton_ratio: t*, Newton's step along the last update over that update; nan where the policy did not ask.
        evaluations: how often the loss was evaluated after the step, for this record and its test.
        age: the steps since H-bar and D were computed; 0 for a new summary.
        message: why the parameters stayed where they were; empty for a step that was accepted.
    """

    step: int = 0
    value: float
    gradient: Tensor
    hessian: Tensor | None
    metric: Tensor | None
    learning_rates: Tensor
    lr: float
    status: str
    predicted_decrease: float
    actual_decrease: float = _NAN
    cubic: float
    rho: float = _NAN
    newton_ratio: float = _NAN
    evaluations: int = 0
    age: int = 0
    message: str = ""

    @property
    def accepted(self) -> bool:
        """Whether there were rates to go by; if not, the proposer forgets this step's proposal."""
        return not self.message

    @classmethod
    def of(cls, model: CubicModel, step: Step, **facts: Any) -> Self:
        """The outcome of a step by this model; ``facts`` are the fields that model and step do not say."""
        summary, metric = model.summary, model.metric
        small = 10 * 8 * len(summary) ** 2 <= HISTORY_BYTES
        known: dict[str, Any] = {
            "value": float(summary.value),
            "gradient": summary.gradient.cpu(),
            "hessian": summary.hessian.cpu() if small and summary.hessian is not None else None,
            "metric": None if metric is None else metric.cpu(),
            "learning_rates": step.learning_rates,
            "status": step.status.name,
            "cubic": float(model.cubic),
        }
        return cls(**(known | facts))


def at_step(outcome: Any, step: int) -> Any:
    """The same outcome, of this step; a policy may have a class of its own for it."""
    one = copy(outcome)
    object.__setattr__(one, "step", step)  # frozen: but nobody else has seen the copy yet
    return one
