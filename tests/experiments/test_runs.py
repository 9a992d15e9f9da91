"""A run is determined by its seed, the same start and batches for every method, and its file is whole or absent."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.race import TINY, digits, method, seeded
from torch import nn

from gnewton.experiments import report, runs
from gnewton.experiments.methods import METHODS

INSTALLED = [one for one in METHODS.values() if one.installed]


def train(one, seed=0, problem=TINY, **options):
    return runs.train(problem, problem.data(), one, one.settings[0], seed, problem.epochs, **options)


@pytest.mark.parametrize("one", INSTALLED, ids=lambda one: one.name)
def test_the_same_seed_gives_the_same_losses(one):
    first, second = (train(one) for _ in range(2))
    assert first["losses"] == second["losses"]
    assert first["test_losses"] == second["test_losses"]
    assert first["losses"] != train(one, seed=1)["losses"]


@pytest.mark.parametrize("one", INSTALLED, ids=lambda one: one.name)
def test_every_method_starts_from_the_same_loss_and_takes_as_many_steps(one):
    run, reference = train(one), train(METHODS["sgd"])
    # The first loss is that of the same network on the same mini-batch, whoever computes it.
    assert run["losses"][0] == pytest.approx(reference["losses"][0], rel=1e-6)
    assert len(run["losses"]) == TINY.epochs * 4 or run["diverged"]


def test_every_method_sees_the_same_batches(monkeypatch):
    seen = []
    fit = runs.fit

    def watched(model, optimizer, loader, *rest, **options):
        batches = list(loader)
        seen.append(torch.cat([x for x, _ in batches]))
        return fit(model, optimizer, batches, *rest, **options)

    monkeypatch.setattr(runs, "fit", watched)
    orders = []
    for name in ("sgd", "grouped-newton"):
        seen.clear()
        train(METHODS[name])
        orders.append(torch.cat(seen))
    torch.testing.assert_close(orders[0], orders[1], rtol=0, atol=0)


def test_clocks_and_measures_have_one_entry_each():
    run = train(METHODS["adam"], problem=digits())
    assert len(run["losses"]) == len(run["seconds"]) == 15
    assert all(a < b for a, b in itertools.pairwise(run["seconds"]))
    assert run["epoch_steps"] == [15]
    for name in ("cpu_seconds", "train_losses", "train_accuracies", "test_losses", "test_accuracies"):
        assert len(run[name]) == 1, name
    assert 0 < run["test_accuracies"][0] < 1


def normed(generator):
    with torch.random.fork_rng():
        torch.manual_seed(generator.initial_seed())
        return nn.Sequential(nn.Linear(64, 8, bias=False), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 10))


def test_renewed_statistics_are_those_of_the_batches_and_touch_nothing():
    model = normed(seeded()).double()
    x = torch.randn(120, 64, dtype=torch.float64, generator=seeded(1))
    running = {name: value.clone() for name, value in model.state_dict().items()}
    twin = runs.renew_statistics(model, x.chunk(3))
    model(x)  # still in training mode
    # Batches of equal size: the mean of their means is the mean of all.
    torch.testing.assert_close(twin[1].running_mean, model[0](x).mean(0))
    for name in ("0.weight", "1.weight", "3.weight"):
        torch.testing.assert_close(model.state_dict()[name], running[name], rtol=0, atol=0)
    assert model.training
    assert not twin.training
    assert model[1].num_batches_tracked == 1  # by the one call above, none by the renewal


def test_a_network_with_batch_norm_is_measured_with_renewed_statistics_too():
    problem = replace(digits(), network=normed, epochs=2)
    run = train(METHODS["sgd"], problem=problem)
    assert len(run["renewed_losses"]) == len(run["train_losses"]) == 2
    assert run["renewed_losses"] != run["train_losses"]
    assert "renewed_losses" not in train(METHODS["sgd"])


def test_tuning_measures_the_end_alone():
    run = train(METHODS["sgd"], thorough=False)
    assert (len(run["test_losses"]), len(run["epoch_steps"])) == (1, 2)
    assert run["test_losses"][-1] == train(METHODS["sgd"])["test_losses"][-1]


def test_a_run_that_diverges_says_so_and_is_valid_json():
    run = train(method("sgd", {"lr": 1e20}))
    assert run["diverged"]
    assert "finite" in run["reason"]
    assert len(run["losses"]) < TINY.epochs * 4
    json.dumps(run, allow_nan=False)


def test_seconds_add_up_over_epochs():
    run = train(METHODS["sgd"])
    assert np.all(np.diff(run["seconds"]) > 0)
    assert np.all(np.diff(run["cpu_seconds"]) >= 0)


def test_another_key_is_another_run(tmp_path):
    count = itertools.count()
    keys = [{"method": "sgd", "seed": 0, "epochs": epochs} for epochs in (1, 2, 1)]
    values = [runs.load_or_compute(tmp_path, key, lambda: {"n": next(count)})["n"] for key in keys]
    assert values == [0, 1, 0]


OTHERS = {
    "threads": (report, "_threads", lambda: 99),
    "processor": (report, "_processor", lambda: "another"),
    "cores": (report.os, "cpu_count", lambda: 99),
    "Python": (report.platform, "python_version", lambda: "3.99"),
    "a package": (report, "_version", lambda package: "99.0"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_what_the_facts_state_is_what_a_run_was_made_with(tmp_path, monkeypatch, other):
    count, key = itertools.count(), {"method": "sgd", "seed": 0}

    def value():
        return runs.load_or_compute(tmp_path, key, lambda: {"n": next(count)})["n"]

    first, before = value(), report.facts("")
    with monkeypatch.context() as patch:
        patch.setattr(*OTHERS[other])
        assert report.facts("") != before
        assert value() == 1
    assert value() == first == 0


@pytest.mark.parametrize("content", ["", "{", "null", "[]", "{}", '{"run": null}', '{"run": 3}', "[" * 100_000, "\xff"])
def test_a_damaged_file_is_made_anew(tmp_path, content):
    count, key = itertools.count(), {"method": "sgd", "seed": 0}

    def value():
        return runs.load_or_compute(tmp_path, key, lambda: {"n": next(count)})["n"]

    assert [value(), value()] == [0, 0]
    (file,) = tmp_path.iterdir()
    file.write_bytes(content.encode("latin-1"))
    assert [value(), value()] == [1, 1]
