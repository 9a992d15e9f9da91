"""The step that another optimizer proposes, as a direction."""

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from gnewton.caller import warn
from gnewton.cautious import CautiousAdam
from gnewton.direction import Direction, check_finite, normalize, total
from gnewton.hooks import is_watched
from gnewton.interrupts import DeferredInterrupts
from gnewton.loss import check_value
from gnewton.partition import Partition
from gnewton.sharded import lend_rows, local_part, own_rows

# k times the learning rate is k times the step.
_LINEAR = (
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.Adamax,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.Adadelta,
    torch.optim.Adagrad,
    torch.optim.RMSprop,
    CautiousAdam,
    *((torch.optim.Muon,) if hasattr(torch.optim, "Muon") else ()),  # from torch 2.9 on
)
# Their steps read the gradient and their state alone, once weight decay is off.
_TRANSLATION_INVARIANT = (*_LINEAR, torch.optim.Rprop)


class Proposer:
    """u = theta_before - theta_after: the step that a ``torch.optim`` optimizer proposes, without taking it.

    ``propose`` leaves parameters and ``.grad`` as they were and lets the optimizer's own state (momentum, Adam's
    averages) advance; ``undo`` undoes that. In a dtype with few digits the difference loses those by which theta
    exceeds u. Where the optimizer's step does not depend on theta (the torch.optim ones below, without weight decay) it is
    taken from theta = 0, where the difference is exact; elsewhere a warning says so once.

    Raises TypeError for what is no torch optimizer or needs a closure of its own (LBFGS), ValueError for one that lacks a
    parameter of the partition.

    >>> import torch, gnewton as gn
    >>> model = gn.models.Rosenbrock(2)
    >>> partition = gn.Partition.single(model)
    >>> proposer = Proposer(torch.optim.SGD(model.parameters(), lr=0.5), partition)
    >>> proposer.propose(gn.direction.gradient(model, partition))
    {'theta': tensor([-107.8000,  -44.0000])}
    """

    def __init__(self, optimizer: torch.optim.Optimizer, partition: Partition) -> None:
        _check_optimizer(optimizer, partition)
        self.optimizer = optimizer
        self._partition = partition
        self._before: dict[str, Any] | None = None
        short = [n for n, p in partition.parameters.items() if p.dtype != torch.float64]
        if short and not self._from_zero:
            warn(
                f"the direction is theta_before - theta_after of {type(optimizer).__name__}, whose step depends on theta "
                f"(weight decay or an unknown rule): in {partition.parameters[short[0]].dtype} it loses the digits by which "
                "theta exceeds the step. Use weight_decay=0, a larger lr, or float64",
                UserWarning,
            )

    @property
    def _from_zero(self) -> bool:
        # Asked each time: weight decay may be scheduled, or come with a loaded state.
        optimizer = self.optimizer
        decays = any(group.get("weight_decay", 0) for group in optimizer.param_groups)
        # A hook may read the parameters.
        hooks = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
        return type(optimizer) in _TRANSLATION_INVARIANT and not (decays or hooks)

    def propose(self, gradients: Mapping[str, Tensor]) -> Direction:
        """The proposed direction for these gradients (by parameter name); shapes and dtypes are the parameters'."""
        _check_held(self.optimizer, self._partition)
        self._before = _state_copy(self.optimizer)
        try:
            with DeferredInterrupts():  # in the middle parameters lie elsewhere
                return self._propose(gradients)
        except BaseException:
            self.undo()
            raise

    def _propose(self, gradients: Mapping[str, Tensor]) -> Direction:
        held = [p for group in self.optimizer.param_groups for p in group["params"]]
        rows = [own_rows(p) for p in held]
        before = {id(p): p.detach() for p in held}
        from_zero = self._from_zero
        try:
            with _gradients_set(held, self._partition, gradients), torch.no_grad():
                for p in held:
                    # The parameter lends its name to another storage, so that its own values are never written.
                    lend_rows(p, torch.zeros_like(own_rows(p)) if from_zero else own_rows(p).detach().clone())
                self.optimizer.step()
            # A frozen parameter need not be held, and does not move.
            return {
                name: (p.detach().neg_() if from_zero else before[id(p)] - p.detach())
                if id(p) in before
                else torch.zeros_like(p)
                for name, p in self._partition.parameters.items()
            }
        finally:
            for p, own in zip(held, rows, strict=True):
                lend_rows(p, own)

    @property
    def scales(self) -> bool:
        """Whether k times the learning rate is k times the step, of all scalars: the optimizer can then take it by itself."""
        return self._partition.is_whole and type(self.optimizer) in _LINEAR

    def take(self, gradients: Mapping[str, Tensor], rate: float) -> None:
        """Let the optimizer take ``rate`` times its step, at its own price; the gradients are used up."""
        if self.is_direct:
            self._take_directly(gradients, rate)
            return
        with DeferredInterrupts():  # in the middle lr and .grad are others
            self._take_by_grad(gradients, rate)

    @torch.no_grad()
    def _take_by_grad(self, gradients: Mapping[str, Tensor], rate: float) -> None:
        groups = self.optimizer.param_groups
        given = _as_left_by_backward(gradients, self._partition)
        if given.keys() - {p for group in groups for p in group["params"]}:
            _check_held(self.optimizer, self._partition)  # one was thawed since this was built
        saved = [(p, p.grad) for group in groups for p in group["params"]]
        rates = [group["lr"] for group in groups]
        try:
            for p, _ in saved:
                p.grad = given.get(p)
            for group in groups:
                group["lr"] = rate * group["lr"]
            self.optimizer.step()
        finally:
            for p, gradient in saved:
                p.grad = gradient
            for group, lr in zip(groups, rates, strict=True):
                group["lr"] = lr

    @property
    def is_direct(self) -> bool:
        """Whether ``take`` hands the gradients over without ``.grad`` and hooks, and refuses those that are not finite."""
        optimizer = self.optimizer
        # A scheduler of the proposer replaces its step, to see that it is called.
        return type(optimizer) is CautiousAdam and not (
            optimizer._optimizer_step_pre_hooks
            or optimizer._optimizer_step_post_hooks
            or "step" in vars(optimizer)
            or is_watched()
        )

    def _take_directly(self, gradients: Mapping[str, Tensor], rate: float) -> None:
        assert isinstance(self.optimizer, CautiousAdam)
        _check_held(self.optimizer, self._partition)  # one may have been thawed since this was built
        try:
            self.optimizer.take(
                {p: gradients[name] for name, p in self._partition.parameters.items() if p.requires_grad}, rate
            )
        except FloatingPointError:
            check_finite(gradients, "gradient")  # by name
            raise

    def undo(self) -> None:
        """Put the optimizer's state back to what it was before the last ``propose``."""
        if self._before is None:
            return
        self.optimizer.state.clear()
        self.optimizer.state.update(self._before["state"])
        for group, saved in zip(self.optimizer.param_groups, self._before["groups"], strict=True):
            group.update(saved)
        vars(self.optimizer).update(self._before["own"])
        self._before = None


class Proposal:
    """The direction of one step, made when it is first asked for.

    Args:
        gradients: of the loss, by parameter name: the direction where there is no proposer.
        proposer: proposes the direction, or None.
        normalized: a partition, each of whose groups gets a part of norm 1; None leaves the lengths.
        value: the loss () of these gradients, or None where it is known to be finite.
    """

    def __init__(
        self,
        gradients: Direction,
        proposer: Proposer | None = None,
        normalized: Partition | None = None,
        value: Tensor | None = None,
    ) -> None:
        self._gradients, self._proposer, self._normalized, self._value = gradients, proposer, normalized, value

    @cached_property
    def direction(self) -> Direction:
        """u, whether finite or not."""
        u = self._gradients if self._proposer is None else self._proposer.propose(self._gradients)
        try:
            return u if self._normalized is None else normalize(u, self._normalized)
        except BaseException:
            self._undo()
            raise

    def total(self) -> Tensor:
        """A number () that is finite only where the loss, its gradient and u (once made) are. The host does not wait."""
        number = total(self._gradients, *(() if self._value is None else (self._value,)))
        return number + total(self.direction) if self.is_made else number

    @property
    def is_made(self) -> bool:
        """Whether the direction has been asked for."""
        return "direction" in self.__dict__

    def is_plain(self, gradients: Direction) -> bool:
        """Whether these gradients are all that it is made of so far."""
        return gradients is self._gradients and not self.is_made

    def check(self, number: float) -> None:
        """Raises FloatingPointError, which names what is not finite, where ``number``, the total, says that something may be."""
        if math.isfinite(number):
            return
        if self._value is not None:
            check_value(self._value)
        check_finite(self._gradients, "gradient")
        if self.is_made:
            check_finite(self.direction, "direction")

    def take(self, rate: float) -> bool:
        """Let the proposer take ``rate`` times its step by itself. False where it cannot, or where u has been made."""
        proposer = self._proposer
        if proposer is None or self.is_made or self._normalized is not None or not proposer.scales:
            return False
        proposer.take(self._gradients, rate)
        return True

    def undo(self) -> None:
        """Let the proposer forget the direction, if it was made."""
        if self.is_made:
            self._undo()

    def _undo(self) -> None:
        if self._proposer is not None:
            self._proposer.undo()


def _check_optimizer(optimizer: torch.optim.Optimizer, partition: Partition) -> None:
    kind = type(optimizer).__name__
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"expected a torch.optim optimizer as the proposer, got {kind}; use SGD or Adam")
    refused = {
        "LBFGS": "drives the closure itself",
        "SparseAdam": "takes sparse gradients alone",
        "GroupedNewton": "is what u is for",
    }
    if kind in refused:
        raise TypeError(
            f"expected an optimizer that steps on given gradients, got {kind}, which {refused[kind]}; use SGD or Adam"
        )
    _check_held(optimizer, partition)


def _check_held(optimizer: torch.optim.Optimizer, partition: Partition) -> None:
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [name for name, p in partition.parameters.items() if id(p) not in held and p.requires_grad]
    if missing:
        raise ValueError(
            f"expected {type(optimizer).__name__} to hold the partition's parameters, got none of {', '.join(missing)}; "
            "build it on model.parameters()"
        )


def _as_left_by_backward(gradients: Mapping[str, Tensor], partition: Partition) -> dict[Tensor, Tensor]:
    """Each trainable parameter's gradient, with its strides and in memory of its own, as ``backward()`` leaves it in ``.grad``.

    ``torch.autograd.grad`` leaves neither, but fused optimizers walk through both memories side by side, and others write into it.
    """
    given: dict[Tensor, Tensor] = {}
    memories: set[int] = set()
    for name, p in partition.parameters.items():
        if p.requires_grad:
            # What autograd hands to two parameters begins at one place: slices of one tensor do not overlap.
            g, memory = gradients[name], local_part(gradients[name]).data_ptr()
            given[p] = g if g.stride() == p.stride() and memory not in memories else torch.empty_like(p).copy_(g)
            memories.add(memory)
    return given


@contextmanager
def _gradients_set(held: list[Tensor], partition: Partition, gradients: Mapping[str, Tensor]) -> Iterator[None]:
    """``.grad`` of the partition's trainable parameters is theirs, of every other one None; restored after."""
    saved = [p.grad for p in held]
    given = _as_left_by_backward(gradients, partition)
    try:
        for p in held:
            p.grad = None
            if p in given:
                p.grad = given[p].clone()  # maximize= and in-place decay write into it
        yield
    finally:
        for p, g in zip(held, saved, strict=True):
            p.grad = g


def _state_copy(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {
        "state": {p: {key: _copy(x) for key, x in state.items()} for p, state in optimizer.state.items()},
        "groups": [{k: _copy(v) for k, v in group.items() if k != "params"} for group in optimizer.param_groups],
        # A counter of its own, say.
        "own": {k: _copy(v) for k, v in vars(optimizer).items() if isinstance(v, int | float | complex | str | Tensor)},
    }


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else copy.deepcopy(value)
