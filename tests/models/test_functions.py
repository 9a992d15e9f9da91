"""The networks start as the paper says; the test functions have the spectrum, minimum and values they promise."""

import math

import pytest
import torch

import gnewton as gn
from gnewton.models import Quadratic, Rosenbrock, perceptron

DTYPE = torch.float64
SIGMA = {"tanh": 1.0, "sigmoid": 1.0, "elu": math.sqrt(2), "relu": math.sqrt(2), "softplus": 1.0}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("activation", SIGMA)
def test_weights_have_the_paper_s_variance(activation):
    model = perceptron([300, 200, 100], activation, generator=seeded(), dtype=DTYPE)
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            assert not p.any()
            continue
        # The mean of n squares of N(0, 1) has standard deviation sqrt(2/n), the mean sqrt(1/n): five of each.
        z, n = p.detach() * math.sqrt(p.shape[1]) / SIGMA[activation], p.numel()
        assert abs(z.square().mean() - 1) < 5 * math.sqrt(2 / n)
        assert abs(z.mean()) < 5 / math.sqrt(n)


def test_an_activation_stands_between_layers_and_not_at_the_end():
    kinds = [type(layer).__name__ for layer in perceptron([4, 3, 3, 2], "softplus")]
    assert kinds == ["Linear", "Softplus", "Linear", "Softplus", "Linear"]


def test_a_generator_fixes_the_weights_and_leaves_the_global_state():
    before = torch.get_rng_state()
    first, again, other = (perceptron([5, 4, 2], generator=seeded(s))[0].weight for s in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_without_a_generator_manual_seed_fixes_the_weights():
    with torch.random.fork_rng():
        weights = []
        for _ in range(2):
            torch.manual_seed(7)
            weights.append(perceptron([5, 4])[0].weight)
        assert torch.equal(*weights)
        assert not torch.equal(weights[0], perceptron([5, 4])[0].weight)


def test_one_seed_gives_one_network_in_every_dtype():
    double, single = (perceptron([6, 5], generator=seeded(), dtype=t)[0].weight for t in (DTYPE, torch.float32))
    assert double.dtype == DTYPE
    assert torch.equal(double.float(), single)
    assert perceptron([6, 5], device="meta")[0].weight.is_meta


@pytest.mark.parametrize(
    "make",
    [
        lambda: perceptron([3, 2], generator=torch.Generator("cpu")),
        lambda: Rosenbrock(2),
        lambda: Quadratic([1.0, 2.0]),
        lambda: Quadratic([1.0, 2.0], angle=0.3),
        lambda: Quadratic([1.0, 2.0], generator=torch.Generator("cpu")),
        lambda: Quadratic([1.0, 2.0], basis=torch.eye(2, device="cpu")),
    ],
)
def test_models_follow_the_default_device(make):
    with torch.device("meta"):
        assert all(t.is_meta for t in make().state_dict().values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([3],), "expected two or more widths"),
        (([3, 0, 2],), "expected two or more widths"),
        (([3, 2], "sine"), "expected an activation among tanh, sigmoid, elu, relu, softplus, got 'sine'"),
    ],
)
def test_unfit_perceptrons_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        perceptron(*arguments)


BASES = {
    "axes": {},
    "angle": {"angle": 0.7},
    "random": {"generator": seeded(1)},
    "given": {"basis": torch.linalg.qr(torch.randn(2, 2, generator=seeded(2), dtype=DTYPE)).Q},
}


@pytest.mark.parametrize("basis", BASES)
def test_the_bowl_has_its_spectrum_and_its_minimum(basis):
    spectrum, minimiser = torch.tensor([0.5, 40.0], dtype=DTYPE), torch.tensor([2.0, -3.0], dtype=DTYPE)
    bowl = Quadratic(spectrum, **BASES[basis], minimiser=minimiser, dtype=DTYPE)
    torch.testing.assert_close(torch.linalg.eigvalsh(bowl.A), spectrum, rtol=1e-13, atol=1e-13)
    assert torch.equal(bowl.A, bowl.A.T)
    theta = bowl.theta.detach()
    constant = minimiser @ bowl.A @ minimiser / 2
    torch.testing.assert_close(bowl(), theta @ bowl.A @ theta / 2 - bowl.b @ theta + constant, rtol=1e-12, atol=1e-12)
    (g,) = torch.autograd.grad(bowl(), [bowl.theta])
    torch.testing.assert_close(g, bowl.A @ theta - bowl.b, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        bowl.theta.copy_(minimiser)
    (g,) = torch.autograd.grad(bowl(), [bowl.theta])
    assert bowl().item() == 0
    assert not g.any()


def test_an_angle_turns_the_axes_counter_clockwise():
    bowl = Quadratic([3.0, 1.0], angle=math.pi / 6, dtype=DTYPE)
    turned = torch.tensor([math.cos(math.pi / 6), math.sin(math.pi / 6)], dtype=DTYPE)
    torch.testing.assert_close(bowl.A @ turned, 3 * turned, rtol=1e-14, atol=1e-14)


def test_a_random_basis_is_orthogonal_and_its_generator_s_own():
    before = torch.get_rng_state()
    bowls = [Quadratic(torch.arange(1.0, 9.0), generator=seeded(s), dtype=DTYPE) for s in (5, 5, 6)]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(bowls[0].A, bowls[1].A)
    assert (bowls[0].A - bowls[2].A).abs().max() > 0.1
    torch.testing.assert_close(bowls[0].A.trace().item(), 36.0, rtol=1e-13, atol=0)


@pytest.mark.parametrize("model", [Quadratic([1.0, 5.0, 9.0], generator=seeded()), Rosenbrock(3)])
def test_points_are_evaluated_all_at_once(model):
    points = torch.randn(4, 6, 3, generator=seeded())
    values = model(points)
    assert values.shape == (4, 6)
    with torch.no_grad():
        model.theta.copy_(points[2, 3])
        torch.testing.assert_close(values[2, 3], model())


@pytest.mark.parametrize("d", [2, 5])
def test_rosenbrock_is_the_classic_sum(d):
    valley = Rosenbrock(d, dtype=DTYPE)
    x = valley.theta.tolist()
    assert x == [-1.2, 1.0, -1.2, 1.0, -1.2][:d]
    naive = sum(100 * (x[i + 1] - x[i] ** 2) ** 2 + (1 - x[i]) ** 2 for i in range(d - 1))
    assert valley().item() == pytest.approx(naive, rel=1e-14)
    with torch.no_grad():
        valley.theta.fill_(1.0)
    (g,) = torch.autograd.grad(valley(), [valley.theta])
    assert valley().item() == 0
    assert not g.any()


@pytest.mark.parametrize("model", [Quadratic([1.0, 5.0, 9.0]), Rosenbrock(3)])
def test_every_coordinate_may_be_its_own_group(model):
    assert len(gn.Partition.by_scalar(model)) == 3
    assert [name for name, _ in model.named_parameters()] == ["theta"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Quadratic([]), r"expected spectrum of shape \(d,\)"),
        (lambda: Quadratic([1.0, math.inf]), "expected finite numbers in spectrum"),
        (lambda: Quadratic([1.0, 2.0], start=[1.0]), r"expected start of shape \(2,\), got \(1,\)"),
        (lambda: Quadratic([1.0, 2.0], minimiser=[[1.0, 2.0]]), r"expected minimiser of shape \(2,\), got \(1, 2\)"),
        (lambda: Quadratic([1.0, 2.0, 3.0], angle=0.1), "expected 2 eigenvalues with an angle, got 3"),
        (lambda: Quadratic([1.0, 2.0], basis=torch.eye(3)), r"expected a basis of shape \(2, 2\), got \(3, 3\)"),
        (lambda: Quadratic([1.0, 2.0], basis=torch.ones(2, 2)), "expected an orthogonal basis"),
        (lambda: Quadratic([1.0, 2.0], angle=0.1, generator=seeded()), "one way .* got angle and generator"),
        (lambda: Rosenbrock(1), "expected d >= 2 coordinates, got 1"),
        (lambda: Rosenbrock(3, start=[0.0, 0.0]), r"expected start of shape \(3,\), got \(2,\)"),
    ],
)
def test_unfit_functions_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
