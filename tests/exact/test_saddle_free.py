"""|H|, its adjustments, and the Gauss-Newton baseline, against dense eigenproblems."""

import pytest
import torch
from support.small_networks import CASES, DTYPE, build, gap, row
from torch import nn

import gnewton as gn
from gnewton.exact import Adjustment, gauss_newton_direction, saddle_free_direction

ADJUSTMENTS = [
    Adjustment(),
    Adjustment(ceiling=0.5),
    Adjustment(floor=0.2),
    Adjustment(power=0.5),
    Adjustment(negative=0.1),
    Adjustment(ceiling=1.0, floor=0.1, power=2.0, negative=3.0),
]


def adjusted(case, rho, kappa, curvature):
    """-(f(H) + rho + kappa)^{-1} (g + kappa theta) by a dense eigenproblem; curvature: eigenvalues -> what replaces them."""
    values, Y = torch.linalg.eigh(case.hessians)
    values = torch.where(values.abs() < 1e-11 * values.abs().amax(1, keepdim=True), 0.0, values)
    g = Y.mT @ (case.gradients + kappa * case.theta)[:, :, None]
    return -(Y @ (g / (curvature(values) + rho + kappa)[:, :, None]))[:, :, 0]


@pytest.mark.parametrize("kappa", [0.0, 0.2])
@pytest.mark.parametrize("name", CASES)
def test_it_is_the_dense_solution(name, kappa):
    case = build(name)
    for rho in (0.01, 1.0, 100.0):
        d = row(saddle_free_direction(case.passes, rho, weight_decay=kappa).per_sample())
        assert gap(d, adjusted(case, rho, kappa, torch.abs)) < 1e-10


@pytest.mark.parametrize("adjustment", ADJUSTMENTS, ids=repr)
@pytest.mark.parametrize("name", ["tanh", "three hidden", "no biases"])
def test_adjustments_act_on_the_eigenvalues(name, adjustment):
    case = build(name)
    rho = torch.tensor([0.1, 1.0, 10.0], dtype=DTYPE)
    d = row(saddle_free_direction(case.passes, rho, weight_decay=0.1, adjustment=adjustment).per_sample())
    # The square root makes 1e-8 of an eigenvalue that is zero but for rounding.
    tolerance = 1e-7 if adjustment.power < 1 else 1e-10
    assert gap(d, adjusted(case, rho[:, None], 0.1, lambda values: by_hand(values, adjustment))) < tolerance


def by_hand(values, a):
    out = [[max((abs(v) * (a.negative if v < 0 else 1)) ** a.power, a.floor) for v in row] for row in values.tolist()]
    return torch.tensor([[min(v, a.ceiling) for v in row] for row in out], dtype=DTYPE)


def test_power_and_ceiling_zero_are_gradient_descent():
    case = build("two hidden")
    for adjustment, rate in ((Adjustment(ceiling=0.0), 1 / 3), (Adjustment(power=0.0), 1 / 4)):
        d = row(saddle_free_direction(case.passes, 3.0, adjustment=adjustment).per_sample())
        assert gap(d, -rate * case.gradients) < 1e-12


def test_a_positive_definite_damped_hessian_makes_safe_and_plain_agree_with_it():
    # One layer: H >= 0, so that |H| = H.
    case = build("one layer, cross-entropy")
    d = row(saddle_free_direction(case.passes, 0.5).per_sample())
    assert gap(d, case.newton(0.5)) < 1e-12


@pytest.mark.parametrize("name", CASES)
def test_it_descends_for_every_damping_and_adjustment(name):
    case = build(name)
    for rho in (1e-3, 0.01, 1.0, 100.0):
        for adjustment in ADJUSTMENTS:
            d = row(saddle_free_direction(case.passes, rho, adjustment=adjustment).per_sample())
            assert ((case.gradients * d).sum(1) < 0).all()


def test_unfit_adjustments_and_dampings_are_refused():
    with pytest.raises(ValueError, match="floor >= 0"):
        Adjustment(floor=-1.0)
    with pytest.raises(ValueError, match="ceiling >= 0"):
        Adjustment(ceiling=float("nan"))
    with pytest.raises(ValueError, match="each of 3 samples"):
        saddle_free_direction(build("tanh").passes, torch.ones(3, 2))


@pytest.mark.parametrize("kappa", [0.0, 0.2])
@pytest.mark.parametrize("name", [name for name in CASES if "output" not in name and "of tanh" not in name])
def test_gauss_newton_is_the_dense_solution(name, kappa):
    case = build(name)
    J, C = case.jacobians, case.passes.loss.hessian()
    G = J.mT @ C @ J
    for rho in (0.01, 1.0, 100.0):
        rhs = -(case.gradients + kappa * case.theta)
        expected = torch.linalg.solve(G + (rho + kappa) * torch.eye(G.shape[1], dtype=DTYPE), rhs)
        assert gap(row(gauss_newton_direction(case.passes, rho, weight_decay=kappa).per_sample()), expected) < 1e-10


# ---------------------------------------------------------------------------------- leaving a saddle


def saddle(y=1.5):
    """w_2 tanh(w_1 x) without biases: a strict saddle at zero, whose loss is y^2 / 2."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Tanh(), nn.Linear(1, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight.fill_(0.02)
        model[2].weight.fill_(0.01)
    return model, torch.tensor([[1.2]], dtype=DTYPE), torch.tensor([[y]], dtype=DTYPE)


@pytest.mark.parametrize("method", ["safe", "abs", "absQ", "plain"])
def test_plain_newton_goes_to_a_strict_saddle_and_the_others_leave_it(method):
    model, x, y = saddle()
    optimizer = gn.exact.ExactNewton(model, "squared_error", method=method, damping=0.05, cap=float("inf"))
    losses = [float(optimizer.step(x, y)) for _ in range(30)]
    size = torch.cat([p.flatten() for p in model.parameters()]).norm()
    values = torch.linalg.eigvalsh(
        gn.exact.hessian.dense(gn.exact.forward_backward(model, x, y, loss="squared_error"))[0]
    )
    if method == "plain":
        assert size < 1e-6
        assert losses[-1] == pytest.approx(1.5**2 / 2, rel=1e-9)
        assert values[0] < -0.1 < 0.1 < values[-1]
    else:
        assert size > 0.5
        assert losses[-1] < 1e-3 * losses[0]
