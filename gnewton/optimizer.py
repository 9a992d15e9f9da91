"""GroupedNewton: one learning rate per group from exact summaries, as a ``torch.optim.Optimizer``.

    theta  <-  theta - lambda_1 U I_{P:S} eta

u is the gradient or another optimizer's proposal, eta what a policy makes of the summaries along u, lambda_1 the number that
learning-rate schedulers drive (Wolinski, arXiv 2312.03885, section 4). This file keeps torch's contract, and no policy's insides.
"""

import copy
from collections import deque
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from gnewton import saved_state
from gnewton.average import Average
from gnewton.caller import warn
from gnewton.direction import Direction
from gnewton.held import take_held_step
from gnewton.hooks import wrap_on_demand
from gnewton.line import Closure, Data, Line, Objective
from gnewton.loss import samples_in
from gnewton.partition import Partition
from gnewton.policies import Outcome, Policy, RatioTest, ReuseRates
from gnewton.policies.outcome import at_step, history_length
from gnewton.policies.policy import is_plain
from gnewton.proposer import Proposal, Proposer
from gnewton.replicas import Replicas
from gnewton.settings import check_arguments, check_data, check_settings, with_policy
from gnewton.summary import check_engine
from gnewton.undo import Start, undone_on_error


class StepWarning(UserWarning):
    """An update had no solution: the parameters stayed where they were."""


class GroupedNewton(torch.optim.Optimizer):
    """Newton's method over the groups of a partition, with the anisotropic cubic term.

    Args:
        partition: the S groups. A scalar in no group never moves.
        proposer: proposes u, the direction. None is the gradient. A torch optimizer proposes the step that it would take. It
            must hold the partition's parameters. Its own ``lr`` only scales u, and eta undoes that.
        lr: lambda_1, the damping: a factor on eta. 1 is the pure step. It is ``param_groups[0]["lr"]``, so every scheduler
            in ``torch.optim.lr_scheduler`` drives it.
        cubic: lambda_int, the strength of the cubic term. "adaptive" is the policy ``RatioTest``: lambda_int follows how
            well the model predicted, and no step raises the loss of the curvature batch. A number is the policy
            ``ReuseRates``, the paper's; 0 leaves the step of order 2.
        period: steps between summaries. With "adaptive" the curvature is kept between them, with a number the rates are.
        ridge: as in ``newton_step``: ridge I is added to H-bar.
        diagonal: as in ``newton_step``: only the diagonal of H-bar is used.
        eta_momentum: beta, 0 <= beta < 1, in eta <- beta eta + (1 - beta) eta*.
        remove_negative: negative rates become 0.
        average: ``Exponential(beta)`` or ``Windows(period, warmup)``, the mean of the summaries of several updates. The
            direction is then normalized per group, and the rates belong to the normalized one.
        policy: any other ``Policy``, in place of the two that ``cubic`` chooses. Its settings join the optimizer's.
        engine: of the summaries, as in ``summarize``: "differences" takes any loss that has a gradient, and is not exact.
        on_failure: what to do where there is no solution. "report" leaves parameters and proposer as they were, warns once
            per status and tries again at the next step. "raise" raises NewtonStepError, and nothing has changed.

    ``param_groups`` is torch's bookkeeping and has one entry; the partition decides the groups. ``history`` holds the
    last outcomes. Raises ValueError or TypeError for settings out of range.

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
        proposer: torch.optim.Optimizer | None = None,
        *,
        lr: float = 1.0,
        cubic: float | Literal["adaptive"] = "adaptive",
        period: int = 5,
        ridge: float = 0.0,
        diagonal: bool = False,
        eta_momentum: float = 0.0,
        remove_negative: bool = False,
        average: Average | None = None,
        policy: Policy | None = None,
        engine: str = "auto",
        on_failure: Literal["report", "raise"] = "report",
        **renamed: Any,
    ) -> None:
        check_arguments(partition, average, renamed)
        own = {
            "lr": lr,
            "cubic": cubic,
            "period": period,
            "ridge": ridge,
            "diagonal": diagonal,
            "eta_momentum": eta_momentum,
            "remove_negative": remove_negative,
            "on_failure": on_failure,
        }
        settings = with_policy(own, policy)
        check_settings(settings)
        check_engine(engine)
        self.partition, self.average, self.policy, self.engine = partition, average, policy, engine
        self.proposer = None if proposer is None else Proposer(proposer, partition)
        self.history: deque[Outcome] = deque(maxlen=history_length(len(partition)))
        self._warned: set[str] = set()
        self._replicas = Replicas(partition)
        super().__init__(list(partition.parameters.values()), settings)
        self.state["grouped_newton"] = {"step": 0, "average": None, "policy": {}}  # type: ignore[index]
        self._policy.needs_summary(self.param_groups[0], {})  # refuses settings that do not fit it

    @property
    def learning_rates(self) -> Tensor | None:
        """eta (S,), float64 on the CPU: the last step was -lambda_1 eta_s u_s. None before the first and after a failure."""
        return self._memory["policy"].get("eta")  # type: ignore[no-any-return]

    @property
    def group_names(self) -> list[str]:
        """The names of the S groups, in the order of the learning rates."""
        return list(self.partition.names)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refused after construction: the partition says which parameters move."""
        if self.param_groups:
            raise ValueError(
                "expected the partition to hold every parameter, got another group; build a new Partition and optimizer"
            )
        super().add_param_group(param_group)

    profile_hook_step = staticmethod(wrap_on_demand)  # type: ignore[assignment]

    def step(  # type: ignore[override]
        self,
        closure: Closure | None = None,
        *,
        curvature: Closure | None = None,
        data: Data = None,
        samples: float = 1.0,
    ) -> Tensor:
        """One step; returns the loss before it, a detached tensor ().

        Args:
            closure: ``closure()`` returns the loss with its graph and must not call backward.
            curvature: returns the loss of another mini-batch, for the summaries. None takes them from ``closure``.
            data: batches of a full-batch step. ``closure(*batch)`` is then a batch mean. Loss, direction and summary are the
                means over all samples, read one batch at a time, in one pass after another.
            samples: the number of samples of this rank's batch, where the partition is over several.

        A closure must give the same loss when it is called again. Buffers (batch norm) of the partition's module advance once per
        step and batch. An error leaves parameters and state as they were, but for one that the proposer raises half way through a
        step that it takes by itself: ValueError or TypeError for an unfit loss or data, FloatingPointError for a loss or gradient
        that is not finite, RankError where another rank raised.
        """
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False):  # what is made there could never be written to again
                return self.step(closure, curvature=curvature, data=data, samples=samples)
        if curvature is None and data is None and (value := take_held_step(self, closure)) is not None:
            return value
        settings, memory, partition = self.param_groups[0], self._memory, self.partition
        with partition.ranks.session(), undone_on_error(first := Start(partition)):
            check_settings(settings)
            closure = check_data(closure, curvature, data)
            self._replicas.check(memory["step"], self.state_dict)
            plain = curvature is None and data is None and is_plain(self._policy, settings, memory["policy"])
            objective = Objective(
                partition, closure, data, engine=self.engine, samples=samples, plain=plain, first=first
            )
            is_first, needs = memory["step"] == 0, self._policy.needs_summary(settings, memory["policy"])
            # Among ranks the first step does not record: its summary calls the closure again, on all of them.
            record = curvature is None and needs and (partition.is_alone or not is_first)
            # Whether they are finite is asked with the first number that a policy needs, so that the host waits once.
            value, gradients = objective.differentiate(record, restore_buffers=False, finite=False)
            if is_first:
                objective.call_again()
            self._step_along(value, gradients, objective.of(curvature) if curvature else objective)
        return value

    def training_step(self, loss: Closure, batch: Any, *, curvature: Any = None, data: Data = None) -> Tensor:
        """A step as ``training.fit`` asks for it.

        Args:
            loss: ``loss(*batch)`` is the mean loss of a batch.
            batch: the arguments of the loss.
            curvature: another batch, for the summaries, or None.
            data: batches of a full-batch step, in place of ``batch``, or None.
        """
        if data is not None:
            return self.step(loss, data=data)
        samples = samples_in(batch) if self.partition.ranks.size > 1 else 1
        return self.step(lambda: loss(*batch), curvature=curvature and (lambda: loss(*curvature)), samples=samples)

    def _step_along(self, value: Tensor, gradients: Direction, objective: Objective) -> None:
        memory, accepted = self._memory, False
        proposal = Proposal(gradients, self.proposer, self.partition if self.average else None, value)
        line = Line(objective, proposal, self.average, memory["average"])
        try:
            with undone_on_error(objective):
                outcome, state = self._policy.step(line, self.param_groups[0], memory["policy"])
                line.check()  # for a policy that asked for nothing
                self._warn_once("ANOTHER LOSS", objective.complaint)
                if outcome is not None and not outcome.accepted:
                    self._warn_once(outcome.status, f"no step was taken, parameters unchanged: {outcome.message}")
                objective.commit()
            accepted = outcome is None or outcome.accepted
        finally:
            if not accepted:
                proposal.undo()
        if outcome is not None:
            self.history.append(at_step(outcome, memory["step"]))
        memory.update(step=memory["step"] + 1, average=line.memory, policy=state)

    def _warn_once(self, key: str, message: str) -> None:
        if message and key not in self._warned:
            warn(message, StepWarning)
            self._warned.add(key)

    @property
    def _policy(self) -> Policy:
        if self.policy is not None:
            return self.policy
        return RatioTest() if self.param_groups[0]["cubic"] == "adaptive" else ReuseRates()

    @property
    def _memory(self) -> dict[str, Any]:
        return self.state["grouped_newton"]  # type: ignore[index, no-any-return]

    # -- saved states ----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs, the proposer's state and the history included; loads under weights_only=True."""
        packed = super().state_dict()
        # A saved state must not follow the run that goes on: torch's packing shares this dictionary.
        packed["state"] = packed["state"] | {"grouped_newton": copy.deepcopy(self._memory)}
        return packed | saved_state.pack(self)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Inverse of ``state_dict``, for an optimizer that was built alike, on parameters of the same shapes.

        Raises ValueError, and changes nothing, where the state is another optimizer's, or lacks a part.
        """
        state = saved_state.read(state_dict, self)
        if self.proposer is not None:
            self.proposer.optimizer.load_state_dict(state["proposer"])
        super().load_state_dict({"state": state["state"], "param_groups": state["param_groups"]})
        self.history.clear()
        self.history.extend(state["history"])
        self._replicas = Replicas(self.partition)

    def __getstate__(self) -> dict[str, Any]:
        # torch copies and pickles its own attributes alone.
        ours = ("partition", "average", "policy", "proposer", "history", "engine", "_warned", "_replicas")
        return dict(super().__getstate__()) | {name: getattr(self, name) for name in ours}
