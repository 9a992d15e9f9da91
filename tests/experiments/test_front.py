"""What a person types, and what comes back; and the shipped results against a fresh run."""

import importlib
import json
from dataclasses import replace
from pkgutil import iter_modules

import numpy as np
import pytest
from support.race import RESULTS, TINY, method

from gnewton import experiments
from gnewton.experiments import __main__ as front
from gnewton.experiments import race, report, results, runs
from gnewton.experiments.methods import METHODS
from gnewton.experiments.networks import PROBLEMS
from gnewton.experiments.registry import REGISTRY


@pytest.fixture
def tiny(monkeypatch):
    """The registry with the tiny problem in the place of mlp."""
    methods = [method("sgd", {"lr": 0.01}, {"lr": 0.1}), method("adam", {"lr": 0.01}, {"lr": 0.1})]
    monkeypatch.setitem(REGISTRY, "mlp", race.race(replace(TINY, name="mlp"), methods))


def test_every_experiment_is_listed_with_its_time(capsys):
    assert front.main([]) == 0
    lines = capsys.readouterr().out.splitlines()[: len(REGISTRY)]
    assert [line.split()[0] for line in lines] == list(REGISTRY)
    assert all("about" in line and "min" in line for line in lines)


def test_every_experiment_of_the_package_is_in_the_registry():
    modules = [
        importlib.import_module(f"{experiments.__name__}.{one.name}") for one in iter_modules(experiments.__path__)
    ]
    defined = [
        one for module in modules for one in (*getattr(module, "EXPERIMENTS", ()), getattr(module, "EXPERIMENT", None))
    ]
    assert {id(one) for one in defined if one} == {id(one) for one in REGISTRY.values()}
    assert all(name == one.name for name, one in REGISTRY.items())


@pytest.mark.parametrize("name", REGISTRY)
def test_an_experiment_writes_what_it_says(name):
    numbers = experiments.load(name, RESULTS)
    assert tuple(REGISTRY[name].figures(numbers)) == REGISTRY[name].pictures
    assert numbers["command"].startswith(REGISTRY[name].command)
    assert numbers["title"] == REGISTRY[name].title


@pytest.mark.parametrize("name", REGISTRY)
def test_the_package_ships_a_digest_of_the_results(name):
    assert experiments.load(name) == REGISTRY[name].digest(experiments.load(name, RESULTS))
    assert REGISTRY[name].report(experiments.load(name)) == REGISTRY[name].report(experiments.load(name, RESULTS))


def test_a_digest_leaves_out_keys_at_any_depth_and_nothing_else():
    numbers = {"a": [{"b": 1, "c": 2}], "b": {"c": 3}, "d": [4]}
    assert replace(REGISTRY["mlp"], unread=("c",)).digest(numbers) == {"a": [{"b": 1}], "b": {}, "d": [4]}


def test_what_is_shipped_is_small():
    sizes = {name: len((results.DIGESTS / f"{name}.json").read_bytes()) for name in REGISTRY}
    # The wheel's code takes 0.8 MB; compressed in the wheel the digests take less than a third of what is counted here.
    assert sum(sizes.values()) < 540_000
    assert max(sizes.values()) < 130_000


@pytest.mark.parametrize(("typed", "meant"), [("mpl", "'mlp'"), ("autoencodr", "'autoencoder'"), ("xyz", "choose one")])
def test_an_unknown_name_is_answered_with_the_nearest(typed, meant, capsys):
    with pytest.raises(SystemExit):
        front.main([typed])
    assert meant in capsys.readouterr().err


def test_seeds_must_be_a_number_from_one_on(capsys):
    with pytest.raises(SystemExit):
        front.main(["mlp", "--seeds", "0"])
    assert "whole number" in capsys.readouterr().err


def test_a_run_writes_json_table_and_figure(tiny, tmp_path, capsys):
    assert front.main(["mlp", "--folder", str(tmp_path), "--seeds", "2"]) == 0
    folder = tmp_path / "mlp"
    assert (
        {path.name for path in folder.iterdir()}
        == {"mlp.json", "mlp.md", "mlp.png", "runs"}
        == {*REGISTRY["mlp"].writes, "runs"}
    )
    assert len(list((folder / "runs").iterdir())) == 2 * (2 * 3 + 2)
    numbers = json.loads((folder / "mlp.json").read_text())
    assert numbers["command"] == "python -m gnewton.experiments mlp --seeds 2"
    assert (folder / "mlp.png").read_bytes().startswith(b"\x89PNG")
    assert "wins with" in capsys.readouterr().out


def test_an_interruption_is_said_and_leaves_whole_files(tiny, tmp_path, monkeypatch, capsys):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setitem(REGISTRY, "mlp", replace(REGISTRY["mlp"], figures=interrupted))
    assert front.main(["mlp", "--folder", str(tmp_path), "--seeds", "1"]) == 130
    assert "goes on from here" in capsys.readouterr().err
    for path in (tmp_path / "mlp" / "runs").iterdir():
        json.loads(path.read_text())


def test_results_that_are_not_there_are_asked_for_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"python -m gnewton\.experiments deep"):
        experiments.load("deep", tmp_path)


@pytest.mark.parametrize("name", [*PROBLEMS, "interaction"])
def test_the_results_are_complete(name):
    numbers = experiments.load(name)
    for one in numbers.get("networks", {name: numbers}).values():
        assert not one["protocol"]["quick"]
        tuned = {method: len(entry["tuning"]) for method, entry in one["methods"].items() if entry["installed"]}
        assert tuned == dict.fromkeys(tuned, 6) | ({"adaptive": 0} if "adaptive" in tuned else {})
        assert {len(entry["runs"]) for entry in one["methods"].values() if entry["installed"]} == {5}


@pytest.mark.parametrize("name", ["sgd", "grouped-newton"])
def test_a_shipped_row_is_found_again(name):
    shipped, problem = experiments.load("mlp"), PROBLEMS["mlp"]
    row = shipped["methods"][name]
    run = runs.train(problem, problem.data(), METHODS[name], row["settings"], 0, shipped["protocol"]["epochs"])
    for measure in ("train_losses", "test_losses"):
        ends = [one[measure][-1] for one in row["runs"]]
        # Another processor rounds otherwise, which training magnifies: like another seed at worst.
        slack = max(ends) - min(ends)
        assert min(ends) - slack <= run[measure][-1] <= max(ends) + slack


def test_what_the_book_s_page_says_of_the_winners_is_so():
    tables = {name: report.rows(experiments.load(name)) for name in PROBLEMS}
    by_steps = {name: min(rows, key=lambda row: row.by_steps.mean()).name for name, rows in tables.items()}
    by_seconds = {name: min(rows, key=lambda row: row.by_seconds.mean()).name for name, rows in tables.items()}
    assert set(by_seconds.values()) <= {"sgd", "adam"}
    assert list(by_steps.values()).count("k-fac") >= 3
    assert "grouped-newton" not in {*by_steps.values(), *by_seconds.values()}
    for name, rows in tables.items():
        ours = {row.name: row for row in rows}
        assert ours["adaptive"].diverged == 0
        assert ours["adaptive"].by_steps.mean() < ours["grouped-newton"].by_steps.mean()
        assert (ours["grouped-newton"].diverged > 0) == (name == "autoencoder")
    means = [{row.name: row.by_steps.mean() for row in rows} for rows in tables.values()]
    assert abs(np.mean([np.log(one["adaptive"] / one["adam"]) for one in means])) < 0.1


def test_what_the_book_s_page_says_of_the_terms_between_groups_is_so():
    for name, one in experiments.load("interaction")["networks"].items():
        means = {row.name: row.by_steps.mean() for row in report.rows(one)}
        spreads = {row.name: row.by_steps for row in report.rows(one)}
        fresh, diagonal = "grouped-newton-fresh", "diagonal-fresh"
        assert means[fresh] < (means[diagonal] if name != "deep" else 1.05 * means[diagonal])
        assert not report.apart(spreads[fresh], spreads[diagonal])
        assert not report.apart(spreads[fresh], spreads["one-group-fresh"])
        assert not report.apart(spreads["grouped-newton"], spreads["diagonal"])
        assert means[fresh] < means["grouped-newton"]
        assert means[diagonal] < means["diagonal"]
