"""The heat map's numbers are the normalised H-bar of the network, before and after its training."""

import numpy as np
import pytest
from support.race import TINY, digits, method

from gnewton.experiments import interaction
from gnewton.experiments.protocol import Plan

SETTINGS = {"lr": 0.1, "cubic": 1.0}


@pytest.fixture(scope="module")
def measured():
    problem = digits()
    return interaction.hessians(problem, problem.data(), SETTINGS, epochs=1)


def test_both_matrices_are_normalised_and_differ(measured):
    before, after = (np.array(measured[when]) for when in ("before", "after"))
    assert before.shape == after.shape == (4, 4)
    np.testing.assert_allclose(np.abs(np.diagonal(before)), 1)
    np.testing.assert_allclose(np.abs(np.diagonal(after)), 1)
    np.testing.assert_allclose(before, before.T)
    assert not np.allclose(before, after)


def test_groups_know_their_layers(measured):
    assert measured["layers"] == [0, 0, 1, 1]


@pytest.mark.parametrize("scales", [np.array([1e-3, 1.0, 1e4])])
def test_normalisation_does_not_see_the_scale_of_a_group(scales):
    hessian = np.random.default_rng(0).normal(size=(3, 3))
    hessian += hessian.T
    assert interaction.normalize(hessian) == interaction.normalize(scales * hessian * scales[:, None])


def test_a_group_without_curvature_is_blank():
    assert interaction.normalize(np.diag([4.0, 0.0])) == [[1.0, None], [None, None]]


def test_the_long_range_table_counts_layers():
    layers = [0, 1, 6]
    matrix = [[1.0, 0.5, 0.1], [0.5, 1.0, 0.2], [0.1, 0.2, 1.0]]
    numbers = {"layers": layers, "before": matrix, "after": matrix}
    lines = interaction.long_range_table(numbers).splitlines()
    assert [line.split(" | ")[1] for line in lines[2:5]] == ["0.5", "0.2", "0.1"]


def test_one_figure_from_the_runs_of_the_networks(tmp_path, monkeypatch):
    monkeypatch.setattr(interaction, "PROBLEMS", {"mlp": TINY, "deep": TINY, "lenet": TINY})
    monkeypatch.setattr(
        interaction, "METHODS", {name: method(name, SETTINGS) for name in ("grouped-newton", "diagonal", "one-group")}
    )
    numbers = interaction.measure(Plan(tmp_path, seeds=2), "")
    drawn = interaction.figures(numbers)
    assert len(drawn["interaction"].axes) == 6
    for ax in drawn["interaction"].axes:
        kept = ["GroupedNewton", "GroupedNewton, diagonal", "GroupedNewton, S = 1"]
        assert [line.get_label() for line in ax.get_lines()] == [*kept, *(f"{name}, fresh rates" for name in kept)]
    assert [ax.get_title() for ax in drawn["interaction-hessians"].axes[:2]] == ["at initialization", "after training"]
    assert interaction.report(numbers).count("By seconds") == 3
