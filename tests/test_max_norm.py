"""An embedding with max_norm shortens the rows that it reads: refused, and the parameters stay as they were, whoever asks.

Within the limit the loss is that of the rows without one, which is the oracle.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gnewton as gn
from gnewton.direction import _UNLIMITED

WORDS = torch.tensor([[0, 2], [1, 2]])


def table(rows=5):
    return nn.Parameter(torch.linspace(-2, 3, 3 * rows, dtype=torch.float64).reshape(rows, 3))


def module(kind):
    def look_up(weight, limit):
        layer = kind.from_pretrained(weight, freeze=False, max_norm=limit)
        layer.weight = weight
        return layer(WORDS)

    return look_up


# How rows are looked up, and the same by indices.
LOOKUPS = {
    "Embedding": (module(nn.Embedding), lambda w: w[WORDS]),
    "EmbeddingBag": (module(nn.EmbeddingBag), lambda w: w[WORDS].mean(1)),
    "embedding": (lambda w, limit: F.embedding(WORDS, w, max_norm=limit), lambda w: w[WORDS]),
    "embedding, by place": (lambda w, limit: F.embedding(WORDS, w, None, limit, 1.0), lambda w: w[WORDS]),
    "bag": (lambda w, limit: F.embedding_bag(WORDS, w, max_norm=limit), lambda w: w[WORDS].mean(1)),
    "bag, sum": (lambda w, limit: F.embedding_bag(WORDS, w, max_norm=limit, mode="sum"), lambda w: w[WORDS].sum(1)),
    "bag, by names": (
        lambda w, limit: F.embedding_bag(weight=w, input=WORDS.flatten(), offsets=torch.tensor([0, 2]), max_norm=limit),
        lambda w: w[WORDS].mean(1),
    ),
}
ASKS = {
    **{
        engine: lambda loss, partition, u, engine=engine: gn.summarize(loss, partition, u, engine=engine)
        for engine in ("auto", "tape", "nested", "differences")
    },
    "gradient": lambda loss, partition, u: gn.direction.gradient(loss, partition),
    "step": lambda loss, partition, u: gn.GroupedNewton(partition).step(loss),
    "adaptive step": lambda loss, partition, u: gn.GroupedNewton(partition, cubic="adaptive").step(loss),
    "step of Adam": lambda loss, partition, u: gn.GroupedNewton(
        partition, torch.optim.Adam(partition.parameters.values())
    ).step(loss),
    "step by differences": lambda loss, partition, u: gn.GroupedNewton(partition, engine="differences").step(loss),
    "Hessian-free direction": lambda loss, partition, u: gn.StochasticNewton(partition).step(loss),
}


def problem(name, limit):
    weight = table()
    loss = lambda: LOOKUPS[name][0](weight, limit).sin().sum()  # noqa: E731
    return weight, loss, gn.Partition.from_groups({"rows": {"weight": weight}}), {"weight": torch.ones_like(weight)}


@pytest.mark.parametrize("ask", ASKS)
@pytest.mark.parametrize("name", LOOKUPS)
def test_rows_that_would_be_shortened_are_refused_and_nothing_changes(name, ask):
    weight, loss, partition, u = problem(name, 0.5)
    before = weight.detach().clone()
    # Twice: a refusal is none that is asked once.
    for _ in range(2):
        with pytest.raises(ValueError, match="max_norm"):
            ASKS[ask](loss, partition, u)
        assert torch.equal(weight, before)


@pytest.mark.parametrize("name", LOOKUPS)
def test_the_control_torch_writes_into_the_rows(name):
    weight, loss, _, _ = problem(name, 0.5)
    before = weight.detach().clone()
    loss()
    assert not torch.equal(weight, before)


@pytest.mark.parametrize("engine", ["tape", "nested", "differences"])
@pytest.mark.parametrize("name", LOOKUPS)
def test_rows_within_the_limit_are_taken(name, engine):
    weight, loss, partition, u = problem(name, 100.0)
    got = gn.summarize(loss, partition, u, engine=engine)
    expected = gn.summarize(lambda: LOOKUPS[name][1](weight).sin().sum(), partition, u)
    # Differences are right to about 1e-8 here.
    for ours, theirs in zip(got.tensors(), expected.tensors(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", LOOKUPS)
def test_steps_within_the_limit_go_on_until_a_row_leaves_it(name):
    weight, loss, partition, _ = problem(name, 100.0)
    optimizer = gn.GroupedNewton(partition, lr=0.01)
    for _ in range(3):
        optimizer.step(loss)
    with torch.no_grad():
        weight[2] = 1e3
    before = weight.detach().clone()
    with pytest.raises(ValueError, match="max_norm"):
        optimizer.step(loss)
    assert torch.equal(weight, before)


def test_a_loss_without_a_limit_is_watched_once():
    weight, limited, partition, _ = problem("embedding", 100.0)

    def plain():
        return F.embedding(WORDS, weight).sin().sum()

    for loss in (limited, plain):
        gn.direction.gradient(loss, partition)
    assert _UNLIMITED[partition] == {plain.__code__}
