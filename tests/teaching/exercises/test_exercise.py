"""Every exercise of the course can be solved, is not solved by less, and names its usual mistakes."""

import numpy as np
import pytest
import torch

from gnewton.teaching import check, hint
from gnewton.teaching.exercises.exercise import RECORDS, SEEDS, Exercise, assess, every, find, is_solved, numbers

EXERCISES = every()
MISTAKES = [(exercise, line) for exercise in EXERCISES for line in exercise.mistakes]


@pytest.fixture(autouse=True)
def nothing_remembered():
    RECORDS.clear()


def number_of(exercise):
    return getattr(exercise, "number", None)


def your_turn(*_):
    raise NotImplementedError("your turn")


def advice(exercise, function):
    return [finding.text for finding in assess(exercise, function) if finding.passed is None]


# -- every exercise ----------------------------------------------------------------------------------------------


def test_numbers_are_those_of_the_notebooks_without_gaps():
    numbers = [exercise.number for exercise in EXERCISES]
    assert len(set(numbers)) == len(numbers)
    for notebook in {number[:2] for number in numbers}:
        own = [number for number in numbers if number.startswith(notebook)]
        assert own == [f"{notebook}.{n}" for n in range(1, len(own) + 1)]
        assert len(own) <= 4
    assert all(find(exercise.number) is exercise for exercise in EXERCISES)


@pytest.mark.parametrize("exercise", EXERCISES, ids=number_of)
def test_the_solution_passes(exercise):
    findings = assess(exercise, exercise.solution)
    assert [finding.passed for finding in findings] == [True] * 4


@pytest.mark.parametrize("exercise", EXERCISES, ids=number_of)
def test_the_solution_passes_as_lists_numpy_and_float32(exercise):
    def like(convert):
        return lambda *arguments: convert(numbers(exercise.solution(*arguments)))

    for convert in (torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.float, lambda t: t.float().numpy()):
        assert is_solved(assess(exercise, like(convert)))


@pytest.mark.parametrize("exercise", EXERCISES, ids=number_of)
def test_the_stub_gets_a_helpful_line(exercise):
    (finding,) = findings = assess(exercise, your_turn)
    assert not is_solved(findings)
    assert f'hint("{exercise.number}")' in finding.text


@pytest.mark.parametrize("exercise", EXERCISES, ids=number_of)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_constant_fails(exercise, seed):
    constant = exercise.solution(*exercise.arguments(seed))
    assert not is_solved(assess(exercise, lambda *_: constant))


@pytest.mark.parametrize(("exercise", "line"), MISTAKES, ids=lambda part: number_of(part) or part[:30])
def test_every_mistake_is_named_by_its_line(exercise, line):
    assert advice(exercise, exercise.mistakes[line]) == [line]


@pytest.mark.parametrize(("exercise", "line"), MISTAKES, ids=lambda part: number_of(part) or part[:30])
def test_no_mistake_passes_for_right_in_single_precision(exercise, line):
    def single(*arguments):
        return numbers(exercise.mistakes[line](*arguments)).float()

    assert advice(exercise, single) == [line]


@pytest.mark.parametrize("exercise", EXERCISES, ids=number_of)
def test_texts_are_there(exercise):
    assert len(exercise.mistakes) >= 2
    assert len(exercise.hints) >= 2
    assert exercise.task.endswith(".")
    assert all(text.strip() == text != "" for text in (*exercise.hints, *exercise.mistakes))


@pytest.mark.parametrize("exercise", EXERCISES, ids=number_of)
def test_arguments_are_fresh_at_every_call(exercise):
    # A learner's function may write into its arguments.
    def spoils(*arguments):
        answer = numbers(exercise.solution(*arguments)).clone()
        for argument in arguments:
            if isinstance(argument, torch.Tensor) and argument.is_floating_point():
                argument.detach().zero_()
        return answer

    assert is_solved(assess(exercise, spoils))
    assert is_solved(assess(exercise, exercise.solution))


# -- what check says ---------------------------------------------------------------------------------------------

TABLE = Exercise(
    "99.1",
    "Multiply the rows.",
    lambda seed: (torch.arange(6.0, dtype=torch.float64).reshape(2, 3) + 1 + seed,),
    lambda x: x * torch.tensor([[1.0], [3.0]], dtype=torch.float64),
    {"rows, not columns": lambda x: x * 3, "not at all": lambda x: x},
    ("one", "two"),
)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda x: None, "returns None"),
        (lambda x: "3", "got str"),
        (lambda x: object(), "got object"),
        (lambda x: [1.0, [2.0, 3.0]], "got list"),
        (lambda x: 1j * x, "got Tensor"),
        (lambda x: x @ x, "stops in line"),
        (lambda x: 1 / 0, "ZeroDivisionError"),
        (lambda: 1, "TypeError"),
        (torch.tensor(3.0), "without calling it"),
        (lambda x: TABLE.solution(x)[0], "yours is (3,)"),
        (lambda x: TABLE.solution(x).T, "transpose"),
        (lambda x: TABLE.solution(x).flatten(), "their shape is not"),
        (lambda x: -2 * TABLE.solution(x), "-2 times"),
        (lambda x: TABLE.solution(x) * torch.tensor([1.0, 1.0, 2.0]), "agree in 4 of 6 entries"),
        (lambda x: TABLE.solution(x) * (1 if x[0, 0] == 1 else 7), "right on one example alone"),
        (lambda x: x * float("nan"), "is nan"),
        (lambda x: x**7, "hint"),
    ],
)
def test_what_is_wrong_is_said(function, said):
    findings = assess(TABLE, function)
    assert not is_solved(findings)
    assert said in "\n".join(map(str, findings))


def test_the_right_numbers_in_a_wrong_shape_are_partly_right():
    findings = assess(TABLE, lambda x: TABLE.solution(x).flatten())
    assert [finding.passed for finding in findings] == [True, False, True, True, None]


def test_an_answer_off_by_rounding_passes_and_one_off_by_more_does_not():
    assert is_solved(assess(TABLE, lambda x: TABLE.solution(x) * (1 + 1e-8)))
    assert not is_solved(assess(TABLE, lambda x: TABLE.solution(x) * (1 + 1e-4)))


@pytest.mark.parametrize(
    "answer", [1, 1.5, True, np.float32(2), np.arange(3), (1, 2.5), [[1], [2]], [torch.ones(2), [0, 1]]]
)
def test_numbers_keep_what_they_are(answer):
    plain = np.array([np.asarray(part) for part in answer]) if isinstance(answer, list | tuple) else np.asarray(answer)
    np.testing.assert_array_equal(numbers(answer).numpy(), plain)
    assert numbers(0.1).item() == 0.1


def test_check_prints_and_never_raises(capsys):
    for function in (find("01.1").solution, your_turn, lambda g: g, lambda g, A: None, 3, None):
        check("01.1", function)
    check("01.9", your_turn)
    check("77", your_turn)
    said = capsys.readouterr().out
    assert "Exercise 01.1: right" in said
    assert "Exercise 01.1: your turn" in said
    assert "Exercise 01.1: not yet" in said
    assert "got '01.9'" in said
    assert "got '77'" in said


class Speechless(Exception):
    def __str__(self):
        raise RuntimeError("no words")


class Nameless:
    __name__ = 3

    def __call__(self, *_):
        return 1.0


def throws(error):
    def stops(*_):
        raise error

    return stops


def holds_itself(*_):
    answer = []
    answer.append(answer)
    return answer


ODD = {
    "a number without end": lambda *_: 10**400,
    "a sparse tensor": lambda *_: torch.eye(3).to_sparse(),
    "a compressed one": lambda *_: torch.eye(3).to_sparse_csr(),
    "a tensor without numbers": lambda *_: torch.ones(3, device="meta"),
    "a list that holds itself": holds_itself,
    "an error without words": throws(Speechless()),
    "your turn without words": throws(type("Turn", (Speechless, NotImplementedError), {})()),
    "the end of the program": throws(SystemExit(3)),
    "the end of a generator": throws(GeneratorExit()),
    "a name that is none": Nameless(),
}


@pytest.mark.parametrize("kind", ODD)
def test_check_says_a_line_whatever_it_is_given(capsys, kind):
    check("01.1", ODD[kind])
    assert "Exercise 01.1: not yet" in capsys.readouterr().out


@pytest.mark.parametrize("number", [None, 1.1, ["01.1"], {}, "", "..", "\0"], ids=repr)
def test_check_says_a_line_whatever_its_number(capsys, number):
    check(number, your_turn)
    hint(number)
    assert capsys.readouterr().out.count("expected the number of an exercise") == 2


def test_a_sparse_answer_that_is_right_is_right():
    assert is_solved(assess(TABLE, lambda x: TABLE.solution(x).to_sparse()))


def test_a_learner_s_own_interrupt_is_heard():
    with pytest.raises(KeyboardInterrupt):
        check("01.1", throws(KeyboardInterrupt()))


def test_hints_come_one_at_a_time_and_the_last_one_stays(capsys):
    hints = find("01.1").hints
    for _ in range(len(hints) + 1):
        hint("01.1")
    hint("01.9")
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[2] for line in said[:-1]] == [*hints, hints[-1]]
    assert "got '01.9'" in said[-1]


def test_an_error_is_located_in_the_learners_own_code():
    def fails(x):
        y = x + 1
        return torch.linalg.solve(y, y)

    line = fails.__code__.co_firstlineno + 2
    assert f"line {line} of the cell, 'return torch.linalg.solve(y, y)'" in assess(TABLE, fails)[0].text
