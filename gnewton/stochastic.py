"""Stochastic Newton by Hessian-vector products: the step d and the parameters move together.

    d      <-  d - mu (H d - g + rho d)
    theta  <-  theta - lambda_1 d

With theta at rest, d goes to (H + rho)^-1 g, Newton's direction, without an inverse: each step costs one gradient g and one
Hessian-vector product H d of one mini-batch, and their noise averages out in d (arXiv 2312.03885, its configuration).
"""

from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from gnewton import saved_state
from gnewton.derivatives.graph import hooks_so_far, nodes
from gnewton.derivatives.proof import check_kernels, doubts, prove
from gnewton.direction import value_and_gradient
from gnewton.loss import check_gathered, differentiable_mode, differentiate, evaluate, samples_in
from gnewton.partition import Partition
from gnewton.ranks import Part
from gnewton.replicas import Replicas
from gnewton.undo import Start, undone_on_error

Closure = Callable[[], Tensor]
_SETTINGS = ("lr", "lr_direction", "ridge")


class StochasticNewton(torch.optim.Optimizer):
    """Newton's method for a noisy loss: one Hessian-vector product a step, no inverse, two learning rates.

    Args:
        partition: which parameters move; its groups do not matter.
        lr: lambda_1, the part of d that a step takes, driven by any scheduler.
        lr_direction: mu, the rate at which d follows (H + rho)^-1 g. d converges where
            0 < mu < 2 / (largest eigenvalue of H + rho) and every eigenvalue is above -rho. Along a direction of negative
            curvature d grows without bound, and theta with it.
        ridge: rho.

    Raises ValueError for settings out of range.

    >>> import torch, gnewton as gn
    >>> bowl = gn.models.Quadratic([1.0, 10.0])
    >>> optimizer = StochasticNewton(gn.Partition.single(bowl), lr=0.05, lr_direction=0.1)
    >>> losses = [optimizer.step(bowl).item() for _ in range(200)]
    >>> losses[-1] < 1e-6 * losses[0]
    True
    """

    def __init__(
        self, partition: Partition, *, lr: float = 0.01, lr_direction: float = 0.01, ridge: float = 1e-5
    ) -> None:
        if not isinstance(partition, Partition):
            raise TypeError(
                f"expected a Partition, got {type(partition).__name__}; write StochasticNewton(Partition.single(model))"
            )
        check_gathered(partition)
        self.partition = partition
        self._proven: set[tuple[str, ...]] = set()
        self._replicas, self._steps = Replicas(partition), 0
        settings = {"lr": lr, "lr_direction": lr_direction, "ridge": ridge}
        _check_settings(settings)
        super().__init__(list(partition.parameters.values()), settings)

    def step(self, closure: Closure, *, samples: float = 1.0) -> Tensor:  # type: ignore[override]
        """One step; returns the loss before it, a detached tensor ().

        ``closure()`` returns the loss with its graph and must not call backward; ``samples`` is the number of its samples on
        this rank, where the partition is over several. An error leaves parameters, state and buffers as they were: ValueError
        or TypeError for an unfit loss, FloatingPointError for one whose value, gradient or H d is not finite,
        NotImplementedError for one with a backward pass that is no derivative, RankError where another rank raised.
        """
        settings, ranks = self.param_groups[0], self.partition.ranks
        # What is made in inference mode could never be written to again.
        with torch.inference_mode(False), ranks.session(), undone_on_error(Start(self.partition)):
            _check_settings(settings)
            self._replicas.check(self._steps, self.state_dict)
            value, directions = self._follow(closure, settings, samples)
            ranks.commit([] if self.partition.module is None else list(self.partition.module.buffers()))
        self._steps += 1
        with torch.no_grad():
            for p, d in directions.items():
                self.state[p]["direction"] = d
                p.sub_(settings["lr"] * d)
        return value

    def training_step(self, loss: Callable[..., Tensor], batch: Sequence[Any]) -> Tensor:
        """A step as ``training.fit`` asks for it, on ``loss(*batch)``."""
        return self.step(lambda: loss(*batch), samples=samples_in(batch) if self.partition.ranks.size > 1 else 1)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """As torch's; raises ValueError, and changes nothing, for another optimizer's state or directions of other shapes."""
        saved_state.check_whole(state_dict, ("state",))
        held, group = self.param_groups[0]["params"], state_dict["param_groups"][0]
        if not set(_SETTINGS) <= set(group):
            raise ValueError(
                "expected the state of a StochasticNewton, got another optimizer's; load what its state_dict() returned"
            )
        saved_state.check_groups(state_dict, self.param_groups)
        for i, (p, key) in enumerate(zip(held, group["params"], strict=True)):
            d = state_dict["state"].get(key, {}).get("direction")
            if d is not None and d.shape != p.shape:
                raise ValueError(
                    f"expected a direction of shape {tuple(p.shape)} for parameter {i}, got {tuple(d.shape)}; build the model as it "
                    "was then"
                )
        super().load_state_dict(dict(state_dict))

    def __getstate__(self) -> dict[str, Any]:
        # torch copies and pickles its own attributes alone.
        ours = ("partition", "_proven", "_replicas", "_steps")
        return dict(super().__getstate__()) | {name: getattr(self, name) for name in ours}

    def _follow(
        self, closure: Closure, settings: dict[str, Any], samples: float
    ) -> tuple[Tensor, dict[Tensor, Tensor]]:
        """The loss and d after its step, of every parameter that moves; means over all ranks."""
        moving = [p for p in self.partition.parameters.values() if p.requires_grad]
        before = [self.state[p].get("direction", torch.zeros_like(p)) for p in moving]
        values: list[Tensor] = []

        def part() -> Part:
            value, residuals = self._residuals(closure, moving, before)
            values.append(value)
            return Part(float(value) if self.partition.ranks.size > 1 else 0.0, residuals, samples)

        mean = self.partition.ranks.mean("residuals", part)
        value = values[0] if self.partition.ranks.size == 1 else values[0].new_tensor(mean.value)
        after = {}
        for p, d, residual in zip(moving, before, mean.tensors, strict=True):
            after[p] = d - settings["lr_direction"] * (residual + settings["ridge"] * d)
            if p.device.type != "meta" and not torch.isfinite(after[p]).all():
                raise FloatingPointError(
                    "expected a finite direction, got NaN or infinity; lower lr_direction below 2 / (largest eigenvalue of H)"
                )
        return value, after

    def _residuals(self, closure: Closure, moving: list[Tensor], before: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The loss and H d - g on this rank's samples."""
        with differentiable_mode(self.partition, restore_buffers=False):
            start, hooks = Start(self.partition), hooks_so_far()
            value = evaluate(closure, self.partition)
            self._prove(closure, doubts(value, self.partition, hooks), start)
            check_kernels(nodes(value), self.partition, 2)
            gradient = _fill(differentiate(value, moving, create_graph=True), moving)
            slope = sum(((g * d).sum() for g, d in zip(gradient, before, strict=True)), value.new_zeros(()))
            product = _fill(differentiate(slope, moving), moving)
        return value.detach(), [hd - g.detach() for hd, g in zip(product, gradient, strict=True)]

    def _prove(self, closure: Closure, names: Sequence[str], start: Start) -> None:
        """Once for each set of functions whose backward torch did not write: NotImplementedError where H d would be wrong."""
        if not names or tuple(names) in self._proven:
            return
        with start.replay():
            _, direction = value_and_gradient(closure, self.partition)
        with start.replay():
            prove(closure, self.partition, direction, 2, names)
        self._proven.add(tuple(names))


def _fill(gradients: list[Tensor | None], parameters: list[Tensor]) -> list[Tensor]:
    """Zeros where the loss does not depend on a parameter."""
    return [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, parameters, strict=True)]


def _check_settings(settings: dict[str, Any]) -> None:
    for name in _SETTINGS:
        if not isinstance(settings[name], Real | Tensor):
            raise TypeError(f"expected a number for {name}, got {settings[name]!r}")
        if not 0 <= settings[name] < float("inf"):
            raise ValueError(f"expected {name} >= 0 and finite, got {settings[name]}")
