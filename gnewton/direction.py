"""u, the direction along which the summaries are taken: the gradient, or the step that any torch optimizer proposes.

A direction is a dictionary, parameter name -> tensor of that parameter's shape. It is never a list: a list in another
order would broadcast without a word wherever the shapes happen to fit. The update is theta <- theta - U I eta, so u
points uphill, as the gradient does.
"""

import copy
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from gnewton.loss import Loss, Weight, batches, differentiate, evaluate, prepared
from gnewton.partition import Partition

Direction = dict[str, Tensor]


def gradient(
    loss: Loss, partition: Partition, data: Iterable[Any] | None = None, weight: Weight | None = None
) -> Direction:
    """The gradient of the loss, or of its mean over the batches of ``data``, by parameter name.

    Shapes and dtypes are the parameters'; frozen and unused parameters get zeros; ``.grad`` is neither read nor written.
    With ``data`` the loss is called as ``loss(*batch)`` and must be a batch mean: batches are weighted by their number
    of samples, or by ``weight(*batch)``. Raises what an unfit loss raises: TypeError, ValueError, FloatingPointError.

    >>> import gnewton as gn
    >>> model = gn.models.Rosenbrock(2)
    >>> gradient(model, gn.Partition.single(model))
    {'theta': tensor([-215.6000,  -88.0000])}
    """
    with prepared(partition, higher=False):
        found = value_and_gradient(loss, partition, data, weight)[1]
    return {name: g.clone() for name, g in found.items()}


def value_and_gradient(
    loss: Loss, partition: Partition, data: Iterable[Any] | None = None, weight: Weight | None = None
) -> tuple[Tensor, Direction]:
    """The loss () and its gradient from one evaluation per batch; buffers are left as the evaluations leave them.

    The gradient is to be read alone: autograd may hand the same memory out for two parameters.
    """
    trainable = {name: p for name, p in partition.parameters.items() if p.requires_grad}
    total: Direction = {}
    value, samples = torch.zeros((), device=partition.device), 0.0
    for batch, n in batches(data, weight):
        one = evaluate(loss, partition, batch)
        samples += n
        # A running mean: its rounding does not grow with the number of samples.
        value = one.detach() if samples == n else value + (one.detach() - value) * (n / samples)
        for name, g in zip(trainable, differentiate(one, list(trainable.values())), strict=True):
            # Embeddings may give sparse gradients, which cannot be averaged with dense ones.
            dense = torch.zeros_like(trainable[name], requires_grad=False) if g is None else g.to_dense()
            total[name] = torch.lerp(total[name], dense, n / samples) if name in total else dense
    return value, {n: total[n] if n in total else torch.zeros_like(p) for n, p in partition.parameters.items()}


def slopes(gradients: Mapping[str, Tensor], direction: Mapping[str, Tensor], partition: Partition) -> Tensor:
    """g-bar, the gradient's product with each group's part of the direction: (S,), float64 (float32 on MPS).

    >>> import torch, gnewton as gn
    >>> partition = gn.Partition.by_scalar(gn.models.Rosenbrock(2))
    >>> slopes({"theta": torch.tensor([3.0, 4.0])}, {"theta": torch.tensor([2.0, 0.5])}, partition)
    tensor([6., 2.], dtype=torch.float64)
    """
    return partition.sums({name: _products(g, direction[name], partition, name) for name, g in gradients.items()})


def _products(a: Tensor, b: Tensor, partition: Partition, name: str) -> Tensor:
    # Where a parameter lies in one group, one number does, and its kernel reads memory once; in dtypes with few digits
    # it would also add in them.
    whole = isinstance(partition.label(name), int) and a.dtype in (torch.float32, torch.float64)
    return torch.dot(a.flatten(), b.flatten()) if whole else a * b


def checked(direction: Mapping[str, Tensor], partition: Partition) -> Direction:
    """The direction with exactly the partition's names and shapes, detached, in the parameters' dtypes and on their devices.

    Raises TypeError (not a dictionary of tensors), ValueError (missing, unknown, misshaped, on another device, not finite).

    >>> import torch, gnewton as gn
    >>> partition = gn.Partition.single(gn.models.Rosenbrock(2))
    >>> checked({"theta": torch.ones(3)}, partition)
    Traceback (most recent call last):
    ValueError: expected shape (2,) for theta in the direction, got (3,); build it from partition.parameters
    """
    if not isinstance(direction, Mapping):
        raise TypeError(
            f"expected the direction as a dictionary by parameter name, got {type(direction).__name__}; "
            "write dict(zip(partition.parameters, tensors)) if they are in that order"
        )
    missing = [name for name in partition.parameters if name not in direction]
    unknown = [name for name in direction if name not in partition.parameters]
    if missing or unknown:
        raise ValueError(
            "expected the partition's parameters in the direction, got "
            + " and ".join(
                f"{what} {', '.join(names)}" for what, names in (("no", missing), ("unknown", unknown)) if names
            )
            + "; key it by the names in partition.parameters"
        )
    return {name: _checked_entry(name, direction[name], p) for name, p in partition.parameters.items()}


def _checked_entry(name: str, u: Tensor, p: Tensor) -> Tensor:
    if not isinstance(u, Tensor):
        raise TypeError(f"expected a tensor for {name} in the direction, got {type(u).__name__}; convert it first")
    if u.shape != p.shape:
        raise ValueError(
            f"expected shape {tuple(p.shape)} for {name} in the direction, got {tuple(u.shape)}; build it from partition.parameters"
        )
    if u.device != p.device:
        raise ValueError(
            f"expected {name} of the direction on {p.device}, got {u.device}; move it with .to({str(p.device)!r})"
        )
    u = u.detach().to(p.dtype)
    # One pass instead of five: a finite sum has finite terms, and only a sum that is not needs a closer look.
    if u.device.type != "meta" and not math.isfinite(u.sum()) and not torch.isfinite(u).all():
        raise ValueError(
            f"expected a finite direction, got NaN or infinity in {name}; check the gradient that it came from"
        )
    return u


class Proposer:
    """u = theta_before - theta_after: the step that a ``torch.optim`` optimizer proposes, without taking it.

    ``propose`` leaves parameters and ``.grad`` as they were and lets the optimizer's own state (momentum, Adam's
    averages) advance; ``take_back`` undoes that. In a dtype with few digits the difference loses those by which theta
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

    # Their steps read the gradient and their state alone, once weight decay is off.
    _TRANSLATION_INVARIANT = (
        torch.optim.SGD,
        torch.optim.Adam,
        torch.optim.AdamW,
        torch.optim.Adamax,
        torch.optim.NAdam,
        torch.optim.RAdam,
        torch.optim.Adadelta,
        torch.optim.Adagrad,
        torch.optim.RMSprop,
        torch.optim.Rprop,
    )

    def __init__(self, optimizer: torch.optim.Optimizer, partition: Partition) -> None:
        _check_optimizer(optimizer, partition)
        self.optimizer = optimizer
        self._partition = partition
        self._before: dict[str, Any] | None = None
        short = [n for n, p in partition.parameters.items() if p.dtype != torch.float64]
        if short and not self._from_zero:
            warnings.warn(
                f"the direction is theta_before - theta_after of {type(optimizer).__name__}, whose step depends on theta "
                f"(weight decay or an unknown rule): in {partition.parameters[short[0]].dtype} it loses the digits by which "
                "theta exceeds the step. Use weight_decay=0, a larger lr, or float64",
                stacklevel=2,
            )

    @property
    def _from_zero(self) -> bool:
        # Asked each time: weight decay may be scheduled, or come with a loaded state.
        decays = any(group.get("weight_decay", 0) for group in self.optimizer.param_groups)
        return type(self.optimizer) in self._TRANSLATION_INVARIANT and not decays

    def propose(self, gradients: Mapping[str, Tensor]) -> Direction:
        """The proposed direction for these gradients (by parameter name); shapes and dtypes are the parameters'."""
        _check_held(self.optimizer, self._partition)
        self._before = _state_copy(self.optimizer)
        held = [p for group in self.optimizer.param_groups for p in group["params"]]
        values = [p.data for p in held]
        before = dict(zip(map(id, held), values, strict=True))
        from_zero = self._from_zero
        try:
            with _gradients_set(held, self._partition, gradients), torch.no_grad():
                for p in held:
                    # The parameter lends its name to another storage, so that its own values are never written.
                    p.data = torch.zeros_like(p) if from_zero else p.detach().clone()
                self.optimizer.step()
            # A frozen parameter need not be held, and does not move.
            return {
                name: (p.detach().neg_() if from_zero else before[id(p)] - p.detach())
                if id(p) in before
                else torch.zeros_like(p)
                for name, p in self._partition.parameters.items()
            }
        except BaseException:
            self.take_back()
            raise
        finally:
            for p, value in zip(held, values, strict=True):
                p.data = value

    def take_back(self) -> None:
        """Put the optimizer's state back to what it was before the last ``propose``."""
        if self._before is None:
            return
        self.optimizer.state.clear()
        self.optimizer.state.update(self._before["state"])
        for group, saved in zip(self.optimizer.param_groups, self._before["groups"], strict=True):
            group.update(saved)
        self._before = None


def _check_optimizer(optimizer: torch.optim.Optimizer, partition: Partition) -> None:
    kind = type(optimizer).__name__
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"expected a torch.optim optimizer as the direction, got {kind}; use SGD or Adam")
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


@contextmanager
def _gradients_set(held: list[Tensor], partition: Partition, gradients: Mapping[str, Tensor]) -> Iterator[None]:
    """``.grad`` of the partition's trainable parameters is theirs, of every other one None; restored after."""
    saved = [p.grad for p in held]
    given = {id(p): gradients[name] for name, p in partition.parameters.items() if p.requires_grad}
    try:
        for p in held:
            p.grad = None
            if id(p) in given:
                p.grad = given[id(p)].clone()  # maximize= and in-place decay write into it
        yield
    finally:
        for p, g in zip(held, saved, strict=True):
            p.grad = g


def _state_copy(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {
        "state": {p: {key: _copied(x) for key, x in state.items()} for p, state in optimizer.state.items()},
        "groups": [{k: _copied(v) for k, v in group.items() if k != "params"} for group in optimizer.param_groups],
    }


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else copy.deepcopy(value)
