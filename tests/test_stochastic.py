"""StochasticNewton against linear algebra: on a quadratic its steps are those of a linear map, and d goes to the ridged inverse."""

import copy
import io

import numpy as np
import pytest
import torch
from support.problems import build

import gnewton as gn


def bowl(**options):
    return gn.models.Quadratic(
        [0.5, 1.0, 4.0],
        generator=torch.Generator().manual_seed(1),
        start=[1.0, -2.0, 0.5],
        dtype=torch.float64,
        **options,
    )


def optimizer_for(model, **options):
    return gn.StochasticNewton(gn.Partition.single(model), **options)


def test_at_rest_the_direction_goes_to_the_ridged_newton_step():
    model = bowl()
    optimizer = optimizer_for(model, lr=0.0, lr_direction=0.3, ridge=0.1)
    for _ in range(300):
        optimizer.step(model)
    A, g = model.A, model.A @ model.theta.detach()
    expected = torch.linalg.solve(A + 0.1 * torch.eye(3, dtype=torch.float64), g)
    # The slowest mode shrinks by 1 - 0.3 * 0.6 a step: 0.82^300 < 1e-25.
    torch.testing.assert_close(optimizer.state[model.theta]["direction"], expected, rtol=1e-12, atol=1e-12)


def test_together_they_follow_the_linear_map():
    model, lr, mu, ridge = bowl(minimiser=[0.3, 0.1, -0.7]), 0.05, 0.2, 0.01
    optimizer = optimizer_for(model, lr=lr, lr_direction=mu, ridge=ridge)
    theta, d = model.theta.detach().clone(), torch.zeros(3, dtype=torch.float64)
    for _ in range(50):
        optimizer.step(model)
        d = d - mu * (model.A @ d - model.A @ (theta - model.minimiser) + ridge * d)
        theta = theta - lr * d
        torch.testing.assert_close(model.theta.detach(), theta, rtol=1e-12, atol=1e-12)


def test_noise_averages_out_in_the_direction():
    model = bowl()
    g = model.A @ model.theta.detach()
    generator = torch.Generator().manual_seed(2)
    spread = []
    for mu in (0.2, 0.02):
        optimizer = optimizer_for(model, lr=0.0, lr_direction=mu, ridge=0.0)
        errors = []
        for k in range(4000):
            noise = torch.randn(3, generator=generator, dtype=torch.float64)
            optimizer.step(lambda noise=noise: model() + noise @ model.theta)
            if k >= 1000:
                errors.append(optimizer.state[model.theta]["direction"] - torch.linalg.solve(model.A, g))
        spread.append(torch.stack(errors).square().mean().sqrt())
    # The stationary variance is mu / (h (2 - mu h)) for the eigenvalue h: about a tenth of it at a tenth of mu.
    assert spread[1] < 0.45 * spread[0]


def test_the_loss_and_its_hessian_come_from_any_model():
    case = build("perceptron")
    optimizer = optimizer_for(case.model, lr=0.0, lr_direction=0.5, ridge=0.3)
    partition = gn.Partition.single(case.model)
    optimizer.step(case.loss)
    optimizer.step(case.loss)
    # d after two steps from zero: mu g, then mu g - mu (H mu g - g + rho mu g); its curvature along g is H-bar's.
    g = gn.direction.gradient(case.loss, partition)
    summary = gn.summarize(case.loss, partition, g, order=2)
    d = {name: optimizer.state[p]["direction"] for name, p in partition.parameters.items()}
    along = sum((d[name] * g[name]).sum() for name in g)
    norm = sum((g[name] ** 2).sum() for name in g)
    expected = 0.5 * (2 * norm - 0.5 * summary.hessian[0, 0] - 0.3 * 0.5 * norm)
    torch.testing.assert_close(along, expected, rtol=1e-10, atol=1e-12)


def test_ten_steps_saved_and_ten_more_are_twenty():
    def run(case, optimizer, n):
        for _ in range(n):
            optimizer.step(case.loss)

    whole, first = build("perceptron"), build("perceptron")
    run(whole, optimizer_for(whole.model), 20)
    half = optimizer_for(first.model)
    run(first, half, 10)
    buffer = io.BytesIO()
    torch.save([first.model.state_dict(), half.state_dict()], buffer)
    buffer.seek(0)
    weights, state = torch.load(buffer, weights_only=True)
    second = copy.deepcopy(first)
    second.model.load_state_dict(weights)
    rest = optimizer_for(second.model)
    rest.load_state_dict(state)
    run(second, rest, 10)
    for p, q in zip(second.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_an_error_changes_nothing():
    model = bowl()
    optimizer = optimizer_for(model)
    optimizer.step(model)
    before = copy.deepcopy((model.theta.detach(), optimizer.state[model.theta]))
    with pytest.raises(FloatingPointError, match="finite"):
        optimizer.step(lambda: model() * float("nan"))
    # x |x|^(-1/2) has a finite slope and an infinite curvature at 0.
    with pytest.raises(FloatingPointError, match="lower lr_direction"):
        optimizer.step(lambda: (model.theta - model.theta.detach()).abs().pow(1.5).sum())
    assert torch.equal(model.theta, before[0])
    assert torch.equal(optimizer.state[model.theta]["direction"], before[1]["direction"])


@pytest.mark.parametrize("options", [{"lr": -1.0}, {"lr_direction": float("nan")}, {"ridge": float("inf")}])
def test_settings_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="finite"):
        optimizer_for(bowl(), **options)


@pytest.mark.parametrize("options", [{"lr": "0.1"}, {"lr_direction": None}, {"ridge": [1]}])
def test_what_is_no_number_is_refused(options):
    with pytest.raises(TypeError, match=f"expected a number for {next(iter(options))}, got"):
        optimizer_for(bowl(), **options)


def test_a_number_of_numpy_is_a_number():
    model = bowl()
    optimizer = optimizer_for(model, lr=np.float32(0.25))
    assert optimizer.step(model) > 0


def test_frozen_parameters_stay_and_unused_ones_too():
    case = build("perceptron")
    case.model[0].weight.requires_grad_(False)
    before = case.model[0].weight.clone()
    optimizer = optimizer_for(case.model, lr=0.1, lr_direction=0.5)
    optimizer.step(case.loss)
    assert torch.equal(case.model[0].weight, before)
    assert "direction" not in optimizer.state.get(case.model[0].weight, {})


def perceptron_run(widths=(3, 4, 2), steps=2):
    model = gn.models.perceptron(list(widths), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    optimizer = gn.StochasticNewton(gn.Partition.single(model), lr=0.1, lr_direction=0.1)
    x = torch.linspace(-1, 1, 15, dtype=torch.float64).reshape(5, 3)
    for _ in range(steps):
        optimizer.step(lambda: model(x).square().mean())
    return model, optimizer, x


def test_a_copy_goes_its_own_way():
    model, optimizer, x = perceptron_run()
    (twin, twins) = copy.deepcopy((model, optimizer))
    twins.step(lambda: twin(x).square().mean())
    assert not torch.equal(twin[0].weight, model[0].weight)
    optimizer.step(lambda: model(x).square().mean())
    assert all(torch.equal(p, q) for p, q in zip(twin.parameters(), model.parameters(), strict=True))


def test_a_state_of_other_shapes_is_refused_and_changes_nothing():
    _, optimizer, _ = perceptron_run()
    _, other, _ = perceptron_run((3, 5, 2))
    before = repr(other.state_dict())
    with pytest.raises(ValueError, match=r"direction of shape \(5, 3\) for parameter 0, got \(4, 3\)"):
        other.load_state_dict(optimizer.state_dict())
    assert repr(other.state_dict()) == before
    _, fresh, _ = perceptron_run(steps=0)
    fresh.load_state_dict(optimizer.state_dict())
    assert repr(fresh.state_dict()) == repr(optimizer.state_dict())


def test_a_loop_in_inference_mode_is_the_same_run_and_can_be_left():
    ends = []
    for inside in (3, 0):
        model = bowl()
        optimizer = optimizer_for(model, lr=0.05, lr_direction=0.2, ridge=0.01)
        with torch.inference_mode():
            for _ in range(inside):
                optimizer.step(model)
        for _ in range(5 - inside):
            optimizer.step(model)
        ends.append(model.theta.detach())
    assert torch.equal(*ends)
