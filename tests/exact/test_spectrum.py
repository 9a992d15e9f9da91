"""Exact eigenvalues, by the reduced problem, closed forms, counting and bisection, against dense eigenproblems."""

import pytest
import torch
from support.small_networks import CASES, DTYPE, build, row
from torch import nn

import gnewton as gn
from gnewton.exact import hessian, spectrum
from gnewton.exact.spectrum import rank_one_eigenvalues


def dense_values(case):
    return torch.linalg.eigvalsh(case.hessians)


def close(computed, expected, scale):
    # Rounding of a symmetric eigenproblem is relative to its largest eigenvalue.
    return bool(((computed - expected).abs() <= 1e-12 * scale).all())


@pytest.mark.parametrize("name", CASES)
def test_the_reduced_problem_has_all_eigenvalues_but_zeros(name):
    case = build(name)
    expected, values = dense_values(case), spectrum.eigenvalues(case.passes)
    padded = torch.cat([values, values.new_zeros(3, expected.shape[1] - values.shape[1])], 1).sort(1).values
    assert close(padded, expected, expected.abs().amax(1, keepdim=True))


@pytest.mark.parametrize("name", CASES)
def test_eigenvectors_are_orthonormal_and_are_eigenvectors(name):
    case = build(name)
    eigen = spectrum.decompose(case.passes)
    V = torch.stack([row(eigen.vector(i).per_sample()) for i in range(eigen.values.shape[1])], 2)
    torch.testing.assert_close(V.mT @ V, torch.eye(V.shape[2], dtype=DTYPE).expand(3, -1, -1), rtol=1e-11, atol=1e-11)
    scale = eigen.values.abs().amax(1)[:, None, None]
    assert close(case.hessians @ V, V * eigen.values[:, None, :], 10 * scale)


def test_the_size_of_the_reduced_problem_does_not_depend_on_the_inputs():
    sizes = []
    for inputs in (2, 300):
        model = gn.models.perceptron([inputs, 4, 3], dtype=DTYPE)
        passes = gn.exact.forward_backward(model, torch.randn(1, inputs, dtype=DTYPE), torch.tensor([0]))
        sizes.append(spectrum.eigenvalues(passes).shape[1])
    assert sizes == [3 + 2 * 4] * 2


def test_a_sample_without_a_gradient_is_no_exception():
    # Targets equal to the outputs: delta is 0 in every layer.
    case = build("sigmoid, mse")
    case.y = case.model(case.x).detach()
    expected, values = dense_values(case), spectrum.eigenvalues(case.passes)
    padded = torch.cat([values, values.new_zeros(3, expected.shape[1] - values.shape[1])], 1).sort(1).values
    assert close(padded, expected, expected.abs().amax(1, keepdim=True))


CLOSED = ["one layer, cross-entropy", "one layer, squares", "one layer, tanh output", "softplus, one output"]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", [*CLOSED, "one layer, cross-entropy of tanh"])
def test_closed_forms_have_the_same_eigenvalues(name, seed):
    case = build(name, seed=seed)
    expected = spectrum.eigenvalues(case.passes)
    assert close(spectrum.closed_form(case.passes), expected, expected.abs().amax(1, keepdim=True))


def test_one_linear_layer_with_squares_has_one_eigenvalue():
    case = build("one layer, squares")
    lengths = (case.x.square().sum(1) + 1)[:, None].expand(-1, 3)
    torch.testing.assert_close(spectrum.closed_form(case.passes), lengths, rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", ["tanh", "two hidden"])
def test_no_closed_form_is_claimed_for_other_networks(name):
    with pytest.raises(ValueError, match="one layer, or two with one output"):
        spectrum.closed_form(build(name).passes)


@pytest.mark.parametrize("c", [2.0, -2.0, 0.0])
def test_the_secular_equation_is_right_where_poles_coincide_and_parts_vanish(c):
    generator = torch.Generator().manual_seed(0)
    poles, v = torch.randn(6, 7, generator=generator, dtype=DTYPE), torch.randn(6, 7, generator=generator, dtype=DTYPE)
    poles[1, :3] = poles[1, 0]
    v[2, ::2] = 0
    v[3] = 0
    poles[4], v[5] = 0, 1e-9 * v[5]
    expected = torch.linalg.eigvalsh(torch.diag_embed(poles) + c * v[:, :, None] * v[:, None, :])
    values = rank_one_eigenvalues(poles, v, torch.full((6,), c, dtype=DTYPE))
    torch.testing.assert_close(values, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", CASES)
def test_pivots_count_the_eigenvalues_beyond_a_shift(name):
    case = build(name)
    values = dense_values(case)
    scale = values.abs().max()
    for part in (0.9, 0.5, 0.11, 0.013, 1e-4):
        # Eigenvalues lie further than rounding from these shifts; the counts would tell otherwise.
        mu = part * scale
        assert torch.equal(spectrum.count_below(case.passes, mu), (values < -mu).sum(1)), part
        assert torch.equal(spectrum.count_above(case.passes, mu), (values > mu).sum(1)), part


def test_shifts_may_differ_from_sample_to_sample():
    case = build("two hidden")
    values = dense_values(case)
    between = -(values[:, 1] + values[:, 2]) / 2
    assert spectrum.count_below(case.passes, between).tolist() == [2, 2, 2]
    with pytest.raises(ValueError, match="mu > 0"):
        spectrum.count_above(case.passes, 0.0)


@pytest.mark.parametrize("name", CASES)
def test_bisection_finds_both_ends(name):
    case = build(name)
    values = dense_values(case)
    scale = values.abs().amax(1)
    assert close(spectrum.lowest(case.passes), values[:, 0], scale)
    assert close(spectrum.highest(case.passes), values[:, -1], scale)


def test_the_ends_of_a_hessian_that_is_zero_are_zero():
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    passes = gn.exact.forward_backward(
        model, torch.randn(1, 2, dtype=DTYPE), torch.tensor([0])
    )  # one class: the loss is 0
    assert spectrum.lowest(passes).item() == spectrum.highest(passes).item() == 0
    assert not hessian.dense(passes).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["a blank sample", "a layer that is off"])
@pytest.mark.parametrize("seed", range(3))
def test_the_ends_are_found_where_a_pivot_is_singular(kind, seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    model = gn.models.perceptron([3, 4, 2], "relu", generator=generator, dtype=dtype)
    x = torch.randn(4, 3, generator=generator, dtype=dtype)
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.bias.zero_()
        if kind == "a blank sample":
            x[2] = 0
        else:
            model[0].bias.fill_(-9)
    passes = gn.exact.forward_backward(model, x, torch.tensor([0, 1, 1, 0]))
    values = torch.linalg.eigvalsh(gn.exact.hessian.dense(passes))
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-10, "atol": 1e-12}
    torch.testing.assert_close(gn.exact.spectrum.highest(passes), values[:, -1].clamp(min=0), **tolerance)
    torch.testing.assert_close(gn.exact.spectrum.lowest(passes), values[:, 0].clamp(max=0), **tolerance)


def test_an_eigenvalue_that_is_hit_exactly_is_not_above_itself():
    # A hidden layer that is off leaves the output's bias alone, with the eigenvalue 1 for each output.
    model = gn.models.perceptron([3, 4, 2], "relu", dtype=torch.float64)
    with torch.no_grad():
        model[0].bias.fill_(-99)
    x, y = torch.ones(1, 3, dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)
    passes = gn.exact.forward_backward(model, x, y, loss="squared_error")
    counts = [int(gn.exact.spectrum.count_above(passes, mu)) for mu in (1 - 1e-12, 1.0, 1 + 1e-12)]
    assert counts == [2, 0, 0]


ASKED_OF_SPECTRA = {
    "lowest": gn.exact.spectrum.lowest,
    "highest": gn.exact.spectrum.highest,
    "eigenvalues": gn.exact.spectrum.eigenvalues,
    "count_below": lambda passes: gn.exact.spectrum.count_below(passes, 1.0),
    "count_above": lambda passes: gn.exact.spectrum.count_above(passes, 1.0),
    "saddle_free_direction": lambda passes: gn.exact.saddle_free_direction(passes, 1.0),
    "newton_direction": lambda passes: gn.exact.newton_direction(passes, 1.0, absolute=True),
    "inertia": gn.exact.hessian.inertia,
    "rank": gn.exact.hessian.rank,
}


@pytest.mark.parametrize("name", ASKED_OF_SPECTRA)
def test_passes_that_are_not_finite_are_named(name):
    model = gn.models.perceptron([3, 4, 2], "tanh", dtype=torch.float64)
    x = torch.full((2, 3), float("nan"), dtype=torch.float64)
    passes = gn.exact.forward_backward(model, x, torch.tensor([0, 1]))
    with pytest.raises(FloatingPointError, match="expected a finite loss"):
        ASKED_OF_SPECTRA[name](passes)
