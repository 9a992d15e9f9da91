"""The timeline: one scale for all updates, and histories that it refuses."""

import numpy as np
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
    for step, size in enumerate([1e-3, 1e4, 0.0]):
        widget = CurvatureTimeline(history, ["a", "b"], update=step)
        scale = widget.scene.marks[0].options["scale"]
        assert scale["high"] == 1e4
        assert scale["linear"] < 1e-4  # two decades of colour below the flattest update's largest entry
        np.testing.assert_allclose(widget.now.numbers[0]["z"], size * np.array([[1.0, -0.5], [-0.5, 1.0]]))


def test_an_empty_history_is_refused():
    with pytest.raises(ValueError, match="empty history"):
        CurvatureTimeline([], ["a"])
