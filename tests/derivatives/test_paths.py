"""The shorter way to the full D3 gives what the longer one gives, and is taken where it should be."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gnewton as gn
from gnewton.derivatives import sweep
from gnewton.derivatives.paths import find_paths
from gnewton.derivatives.record import record

DTYPE = torch.float64


def pooled():
    layers = [nn.Conv2d(2, 3, 3), nn.Tanh(), nn.MaxPool2d(2), nn.Conv2d(3, 2, 2), nn.Tanh(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(2, 3)), torch.randn(5, 2, 6, 6, dtype=DTYPE)


def chain():
    return gn.models.perceptron([4, 5, 3, 4, 3]), torch.randn(5, 4, dtype=DTYPE)


def two_branches():
    """The first activation is read twice: no way begins there."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.last = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)

        def forward(self, x):
            h = self.first(x).tanh()
            return self.last(h + self.second(h).tanh())

    return Model(), torch.randn(5, 4, dtype=DTYPE)


def built(make):
    torch.manual_seed(0)
    model, x = make()
    model.to(DTYPE)
    y = torch.randint(3, (5,))
    partition = gn.Partition.by_tensor(model)
    u = {n: torch.randn_like(p) for n, p in partition.parameters.items()}
    return lambda: F.cross_entropy(model(x), y), partition, u


@pytest.mark.parametrize(
    ("make", "expected"),
    [(chain, [["tanh", "linear"]]), (pooled, [["tanh", "max_pool2d_with_indices", "conv2d"]]), (two_branches, [])],
)
def test_ways_lead_from_the_first_activation_to_the_second_layer(make, expected):
    loss, partition, _ = built(make)
    paths = find_paths(record(loss, partition), len(partition)).values()
    assert [[o.name for o in (way.start, *way.between, way.end)] for way in paths] == expected


@pytest.mark.parametrize("make", [chain, pooled, two_branches])
def test_both_ways_give_the_same_tensor(make, monkeypatch):
    loss, partition, u = built(make)
    short = gn.summarize(loss, partition, u, full_third=True, engine="tape").third_full
    monkeypatch.setattr(sweep, "find_paths", lambda tape, most: {})
    long = gn.summarize(loss, partition, u, full_third=True, engine="tape").third_full
    # A few thousand float64 products in another order.
    torch.testing.assert_close(short, long, rtol=1e-12, atol=1e-12 * long.abs().max().item())


def test_many_groups_have_too_many_pairs():
    loss, partition, _ = built(chain)
    assert not find_paths(record(loss, partition), most=3)
