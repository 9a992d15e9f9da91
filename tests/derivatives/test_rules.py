"""A function has one place: its rule says which functions it serves and when, and no two rules claim one operation.

Both sides of the comparison are float64 and differ by roundings of a few dozen products, below 1e-12 of the largest entry.
"""

import pytest
import torch
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
    assert [o.name for o in tape.operations if len(matching_rules(o)) > 1] == []
    assert all(o.rule in matching_rules(o) or isinstance(o.rule, Generic) for o in tape.operations)


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(operation, "_RULES", {name: list(rules) for name, rules in operation._RULES.items()})


def problem():
    torch.manual_seed(0)
    model, x = nn.Linear(3, 4, dtype=DTYPE), torch.randn(5, 3, dtype=DTYPE)
    partition = gn.Partition.by_tensor(model)
    return (
        lambda: model(x).logcumsumexp(1).sum(),
        partition,
        {n: torch.randn_like(p) for n, p in model.named_parameters()},
    )


class LogCumSumExp(Rule):
    """log sum_{j <= i} exp(x_j) along the last axis: means and covariances under the weights softmax(x_1 .. x_i)."""

    reads_outputs = True

    def applies(self, o):
        return o.argument(1, "dim") in (-1, o.inputs[0].value.dim() - 1)

    def forward(self, o, jets, adjoints, sums):
        ((x, _),), (adjoint,) = jets, operation.adjoint_values(o, adjoints)
        weights = (o.inputs[0].value[..., None, :] - o.outputs[0].value[..., :, None]).exp().tril()
        first = torch.einsum("bij,sbj->sbi", weights, x.values)
        pairs = torch.einsum("bij,sbj,tbj->stbi", weights, x.values, x.values) - first[:, None] * first
        sums.hessian(x.groups, x.groups, (pairs * adjoint).sum((2, 3)))
        return [Jet(GroupTangents(x.groups, first))]


def test_a_rule_written_outside_serves_its_function(registry):
    loss, partition, u = problem()
    generic = gn.summarize(loss, partition, u, order=2, engine="tape")
    register("logcumsumexp", LogCumSumExp())
    assert [type(o.rule) for o in record(loss, partition).operations][1] is LogCumSumExp
    closed = gn.summarize(loss, partition, u, order=2, engine="tape")
    torch.testing.assert_close(closed.gradient, generic.gradient, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(closed.hessian, generic.hessian, rtol=1e-12, atol=1e-12)


def test_a_second_rule_for_the_same_arguments_is_seen(registry):
    loss, partition, _ = problem()
    register("logcumsumexp", LogCumSumExp())
    register("logcumsumexp", LogCumSumExp())
    (double,) = (o for o in record(loss, partition).operations if o.name == "logcumsumexp")
    assert len(matching_rules(double)) == 2
