"""ExactNewton: the exact Newton direction of every sample of a batch, averaged, as a ``torch.optim.Optimizer``.

An exact stochastic Newton method after F. B. Mehouachi and C. Kasmi (arXiv 2104.03804 and its sequel); derivation ours.
"""

import copy
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnewton import saved_state
from gnewton.exact import loss as losses
from gnewton.exact.bound import safe_damping
from gnewton.exact.gauss_newton import gauss_newton_direction
from gnewton.exact.joint import joint_direction
from gnewton.exact.network import Network
from gnewton.exact.newton import newton_direction
from gnewton.exact.passes import Passes, check_finite, run_passes
from gnewton.exact.saddle_free import Adjustment, saddle_free_direction
from gnewton.exact.sample_directions import SampleDirections
from gnewton.partition import Partition, accumulator_dtype
from gnewton.ranks import Part, unwrap
from gnewton.replicas import Replicas

Method = Literal["safe", "abs", "absQ", "plain", "joint", "gauss-newton"]

_DAMPINGS = {"safe": 3.0, "abs": 10.0, "absQ": 10.0, "plain": 10.0, "joint": 10.0, "gauss-newton": 10.0}
_NUMBERS = ("lr", "damping", "safety", "cap", "weight_decay", "ceiling", "floor", "power", "negative")
_HISTORY_RECORDS = 1000


@dataclass(frozen=True)
class StepRecord:
    """One step, for plots. Means are over the samples of its batch.

    Args:
        step: its number from 0.
        value: the mean loss before it.
        lr: the learning rate.
        damping: the mean of rho, with the safe bound and the weight decay in it.
        slope: the mean of g . d, of each sample and its own direction before the cap. Below zero it descends.
        output: the mean of |change of z_L|, to first order, before the cap.
        capped: the part of the samples that the cap shortened.
    """

    step: int
    value: float
    lr: float
    damping: float
    slope: float
    output: float
    capped: float


class _Change(NamedTuple):
    tensors: dict[str, Tensor]
    numbers: list[float]


class ExactNewton(torch.optim.Optimizer):
    r"""Newton's method on the loss of one sample at a time, exact: V <- V + lr mean_b t_b d_b, d_b = -(H_b + rho_b)^{-1} g_b.

    Args:
        model: a Sequential of Linear and element-wise activations. A step takes the batch, as the method differentiates the
            network itself. DistributedDataParallel around it makes the mean over the samples of all its processes.
        loss: "cross_entropy" or F.cross_entropy, "squared_error" (half the sum of squares) or F.mse_loss.
        lr: 1 is the pure step, for one sample; the mean over a batch of 16 wanted 8. It is ``param_groups[0]["lr"]``, which
            every scheduler drives.
        method: how H_b is made positive definite, see below.
        damping: rho_0 > 0, None for 3 ("safe") or 10 (the others). Its unit is that of the Hessian, which grows with the
            length of the inputs: centre them, and divide by their standard deviation.
        safety: >= 1.
        cap: t_b = min(1, cap / |change of the outputs|), as cross-entropy overshoots where it has no curvature; infinity for
            none.
        weight_decay: kappa, of kappa |V|^2 / 2, biases included.
        ceiling, floor, power, negative: as in ``Adjustment``, for "abs".

    * "safe": rho_b = damping + safety b_b, with ``safe_damping`` b_b, so that H_b + rho_b is positive definite;
    * "abs": |H_b| in the place of H_b, by an eigenproblem of 2N + n_L a sample, with ceiling, floor, power and negative as
      in ``Adjustment`` (ceiling=1.0 favours flat minima);
    * "absQ": the sweep with |Q_l|, always a descent too; "plain": H_b as it is, which goes to saddles unless the damping is
      large; "joint": the Newton direction of the batch's mean loss, for small batches; "gauss-newton": the baseline.

    It minimises each sample's model, and says nothing of the others: watch the held-out loss. Raises TypeError or ValueError
    for other models, naming the layer, and for settings out of range.

    >>> import gnewton as gn
    >>> data = gn.datasets.digits()
    >>> model = gn.models.perceptron([64, 16, 10], generator=torch.Generator().manual_seed(0))
    >>> optimizer = ExactNewton(model, lr=8.0)
    >>> losses = [float(optimizer.step(x, y)) for x, y in data.batches(16, torch.Generator().manual_seed(0))]
    >>> sum(losses[-10:]) < 0.5 * sum(losses[:10])
    True
    """

    def __init__(
        self,
        model: nn.Sequential,
        loss: losses.LossName = F.cross_entropy,
        *,
        lr: float = 1.0,
        method: Method = "safe",
        damping: float | None = None,
        safety: float = 1.5,
        cap: float = 4.0,
        weight_decay: float = 0.0,
        ceiling: float = float("inf"),
        floor: float = 0.0,
        power: float = 1.0,
        negative: float = 1.0,
    ) -> None:
        if method not in _DAMPINGS:
            raise ValueError(f"expected a method among {', '.join(_DAMPINGS)}, got {method!r}; choose one of them")
        self.network, self.loss = Network(unwrap(model)), losses.read(loss)
        self.partition = Partition.single(model)
        self._replicas = Replicas(self.partition)
        self.history: deque[StepRecord] = deque(maxlen=_HISTORY_RECORDS)
        settings = {
            "method": method,
            "lr": lr,
            "damping": _DAMPINGS[method] if damping is None else damping,
            "safety": safety,
            "cap": cap,
            "weight_decay": weight_decay,
            "ceiling": ceiling,
            "floor": floor,
            "power": power,
            "negative": negative,
        }
        _check_settings(settings)
        super().__init__(list(self.network.parameters.values()), settings)
        self.state["exact_newton"] = {"step": 0}  # type: ignore[index]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refused after construction: the layers are those of the model."""
        if self.param_groups:
            raise ValueError("expected the model's parameters alone, got another group; build a new optimizer")
        super().add_param_group(param_group)

    def check_loss(self, loss: losses.LossName) -> None:
        """Raises ValueError unless it is the loss that this optimizer minimises."""
        if losses.read(loss) != self.loss:
            raise ValueError(
                f"expected the loss of the optimizer, {self.loss}, got {losses.read(loss)}; build ExactNewton(model, loss)"
            )

    @torch.no_grad()
    def step(self, x: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
        """One step on the batch x (B, n_0) with y as ``forward_backward`` takes them; returns its mean loss before, a tensor ().

        An error leaves parameters and state as they were: ValueError or TypeError for an unfit batch or setting,
        FloatingPointError for a loss, gradient or direction that is not finite.
        """
        settings, ranks, memory = self.param_groups[0], self.partition.ranks, self._memory
        ranks.check_said()

        def part() -> Part:
            _check_settings(settings)
            _check_mean(settings, ranks.size)
            change = _change(run_passes(self.network, x, y, self.loss), settings)
            device = x.device if ranks.size > 1 else torch.device("cpu")
            numbers = torch.tensor(change.numbers, dtype=accumulator_dtype(device), device=device)
            return Part(change.numbers[0], [*change.tensors.values(), numbers], float(len(x)))

        with ranks.session():
            self._replicas.check(memory["step"], self.state_dict)
            *changes, numbers = ranks.mean("exact", part).tensors
            value, *facts = numbers.tolist()
            record = StepRecord(memory["step"], value, float(settings["lr"]), *facts)
            ranks.commit()
        for p, change in zip(self.network.parameters.values(), changes, strict=True):
            p.add_(change)
        self.history.append(record)
        memory["step"] += 1
        return changes[0].new_tensor(value)

    def training_step(self, loss: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
        """A step as ``training.fit`` asks for it; the loss is the optimizer's own, which ``check_loss`` has compared."""
        return self.step(*batch)

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs, and the history; loads under weights_only=True."""
        state = super().state_dict()
        # torch's packing shares this dictionary, and the run goes on.
        state["state"] = {"exact_newton": copy.deepcopy(self._memory)}
        return state | {"network": self._kind, "history": [asdict(record) for record in self.history]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Inverse of ``state_dict``, for a network and loss alike. Raises ValueError, and changes nothing, for another state."""
        if not isinstance(state_dict, Mapping) or "exact_newton" not in (state_dict.get("state") or {}):
            raise ValueError(
                "expected the state of an ExactNewton, got another optimizer's; load what its state_dict() returned"
            )
        saved_state.check_whole(state_dict, ("network", "history"))
        if state_dict["network"] != self._kind:
            raise ValueError(
                f"expected a state of {self._kind}, got one of {state_dict['network']}; build the model as it was"
            )
        saved_state.check_groups(state_dict, self.param_groups)
        state = copy.deepcopy(dict(state_dict))
        with saved_state.explained():
            history = [StepRecord(**one) for one in state["history"]]
            if not isinstance(state["state"]["exact_newton"]["step"], int):
                raise TypeError("step")
            _check_settings(self.param_groups[0] | state["param_groups"][0])
        super().load_state_dict({"state": state["state"], "param_groups": state["param_groups"]})
        self.history.clear()
        self.history.extend(history)

    def __getstate__(self) -> dict[str, Any]:
        # torch copies and pickles its own attributes alone.
        return dict(super().__getstate__()) | {
            name: getattr(self, name) for name in ("network", "loss", "history", "partition", "_replicas")
        }

    @property
    def _memory(self) -> dict[str, Any]:
        memory: dict[str, Any] = self.state["exact_newton"]  # type: ignore[index]
        return memory

    @property
    def _kind(self) -> str:
        """What a state must fit."""
        shapes = [tuple(p.shape) for p in self.network.parameters.values()]
        return f"{self.loss} on parameters of shapes {shapes}"


def _change(passes: Passes, settings: Mapping[str, Any]) -> _Change:
    """What to add to each parameter, and what the history keeps; FloatingPointError where it is not finite."""
    try:
        d, rho = _direction(passes, settings)
    except torch.linalg.LinAlgError as error:  # what eigenvalue solvers do with NaN
        raise FloatingPointError(_reason(passes)) from error
    length = d.output.norm(dim=1)
    if settings["method"] == "joint":
        length = length.amax().expand_as(length)  # one direction for all samples: one factor
    t = (settings["cap"] / length).clamp(max=1)
    change = d.mean(t * settings["lr"])
    facts = [passes.values, rho + settings["weight_decay"], d.slope(), length, (t < 1).to(t.dtype)]
    # One look at the device: a sum is finite only where every term is.
    sums = torch.stack([fact.mean() for fact in facts] + [change[name].sum() for name in change]).tolist()
    if not all(abs(number) < float("inf") for number in sums):
        raise FloatingPointError(_reason(passes))
    return _Change(change, sums[: len(facts)])


def _direction(passes: Passes, settings: Mapping[str, Any]) -> tuple[SampleDirections, Tensor]:
    method, kappa = settings["method"], settings["weight_decay"]
    rho = torch.full_like(passes.values, float(settings["damping"]))
    if method == "joint":
        return joint_direction(passes, rho[0], weight_decay=kappa), rho
    if method == "gauss-newton":
        return gauss_newton_direction(passes, rho, weight_decay=kappa), rho
    if method == "abs":
        adjustment = Adjustment(**{name: settings[name] for name in ("ceiling", "floor", "power", "negative")})
        return saddle_free_direction(passes, rho, weight_decay=kappa, adjustment=adjustment), rho
    if method == "safe":
        rho = rho + settings["safety"] * safe_damping(passes)
    return newton_direction(passes, rho, weight_decay=kappa, absolute=method == "absQ"), rho


def _reason(passes: Passes) -> str:
    check_finite(passes)
    return "expected a finite direction, got NaN or infinity; H + damping is singular, or the numbers are too large: raise the damping"


def _check_mean(settings: Mapping[str, Any], ranks: int) -> None:
    if ranks > 1 and settings["method"] == "joint":
        raise ValueError(
            f'expected a method whose direction is a mean over samples on {ranks} ranks, got "joint", which joins them; '
            'choose "safe", or train in one process'
        )


def _check_settings(settings: Mapping[str, Any]) -> None:
    if settings["method"] not in _DAMPINGS:
        raise ValueError(
            f"expected a method among {', '.join(_DAMPINGS)}, got {settings['method']!r}; choose one of them"
        )
    for name in _NUMBERS:
        if not isinstance(settings[name], int | float | Tensor):
            raise TypeError(f"expected a number for {name}, got {settings[name]!r}")
        if not settings[name] >= 0 or (settings[name] == float("inf") and name not in ("cap", "ceiling")):
            raise ValueError(f"expected {name} >= 0 and finite, got {settings[name]}")
    if not settings["damping"] > 0:
        raise ValueError("expected damping > 0, got 0; without it the exact direction moves the last layer alone")
    if settings["method"] == "safe" and settings["safety"] < 1:
        raise ValueError(f"expected safety >= 1, got {settings['safety']}; below it the step may ascend")
