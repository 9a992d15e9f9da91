"""The Gauss-Newton matrix between groups is J^T H_l J, with J and H_l from torch.func, by both engines.

Roundings of float64 sums of a few thousand terms: 1e-11 of the largest entry.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, hessian, jacrev

import gnewton as gn

CRITERIA = {
    "cross-entropy": lambda z, y: F.cross_entropy(z, y),
    "squared error": lambda z, y: F.mse_loss(z, F.one_hot(y, 3).to(z)),
    "logistic": lambda z, y: F.binary_cross_entropy_with_logits(z, F.one_hot(y, 3).to(z)),
}
ACTIVATIONS = {"tanh": nn.Tanh, "ReLU": nn.ReLU, "ELU": nn.ELU}


def build(activation="tanh"):
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Linear(4, 6), ACTIVATIONS[activation](), nn.Linear(6, 5), ACTIVATIONS[activation](), nn.Linear(5, 3)
    )
    model.double()
    x, y = torch.randn(12, 4, dtype=torch.float64), torch.arange(12) % 3
    partition = gn.Partition.by_tensor(model)
    u = {n: torch.randn_like(p, requires_grad=False) for n, p in partition.parameters.items()}
    return model, x, y, partition, u


def expected(model, x, y, partition, u, criterion):
    theta = {n: p.detach() for n, p in partition.parameters.items()}
    jacobian = jacrev(lambda t: functional_call(model, t, (x,)))(theta)
    columns = torch.stack([(jacobian[n] * u[n]).flatten(2).sum(2).flatten() for n in u])
    z = model(x).detach()
    curvature = hessian(lambda v: criterion(v.reshape(z.shape), y))(z.flatten())
    return columns @ curvature @ columns.T


def close(got, wanted):
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-11 * wanted.abs().max().item())


@pytest.mark.parametrize("engine", ["tape", "nested"])
@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_it_is_the_jacobian_times_the_curvature_in_the_outputs(activation, criterion, engine):
    model, x, y, partition, u = build(activation)
    pair = (lambda: model(x), lambda z: CRITERIA[criterion](z, y))
    got = gn.summarize(pair, partition, u, curvature="gauss-newton", engine=engine)
    wanted = expected(model, x, y, partition, u, CRITERIA[criterion])
    close(got.hessian, wanted)
    exact = gn.summarize(lambda: CRITERIA[criterion](model(x), y), partition, u, order=2)
    close(got.gradient, exact.gradient)
    # The negative control: the Hessian is another matrix, even of piecewise linear layers, two of which are multiplied.
    assert (exact.hessian - wanted).abs().max() > 1e-3 * wanted.abs().max()
    # Criteria that are convex in the outputs: no eigenvalue below the rounding of the largest.
    eigenvalues = torch.linalg.eigvalsh(got.hessian)
    assert eigenvalues.min() >= -1e-12 * eigenvalues.max()
    assert got.third is None
    assert got.curvature == "gauss-newton"
    assert "Gauss-Newton" in repr(got)


def test_a_linear_model_has_no_other_curvature():
    model, x, y, partition, u = build()
    pair = (lambda: F.linear(x, model[0].weight, model[0].bias), lambda z: F.cross_entropy(z, y))
    close(
        gn.summarize(pair, partition, u, curvature="gauss-newton").hessian,
        gn.summarize(pair, partition, u, order=2).hessian,
    )


def test_batches_small_memory_and_several_outputs():
    model, x, y, partition, u = build()
    pair = (
        lambda x, y: (model(x), {"w": model[0].weight}),
        lambda z, x, y: F.cross_entropy(z[0], y) + z[1]["w"].square().sum(),
    )
    one = gn.summarize(pair, partition, u, data=[(x, y)], curvature="gauss-newton")
    options = {"data": [(x[:5], y[:5]), (x[5:], y[5:])], "max_memory": 1.0}
    close(gn.summarize(pair, partition, u, curvature="gauss-newton", **options).hessian, one.hessian)
    close(gn.summarize(pair, partition, u, curvature="gauss-newton", engine="nested", **options).hessian, one.hessian)
    wanted = expected(model, x, y, partition, u, CRITERIA["cross-entropy"])
    wanted[0, 0] += 2 * u["0.weight"].square().sum()
    close(one.hessian, wanted)


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, g):
        return 2 * ctx.saved_tensors[0] * g


class SquareInNumpy(Square):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.from_numpy(x.detach().numpy() ** 2)


@pytest.mark.filterwarnings("ignore::gnewton.derivatives.record.IncompleteRecordWarning")
@pytest.mark.parametrize(("function", "engine"), [(Square, "tape"), (SquareInNumpy, "nested")])
def test_a_custom_function_is_opened_or_goes_by_backward_passes(function, engine):
    model, x, y, partition, u = build()
    pair = (lambda: function.apply(model(x)), lambda z: F.cross_entropy(z, y))
    same = (lambda: model(x) ** 2, lambda z: F.cross_entropy(z, y))
    got = gn.summarize(pair, partition, u, curvature="gauss-newton")
    assert got.engine == engine
    close(got.hessian, gn.summarize(same, partition, u, curvature="gauss-newton", engine="tape").hessian)


@pytest.mark.parametrize("engine", ["tape", "nested"])
def test_a_criterion_that_reads_parameters_is_refused(engine):
    model, x, y, partition, u = build()
    pair = (lambda: model(x), lambda z: F.cross_entropy(z, y) + model[0].weight.square().sum())
    with pytest.raises(ValueError, match="through the outputs alone"):
        gn.summarize(pair, partition, u, curvature="gauss-newton", engine=engine)


def test_what_does_not_fit_is_refused():
    model, x, y, partition, u = build()
    pair = (lambda: model(x), lambda z: F.cross_entropy(z, y))
    for loss, options, error, message in (
        (pair[0], {}, TypeError, "loss in two parts"),
        (pair, {"order": 3}, ValueError, "no third order"),
        (pair, {"engine": "differences"}, ValueError, "engine"),
        (pair, {"curvature": "fisher"}, ValueError, "fisher"),
    ):
        with pytest.raises(error, match=message):
            gn.summarize(loss, partition, u, **({"curvature": "gauss-newton"} | options))
    with pytest.raises(ValueError, match="one curvature"):
        gn.summarize(pair, partition, u, order=2) + gn.summarize(pair, partition, u, curvature="gauss-newton")
    kept = gn.summarize(pair, partition, u, curvature="gauss-newton")
    assert gn.Summary.from_state_dict(kept.state_dict()).curvature == "gauss-newton"
    assert kept.coarsen([range(len(partition))]).curvature == "gauss-newton"
