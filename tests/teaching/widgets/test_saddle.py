"""The saddle explorer: its steps are minima of their models, its paths end where theory says, its controls move it."""

import numpy as np
import pytest
import torch

import gnewton as gn
from gnewton.teaching import SaddleExplorer
from gnewton.teaching.widgets.saddle import (
    LENGTHS,
    PLACES,
    REMEDIES,
    cubic_step,
    derivatives,
    height,
    newton,
    path,
    rule,
)
from gnewton.teaching.widgets.saddle import trust_region as in_region


@pytest.fixture(scope="module")
def widget():
    return SaddleExplorer()


def put(widget, a=0.8, b=-0.3, remedy="Newton, shortened", length=1.0):
    widget.a.value, widget.b.value, widget.remedy.value, widget.length.value = a, b, remedy, length
    assert widget.children[-1].value == ""
    return widget


def models(seed):
    draw = np.random.default_rng(seed)
    root = draw.standard_normal((3, 3))
    return draw.standard_normal(3), root + root.T


@pytest.mark.parametrize("point", [(2.0, 1.0), (0.3, -1.1), (0.0, 0.0)])
def test_the_derivatives_are_autograds(point):
    theta = torch.tensor(point, dtype=torch.float64)

    def loss(t):
        return height(t[0], t[1])

    g, H = derivatives(np.array(point))
    np.testing.assert_allclose(g, torch.autograd.functional.jacobian(loss, theta))
    np.testing.assert_allclose(H, torch.autograd.functional.hessian(loss, theta))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("radius", [1e-3, 0.3, 30.0])
def test_no_point_of_the_region_is_below_its_step(seed, radius):
    g, H = models(seed)
    step, sigma = in_region(g, H, radius)

    def q(s):
        return -s @ g + np.einsum("...i,ij,...j->...", s, H, s) / 2

    points = np.random.default_rng(1).standard_normal((2000, 3))
    points *= (radius * np.random.default_rng(2).uniform(0, 1, 2000) ** (1 / 3) / np.linalg.norm(points, axis=1))[
        :, None
    ]
    # Halving an interval a hundred times leaves roundings alone.
    assert np.linalg.norm(step) <= radius * (1 + 1e-10)
    assert q(step) <= q(points).min() + 1e-10 * abs(q(step))
    np.testing.assert_allclose(H @ step + sigma * step, g, atol=1e-8 * np.abs(g).max())


def test_in_the_hard_case_the_step_still_fills_the_region():
    g, H = derivatives(np.array([1.0, -1.0]))
    step, sigma = in_region(g, H, 2.0)
    assert np.linalg.norm(step) == pytest.approx(2.0)
    assert sigma == pytest.approx(-np.linalg.eigvalsh(H)[0])


@pytest.mark.parametrize("seed", range(3))
def test_the_cubic_term_of_the_same_sigma_takes_the_same_step(seed):
    g, H = models(seed)
    step, sigma = in_region(g, H, 0.7)
    np.testing.assert_allclose(cubic_step(g, H, 2 * sigma / 0.7), step, rtol=1e-7)


@pytest.mark.parametrize("remedy", REMEDIES)
@pytest.mark.parametrize("length", LENGTHS)
def test_every_first_step_is_as_long_as_it_may_be_and_goes_the_librarys_way(remedy, length):
    start = np.array([0.8, -0.3])
    g, H = derivatives(start)
    step = rule(remedy, start, length)(g, H)
    whole = np.linalg.norm(newton(g, H))
    expected = min(length, whole) if remedy == "Newton, shortened" else length
    assert np.linalg.norm(step) == pytest.approx(expected)


@pytest.mark.parametrize("product", [-0.5, 0.1, 0.19, 0.21, 0.5, 2.0])
def test_newton_stays_on_its_ray_and_goes_to_the_saddle_below_a_fifth(product):
    # By hand: the step multiplies (a, b) by 2p / (3p - 1), p = ab; so p -> 4p^3 / (3p - 1)^2, with fixed points 0, 1/5, 1.
    start = np.array([2.0, product / 2.0])
    points = path(start, rule("Newton, shortened", start, 1e3))
    p = points.prod(axis=1)
    np.testing.assert_allclose(p[1], 4 * p[0] ** 3 / (3 * p[0] - 1) ** 2, rtol=1e-10)
    np.testing.assert_allclose(points[1, 1] * start[0], points[1, 0] * start[1], atol=1e-10)
    assert abs(p[-1] - (0.0 if product < 0.2 else 1.0)) < 1e-6


@pytest.mark.parametrize("remedy", REMEDIES)
@pytest.mark.parametrize("corner", [(PLACES[0], PLACES[0]), (PLACES[-1], PLACES[0]), (0.0, 0.0), (1.0, 1.0)])
def test_extreme_states_draw(widget, remedy, corner):
    for length in (LENGTHS[0], LENGTHS[-1]):
        put(widget, *corner, remedy, length)
        assert f"From ({corner[0]:g}, {corner[1]:g}), {remedy}" in widget.sentence


def test_who_reaches_what_from_the_notebooks_start(widget):
    assert put(widget, remedy="Newton, shortened").sentence.endswith("at the saddle.")
    for remedy in ("trust region", "cubic term"):
        assert put(widget, remedy=remedy).sentence.endswith("at a minimum.")


def test_the_cubic_path_is_that_of_newton_step():
    start, length = np.array([0.8, -0.3]), 1.0
    step, sigma = in_region(*derivatives(start), length)
    theta, points = start, path(start, rule("cubic term", start, length))
    for expected in points[1:4]:
        g, H = derivatives(theta)
        summary = gn.Summary.from_tensors(gradient=g, hessian=H, third=[1.0, -1.0])
        theta = theta - gn.newton_step(summary, cubic=2 * sigma / np.linalg.norm(step)).learning_rates.numpy()
        np.testing.assert_allclose(expected, theta, atol=1e-9)
