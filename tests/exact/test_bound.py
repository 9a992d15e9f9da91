"""The safe damping is an upper bound of the negative curvature, and a damping above it makes every pivot positive."""

import pytest
import torch
from support.small_networks import CASES, DTYPE, build

import gnewton as gn
from gnewton.exact.bound import norm_bound
from gnewton.exact.riccati import backward
from gnewton.exact.sample_directions import dampings


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", CASES)
def test_the_bound_holds(name, seed):
    case = build(name, seed=seed)
    b, values = gn.exact.safe_damping(case.passes), torch.linalg.eigvalsh(case.hessians)
    rounding = 1e-13 * values.abs().amax(1)
    assert (b >= -values[:, 0] - rounding).all()
    assert (b >= 0).all()
    for pivot in backward(case.passes, dampings(case.passes, b + 1e-6), []):
        assert (torch.linalg.eigvalsh(pivot.A) > 0).all()


@pytest.mark.parametrize("name", ["tanh", "softplus, one output", "two hidden", "three hidden"])
def test_the_bound_is_not_loose_by_orders_of_magnitude(name):
    case = build(name)
    assert (gn.exact.safe_damping(case.passes) < -50 * torch.linalg.eigvalsh(case.hessians)[:, 0]).all()


def test_the_bound_vanishes_with_the_gradient():
    case = build("sigmoid, mse")
    exact = case.model(case.x).detach()
    bounds = []
    for away in (1.0, 1e-3, 1e-6):
        case.y = exact + away
        bounds.append(gn.exact.safe_damping(case.passes))
    assert (bounds[2] < 1e-2 * bounds[0]).all()
    case.y = exact
    assert not gn.exact.safe_damping(case.passes).any()


@pytest.mark.parametrize("shape", [(1, 1), (3, 40), (40, 3), (64, 64)])
def test_the_norm_bound_is_within_its_factor(shape):
    W = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=DTYPE)
    exact = torch.linalg.matrix_norm(W, 2)
    assert exact * (1 - 1e-13) <= norm_bound(W) <= min(shape) ** (1 / 16) * exact * (1 + 1e-13)
    assert norm_bound(torch.zeros(3, 2)) == 0
