"""What a grader asks of an exercise: an error where the answer is wrong, on examples that the notebook does not show."""

import torch

from gnewton.teaching.exercises.exercise import SINGLE_PRECISION, Function, agrees, find, numbers

HIDDEN = (2, 3)  # seeds beyond those of check: an answer that knows its two examples by heart fails


def require(number: str, function: Function, seeds: tuple[int, ...] = HIDDEN) -> None:
    """Raise AssertionError where a learner's function is wrong on one of the examples.

    Args:
        number: of the exercise, "03.2".
        function: the learner's; what it raises comes through.
        seeds: of the examples.

    >>> from gnewton.teaching.exercises.exercise import find
    >>> require("01.2", find("01.2").solution)
    >>> require("01.2", lambda g, A: 1.0)
    Traceback (most recent call last):
    AssertionError: exercise 01.2: expected the numbers of the solution on a further example, got others
    """
    exercise = find(number)
    for seed in seeds:
        right = numbers(exercise.solution(*exercise.arguments(seed)))
        got = numbers(function(*exercise.arguments(seed)))
        tolerance = max(exercise.tolerance, SINGLE_PRECISION if got.dtype == torch.float32 else 0.0)
        if not agrees(got, right, tolerance):
            raise AssertionError(
                f"exercise {number}: expected the numbers of the solution on a further example, got others"
            )
