"""The report says what the numbers say: thinned curves, winners, losers, and nothing about the machine's owner."""

import json
import math
import platform
from pathlib import Path

import numpy as np
import pytest
from support.race import TINY, digits, method, missing

from gnewton.experiments import report
from gnewton.experiments.pictures import figure, mean_curve
from gnewton.experiments.protocol import TUNING_SEEDS, Plan, compare

RNG = np.random.default_rng(0)


def run(seed, loss, seconds, steps=4, diverged=False, test=None):
    """A run whose loss falls from 1 to ``loss`` in equal steps."""
    return {
        "seed": seed,
        "losses": np.linspace(1, loss, steps).tolist(),
        "seconds": np.linspace(seconds / steps, seconds, steps).tolist(),
        "steps": list(range(1, steps + 1)),
        "train_losses": [loss],
        "test_losses": [loss if test is None else test],
        "train_accuracies": [],
        "test_accuracies": [],
        "diverged": diverged,
    }


def numbers(**methods):
    """name: the runs of a method."""
    made = {
        name: {
            "title": name.upper(),
            "installed": True,
            "settings": {"lr": 1.0},
            "at_edge": False,
            "tuning": [],
            "runs": runs,
        }
        for name, runs in methods.items()
    }
    return {"title": "tiny", "protocol": {"steps": 4}, "methods": made}


# Slow and good; fast and worse; explodes once.
RACE = numbers(
    newton=[run(0, 0.1, 8.0), run(1, 0.12, 8.0)],
    sgd=[run(0, 0.3, 1.0), run(1, 0.32, 1.0)],
    adam=[run(0, 0.01, 2.0), run(1, 0.01, 2.0, diverged=True)],
)


def test_rows_are_ranked_by_steps_and_divergence_is_last():
    table = report.rows(RACE)
    assert [row.name for row in table] == ["newton", "sgd", "adam"]
    assert [row.diverged for row in table] == [0, 0, 1]
    assert math.isinf(table[-1].by_steps.mean())


def test_seconds_are_compared_when_the_fastest_is_done():
    assert report.time_budget(RACE) == 1.0
    by_seconds = {row.name: row.by_seconds for row in report.rows(RACE)}
    np.testing.assert_allclose(by_seconds["sgd"], [0.3, 0.32])
    # After one of eight seconds the slow method has not finished its first step.
    np.testing.assert_allclose(by_seconds["newton"], [1.0, 1.0])


def test_the_verdict_names_winner_and_loser():
    steps, seconds, test, price = report.verdict(RACE, ours="newton").splitlines()
    assert "NEWTON wins" in steps
    assert "loses to none" in steps
    assert "SGD wins" in seconds
    assert "NEWTON is 2 of 3 and loses to SGD." in seconds
    assert "On the test part" in test
    assert "32" in price or "8" in price


def test_overlapping_ranges_are_not_a_victory():
    close = numbers(newton=[run(0, 0.1, 1.0), run(1, 0.3, 1.0)], sgd=[run(0, 0.15, 1.0), run(1, 0.2, 1.0)])
    assert "within the spread" in report.verdict(close, ours="newton").splitlines()[0]


def test_blocks_keep_the_mean_and_the_end():
    losses = RNG.random(330).tolist()
    clocks = {"seconds": np.arange(1.0, 331).tolist(), "epoch_steps": [110, 330], "cpu_seconds": [55.0, 385.0]}
    thin = report.thin({"losses": losses, "test_losses": [0.25]} | clocks, steps=330)
    assert len(thin["losses"]) <= 40
    assert thin["steps"][-1] == 330
    # A step of the first epoch took half a second of the processor, one of the second one and a half.
    steps = np.array(thin["steps"])
    np.testing.assert_allclose(thin["seconds"], np.where(steps <= 110, steps / 2, 55 + 1.5 * (steps - 110)), rtol=1e-4)
    weights = np.diff([0, *thin["steps"]])
    # Five digits are kept.
    assert np.average(thin["losses"], weights=weights) == pytest.approx(np.mean(losses), rel=1e-4)


def test_the_mean_curve_ends_where_the_first_seed_does():
    curve = mean_curve([run(0, 0.1, 1.0), run(1, 0.3, 3.0, steps=3)])
    assert curve.shape == (5, 3)
    np.testing.assert_allclose(curve[0], [1, 2, 3])
    assert (curve[3] <= curve[2]).all()
    assert (curve[2] <= curve[4]).all()


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    plan = Plan(tmp_path_factory.mktemp("experiments"), seeds=2)
    methods = [
        method("sgd", {"lr": 0.1}, {"lr": 1e20}),
        method("grouped-newton", {"lr": 0.1, "cubic": 1.0}),
        missing("k-fac"),
    ]
    return report.results(compare(digits(), plan, methods), "python -m gnewton.experiments digits")


def test_json_round_trip(real):
    assert json.loads(report.text(real)) == real


def test_results_say_where_they_come_from_and_nothing_more(real):
    assert real["command"] == "python -m gnewton.experiments digits"
    assert set(real["versions"]) >= {"python", "gnewton", "torch"}
    assert real["machine"]["cores"] >= 1
    text = report.text(real)
    assert platform.node() not in text or not platform.node()
    assert str(Path.home()) not in text
    assert str(Path.cwd()) not in text


def test_every_setting_tried_is_in_the_results(real):
    tuning = real["methods"]["sgd"]["tuning"]
    assert [entry["settings"]["lr"] for entry in tuning] == [0.1, 1e20]
    assert len(tuning[0]["validation_losses"]) == TUNING_SEEDS
    assert tuning[1]["validation_losses"] == [None]


def test_the_table_has_a_line_for_every_method_and_the_missing_one(real):
    lines = report.table(real).splitlines()
    assert len(lines) == 2 + 3
    assert "not installed: a_package_that_is_not_there" in lines[-1]
    assert len({line.count("|") for line in lines}) == 1


def test_the_figure_shows_the_means_and_the_bands(real):
    axes = figure(real).axes
    assert [ax.get_xlabel() for ax in axes] == ["step", "time (s)"]
    for ax in axes:
        assert [line.get_label() for line in ax.get_lines()] == ["SGD, momentum 0.9", "GroupedNewton"]
        assert len(ax.collections) == 2
        assert ax.get_yscale() == "log"
    runs = real["methods"]["sgd"]["runs"]
    means = np.mean([one["losses"] for one in runs], axis=0)
    np.testing.assert_allclose(axes[0].get_lines()[0].get_ydata(), means)


def test_a_race_without_classes_has_no_accuracy(tmp_path):
    compared = report.results(compare(TINY, Plan(tmp_path, seeds=1), [method("sgd", {"lr": 0.01})]), "")
    assert report.table(compared).splitlines()[-1].split(" | ")[5] == "-"
