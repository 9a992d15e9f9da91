"""The Newton direction of a mini-batch's mean loss, against a dense solve with the mean of torch.func's Hessians."""

import pytest
import torch
from support.small_networks import CASES, DTYPE, build, gap, row

from gnewton.exact import joint_direction, newton_direction


def matrix(case, rho, kappa=0.0):
    H = case.hessians.mean(0)
    return H + torch.diag((torch.as_tensor(rho, dtype=DTYPE) + kappa).expand(len(H)))


def dense(case, rho, kappa=0.0):
    return torch.linalg.solve(matrix(case, rho, kappa), -(case.gradients.mean(0) + kappa * case.theta))


def allowed(case, rho, kappa=0.0):
    """Roundings of both solutions, which the condition of an indefinite matrix with little damping multiplies."""
    return max(1e-12, 1e3 * torch.finfo(DTYPE).eps * float(torch.linalg.cond(matrix(case, rho, kappa))))


def flat(direction):
    return row(direction.mean(), samples=False)


@pytest.mark.parametrize("samples", [2, 4])
@pytest.mark.parametrize("name", CASES)
def test_it_solves_the_newton_equation_of_the_mean_loss(name, samples):
    case = build(name, samples)
    for rho in (0.01, 0.3, 5.0, 100.0):
        for kappa in (0.0, 0.2):
            d = joint_direction(case.passes, rho, weight_decay=kappa)
            assert gap(flat(d), dense(case, rho, kappa)) < allowed(case, rho, kappa) < 1e-7, (rho, kappa)
            slope = case.gradients.mean(0) @ flat(d)
            assert float(d.slope().mean()) == pytest.approx(float(slope), rel=1e-9, abs=1e-12)


def test_layers_may_have_their_own_damping():
    case = build("two hidden")
    rho = torch.tensor([0.5, 2.0, 1.0], dtype=DTYPE)
    per_scalar = rho[torch.tensor([0] * 25 + [1] * 18 + [2] * 12)]
    assert gap(flat(joint_direction(case.passes, rho, weight_decay=0.1)), dense(case, per_scalar, 0.1)) < 1e-10
    with pytest.raises(ValueError, match="each of 3 layers"):
        joint_direction(case.passes, torch.ones(2))


@pytest.mark.parametrize("name", ["one layer, cross-entropy", "tanh", "three hidden", "no biases"])
def test_for_one_sample_it_is_the_averaged_direction(name):
    case = build(name, samples=1)
    assert (
        gap(
            flat(joint_direction(case.passes, 0.7, weight_decay=0.1)),
            flat(newton_direction(case.passes, 0.7, weight_decay=0.1)),
        )
        < 1e-11
    )


def test_the_average_of_directions_is_something_else():
    # The negative control: only with much damping do they come together.
    case = build("tanh", samples=4)
    apart = [
        gap(flat(newton_direction(case.passes, rho)), flat(joint_direction(case.passes, rho))) for rho in (1.0, 1e3)
    ]
    assert apart[0] > 0.1
    assert apart[1] < 0.01
