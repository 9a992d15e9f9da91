"""Bounds printed in place of a number that is another one on another processor."""

import math
from collections.abc import Iterable, Mapping
from typing import Any


def band(what: str, value: Any, at_least: float | None = None, at_most: float | None = None) -> None:
    """Print between which bounds a number lies, or several numbers, after checking that all of them do.

    A training run amplifies a rounding, so that its losses and counts differ between processors: a cell that prints
    them cannot be compared. Bounds that hold for every rounding can.

    Args:
        what: the name of the quantity, in a few words.
        value: a number, a tensor or array of any shape, or a list or dictionary of such.
        at_least: the lower bound, included; None if there is none.
        at_most: the upper bound, included; None if there is none.

    Raises:
        AssertionError: a number lies outside, or is not a number.
        ValueError: no bound is given, no number, or the bounds exclude each other.

    >>> band("steps that raised the loss", 7, 2, 20)
    steps that raised the loss: from 2 to 20
    >>> band("test accuracies", [0.96, 0.97], at_least=0.94)
    test accuracies: all at least 0.94
    """
    if at_least is None and at_most is None:
        raise ValueError("expected a bound, got none; write at_least=, at_most=, or both")
    low, high = -math.inf if at_least is None else at_least, math.inf if at_most is None else at_most
    if not low <= high:
        raise ValueError(f"expected at_least <= at_most, got {at_least} and {at_most}; exchange them")
    numbers = list(_numbers(value))
    if not numbers:
        raise ValueError(f"expected a number or more for {what!r}, got {value!r}; give what was measured")
    bounds = ("all " if len(numbers) > 1 else "") + _bounds(at_least, at_most)
    if outside := [number for number in numbers if not low <= number <= high]:
        raise AssertionError(
            f"expected {what}: {bounds}; got {outside[0]:g}"
            + (f" and {len(outside) - 1} more outside" if len(outside) > 1 else "")
            + "; widen the bounds if the lesson still holds"
        )
    print(f"{what}: {bounds}")  # noqa: T201 (printing is what it is for)


def _bounds(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f"{low:g}" if low == high else f"from {low:g} to {high:g}"
    return f"at most {high:g}" if low is None else f"at least {low:g}"


def _numbers(value: Any) -> Iterable[float]:
    """All the numbers in a scalar, tensor, array, list or dictionary, one after the other."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        value = value.values()
    if isinstance(value, Iterable):
        for part in value:
            yield from _numbers(part)
    else:
        yield float(value)
