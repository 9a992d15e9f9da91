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
from gnewton.derivatives.rules import matrices
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


# -- matrix equations ----------------------------------------------------------------------------------------------------


def regular(a):
    return a + 3 * torch.eye(a.shape[-1], dtype=DTYPE)


def positive(a):
    return regular(a @ a.mT)


L = torch.linalg
# of a square matrix a and columns b
EQUATIONS = {
    "solve": lambda a, b: L.solve(regular(a), b),
    "solve with a constant matrix": lambda a, b: L.solve(regular(torch.ones_like(a, requires_grad=False)), b),
    "solve for constant columns": lambda a, b: L.solve(regular(a), torch.ones_like(b, requires_grad=False)),
    "solve for a vector": lambda a, b: L.solve(regular(a.flatten(0, -2)[: a.shape[-1]]), b.flatten()[: a.shape[-1]]),
    "solve, one in the other": lambda a, b: L.solve(positive(L.solve(regular(a), a)), b),
    "inv": lambda a, b: L.inv(regular(a)) @ b,
    "inverse": lambda a, b: regular(a).inverse() @ b,
    "upper": lambda a, b: L.solve_triangular(regular(a), b, upper=True),
    "lower": lambda a, b: L.solve_triangular(regular(a), b, upper=False),
    "unit lower": lambda a, b: L.solve_triangular(regular(a), b, upper=False, unitriangular=True),
    "cholesky": lambda a, b: L.cholesky(positive(a)) @ b,
    "whitening": lambda a, b: L.solve_triangular(L.cholesky(positive(a)), b, upper=False),
    "logdet": lambda a, b: torch.logdet(positive(a)).sin(),
    "slogdet": lambda a, b: L.slogdet(regular(a))[1].sin(),
}
SIZES = [((), 3, 2), ((2,), 2, 1), ((2, 2), 1, 3)]


def equation(name, batch, n, k):
    torch.manual_seed(0)
    shapes = {"a": (*batch, n, n), "b": (*batch, n, k), "c": (n, n)}
    p = nn.ParameterDict({name: nn.Parameter(torch.randn(shape, dtype=DTYPE)) for name, shape in shapes.items()})
    u = {name: torch.randn_like(q) for name, q in p.items()}
    weights = torch.randn(24, dtype=DTYPE)

    def loss():
        out = EQUATIONS[name]((p["a"] @ p["c"]).sin(), (p["b"] * p["a"][..., :1]).tanh()).flatten()
        return (weights[: len(out)] * out.sin()).sum()

    return loss, gn.Partition.by_tensor(p), u


def misfit(loss, partition, u, **options):
    """The largest disagreement of the tape with nested passes, relative to the largest entry of each order."""
    ours = gn.summarize(loss, partition, u, engine="tape", **options).tensors()
    theirs = gn.summarize(loss, partition, u, engine="nested", full_third=len(ours) > 4).tensors()
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", EQUATIONS)
def test_matrix_equations_in_closed_form(name, size):
    loss, partition, u = equation(name, *size)
    rules = [o.rule for o in record(loss, partition).operations]
    assert any(isinstance(r, matrices.Solve | matrices.Cholesky | matrices.LogDeterminant) for r in rules)
    assert not any(isinstance(r, Generic) for r in rules)
    for options in ({}, {"full_third": True}, {"max_memory": 1.0}):
        assert misfit(loss, partition, u, **options) < 1e-10
    summary, finite = gn.summarize(loss, partition, u), finite_differences(loss, partition, u)
    for ours, theirs in ((summary.hessian, finite.hessian), (summary.third, finite.third)):
        # The differences estimate their own error.
        assert (ours - theirs.value).abs().max() <= 10 * theirs.error.max() + 1e-9 * theirs.scale


@pytest.mark.parametrize(("name", "part"), [("cholesky", "_half"), ("logdet", "_trace"), ("solve", "_side_by_side")])
def test_the_control_a_closed_form_that_is_off_by_a_part_in_a_million_is_noticed(name, part, monkeypatch):
    right = getattr(matrices, part)
    monkeypatch.setattr(matrices, part, lambda *args: right(*args) * (1 + 1e-6))
    assert misfit(*equation(name, (), 3, 2), full_third=True) > 1e-8


def test_a_call_without_a_closed_form_takes_the_generic_rule():
    torch.manual_seed(0)
    a, b = (nn.Parameter(torch.randn(2, n, 3, dtype=DTYPE)) for n in (3, 2))
    partition = gn.Partition.by_tensor(nn.ParameterDict({"a": a, "b": b}))
    u = {name: torch.randn_like(p) for name, p in partition.parameters.items()}
    for call in (
        lambda: L.solve(regular(a), b, left=False),
        lambda: L.solve(regular(a[0]), b.mT),
        lambda: L.solve_triangular(regular(a), b, upper=True, left=False),
        lambda: L.cholesky(positive(a), upper=True),
    ):
        assert misfit(lambda call=call: call().sin().sum(), partition, u, full_third=True) < 1e-10


def test_an_operator_of_another_library_gets_no_rule_by_its_name():
    """Each name that has a rule, for an operator that does something else."""
    names = sorted(name for name in operation._RULES if name.isidentifier() and not name.startswith("__"))
    library = torch.library.Library("gnewton_tests", "DEF")
    w = nn.Parameter(torch.linspace(0.3, 0.9, 3, dtype=torch.float64))
    partition, u = gn.Partition.from_groups({"w": {"w": w}}), {"w": torch.ones_like(w)}
    expected = gn.summarize(lambda: (w.sin() * w).sum(), partition, u)
    for name in names:
        library.define(f"{name}(Tensor x) -> Tensor")
        library.impl(name, lambda x: x.sin() * x, "CompositeImplicitAutograd")
        packet = getattr(torch.ops.gnewton_tests, name)
        for function in (packet, packet.default):
            got = gn.summarize(lambda f=function: f(w).sum(), partition, u, engine="tape")
            torch.testing.assert_close(got.hessian, expected.hessian, rtol=1e-12, atol=0)
            torch.testing.assert_close(got.third, expected.third, rtol=1e-12, atol=0)
    assert len(names) > 100
    library._destroy()
