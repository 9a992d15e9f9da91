"""The Taylor slice: the true loss, models that touch it, and parameters that nobody moved."""

import numpy as np
import pytest
import torch
from support.widgets import drawn, marked, summarized

import gnewton as gn
from gnewton.teaching import TaylorSlice


def test_the_taylor_slice_leaves_the_parameters_alone_even_when_the_loss_fails():
    model, loss, partition, u, summary = summarized()
    before = [p.detach().clone() for p in model.parameters()]
    calls = []

    def failing():
        calls.append(1)
        if len(calls) > 60:
            raise RuntimeError("no more")
        return loss()

    widget = TaylorSlice(failing, partition, u, summary=summary, eta=gn.newton_step(summary).learning_rates)
    widget.reach.value = 3.0
    assert "no more" in widget._problem
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_the_taylor_slice_stays_where_its_summary_was_taken():
    model, loss, partition, u, summary = summarized()
    widget = TaylorSlice(loss, partition, u, summary=summary, eta=gn.newton_step(summary).learning_rates)
    before = drawn(widget)
    trained = [p.detach().add_(0.1).clone() for p in model.parameters()]
    for direction in u.values():
        direction.mul_(2)
    widget.redraw()
    assert drawn(widget) == before
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), trained, strict=True))


def test_the_taylor_slice_draws_the_loss_and_models_that_touch_it():
    _, loss, partition, u, summary = summarized()
    eta = gn.newton_step(summary).learning_rates
    widget = TaylorSlice(loss, partition, u, summary=summary, eta=eta)
    widget.reach.value = 0.25  # close to the start each order must be better than the one below
    lines = marked(widget)
    t, truth = lines["true loss"].values()
    with torch.no_grad():
        for name, change in partition.scale(u, float(t[-1]) * eta).items():
            partition.parameters[name].sub_(change)
    assert loss().item() == pytest.approx(truth[-1], rel=1e-10)
    near = np.abs(t).argmin() + 2
    errors = [abs(lines[f"order {d}"]["y"][near] - truth[near]) for d in (1, 2, 3)]
    assert errors[0] > errors[1] > errors[2]
