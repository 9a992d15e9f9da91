"""The one-sample explorer draws what the library computes, in every state of its controls."""

import base64

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.widgets import marked

import gnewton as gn
from gnewton.teaching import SampleSpectrum
from gnewton.teaching.widgets.sample_spectrum import DAMPINGS, HIDDEN, SAMPLES, STATES, shades, small_digits


@pytest.fixture(scope="module")
def widget():
    return SampleSpectrum(gn.datasets.digits())


def put(widget, state=STATES[0], sample=0, damping=0.1):
    widget.state.value, widget.sample.value, widget.damping.value = state, sample, damping
    assert widget._problem == ""
    return widget


def shown(widget):
    """How many eigenvalues are drawn below and above zero."""
    return [len(marked(widget)[name]["x"]) for name in ("eigenvalue below zero", "above zero")]


def test_the_picture_is_the_hessian_by_automatic_differentiation(widget):
    put(widget, sample=2)
    x, y = small_digits(gn.datasets.digits())
    model = widget._networks[STATES[0]]
    shapes = {name: p.shape for name, p in model.named_parameters()}

    def loss(theta):
        parts = theta.split([shape.numel() for shape in shapes.values()])
        named = {n: part.reshape(shape) for (n, shape), part in zip(shapes.items(), parts, strict=True)}
        return F.cross_entropy(torch.func.functional_call(model, named, (x[2:3],)), y[2:3])

    theta = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    expected = torch.func.hessian(loss)(theta).numpy()
    point = widget._at(STATES[0], 2)
    assert np.allclose(point.hessian, expected, atol=1e-12)
    assert marked(widget)["heat"]["shades"] == shades(point.hessian)


def test_the_picture_has_of_every_four_entries_the_largest_on_three_decades():
    half = np.array([[0.5, 0.0, 0.0, 0.0], [0.5, 0.0, 0.0, 0.0], [-0.1, 0.01, 0.0005, 0.0], [0.0, 0.0, 0.0, 0.0]])
    picture = shades(half + half.T)
    assert picture["columns"] == 2
    # 127 at the largest size, a quarter of it lower by each decade.
    assert np.frombuffer(base64.b64decode(picture["data"]), np.int8).tolist() == [127, -95, 32]


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("sample", [0, SAMPLES - 1])
def test_one_negative_eigenvalue_a_hidden_unit_until_the_damping_lifts_them(widget, state, sample):
    point = widget._at(state, sample)
    assert (point.eigenvalues < -1e-12).sum() == sum(HIDDEN)
    below = [shown(put(widget, state, sample, rho))[0] for rho in DAMPINGS[::8]]
    assert below == [int((point.eigenvalues + rho < 0).sum()) for rho in DAMPINGS[::8]]
    assert below == sorted(below, reverse=True)
    assert below[-1] == 0
    assert sum(shown(widget)) == len(point.eigenvalues)


def test_with_much_damping_both_directions_are_the_gradients_and_with_none_the_last_layer_moves(widget):
    for state in STATES:
        point = widget._at(state, 1)
        assert min(point.newton[-1], point.saddle_free[-1]) > 0.99
        assert (point.saddle_free > 0).all()
        assert (np.abs(point.newton) <= 1 + 1e-12).all()
    assert widget._at(STATES[0], 1).last[0] > 0.99


def test_a_definite_system_makes_newton_a_descent(widget):
    for sample in range(SAMPLES):
        point = widget._at(STATES[1], sample)
        definite = point.eigenvalues.min() + np.array(DAMPINGS) > 0
        assert (point.newton[definite] > 0).all()
