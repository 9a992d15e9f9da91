"""The networks of small batches: their data and losses, and that a network is the seed's alone."""

import math

import pytest
import torch
from support.problems import unmoved_by_a_character

from gnewton.experiments import small_batches
from gnewton.experiments.calibrated import DOZENS
from gnewton.experiments.small_batches import SMALL_BATCHES


@pytest.mark.parametrize("name", SMALL_BATCHES)
def test_a_network_of_small_batches_has_a_loss_on_its_data_and_is_the_seed_s_alone(name):
    problem = SMALL_BATCHES[name]
    x, y = next(iter(problem.data().batches(problem.batch, torch.Generator().manual_seed(0))))
    losses = [
        problem.loss(problem.network(torch.Generator().manual_seed(0)).eval()(x), y).detach().item() for _ in range(2)
    ]
    assert len(x) == problem.batch
    assert 8 <= problem.batch <= 32
    assert math.isfinite(losses[0])
    assert losses[0] == losses[1]


def test_no_network_is_in_two_dozens():
    assert [len(dozen) for dozen in DOZENS.values()] == [12, 12, 12, 12]
    problems = [problem for dozen in DOZENS.values() for problem in dozen.values()]
    assert len({name for dozen in DOZENS.values() for name in dozen}) == len({p.title for p in problems}) == 48


def test_a_convolution_over_characters_sees_nothing_that_comes_later():
    model = small_batches.Convolved(8)
    same = unmoved_by_a_character(model, at=20)
    assert same[:20].all()
    assert not same[20:25].any()
    assert same[25:].all()
