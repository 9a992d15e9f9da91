"""GroupedNewton: one learning rate per group from exact summaries, as a ``torch.optim.Optimizer``.

    theta  <-  theta - lambda_1 U I_{P:S} eta*

u is the gradient or another optimizer's proposal, eta* the cubic-regularized Newton step of the summary, recomputed
every ``period`` steps, lambda_1 the one number that learning-rate schedulers drive (Wolinski, arXiv 2312.03885, section 4).
"""

import copy
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor

from gnewton.adaptive import TOO_LOW, Trial, carried, judged, line_rates, tried
from gnewton.average import Average, Exponential, Windows, lengths, normalized
from gnewton.cubic import NewtonStepError, Status, Step, newton_step
from gnewton.derivatives.record import record_with_gradient
from gnewton.derivatives.tape import Tape
from gnewton.direction import Proposer, checked, slopes, value_and_gradient
from gnewton.loss import Buffers, RandomState, batches, prepared
from gnewton.partition import Partition
from gnewton.summary import Summary, summarize, summarize_tape

Closure = Callable[..., Tensor]
Data = Iterable[Any] | None

_HISTORY_RECORDS = 1000
_HISTORY_BYTES = 64e6


class StepWarning(UserWarning):
    """An update had no solution: the parameters stayed where they were."""


@dataclass(frozen=True, eq=False)
class Update:
    """One computation of the learning rates, for plots: numbers (S,) or (S, S) in float64 on the CPU.

    step: the step's number from 0; value: the loss on the curvature batch; gradient (S,) g-bar; hessian (S, S) H-bar,
    or None where S is so large that ten of them would take 64 MB;
    metric (S,) the diagonal of D, or None without the cubic term; learning_rates (S,) eta as used, lambda_1 not included;
    lr: lambda_1, after halvings where cubic is "adaptive", then 0 for a step not taken; status: the name of a ``Status``;
    predicted_decrease: -m at the step taken, lambda_1 eta; actual_decrease: what the loss of the curvature batch then lost
    (nan where no step was taken); cubic: lambda_int of this step; rho: actual over predicted decrease, of the full step eta
    for a new summary and of lambda_1 eta for kept curvature (nan where it was not asked for); evaluations: how often the loss was evaluated after the step, for this
    record and its test; age: the steps since H-bar and D were computed (0 for a new summary).
    """

    step: int
    value: float
    gradient: Tensor
    hessian: Tensor | None
    metric: Tensor | None
    learning_rates: Tensor
    lr: float
    status: str
    predicted_decrease: float
    actual_decrease: float
    cubic: float
    rho: float
    evaluations: int
    age: int = 0


@dataclass(frozen=True)
class _Curved:
    """What the summary is of: the loss itself, of which value and gradients are known, or another mini-batch's."""

    closure: Closure
    data: Data
    random: RandomState
    value: Tensor | None = None
    gradients: dict[str, Tensor] | None = None
    tape: Tape | None = None


class GroupedNewton(torch.optim.Optimizer):
    """Newton's method over the groups of a partition, with the anisotropic cubic term.

    partition: the S groups. direction: None for the gradient, or a torch optimizer that proposes u (RMSprop with momentum, say);
    it must hold the partition's parameters and its own ``lr`` only scales u, which eta* undoes. lr: lambda_1, the damping
    of eta*, 1 being the pure step; it is ``param_groups[0]["lr"]``, so every scheduler in ``torch.optim.lr_scheduler``
    drives it. cubic: lambda_int; 0 leaves the order-2 step; "adaptive" learns it from how well the model predicted
    (``gnewton.adaptive``), and takes no step that raises the loss of the curvature batch. period: steps between summaries.
    Where cubic is a number the learning rates are reused between them, as in the paper, and can explode: a direction of
    another length meets rates that were right for the last one. Where it is "adaptive" only H-bar and D are, for at most
    ``period`` steps and until they fail the test; each step has a new g-bar, for one more gradient. ridge, diagonal: as in
    ``newton_step``. eta_momentum: 0 <= beta < 1, eta <- beta eta + (1 - beta) eta*. remove_negative: negative rates become
    0. average: ``Exponential(beta)`` or ``Windows(period, warmup)``, the mean of the summaries of several updates; u is then
    normalized per group, and the learning rates belong to the normalized u. on_failure: "report" (an update without a
    solution leaves parameters and direction as they were, warns once per status and is tried again at the next step) or
    "raise" (NewtonStepError, nothing changed).

    ``param_groups`` is torch's bookkeeping and has one entry; the partition decides the groups. ``history`` holds the
    last updates. Raises ValueError or TypeError for settings out of range.

    >>> import torch, gnewton as gn
    >>> model = gn.models.Rosenbrock(2)
    >>> optimizer = gn.GroupedNewton(gn.Partition.by_scalar(model), lr=1.0, cubic=1.0, period=1)
    >>> losses = [optimizer.step(model).item() for _ in range(80)]
    >>> losses[0] > 20, losses[-1] < 1e-6
    (True, True)
    """

    def __init__(
        self,
        partition: Partition,
        direction: torch.optim.Optimizer | None = None,
        lr: float = 0.3,
        cubic: float | Literal["adaptive"] = "adaptive",
        period: int = 1,
        ridge: float = 0.0,
        diagonal: bool = False,
        eta_momentum: float = 0.0,
        remove_negative: bool = False,
        average: Average | None = None,
        on_failure: Literal["report", "raise"] = "report",
    ) -> None:
        if not isinstance(partition, Partition):
            raise TypeError(
                f"expected a Partition, got {type(partition).__name__}; write GroupedNewton(Partition.by_tensor(model))"
            )
        settings = {
            "lr": lr,
            "cubic": cubic,
            "period": period,
            "ridge": ridge,
            "diagonal": diagonal,
            "eta_momentum": eta_momentum,
            "remove_negative": remove_negative,
            "on_failure": on_failure,
        }
        _check_settings(settings)
        if not isinstance(average, Exponential | Windows | None):
            raise TypeError(
                f"expected an average of summaries, got {average!r}; write gn.average.Exponential(0.9) or gn.average.Windows(5, 3)"
            )
        self.partition, self.average = partition, average
        self.proposer = None if direction is None else Proposer(direction, partition)
        self.history: deque[Update] = deque(maxlen=_history_length(len(partition)))
        self._warned: set[str] = set()
        super().__init__(list(partition.parameters.values()), settings)
        memory = {"step": 0, "eta": None, "age": 0, "average": None, "cubic": 1.0, "kept": None}
        self.state["grouped_newton"] = memory  # type: ignore[index]

    @property
    def learning_rates(self) -> Tensor | None:
        """eta (S,), float64 on the CPU, as the next step would use it if it were not due for an update; None before the first."""
        eta: Tensor | None = self._memory["eta"]
        return eta

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refused after construction: the partition says which parameters move."""
        if self.param_groups:
            raise ValueError(
                "expected the partition to hold every parameter, got another group; build a new Partition and optimizer"
            )
        super().add_param_group(param_group)

    def step(self, closure: Closure, curvature: Closure | None = None, data: Data = None) -> Tensor:  # type: ignore[override]
        """One step; returns the loss before it, a detached tensor ().

        ``closure()`` returns the loss with its graph and must not call backward. The summaries come from the same closure,
        or from ``curvature()`` (another mini-batch). Both must give the same loss when called again. With ``data``, the
        step is a full-batch one: ``closure(*batch)`` is a batch mean, and loss, direction and summary are the means over
        all samples of all batches, which are read one at a time, in one pass after another. Buffers (batch norm) advance
        once per step and batch, as in any training loop. An error leaves parameters and state as they were: ValueError or
        TypeError for an unfit loss or data, FloatingPointError for a loss or gradient that is not finite.
        """
        _check_settings(self.param_groups[0])
        _check_data(data, curvature)
        random, buffers = RandomState(self.partition), Buffers(self.partition.module)
        try:
            tape = None
            if curvature is None and data is None and self._is_due:
                with prepared(self.partition, restore_buffers=False):
                    tape, gradients = record_with_gradient(closure, self.partition)
                assert tape.value is not None
                value = tape.value.detach()
            else:
                with prepared(self.partition, restore_buffers=False, higher=False):
                    value, gradients = value_and_gradient(closure, self.partition, data)
            _check_finite(gradients, "gradient")
            if curvature is None:
                # The same closure must be the same function again: it replays the random numbers of its first call.
                curved = _Curved(closure, data, random, value, gradients, tape)
            else:
                curved = _Curved(curvature, None, RandomState(self.partition))
            self._step_along(gradients, curved)
        except BaseException:
            buffers.restore()
            random.restore()
            raise
        self._memory["step"] += 1
        self._memory["age"] += 1
        return value

    def _step_along(self, gradients: dict[str, Tensor], curved: "_Curved") -> None:
        u = gradients if self.proposer is None else self.proposer.propose(gradients)
        stands = False
        try:
            _check_finite(u, "direction")
            if self.average is not None:
                u = normalized(u, self.partition)
            if self._adaptive:
                stands = self._adapt(u, curved)
            elif self._memory["eta"] is not None and self._memory["age"] < self.param_groups[0]["period"]:
                self._move(u, self._memory["eta"])
                stands = True
            else:
                stands = self._update(u, curved)
        finally:
            if self.proposer is not None and not stands:
                self.proposer.take_back()

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs, the proposer's state and the history included; loads under weights_only=True."""
        packed = super().state_dict()
        # A saved state must not follow the run that goes on: torch's packing shares this dictionary.
        packed["state"] = packed["state"] | {"grouped_newton": copy.deepcopy(self._memory)}
        return packed | {
            "groups": list(self.partition.names),
            "direction": None if self.proposer is None else self.proposer.optimizer.state_dict(),
            "direction_kind": self._direction_kind,
            "average": repr(self.average),
            "history": [{f.name: getattr(update, f.name) for f in fields(Update)} for update in self.history],
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Inverse of ``state_dict``, for an optimizer built with the same partition and kind of direction.

        Raises ValueError, and changes nothing, where the state is another optimizer's.
        """
        self._check_state(state_dict)
        state = copy.deepcopy(dict(state_dict))
        if self.proposer is not None:
            # torch checks the groups before it changes anything, so that a misfit stops here.
            self.proposer.optimizer.load_state_dict(state["direction"])
        super().load_state_dict({"state": state["state"], "param_groups": state["param_groups"]})
        eta, kept = self._memory["eta"], self._memory.get("kept")
        self._memory["eta"] = None if eta is None else eta.cpu()
        self._memory["kept"] = None if kept is None else _moved(kept, self.partition.device)
        self.history.clear()
        self.history.extend(Update(**{k: _on_cpu(v) for k, v in record.items()}) for record in state["history"])

    def __getstate__(self) -> dict[str, Any]:
        # torch copies and pickles its own attributes alone.
        ours = ("partition", "average", "proposer", "history", "_warned")
        return dict(super().__getstate__()) | {name: getattr(self, name) for name in ours}

    @property
    def _direction_kind(self) -> str:
        return "gradient" if self.proposer is None else type(self.proposer.optimizer).__name__

    def _check_state(self, state: Mapping[str, Any]) -> None:
        if "grouped_newton" not in state.get("state", {}):
            raise ValueError(
                "expected the state of a GroupedNewton, got another optimizer's; load what its state_dict() returned"
            )
        if state["direction_kind"] != self._direction_kind:
            raise ValueError(
                f"expected a state whose direction is {self._direction_kind}, got {state['direction_kind']}; "
                "build the optimizer as it was then"
            )
        if state["average"] != repr(self.average):
            raise ValueError(
                f"expected a state with average={self.average!r}, got {state['average']}; build the optimizer as it was then"
            )
        if state["groups"] != list(self.partition.names):
            raise ValueError(
                f"expected a state of the {len(self.partition)} groups of this partition, got {len(state['groups'])} groups"
                + (" of other names" if len(state["groups"]) == len(self.partition) else "")
                + "; build the partition as it was then"
            )

    # -- one update ------------------------------------------------------------------------------------------------

    @property
    def _memory(self) -> dict[str, Any]:
        memory: dict[str, Any] = self.state["grouped_newton"]  # type: ignore[index]
        return memory

    def _update(self, u: dict[str, Tensor], curved: "_Curved") -> bool:
        """New learning rates from a new summary, the step with them, and its record; whether the proposal stands."""
        here = self._summary(u, curved, order=3 if self._cubic > 0 else 2)
        summary, average = self._averaged(here)
        before = float(here.value if curved.value is None else curved.value)
        stands = summary is None or self._take(u, summary, curved, before, age=0)
        self._memory["average"] = average
        return stands

    @property
    def _is_due(self) -> bool:
        """Whether this step takes a new summary, of a loss that has been found to be the same when called again."""
        nothing = self._memory["kept" if self._adaptive else "eta"] is None
        return self._memory["step"] > 0 and (nothing or self._memory["age"] >= self.param_groups[0]["period"])

    def _summary(self, u: dict[str, Tensor], curved: "_Curved", order: int) -> Summary:
        if curved.tape is not None:
            # Checked when it was evaluated; the sweep reads the list alone.
            here = summarize_tape(curved.tape, self.partition, checked(u, self.partition), order)
            if here is not None:
                return here
        # A separate curvature closure draws its own random numbers, once; its second call repeats them.
        with curved.random.replayed() if curved.value is not None else nullcontext():
            here = summarize(curved.closure, self.partition, u, order, data=curved.data)
        if curved.value is not None:
            self._check_same(float(curved.value), float(here.value))
        return here

    def _adapt(self, u: dict[str, Tensor], curved: "_Curved") -> bool:
        """A step with a new summary where one is due, or else with H-bar and D as they were and a new g-bar."""
        kept = self._memory["kept"]
        aged = kept is None or self._memory["age"] >= self.param_groups[0]["period"]
        now = None if aged else lengths(u, self.partition)
        if now is None or bool(((kept["lengths"] == 0) & (now > 0)).any()):
            self._memory["kept"] = None
            return self._update(u, curved)
        value, gradients = self._slope(curved)
        gradient = slopes(gradients, u, self.partition)
        if not torch.isfinite(gradient).all():
            _check_finite(gradients, "gradient")
        then = Summary.from_state_dict(kept["summary"])
        summary = carried(then, kept["lengths"], gradient, now, float(value))
        return self._take(u, summary, curved, float(value), age=self._memory["age"])

    def _slope(self, curved: "_Curved") -> tuple[Tensor, dict[str, Tensor]]:
        if curved.value is not None and curved.gradients is not None:
            return curved.value, curved.gradients
        with prepared(self.partition, higher=False):
            return value_and_gradient(curved.closure, self.partition)

    def _take(self, u: dict[str, Tensor], summary: Summary, curved: "_Curved", before: float, age: int) -> bool:
        """The step of this summary and its record; whether the proposal stands."""
        settings = self.param_groups[0] | {"cubic": self._cubic}
        step = newton_step(summary, settings["cubic"], settings["ridge"], settings["diagonal"], on_failure="report")
        eta = step.learning_rates
        if self._adaptive and step.status is Status.UNBOUNDED:
            eta = line_rates(summary)
        elif not step.status.ok:
            self._fail(summary, step, settings, age)
            return False
        eta = self._smoothed(eta)
        trial = self._tried(u, eta, summary, before, step, settings, curved, age)
        self._record(summary, step, eta, settings, trial, before, age)
        taken = None if trial.rate == 0 < settings["lr"] else eta * 0.5**trial.halvings
        self._memory.update({"eta": taken, "age": age})
        if self._adaptive:
            self._learn(u, summary, settings["cubic"], trial, age)
        return True

    def _learn(self, u: dict[str, Tensor], summary: Summary, cubic: float, trial: Trial, age: int) -> None:
        """lambda_int from the trial; and the curvature kept for the next step, unless it was kept already and failed."""
        self._memory["cubic"] = judged(cubic, trial.rho)
        if age == 0 and self.param_groups[0]["period"] > 1:
            self._memory["kept"] = {"summary": summary.state_dict(), "lengths": lengths(u, self.partition)}
        elif age and not trial.rho >= TOO_LOW:
            self._memory["kept"] = None

    def _tried(
        self,
        u: dict[str, Tensor],
        eta: Tensor,
        summary: Summary,
        before: float,
        step: Step,
        settings: Mapping[str, Any],
        curved: "_Curved",
        age: int,
    ) -> Trial:
        """Move along u, by lambda_1 eta or, where lambda_int is adaptive, by what the trial grants; undone on an error."""
        lr = float(settings["lr"])
        if self._adaptive and not eta.any():
            return Trial(lr, before, float("nan"), 0, 0)
        with self._undone_on_error() as start:

            def loss_at(t: float) -> float:
                with torch.no_grad():
                    for name, change in self.partition.scale(u, t * eta).items():
                        self.partition.parameters[name].copy_(start[name] - change)
                return self._value(curved)

            if not self._adaptive:
                return Trial(lr, loss_at(lr), float("nan"), 0, 1)
            asked = lr if age else 1.0
            promised = _promised(summary, step, asked, eta, settings) if step.status.ok else 0.0
            return tried(loss_at, before, promised, asked, lr)

    def _fail(self, summary: Summary, step: Step, settings: Mapping[str, Any], age: int) -> None:
        if settings["on_failure"] == "raise":
            raise NewtonStepError(step)
        self._warn(step)
        self._memory.update({"eta": None, "kept": None})
        nothing = Trial(float(settings["lr"]), float("nan"), float("nan"), 0, 0)
        self._record(summary, step, step.learning_rates, settings, nothing, float("nan"), age)

    @property
    def _adaptive(self) -> bool:
        return bool(self.param_groups[0]["cubic"] == "adaptive")

    @property
    def _cubic(self) -> float:
        return float(self._memory["cubic"] if self._adaptive else self.param_groups[0]["cubic"])

    def _averaged(self, summary: Summary) -> tuple[Summary | None, Any]:
        """The summary to step with, None during a warm-up, and the average's memory after it."""
        memory = self._memory["average"]
        # What is not finite has no step, and would stay in an average for good.
        if self.average is None or not all(torch.isfinite(t).all() for t in summary.tensors()):
            return summary, memory
        return self.average(memory, summary)

    @contextmanager
    def _undone_on_error(self) -> Iterator[dict[str, Tensor]]:
        before = {name: p.detach().clone() for name, p in self.partition.parameters.items()}
        try:
            yield before
        except BaseException:
            with torch.no_grad():
                for name, p in self.partition.parameters.items():
                    p.copy_(before[name])
            raise

    def _smoothed(self, eta: Tensor) -> Tensor:
        settings, previous = self.param_groups[0], self._memory["eta"]
        if settings["remove_negative"]:
            eta = eta.clamp(min=0.0)
        beta = settings["eta_momentum"]
        return beta * previous + (1 - beta) * eta if beta and previous is not None else eta

    @torch.no_grad()
    def _move(self, u: dict[str, Tensor], eta: Tensor) -> None:
        for name, change in self.partition.scale(u, self.param_groups[0]["lr"] * eta).items():
            self.partition.parameters[name].sub_(change)

    def _value(self, curved: "_Curved") -> float:
        # After the step the loss may well be infinite: that is a fact for the record, not an error of this step.
        with curved.random.replayed(), prepared(self.partition, higher=False):
            values = [(float(curved.closure(*batch).detach()), n) for batch, n in batches(curved.data, None)]
        return sum(value * n for value, n in values) / sum(n for _, n in values)

    def _check_same(self, first: float, second: float) -> None:
        # Roundings in another order differ by far less; another batch by far more.
        if abs(first - second) > 1e-3 * max(abs(first), abs(second)) and "ANOTHER LOSS" not in self._warned:
            warnings.warn(
                f"expected the same loss when the closure is called again, got {first:.4g} and then {second:.4g}; "
                "draw the mini-batch outside the closure",
                StepWarning,
                stacklevel=6,
            )
            self._warned.add("ANOTHER LOSS")

    def _record(
        self,
        summary: Summary,
        step: Step,
        eta: Tensor,
        settings: Mapping[str, Any],
        trial: Trial,
        before: float,
        age: int,
    ) -> None:
        metric = None if summary.third is None else summary.third.abs().pow(1 / 3).cpu()
        small = 10 * 8 * len(summary) ** 2 <= _HISTORY_BYTES
        self.history.append(
            Update(
                step=self._memory["step"],
                value=float(summary.value),
                gradient=summary.gradient.cpu(),
                hessian=summary.hessian.cpu() if small and summary.hessian is not None else None,
                metric=metric,
                learning_rates=eta,
                lr=trial.rate,
                status=step.status.name,
                predicted_decrease=_promised(summary, step, trial.rate, eta, settings),
                actual_decrease=before - trial.after,
                cubic=float(settings["cubic"]),
                rho=trial.rho,
                evaluations=trial.evaluations,
                age=age,
            )
        )

    def _warn(self, step: Step) -> None:
        if step.status.name not in self._warned:
            warnings.warn(f"no step was taken, parameters unchanged: {step.message}", StepWarning, stacklevel=7)
            self._warned.add(step.status.name)


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, dict):
        return {name: _moved(one, device) for name, one in value.items()}
    return value.to(device) if isinstance(value, Tensor) else value


def _on_cpu(value: Any) -> Any:
    return value.cpu() if isinstance(value, Tensor) else value


def _promised(summary: Summary, step: Step, lr: float, eta: Tensor, settings: Mapping[str, Any]) -> float:
    """-m(lr eta), which the solver has said where that is its own step."""
    if lr == 1 and eta is step.learning_rates and step.status.ok:
        return step.predicted_decrease
    return _predicted_decrease(summary, lr * eta, settings)


def _predicted_decrease(summary: Summary, eta: Tensor, settings: Mapping[str, Any]) -> float:
    """-m(eta) = g-bar . eta - 1/2 eta . (H-bar + ridge) eta - lambda_int/6 ||D eta||^3, for any eta; H-bar as the step used it."""
    eta, hessian = eta.to(summary.gradient), summary.hessian
    assert hessian is not None  # the summaries of an update have order 2 or 3
    curvature = hessian.diagonal() * eta if settings["diagonal"] else hessian @ eta
    decrease = summary.gradient @ eta - eta @ (curvature + settings["ridge"] * eta) / 2
    if summary.third is not None:
        decrease -= settings["cubic"] / 6 * (summary.third.abs().pow(1 / 3) * eta).norm() ** 3
    return float(decrease)


def _check_settings(settings: Mapping[str, Any]) -> None:
    for name in ("lr", "cubic", "ridge", "eta_momentum"):
        if name == "cubic" and settings[name] == "adaptive":
            continue
        if not isinstance(settings[name], int | float | Tensor):
            raise TypeError(f"expected a number for {name}, got {settings[name]!r}")
        if not 0 <= settings[name] < float("inf"):
            raise ValueError(f"expected {name} >= 0 and finite, got {settings[name]}")
    if not 0 <= settings["eta_momentum"] < 1:
        raise ValueError(f"expected 0 <= eta_momentum < 1, got {settings['eta_momentum']}")
    if not (isinstance(settings["period"], int) and settings["period"] >= 1):
        raise ValueError(f"expected a period of at least 1 step, got {settings['period']!r}")
    if settings["on_failure"] not in ("report", "raise"):
        raise ValueError(f'expected on_failure="report" or "raise", got {settings["on_failure"]!r}')


def _check_data(data: Data, curvature: Closure | None) -> None:
    if data is None:
        return
    if curvature is not None:
        raise ValueError(
            "expected curvature= or data=, got both; a full-batch step has its summaries from the same data"
        )
    if iter(data) is data:
        raise ValueError(
            f"expected data that can be read several times, got a {type(data).__name__}, which is used up after one pass; "
            "pass a list, a DataLoader or Dataset.batches(...)"
        )


def _check_finite(tensors: Mapping[str, Tensor], what: str) -> None:
    # A sum is finite only where every term is; finite terms with a sum beyond the dtype are looked at one by one.
    sums = [g.sum() for g in tensors.values()]
    total = torch.stack([one.to(sums[0]) for one in sums]).sum()
    if total.is_meta or torch.isfinite(total):
        return
    for name, g in tensors.items():
        if not torch.isfinite(g).all():
            raise FloatingPointError(
                f"expected a finite {what}, got NaN or infinity in {name}; check the inputs or lower the learning rate"
            )


def _history_length(groups: int) -> int:
    return int(max(10, min(_HISTORY_RECORDS, _HISTORY_BYTES / (8 * groups * groups))))
