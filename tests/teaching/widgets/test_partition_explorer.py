"""The partition explorer: what it shows by the coarsening law is what the library computes for each partition."""

import numpy as np
import pytest
import torch
from support.widgets import network

import gnewton as gn
from gnewton.teaching import PartitionExplorer
from gnewton.teaching.widgets.partition_explorer import PARTITIONS, by_unit, heat_of, unit_groups


@pytest.fixture(scope="module")
def parts():
    return network(6, 5)


@pytest.fixture(scope="module")
def widget(parts):
    return PartitionExplorer(*parts)


def put(widget, partition="by tensor", merged=1, view="H-bar", strength=1.0):
    widget.partition.value, widget.merged.value = partition, merged
    widget.view.value, widget.strength.value = view, strength
    assert widget._problem == ""
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
    np.testing.assert_allclose(widget.now.numbers[0]["z"], shown.hessian)


@pytest.mark.parametrize("name", PARTITIONS)
def test_promise_and_fall_are_those_of_the_step(widget, name):
    model, loss = network(6, 5)
    partition = PARTITIONS[name](model)
    u = gn.direction.gradient(loss, partition)
    step = gn.newton_step(gn.summarize(loss, partition, u, order=3), cubic=1.0)
    before = loss().item()
    with torch.no_grad():
        for parameter, change in partition.scale(u, step.learning_rates).items():
            partition.parameters[parameter].sub_(change)
    told, fall, status = put(widget, name)._decrease(name, 1, 1.0)
    assert (told, fall, status) == pytest.approx((step.predicted_decrease, before - loss().item(), "CONVERGED"))


def test_merging_neighbours_is_coarsening(parts, widget):
    model, loss = parts
    coarse = gn.Partition.by_tensor(model).coarsen([[0, 1, 2, 3], [4, 5]])
    summary = gn.summarize(loss, coarse, gn.direction.gradient(loss, coarse), order=2)
    torch.testing.assert_close(put(widget, merged=4).summary().hessian, summary.hessian, rtol=1e-9, atol=1e-12)
    assert put(widget, merged=4).summary().names == ("0.weight to 2.bias", "4.weight to 4.bias")


def test_the_parameters_stay_where_they_are():
    model, loss = network(6, 5)
    before = [p.detach().clone() for p in model.parameters()]
    PartitionExplorer(model, loss).partition.value = "by row"
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_units_are_finer_than_every_partition_and_complete():
    model, _ = network(6, 5)
    units = by_unit(model)
    assert sum(units.sizes) == sum(p.numel() for p in model.parameters())
    for make in PARTITIONS.values():
        partition = make(model)
        groups = unit_groups(units, partition)
        assert sorted(i for members in groups.values() for i in members) == list(range(len(units)))
        assert tuple(sum(units.sizes[i] for i in members) for members in groups.values()) == partition.sizes


@pytest.mark.parametrize("merged", [1, 2])
@pytest.mark.parametrize("name", PARTITIONS)
def test_the_sentence_tells_the_two_maps_apart(widget, name, merged):
    said = {view: put(widget, name, merged, view).sentence for view in ("H-bar", "interactions")}
    assert said["interactions"] == said["H-bar"] + " The map shows interactions."


@pytest.mark.parametrize("view", ["H-bar", "interactions"])
@pytest.mark.parametrize("shapes", [[()], [(), (3,)], [(2, 2), ()], [(1, 1, 1)]])
def test_a_model_of_any_shapes_has_its_units(shapes, view):
    layers = [torch.nn.ParameterList([torch.ones(s, dtype=torch.float64) for s in some]) for some in (shapes, [(2,)])]
    model = torch.nn.ModuleList(layers)
    parameters = list(model.parameters())
    sizes = [p[0].numel() if p.dim() else 1 for p in parameters for _ in range(len(p) if p.dim() else 1)]
    assert list(by_unit(model).sizes) == sizes
    widget = PartitionExplorer(model, lambda: sum(p.square().sum() for p in parameters), view=view)
    # A bowl is at its bottom after one step of Newton's.
    falls = f"the loss falls by {sum(sizes):.3g}"
    assert all(falls in put(widget, name, view=view, strength=0.1).sentence for name in PARTITIONS)
    assert widget.png


def test_without_curvature_the_map_of_interactions_is_blank():
    flat, curved = (np.diag(values) for values in ([0.0, 0.0], [0.0, 4.0]))
    assert np.isnan(heat_of(flat, "interactions")["z"]).all()
    assert heat_of(flat, "interactions")["scale"] == {"linear": 0.1, "high": 1.0}
    assert heat_of(curved, "interactions")["z"][1, 1] == 1.0
