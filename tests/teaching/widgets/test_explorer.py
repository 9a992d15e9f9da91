"""The step explorer: its bars are the steps of ``newton_step``, or the reason why there is none."""

import numpy as np
from support.widgets import summarized

import gnewton as gn
from gnewton.teaching import StepExplorer


def test_the_explorer_shows_the_steps_of_newton_step():
    summary = summarized()[-1]
    widget = StepExplorer(summary, strength=1.0)
    bars = [bar.get_width() for bar in widget.figure.axes[0].patches]
    np.testing.assert_allclose(bars, gn.newton_step(summary, cubic=1.0).learning_rates)
    widget.curvature.value = "S = 1"
    one = gn.newton_step(summary.coarsen([[0, 1, 2, 3]]), cubic=1.0).learning_rates
    np.testing.assert_allclose([bar.get_width() for bar in widget.figure.axes[0].patches], one.expand(4))


def test_the_explorer_says_why_there_is_no_step():
    summary = gn.Summary.from_tensors(gradient=[1.0, 4.0], hessian=[[1.0, 6.0], [6.0, 16.0]], third=[0.0, 0.0])
    assert "no step; UNBOUNDED" in StepExplorer(summary).sentence


def test_the_explorer_offers_one_group_only_where_it_can_merge():
    assert StepExplorer(summarized(full_third=False)[-1]).curvature.options == ("full", "diagonal")
