"""One sample at a time: the tuning and the tables on a small race, and what the page says of the shipped results."""

import math
from dataclasses import replace

import pytest

from gnewton import experiments
from gnewton.experiments import one_sample, runs
from gnewton.experiments.protocol import Plan
from gnewton.experiments.untuned import mean_loss


def test_the_digits_are_centred_pixel_by_pixel():
    data = one_sample.digits()
    assert data.train_x.mean(0).abs().max() < 1e-5
    assert abs(data.train_x.std() - 1) < 1e-3


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """One activation, forty samples, two rates, two seeds."""
    data = one_sample.digits()
    few = replace(data, train_x=data.train_x[:40], train_y=data.train_y[:40])
    entrants = {name: replace(m, settings=m.settings[2:4] or m.settings) for name, m in one_sample.ENTRANTS.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(one_sample, "digits", lambda: few)
        patch.setattr(one_sample, "ACTIVATIONS", ("tanh",))
        patch.setattr(one_sample, "LOOKS", 2)  # parts must divide the forty
        patch.setattr(one_sample, "FRESH", 1)
        patch.setattr(one_sample, "ENTRANTS", entrants)
        plan = Plan(tmp_path_factory.mktemp("one-sample"), seeds=2)
        return one_sample.measure(plan, "python -m gnewton.experiments one-sample")


def test_every_method_trains_and_the_best_of_the_tried_is_chosen(small):
    methods = small["networks"]["tanh"]["methods"]
    for method in methods.values():
        assert [run["seed"] for run in method["runs"]] == [0, 1]
        for run in method["runs"]:
            assert len(run["train_losses"]) == one_sample.EPOCHS
            assert run["train_losses"][-1] < run["first"]
        assert [run["seed"] for run in method["fresh"]] == [2]
    assert methods["exact-newton"]["tuning"] == []
    for name in ("sgd", "adam"):
        losses = {entry["validation_loss"]: entry["settings"] for entry in methods[name]["tuning"]}
        assert len(losses) == 2
        assert methods[name]["settings"] == losses[min(losses)]


def test_the_table_has_a_line_for_each_and_the_verdict_counts(small):
    shown = one_sample.report(small)
    assert sum(line.startswith("| 64-64-10, tanh") for line in shown.splitlines()) == 3
    assert "of 2 runs" in shown
    assert one_sample.figures(small)["one-sample"].axes


def test_the_leader_has_the_lowest_mean():
    def entry(*losses):
        return {"runs": [{"train_losses": [loss], "diverged": math.isinf(loss)} for loss in losses]}

    one = {"methods": {"sgd": entry(0.2, 0.2), "adam": entry(0.1, 0.3), "exact-newton": entry(0.01, math.inf)}}
    assert one_sample.leader(one, 1) == one_sample.ENTRANTS["adam"].title


# -- what is shipped, and what the book says of it ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped():
    return experiments.load("one-sample")["networks"]


def test_what_the_page_says_of_the_four_activations_is_so(shipped):
    assert tuple(shipped) == one_sample.ACTIVATIONS
    for name, one in shipped.items():
        methods = {m: entry["runs"] for m, entry in one["methods"].items()}
        first = {m: sum(run["first"] for run in some) for m, some in methods.items()}
        assert (min(first, key=first.get) == "exact-newton") == (name != "relu")
        for epoch in (1, 2, 3):
            losses = {m: mean_loss(some, epoch) for m, some in methods.items()}
            leads = name == "tanh" or (name == "sigmoid" and epoch < 3)
            assert (min(losses, key=losses.get) == "exact-newton") == leads
            assert (min(losses, key=losses.get) == "adam") >= (name == "softplus" and epoch == 1)
            assert name != "relu" or losses["sgd"] < losses["exact-newton"]
        seconds = {m: sum(run["cpu_seconds"][-1] for run in some) for m, some in methods.items()}
        assert 2.5 < seconds["exact-newton"] / seconds["adam"] < seconds["exact-newton"] / seconds["sgd"] < 5.5
        assert all(one_sample.in_time(run) for some in methods.values() for run in some)
        reached = {m: one_sample.accuracies(some) for m, some in methods.items()}
        assert reached["exact-newton"].mean() > one_sample.WANTED
        assert all(abs(reached["exact-newton"].mean() - reached[m].mean()) < 0.02 for m in ("sgd", "adam"))
    assert _held(shipped, "runs")["exact-newton"] == 19


def _held(shipped, part):
    """In how many runs the accuracy is held at the end of the second epoch."""
    ends = {
        m: [one_sample.accuracies(one["methods"][m][part]) for one in shipped.values()] for m in one_sample.ENTRANTS
    }
    return {m: sum(int((some >= one_sample.WANTED).sum()) for some in accuracies) for m, accuracies in ends.items()}


def test_further_seeds_reach_the_accuracy_as_the_page_says(shipped):
    fresh = {m: [run for one in shipped.values() for run in one["methods"][m]["fresh"]] for m in one_sample.ENTRANTS}
    assert {len(some) for some in fresh.values()} == {4 * one_sample.FRESH}
    used = {run["seed"] for one in shipped.values() for run in one["methods"]["exact-newton"]["runs"]}
    assert used.isdisjoint(run["seed"] for run in fresh["exact-newton"])
    reached = {m: sum(map(one_sample.in_time, some)) for m, some in fresh.items()}
    assert reached == {"exact-newton": 80, "sgd": 79, "adam": 79}
    assert _held(shipped, "fresh") == {"exact-newton": 79, "sgd": 73, "adam": 69}


def test_a_shipped_run_is_found_again(shipped):
    problem, method = one_sample._problem("tanh"), one_sample.ENTRANTS["exact-newton"]
    again = runs.train(problem, one_sample.digits(), method, {}, 0, 1)
    ends = [run["train_losses"][0] for run in shipped["tanh"]["methods"]["exact-newton"]["runs"]]
    slack = max(ends) - min(ends)
    assert min(ends) - slack <= again["train_losses"][-1] <= max(ends) + slack
