"""Adaptive lambda_int: what one setting reaches untuned, that a deterministic loss never increases, and the rule itself."""

import itertools
import math

import pytest
import torch
from support.problems import DTYPE, build
from torch import nn

import gnewton as gn
from gnewton.policies.ratio_test import HIGHEST, LOWEST, backtracking_line_search, uniform_step, update_regularization


class Saddle(nn.Module):
    """(x^2 - 1)^2 / 4 + a coupled bowl in y and z: 0 is a saddle, the minima, x = +-1, have the value 0."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1e-3, 0.5, -0.2], dtype=DTYPE))

    def forward(self):
        x, y, z = self.w
        return (x * x - 1) ** 2 / 4 + y * y / 2 + 2 * z * z + 0.3 * y * z


def quadratic(seed):
    spectrum = [1e-8, 1e-4, 1.0, 0.1]
    return gn.models.Quadratic(spectrum, generator=torch.Generator().manual_seed(seed), dtype=DTYPE)


STARTS = {
    "Rosenbrock": lambda: gn.models.Rosenbrock(2, dtype=DTYPE),
    "condition 1e8": lambda: quadratic(0),
    "condition 1e8, another basis": lambda: quadratic(1),
    "saddle": Saddle,
}


@pytest.mark.parametrize("lr", [1.0, 0.5])
@pytest.mark.parametrize("name", STARTS)
def test_by_scalar_it_ends_within_sixty_steps_and_never_goes_up(name, lr):
    model = STARTS[name]()
    optimizer = gn.GroupedNewton(gn.Partition.by_scalar(model), lr=lr, period=1)
    losses = [float(optimizer.step(model)) for _ in range(60)] + [model().item()]
    # Half steps follow the bends of Rosenbrock's valley slowly; the pure step must not.
    assert losses[-1] <= (1e-12 if lr == 1.0 or name != "Rosenbrock" else 1e-2) * losses[0]
    assert all(after <= before for before, after in itertools.pairwise(losses))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("lr", [1.0, 0.5])
def test_a_deterministic_loss_never_increases_on_a_network(seed, lr):
    case = build("perceptron", seed=seed)
    optimizer = gn.GroupedNewton(gn.Partition.by_tensor(case.model), lr=lr, period=1)
    losses = [float(optimizer.step(case.loss)) for _ in range(40)]
    assert all(after <= before for before, after in itertools.pairwise(losses))
    assert losses[-1] < 0.1 * losses[0]


def test_the_history_tells_what_was_tried():
    case = build("perceptron")
    optimizer = gn.GroupedNewton(gn.Partition.by_tensor(case.model), lr=0.5, period=1)
    strengths = []
    for _ in range(15):
        strengths.append(optimizer.state_dict()["state"]["grouped_newton"]["policy"].get("cubic", 1.0))
        optimizer.step(case.loss)
    for update, cubic, following in zip(optimizer.history, strengths, [*strengths[1:], None], strict=True):
        assert update.cubic == cubic
        assert LOWEST <= cubic <= HIGHEST
        assert update.evaluations >= 2  # at the full step and at lambda_1 of it
        assert following in (None, update_regularization(cubic, update.rho))
    # rho by hand, from the record alone: the prediction comes from g-bar, H-bar and D.
    first = optimizer.history[0]
    fresh = build("perceptron")
    partition = gn.Partition.by_tensor(fresh.model)
    u = gn.direction.gradient(fresh.loss, partition)
    before = fresh.loss().item()
    with torch.no_grad():
        for name, change in partition.scale(u, first.learning_rates).items():
            partition.parameters[name].sub_(change)
    eta = first.learning_rates
    model = first.gradient @ eta - eta @ first.hessian @ eta / 2 - first.cubic / 6 * (first.metric * eta).norm() ** 3
    assert first.rho == pytest.approx((before - fresh.loss().item()) / model.item(), rel=1e-9)


def test_where_nothing_bounds_the_model_one_rate_for_all_groups_still_descends():
    # Piecewise affine with the squared error: no third derivative, so no cubic term at any lambda_int. Frozen curvature
    # in one group makes H-bar singular along it, while its gradient is not zero.
    a = nn.Parameter(torch.tensor(1.0, dtype=DTYPE))
    b = nn.Parameter(torch.tensor(1.0, dtype=DTYPE))
    loss = lambda: a.abs() * 0.1 + (b - 3) ** 2  # noqa: E731
    partition = gn.Partition.from_groups({"a": {"a": a}, "b": {"b": b}})
    optimizer = gn.GroupedNewton(partition, lr=1.0, period=1)
    losses = [float(optimizer.step(loss)) for _ in range(5)]
    assert optimizer.history[0].status == "UNBOUNDED"
    assert math.isnan(optimizer.history[0].rho)
    assert optimizer.history[0].cubic == optimizer.history[1].cubic
    assert losses[-1] < 0.2 * losses[0]


def test_a_step_that_never_descends_is_not_taken():
    w = nn.Parameter(torch.tensor([1.0, 2.0], dtype=DTYPE))
    start = w.detach().clone()
    # Its slope says down, and wherever else it is higher by 100.
    offset = lambda: (w * w).sum() + (0.0 if torch.equal(w.detach(), start) else 100.0)  # noqa: E731
    optimizer = gn.GroupedNewton(gn.Partition.from_groups([{"w": w}]), lr=1.0, period=1)
    optimizer.step(offset)
    assert torch.equal(w.detach(), start)
    assert optimizer.history[-1].lr == 0
    assert optimizer.history[-1].actual_decrease == 0
    assert optimizer.learning_rates is None
    optimizer.step(offset)
    assert len(optimizer.history) == 2


# -- H-bar and D kept for several steps --------------------------------------------------------------------------------


def trained(period, direction=None, steps=40, seed=0, **settings):
    case = build("perceptron", seed=seed)
    partition = gn.Partition.by_tensor(case.model)
    proposer = None if direction is None else direction(case.model.parameters())
    optimizer = gn.GroupedNewton(partition, proposer, lr=0.5, cubic="adaptive", period=period, **settings)
    return [float(optimizer.step(case.loss)) for _ in range(steps)], optimizer, case


def momentum(parameters):
    return torch.optim.SGD(parameters, lr=1.0, momentum=0.9)


@pytest.mark.parametrize("direction", [None, momentum])
@pytest.mark.parametrize("period", [2, 5, 10])
def test_a_deterministic_loss_never_increases_with_curvature_that_is_kept(period, direction):
    losses, optimizer, _ = trained(period, direction)
    assert all(after <= before for before, after in itertools.pairwise(losses))
    assert losses[-1] < 0.5 * losses[0]
    ages = [update.age for update in optimizer.history]
    assert ages[0] == 0
    assert max(ages) == period - 1
    for one, following in itertools.pairwise(optimizer.history):
        # A step later it is a step older, or new: because it is old enough, or because it failed the test.
        old = one.age == period - 1 or (one.age > 0 and not one.rho >= 0.25)
        assert following.age == (0 if old else one.age + 1)


def test_kept_curvature_meets_the_gradient_of_now():
    _, optimizer, _ = trained(period=5, direction=momentum, steps=2)
    first, second = optimizer.history
    assert (first.age, second.age) == (0, 1)
    # The same two steps by hand: u and its lengths from torch's own momentum, g-bar from the gradient of the second step.
    fresh = build("perceptron")
    partition = gn.Partition.by_tensor(fresh.model)
    before = {name: g.clone() for name, g in gn.direction.gradient(fresh.loss, partition).items()}
    with torch.no_grad():
        for name, change in partition.scale(before, first.lr * first.learning_rates).items():
            partition.parameters[name].sub_(change)
    gradient = gn.direction.gradient(fresh.loss, partition)
    u = {name: 0.9 * before[name] + g for name, g in gradient.items()}
    by_hand = partition.sums({name: gradient[name] * u[name] for name in u})
    torch.testing.assert_close(second.gradient, by_hand, rtol=1e-10, atol=1e-14)
    ratio = torch.stack([u[name].norm() / before[name].norm() for name in u])
    torch.testing.assert_close(second.hessian, first.hessian * ratio * ratio[:, None], rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(second.metric, first.metric * ratio, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_steps_with_kept_curvature_do_not_see_the_length_of_the_direction(scale):
    class Rescaled(torch.optim.SGD):
        """The gradient, every other time as long as ``scale`` says."""

        odd = False

        def step(self, closure=None):
            for group in self.param_groups:
                group["lr"] = scale if self.odd else 1.0
            self.odd = not self.odd
            return super().step(closure)

    plain, _, _ = trained(5, lambda p: torch.optim.SGD(p, lr=1.0), steps=12)
    rescaled, optimizer, _ = trained(5, lambda p: Rescaled(p, lr=1.0), steps=12)
    assert {update.age for update in optimizer.history} > {0, 1}
    # Proposals are differences of parameters of size 1: in float64 a direction 1e-3 as long has lost three digits more.
    torch.testing.assert_close(torch.tensor(rescaled), torch.tensor(plain), rtol=1e-8, atol=0)


def test_a_curvature_batch_gives_the_new_slope():
    case, other = build("perceptron", seed=0), build("perceptron", seed=0)
    optimizer = gn.GroupedNewton(gn.Partition.by_tensor(case.model), lr=0.5, cubic="adaptive", period=3)
    twice = lambda: 2 * case.loss()  # noqa: E731
    for _ in range(3):
        optimizer.step(case.loss, curvature=twice)
    partition = gn.Partition.by_tensor(other.model)
    for update in optimizer.history:
        g = gn.direction.gradient(other.loss, partition)
        expected = partition.sums({name: 2 * part * part for name, part in g.items()})
        torch.testing.assert_close(update.gradient, expected, rtol=1e-10, atol=1e-14)
        with torch.no_grad():
            for name, change in partition.scale(g, update.lr * update.learning_rates).items():
                partition.parameters[name].sub_(change)


def test_a_run_resumed_between_two_summaries_goes_on_bit_for_bit():
    whole, _, _ = trained(4, momentum, steps=12)
    case = build("perceptron")
    parts, optimizer = [], None
    for steps in (6, 6):
        saved = optimizer and optimizer.state_dict()
        optimizer = gn.GroupedNewton(
            gn.Partition.by_tensor(case.model), momentum(case.model.parameters()), lr=0.5, cubic="adaptive", period=4
        )
        if saved:
            assert saved["state"]["grouped_newton"]["policy"]["cached_curvature"] is not None
            optimizer.load_state_dict(saved)
        parts += [float(optimizer.step(case.loss)) for _ in range(steps)]
    assert parts == whole


def test_a_group_that_was_still_has_no_curvature_to_keep():
    # In the first step b has no gradient; in the second it has one, and the H-bar of the first knows nothing of it.
    a = nn.Parameter(torch.tensor(1.0, dtype=DTYPE))
    b = nn.Parameter(torch.tensor(1.0, dtype=DTYPE))
    partition = gn.Partition.from_groups({"a": {"a": a}, "b": {"b": b}})
    optimizer = gn.GroupedNewton(partition, lr=1.0, cubic="adaptive", period=10)
    optimizer.step(lambda: (a - 3).cosh() + 0 * b)
    optimizer.step(lambda: (a - 3).cosh() + (b - 3).cosh())
    assert [update.age for update in optimizer.history] == [0, 0]


@pytest.mark.parametrize("rho", [-math.inf, -1.0, 0.0, 0.2, 0.25, 0.5, 0.75, 0.8, 3.0, math.nan])
@pytest.mark.parametrize("cubic", [LOWEST, 1.0, HIGHEST])
def test_the_rule_is_monotone_and_bounded(cubic, rho):
    after = update_regularization(cubic, rho)
    assert LOWEST <= after <= HIGHEST
    if rho < 0.25:
        assert after == min(2 * cubic, HIGHEST)
    elif rho > 0.75:
        assert after == max(cubic / 2, LOWEST)
    else:
        assert after == cubic


def test_a_result_takes_the_largest_halved_rate_that_descends():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        steep, lr = (float(x) for x in torch.rand(2, generator=generator) * torch.tensor([400.0, 1.0]) + 0.01)
        loss = lambda t, k=steep: -t + k * t * t  # noqa: E731
        calls = []
        search = backtracking_line_search(
            lambda t, f=loss, c=calls: c.append(t) or f(t), 0.0, predicted=1.0, tested=1.0, lr=lr
        )
        rates = [lr / 2**k for k in range(9)]
        falling = [t for t in rates if loss(t) < 0]
        assert search.rate == (falling[0] if falling else 0.0)
        assert calls[-1] == search.rate  # the parameters are where the last evaluation left them
        assert search.loss == loss(search.rate)
        assert search.rho == pytest.approx(-loss(1.0))


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_full_step_into_the_void_counts_as_a_bad_prediction(broken):
    search = backtracking_line_search(
        lambda t: broken if t > 0.3 else 1.0 - t, before=1.0, predicted=1.0, tested=1.0, lr=1.0
    )
    assert search.rho == -math.inf
    assert update_regularization(1.0, search.rho) == 2.0
    assert search.rate == 0.25


def test_a_uniform_step_minimises_the_quadratic_model_along_u():
    generator = torch.Generator().manual_seed(1)
    g, m = torch.randn(4, generator=generator, dtype=DTYPE), torch.randn(4, 4, generator=generator, dtype=DTYPE)
    summary = gn.Summary.from_tensors(g, m @ m.T)
    rates = uniform_step(summary)
    best = summary.taylor(rates)
    assert len(set(rates.tolist())) == 1
    for factor in (0.9, 1.1):
        assert summary.taylor(rates * factor) > best
