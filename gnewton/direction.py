"""u, the direction along which the summaries are taken: the gradient, or the step that any torch optimizer proposes.

A direction is a dictionary, parameter name -> tensor of that parameter's shape. It is never a list: a list in another
order would broadcast without a word wherever the shapes happen to fit. The update is theta <- theta - U I eta, so u
points uphill, as the gradient does.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from gnewton.buckets import Buckets, cut
from gnewton.loss import (
    Loss,
    Tally,
    Weight,
    batches,
    check_partition,
    check_surroundings,
    check_value,
    differentiable_mode,
    differentiate,
    evaluate,
    has_custom_functions,
)
from gnewton.partition import Partition, accumulator_dtype, stack_numbers
from gnewton.ranks import Part
from gnewton.repeated import WatchedCalls
from gnewton.sharded import local_part
from gnewton.storage import is_dtensor

Direction = dict[str, Tensor]


def gradient(
    loss: Loss,
    partition: Partition,
    data: Iterable[Any] | None = None,
    *,
    weight: Weight | None = None,
    samples: float = 1.0,
) -> Direction:
    """The gradient of the loss, or of its mean over the batches of ``data``, by parameter name.

    Args:
        loss: ``loss()`` returns the loss with its graph. With data, ``loss(*batch)`` is the mean over a batch.
        partition: whose parameters.
        data: batches, or None.
        weight: ``weight(*batch)`` counts a batch's samples. By default they are ``len(batch[0])``.
        samples: the number of samples of ``loss()`` on this rank, where the partition is over several.

    Shapes and dtypes are the parameters'; of sharded ones (``fully_shard``) DTensors, sharded as they are. Frozen and unused parameters get zeros. ``.grad`` is neither read nor written.
    Raises what an unfit loss raises: TypeError, ValueError, FloatingPointError.

    >>> import gnewton as gn
    >>> model = gn.models.Rosenbrock(2)
    >>> gradient(model, gn.Partition.single(model))
    {'theta': tensor([-215.6000,  -88.0000])}
    """
    check_partition(partition)
    compute = partial(gradient_here, loss, partition, data=data)
    tally = Tally(weight, samples if data is None else 0.0)
    with WatchedCalls():
        gradients = mean_gradient(partition, compute, tally, is_sent=is_sent(partition, data))[1]
    return {name: g.clone() for name, g in gradients.items()}


def mean_gradient(
    partition: Partition, compute: Callable[[Tally], tuple[Tensor, Direction]], tally: Tally, *, is_sent: bool = False
) -> tuple[Tensor, Direction]:
    """The loss () and its gradient, means over the samples of all ranks.

    Args:
        partition: whose ranks.
        compute: returns this rank's loss and gradient; ``compute(tally)`` counts its samples.
        tally: the count.
        is_sent: whether the gradient that is returned there is the mean already.

    Raises FloatingPointError on a rank whose own gradient is not finite: from the mean nobody would know whose it was.
    """
    if partition.ranks.size == 1:
        return compute(tally)
    local: list[tuple[Tensor, Direction]] = []

    def part() -> Part:
        value, gradients = compute(tally)
        if not is_sent:
            check_finite(gradients, "gradient")
        local.append((value, gradients))
        return Part(float(value), [] if is_sent else list(gradients.values()), tally.total)

    mean = partition.ranks.mean("gradient", part)
    ((value, gradients),) = local
    means = gradients if is_sent else dict(zip(gradients, mean.tensors, strict=True))
    return value.new_tensor(mean.value), means


def is_sent(partition: Partition, data: Iterable[Any] | None) -> bool:
    """Whether ``gradient_here`` sends the gradient while it computes it: that of shards, and of one batch in several buckets.

    >>> import gnewton as gn
    >>> is_sent(gn.Partition.single(gn.models.Rosenbrock(2)), None)
    False
    """
    if partition.ranks.size == 1 or partition.shards is not None:
        return partition.shards is not None
    return data is None and len(cut(_trainable(partition))) > 1


def gradient_here(
    loss: Loss,
    partition: Partition,
    tally: Tally,
    *,
    data: Iterable[Any] | None = None,
    restore_buffers: bool = True,
    finite: bool = True,
) -> tuple[Tensor, Direction]:
    """This rank's loss () and gradient, or the mean of all ranks where it ``is_sent``, as ``mean_gradient`` asks for them.

    Args:
        loss, partition: as in ``gradient``.
        tally: counts the samples.
        data: batches, or None.
        restore_buffers: put them back to what they were.
        finite: as in ``evaluate``.
    """
    with (
        partition.gathered() as whole,
        differentiable_mode(whole, restore_buffers=restore_buffers, higher=False),
        _watched(loss, partition),
    ):
        if whole.weights is not None:
            return _sharded_gradient(loss, whole, tally, data=data)
        if is_sent(partition, data):
            return _bucketed_gradient(loss, partition, tally)
        return value_and_gradient(loss, whole, data, weight=tally, finite=finite)


# Losses without max_norm, by their code: a closure is made anew for each step, and to watch a small one costs a third more.
_UNLIMITED: WeakKeyDictionary[Partition, set[Any]] = WeakKeyDictionary()


@contextmanager
def _watched(loss: Loss, partition: Partition) -> Iterator[None]:
    """Inside, calls are checked before they write into the parameters, in the first gradient of a loss and wherever there are such."""
    unlimited, code = _UNLIMITED.setdefault(partition, set()), getattr(loss, "__code__", type(loss))
    if code in unlimited:
        yield
        return
    with WatchedCalls() as calls:
        yield
    if not calls.limited:
        unlimited.add(code)


def value_and_gradient(
    loss: Loss,
    partition: Partition,
    data: Iterable[Any] | None = None,
    *,
    weight: Weight | None = None,
    finite: bool = True,
) -> tuple[Tensor, Direction]:
    """This rank's loss () and gradient from one evaluation per batch; buffers are left as the evaluations leave them.

    Args:
        loss, partition, data, weight: as in ``gradient``.
        finite: as in ``evaluate``.

    The gradient is to be read alone: autograd may hand the same memory out for two parameters.
    """
    trainable = _trainable(partition)
    total: Direction = {}
    value, samples = torch.zeros((), device=partition.device), 0.0
    for batch, n in batches(data, weight):
        one = evaluate(loss, partition, batch, finite=finite)
        samples += n
        # A running mean: its rounding does not grow with the number of samples.
        value = one.detach() if samples == n else value + (one.detach() - value) * (n / samples)
        entries = differentiate(one, list(trainable.values()))
        partition.check_held([name for name, g in zip(trainable, entries, strict=True) if g is None])
        for name, g in zip(trainable, entries, strict=True):
            # Embeddings may give sparse gradients, which cannot be averaged with dense ones.
            dense = torch.zeros_like(trainable[name], requires_grad=False) if g is None else g.to_dense()
            total[name] = torch.lerp(total[name], dense, n / samples) if name in total else dense
    return value, {n: total[n] if n in total else torch.zeros_like(p) for n, p in partition.parameters.items()}


def _bucketed_gradient(loss: Loss, partition: Partition, tally: Tally) -> tuple[Tensor, Direction]:
    """This rank's loss (), and the gradient of the mean over the samples of all ranks, sent while it is computed."""
    value, trainable = evaluate(loss, partition), _trainable(partition)
    buckets = Buckets(partition.ranks, trainable, tally.total)
    # A checkpoint inside a custom function may complete a gradient several times.
    with nullcontext() if has_custom_functions(value) else buckets.sent_at_once():
        entries = differentiate(value, list(trainable.values()))
    gradients = {
        name: torch.zeros_like(p, requires_grad=False) if g is None else g
        for (name, p), g in zip(trainable.items(), entries, strict=True)
    }
    check_finite(gradients, "gradient")
    means = buckets.means(gradients)
    return value.detach(), {n: means[n] if n in means else torch.zeros_like(p) for n, p in partition.parameters.items()}


def _trainable(partition: Partition) -> Direction:
    return {name: p for name, p in partition.parameters.items() if p.requires_grad}


def _sharded_gradient(
    loss: Loss, partition: Partition, tally: Tally, *, data: Iterable[Any] | None
) -> tuple[Tensor, Direction]:
    """This rank's loss (), and its rows of the gradient of the mean over the samples of all ranks."""
    weights = partition.weights
    assert weights is not None
    rows: Direction = {}
    value = torch.zeros((), device=partition.device)
    for batch, n in batches(data, tally):
        one = evaluate(loss, partition, batch)
        samples = tally.total if data is None else n
        value = value + one.detach() * samples
        for name, g in weights.gradients(one, samples, partial(check_finite, what="gradient")).items():
            rows[name] = rows[name] + g if name in rows else g
    total = float(weights.shards.ranks.sum("samples", torch.tensor(float(tally.total), device=partition.device)))
    shards, gradient = weights.shards, {}
    for name in partition.parameters:
        local = local_part(shards.parameters[name])
        gradient[name] = shards.like(name, rows[name] / total if name in rows else torch.zeros_like(local))
    return value / max(tally.total, 1), gradient


def plain_gradient(loss: Loss, partition: Partition) -> tuple[Tensor, Direction]:
    """Loss () and gradient of a closure that has been checked before, for the price of any training loop's.

    Whether they are finite is left to the caller. Raises ValueError inside autocast, and where no parameter has a part in the loss.

    >>> import gnewton as gn
    >>> model = gn.models.Rosenbrock(2)
    >>> plain_gradient(model, gn.Partition.single(model))[1]
    {'theta': tensor([-215.6000,  -88.0000])}
    """
    trainable = _trainable(partition)
    check_surroundings(partition)
    with torch.enable_grad():
        value = loss()
        try:
            entries = torch.autograd.grad(value, list(trainable.values()), allow_unused=True)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError, AssertionError):
            differentiate(evaluate(loss, partition), list(trainable.values()))  # says what is wrong with the closure
            raise
        if all(g is None for g in entries):
            evaluate(loss, partition)  # refuses a loss of another model
    value = value.detach().clone()  # the loss may be a parameter itself, which moves
    value = value.reshape(()) if value.ndim else value
    if len(entries) == len(partition.parameters) and not any(g is None or g.is_sparse for g in entries):
        return value, dict(zip(partition.parameters, entries, strict=True))
    return value, _completed(dict(zip(trainable, entries, strict=True)), partition)


def _completed(entries: Mapping[str, Tensor | None], partition: Partition) -> Direction:
    """The gradient from the entries of the trainable parameters: zeros for the others, and where there is None."""
    gradients, unused = {}, []
    for name, p in partition.parameters.items():
        g = entries.get(name)
        if g is None and name in entries:
            unused.append(name)
        gradients[name] = torch.zeros_like(p) if g is None else g.to_dense() if g.is_sparse else g
    partition.check_held(unused)
    return gradients


def slopes(gradients: Mapping[str, Tensor], direction: Mapping[str, Tensor], partition: Partition) -> Tensor:
    """g-bar, the gradient's product with each group's part of the direction: (S,), float64 (float32 on MPS).

    >>> import torch, gnewton as gn
    >>> partition = gn.Partition.by_scalar(gn.models.Rosenbrock(2))
    >>> slopes({"theta": torch.tensor([3.0, 4.0])}, {"theta": torch.tensor([2.0, 0.5])}, partition)
    tensor([6., 2.], dtype=torch.float64)
    """
    return partition.sums({name: _products(g, direction[name], partition, name) for name, g in gradients.items()})


@torch.no_grad()
def descent(gradients: Mapping[str, Tensor], before: Mapping[str, Tensor], partition: Partition) -> Tensor:
    """By how much a linear loss of these gradients falls from ``before`` to where the parameters are, (): the sum of all g-bar.

    Where every parameter lies in one group here, it is finite only where every gradient is.

    >>> import torch, gnewton as gn
    >>> model = gn.models.Rosenbrock(2)
    >>> before = {"theta": model.theta.detach() + torch.tensor([2.0, 0.5])}
    >>> descent({"theta": torch.tensor([3.0, 4.0])}, before, gn.Partition.single(model))
    tensor(8., dtype=torch.float64)
    """
    names = [name for name in gradients if partition.parameters[name].requires_grad]
    here = [partition.parameters[name] for name in names]
    if not (partition.is_alone and partition.is_whole):
        last = {name: before[name] - p for name, p in zip(names, here, strict=True)}
        return slopes({name: gradients[name] for name in names}, last, partition).sum()
    products = torch._foreach_sub([before[name] for name in names], here)
    torch._foreach_mul_(products, [gradients[name] for name in names])
    every = torch.cat([p.flatten() for p in products])
    # In a dtype with few digits they would be lost in the sum. Float32 has as many as the losses that it is compared with.
    return every.sum(dtype=torch.promote_types(every.dtype, torch.float32)).to(accumulator_dtype(partition.device))


def _products(a: Tensor, b: Tensor, partition: Partition, name: str) -> Tensor:
    a, b = local_part(a), local_part(b)
    # Where a parameter lies in one group, one number does, and its kernel reads memory once; in dtypes with few digits
    # it would also add in them.
    whole = isinstance(partition.label(name), int) and a.dtype in (torch.float32, torch.float64)
    return torch.dot(a.flatten(), b.flatten()) if whole else a * b


def normalize(direction: Mapping[str, Tensor], partition: Partition) -> Direction:
    """u with the part inside each group divided by its norm, u_s / ||u_s||; a part that is zero stays zero.

    >>> import torch, gnewton as gn
    >>> partition = gn.Partition.single(gn.models.Rosenbrock(2))
    >>> normalize({"theta": torch.tensor([3.0, 4.0])}, partition)
    {'theta': tensor([0.6000, 0.8000])}
    """
    # By the largest entry first: squares of numbers below 1e-23 vanish in float32, and of those above 1e19 overflow.
    largest = partition.largest(direction)
    scale = torch.where(largest > 0, largest, 1)
    u = {name: part / scale for name, part in direction.items()}
    norms = lengths(u, partition)
    return partition.scale(u, torch.where(norms > 0, 1 / norms, 0))


def lengths(direction: Mapping[str, Tensor], partition: Partition) -> Tensor:
    """||u_s|| of each group: (S,), float64 (float32 on MPS).

    >>> import torch, gnewton as gn
    >>> lengths({"theta": torch.tensor([3.0, 4.0])}, gn.Partition.single(gn.models.Rosenbrock(2)))
    tensor([5.], dtype=torch.float64)
    """
    return partition.sums({name: _squares(part, partition, name) for name, part in direction.items()}).sqrt()


def _squares(part: Tensor, partition: Partition, name: str) -> Tensor:
    # In few digits, squares of small entries vanish.
    part, dtype = local_part(part), accumulator_dtype(partition.device)
    whole = isinstance(partition.label(name), int)
    numbers: Tensor = torch.linalg.vector_norm(part, dtype=dtype) if whole else part.to(dtype)
    return numbers.square()


def on_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors on the CPU, in their common dtype, by one transfer: the host waits for the device once.

    >>> on_host([torch.ones(2), torch.zeros((), dtype=torch.float64)])
    [tensor([1., 1.], dtype=torch.float64), tensor(0., dtype=torch.float64)]
    """
    flat = torch.cat([t.flatten().to(tensors[0].device) for t in tensors]).cpu()
    parts = torch.split(flat, [t.numel() for t in tensors])
    return [part.reshape(t.shape) for part, t in zip(parts, tensors, strict=True)]


def check_direction(direction: Mapping[str, Tensor], partition: Partition) -> Direction:
    """The direction with exactly the partition's names and shapes, detached, in the parameters' dtypes and on their devices.

    Raises TypeError (not a dictionary of tensors), ValueError (missing, unknown, misshaped, on another device, not finite).

    >>> import torch, gnewton as gn
    >>> partition = gn.Partition.single(gn.models.Rosenbrock(2))
    >>> check_direction({"theta": torch.ones(3)}, partition)
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
    checked = {name: _check_entry(name, direction[name], p) for name, p in partition.parameters.items()}
    if name := _first_not_finite(checked):
        raise ValueError(
            f"expected a finite direction, got NaN or infinity in {name}; check the gradient that it came from"
        )
    return checked


def _check_entry(name: str, u: Tensor, p: Tensor) -> Tensor:
    if not isinstance(u, Tensor):
        raise TypeError(f"expected a tensor for {name} in the direction, got {type(u).__name__}; convert it first")
    if u.shape != p.shape:
        raise ValueError(
            f"expected shape {tuple(p.shape)} for {name} in the direction, got {tuple(u.shape)}; build it from partition.parameters"
        )
    if is_dtensor(p) and not (is_dtensor(u) and u.device_mesh == p.device_mesh and u.placements == p.placements):  # type: ignore[attr-defined]
        raise ValueError(
            f"expected {name} of the direction sharded as its parameter is, got {type(u).__name__}; build it with "
            "direction.gradient or torch.zeros_like(parameter), or write torch.distributed.tensor.distribute_tensor(u, "
            "parameter.device_mesh, parameter.placements)"
        )
    if u.device != p.device:
        raise ValueError(
            f"expected {name} of the direction on {p.device}, got {u.device}; move it with .to({str(p.device)!r})"
        )
    u = u.detach()
    return u if u.dtype == p.dtype else _converted(name, u, p.dtype)


def _converted(name: str, u: Tensor, dtype: torch.dtype) -> Tensor:
    if u.is_complex():
        raise TypeError(
            f"expected real numbers for {name} in the direction, got {u.dtype}; give its .real or its .imag"
        )
    converted = u.to(dtype)
    if not u.is_meta and bool(((u != 0) & (converted == 0)).any()):
        raise ValueError(
            f"expected {name} of the direction within the range of {dtype}, got numbers in {u.dtype} that are 0 there; multiply "
            "the direction, and the rates that come from it, by a number"
        )
    return converted


def total(tensors: Mapping[str, Tensor], *numbers: Tensor) -> Tensor:
    """A number () that is finite only where every entry is, of this rank's rows; it may overflow. The host does not wait.

    Args:
        tensors: by parameter name.
        numbers: further ones, each ().

    >>> total({"theta": torch.tensor([1.0, 2.0])}), total({"theta": torch.tensor([1.0, float("nan")])})
    (tensor(3.), tensor(nan))
    """
    sums = [*(local_part(t).sum() for t in tensors.values()), *numbers]
    return stack_numbers(sums).sum()


def check_step(value: Tensor, gradients: Mapping[str, Tensor]) -> None:
    """Raises FloatingPointError for a loss () or a gradient that is not finite; the host waits once.

    >>> check_step(torch.tensor(1.0), {"theta": torch.tensor([2.0, 3.0])})
    """
    if not math.isfinite((total(gradients, value) if gradients else value).item()):
        check_value(value)
        check_finite(gradients, "gradient")


def check_finite(tensors: Mapping[str, Tensor], what: str) -> None:
    """Raise FloatingPointError, which names the parameter, where a gradient or direction is not finite."""
    if name := _first_not_finite(tensors):
        raise FloatingPointError(
            f"expected a finite {what}, got NaN or infinity in {name}; check the inputs or lower the learning rate"
        )


def _first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    # One sum of all, so that the host waits for a device once, however many parameters there are. Where finite entries overflow
    # in it they are looked at one by one.
    number = total(tensors)
    if number.is_meta or math.isfinite(number):
        return None
    return next((name for name, t in tensors.items() if not torch.isfinite(local_part(t)).all()), None)
