"""The paper's policy: the learning rates of one summary serve for several steps (arXiv 2312.03885, section 4)."""

from collections.abc import Mapping
from typing import Any, ClassVar

from gnewton.line import Line
from gnewton.policies.outcome import Outcome
from gnewton.policies.policy import Settings, State, minimize, model_of, no_step, predicted_decrease, smooth_rates


class ReuseRates:
    """eta* of a new summary every ``period`` steps, and the same rates in between; lambda_int is ``cubic``, a number.

    Between summaries the rates can explode: they were computed for one direction and are applied to another of
    different length. State: eta (S,), and age, the steps since its summary. Raises ValueError for cubic="adaptive".
    """

    settings: ClassVar[Mapping[str, Any]] = {}

    def needs_summary(self, settings: Settings, state: State) -> bool:
        _check_cubic(settings["cubic"])
        return state.get("eta") is None or state["age"] >= settings["period"]

    def step(self, line: Line, settings: Settings, state: State) -> tuple[Outcome | None, State]:
        if not self.needs_summary(settings, state):
            line.move(settings["lr"] * state["eta"])
            return None, state | {"age": state["age"] + 1}
        cubic = float(settings["cubic"])
        summary = line.summary(order=3 if cubic > 0 else 2)
        if summary is None:
            return None, state
        model = model_of(summary, settings, cubic)
        step = minimize(model, line)
        if not step.status.ok:
            return no_step(model, step, settings), state | {"eta": None}
        eta = smooth_rates(step.learning_rates, state.get("eta"), settings)
        lr = float(settings["lr"])
        after = line.loss_at(lr * eta)
        outcome = Outcome.of(
            model,
            step,
            learning_rates=eta,
            lr=lr,
            predicted_decrease=predicted_decrease(model, step, lr, eta),
            actual_decrease=line.value - after,
            evaluations=1,
        )
        return outcome, state | {"eta": eta, "age": 1}


def _check_cubic(cubic: Any) -> None:
    if cubic == "adaptive":
        raise ValueError(
            'expected a number for cubic with the policy ReuseRates, got "adaptive"; '
            "write GroupedNewton(partition, cubic=1.0), whose policy is ReuseRates"
        )
