"""What the explorer of deep networks draws is what the library computes for such a network, and every control shows its own."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.widgets import marked

import gnewton as gn
from gnewton.teaching import DeepRates
from gnewton.teaching.widgets.deep_rates import DEPTHS, KINDS, MOMENTS, QUANTITIES, layers_of, network

SIZES = {"width": 6, "samples": 40, "epochs": 1}


@pytest.fixture(scope="module")
def data():
    return gn.datasets.digits(dtype=torch.float64)


@pytest.fixture(scope="module")
def widget(data):
    return DeepRates(data, **SIZES)


def put(widget, depth=20, gain=1.0, moment=MOMENTS[0], quantity="η*"):
    widget.depth.value, widget.gain.value = depth, gain
    widget.moment.value, widget.quantity.value = moment, quantity
    assert widget._problem == ""
    return widget


def shown(widget, kind):
    """layer -> the signed value that its mark stands for."""
    marks = {}
    for label, sign in ((kind, 1), (f"{kind}, negative", -1)):
        x, y = marked(widget)[label].values()
        marks |= dict(zip(x.tolist(), sign * y, strict=True))
    return [marks[layer] for layer in sorted(marks)]


def test_what_it_draws_at_the_start_is_the_summary_and_the_step_of_the_initial_network(data, widget):
    model = network(5, 1.5, SIZES["width"], 64)
    partition = gn.Partition.by_tensor(model)

    def loss():
        return F.cross_entropy(model(data.train_x[:40]), data.train_y[:40])

    u = gn.direction.gradient(loss, partition)
    summary = gn.summarize(loss, partition, u, order=3)
    lengths = torch.tensor([v.norm() for v in u.values()], dtype=torch.float64)
    curved = summary.hessian.diagonal() / lengths**2
    expected = {
        "gradient": lengths,
        "curvature": curved,
        "own rate": 1 / curved,
        "η*": gn.newton_step(summary, cubic=1.0).learning_rates,
    }
    for quantity, values in expected.items():
        put(widget, 5, 1.5, quantity=quantity)
        for offset, kind in enumerate(KINDS):
            np.testing.assert_allclose(shown(widget, kind), values[offset::2], rtol=1e-8)
    weights = summary.hessian[::2, ::2]
    root = weights.diagonal().abs().sqrt()
    np.testing.assert_allclose(marked(widget)["heat"]["z"], weights / root / root[:, None], rtol=1e-8)


def test_at_gain_1_the_network_is_the_librarys_own():
    library = gn.models.perceptron(
        [64, 6, 6, 10], "tanh", generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    ours = [network(2, gain, 6, 64).state_dict() for gain in (1.0, 0.7)]
    for name, p in library.state_dict().items():
        torch.testing.assert_close(ours[0][name], p)
        torch.testing.assert_close(ours[1][name], 0.7 * p)


def test_after_training_the_loss_is_lower_and_the_layers_are_others(widget):
    put(widget, 5)
    before = shown(widget, "weight")
    put(widget, 5, moment=MOMENTS[1])
    assert not np.allclose(before, shown(widget, "weight"), rtol=1e-2)


def test_rates_follow_the_units_of_the_layers(data):
    # theta = a theta~ with a = 1 / sqrt fan_in for the weights: rates are divided by a², interactions stay.
    plain = network(3, 1.0, 6, 64)
    twin = gn.models.perceptron([64, 6, 6, 6, 10], "tanh", dtype=torch.float64, scaling=True)
    fan_in = np.array([layer.weight.shape[1] for layer in plain[::2]])
    for layer, other in zip(plain[::2], twin[::2], strict=True):
        other.load_state_dict({"weight": layer.weight * layer.weight.shape[1] ** 0.5, "bias": layer.bias})
    one, two = (layers_of(model, data, 40) for model in (plain, twin))
    for quantity, power in {"gradient": -0.5, "curvature": -1.0, "own rate": 1.0, "η*": 1.0}.items():
        # The step solves an indefinite system of eight equations: more roundings than the rest.
        values, expected = two.quantities[quantity], one.quantities[quantity]
        np.testing.assert_allclose(values["weight"], expected["weight"] * fan_in**power, rtol=1e-6)
        np.testing.assert_allclose(values["bias"], expected["bias"], rtol=1e-6)
    np.testing.assert_allclose(two.interactions, one.interactions, rtol=1e-8)


@pytest.mark.parametrize("depth", DEPTHS)
def test_every_layer_has_its_marks_inside_the_picture(widget, depth):
    for quantity in QUANTITIES:
        put(widget, depth, quantity=quantity)
        left, right = widget.scene.panels_of(widget.now)
        for kind in KINDS:
            values = np.abs(shown(widget, kind))
            assert len(values) == depth + 1
            assert left.y.limits[0] < values.min() <= values.max() < left.y.limits[1]
        assert len(right.x.names) == len(right.y.names) == depth + 1
        assert marked(widget)["heat"]["z"].shape == (depth + 1, depth + 1)


def test_the_sentence_counts_what_is_drawn_open(widget):
    put(widget)
    below = sum(value < 0 for value in shown(widget, "weight"))
    assert f"{below} of 21 negative" in widget.sentence
