"""Losses with derivatives inside (forces, PINNs, MAML, torch.func): recorded beneath autograd, against two oracles.

Nested passes differentiate the graph that torch made; central differences of torch's own gradients know nothing of graphs.
"""

import pytest
import torch
import torch.nn.functional as F
from support.problems import DTYPE
from torch import nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import gnewton as gn
from gnewton.derivatives.record import record, record_in_mode
from gnewton.loss import RandomLossWarning, differentiable_mode

X = torch.linspace(-1, 1, 8, dtype=DTYPE).reshape(4, 2)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).to(DTYPE)


def residual(m):
    x = X.clone().requires_grad_()
    (first,) = torch.autograd.grad(m(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first[:, 0].sum(), x, create_graph=True)
    return (second[:, 0] + first[:, 1] * m(x)[:, 0]).square().mean()


def force(m):
    x = X.clone().requires_grad_()
    distances = (x[:, None] - x + 2).norm(dim=-1)
    (first,) = torch.autograd.grad(m(x * distances.sum(1, keepdim=True)).sin().sum(), x, create_graph=True)
    return (first - 1).square().mean()


def inner_step(m):
    weights = dict(m.named_parameters())
    inner = functional_call(m, weights, (X,)).square().mean()
    slopes = torch.autograd.grad(inner, list(weights.values()), create_graph=True)
    moved = {n: p - 0.1 * g for (n, p), g in zip(weights.items(), slopes, strict=True)}
    return functional_call(m, moved, (X + 0.1,)).sin().mean()


def inner_step_held(m):
    """First-order MAML: the inner gradient is a constant."""
    weights = dict(m.named_parameters())
    slopes = torch.autograd.grad(functional_call(m, weights, (X,)).square().mean(), list(weights.values()))
    moved = {n: p - 0.1 * g for (n, p), g in zip(weights.items(), slopes, strict=True)}
    return functional_call(m, moved, (X + 0.1,)).sin().mean()


def scalar(m):
    return lambda x: functional_call(m, dict(m.named_parameters()), (x,))[0]


LOSSES = {
    "autograd.grad twice": residual,
    "forces": force,
    "inner step": inner_step,
    "vmap": lambda m: vmap(m)(X).sin().sum(),
    "grad": lambda m: vmap(grad(scalar(m)))(X).square().sum(),
    "hessian": lambda m: vmap(hessian(scalar(m)))(X).diagonal(dim1=1, dim2=2).sum(1).sin().sum(),
    "jacrev": lambda m: jacrev(m)(X[0]).exp().sum(),
    "jacfwd": lambda m: jacfwd(m)(X[0]).exp().sum(),
    "jvp": lambda m: jvp(m, (X,), (X.cos(),))[1].square().sum(),
    "vjp": lambda m: vjp(m, X)[1](torch.ones(4, 1, dtype=DTYPE))[0].square().sum(),
    "autograd.functional": lambda m: torch.autograd.functional.vjp(lambda x: m(x).sum(), X, create_graph=True)[1].sin().sum(),
    "penalty": lambda m: F.mse_loss(m(X), X[:, :1]) + vmap(grad(scalar(m)))(X).norm(dim=1).sub(1).square().mean(),
}  # fmt: skip


def gradient(loss, m):
    return torch.autograd.grad(loss(m), list(m.parameters()), allow_unused=True, materialize_grads=True)


def along(loss, m, u, e):
    """u . gradient at theta + e u, per parameter."""
    with torch.no_grad():
        for p, d in zip(m.parameters(), u.values(), strict=True):
            p.add_(d, alpha=e)
    slopes = torch.stack([(g * d).sum() for g, d in zip(gradient(loss, m), u.values(), strict=True)])
    with torch.no_grad():
        for p, d in zip(m.parameters(), u.values(), strict=True):
            p.sub_(d, alpha=e)
    return slopes


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_agrees_with_nested_passes_and_with_differences_of_gradients(name):
    m, loss = network(), LOSSES[name]
    partition = gn.Partition.by_tensor(m)
    torch.manual_seed(1)
    u = {n: 0.3 * torch.randn_like(p) for n, p in partition.parameters.items()}
    expected = gn.summarize(lambda: loss(m), partition, u, engine="nested", full_third=True)
    for options in ({}, {"full_third": True}, {"max_memory": 1.0}):
        summary = gn.summarize(lambda: loss(m), partition, u, engine="tape", **options)
        assert torch.equal(summary.value, loss(m).detach())
        for order in ("gradient", "hessian", "third", "third_full"):
            got, want = getattr(summary, order), getattr(expected, order)
            assert got is None or (got - want).abs().max() <= 1e-11 * want.abs().max(), (order, options)
    summary = gn.summarize(lambda: loss(m), partition, u, engine="tape", full_third=True)
    e = 1e-4
    slope = (along(loss, m, u, e) - along(loss, m, u, -e)) / (2 * e)
    curve = (along(loss, m, u, e) - 2 * along(loss, m, u, 0.0) + along(loss, m, u, -e)) / e**2
    # Truncation e^2, rounding 1e-16 / e^2, each times constants of order 10.
    torch.testing.assert_close(summary.hessian.sum(1), slope, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(summary.third_full.sum((1, 2)), curve, rtol=1e-5, atol=1e-5)


def test_a_gradient_that_is_held_stays_held():
    m = network()
    partition = gn.Partition.by_tensor(m)
    u = {n: torch.ones_like(p) for n, p in partition.parameters.items()}
    held, whole = (
        gn.summarize(lambda loss=loss: loss(m), partition, u, engine="tape") for loss in (inner_step_held, inner_step)
    )
    expected = gn.summarize(lambda: inner_step_held(m), partition, u, engine="nested")
    torch.testing.assert_close(held.hessian, expected.hessian, rtol=1e-11, atol=1e-13)
    assert (held.hessian - whole.hessian).abs().max() > 1e-3 * whole.hessian.abs().max()


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * x.square() * g


def test_what_no_kernel_shows_is_still_missing():
    """The negative control: beneath autograd, too, a step is believed only where the graph agrees."""
    m = network()
    partition = gn.Partition.by_tensor(m)

    def loss():
        x = X.clone().requires_grad_()
        cubes = Cube.apply(m(x)).sum()
        (slope,) = torch.autograd.grad(cubes, x, create_graph=True)
        return slope.square().sum() + cubes

    assert record(loss, partition).missing


def test_random_numbers_and_buffers_are_those_of_one_evaluation():
    m = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 1)).to(DTYPE)
    partition = gn.Partition.by_tensor(m)

    def loss():
        x = X.clone().requires_grad_()
        (slope,) = torch.autograd.grad(m(x).sin().sum(), x, create_graph=True)
        return slope.square().sum()

    def state(evaluate):
        torch.manual_seed(0)
        m[1].reset_running_stats()
        evaluate()
        return torch.get_rng_state(), m[1].running_mean.clone(), m[1].num_batches_tracked.clone()

    with differentiable_mode(partition):
        once = state(loss)
        with pytest.warns(RandomLossWarning):
            recorded = state(lambda: record_in_mode(loss, partition))
    assert all(torch.equal(a, b) for a, b in zip(once, recorded, strict=True))
