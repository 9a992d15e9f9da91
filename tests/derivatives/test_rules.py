"""A function has one place: its rule says which functions it serves and when, and no two rules claim one operation.

Both sides of the comparison are float64 and differ by roundings of a few dozen products, below 1e-12 of the largest entry.
"""

import pytest
import torch
from support.finite_differences import finite_differences
from support.zoo import ZOO
from torch import nn

import gnewton as gn
from gnewton.derivatives import operation
from gnewton.derivatives.group_tangents import GroupTangents
from gnewton.derivatives.operation import Jet, Rule, matching_rules, register
from gnewton.derivatives.record import record
from gnewton.derivatives.rules.generic import Generic

pytestmark = [
    pytest.mark.filterwarnings("ignore::gnewton.loss.RandomLossWarning"),
    # scripting, tracing and compiling, which the zoo does on purpose
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning"),
    pytest.mark.filterwarnings("ignore:Dynamo:UserWarning"),
]
DTYPE = torch.float64
TAPED = [name for name, case in ZOO.items() if case.expected == "tape"]


@pytest.mark.parametrize("name", TAPED)
def test_at_most_one_rule_applies(name):
    case = ZOO[name]
    problem = case.build()
    tape = record(problem.loss, (case.partition or gn.Partition.single)(problem.model))
    # What has complex numbers has rules of its own, found by what is linear or bilinear.
    real = [o for o in tape.operations if not o.is_complex]
    assert [o.name for o in real if len(matching_rules(o)) > 1] == []
    assert all(o.rule in matching_rules(o) or isinstance(o.rule, Generic) for o in real)


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(operation, "_RULES", {name: list(rules) for name, rules in operation._RULES.items()})


def problem():
    torch.manual_seed(0)
    model, x = nn.Linear(3, 4, dtype=DTYPE), torch.randn(5, 3, dtype=DTYPE)
    u = {n: torch.randn_like(p) for n, p in model.named_parameters()}
    return lambda: model(x).sigmoid().logit().cos().sum(), gn.Partition.by_tensor(model), u


class Logit(Rule):
    """log(x / (1 - x)), to the second order."""

    def forward(self, o, jets, adjoints, sums):
        ((x, _),), (adjoint,) = jets, operation.adjoint_values(o, adjoints)
        p = o.inputs[0].value
        slope = 1 / (p * (1 - p))
        weighted = x.values * (2 * p - 1) * slope**2 * adjoint
        sums.hessian(x.groups, x.groups, weighted.flatten(1) @ x.rows().T)
        return [Jet(GroupTangents(x.groups, x.values * slope))]


def test_a_rule_written_outside_serves_its_function(registry):
    loss, partition, u = problem()
    generic = gn.summarize(loss, partition, u, order=2, engine="tape")
    register("logit", Logit())
    assert [type(o.rule) for o in record(loss, partition).operations][2] is Logit
    closed = gn.summarize(loss, partition, u, order=2, engine="tape")
    torch.testing.assert_close(closed.gradient, generic.gradient, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(closed.hessian, generic.hessian, rtol=1e-12, atol=1e-12)


def test_a_second_rule_for_the_same_arguments_is_seen(registry):
    loss, partition, _ = problem()
    register("logit", Logit())
    register("logit", Logit())
    (double,) = (o for o in record(loss, partition).operations if o.name == "logit")
    assert len(matching_rules(double)) == 2


# -- where torch's own derivatives are wrong, so that nested passes are no oracle ---------------------------------------

CUMULATIVE = [((4, 6), 0, 0.0), ((4, 6), 1, 0.0), ((2, 3, 4), -2, 0.0), ((4, 6), -1, 30.0), ((24,), 0, 0.0)]


def cumulative(shape, shift):
    """x depends on three groups and is curved in two of them; the loss, of the function and of its like in log and exp."""
    torch.manual_seed(1)
    model, data = nn.Linear(3, 6, dtype=DTYPE), torch.randn(4, 3, dtype=DTYPE)
    model.w = nn.Parameter(torch.randn(6, dtype=DTYPE))
    weights = torch.linspace(0.5, 1.5, 24, dtype=DTYPE).reshape(shape)

    def loss(function):
        out = function((model(data).tanh() * model.w).reshape(shape) * 3 + shift) - shift
        return (weights * out.sin()).sum()

    u = {n: torch.randn_like(p) for n, p in model.named_parameters()}
    return loss, gn.Partition.by_tensor(model), u


@pytest.mark.parametrize(("shape", "dim", "shift"), CUMULATIVE)
def test_logcumsumexp_against_differences_of_torchs_gradient(shape, dim, shift):
    loss, partition, u = cumulative(shape, shift)
    closed = gn.summarize(lambda: loss(lambda x: x.logcumsumexp(dim)), partition, u, engine="tape")
    finite = finite_differences(lambda: loss(lambda x: x.logcumsumexp(dim)), partition, u)
    torch.testing.assert_close(closed.gradient, finite.gradient, rtol=1e-12, atol=1e-12)
    # The differences estimate their own error.
    for ours, theirs in ((closed.hessian, finite.hessian), (closed.third, finite.third)):
        assert (ours - theirs.value).abs().max() <= 10 * theirs.error.max() + 1e-9 * theirs.scale
        assert theirs.error.max() < 1e-5 * theirs.scale


@pytest.mark.parametrize(("shape", "dim", "shift"), CUMULATIVE)
def test_logcumsumexp_in_full_against_nested_passes_through_its_formula(shape, dim, shift):
    loss, partition, u = cumulative(shape, shift)
    closed = gn.summarize(lambda: loss(lambda x: x.logcumsumexp(dim)), partition, u, full_third=True, engine="tape")
    formula = gn.summarize(
        lambda: loss(lambda x: x.exp().cumsum(dim).log()), partition, u, full_third=True, engine="nested"
    )
    for ours, theirs in zip(closed.tensors(), formula.tensors(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10 * theirs.abs().max().item())


def test_logcumsumexp_of_numbers_far_apart():
    """An entry of -inf, and later ones that dwarf the first: the running weights are at most 1."""
    x = torch.tensor([0.0, -float("inf"), 900.0, -900.0, 901.0], dtype=DTYPE)
    w = nn.Parameter(torch.ones(5, dtype=DTYPE))
    partition = gn.Partition.from_groups({"w": {"w": w}})
    u = {"w": torch.arange(5, dtype=DTYPE)}
    summary = gn.summarize(lambda: (x + w).logcumsumexp(0) @ u["w"], partition, u, engine="tape")
    # Two terms matter, in the last row: sigmoid(1) and its derivatives, with the tangents 2 and 4 and the weight 4.
    p = torch.tensor(1.0, dtype=DTYPE).sigmoid()
    torch.testing.assert_close(summary.hessian[0, 0], 4 * p * (1 - p) * 4)
    torch.testing.assert_close(summary.third[0], 4 * p * (1 - p) * (1 - 2 * p) * 8)
