"""The twins: their runs agree with runs of the library made in another way, and every control shows its own pair."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.widgets import drawn_data
from torch import nn
from torch.nn.utils import parametrize

import gnewton as gn
from gnewton.teaching import InvarianceTwins
from gnewton.teaching.widgets.invariance import FACTORS, METHODS, PLACES, STEPS, Rescaled, losses


@pytest.fixture(scope="module")
def twins():
    return InvarianceTwins(*drawn_data())


def put(widget, method="GroupedNewton", factor=3.0, scaled="the first layer"):
    widget.method.value, widget.factor.value, widget.scaled.value = method, factor, scaled
    return widget


def apart(widget):
    one, two, _, apart = (numbers.get("y") for numbers in widget.now.numbers)
    np.testing.assert_allclose(apart, np.maximum(np.abs(two - one) / one, 1e-16))
    return np.abs(two - one) / one


@pytest.mark.parametrize("factor", FACTORS)
def test_one_scale_per_group_changes_no_loss_of_ours(twins, factor):
    # Roundings of 1e-16 grow along 25 steps of a network that trains: by measurement, to less than 1e-8.
    assert apart(put(twins, factor=factor)).max() < 1e-8
    assert "the same loss, to rounding" in twins.sentence


@pytest.mark.parametrize("factor", [a for a in FACTORS if a != 1])
@pytest.mark.parametrize("method", [m for m in METHODS if m != "GroupedNewton"])
def test_it_changes_the_losses_of_the_others(twins, method, factor):
    assert apart(put(twins, method, factor)).max() > 1e-2
    assert "for the twin" in twins.sentence


@pytest.mark.parametrize("factor", [a for a in FACTORS if a != 1])
def test_two_scales_inside_one_group_change_ours_too(twins, factor):
    assert apart(put(twins, factor=factor, scaled="every second row of it")).max() > 1e-2


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scaled", PLACES)
def test_the_factor_1_is_no_change(twins, method, scaled):
    assert (apart(put(twins, method, 1.0, scaled)) == 0).all()


class Times(nn.Module):
    def __init__(self, a):
        super().__init__()
        self.a = a

    def forward(self, theta):
        return self.a * theta

    def right_inverse(self, value):
        return value / self.a


def test_the_twin_is_torchs_own_parametrization():
    x, y = drawn_data()
    model = gn.models.perceptron([5, 8, 10], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parametrize.register_parametrization(model[0], "weight", Times(3.0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    curve = []
    for _ in range(STEPS + 1):
        loss = F.cross_entropy(model(x), y)
        curve.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    np.testing.assert_allclose(losses(x, y, METHODS["SGD"], 3.0, "the first layer"), curve, rtol=1e-9)


def test_a_rescaled_model_is_the_same_function_and_holds_its_parameters():
    x, _ = drawn_data()
    model = gn.models.perceptron([5, 4, 3], dtype=torch.float64)
    rows = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    twin = Rescaled(model, {"0.weight": rows, "2.bias": 0.5})
    torch.testing.assert_close(twin(x), model(x))
    assert [name for name, _ in twin.named_parameters()] == ["0_weight", "0_bias", "2_weight", "2_bias"]
    for name, p in model.named_parameters():
        torch.testing.assert_close(twin.theta[name], p)
    torch.testing.assert_close(rows * twin.get_parameter("0_weight"), model[0].weight)


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"expected names among \['0.weight', '0.bias'\], got \['1.weight'\]"):
        Rescaled(gn.models.perceptron([3, 2]), {"1.weight": 2.0})
