"""The arithmetic of the untuned runs on made-up numbers, a small race, the twins, and what the page says of the results."""

import math
from dataclasses import replace

import numpy as np
import pytest
from support.race import RESULTS, digits

from gnewton import experiments
from gnewton.experiments import twins, untuned
from gnewton.experiments.methods import ADAPTIVE, METHODS, UNTUNED
from gnewton.experiments.networks import SIX
from gnewton.experiments.protocol import Plan
from gnewton.experiments.unseen import UNSEEN


def run(losses, seconds=None, diverged=False):
    return {
        "train_losses": list(losses),
        "test_losses": list(losses),
        "cpu_seconds": list(seconds or range(1, len(losses) + 1)),
        "diverged": diverged,
    }


def test_a_geometric_mean_does_not_see_the_unit():
    generator = np.random.default_rng(0)
    losses = generator.uniform(0.01, 1.0, (5, 4))
    mean = untuned.mean_loss([run(row) for row in losses], 3)
    assert untuned.mean_loss([run(7 * row) for row in losses], 3) == pytest.approx(7 * mean, rel=1e-12)
    assert losses[:, 2].min() < mean < losses[:, 2].max()


def test_a_run_that_diverged_has_no_finite_mean():
    assert untuned.mean_loss([run([0.1]), run([0.2], diverged=True)], 1) == math.inf
    assert untuned.loss_after(run([]), 3) == math.inf
    assert untuned.loss_after(run([0.5, None]), 2) == math.inf


def test_the_time_to_a_loss_lies_between_the_epochs_that_enclose_it():
    runs = [run([1.0, 0.25, 0.3, 0.01], seconds=[2.0, 4.0, 6.0, 8.0])]
    assert untuned.seconds_to(runs, 0.5) == pytest.approx(3.0)  # half way down, on a logarithmic axis
    assert untuned.seconds_to(runs, 0.25) == pytest.approx(4.0)
    assert untuned.seconds_to(runs, 2.0) == 2.0  # no earlier measurement than the first
    assert untuned.seconds_to(runs, 0.001) == math.inf
    times = [untuned.seconds_to(runs, loss) for loss in (0.9, 0.5, 0.26, 0.2, 0.05)]
    assert times == sorted(times)


def test_a_network_against_itself_has_the_ratio_one():
    runs = [run([0.5, 0.2, 0.1, 0.05, 0.04, 0.03])]
    peer = {f"for {budget} epochs": {"lr": 0.1, "runs": runs} for budget in untuned.BUDGETS}
    assert untuned.ratios({"adaptive": runs, "adam": peer, "sgd": peer}) == {"after 3": 1, "after 10": 1, "time": 1}


def test_renewed_results_differ_by_nothing_but_the_statistics():
    runs = [run([0.5, 0.2, 0.1, 0.05]) | {"renewed_losses": [0.4, 0.1, 0.05, 0.025]}]
    peer = {f"for {budget} epochs": {"lr": 0.1, "runs": runs} for budget in untuned.BUDGETS}
    one = {"title": "a network", "adaptive": runs, "one-group": runs, "adam": peer, "sgd": peer}
    renewed = untuned.with_renewed_statistics(one)
    assert "renewed" in renewed["title"]
    for some in (renewed["adaptive"], renewed["one-group"], renewed["sgd"]["for 3 epochs"]["runs"]):
        assert untuned.mean_loss(some, 3) == pytest.approx(0.05)
    assert untuned.mean_loss(one["adaptive"], 3) == pytest.approx(0.1)
    assert untuned.with_renewed_statistics(one | {"adaptive": [run([0.5])]}) is None


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """One small network, two rates, two seeds, two epochs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(untuned, "SIX", {"tanh": replace(digits(), epochs=2, curvature=60, plateau=False)})
        patch.setattr(untuned, "RATES", {"adam": (1e-3, 1e-2), "sgd": (1e-2, 1e5)})
        losses = twins.losses
        patch.setattr(twins, "losses", lambda epochs: losses(epochs=1))
        yield untuned.measure(Plan(tmp_path_factory.mktemp("untuned"), seeds=2), "a command")


def test_every_method_runs_and_a_rate_that_explodes_is_not_chosen(small):
    one = small["networks"]["tanh"]
    assert len(one["adaptive"]) == len(one["one-group"]) == 2
    assert small["setting"] == UNTUNED[0] | ADAPTIVE | {
        "direction": "RMSprop",
        "momentum": 0.9,
        "curvature_batch": 60,
        "batch": 100,
    }
    for name in untuned.RATES:
        for budget in untuned.BUDGETS:
            tuned = one[name][f"for {budget} epochs"]
            assert [len(entry["train_losses"]) for entry in tuned["runs"]] == [2, 2]
            assert tuned["lr"] < 1
    assert len(one["sgd"]["validation"]) == 2


def test_the_report_names_every_network_and_counts(small):
    text = untuned.report(small)
    assert small["networks"]["tanh"]["title"] in text
    assert "0 of 2 runs of the adaptive step diverged" in text


# -- twins ----------------------------------------------------------------------------------------------------------------


def test_units_drop_out_of_our_steps_and_not_out_of_the_peers():
    measured = twins.losses(epochs=2)
    for name, curves in measured.items():
        # Roundings of float64 grow while it trains, from 1e-16; curves are kept to eight digits.
        same = twins.apart(curves["scaled"], curves["plain"])
        assert same < 1e-6 if name.startswith("GroupedNewton") else same > 0.1
        assert curves["plain"][-1] < 0.5 * curves["plain"][0]


# -- what is shipped, and what the book says of it ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped():
    return experiments.load("untuned", RESULTS)


def test_what_the_page_says_of_the_six_networks_is_so(shipped):
    ratios = {name: untuned.ratios(one) for name, one in shipped["networks"].items()}
    assert set(ratios) == set(SIX)
    assert not any(entry["diverged"] for one in shipped["networks"].values() for entry in one["adaptive"])
    behind = {"lenet", "vgg-batch-norm"}
    for name, ratio in ratios.items():
        assert (ratio["after 3"] > 1.5) == (ratio["after 10"] > 5) == (ratio["time"] == math.inf) == (name in behind)
        assert ratio["after 3"] < 1 or name in behind
        assert ratio["after 10"] < 1 or name in behind | {"autoencoder"}
        assert ratio["time"] > 2.5
    assert max(ratio["time"] for name, ratio in ratios.items() if name not in behind) < 6
    assert sum(ratio["time"] <= 5 for ratio in ratios.values()) == 3
    assert [round(ratios[name]["after 3"], 1) for name in ("lenet", "vgg-batch-norm")] == [1.6, 5.0]
    assert [round(ratios[name]["after 10"]) for name in ("lenet", "vgg-batch-norm")] == [6, 14]


def test_what_the_page_says_of_one_group_is_so(shipped):
    networks = shipped["networks"]
    assert not any(entry["diverged"] for one in networks.values() for entry in one["one-group"])
    single = {name: untuned.ratios(one, "one-group") for name, one in networks.items()}
    assert max(ratio["after 3"] for ratio in single.values()) < 1.3
    assert sum(ratio["after 10"] <= 1.01 for ratio in single.values()) == 5
    assert 0.3 < single["vgg-batch-norm"]["after 10"] < 0.4
    assert all(2.5 < ratio["time"] < 7 for ratio in single.values())
    for name in ("tanh", "deep-tanh", "elu"):
        assert single[name]["after 10"] > untuned.ratios(networks[name])["after 10"]


@pytest.fixture(scope="module")
def unseen():
    return experiments.load("unseen")


def test_what_the_page_says_of_six_other_networks_is_so(unseen):
    networks = unseen["networks"]
    assert set(networks) == set(UNSEEN)
    assert not any(entry["diverged"] for one in networks.values() for ours in untuned.OURS for entry in one[ours])
    tensors, single = ({name: untuned.ratios(one, ours) for name, one in networks.items()} for ours in untuned.OURS)
    assert {name for name, ratio in tensors.items() if ratio["after 3"] < 1} == set(UNSEEN) - {"residual"}
    assert {name for name, ratio in tensors.items() if ratio["after 10"] > 1} == {"pooled", "residual"}
    assert (
        0.9
        < min(ratio["after 3"] for ratio in single.values())
        < max(ratio["after 3"] for ratio in single.values())
        < 1.65
    )
    assert max(single, key=lambda name: single[name]["after 10"]) == "relu"
    assert single["relu"]["after 10"] > 20
    small = {"relu", "layer-norm", "pooled", "regression"}
    assert all(2.5 < tensors[name]["time"] < 7 for name in small)
    assert all(ratio["time"] > 20 for name, ratio in tensors.items() if name not in small)
    assert all(4.5 < ratio["time"] < 9 for ratio in single.values())


def test_what_the_page_says_of_renewed_statistics_is_so(shipped, unseen):
    both = shipped["networks"] | unseen["networks"]
    looks = {name: (untuned.ratios(one), untuned.with_renewed_statistics(one)) for name, one in both.items()}
    pairs = {name: (as_is, untuned.ratios(look)) for name, (as_is, look) in looks.items() if look}
    assert set(pairs) == {"vgg-batch-norm", "residual"}
    ratios = {name: [(a[key], b[key]) for key in ("after 3", "after 10")] for name, (a, b) in pairs.items()}
    assert np.allclose(ratios["vgg-batch-norm"], [(5.0, 2.0), (13.6, 6.5)], rtol=0.03)
    assert np.allclose(ratios["residual"], [(2.5, 0.63), (20.6, 1.9)], rtol=0.03)


def test_a_shipped_run_is_found_again(shipped):
    problem = SIX["tanh"]
    again = untuned.train(problem, problem.data(), METHODS["adaptive"], UNTUNED[0], 0, 3)
    ends = [entry["train_losses"][2] for entry in shipped["networks"]["tanh"]["adaptive"]]
    slack = max(ends) - min(ends)
    assert min(ends) - slack <= again["train_losses"][-1] <= max(ends) + slack


def test_the_shipped_twins_are_one_curve_for_us(shipped):
    for name, curves in shipped["scaled"].items():
        difference = twins.apart(curves["scaled"], curves["plain"])
        assert difference < 1e-4 if name.startswith("GroupedNewton") else difference > 1
