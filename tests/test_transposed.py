"""Transposed convolutions with an output padding are torch's own in value and gradient, and have all derivatives.

Values differ by the order in which some tens of products are added: 1e-12 of the largest.
"""

import itertools

import pytest
import torch
from support.finite_differences import finite_differences
from torch import nn

import gnewton as gn
from gnewton.elementary import Elementary

DTYPE = torch.float64
OPTIONS = {
    "stride": [2, 3],
    "padding": [0, 1, 2],
    "output_padding": [1, (1,)],
    "groups": [1, 2],
    "dilation": [1, 2],
    "bias": [True, False],
}
NAMES = {"torch": torch.conv_transpose2d, "aten": torch.ops.aten.conv_transpose2d}


def drawn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)), dtype=DTYPE, requires_grad=True)


def own_and_written_out(function, tensors):
    plain = function(*tensors)
    with Elementary():
        opened = function(*tensors)
    used = [t for t in tensors if t is not None]
    slopes = [torch.autograd.grad(y.sin().sum(), used) for y in (plain, opened)]
    return zip((plain, *slopes[0]), (opened, *slopes[1]), strict=True)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_values_and_gradients_are_torchs(axes):
    for values in itertools.product(*OPTIONS.values()):
        chosen = dict(zip(OPTIONS, values, strict=True))
        bias = drawn(4) if chosen.pop("bias") else None
        function = getattr(torch, f"conv_transpose{axes}d")
        weight = drawn(2, 4 // chosen["groups"], *[3] * axes)
        for x in (drawn(2, *[3] * axes), drawn(3, 2, *[3] * axes)):
            pairs = own_and_written_out(lambda *t: function(*t, **chosen), (x, weight, bias))  # noqa: B023 - called at once
            for own, got in pairs:
                torch.testing.assert_close(got, own, rtol=1e-12, atol=1e-12)


REFUSED = {
    "as long as the stride": {"stride": 2, "output_padding": 2},
    "negative": {"stride": 2, "output_padding": -1},
    "too many axes": {"stride": 2, "output_padding": (1, 1, 1)},
    "too many strides": {"stride": (2, 2, 2), "output_padding": 1},
    "too short a bias": {"stride": 2, "output_padding": 1, "bias": torch.ones(1, dtype=DTYPE)},
    "no fitting groups": {"stride": 2, "output_padding": 1, "groups": 2},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_torch_refuses_is_refused_with_its_words(name):
    def message():
        with pytest.raises((RuntimeError, ValueError)) as error:
            torch.conv_transpose2d(drawn(1, 3, 3, 3), drawn(3, 2, 3, 3), **REFUSED[name])
        return str(error.value)

    own = message()
    with Elementary():
        assert message() == own


def decoder(function=torch.conv_transpose2d):
    torch.manual_seed(0)
    first, kernel = nn.Conv2d(2, 3, 1, dtype=DTYPE), nn.Parameter(0.3 * torch.randn(3, 2, 3, 3, dtype=DTYPE))
    bias, x = nn.Parameter(torch.randn(2, dtype=DTYPE)), torch.randn(2, 2, 3, 3, dtype=DTYPE)
    named = {"first": first.weight, "kernel": kernel, "bias": bias}
    partition = gn.Partition.from_groups({name: {name: p} for name, p in named.items()})
    u = {name: torch.randn_like(p) for name, p in partition.parameters.items()}

    def loss():
        hidden = function(first(x).tanh(), kernel, bias, [2, 2], [1, 1], [1, 1])
        return hidden.tanh().square().mean()

    return loss, partition, u


@pytest.mark.parametrize("engine", ["tape", "nested"])
@pytest.mark.parametrize("name", NAMES)
def test_all_orders_agree_with_differences_of_torchs_gradients(name, engine):
    loss, partition, u = decoder(NAMES[name])
    got, expected = gn.summarize(loss, partition, u, engine=engine), finite_differences(loss, partition, u)
    for one, other in ((got.hessian, expected.hessian), (got.third, expected.third)):
        assert (one - other.value).abs().max() <= 1e-7 * other.scale + 10 * float(other.error.max())


def test_the_control_torchs_own_has_no_third_derivative():
    loss, partition, u = decoder()
    with pytest.raises(RuntimeError, match="output_padding is not supported"):
        gn.derivatives.nested.summary(loss(), partition, u, full_third=True)


def test_a_kernel_that_is_reached_in_another_way_is_refused_by_name():
    def by_convolution(x, w, b, stride, padding, more):
        return torch.convolution(x, w, b, stride, padding, [1, 1], True, more, 1)

    loss, partition, u = decoder(by_convolution)
    with pytest.raises(NotImplementedError, match="output_padding"):
        gn.summarize(loss, partition, u, engine="nested", full_third=True)
