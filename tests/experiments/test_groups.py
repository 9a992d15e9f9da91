"""Rates per group: the closed form of the proportions, what noise does to them, and what the page says of the results."""

import numpy as np
import pytest
import torch
from support.problems import DTYPE, build

import gnewton as gn
from gnewton import experiments
from gnewton.experiments import groups
from gnewton.experiments.groups import NETWORKS, PEERS, AllLooks, PerGroup, proportions


def looks(slopes, curvature):
    return [(torch.tensor(slope, dtype=DTYPE), torch.tensor(curvature, dtype=DTYPE)) for slope in slopes]


def test_without_noise_every_group_gets_newton_s_rate_within_the_bound():
    curvature = np.array([[3.0, 1.0], [1.0, 2.0]])
    slope = np.array([2.0, 1.5])
    factors = proportions(looks([slope, slope], curvature), rate=0.5, bound=10.0, pooled=True)
    assert 0.5 * factors == pytest.approx(np.linalg.solve(curvature, slope), rel=1e-12)
    bounded = proportions(looks([slope, slope], curvature), rate=0.1, bound=2.0, pooled=True)
    assert bounded.tolist() == [2.0, 2.0]


def test_noise_pools_towards_the_common_rate_and_only_where_it_is_asked_for():
    generator = np.random.default_rng(0)
    curvature, rate = np.eye(3), 1.0
    noisy = [np.ones(3) + generator.normal(0, 50, 3) for _ in range(6)]
    assert proportions(looks(noisy, curvature), rate, 4.0, True).tolist() == pytest.approx([1.0] * 3, abs=0.7)
    raw = proportions(looks(noisy, curvature), rate, 4.0, False)
    assert np.abs(np.log(raw)).max() > 1


def test_groups_of_a_unit_of_their_own_get_their_rates_within_the_bound():
    a, b = (torch.nn.Parameter(torch.full((2,), 3.0, dtype=DTYPE)) for _ in range(2))
    partition = gn.Partition.from_groups({"a": {"a": a}, "b": {"b": b}})
    adam = torch.optim.Adam([a, b], lr=1.0, betas=(0.9, 0.99))
    optimizer = gn.GroupedNewton(partition, adam, policy=PerGroup())
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        shift = 0.1 * torch.randn(2, generator=generator, dtype=DTYPE)
        optimizer.step(lambda s=shift: 10 * (a - s).square().sum() + (b - s).square().sum())
    held = optimizer.state_dict()["state"]["grouped_newton"]["policy"]["proportions"]
    assert held.shape == (2,)
    assert bool(((held >= 0.25) & (held <= 4)).all())
    assert a.detach().abs().max() < 1


def test_until_step_fifteen_it_is_the_one_rate():
    curves = []
    for policy in (PerGroup(), AllLooks()):
        case = build("perceptron")
        adam = torch.optim.Adam(case.model.parameters(), lr=1.0)
        optimizer = gn.GroupedNewton(gn.Partition.by_tensor(case.model), adam, policy=policy)
        curves.append([float(optimizer.step(case.loss)) for _ in range(30)])
    assert curves[0][:16] == curves[1][:16]
    assert curves[0][20:] != curves[1][20:]


def test_the_shipped_results_are_complete_and_say_what_the_page_says():
    shipped = experiments.load("groups")
    assert shipped["seeds"] == 5
    assert set(shipped["networks"]) == set(NETWORKS)
    means = {
        name: [groups.geometric(ratios[budget]) for budget in groups.BUDGETS]
        for name, ratios in groups.table(shipped).items()
    }
    assert set(means) == {peer.name for peer in PEERS[1:]}
    # Per layer a little is gained by steps; the freer rates gain nothing.
    assert min(means, key=lambda name: means[name][0]) == "layer-2"
    soon, late = means["layer-2"]
    assert 0.93 < soon < late < 0.97
    assert 0.97 < min(means["tensor-raw"]) <= max(means["tensor-raw"]) < 1.03
    assert all(means[name][1] > 1.1 for name in ("tensor-4", "tensor-2", "kind-2"))
    ratios = {key: one["ratios"] for key, one in shipped["networks"].items()}
    layers = {budget: [one["layer-2"][str(budget)] for one in ratios.values()] for budget in groups.BUDGETS}
    assert [sum(ratio < 1 for ratio in some) for some in layers.values()] == [9, 8]
    assert max(ratios, key=lambda key: ratios[key]["layer-2"]["10"]) == "vgg-batch-norm"
    assert 1.4 < ratios["vgg-batch-norm"]["layer-2"]["10"] < 1.6
    assert 3.5 < ratios["lenet"]["tensor-4"]["10"] < 3.7


def test_networks_with_fewer_seeds_are_named():
    shipped = experiments.load("groups")
    assert shipped["networks"]["vgg-batch-norm"]["seeds"] == 1
    assert "5 seeds each; lenet 2, vgg-batch-norm 1, residual 2." in groups.report(shipped)
