"""The same matrices by curvlinops, which multiplies by double backward passes and knows nothing of groups or tapes.

In float64 two ways of the same sums differ by roundings: 1e-10 of the largest entry leaves room for a few hundred of them.
"""

import curvlinops
import pytest
import torch
import torch.nn.functional as F
from support.small_networks import CASES, build, row
from torch import nn

import gnewton as gn
from gnewton.models import autoencoder, lenet, perceptron, vgg

NETWORKS = {
    "perceptron": (lambda **o: perceptron([6, 5, 4, 3], activation="tanh", **o), (6,)),
    "auto-encoder": (lambda **o: autoencoder([6, 4, 2], activation="elu", **o), (6,)),
    "scaled perceptron": (lambda **o: perceptron([6, 5, 3], activation="sigmoid", scaling=True, **o), (6,)),
    "LeNet": (lambda **o: lenet((1, 28, 28), classes=3, **o), (1, 28, 28)),
    "VGG-11": (lambda **o: vgg(11, 1 / 64, inputs=(1, 28, 28), classes=3, **o), (1, 28, 28)),
}
# Of its losses those that the cases use, too; labels of classes alone.
LOSSES = {F.cross_entropy: nn.CrossEntropyLoss(), F.mse_loss: nn.MSELoss()}
PARTITIONS = [gn.Partition.by_tensor, gn.Partition.by_layer, gn.Partition.by_kind, gn.Partition.single]


def operator(kind, model, loss, x, y):
    """The matrix of curvlinops over all parameters in a row (P, P)."""
    matrix = kind(model, loss, list(model.parameters()), [(x, y)], check_deterministic=False, num_data=len(x))
    return lambda columns: (matrix @ columns).detach()


@pytest.mark.parametrize("partition", PARTITIONS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("name", NETWORKS)
def test_h_bar_is_the_hessian_between_directions(name, partition):
    draw = torch.Generator().manual_seed(0)
    make, shape = NETWORKS[name]
    model = make(generator=draw, dtype=torch.float64)
    x = torch.randn(4, *shape, generator=draw, dtype=torch.float64)
    outputs = model(x).shape[1]
    loss, y = nn.CrossEntropyLoss(), torch.randint(outputs, (4,), generator=draw)
    if name == "auto-encoder":
        loss, y = nn.MSELoss(), torch.randn(4, outputs, generator=draw, dtype=torch.float64)
    groups = partition(model)
    u = {n: torch.randn(p.shape, generator=draw, dtype=torch.float64) for n, p in groups.parameters.items()}
    rates = torch.eye(len(groups), dtype=torch.float64)
    V = torch.stack([torch.cat([d.flatten() for d in groups.scale(u, rate).values()]) for rate in rates], 1)
    expected = V.T @ operator(curvlinops.HessianLinearOperator, model, loss, x, y)(V)
    hessian = gn.summarize(lambda: loss(model(x), y), groups, u, order=2).hessian
    torch.testing.assert_close(hessian, expected, rtol=0, atol=1e-10 * float(expected.abs().max()))


# curvlinops wants classes, and a forward mode that torch's SiLU does not have.
KNOWN = [name for name in CASES if build(name).loss in LOSSES and name not in ("soft labels", "silu")]
# Behind an activation of the outputs the two Gauss-Newton matrices are two: ours is linear up to it, theirs behind it.
LINEAR_OUTPUTS = [name for name in KNOWN if "of tanh" not in name]


@pytest.mark.parametrize(
    ("name", "kind", "direction"),
    [
        *((name, curvlinops.HessianLinearOperator, gn.exact.newton_direction) for name in KNOWN),
        *((name, curvlinops.GGNLinearOperator, gn.exact.gauss_newton_direction) for name in LINEAR_OUTPUTS),
    ],
)
def test_an_exact_direction_solves_its_system(name, kind, direction):
    case = build(name)
    directions = row(direction(case.passes, 0.3).per_sample())
    for x, y, d, g in zip(case.x, case.y, directions, case.gradients, strict=True):
        curved = operator(kind, case.model, LOSSES[case.loss], x[None], y[None])(d)
        # Of a system that is solved stably the residual is a rounding of its own terms.
        assert float((curved + 0.3 * d + g).norm()) < 1e-10 * float(curved.norm() + 0.3 * d.norm() + g.norm())
