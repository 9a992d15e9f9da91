"""Noise or greed: what the runs are, and what the pages say of the results."""

import math
from dataclasses import replace

import pytest
import torch

from gnewton import datasets, experiments, models
from gnewton.experiments import late
from gnewton.experiments.networks import Problem
from gnewton.experiments.protocol import Plan

TINY = Problem(
    "tiny",
    "tiny",
    lambda generator: models.perceptron([64, 4, 10], generator=generator),
    lambda: replace(data := datasets.digits(), train_x=data.train_x[:300], train_y=data.train_y[:300]),
    torch.nn.CrossEntropyLoss(),
    epochs=4,
    minutes=0,
    plateau=False,
)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(late, "NETWORKS", {"tiny": TINY})
    monkeypatch.setattr(late, "NOISE", {"no noise": "all, gradients too"})
    monkeypatch.setattr(late, "HORIZONS", {"one batch": (1, 1), "3": (3, 2)})
    monkeypatch.setattr(late, "QUESTIONS", {"tiny": ("no noise", "one batch", "3")})


def test_a_run_answers_every_question_and_is_drawn(tiny, tmp_path):
    numbers = late.measure(Plan(tmp_path, seeds=1), "typed")
    for part in ("no noise", "one batch", "3"):
        for groups in late.PARTITIONS:
            assert math.isfinite(late.mean(numbers, "tiny", part, groups)[-1])
    held = numbers["networks"]["tiny"]["parts"]["3"]
    assert [len(held[groups][0]["rates"]) for groups in late.PARTITIONS] == [4, 1]
    assert late.report(numbers).count("| tiny |") == 2
    assert set(late.figures(numbers)) == {"late"}
    # What was computed is read.
    assert late.measure(Plan(tmp_path, seeds=1), "typed")["networks"] == numbers["networks"]


def test_rates_for_three_steps_begin_where_training_with_one_group_ended():
    model, moment = late.train_with_one_group(TINY, seed=0)
    assert model.training
    assert set(moment.parameters) == set(moment.squares) == set(moment.momenta)
    again = late.train_with_one_group(TINY, seed=0)[1]
    assert all(torch.equal(p, again.parameters[name]) for name, p in moment.parameters.items())
    assert all(bool((square >= 0).all()) for square in moment.squares.values())
    assert any(bool(m.any()) for m in moment.momenta.values())


def test_what_the_page_says_of_noise_is_so():
    shipped = experiments.load("late")
    assert shipped["seeds"] == 3
    noisy = lags(shipped, "lenet", "as it is")
    assert min(noisy) > 2
    assert 15 < late.lag(shipped, "lenet", "as it is") < 25
    assert sorted(lag > 1 for lag in lags(shipped, "lenet", "all samples")) == [False, False, True]
    assert 6 < max(lags(shipped, "lenet", "all samples")) < 8
    assert 0.3 < late.lag(shipped, "lenet", "all samples") < 0.6
    # The loss of float32 is a mean of numbers of size 1e-8 there.
    assert late.mean(shipped, "lenet", "no noise", "per tensor")[6] < 1e-8
    assert all(0.7 < lag < 1.3 for lag in lags(shipped, "pooled", "as it is"))
    assert sorted(lag > 1 for lag in lags(shipped, "pooled", "all samples")) == [False, False, True]


def lags(shipped, network, part):
    """Rates per tensor over one group, at the end, seed by seed."""
    tensor, one = (shipped["networks"][network]["parts"][part][groups] for groups in late.PARTITIONS)
    return [a["losses"][-1] / b["losses"][-1] for a, b in zip(tensor, one, strict=True)]


def test_what_the_page_says_of_horizons_is_so():
    shipped = experiments.load("late")
    ends = {part: [late.mean(shipped, "pooled", part, g)[-1] for g in late.PARTITIONS] for part in late.HORIZONS}
    assert all(one < 0.004 for _, one in ends.values())
    assert all(tensor > 1.5 for part, (tensor, _) in ends.items() if part != "30")
    assert 0.7 < ends["30"][0] / ends["30"][1] < 1.2
