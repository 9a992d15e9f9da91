"""Exercises: a function to write, checked on two examples, with its usual mistakes named and hints one at a time."""

import importlib
import pkgutil
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SEEDS = (0, 1)
EXAMPLES = ("the first example", "another example")
YOUR_TURN = "your turn"
SINGLE_PRECISION = 1e-4  # a thousand roundings of float32

Function = Callable[..., Any]


@dataclass(frozen=True)
class Exercise:
    """One function that the learner writes.

    ``arguments(seed)``: a fresh tuple of what the function is called with. ``solution``: the function that is right.
    ``mistakes``: what is wrong and why, in one line -> a function that makes this mistake. ``tolerance``: how far an answer
    may be off, relative to the largest entry of the right one; answers in float32 may always be off by 1e-4.

    >>> double = Exercise("99.1", "Double x.", lambda seed: (seed + 1.0,), lambda x: 2 * x, {"that is x": lambda x: x}, ("Add.",))
    >>> [finding.passed for finding in assess(double, lambda x: x + x)]
    [True, True, True, True]
    """

    number: str
    task: str
    arguments: Callable[[int], tuple[Any, ...]]
    solution: Function
    mistakes: Mapping[str, Function]
    hints: Sequence[str]
    tolerance: float = 1e-6


@dataclass(frozen=True)
class Finding:
    """One line of a check: ``passed`` is None where the line is advice."""

    passed: bool | None
    text: str

    def __str__(self) -> str:
        return f"  {'->' if self.passed is None else 'yes' if self.passed else 'no':4} {self.text}"


@dataclass
class Record:
    """What a learner did with one exercise."""

    passed: bool = False
    checks: int = 0
    hints: int = 0
    lines: Sequence[str] = ()


RECORDS: dict[str, Record] = {}


def check(number: str, function: Function) -> None:
    """Check a learner's function and print what was found, line by line; never raises.

    number: of the exercise, "03.2" for the second one of notebook 03. Results may be numbers, lists, NumPy arrays or tensors
    of any real dtype. A function whose name starts with ``solution_`` is checked, but does not count in ``report``.

    >>> def rate(g, A):
    ...     raise NotImplementedError("your turn")
    >>> check("01.2", rate)
    Exercise 01.2: your turn
      ->   replace the line with raise, and run this cell again; gn.teaching.hint("01.2") gives a hint
    """
    try:
        exercise = find(number)
    except ValueError as error:
        sys.stdout.write(f"{error}\n")
        return
    findings = assess(exercise, function)
    _record(number, function, findings)
    verdict = "your turn" if findings[0].passed is None else "right" if is_solved(findings) else "not yet"
    sys.stdout.write("\n".join([f"Exercise {number}: {verdict}", *map(str, findings)]) + "\n")


def hint(number: str) -> None:
    """Print the next hint of an exercise; after the last one, the last one again.

    >>> hint("01.1")
    Hint 1 of ...
    """
    try:
        hints = find(number).hints
    except ValueError as error:
        sys.stdout.write(f"{error}\n")
        return
    record = RECORDS.setdefault(number, Record())
    record.hints = min(record.hints + 1, len(hints))
    sys.stdout.write(f"Hint {record.hints} of {len(hints)}: {hints[record.hints - 1]}\n")


def find(number: str) -> Exercise:
    """The exercise of this number; ValueError, with those there are, when there is none."""
    try:
        module = importlib.import_module(f"{__package__}.notebook_{str(number)[:2]}")
        exercises: dict[str, Exercise] = {exercise.number: exercise for exercise in module.EXERCISES}
    except ModuleNotFoundError:
        exercises = {exercise.number: exercise for exercise in every()}
    if not isinstance(number, str) or number not in exercises:
        raise ValueError(f"expected the number of an exercise, one of {', '.join(exercises)}, got {number!r}")
    return exercises[number]


def every() -> list[Exercise]:
    """All exercises of the course, in order."""
    names = sorted(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    modules = [importlib.import_module(f"{__package__}.{name}") for name in names if name.startswith("notebook_")]
    return [exercise for module in modules for exercise in module.EXERCISES]


def is_solved(findings: Sequence[Finding]) -> bool:
    """Whether it runs and no line says no."""
    return findings[0].passed is True and all(finding.passed is not False for finding in findings)


def assess(exercise: Exercise, function: Function) -> list[Finding]:
    """What ``check`` prints: that it runs, the shape, the values on both examples, and what is wrong where something is."""
    try:
        answers = [function(*exercise.arguments(seed)) for seed in SEEDS]
    except KeyboardInterrupt:
        raise  # the learner's own, who waits no longer
    except BaseException as error:  # sys.exit() in the answer, too, must not end the kernel
        if isinstance(error, NotImplementedError) and YOUR_TURN in _message(error):
            return [Finding(None, f"replace the line with raise, and run this cell again; {_hint(exercise)}")]
        return [Finding(False, _explain_stop(function, error))]
    try:
        got = [numbers(answer) for answer in answers]
    except Exception:  # of what the learner returned: a number without end, a list that holds itself
        return [Finding(True, "it runs"), Finding(False, _no_numbers(answers[0]))]
    right = [numbers(exercise.solution(*exercise.arguments(seed))) for seed in SEEDS]
    tolerance = max(exercise.tolerance, SINGLE_PRECISION if got[0].dtype == torch.float32 else 0.0)
    findings = [Finding(True, "it runs"), _shape(got[0], right[0])]
    if all(g.numel() == r.numel() for g, r in zip(got, right, strict=True)):
        # The right numbers under a wrong shape are partly right, and said to be.
        shaped = [g.reshape(r.shape) for g, r in zip(got, right, strict=True)]
        findings += [_values(name, g, r, tolerance) for name, g, r in zip(EXAMPLES, shaped, right, strict=True)]
    return findings if is_solved(findings) else [*findings, Finding(None, _advice(exercise, got, right, tolerance))]


def numbers(answer: Any) -> Tensor:
    """An answer as a real tensor on the CPU: float32 where the answer is, else float64. Numbers, nested lists, arrays, tensors."""
    if isinstance(answer, list | tuple):
        return torch.stack([numbers(part) for part in answer]) if answer else torch.zeros(0, dtype=torch.float64)
    if answer is None or isinstance(answer, str):
        raise TypeError(f"expected numbers, got {answer!r}")
    tensor = answer.detach() if isinstance(answer, Tensor) else torch.as_tensor(answer, dtype=_python_dtype(answer))
    if tensor.is_complex():
        raise TypeError("expected real numbers, got complex ones")
    tensor = tensor.to_dense() if tensor.layout != torch.strided else tensor
    return tensor.cpu() if tensor.dtype == torch.float32 else tensor.cpu().double()


def agrees(got: Tensor, right: Tensor, tolerance: float) -> bool:
    """Equal up to ``tolerance`` times the largest finite entry of ``right`` (1 where that is 0)."""
    return got.shape == right.shape and bool(_close(got, right, tolerance).all())


def _close(got: Tensor, right: Tensor, tolerance: float) -> Tensor:
    size = float(right[right.isfinite()].abs().max()) if right.isfinite().any() else 0.0
    return torch.isclose(got.double(), right.double(), rtol=0.0, atol=tolerance * (size or 1.0), equal_nan=True)


def _python_dtype(answer: Any) -> torch.dtype | None:
    # torch would make a Python number float32, and lose half of its digits.
    return torch.float64 if isinstance(answer, bool | int | float) else None


def _hint(exercise: Exercise) -> str:
    return f'gn.teaching.hint("{exercise.number}") gives a hint'


def _message(error: BaseException) -> str:
    """What an error says; its class may be the learner's own, and say it wrongly."""
    try:
        return str(error)
    except Exception:
        return ""


def _explain_stop(function: Any, error: BaseException) -> str:
    if not callable(function):
        return f"expected a function, got {type(function).__name__}: hand over its name alone, without calling it"
    code = getattr(function, "__code__", None)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if code and f.filename == code.co_filename]
    where = f" in line {frames[-1].lineno} of the cell, {frames[-1].line!r}" if frames else ""
    return f"it stops{where} with {type(error).__name__}: {_message(error) or 'no message'}"


def _no_numbers(answer: Any) -> str:
    if answer is None:
        return "it returns None: is the line with return missing?"
    return f"expected numbers, a list of them or a tensor, got {type(answer).__name__}"


def _shape(got: Tensor, right: Tensor) -> Finding:
    said = f"the shape is {_said(right)}"
    return Finding(True, said) if got.shape == right.shape else Finding(False, f"{said}; yours is {_said(got)}")


def _said(tensor: Tensor) -> str:
    return str(tuple(tensor.shape)) if tensor.ndim else "(), one number"


def _values(example: str, got: Tensor, right: Tensor, tolerance: float) -> Finding:
    close = _close(got, right, tolerance)
    if close.all():
        return Finding(True, f"the values agree on {example}")
    count = f" in {int(close.sum())} of {close.numel()} entries" if close.any() else ""
    first = tuple((~close).nonzero()[0].tolist())
    where = f" at {list(first)}" if first else ""
    pair = f"yours{where} is {float(got[first]):.4g}, expected {float(right[first]):.4g}"
    return Finding(
        False, f"the values agree{count} on {example}: {pair}" if count else f"the values on {example}: {pair}"
    )


def _advice(exercise: Exercise, got: list[Tensor], right: list[Tensor], tolerance: float) -> str:
    """The line of the mistake that gives these answers; failing that, what can be seen without knowing the exercise."""

    def same(others: list[Tensor]) -> bool:
        return all(agrees(g, o, tolerance) for g, o in zip(got, others, strict=True))

    for line, mistake in exercise.mistakes.items():
        if same([numbers(mistake(*exercise.arguments(seed))) for seed in SEEDS]):
            return line
    for factor in (-1.0, 2.0, 0.5, -2.0, -0.5):
        if same([factor * r for r in right]):
            return f"it is {factor:g} times what is expected, everywhere"
    if right[0].ndim == 2 and same([r.T for r in right]):
        return "it is the transpose of what is expected"
    if agrees(got[0], right[0], tolerance):
        return "right on one example alone: does the function use all of its arguments?"
    if all(agrees(g.flatten(), r.flatten(), tolerance) for g, r in zip(got, right, strict=True)):
        return "the numbers are right, their shape is not"
    return _hint(exercise)


def _record(number: str, function: Any, findings: Sequence[Finding]) -> None:
    if str(getattr(function, "__name__", "")).startswith("solution_") or findings[0].passed is None:
        return
    record = RECORDS.setdefault(number, Record())
    record.checks += 1
    # Once right stays right: trying something else afterwards costs nothing.
    if not record.passed:
        record.passed, record.lines = is_solved(findings), [str(finding).strip() for finding in findings]
