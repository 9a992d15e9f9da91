"""``band``: bounds are printed exactly where they hold, whatever holds the numbers."""

import numpy as np
import pytest
import torch

from gnewton.teaching import band

SHAPES = [
    lambda xs: xs,
    tuple,
    torch.tensor,
    np.array,
    lambda xs: {"a": xs[0], "b": torch.tensor(xs[1:])},
    lambda xs: [torch.tensor(xs[:1]), xs[1:]],
    lambda xs: (x for x in xs),
]


@pytest.mark.parametrize("make", SHAPES)
@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("wrong", [0.5, 4.5, float("nan"), float("inf"), -float("inf")])
def test_one_number_outside_is_refused_wherever_it_stands(make, place, wrong, capsys) -> None:  # type: ignore[no-untyped-def]
    numbers = [1.0, 2.5, 4.0]
    band("x", make(numbers), 1, 4)
    assert capsys.readouterr().out == "x: all from 1 to 4\n"
    numbers[place] = wrong
    with pytest.raises(AssertionError, match="expected x: all from 1 to 4; got"):
        band("x", make(numbers), 1, 4)
    assert capsys.readouterr().out == ""


def test_one_bound_leaves_the_other_side_open(capsys) -> None:  # type: ignore[no-untyped-def]
    band("x", 1e30, at_least=0.25)
    band("x", -1e30, at_most=0.25)
    band("x", True, 1, 1)
    assert capsys.readouterr().out == "x: at least 0.25\nx: at most 0.25\nx: 1\n"
    for bounds in ({"at_least": 2}, {"at_most": 0}):
        with pytest.raises(AssertionError):
            band("x", 1, **bounds)


@pytest.mark.parametrize(
    ("value", "bounds"),
    [(1, {}), (1, {"at_least": 2, "at_most": 1}), (1, {"at_least": float("nan")}), ([], {"at_most": 1})],
)
def test_bounds_that_say_nothing_are_refused(value, bounds) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="expected"):
        band("x", value, **bounds)
