"""The later networks: their data and losses, and that a network is the seed's alone."""

import math

import pytest
import torch
from support.problems import unmoved_by_a_character

from gnewton.experiments import later
from gnewton.experiments.fresh import FRESH
from gnewton.experiments.later import LATER
from gnewton.experiments.networks import SIX
from gnewton.experiments.unseen import UNSEEN


@pytest.mark.parametrize("name", LATER)
def test_a_later_network_has_a_loss_on_its_data_and_is_the_seed_s_alone(name):
    problem = LATER[name]
    x, y = next(iter(problem.data().batches(4, torch.Generator().manual_seed(0))))
    losses = [
        problem.loss(problem.network(torch.Generator().manual_seed(0)).eval()(x), y).detach().item() for _ in range(2)
    ]
    assert math.isfinite(losses[0])
    assert losses[0] == losses[1]


def test_no_network_is_among_those_before():
    assert len(LATER) == 12
    assert not set(LATER) & {*SIX, *UNSEEN, *FRESH}
    titles = [problem.title for problem in (*SIX.values(), *UNSEEN.values(), *FRESH.values(), *LATER.values())]
    assert len(set(titles)) == len(titles)


def test_counts_are_whole_and_rare_digits_are_few():
    y = later.counts().train_y
    assert torch.equal(y, y.round())
    assert y.min() >= 0
    labels = later.rare().train_y
    assert (labels < 5).sum() < 0.2 * (labels >= 5).sum()
    assert set(later.inked().train_y.unique().tolist()) == {0.0, 1.0}


def test_a_causal_convolution_sees_nothing_that_comes_later():
    model = later.Causal(8)
    same = unmoved_by_a_character(model, at=20)
    assert same[:20].all()
    assert not same[20:].all()
