"""Central differences of gradients: right within their own error estimate, for any loss that has a gradient; all put back.

The oracle is the exact engine on the same loss, or on the same loss written without what torch cannot differentiate twice.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from support.custom_functions import InNumpy
from support.problems import PARTITIONS, PROBLEMS, build
from torch import nn
from torch.utils.checkpoint import checkpoint

import gnewton as gn

ORDERS = ("gradient", "hessian", "third")


def within(summary, expected, relative=1e-12):
    """Off by at most five times the estimate: it is of the less exact of two numbers, and of its largest entry."""
    torch.testing.assert_close(summary.gradient, expected.gradient, rtol=1e-10 + relative, atol=1e-12 + relative)
    for name in summary.errors:
        worst = (getattr(summary, name) - getattr(expected, name)).abs().max().item()
        size = getattr(expected, name).abs().max().item()
        assert worst <= 5 * summary.errors[name] + relative * size, (name, worst, summary.errors)
        assert summary.errors[name] <= 1e-3 * max(size, expected.gradient.abs().max().item()), (
            name,
            summary.errors,
            size,
        )


@pytest.mark.parametrize("partition", ["by tensor", "single", "by row"])
@pytest.mark.parametrize("problem", [p for p in PROBLEMS if p != "quadratic"])
def test_right_within_the_estimated_error(problem, partition):
    case = build(problem)
    groups = PARTITIONS[partition](case.model)
    u = case.direction(groups)
    summary = gn.summarize(case.loss, groups, u, engine="differences")
    within(summary, gn.summarize(case.loss, groups, u))
    assert not summary.exact
    assert summary.engine == "differences"
    assert set(summary.errors) == {"hessian", "third"}


def test_the_estimate_grows_where_the_loss_is_rough():
    """The control of the estimate: a kink between theta and theta + h u is seen, though the number is wrong."""
    x = nn.Parameter(torch.tensor([1e-5, 1.0], dtype=torch.float64))
    partition = gn.Partition.from_groups({"x": {"x": x}})
    summary = gn.summarize(
        lambda: (x.abs() + x**2).sum(), partition, {"x": torch.ones(2)}, engine="differences", order=2
    )
    assert summary.errors["hessian"] > 1e3


def test_float32_says_how_little_it_knows():
    case = build("perceptron")
    case.model.float()
    case.x = case.x.float()
    groups = PARTITIONS["by tensor"](case.model)
    u = {n: t.float() for n, t in case.direction(groups).items()}
    summary = gn.summarize(case.loss, groups, u, engine="differences")
    exact = gn.summarize(case.loss, groups, u)
    for name in summary.errors:
        worst = (getattr(summary, name) - getattr(exact, name)).abs().max().item()
        assert worst <= 10 * summary.errors[name], name


def _in_autocast(net, x, dtype):
    with torch.autocast("cpu", dtype=dtype):
        return net(x).float()


def _last_layer_in(net, x, dtype):
    last = net[-1]
    return F.linear(net[:-1](x).to(dtype), last.weight.to(dtype), last.bias.to(dtype)).to(x.dtype)


def _upcast(net, x):
    values = {n: p.to(x.dtype) for n, p in net.named_parameters()}
    return torch.func.functional_call(net, values, (x,))


# The dtype of most parameters, the loss, a parameter of another dtype or None, and how large the error of D3 and
# its estimate may be: two to ten, and three to eighty, times the worst of twelve seeds.
COARSE = {
    "autocast to bfloat16": (torch.float32, lambda net, x: _in_autocast(net, x, torch.bfloat16), None, 8, 30),
    "a layer in bfloat16": (torch.float32, lambda net, x: _last_layer_in(net, x, torch.bfloat16), None, 8, 30),
    "a layer in float16": (torch.float32, lambda net, x: _last_layer_in(net, x, torch.float16), None, 3, 12),
    "a layer in float32": (torch.float64, lambda net, x: _last_layer_in(net, x, torch.float32), None, 0.2, 0.5),
    "a frozen layer in bfloat16": (torch.float64, lambda net, x: _upcast(net, x), "frozen", 1e-4, 1e-3),
    "a bias in float32": (torch.float64, lambda net, x: _upcast(net, x), "trained", 0.01, 0.05),
}


def misfits(kind, seed):
    """The errors of H-bar and D3 beside the loss in float64, and their estimates."""
    torch.manual_seed(seed)
    dtype, output, other, *_ = COARSE[kind]
    net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3)).to(dtype)
    if other == "frozen":
        net[0].to(torch.bfloat16).requires_grad_(False)
    if other == "trained":
        net[0].bias = nn.Parameter(net[0].bias.detach().float())
    fine = copy.deepcopy(net).double()
    x, y = torch.randn(64, 8), torch.randint(0, 3, (64,))
    partition = gn.Partition.by_tensor(net)
    u = {name: torch.randn_like(p).detach() for name, p in partition.parameters.items()}
    got = gn.summarize(lambda: F.cross_entropy(output(net, x.to(dtype)), y), partition, u, engine="differences")
    exact = gn.summarize(
        lambda: F.cross_entropy(fine(x.double()), y),
        gn.Partition.by_tensor(fine),
        {n: t.double() for n, t in u.items()},
    )
    return {n: ((getattr(got, n) - getattr(exact, n)).abs().max().item(), got.errors[n]) for n in got.errors}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", COARSE)
def test_the_step_suits_the_coarsest_numbers_inside_the_loss(kind, seed):
    measured = misfits(kind, seed)
    for name, (error, estimate) in measured.items():
        assert error <= 2 * estimate, name
    # The third derivatives here lie between 5 and 40.
    *_, largest_error, largest_estimate = COARSE[kind]
    assert measured["third"][0] < largest_error
    assert measured["third"][1] < largest_estimate


@pytest.mark.parametrize("kind", ["autocast to bfloat16", "a layer in bfloat16"])
def test_a_step_for_the_parameters_digits_would_measure_rounding(kind, monkeypatch):
    monkeypatch.setattr(gn.derivatives.differences, "coarsest_eps", lambda reached: 0.0)
    assert max(misfits(kind, seed)["third"][0] for seed in range(3)) > 40


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4)).double()


X = torch.linspace(-1, 1, 18, dtype=torch.float64).reshape(6, 3).sin().requires_grad_()
TARGETS, LENGTHS = torch.tensor([1, 2, 3]), torch.tensor([3])


def fused(z):
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
        return F.scaled_dot_product_attention(z[None, None], z[None, None], z[None, None])


# what torch cannot differentiate twice, and the same in steps that it can
PAIRS = {
    "reentrant checkpoint": (lambda net: checkpoint(net, X, use_reentrant=True), lambda net: net(X)),
    "NumPy in the backward": (lambda net: InNumpy.apply(net(X)), lambda net: net(X).sin()),
    "hardsigmoid": (lambda net: F.hardsigmoid(net(X)), lambda net: (net(X) / 6 + 0.5).clamp(0, 1)),
    "cdist": (lambda net: torch.cdist(net(X), X.detach()[:, [0, 1, 2, 0]]), lambda net: distances(net(X))),
    "layer norm of torch.ops": (
        lambda net: torch.ops.aten.native_layer_norm(net(X), [4], None, None, 1e-5)[0],
        lambda net: F.layer_norm(net(X), (4,)),
    ),
    "fused attention": (lambda net: fused(net(X)), lambda net: attention(net(X))),
}


def distances(z):
    return (z[:, None] - X.detach()[:, [0, 1, 2, 0]]).norm(dim=-1)


def attention(z):
    return ((z @ z.T / 2).softmax(-1) @ z)[None, None]


@pytest.mark.filterwarnings("ignore::gnewton.derivatives.record.IncompleteRecordWarning")
@pytest.mark.parametrize("name", PAIRS)
def test_any_loss_with_a_gradient(name):
    net = network()
    partition = gn.Partition.by_tensor(net)
    u = gn.direction.gradient(lambda: PAIRS[name][1](net).square().sum(), partition)
    one, two = (lambda f=f: f(net).square().sum() for f in PAIRS[name])
    own = gn.direction.gradient(one, partition)
    torch.testing.assert_close(own, u)
    # torch's hardsigmoid divides by 6 in float32.
    within(gn.summarize(one, partition, u, engine="differences"), gn.summarize(two, partition, u), 2e-7)


def test_ctc_which_has_no_second_derivative():
    """Its oracle is the difference of the values of the loss alone."""
    net = network()
    partition = gn.Partition.single(net)

    def loss():
        return F.ctc_loss(net(X.detach()).log_softmax(-1)[:, None], TARGETS[None], torch.tensor([6]), LENGTHS)

    u = gn.direction.gradient(loss, partition)
    with pytest.raises(NotImplementedError, match='engine="differences"'):
        gn.summarize(loss, partition, u)
    summary = gn.summarize(loss, partition, u, engine="differences")
    h, values = 1e-3, []
    for step in (h, -2 * h):
        with torch.no_grad():
            for n, p in partition.parameters.items():
                p.add_(u[n], alpha=step)
        values.append(float(loss().detach()))
    with torch.no_grad():
        for n, p in partition.parameters.items():
            p.add_(u[n], alpha=h)
    bend = (values[0] - 2 * float(loss().detach()) + values[1]) / h**2
    assert summary.hessian.item() == pytest.approx(bend, rel=1e-3)


def test_a_reentrant_checkpoint_is_refused_by_nested_passes_with_the_line_to_write():
    net = network()
    partition = gn.Partition.by_tensor(net)
    u = {n: torch.ones_like(p) for n, p in partition.parameters.items()}
    with pytest.raises(NotImplementedError, match="use_reentrant=False"):
        gn.summarize(lambda: checkpoint(net, X, use_reentrant=True).sum(), partition, u, engine="nested")


def test_everything_is_put_back():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)).double()
    partition = gn.Partition.by_tensor(net)
    u = {n: torch.ones_like(p) for n, p in partition.parameters.items()}
    for i, p in enumerate(net.parameters()):
        p.grad = torch.full_like(p, i)
    grads, held = [p.grad for p in net.parameters()], net(X).sum()
    before = {n: t.clone() for n, t in net.state_dict().items()}
    torch.manual_seed(3)
    with pytest.warns(gn.loss.RandomLossWarning):
        gn.summarize(lambda: net(X).square().sum(), partition, u, engine="differences")
    after = torch.rand(1)
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
    assert all(p.grad is g for p, g in zip(net.parameters(), grads, strict=True))
    held.backward()  # a graph that the caller held is whole
    torch.manual_seed(3)
    net(X.detach())
    assert torch.equal(torch.rand(1), after), "as many random numbers as one evaluation draws"


def test_an_error_in_the_middle_puts_everything_back():
    net = network()
    partition = gn.Partition.by_tensor(net)
    u = {n: torch.ones_like(p) for n, p in partition.parameters.items()}
    before = [p.detach().clone() for p in net.parameters()]
    for fails_at in (2, 5, 9):
        calls = iter(range(1, 100))

        def loss(calls=calls, fails_at=fails_at):
            if next(calls) == fails_at:
                raise KeyboardInterrupt
            return net(X).square().sum()

        with pytest.raises(KeyboardInterrupt):
            gn.summarize(loss, partition, u, engine="differences")
        assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))


def test_a_summary_says_how_it_was_computed():
    net = network()
    partition = gn.Partition.by_layer(net)
    u = {n: torch.ones_like(p) for n, p in partition.parameters.items()}
    exact, other = (gn.summarize(lambda: net(X).exp().sum(), partition, u, engine=e) for e in ("auto", "differences"))
    assert exact.engine == "tape"
    assert exact.exact
    assert "exact" not in repr(exact)
    assert "by differences, not exact: estimated errors hessian" in repr(other)
    for mixed in (exact + other, other + exact, 2 * other, other.coarsen([[0], [1]]), other.rescaled(torch.ones(2))):
        assert not mixed.exact
        assert mixed.errors
    loaded = gn.Summary.from_state_dict(other.state_dict())
    assert (loaded.engine, loaded.errors) == (other.engine, other.errors)
    old = {k: v for k, v in exact.state_dict().items() if k not in ("engine", "errors")}
    assert gn.Summary.from_state_dict(old).exact


def test_frozen_parameters_and_zero_directions_give_zeros():
    net = network()
    net[0].weight.requires_grad_(False)
    partition = gn.Partition.by_tensor(net)
    u = {n: torch.ones_like(p) for n, p in partition.parameters.items()}
    u["2.bias"].zero_()
    exact, other = (gn.summarize(lambda: net(X).exp().sum(), partition, u, engine=e) for e in ("nested", "differences"))
    within(other, exact)


def test_the_full_third_order_is_refused():
    net = network()
    partition = gn.Partition.single(net)
    u = {n: torch.ones_like(p) for n, p in partition.parameters.items()}
    with pytest.raises(ValueError, match="full_third=False"):
        gn.summarize(lambda: net(X).sum(), partition, u, full_third=True, engine="differences")


def test_differences_that_agree_by_luck_are_not_called_exact():
    w = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    partition = gn.Partition.from_groups([{"w": w}])
    # Powers of two: every number of the differences is exact, and d(h) = d(2h).
    summary = gn.summarize(lambda: w.square().sum(), partition, {"w": torch.ones_like(w)}, engine="differences")
    assert float(summary.hessian) == 2
    assert all(0 < error < 1e-6 for error in summary.errors.values())
