"""The one-sample Hessian against torch.func.hessian, and the theorem of rank and inertia."""

import pytest
import torch
from support.small_networks import CASES, DTYPE, SMOOTH, build, gap, row, unrow
from torch import nn

import gnewton as gn
from gnewton.exact import hessian


def relative(computed, expected):
    return float((computed - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", CASES)
def test_the_dense_hessian_is_autograds(name):
    case = build(name)
    assert relative(hessian.dense(case.passes), case.hessians) < 1e-12


def test_blocks_are_cut_from_the_whole():
    case = build("three hidden")
    sizes = [sum(p.numel() for p in layer.parameters()) for layer in case.model if isinstance(layer, nn.Linear)]
    starts = torch.tensor([0, *sizes]).cumsum(0).tolist()
    for i in range(len(sizes)):
        for k in range(len(sizes)):
            part = case.hessians[:, starts[i] : starts[i + 1], starts[k] : starts[k + 1]]
            torch.testing.assert_close(hessian.block(case.passes, i, k), part, rtol=1e-12, atol=1e-12)
    with pytest.raises(IndexError, match="from 0 to 3"):
        hessian.block(case.passes, 4, 0)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_products_are_those_with_the_dense_hessian(name, shared):
    case = build(name)
    generator = torch.Generator().manual_seed(1)
    u = torch.randn(*([] if shared else [3]), len(case.theta), generator=generator, dtype=DTYPE)
    product = hessian.product(case.passes, unrow(case.model, u))
    expected = (case.hessians @ u.expand(3, -1)[:, :, None])[:, :, 0]
    assert gap(row(product.per_sample()), expected) < 1e-12
    torch.testing.assert_close(product.output, _outputs_changed(case, expected), rtol=1e-11, atol=1e-11)


def _outputs_changed(case, u):
    """J u of z_L, through the model without its output activation."""
    if isinstance(list(case.model.modules())[-1], nn.Linear):
        return (case.jacobians @ u[:, :, None])[:, :, 0]
    layers = list(case.model)
    bare = type(case)(nn.Sequential(*layers[:-1]), case.x, case.y, case.loss)
    return (bare.jacobians @ u[:, :, None])[:, :, 0]


def test_a_product_with_misfits_is_refused():
    case = build("tanh")
    u = unrow(case.model, case.theta)
    with pytest.raises(ValueError, match="expected tensors named"):
        hessian.product(case.passes, {name: u[name] for name in list(u)[1:]})
    with pytest.raises(ValueError, match=r"expected 0\.weight of shape"):
        hessian.product(case.passes, u | {"0.weight": torch.zeros(2, 4, 5, dtype=DTYPE)})


@pytest.mark.parametrize("name", CASES)
def test_the_trace_is_that_of_the_dense_hessian(name):
    case = build(name)
    expected = case.hessians.diagonal(dim1=1, dim2=2)
    # A sum of numbers of both signs: rounding is relative to their sizes.
    assert ((hessian.trace(case.passes) - expected.sum(1)).abs() <= 1e-13 * expected.abs().sum(1)).all()


@pytest.mark.parametrize("name", SMOOTH)
def test_rank_and_inertia_follow_the_theorem(name):
    case = build(name)
    values = torch.linalg.eigvalsh(case.hessians)
    rounding = 1e-11 * values.abs().amax(1, keepdim=True)
    inertia = hessian.inertia(case.passes)
    assert torch.equal(inertia.negative, (values < -rounding).sum(1))
    assert torch.equal(inertia.positive, (values > rounding).sum(1))
    assert torch.equal(inertia.zero, (values.abs() <= rounding).sum(1))
    assert torch.equal(hessian.rank(case.passes), torch.linalg.matrix_rank(case.hessians, rtol=1e-11))


@pytest.mark.parametrize("name", ["tanh", "sigmoid, mse", "two hidden", "three hidden"])
def test_one_sample_is_a_strict_saddle_with_one_negative_eigenvalue_a_hidden_unit(name):
    case = build(name, samples=5, seed=2)
    hidden = (
        sum(layer.out_features for layer in case.model if isinstance(layer, nn.Linear)) - case.passes.z[-1].shape[1]
    )
    assert (hessian.inertia(case.passes).negative == hidden).all()


def test_the_theorem_is_refused_where_its_conditions_fail():
    with pytest.raises(ValueError, match=r"biases .* layer 2"):
        hessian.inertia(build("no biases").passes)
    case = build("relu")
    assert (case.passes.slopes[0] == 0).any()
    with pytest.raises(ValueError, match="behind layer 0"):
        hessian.rank(case.passes)
    case = build("tanh")
    with torch.no_grad():
        case.model[2].weight.zero_()
    hessian.inertia(case.passes)  # of the last layer alone delta must not vanish
    case = build("two hidden")
    with torch.no_grad():
        case.model[4].weight.zero_()
    with pytest.raises(ValueError, match="gradient in layer 2"):
        hessian.inertia(case.passes)


def test_without_biases_the_rank_is_less_by_one_for_each_layer_after_the_first():
    # Why: then a_{l-1} . r_l = delta_l . p_l, so that J is not onto.
    case = build("no biases")
    values = torch.linalg.eigvalsh(case.hessians).abs()
    assert ((values > 1e-11 * values.amax(1, keepdim=True)).sum(1) == 2 * 8 + 2 - 2).all()


def test_gnewtons_perceptron_in_both_precisions():
    generator = torch.Generator().manual_seed(0)
    model = gn.models.perceptron([6, 5, 4, 3], "elu", generator=generator)
    x, y = torch.randn(4, 6, generator=generator), torch.tensor([0, 1, 2, 0])
    single = hessian.dense(gn.exact.forward_backward(model, x, y))
    double = hessian.dense(gn.exact.forward_backward(model.double(), x.double(), y))
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-5)
