"""Rules that work in tiles give the same numbers in one tile and in as many as there are.

Both are float64 and differ by the order in which a few hundred products are summed: below 1e-12 of the largest entry.
"""

import pytest
import torch
from support.zoo import ZOO

import gnewton as gn
from gnewton.derivatives.record import record
from gnewton.derivatives.rules import tiles
from gnewton.derivatives.rules.norms import Standardize
from gnewton.derivatives.rules.softmax import Softmax

pytestmark = [
    pytest.mark.filterwarnings("ignore::gnewton.loss.RandomLossWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning"),
    pytest.mark.filterwarnings("ignore:Dynamo:UserWarning"),
]
WORDS = ("log_softmax", "softmax", "BatchNorm", "LayerNorm", "GroupNorm", "InstanceNorm", "encoder", "attention")
# Of the zoo's models with such a word, these three kinds hold neither rule.
OTHERS = ("eval", "RMSNorm", "LocalResponseNorm")


def holds_tiles(name):
    return ZOO[name].expected == "tape" and any(w in name for w in WORDS) and not any(w in name for w in OTHERS)


NAMED = [name for name in ZOO if holds_tiles(name)]


def summary(name, order):
    case = ZOO[name]
    torch.manual_seed(0)
    problem = case.build()
    partition = (case.partition or gn.Partition.by_tensor)(problem.model)
    torch.manual_seed(1)
    tiled = [o for o in record(problem.loss, partition).operations if isinstance(o.rule, Softmax | Standardize)]
    torch.manual_seed(1)
    return tiled, gn.summarize(problem.loss, partition, problem.direction(partition), order=order, engine="tape")


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("name", NAMED)
def test_the_smallest_tiles_give_the_same(name, order, monkeypatch):
    tiled, whole = summary(name, order)
    assert tiled
    made = []
    monkeypatch.setattr(
        tiles, "_cut", lambda axis, start, length, t: made.append(start) or t.narrow(axis, start, length)
    )
    monkeypatch.setattr(tiles, "_BYTES", 1)
    small = summary(name, order)[1]
    assert max(made, default=0) > 0 or all(o.outputs[0].value.dim() == 1 for o in tiled)  # there was more than one tile
    for got, expected in ((small.gradient, whole.gradient), (small.hessian, whole.hessian), (small.third, whole.third)):
        if expected is not None:
            scale = max(expected.abs().max().item(), whole.gradient.abs().max().item() * 1e-6)
            assert (got - expected).abs().max() <= 1e-12 * scale


def test_a_tile_left_out_is_seen(monkeypatch):
    _, whole = summary("log_softmax", 2)
    cuts = tiles.tiles
    monkeypatch.setattr(tiles, "_BYTES", 1)
    monkeypatch.setattr("gnewton.derivatives.rules.softmax.tiles", lambda *given: list(cuts(*given))[1:])
    _, short = summary("log_softmax", 2)
    assert (short.hessian - whole.hessian).abs().max() > 1e-6 * whole.hessian.abs().max()
