"""The explorer shows the shipped numbers: what a budget buys is read off the runs themselves, and every control moves it."""

import math

import numpy as np
import pytest

from gnewton.experiments import load, report
from gnewton.teaching import RaceExplorer
from gnewton.teaching.widgets.race import losses_at, ranking, slowest

RACES = {name: load(name) for name in ("mlp", "autoencoder")}


def run(losses, seconds=None, diverged=False):
    """One run with a block of ten steps a loss."""
    steps = [10 * (n + 1) for n in range(len(losses))]
    return {"steps": steps, "seconds": seconds or [s / 5 for s in steps], "losses": losses, "diverged": diverged}


def race(**losses):
    """A race of one seed a loss curve; None for a method without runs."""
    methods = {
        name: {"title": name.upper(), "runs": [run(curve, diverged=name.startswith("lost")) for curve in curves]}
        for name, curves in losses.items()
    }
    return {"small": {"methods": methods, "protocol": {"steps": 30}}}


def marks(widget):
    return [line.get_xdata() for line in widget._seeds]


def test_the_whole_budget_buys_the_last_losses():
    widget = RaceExplorer(RACES, network="mlp")
    edge = widget._edge.get_xdata()[0]
    for drawn, one in zip(marks(widget), RACES["mlp"]["methods"].values(), strict=True):
        np.testing.assert_allclose(drawn, np.minimum([r["losses"][-1] for r in one["runs"]], edge))


def test_a_budget_between_two_blocks_is_interpolated_and_before_the_first_it_is_the_first():
    runs = [run([3.0, 2.0, 1.0])]
    np.testing.assert_allclose([losses_at(runs, end, "steps")[0] for end in (5, 10, 25, 30, 99)], [3, 3, 1.5, 1, 1])
    np.testing.assert_allclose(losses_at(runs, 5.0, "seconds"), losses_at(runs, 25, "steps"))


def test_a_run_that_diverged_is_infinite_from_then_on():
    runs = [run([3.0, 9.0], diverged=True), run([], diverged=True)]
    assert losses_at(runs, 20, "steps").tolist() == [9.0, math.inf]
    assert losses_at(runs, 21, "steps").tolist() == [math.inf, math.inf]


def test_the_slowest_method_sets_the_time():
    methods = {
        "a": {"runs": [run([1.0], [3.0]), run([1.0], [5.0])]},
        "b": {"runs": [run([1.0], [2.0])]},
        "c": {"runs": []},
    }
    assert slowest(methods) == 4.0


def test_the_fastest_methods_time_buys_what_the_table_says():
    # The same interpolation on the same runs as report.rows: at the fastest method's time they must agree.
    one = RACES["mlp"]
    budget = report.time_budget(one)
    for row in report.rows(one):
        np.testing.assert_allclose(losses_at(one["methods"][row.name]["runs"], budget, "seconds"), row.by_seconds)


def test_the_unit_moves_the_curves_along_the_axis():
    widget = RaceExplorer(RACES)
    widget.unit.value = "seconds"
    one = next(iter(RACES["mlp"]["methods"].values()))
    np.testing.assert_allclose(widget._lines[0].get_xdata(), np.mean([r["seconds"] for r in one["runs"]], axis=0))


def test_methods_that_are_hidden_or_did_not_run_leave_their_rows_empty():
    widget = RaceExplorer(race(adaptive=[[3.0, 2.0, 1.0]], sgd=[[3.0, 2.5, 2.0]], absent=[]))
    assert [np.isfinite(m).any() for m in marks(widget)] == [True, True, False]
    widget.shown.value = "ours"
    assert [np.isfinite(m).any() for m in marks(widget)] == [True, False, False]
    widget.shown.value = "others"
    assert [np.isfinite(m).any() for m in marks(widget)] == [False, True, False]


def test_a_race_in_which_everybody_diverged_is_drawn():
    widget = RaceExplorer(race(lost=[[3.0], [4.0]]))
    assert widget.sentence == "small, 30 steps: every method diverged from some seed."
    assert np.isfinite(marks(widget)[0]).all()


def test_ranges_that_touch_are_named():
    bought = {"A": np.array([1.0, 2.0]), "B": np.array([2.0, 3.0]), "C": np.array([2.5, 3.0])}
    assert ranking(bought) == "A leads with 1.5 (1 to 2); its range touches that of B."
    assert ranking({"A": bought["A"], "C": bought["C"]}).endswith("its range touches no other.")


def test_nothing_to_race_is_refused():
    with pytest.raises(ValueError, match="at least one race"):
        RaceExplorer({})
