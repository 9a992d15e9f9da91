"""What a sweep will cost, in gradients of the same loss, estimated before it begins.

Multiplications are counted, and a pass over the scalars of a value as some twenty of them: about what a processor multiplies
while it reads and writes one number. That is right to a factor of two or three, enough to tell seconds from hours.
"""

from collections.abc import Iterator, Sequence

from gnewton.caller import warn
from gnewton.derivatives.operation import Operation
from gnewton.derivatives.rules.bilinear import Product
from gnewton.derivatives.tape import Tape

_PASS = 20  # multiplications in the time of one pass over a scalar
_LONG = 100  # gradients
_WORK = 1e12  # multiplications, below which it takes seconds whatever it is compared with


_MANY = 200  # operations
_TINY = 3e5  # multiplications, below which an operation takes as long as Python takes to find its rule


class LongSummaryWarning(UserWarning):
    """A summary will take more than a hundred gradients."""


def warn_if_long(tape: Tape, blocks: Sequence[Sequence[int]], order: int) -> None:
    """One LongSummaryWarning, with what to do, where the sweeps of these blocks of groups take long."""
    # By the counts below no group costs more than two gradients in a sweep.
    if 1 + 2 * sum(map(len, blocks)) <= _LONG:
        return
    price, work = estimate(tape, blocks, order)
    if price > _LONG and work > _WORK:
        room = "give it more max_memory, " if len(blocks) > 1 else ""
        warn(
            f"this summary takes about {price:,.0f} gradients (sweeps: {len(blocks):,}); {room}take fewer groups "
            "(Partition.by_layer, Partition.blocks), fewer samples at a time (data=) or order=2",
            LongSummaryWarning,
        )


def with_progress(blocks: Sequence[Sequence[int]]) -> Iterator[Sequence[int]]:
    """The blocks; from the second on with a bar in a terminal, where tqdm is installed."""
    yield from blocks[:1]
    if len(blocks) > 1:
        yield from _bar(blocks)


def _bar(blocks: Sequence[Sequence[int]]) -> Iterator[Sequence[int]]:
    try:
        from tqdm import tqdm
    except ImportError:
        return iter(blocks[1:])
    # None leaves it to tqdm: nothing in a file, a pipe or a notebook, whose saved output would keep it.
    return iter(tqdm(blocks[1:], "sweeps", initial=1, total=len(blocks), leave=False, disable=None))


def estimate(tape: Tape, blocks: Sequence[Sequence[int]], order: int) -> tuple[float, float]:
    """The price in gradients, and the multiplications; a group costs as often as it is swept."""
    repeats = sum(map(len, blocks)) / len({group for block in blocks for group in block})
    gradient = sum(map(_gradient, tape.operations))
    work = gradient + repeats * (2 if order == 3 else 1) * sum(map(_sweep, tape.operations))
    return work / max(gradient, 1), work


def usual_price(engine: str, groups: int, order: int) -> int:
    """What a summary takes by "nested" or by "tape", in gradients, of a chain of layers with smooth activations.

    Fitted to perceptrons and convolutions with 1, 5 and 10 groups, on one thread; right to a third.

    >>> usual_price("nested", 5, order=3), usual_price("tape", 5, order=3)
    (30, 5)
    """
    base, each = {("nested", 2): (2, 2.3), ("nested", 3): (3, 5.5), ("tape", 2): (2.5, 1 / 6), ("tape", 3): (3, 1 / 3)}[
        engine, order
    ]
    return round(base + each * groups)


def favours_nested(tape: Tape, groups: int, order: int) -> bool:
    """Whether nested backward passes are cheaper: for a long list of tiny operations and hardly any groups.

    There a sweep takes some 150 microseconds an operation at order 2 and 220 at order 3, whatever the groups, and nested
    passes take 30 + 30 S and 45 + 130 S (an LSTM of 32 units over 40 steps, on two processors).
    """
    n = len(tape.operations)
    few = groups <= (3 if order == 2 else 1)
    return few and n >= _MANY and sum(map(_sweep, tape.operations)) < n * _TINY


def _gradient(o: Operation) -> float:
    outputs: Sequence[int] = [v.value.numel() for v in o.outputs]
    return 3.0 * (o.rule.multiplications(o) if isinstance(o.rule, Product) else _PASS * sum(outputs))


def _sweep(o: Operation) -> float:
    return float(o.rule.cost(o)) * (1 if isinstance(o.rule, Product) else _PASS)
