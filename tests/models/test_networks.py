"""LeNet, VGG and the auto-encoder; the scaled parametrization; every partition of the paper on every network."""

import math

import pytest
import torch
import torch.nn.functional as F

import gnewton as gn
from gnewton.models import autoencoder, lenet, perceptron, vgg

DTYPE = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


NETWORKS = {
    "perceptron": (lambda **o: perceptron([6, 5, 4, 3], "tanh", **o), (6,)),
    "deep perceptron": (lambda **o: perceptron([6, *[5] * 20, 3], "elu", **o), (6,)),
    "auto-encoder": (lambda **o: autoencoder([6, 4, 2], "tanh", **o), (6,)),
    "LeNet": (lambda **o: lenet((1, 28, 28), **o), (1, 28, 28)),
    "LeNet in colour": (lambda **o: lenet((3, 32, 32), activation="elu", **o), (3, 32, 32)),
    "VGG-11": (lambda **o: vgg(11, 1 / 64, inputs=(1, 28, 28), **o), (1, 28, 28)),
    "VGG-13 with batch norm": (lambda **o: vgg(13, 1 / 64, batch_norm=True, **o), (3, 32, 32)),
}


@pytest.fixture(params=NETWORKS)
def made(request):
    make, shape = NETWORKS[request.param]
    x = torch.randn(4, *shape, generator=seeded(1), dtype=DTYPE)
    return make, x


def gradients(model, x):
    output = model(x)
    weights = torch.linspace(-1, 1, output.numel(), dtype=DTYPE).view_as(output)
    return output.detach(), dict(
        zip(
            [n for n, _ in model.named_parameters()],
            torch.autograd.grad((output * weights).sum(), list(model.parameters())),
            strict=True,
        )
    )


def fan_in(p):
    return p[0].numel()


def test_the_scaled_network_is_the_same_function_with_shorter_gradients(made):
    make, x = made
    plain, scaled = (make(generator=seeded(), dtype=DTYPE, scaling=s) for s in (False, True))
    (out, g), (same, h) = gradients(plain, x), gradients(scaled, x)
    # One product and one quotient by sqrt(fan_in) more in each layer: roundings alone.
    torch.testing.assert_close(same, out, rtol=1e-12, atol=1e-12)
    for name, p in scaled.named_parameters():
        # weight = scaled weight / sqrt(fan_in), so that the chain rule divides; biases and batch norm stay.
        factor = 1 / math.sqrt(fan_in(p)) if p.dim() > 1 else 1.0
        torch.testing.assert_close(h[name], g[name] * factor, rtol=1e-10, atol=1e-12)


def test_one_seed_gives_one_network_and_leaves_the_global_state(made):
    make, _x = made
    before = torch.get_rng_state()
    one, again, single = (
        make(generator=seeded(), dtype=DTYPE),
        make(generator=seeded(), dtype=DTYPE),
        make(generator=seeded()),
    )
    assert torch.equal(torch.get_rng_state(), before)
    for p, q, r in zip(one.parameters(), again.parameters(), single.parameters(), strict=True):
        assert torch.equal(p, q)
        assert torch.equal(p.float(), r)
    assert next(make(device="meta").parameters()).is_meta


@pytest.mark.parametrize("name", ["LeNet", "VGG-11"])
def test_convolutions_have_the_paper_s_variance(name):
    make = {
        "LeNet": lambda g: lenet(generator=g, dtype=DTYPE),
        "VGG-11": lambda g: vgg(11, 0.25, generator=g, dtype=DTYPE),
    }[name]
    sigma = {"LeNet": 1.0, "VGG-11": math.sqrt(2)}[name]
    for p in make(seeded()).parameters():
        if p.dim() > 1:
            z = p.detach() * math.sqrt(fan_in(p)) / sigma
            assert abs(z.square().mean() - 1) < 5 * math.sqrt(2 / p.numel())
        else:
            assert not p.any()


@pytest.mark.parametrize("make", [lenet, lambda size, **o: vgg(11, 1 / 64, inputs=size, **o)], ids=["LeNet", "VGG"])
@pytest.mark.parametrize("scaling", [False, True])
def test_a_small_image_is_a_large_one_with_a_border_of_zeros(make, scaling):
    x = torch.randn(3, 1, 28, 28, generator=seeded(1), dtype=DTYPE)
    small, large = (make((1, n, n), generator=seeded(), dtype=DTYPE, scaling=scaling) for n in (28, 32))
    torch.testing.assert_close(small(x), large(F.pad(x, (2, 2, 2, 2))), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("activation", ["tanh", "elu"])
def test_scaled_weights_have_the_variance_of_their_activation(activation):
    model = perceptron([300, 200, 100], activation, generator=seeded(), dtype=DTYPE, scaling=True)
    for weight in (model[0].weight, model[2].weight):
        # The mean of n squares of N(0, 1) has standard deviation sqrt(2/n): five of them.
        z = weight.detach() / {"tanh": 1.0, "elu": math.sqrt(2)}[activation]
        assert abs(z.square().mean() - 1) < 5 * math.sqrt(2 / z.numel())


def test_the_auto_encoder_gives_back_what_it_takes():
    model = autoencoder([12, 7, 5, 2])
    assert [layer.out_features for layer in model[::2]] == [7, 5, 2, 5, 7, 12]
    assert model(torch.zeros(3, 12)).shape == (3, 12)
    assert isinstance(model[-1], torch.nn.Linear)


def test_the_shapes_are_those_of_the_papers():
    shapes = [tuple(p.shape) for p in lenet().parameters() if p.dim() > 1]
    assert shapes == [(6, 3, 5, 5), (16, 6, 5, 5), (120, 400), (84, 120), (10, 84)]
    shapes = [tuple(p.shape) for p in vgg(device="meta").parameters() if p.dim() > 1]
    assert [s[0] for s in shapes] == [64, 128, 256, 256, 512, 512, 512, 512, 4096, 4096, 10]
    for depth, convolutions in ((11, 8), (13, 10), (16, 13), (19, 16)):
        model = vgg(depth, 1 / 32, batch_norm=True, device="meta")
        assert sum(isinstance(m, torch.nn.Conv2d) for m in model) == convolutions
        assert sum(isinstance(m, torch.nn.BatchNorm2d) for m in model) == convolutions
        assert all(m.bias is None for m in model if isinstance(m, torch.nn.Conv2d))
    assert not any(isinstance(m, torch.nn.Dropout) for m in vgg(device="meta"))


@pytest.mark.parametrize(
    "make",
    [
        lambda: lenet((1, 29, 29)),
        lambda: lenet((0, 28, 28)),
        lambda: lenet((28, 28)),
        lambda: lenet(classes=0),
        lambda: vgg(inputs=(3, 64, 64)),
        lambda: vgg(classes=0),
        lambda: vgg(12),
        lambda: vgg(width=0.0),
        lambda: vgg(activation="gelu"),
        lambda: autoencoder([5]),
    ],
)
def test_unfit_networks_are_refused(make):
    with pytest.raises(ValueError, match="expected"):
        make()


# -- partitions -----------------------------------------------------------------------------------------------------------


def kinds(partition):
    """For each group, whether there are biases in it, and whether there are others."""
    return [{name.endswith("bias") for name in partition.members(s)} for s in range(len(partition))]


def test_blocks_and_alternate_keep_weights_and_biases_apart(made):
    make, _ = made
    model = make(generator=seeded(), dtype=DTYPE)
    layers = sum(p.dim() > 1 for p in model.parameters())
    total = sum(p.numel() for p in model.parameters())
    everywhere = all(getattr(m, "bias", m) is not None for m in model)
    for n in range(1, layers + 1):
        for partition in (gn.Partition.blocks(model, n), gn.Partition.alternate(model, n)):
            assert sum(partition.sizes) == total
            assert all(len(kind) == 1 for kind in kinds(partition))
            biases = sum(kind == {True} for kind in kinds(partition))
            assert biases == n if everywhere else 0 < biases <= n  # as many groups of biases as asked for


def merges(fine, coarse):
    """For each group of ``coarse`` its groups of ``fine``, or None where a group of ``fine`` lies across."""
    pairs = set()
    for name, p in fine.parameters.items():
        a, b = (torch.as_tensor(partition.label(name)).expand(p.shape).flatten() for partition in (fine, coarse))
        pairs |= set(zip(a.tolist(), b.tolist(), strict=True))
    groups = [[f for f, c in sorted(pairs) if c == s] for s in range(len(coarse))]
    return groups if len(pairs) == len(fine) else None


def summary_of(model, x, partition, **options):
    target = torch.arange(len(x)) % 2
    u = {n: torch.randn(p.shape, generator=seeded(2), dtype=DTYPE) for n, p in partition.parameters.items()}
    return gn.summarize(lambda: F.cross_entropy(model(x).flatten(1), target), partition, u, **options)


def agree(got, expected):
    # Two orders of the same sums of at most P^order terms: roundings, relative to the largest entry.
    for order in ("gradient", "hessian", "third_full"):
        a, b = getattr(got, order), getattr(expected, order)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-9, atol=float(1e-11 * b.abs().max()))


def test_one_group_per_tensor_coarsens_to_blocks_and_alternates(made):
    make, x = made
    model = make(generator=seeded(), dtype=DTYPE)
    options = {"order": 3, "full_third": True}
    layers = sum(p.dim() > 1 for p in model.parameters())
    fine = gn.Partition.by_tensor(model)
    summary = summary_of(model, x, fine, **options)
    for n in {2, layers // 2, layers}:
        for coarse in (gn.Partition.blocks(model, n), gn.Partition.alternate(model, n)):
            agree(summary_of(model, x, coarse, **options), summary.coarsen(merges(fine, coarse)))


def test_one_group_per_row_coarsens_to_layers_and_to_one(made):
    make, x = made
    model = make(generator=seeded(), dtype=DTYPE)
    fine = gn.Partition.by_row(model)
    summary = summary_of(model, x, fine, order=2)
    for coarse in (gn.Partition.by_layer(model), gn.Partition.single(model)):
        assert sum(coarse.sizes) == sum(fine.sizes) == sum(p.numel() for p in model.parameters())
        agree(summary_of(model, x, coarse, order=2), summary.coarsen(merges(fine, coarse)))
    # A row holds its bias: rows lie across weights and biases.
    assert merges(fine, gn.Partition.by_tensor(model)) is None


@pytest.mark.parametrize("name", ["perceptron", "auto-encoder"])
def test_every_number_of_groups_from_one_to_all_scalars(name):
    make, shape = NETWORKS[name]
    model = make(generator=seeded(), dtype=DTYPE)
    x = torch.randn(5, *shape, generator=seeded(1), dtype=DTYPE)
    loss = lambda: F.mse_loss(model(x), x[:, :1] * torch.ones_like(model(x)))  # noqa: E731
    finest = gn.Partition.by_scalar(model)
    u = {n: torch.randn(p.shape, generator=seeded(2), dtype=DTYPE) for n, p in finest.parameters.items()}
    fine = gn.summarize(loss, finest, u, order=2)
    P = len(finest)
    for S in (1, 2, 3, 7, P // 2, P - 1, P):
        groups = [list(range(P))[i::S] for i in range(S)]
        partition = finest.coarsen(groups)
        assert len(partition) == S
        got, expected = gn.summarize(loss, partition, u, order=2), fine.coarsen(groups)
        torch.testing.assert_close(got.gradient, expected.gradient, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(got.hessian, expected.hessian, rtol=1e-9, atol=1e-11)


# -- Rosenbrock's two layouts ------------------------------------------------------------------------------------------------


def first_below(model, partition, level, most):
    optimizer = gn.GroupedNewton(partition, lr=1.0, cubic=1.0, period=1)
    return next((i for i in range(most) if optimizer.step(model) < level), None)


def test_two_rates_end_rosenbrock_in_the_plane():
    model = gn.models.Rosenbrock(2, dtype=DTYPE)
    assert first_below(model, gn.Partition.by_scalar(model), 1e-12, 200) is not None


def test_the_layout_decides_what_two_rates_can_do_in_twenty_dimensions():
    steps = {}
    for layout in ("interleaved", "halves"):
        model = gn.models.Rosenbrock(20, coupled=False, dtype=DTYPE)
        steps[layout] = first_below(model, gn.Partition.from_groups(model.layout(layout)), 1e-12, 2000)
    # Interleaved, the ten valleys are one: two rates are as good as in the plane. In halves both groups hold both kinds.
    plane = gn.models.Rosenbrock(2, dtype=DTYPE)
    assert steps["interleaved"] == first_below(plane, gn.Partition.by_scalar(plane), 1e-12, 200)
    assert steps["halves"] is not None
    assert steps["halves"] > 5 * steps["interleaved"]


@pytest.mark.parametrize("layout", ["interleaved", "halves"])
def test_coupled_in_twenty_dimensions_two_rates_go_down(layout):
    model = gn.models.Rosenbrock(20, dtype=DTYPE)
    optimizer = gn.GroupedNewton(gn.Partition.from_groups(model.layout(layout)), lr=1.0, cubic=1.0, period=1)
    losses = [float(optimizer.step(model)) for _ in range(200)]
    assert losses[-1] < 0.01 * losses[0]


def test_layouts_are_two_equal_disjoint_halves():
    model = gn.models.Rosenbrock(8)
    for layout in ("interleaved", "halves"):
        masks = [group["theta"][1] for group in model.layout(layout).values()]
        assert torch.equal(masks[0], ~masks[1])
        assert [int(m.sum()) for m in masks] == [4, 4]
    with pytest.raises(ValueError, match="a layout among interleaved, halves"):
        model.layout("rows")
    with pytest.raises(ValueError, match="an even d"):
        gn.models.Rosenbrock(3, coupled=False)
