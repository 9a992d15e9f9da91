"""The estimate of what a summary costs, and the one sentence where that is much."""

import io
import sys
import warnings

import pytest
import torch
from torch import nn

import gnewton as gn
from gnewton.derivatives import price
from gnewton.derivatives.record import record


def build(layers=10, n=64):
    torch.manual_seed(0)
    model = nn.Sequential(*[module for _ in range(layers) for module in (nn.Linear(n, n), nn.Tanh())])
    x = torch.randn(32, n)
    return gn.Partition.by_layer(model), lambda: model(x).square().mean()


def test_the_estimate_counts_each_sweep_of_a_group():
    partition, loss = build()
    tape, everyone = record(loss, partition), tuple(range(len(partition)))
    one, work = price.estimate(tape, [everyone], 2)
    assert 1 < one < 1 + len(partition)
    twice, more = price.estimate(tape, [everyone, everyone], 2)
    assert twice - 1 == pytest.approx(2 * (one - 1))
    assert price.estimate(tape, [everyone], 3)[0] == pytest.approx(twice)
    assert more > work


def test_a_wide_chain_costs_what_is_counted_for_it():
    # 1 + S/6 gradients where products of width n rule; here they are 20 n / 20 as much as everything else together.
    partition, loss = build(n=1024)
    tape = record(loss, partition)
    assert price.estimate(tape, [range(10)], 2)[0] == pytest.approx(1 + 10 / 6, rel=0.25)


def test_one_sentence_where_it_takes_long(monkeypatch):
    partition, loss = build()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gn.summarize(loss, partition, max_memory=1.0)  # many sweeps of little work
    monkeypatch.setattr(price, "_WORK", 1e6)
    monkeypatch.setattr(price, "_LONG", 10)
    with pytest.warns(price.LongSummaryWarning, match="sweeps: 45.*more max_memory.*data="):
        gn.summarize(loss, partition, max_memory=1.0)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("stream", "shown"), [(Terminal, True), (io.StringIO, False)])
def test_a_bar_in_a_terminal_from_the_second_sweep_on(stream, shown, monkeypatch):
    pytest.importorskip("tqdm")
    partition, loss = build()
    monkeypatch.setattr("sys.stderr", stream())
    whole = gn.summarize(loss, partition)
    assert sys.stderr.getvalue() == ""
    swept = gn.summarize(loss, partition, max_memory=1.0)
    assert ("sweeps" in sys.stderr.getvalue() and "1/45" in sys.stderr.getvalue()) is shown
    torch.testing.assert_close(swept.hessian, whole.hessian)


@pytest.mark.parametrize(
    ("units", "steps", "groups", "order", "engine"),
    [
        (4, 30, "single", 3, "nested"),
        (4, 30, "single", 2, "nested"),
        (4, 30, "by_tensor", 3, "tape"),  # a second group costs nested passes as much as all groups cost a sweep
        (4, 3, "single", 3, "tape"),  # few operations
        (256, 30, "single", 3, "tape"),  # large ones
    ],
)
def test_a_long_list_of_tiny_operations_and_one_group_is_nested(units, steps, groups, order, engine):
    torch.manual_seed(0)
    model, x = nn.LSTM(units, units, dtype=torch.float64), torch.randn(steps, 8, units, dtype=torch.float64)
    partition, loss = getattr(gn.Partition, groups)(model), lambda: model(x)[0].square().mean()
    u = gn.direction.gradient(loss, partition)
    auto = gn.summarize(loss, partition, u, order=order)
    assert auto.engine == engine
    other = gn.summarize(loss, partition, u, order=order, engine={"tape": "nested", "nested": "tape"}[engine])
    # Nested passes keep no bound on the memory.
    assert gn.summarize(loss, partition, u, order=order, max_memory=1e9).engine == "tape"
    for a, b in zip(auto.tensors(), other.tensors(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)
