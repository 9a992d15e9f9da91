"""The timeline: one scale for all updates, and histories that it refuses."""

import pytest
import torch

from gnewton.policies import Outcome
from gnewton.teaching import CurvatureTimeline


def make_update(step, size):
    fields = dict.fromkeys(
        ("gradient", "metric", "lr", "predicted_decrease", "actual_decrease", "cubic", "rho", "evaluations")
    )
    hessian = size * torch.tensor([[1.0, -0.5], [-0.5, 1.0]], dtype=torch.float64)
    rates = torch.zeros(2, dtype=torch.float64)
    return Outcome(step=step, value=1.0, hessian=hessian, learning_rates=rates, status="CONVERGED", **fields)


def test_the_timeline_shows_flat_and_steep_updates_on_one_scale():
    history = [make_update(step, size) for step, size in enumerate([1e-3, 1e4, 0.0])]
    for step, marks in [(0, 4), (1, 4), (2, 0)]:
        heat = CurvatureTimeline(history, ["a", "b"], update=step).figure.axes[0]
        assert sum(len(line.get_xdata()) for line in heat.get_lines()) == marks
        norm = heat.get_images()[0].norm
        assert (norm.vmin, norm.vmax) == (-1e4, 1e4)


def test_an_empty_history_is_refused():
    with pytest.raises(ValueError, match="empty history"):
        CurvatureTimeline([], ["a"])
