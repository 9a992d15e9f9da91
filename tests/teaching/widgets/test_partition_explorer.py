"""The partition explorer: what it shows by the coarsening law is what the library computes for each partition."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import gnewton as gn
from gnewton.teaching import PartitionExplorer
from gnewton.teaching.widgets.partition_explorer import MERGES, PARTITIONS, STRENGTHS, VIEWS, by_unit, unit_groups


def network():
    data = gn.datasets.digits(dtype=torch.float64)
    x, y = data.train_x[:50], data.train_y[:50]
    model = gn.models.perceptron([64, 6, 5, 10], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return model, lambda: F.cross_entropy(model(x), y)


@pytest.fixture(scope="module")
def parts():
    return network()


@pytest.fixture(scope="module")
def widget(parts):
    return PartitionExplorer(*parts)


def put(widget, partition="by tensor", merged=1, view="H-bar", strength=1.0):
    widget.partition.value, widget.merged.value = partition, merged
    widget.view.value, widget.strength.value = view, strength
    assert widget.children[-1].value == ""
    return widget


@pytest.mark.parametrize("name", PARTITIONS)
def test_what_it_shows_is_the_summary_of_the_partition(parts, widget, name):
    model, loss = parts
    partition = PARTITIONS[name](model)
    summary = gn.summarize(loss, partition, gn.direction.gradient(loss, partition), order=3)
    shown = put(widget, name).summary()
    assert shown.names == partition.names
    # Sums of the same numbers in another order.
    torch.testing.assert_close(shown.hessian, summary.hessian, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(shown.third, summary.third, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(widget.figure.axes[0].get_images()[0].get_array(), shown.hessian)


@pytest.mark.parametrize("name", PARTITIONS)
def test_promise_and_fall_are_those_of_the_step(widget, name):
    model, loss = network()
    partition = PARTITIONS[name](model)
    u = gn.direction.gradient(loss, partition)
    step = gn.newton_step(gn.summarize(loss, partition, u, order=3), cubic=1.0)
    before = loss().item()
    with torch.no_grad():
        for parameter, change in partition.scale(u, step.learning_rates).items():
            partition.parameters[parameter].sub_(change)
    told, fall, status = put(widget, name)._decrease(name, 1)
    assert (told, fall, status) == pytest.approx((step.predicted_decrease, before - loss().item(), "CONVERGED"))


def test_merging_neighbours_is_coarsening(parts, widget):
    model, loss = parts
    coarse = gn.Partition.by_tensor(model).coarsen([[0, 1, 2, 3], [4, 5]])
    summary = gn.summarize(loss, coarse, gn.direction.gradient(loss, coarse), order=2)
    torch.testing.assert_close(put(widget, merged=4).summary().hessian, summary.hessian, rtol=1e-9, atol=1e-12)
    assert put(widget, merged=4).summary().names == ("0.weight to 2.bias", "4.weight to 4.bias")


@pytest.mark.parametrize(
    ("control", "value"),
    [
        *[("partition", name) for name in PARTITIONS if name != "by tensor"],
        *[("merged", k) for k in MERGES if k > 1],
        *[("strength", v) for v in STRENGTHS if v != 1],
        ("view", VIEWS[1]),
    ],
)
def test_a_control_moves_picture_and_sentence(widget, control, value):
    put(widget)
    picture, sentence = widget.png, widget.sentence
    getattr(widget, control).value = value
    assert widget.children[-1].value == ""
    assert widget.png != picture
    # The view is another picture of the same step.
    assert (widget.sentence != sentence) == (control != "view")


def test_a_state_given_at_construction_is_the_state_that_the_controls_reach(parts, widget):
    state = {"partition": "by row", "merged": 8, "view": "interactions", "strength": 3.0}
    given = PartitionExplorer(*parts, **state)
    assert repr(given) == repr(put(widget, **state))
    assert given.png == widget.png


def test_the_parameters_stay_where_they_are():
    model, loss = network()
    before = [p.detach().clone() for p in model.parameters()]
    PartitionExplorer(model, loss).partition.value = "by row"
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_no_label_leaves_the_picture(widget):
    for state in ({"partition": "by row"}, {"partition": "two blocks"}, {"partition": "by row", "merged": 8}):
        put(widget, **state)
        for axes in widget.figure.axes:
            box = axes.get_tightbbox()
            assert min(box.x0, box.y0) >= 0
            assert box.x1 <= widget.figure.bbox.x1


def test_units_are_finer_than_every_partition_and_complete():
    model, _ = network()
    units = by_unit(model)
    assert sum(units.sizes) == sum(p.numel() for p in model.parameters())
    for make in PARTITIONS.values():
        partition = make(model)
        groups = unit_groups(units, partition)
        assert sorted(i for members in groups.values() for i in members) == list(range(len(units)))
        assert tuple(sum(units.sizes[i] for i in members) for members in groups.values()) == partition.sizes
