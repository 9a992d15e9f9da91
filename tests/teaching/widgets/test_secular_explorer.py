"""The secular explorer: curve and line meet at the step of newton_step, in the easy and in the hard case."""

import numpy as np
import pytest

from gnewton.teaching import SecularExplorer
from gnewton.teaching.widgets.secular_explorer import ALONG, HIGHEST, LOWEST, STRENGTHS, lengths, model


@pytest.fixture(scope="module")
def widget():
    return SecularExplorer()


def put(widget, lowest=-1.0, along=1.0, strength=2.0):
    widget.lowest.value, widget.along.value, widget.strength.value = lowest, along, strength
    assert widget.children[-1].value == ""
    return widget


@pytest.mark.parametrize("lowest", LOWEST[::2])
@pytest.mark.parametrize("along", [ALONG[0], ALONG[1], ALONG[-1]])
def test_the_root_lies_on_the_line_right_of_the_pole_and_on_the_curve_but_for_the_hard_case(widget, lowest, along):
    for strength in (STRENGTHS[0], STRENGTHS[-1]):
        put(widget, lowest, along, strength)
        ((sigma, length),) = widget._root.get_xydata()
        assert length == pytest.approx(2 * sigma / strength)
        assert sigma >= -lowest * (1 - 1e-9)
        curve = lengths(np.array([sigma]), np.array([lowest, HIGHEST]), np.array([along, 1.0]))[0]
        hard = "HARD_CASE" in widget.sentence
        # Near the pole the curve is steep: a rounding of sigma becomes one of sigma over the distance to the pole.
        assert curve <= length * (1 + 1e-9) if hard else curve == pytest.approx(length, rel=1e-6)
        assert hard <= (along == 0 and lowest < 0)


@pytest.mark.parametrize("state", [{}, {"along": 0.0}, {"lowest": 1.5}, {"strength": 8.0, "along": 2.0}])
def test_no_point_in_view_is_below_the_minima(widget, state):
    put(widget, **state)
    minima = widget._minima.get_xydata()
    arguments = np.array([widget.lowest.value, HIGHEST]), np.array([widget.along.value, 1.0]), widget.strength.value
    p, q = np.meshgrid(np.linspace(-5, 5, 201), np.linspace(-3, 3, 121))
    least = [model(*y, *arguments) for y in minima]
    assert len(least) == (2 if state == {"along": 0.0} else 1)
    assert max(least) <= model(p, q, *arguments).min() + 1e-9


def test_the_curve_ends_at_the_pole_and_the_hard_case_leaves_it(widget):
    put(widget, along=0.0)
    curve, minima = widget._curve.get_xydata(), widget._minima.get_xydata()
    assert np.abs(curve[:, 0]).max() == 0
    np.testing.assert_allclose(minima[0] * [-1, 1], minima[1])
    assert np.abs(minima[:, 0]).min() > 0.5
