"""The cubic bound: curves from the summary, losses from the network, and a dot where the library's step is."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.widgets import marked, summarized

import gnewton as gn
from gnewton.teaching import CubicBound
from gnewton.teaching.widgets.bound import POINTS, STRENGTHS, losses_along


@pytest.fixture(scope="module")
def parts():
    return summarized(full_third=False, samples=50)


@pytest.fixture(scope="module")
def widget(parts):
    _, loss, partition, u, summary = parts
    return CubicBound(loss, partition, u, summary=summary)


def put(widget, group="0.weight", strength=1.0):
    widget.group.value, widget.strength.value = group, strength
    assert widget._problem == ""
    return widget


@pytest.mark.parametrize("name", ["0.weight", "0.bias", "2.weight", "2.bias"])
@pytest.mark.parametrize("strength", STRENGTHS)
def test_the_dot_is_the_librarys_step_of_this_group_alone(parts, widget, name, strength):
    _, _, partition, _, summary = parts
    s = partition.names.index(name)
    alone = gn.Summary.from_tensors(
        gradient=summary.gradient[[s]], hessian=summary.hessian[s, s].reshape(1, 1), third=summary.third[[s]]
    )
    step = gn.newton_step(alone, cubic=strength)
    (x,), (y,) = marked(put(widget, name, strength))["its minimum"].values()
    assert x == pytest.approx(float(summary.third[s].abs() ** (1 / 3) * step.learning_rates))
    assert y == pytest.approx(-step.predicted_decrease)


@pytest.mark.parametrize("name", ["0.weight", "2.bias"])
def test_the_curves_are_the_loss_and_its_taylor_models(parts, widget, name):
    model, _, partition, u, summary = parts
    s = partition.names.index(name)
    drawn = marked(put(widget, name))
    x = drawn["loss"]["x"]
    eta = torch.zeros(POINTS, len(partition), dtype=torch.float64)
    eta[:, s] = torch.as_tensor(x) / summary.third[s].abs() ** (1 / 3)
    quadratic = (summary.taylor(eta, 2) - summary.value).numpy()
    third = (summary.third[s] * eta[:, s] ** 3 / 6).numpy()
    np.testing.assert_allclose(drawn["order 2"]["y"], quadratic, atol=1e-12)
    np.testing.assert_allclose(drawn["order 3"]["y"], quadratic - third, atol=1e-12)
    np.testing.assert_allclose(drawn["order 2 + cubic term"]["y"], quadratic + np.abs(third), atol=1e-12)
    moved = {n: p.detach() - partition.scale(u, eta[-1])[n] for n, p in partition.parameters.items()}
    data = gn.datasets.digits(dtype=torch.float64)
    after = F.cross_entropy(torch.func.functional_call(model, moved, (data.train_x[:50],)), data.train_y[:50])
    assert drawn["loss"]["y"][-1] == pytest.approx(float(after) - float(summary.value))


def test_parameters_are_put_back_also_when_the_loss_fails():
    model, loss, partition, u, _ = summarized(full_third=False, samples=50)
    before = [p.detach().clone() for p in model.parameters()]

    def failing():
        if not torch.equal(model[0].weight, before[0]):
            raise RuntimeError("no more")
        return loss()

    losses_along(loss, partition, u, np.array([0.5, 1.0]))
    with pytest.raises(RuntimeError, match="no more"):
        losses_along(failing, partition, u, np.array([0.0, 1.0]))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_where_d_vanishes_there_is_no_bound():
    a, b = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (2.0, 1.0))
    partition = gn.Partition.from_groups({"a": {"a": a}, "b": {"b": b}})

    def loss():
        return (a * b - 1) ** 2 / 2

    u = gn.direction.gradient(loss, partition)
    with pytest.raises(ValueError, match="expected a group with a slope and a third derivative"):
        CubicBound(loss, partition, u, summary=gn.summarize(loss, partition, u))
