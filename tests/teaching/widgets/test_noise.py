"""What the explorer draws are summaries of mini-batches as the library computes them, and every control shows its own."""

import numpy as np
import pytest
import torch
from support.widgets import marked, noisy

import gnewton as gn
from gnewton.teaching import NoiseExplorer
from gnewton.teaching.widgets.noise import DRAWS, PARTS, QUANTITIES, scatter, spread

PARTS_OF_SIX, PARTITION, U, LOSS = noisy()


def explorer(**state):
    return NoiseExplorer(PARTS_OF_SIX, PARTITION.names, part=6, **{"batch": 60} | state)


def dots(widget):
    return np.stack([numbers["x"] for numbers in widget.now.numbers[: len(PARTITION)]])


def test_a_mean_of_parts_is_the_summary_of_their_union():
    rows = torch.arange(240).reshape(40, 6)[[3, 8, 21]].flatten()
    union = gn.summarize(lambda: LOSS(rows), PARTITION, U)
    mean = sum((PARTS_OF_SIX[i] for i in (8, 21)), PARTS_OF_SIX[3]) * (1 / 3)
    for a, b in zip(mean.tensors(), union.tensors(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("strength", [0.1, 1.0, 10.0])
def test_one_draw_is_what_the_library_computes(strength):
    drawn = torch.Generator().manual_seed(0)
    for k in PARTS[:2]:
        rows = torch.randint(40, (DRAWS, k), generator=drawn)
    batch = torch.arange(240).reshape(40, 6)[rows[7]].flatten()
    here, whole = (gn.summarize(f, PARTITION, U) for f in (lambda: LOSS(batch), LOSS))
    ratios = {name: values[1, 7] for name, values in scatter(PARTS_OF_SIX, strength).items()}
    np.testing.assert_allclose(ratios["g-bar"], here.gradient / whole.gradient)
    np.testing.assert_allclose(ratios["diagonal of H-bar"], here.hessian.diagonal() / whole.hessian.diagonal())
    rates = [gn.newton_step(s, cubic=strength).learning_rates for s in (here, whole)]
    np.testing.assert_allclose(ratios["η*"], rates[0] / rates[1], rtol=1e-6)


@pytest.mark.parametrize("quantity", ["g-bar", "diagonal of H-bar"])
def test_what_is_linear_in_the_data_is_unbiased_and_narrows_as_the_root(quantity):
    values = scatter(PARTS_OF_SIX, 1.0)[quantity]
    deviation = values.std(axis=1)
    # Five standard errors of a mean of sixty.
    assert (np.abs(values.mean(axis=1) - 1) < 5 * deviation / np.sqrt(DRAWS)).all()
    # A standard deviation of sixty draws is itself known to a tenth; PARTS go from 1 to 100, a root of 10.
    np.testing.assert_allclose(deviation[0] / deviation[-1], 10, rtol=0.5)


def test_the_strength_concerns_the_step_alone():
    widget = explorer(quantity="g-bar")
    before = dots(widget)
    widget.strength.value = 10.0
    np.testing.assert_array_equal(dots(widget), before)


def test_what_is_far_away_stays_at_the_edge():
    widget = explorer(batch=6, quantity="η*")
    low, high = widget.scene.panels[0].x.limits
    assert (dots(widget) >= low).all()
    assert (dots(widget) <= high).all()
    assert dots(widget).max() == high


def test_the_marked_size_has_the_spread_of_the_dots():
    widget = explorer(batch=600, quantity="g-bar")
    inside = dots(widget)
    assert np.abs(inside - 1).max() < 2.4  # none at the edge
    size = widget._sizes.index(600)
    drawn = [marked(widget)[name]["y"][size] for name in PARTITION.names]
    np.testing.assert_allclose(drawn, spread(inside.T[None])[0])
    assert marked(widget)["this size"] == {"at": 600}
    assert widget.quantity.options == QUANTITIES


def test_a_group_that_does_not_move_is_refused():
    still = gn.Summary.from_tensors(gradient=[1.0, 0.0], hessian=np.eye(2), third=[1.0, 1.0])
    with pytest.raises(ValueError, match=r"g-bar = 0 for \['b'\]"):
        NoiseExplorer([still, still], names=["a", "b"], part=10)
