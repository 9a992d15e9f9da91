"""Equal budgets, an honest choice, and nothing computed twice."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from support.race import TINY, method, missing

from gnewton.experiments import protocol
from gnewton.experiments.methods import METHODS
from gnewton.experiments.networks import PROBLEMS
from gnewton.experiments.protocol import Plan, compare

METHODS_TESTED = (
    method("sgd", {"lr": 0.001}, {"lr": 0.1}, {"lr": 0.03}),
    method("grouped-newton", *({"lr": lr, "cubic": 1.0} for lr in (0.03, 0.1, 0.3))),
)


TUNING = 3 + 3 * 2  # three settings from seed 0, all of them finalists


@pytest.fixture
def counted(monkeypatch):
    """The arguments of every training run that was computed."""
    calls = []
    train = protocol.train

    def counting(*arguments, **options):
        calls.append((arguments, options))
        return train(*arguments, **options)

    monkeypatch.setattr(protocol, "train", counting)
    return calls


def test_every_method_has_the_same_number_of_different_settings():
    for one in METHODS.values():
        if one.name == "adaptive":
            assert len(one.settings) == 1
            continue
        assert len(one.settings) == 6, one.name
        assert len({json.dumps(settings) for settings in one.settings}) == 6, one.name


def test_the_eight_methods_of_the_race():
    assert list(METHODS) == ["grouped-newton", "diagonal", "one-group", "adaptive", "sgd", "adam", "l-bfgs", "k-fac"]
    assert METHODS["grouped-newton"].settings == METHODS["diagonal"].settings == METHODS["one-group"].settings


def test_a_second_call_computes_nothing(tmp_path, counted):
    plan = Plan(tmp_path, seeds=2)
    first = compare(TINY, plan, METHODS_TESTED)
    computed = len(counted)
    assert computed > 2 * (3 + 2)
    assert compare(TINY, plan, METHODS_TESTED) == first
    assert len(counted) == computed


def test_an_interrupted_experiment_goes_on_where_it_was(tmp_path, counted, monkeypatch):
    train, plan = protocol.train, Plan(tmp_path, seeds=2)

    def interrupted(*arguments, **options):
        if len(counted) == 3:
            raise KeyboardInterrupt
        return train(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(protocol, "train", interrupted)
        with pytest.raises(KeyboardInterrupt):
            compare(TINY, plan, METHODS_TESTED)
    kept = sorted((tmp_path / "tiny" / "runs").iterdir())
    assert len(kept) == 3
    assert all(json.loads(file.read_text()) for file in kept)
    resumed = compare(TINY, plan, METHODS_TESTED)
    once = len(counted)
    assert fates(compare(TINY, Plan(tmp_path / "another", seeds=2), METHODS_TESTED)) == fates(resumed)
    assert len(counted) == 2 * once


def fates(numbers):
    """What does not depend on the clock."""
    return [
        (one["settings"], one["tuning"], [run["losses"] for run in one["runs"]]) for one in numbers["methods"].values()
    ]


def test_another_budget_is_run_anew(tmp_path, counted):
    compare(TINY, Plan(tmp_path, seeds=1), METHODS_TESTED[:1])
    compare(replace(TINY, epochs=1), Plan(tmp_path, seeds=1), METHODS_TESTED[:1])
    assert len(counted) == 2 * (TUNING + 1)


def test_equal_steps_and_seeds(tmp_path):
    numbers = compare(TINY, Plan(tmp_path, seeds=3), METHODS_TESTED)
    for one in numbers["methods"].values():
        assert [run["seed"] for run in one["runs"]] == [0, 1, 2]
        assert {len(run["losses"]) for run in one["runs"]} == {numbers["protocol"]["steps"]}


def test_the_choice_has_the_lowest_loss_on_the_held_out_part(tmp_path):
    one = compare(TINY, Plan(tmp_path, seeds=1), METHODS_TESTED)["methods"]["sgd"]
    losses = [entry["validation_losses"] for entry in one["tuning"]]
    assert {len(row) for row in losses} == {3}
    worst = [max(row) for row in losses]
    assert one["settings"] == one["tuning"][worst.index(min(worst))]["settings"]


def test_tuning_sees_the_training_part_alone(tmp_path, counted):
    compare(TINY, Plan(tmp_path, seeds=1), METHODS_TESTED[:1])
    whole = {tuple(row.tolist()) for row in TINY.data().train_x}
    tuning = [arguments[1] for arguments, options in counted if not options["thorough"]]
    assert len(tuning) == TUNING
    for data in tuning:
        fitted, held_out = ({tuple(row.tolist()) for row in x} for x in (data.train_x, data.test_x))
        assert fitted | held_out == whole
        assert not fitted & held_out
        assert len(held_out) == 12


def test_the_worst_seed_decides_and_a_finalist_that_diverges_is_out():
    assert protocol.choose([[0.1, 0.9, 0.2], [0.3, 0.3, 0.4], [0.2, float("inf")], [0.25]]) == 1
    assert protocol.choose([[0.2, float("inf")], [0.1, float("inf")], [float("inf")]]) == 1


def test_a_finalist_that_diverges_gives_its_place_to_the_next(monkeypatch):
    losses = {0: [0.1, float("inf")], 1: [0.2, 0.5, 0.6], 2: [0.3, 0.4, 0.3], 3: [0.4, 0.1, 0.1], 4: [0.5, 0.0, 0.0]}
    race = protocol._Race(TINY, Plan(Path()), None, None, lambda: None)
    monkeypatch.setattr(protocol._Race, "tuning_loss", lambda self, method, one, seed: losses[one["lr"]][seed])
    rows = race.tune(METHODS_TESTED[0], tuple({"lr": lr} for lr in losses))
    assert rows == [losses[0], losses[1], losses[2], losses[3], losses[4][:1]]
    assert protocol.choose(rows) == 2


def test_a_diverged_setting_is_not_chosen(tmp_path):
    one = method("sgd", {"lr": 1e20}, {"lr": 0.01})
    tuned = compare(TINY, Plan(tmp_path, seeds=1), [one])["methods"]["sgd"]
    assert tuned["settings"] == {"lr": 0.01}
    assert [entry["validation_losses"][0] is None for entry in tuned["tuning"]] == [True, False]


def test_a_package_that_is_not_there_is_said(tmp_path, counted):
    numbers = compare(TINY, Plan(tmp_path, seeds=1), [missing("k-fac"), METHODS_TESTED[0]])
    assert numbers["methods"]["k-fac"] | {"tuning": [], "runs": []} == numbers["methods"]["k-fac"]
    assert not numbers["methods"]["k-fac"]["installed"]
    assert len(counted) == TUNING + 1


def test_quick_runs_do_not_mix_with_careful_ones(tmp_path, counted):
    quick = compare(TINY, Plan(tmp_path, seeds=1, quick=True), METHODS_TESTED[:1])
    assert len(counted) == 2 * 3 + 1
    assert quick["protocol"]["epochs"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["tiny-quick"]


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_networks_take_their_data(name):
    problem = PROBLEMS[name]
    data = problem.data()
    model = protocol.network(problem, 0)
    loss = problem.loss(model(data.train_x[:4]), data.train_y[:4])
    assert loss.isfinite()
    assert len(data.train_x) == 4000
    assert problem.batch == 100
