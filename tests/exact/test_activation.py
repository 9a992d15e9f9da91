"""The closed forms of activations against autograd, and what counts as element-wise."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gnewton.exact import Elementwise
from gnewton.exact.activation import by_autograd, compose, is_elementwise, read, scale

MODULES = [
    nn.Tanh(),
    nn.Sigmoid(),
    nn.Softplus(),
    nn.Softplus(beta=2.0, threshold=3.0),
    nn.ELU(),
    nn.ELU(alpha=0.5),
    nn.GELU(),
    nn.GELU(approximate="tanh"),
    nn.SiLU(),
    nn.ReLU(),
    nn.LeakyReLU(),
    nn.LeakyReLU(inplace=True),
    nn.Softsign(),
    nn.Identity(),
    *(Elementwise(f) for f in (torch.sin, torch.tanh, torch.sigmoid, torch.relu, F.silu, F.gelu, F.elu, F.softplus)),
    Elementwise(lambda z: z**3 - z),
]


def points():
    generator = torch.Generator().manual_seed(0)
    return 3 * torch.randn(4, 50, generator=generator, dtype=torch.float64)


def assert_same(jet, expected):
    # A few roundings of numbers below 30.
    for part, other in zip(jet, expected, strict=True):
        torch.testing.assert_close(part, other, rtol=1e-12, atol=1e-13)
        assert not part.requires_grad


@pytest.mark.parametrize("module", MODULES, ids=repr)
def test_derivatives_are_autograds(module):
    z = points()
    assert_same(read(module)(z), by_autograd(module)(z))
    assert torch.equal(z, points())  # nothing worked in place


@pytest.mark.parametrize("module", MODULES, ids=repr)
def test_autograds_derivatives_are_difference_quotients(module):
    z, h = points(), 1e-5
    z = z[(z.abs() > 0.01) & ((z - 1.5).abs() > 0.01)]  # off the corners, and off where the steep softplus is cut
    jet = by_autograd(module)(z)
    f = lambda t: module(t.clone())  # noqa: E731
    # Truncation h^2 / 6 f''' and rounding 1e-16 / h, then 1e-16 / h^2.
    torch.testing.assert_close(jet.slope, (f(z + h) - f(z - h)) / (2 * h), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(jet.curvature, (f(z + h) - 2 * f(z) + f(z - h)) / h**2, rtol=1e-4, atol=1e-4)


def test_composition_and_scale_follow_the_chain_rule():
    z, tanh, softplus = points(), read(nn.Tanh()), read(nn.Softplus())
    assert_same(compose(tanh, softplus)(z), by_autograd(lambda t: F.softplus(torch.tanh(t)))(z))
    assert_same(scale(tanh, 0.3)(z), by_autograd(lambda t: 0.3 * torch.tanh(t))(z))


def test_a_subclass_that_computes_something_else_is_not_taken_for_its_parent():
    class Doubled(nn.Tanh):
        def forward(self, z):
            return 2 * super().forward(z)

    z = points()
    assert_same(read(Doubled())(z), by_autograd(lambda t: 2 * torch.tanh(t))(z))


@pytest.mark.parametrize("module", MODULES, ids=repr)
def test_element_wise_functions_are_recognised(module):
    assert is_elementwise(module)


@pytest.mark.parametrize(
    "module", [nn.Softmax(1), nn.LayerNorm(3), nn.GLU(), nn.Softmin(0), Elementwise(lambda z: z - z.mean())], ids=repr
)
def test_functions_of_several_numbers_are_recognised(module):
    assert not is_elementwise(module.double())
