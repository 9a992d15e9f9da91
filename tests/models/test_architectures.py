"""Models of other libraries: which engine they get, as book/real-models.csv says, and that its numbers are right.

Right means: agreement, at orders 2 and 3, with finite differences of torch's own gradients, in float64.
"""

import dataclasses
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import pytest
import torch
from models.architectures import table
from models.architectures.table import Problem, Row
from support.finite_differences import Finite, Float64, Held, finite_differences
from torch import Tensor

import gnewton as gn
from gnewton.derivatives.opened import functions_opened
from gnewton.derivatives.record import IncompleteRecordWarning

# Nothing is loaded from a hub.
os.environ["HF_HUB_OFFLINE"] = "1"

pytestmark = pytest.mark.filterwarnings("default")
ROWS = table.rows()

# The differences' own error, relative to the largest entry: a table whose differences did not settle shows nothing. For D3,
# h = 1e-5 (which corners of the loss ask for) leaves 50 eps |g| / h^2 = 1e-4 |g| of rounding.
SETTLED = {"hessian": 1e-6, "third": 3e-3}
ROUNDING = 1e-9


def faults(summary: gn.Summary, finite: Finite) -> list[str]:
    """What disagrees: each number may differ by ten times the differences' estimated error, and rounding."""
    complaints = []
    for name, settled in SETTLED.items():
        expected, got = getattr(finite, name), getattr(summary, name)
        gap = (got - expected.value).abs().reshape(len(got), -1).amax(1)
        if not (expected.error <= settled * expected.scale).all():
            complaints.append(f"{name}: the differences did not settle: {(expected.error / expected.scale).max():.1e}")
        # What is not exact says how far off it may be.
        allowed = 10 * (expected.error + summary.errors.get(name, 0.0)) + ROUNDING * expected.scale
        if not (gap <= allowed).all():
            complaints.append(
                f"{name}: off by {gap.max() / expected.scale:.1e}, differences by {expected.error.max() / expected.scale:.1e}"
            )
    return complaints


def wide(problem: Problem) -> Callable[[], Tensor]:
    """The loss with every cast to float32 left out, and what it stops held."""
    held = Held() if problem.stops else nullcontext()

    def loss() -> Tensor:
        with Float64(), held:
            return problem.loss()

    return loss


def summarized(problem: Problem, loss: Callable[[], Tensor]) -> tuple[gn.Summary, str]:
    """The summary by the engine that gnewton takes, or names, and what it says the tape lacks."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            summary = gn.summarize(loss, problem.partition, problem.u)
        except NotImplementedError as refusal:
            return gn.summarize(loss, problem.partition, problem.u, engine="differences"), str(refusal)
    said = [str(w.message) for w in caught if isinstance(w.message, IncompleteRecordWarning)]
    return summary, "".join(said)


@pytest.fixture
def problem(row: Row) -> Iterator[Problem]:
    if not table.installed(row.library):
        pytest.skip(f"{row.library} is not installed: make test-zoo installs it")
    with table.in_float64():
        yield table.problem(row)


@pytest.mark.zoo
@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.library}-{row.name}")
def test_the_table_tells_the_engine_and_its_numbers_are_right(row: Row, problem: Problem) -> None:
    loss = wide(problem)
    summary, said = summarized(problem, loss)
    assert summary.engine == row.engine, said
    assert row.missing in said
    if row.engine == "tape":
        # As its library wrote it, casts included; custom functions are opened, which was proven above.
        with functions_opened():
            assert gn.derivatives.record.record(problem.loss, problem.partition).missing is None
    assert not faults(summary, finite_differences(loss, problem.partition, problem.u))


# -- the table ---------------------------------------------------------------------------------------------------------


def test_every_row_has_a_builder_and_every_builder_a_row() -> None:
    assert sorted(row.name for row in ROWS) == sorted(table.builders())


def test_thirty_models_of_eight_libraries_and_more() -> None:
    assert len(ROWS) >= 30
    assert len({row.library for row in ROWS} - {"torch"}) >= 8


def test_at_most_three_are_off_the_tape() -> None:
    assert len([row for row in ROWS if row.engine != "tape"]) <= 3


def test_a_row_off_the_tape_says_what_is_to_blame() -> None:
    assert [row.model for row in ROWS if (row.engine == "tape") == bool(row.missing)] == []
    assert {row.engine for row in ROWS} <= {"tape", "nested", "differences"}


# -- negative controls -------------------------------------------------------------------------------------------------


class Stopped(torch.autograd.Function):
    """x^3 whose backward hides from autograd that it depends on x."""

    @staticmethod
    def forward(ctx, x):
        ctx.x = x.detach()
        return x**3

    @staticmethod
    def backward(ctx, g):
        return 3 * ctx.x**2 * g


def small(function: Callable[[Tensor], Tensor]) -> Problem:
    with table.in_float64():
        model = torch.nn.Linear(3, 2)
        x = torch.randn(4, 3)
        u = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    return Problem(lambda: function(model(x)).square().sum(), gn.Partition.by_tensor(model), u, False)


@pytest.mark.parametrize("relative", [1e-5, 1e-4])
@pytest.mark.parametrize("name", ["hessian", "third"])
def test_a_wrong_entry_is_noticed(name: str, relative: float) -> None:
    problem = small(torch.tanh)
    summary = gn.summarize(problem.loss, problem.partition, problem.u)
    finite = finite_differences(problem.loss, problem.partition, problem.u)
    assert not faults(summary, finite)
    wrong = getattr(summary, name).clone()
    wrong.view(-1)[-1] += relative * wrong.abs().max()
    (said,) = faults(dataclasses.replace(summary, **{name: wrong}), finite)
    assert said.startswith(f"{name}: off by")


def test_a_hessian_that_autograd_gets_wrong_is_noticed() -> None:
    problem = small(Stopped.apply)
    value = problem.loss()
    gradient, hessian, third, _ = gn.derivatives.nested.summary(value, problem.partition, problem.u)
    wrong = gn.Summary(value.detach(), gradient, hessian, third)
    finite = finite_differences(problem.loss, problem.partition, problem.u)
    assert [text.split(":")[0] for text in faults(wrong, finite)] == ["hessian", "third"]


@pytest.mark.parametrize("distance", [1e-3, 1e-4])
def test_differences_across_a_corner_settle_at_a_smaller_step(distance: float) -> None:
    problem = small(lambda h: torch.relu(h - h.detach() + distance) + h**3)
    problem.stops = True
    loss = wide(problem)
    summary = gn.summarize(loss, problem.partition, problem.u)
    assert not faults(summary, finite_differences(loss, problem.partition, problem.u))


def test_a_value_that_the_loss_stops_is_held() -> None:
    problem = small(lambda h: h.tanh() * h.detach().exp())
    summary = gn.summarize(problem.loss, problem.partition, problem.u)
    assert faults(summary, finite_differences(problem.loss, problem.partition, problem.u))
    problem.stops = True
    loss = wide(problem)
    loss()
    assert not faults(summary, finite_differences(loss, problem.partition, problem.u))


def test_what_is_cast_to_float32_stays_in_float64() -> None:
    x = torch.linspace(0, 1, 5, dtype=torch.float64)
    with Float64():
        assert torch.equal(x.float().tanh().to(torch.float32).softmax(0, dtype=torch.float32), x.tanh().softmax(0))
