"""Exact directions, one sample or a batch, against dense solves with torch.func's Hessians."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from support.small_networks import CASES, DTYPE, build, gap, row, unrow
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import gnewton as gn
from gnewton.exact import newton_direction
from gnewton.exact.riccati import backward
from gnewton.exact.sample_directions import dampings

RHOS = (0.01, 0.3, 5.0, 100.0)


def rows(direction):
    return row(direction.per_sample())


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DTYPE)


def layers(case):
    """For every scalar parameter the index of its layer."""
    names = [name.rsplit(".", 1)[0] for name, _ in case.model.named_parameters()]
    order = list(dict.fromkeys(names))
    sizes = [p.numel() for p in case.model.parameters()]
    return torch.cat([torch.full((n,), order.index(name)) for name, n in zip(names, sizes, strict=True)])


@pytest.mark.parametrize("solver", ["auto", "riccati"])
@pytest.mark.parametrize("name", CASES)
def test_the_direction_solves_the_damped_newton_equation(name, solver):
    # Both solutions are good to rounding times the condition number of H + rho, a few thousand at rho = .01.
    case = build(name)
    for rho in RHOS:
        for kappa in (0.0, 0.2):
            d = newton_direction(case.passes, rho, weight_decay=kappa, solver=solver)
            assert gap(rows(d), case.newton(rho, kappa)) < 1e-10, (rho, kappa)


@pytest.mark.parametrize("solver", ["auto", "riccati"])
@pytest.mark.parametrize("name", ["one layer, cross-entropy", "tanh", "three hidden", "no biases"])
def test_dampings_of_samples_and_layers_and_another_right_hand_side(name, solver):
    case = build(name)
    rho, L = 0.5 + random(3, len(case.passes)).abs(), len(case.passes)
    shared, own = random(len(case.theta), seed=1), random(3, len(case.theta), seed=2)
    for extra in (shared, own):
        for damping, dense in ((rho[:, 0], rho[:, :1]), (rho, rho[:, layers(case)]), (rho[:1], rho[:1, layers(case)])):
            d = newton_direction(case.passes, damping, weight_decay=0.1, extra=unrow(case.model, extra), solver=solver)
            assert gap(rows(d), case.newton(dense, 0.1, extra)) < 1e-10
    with pytest.raises(ValueError, match="expected a damping"):
        newton_direction(case.passes, torch.ones(3, L + 1))


@pytest.mark.parametrize(
    "name", ["tanh", "sigmoid, mse", "softplus, one output", "gelu", "tanh, sigmoid output", "relu"]
)
def test_woodburys_shortcut_is_the_sweep(name):
    case = build(name)
    if len(case.passes) != 2:
        with pytest.raises(ValueError, match="one or two layers"):
            newton_direction(case.passes, 1.0, solver="shortcut")
        return
    for rho in RHOS:
        extra = unrow(case.model, random(len(case.theta)))
        ways = [
            rows(newton_direction(case.passes, rho, weight_decay=0.1, extra=extra, solver=solver))
            for solver in ("shortcut", "riccati")
        ]
        assert gap(*ways) < 1e-9


def test_the_shortcut_is_left_where_it_would_lose_digits():
    # rho such that one entry of I + c D is zero to rounding, while H + rho is far from singular.
    case = build("softplus, one output", samples=1)
    passes = case.passes
    k, s, delta = passes.curvatures[0], passes.slopes[0], passes.deltas[1]
    c = passes.lengths[0]
    # 1 + c (k - s^2 delta^2 / rho) / rho = 0, a quadratic equation for rho > 0.
    rho = ((-c * k + torch.sqrt((c * k).square() + 4 * c * (s * delta).square())) / 2)[0, 0]
    assert gap(rows(newton_direction(passes, rho, solver="auto")), case.newton(rho)) < 1e-9
    assert not gap(rows(newton_direction(passes, rho, solver="shortcut")), case.newton(rho)) < 1e-9


def test_one_linear_layer_with_squares_is_normalised_lms():
    case = build("one layer, squares")
    delta, length = case.model(case.x) - case.y, case.x.square().sum(1, keepdim=True) + 1
    bias = newton_direction(case.passes, 0.7).per_sample()["0.bias"]
    torch.testing.assert_close(bias, (-delta / (0.7 + length)).detach(), rtol=1e-14, atol=0)


@pytest.mark.parametrize("rho", [1e-6, 1.0, 1e9])
def test_one_layer_of_cross_entropy_is_as_good_as_a_solve(rho):
    case = build("one layer, cross-entropy")
    C = case.passes.loss.hessian()
    A = torch.eye(3, dtype=DTYPE) + C * (case.passes.lengths[0] / rho)[:, :, None]
    expected = torch.linalg.solve(A, -case.passes.deltas[0] / rho)
    condition = torch.linalg.cond(A).max()
    assert gap(newton_direction(case.passes, rho).per_sample()["0.bias"], expected) < 1e-14 * condition


def test_the_curvatures_of_the_sweep_stay_symmetric():
    # To the last bit: what is lost of it would grow from layer to layer.
    passes = build("three hidden").passes
    for pivot in backward(passes, dampings(passes, 0.05), []):
        assert torch.equal(pivot.Q, pivot.Q.mT)


@pytest.mark.parametrize("name", CASES)
def test_mean_slope_and_output_are_those_of_the_samples(name):
    case = build(name)
    extra, weights = unrow(case.model, random(3, len(case.theta))), random(3)
    bare = case.model
    for d in (
        newton_direction(case.passes, 3.0, weight_decay=0.1, extra=extra),
        newton_direction(case.passes, 3.0, weight_decay=0.1, extra=extra, solver="riccati"),
        newton_direction(case.passes, 3.0, weight_decay=0.1, extra=extra, absolute=True),
        gn.exact.saddle_free_direction(case.passes, 3.0, weight_decay=0.1),
        gn.exact.gauss_newton_direction(case.passes, 3.0, weight_decay=0.1),
    ):
        each = rows(d)
        torch.testing.assert_close(row(d.mean(), samples=False), each.mean(0), rtol=1e-12, atol=1e-13)
        weighted = row(d.mean(weights), samples=False)
        torch.testing.assert_close(weighted, (weights[:, None] * each).mean(0), rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(d.slope(), (case.gradients * each).sum(1), rtol=1e-10, atol=1e-12)
        if isinstance(list(bare.modules())[-1], nn.Linear):
            torch.testing.assert_close(d.output, (case.jacobians @ each[:, :, None])[:, :, 0], rtol=1e-10, atol=1e-11)


def test_a_batch_is_its_samples_one_by_one():
    case = build("two hidden", samples=7)
    together = rows(newton_direction(case.passes, 0.5, weight_decay=0.1))
    for i in range(7):
        alone = gn.exact.forward_backward(case.model, case.x[i : i + 1], case.y[i : i + 1])
        assert gap(together[i : i + 1], rows(newton_direction(alone, 0.5, weight_decay=0.1))) < 1e-12


@pytest.mark.parametrize("name", ["tanh", "three hidden", "one layer, cross-entropy", "two hidden, tanh output"])
def test_with_much_damping_it_is_the_gradient(name):
    case = build(name)
    curvature = torch.linalg.matrix_norm(case.hessians, 2)
    for rho in (1e3, 1e5, 1e7):
        away = (rho * rows(newton_direction(case.passes, rho)) + case.gradients).norm(dim=1)
        # (H / rho + 1)^{-1} g - g, and rounding.
        assert (away <= 2 * curvature / rho * case.gradients.norm(dim=1) + 1e-12).all()


@pytest.mark.parametrize("name", ["sigmoid, mse", "softplus, one output", "three hidden"])
def test_without_damping_the_last_layer_moves_alone(name):
    # With biases and sigma' != 0 the stationary point of one sample's model is reached without the hidden layers.
    case = build(name)
    last = layers(case) == len(case.passes) - 1
    parts = []
    for rho in (1e-2, 1e-4, 1e-6):
        d = rows(newton_direction(case.passes, rho))
        parts.append(d[:, ~last].norm() / d[:, last].norm())
    assert parts[1] < 0.1 * parts[0]
    assert parts[2] < 0.1 * parts[1]


@pytest.mark.parametrize("name", CASES)
def test_absolute_pivots_always_descend(name):
    for seed in range(3):
        case = build(name, seed=seed)
        for rho in (1e-3, *RHOS):
            d = rows(newton_direction(case.passes, rho, absolute=True))
            assert ((case.gradients * d).sum(1) < 0).all()


@pytest.mark.parametrize("name", CASES)
def test_safe_damping_always_descends(name):
    for seed in range(3):
        case = build(name, seed=seed)
        for rho in (1e-3, *RHOS):
            d = rows(newton_direction(case.passes, rho + gn.exact.safe_damping(case.passes)))
            assert ((case.gradients * d).sum(1) < 0).all()


def test_plain_newton_does_not_always_descend():
    # The negative control of the two tests above.
    cases = [build(name, seed=seed) for name in ("tanh", "sigmoid, mse", "two hidden") for seed in range(3)]
    slopes = torch.stack([(case.gradients * rows(newton_direction(case.passes, 0.3))).sum(1) for case in cases])
    assert (slopes > 0).any()
    assert (slopes < 0).any()


def test_absolute_pivots_are_the_newton_step_of_a_larger_hessian(monkeypatch):
    """H plus the sum of Z_l^T (|Q_l| - Q_l) Z_l, with Z_l the Jacobian of z_l: an identity of the recursion."""
    seen = []

    def watched(Q):
        values, vectors = torch.linalg.eigh(Q)
        absolute = vectors @ torch.diag_embed(values.abs()) @ vectors.mT
        seen.append(absolute - Q)
        return absolute

    monkeypatch.setattr("gnewton.exact.riccati.absolute_value", watched)
    case = build("two hidden")
    for rho in (0.1, 5.0):
        seen.clear()
        d = rows(newton_direction(case.passes, rho, absolute=True))
        assert max(float(change.abs().max()) for change in seen) > 1e-3
        H = case.hessians.clone()
        for i, change in enumerate(reversed(seen)):
            head = type(case)(case.model, case.x, case.y, case.loss)
            head.outputs = lambda theta, x, i=i: _pre_activation(case, theta, x, i)
            Z = head.jacobians
            H += Z.mT @ change @ Z
        expected = torch.linalg.solve(H + rho * torch.eye(H.shape[1], dtype=DTYPE), -case.gradients)
        assert gap(d, expected) < 1e-10


def _pre_activation(case, theta, x, i):
    named = unrow(case.model, theta)
    inner = nn.Sequential(*list(case.model)[: 2 * i + 1])
    own = {name: named[name] for name, _ in inner.named_parameters()}
    return torch.func.functional_call(inner, own, (x,))


# ---------------------------------------------------------------------------------- what it costs


def flops(widths, samples=1, **options):
    """Multiplications and additions of all matrix products and solves, by their shapes."""
    model = gn.models.perceptron(widths, dtype=DTYPE)
    x, y = random(samples, widths[0]), torch.zeros(samples, dtype=torch.int64)
    passes = gn.exact.forward_backward(model, x, y)

    def solve(A, b, *args, out_shape=None, **kwargs):
        *batch, n, k = b
        return int(math.prod(batch) * (2 * n**3 / 3 + 2 * n * n * k))

    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten._linalg_solve_ex: solve})
    with counter:
        newton_direction(passes, 5.0, **options)
    return counter.get_total_flops()


def test_the_cost_is_linear_in_depth():
    costs = [flops([8, *[12] * depth, 5]) for depth in (2, 3, 4, 5)]
    steps = [b - a for a, b in pairwise(costs)]
    assert steps[0] > 0
    assert steps == [steps[0]] * 3


def test_the_cost_grows_at_most_with_the_third_power_of_the_width():
    costs = [flops([n, n, n, 10]) for n in (32, 64, 128, 256)]
    for small, large in pairwise(costs):
        assert 2 < large / small <= 8


def test_the_cost_of_the_sweep_does_not_depend_on_the_inputs():
    assert flops([5, 12, 12, 5]) == flops([500, 12, 12, 5])


def test_the_shortcut_of_one_hidden_layer_is_linear_in_its_width():
    costs = [flops([5, n, 10]) for n in (100, 200, 400)]
    assert costs[2] - costs[1] == pytest.approx(2 * (costs[1] - costs[0]), rel=0.01)
    assert flops([5, 400, 10], solver="riccati") > 20 * costs[2]


@pytest.mark.parametrize("hidden", [3, 5, 25, 100])
def test_the_cheaper_way_is_taken(hidden):
    widths = [5, hidden, 10]
    assert flops(widths) == min(flops(widths, solver=solver) for solver in ("riccati", "shortcut"))


# ---------------------------------------------------------------------------------- precision and settings


@pytest.mark.parametrize("rho", [0.3, 5.0])
def test_float32_agrees_with_float64(rho):
    generator = torch.Generator().manual_seed(0)
    model = gn.models.perceptron([20, 16, 12, 5], generator=generator)
    x, y = torch.randn(8, 20, generator=generator), torch.randint(5, (8,), generator=generator)
    single = newton_direction(gn.exact.forward_backward(model, x, y), rho)
    double = newton_direction(gn.exact.forward_backward(model.double(), x.double(), y), rho)
    assert rows(single).dtype == torch.float32
    # Rounding 6e-8 times a condition number of some hundreds.
    assert gap(rows(single).double(), rows(double)) < 1e-3


@pytest.mark.parametrize("widths", [[6, 3], [6, 5, 2], [6, 5, 4, 3]])
def test_nothing_is_made_on_another_device(widths):
    # On the meta device any mixing of devices fails, as do looks at the numbers.
    model = gn.models.perceptron(widths, device="meta")
    x, y = torch.zeros(4, 6, device="meta"), torch.zeros(4, dtype=torch.int64, device="meta")
    passes = gn.exact.forward_backward(model, x, y)
    rho = 1 + gn.exact.safe_damping(passes)
    for d in (
        newton_direction(passes, rho, weight_decay=0.1),
        newton_direction(passes, rho, weight_decay=0.1, absolute=True),
        gn.exact.saddle_free_direction(passes, rho, weight_decay=0.1),
        gn.exact.gauss_newton_direction(passes, rho, weight_decay=0.1),
        gn.exact.joint_direction(passes, rho[0], weight_decay=0.1),
    ):
        assert all(t.is_meta for t in [*d.mean().values(), *d.per_sample().values(), d.slope(), d.output])
    assert gn.exact.hessian.dense(passes).is_meta


def test_unfit_settings_are_refused():
    passes = build("tanh").passes
    with pytest.raises(ValueError, match="weight_decay >= 0"):
        newton_direction(passes, 1.0, weight_decay=-1.0)
    with pytest.raises(ValueError, match='expected solver="auto"'):
        newton_direction(passes, 1.0, solver="fast")
    with pytest.raises(ValueError, match="expected a damping"):
        newton_direction(passes, torch.ones(2))


@pytest.mark.parametrize("damping", [0.0, -1.0, float("nan")])
def test_a_damping_is_above_zero(damping):
    model = gn.models.perceptron([3, 4, 2], dtype=torch.float64)
    passes = gn.exact.forward_backward(model, torch.ones(2, 3, dtype=torch.float64), torch.tensor([0, 1]))
    for direction in (gn.exact.newton_direction, gn.exact.joint_direction, gn.exact.gauss_newton_direction):
        with pytest.raises(ValueError, match="expected damping > 0, got"):
            direction(passes, damping)
        assert direction(passes, 0.0, weight_decay=1.0).slope().isfinite().all()


BY_DAMPING = {
    "newton": gn.exact.newton_direction,
    "saddle-free": gn.exact.saddle_free_direction,
    "gauss-newton": gn.exact.gauss_newton_direction,
}


@pytest.mark.parametrize("name", BY_DAMPING)
@pytest.mark.parametrize(
    "damping",
    [-5.0, 0, float("nan"), torch.tensor(-5.0), torch.zeros(5), [1.0, 1.0, 0.0, 1.0, 1.0], np.full(5, -1.0)],
    ids=["negative", "zero", "nan", "a tensor", "tensors", "a list", "an array"],
)
def test_a_damping_that_is_not_above_zero_is_refused_however_it_is_given(name, damping):
    model = gn.models.perceptron([3, 4, 2], dtype=torch.float64)
    passes = gn.exact.forward_backward(model, torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 1, 0, 1, 0]))
    with pytest.raises(ValueError, match="expected damping > 0"):
        BY_DAMPING[name](passes, damping)


@pytest.mark.parametrize("kind", [torch.tensor, np.array, list])
@pytest.mark.parametrize("name", ["saddle-free", "gauss-newton"])
def test_a_damping_by_layer_is_refused_where_there_is_one_for_all_layers(name, kind):
    model = gn.models.perceptron([3, 4, 2], dtype=torch.float64)
    passes = gn.exact.forward_backward(model, torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 1, 0, 1, 0]))
    with pytest.raises(ValueError, match="expected a damping for each of 5 samples"):
        BY_DAMPING[name](passes, kind([[1.0, 100.0]] * 5))
