"""Recording: a loss runs once, as it is, and every torch function that it calls is seen.

An operation is written down when one of its arguments is a parameter of the partition or the result of an earlier one.
Python functions of torch are opened, not written down whole: their parts have simpler derivatives.

A list that lacks an operation would give wrong numbers and no error. So each operation is compared with autograd's graph:
walking back from its outputs, every path must end at the inputs that were written down. A path that reaches a parameter
otherwise means that something went unseen (a custom autograd function, which `opened.py` can open, a scripted module, another thread). Then the tape
names it in ``missing``, and the slow engine, which needs no record, takes over.
"""

from collections.abc import Sequence
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from gnewton.caller import warn
from gnewton.derivatives.beneath import RecorderBeneath
from gnewton.derivatives.price import usual_price
from gnewton.derivatives.recorder import HOOKED, Recorder
from gnewton.derivatives.tape import Tape
from gnewton.loss import Loss, differentiable_mode, evaluate, has_custom_functions
from gnewton.partition import Partition
from gnewton.undo import Buffers, Start


class IncompleteRecordWarning(UserWarning):
    """The tape cannot follow the loss; the slow engine computes the summary, which is as exact."""


_WARNED: WeakSet[Partition] = WeakSet()
# Whose loss was recorded beneath autograd before, as nothing else sees the whole of it.
_BENEATH: WeakSet[Partition] = WeakSet()


def warn_of_missing(what: str | None, partition: Partition, order: int) -> None:
    """One IncompleteRecordWarning per partition, for whoever called the library: what is missing, where, and the price."""
    if partition not in _WARNED:
        _WARNED.add(partition)
        slow, fast = (usual_price(engine, len(partition), order) for engine in ("nested", "tape"))
        warn(
            f"the tape cannot record this loss: {what}; the summary is computed by nested backward passes, exact but slow: "
            f"about {slow:,} gradients instead of {fast:,}",
            IncompleteRecordWarning,
        )


def record(loss: Loss, partition: Partition, batch: Sequence[Any] = ()) -> Tape:
    """The tape of ``loss(*batch)``; its ``value`` is the same number, bit for bit, as without recording.

    Raises what ``summarize`` raises for an unfit loss. Buffers are left as they were.
    """
    with differentiable_mode(partition):
        return record_in_mode(loss, partition, batch)


def record_in_mode(
    loss: Loss,
    partition: Partition,
    batch: Sequence[Any] = (),
    *,
    finite: bool = True,
    start: Start | None = None,
) -> Tape:
    """``record`` for a caller that has entered ``loss.differentiable_mode``.

    Args:
        loss, partition, batch: as there.
        finite: as in ``evaluate``.
        start: what an evaluation begins with now, from a caller that has it.
    """
    with torch._C.DisableTorchFunction():
        kinds: tuple[type[Recorder], ...] = (Recorder, RecorderBeneath)
        if partition in _BENEATH:
            kinds = (RecorderBeneath,)
        if partition.weights is not None:
            kinds = (Recorder,)  # beneath autograd, to gather a weight is no single operation
        start = start or Start(partition)
    tape = _record_by(kinds[0], loss, partition, batch, finite=finite, random=start.random)
    assert tape.value is not None
    # Inside of a custom function there is no graph that kernels could be compared with.
    if tape.missing in (None, HOOKED) or len(kinds) == 1 or has_custom_functions(tape.value):
        return tape
    # A second evaluation, of the same function: what the first one drew is drawn again, what it wrote is undone.
    with torch._C.DisableTorchFunction():
        after = Buffers(partition.module)
        start.buffers.restore()
    with start.random.replay():
        beneath = _record_by(kinds[1], loss, partition, batch, finite=finite, random=start.random)
    if beneath.missing is None and _is_same(beneath, tape):
        _BENEATH.add(partition)
        return beneath
    after.restore()
    return tape


def _is_same(tape: Tape, other: Tape) -> bool:
    assert tape.value is not None
    assert other.value is not None
    return tape.value.is_meta or torch.equal(tape.value, other.value)


def _record_by(kind: type[Recorder], loss: Loss, partition: Partition, batch: Sequence[Any], **options: Any) -> Tape:
    with torch._C.DisableTorchFunction():
        recorder = kind(partition)
    recorder.tape.value = evaluate(recorder.wrap(loss) if callable(loss) else loss, partition, batch, **options)
    return recorder.tape


def record_with_gradient(loss: Loss, partition: Partition, *, finite: bool = True) -> tuple[Tape, dict[str, Tensor]]:
    """The tape of a loss, and the gradient by parameter name; for a caller that has entered ``loss.differentiable_mode``.

    One evaluation and one backward pass serve both and the summary: torch keeps what they share. ``finite`` as in ``evaluate``.
    """
    tape = record_in_mode(loss, partition, finite=finite)
    trainable = {name: p for name, p in partition.parameters.items() if p.requires_grad}
    gradient = {name: torch.zeros_like(p, requires_grad=False) for name, p in partition.parameters.items()}
    entries = dict(zip(trainable, tape.gradients(list(trainable.values())), strict=True))
    partition.check_held([name for name, g in entries.items() if g is None])
    gradient |= {name: g.to_dense() for name, g in entries.items() if g is not None}
    return tape, gradient
