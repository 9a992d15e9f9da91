"""The memory of a sweep: what is counted is what is taken, and blocks of groups within it meet as they must."""

import json
import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest
import torch
from support.problems import build
from support.zoo import ZOO
from torch import nn

import gnewton as gn
from gnewton.derivatives import memory
from gnewton.derivatives.record import record

TESTS = Path(__file__).parents[1]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system does not tell the peak of a process")
def test_the_bound_holds():
    # Six tenths of what all groups need, so that blocks are swept. A fifth more, and 8 MB, for what is too small to count:
    # blocks that stay in the cache, buffers of matrix products, sums between groups.
    program = [sys.executable, str(TESTS / "support" / "peak_memory.py")]
    settings = {"PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "262144"}
    run = subprocess.run(program, env={**os.environ, **settings}, capture_output=True, text=True, check=True)
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(rows) == 11
    for row in rows:
        assert row["took"] <= 1.2 * row["max_memory"] + row["gradient"] + 8e6, row


@pytest.mark.filterwarnings("ignore::gnewton.loss.RandomLossWarning", "ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", [name for name, case in ZOO.items() if case.expected == "tape"][::8])
def test_nothing_is_counted_where_it_cannot_be_much(name):
    torch.manual_seed(0)
    problem = ZOO[name].build()
    partition = (ZOO[name].partition or gn.Partition.by_tensor)(problem.model)
    tape = record(problem.loss, partition)
    most = memory._at_most(tape, len(partition))
    assert all(memory.peak(tape, partition, *asked) < most for asked in ((2, False), (3, False), (3, True)))


class Tied(nn.Module):
    def __init__(self, words=500, n=4, layers=6):
        super().__init__()
        self.words = nn.Embedding(words, n)
        self.layers = nn.ModuleList(nn.Linear(n, n) for _ in range(layers))

    def forward(self, x):
        h = self.words(x)
        for layer in self.layers:
            h = h + layer(h).tanh()
        return h[:, -1:] @ self.words.weight.T


def test_a_large_parameter_costs_one_slice_and_not_one_per_group():
    model, x = Tied(), torch.zeros(1, 3, dtype=torch.long)
    partition = gn.Partition.by_layer(model)
    tape = record(lambda: nn.functional.cross_entropy(model(x)[:, 0], x[:, 0]), partition)
    table = 4 * model.words.weight.numel()
    assert memory.peak(tape, partition, order=2) < len(partition) * table
    # Cut up into rows, the same parameter takes a copy of the direction for each.
    rows = gn.Partition.by_row(model)
    assert memory.peak(record(lambda: model(x).square().sum(), rows), rows, order=2) > 500 * table


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.7, 1.0])
def test_all_groups_meet_and_blocks_fit(share, full):
    problem = build("perceptron")
    partition = gn.Partition.by_row(problem.model)
    tape = record(problem.loss, partition)
    room = share * memory.peak(tape, partition, 3, full)
    blocks = list(memory.group_blocks(tape, partition, 3, full, room))
    meet = 3 if full else 2
    met = {tuple(sorted(c)) for block in blocks for c in combinations(block, meet)}
    assert met == set(combinations(range(len(partition)), meet))
    assert (len(blocks) == 1) == (share == 1.0)
    table = memory._table(tape, partition, 3, full)
    used = [
        float(table[:, list(block)].sum(1).max()) + memory._adjoint_bytes(tape) for block in blocks if len(block) > meet
    ]
    assert all(bytes_ <= room for bytes_ in used)


def test_the_default_follows_what_is_free(monkeypatch):
    monkeypatch.setattr(memory, "_free_in_machine", lambda: 6e9)
    monkeypatch.setattr(memory, "_free_in_container", lambda: 4e9)
    assert memory.available(torch.device("cpu")) == 2e9
    monkeypatch.setattr(memory, "_free_in_machine", lambda: 1e6)
    assert memory.available(torch.device("cpu")) == 1e8
    assert memory.available(torch.device("meta")) == float("inf")


def test_a_container_leaves_its_limit_less_what_cannot_be_freed(tmp_path):
    assert memory._free_in_container(tmp_path) == float("inf")
    for name, text in {
        "memory.max": "1000",
        "memory.current": "700",
        "memory.stat": "anon 1\ninactive_file 200",
    }.items():
        (tmp_path / name).write_text(text)
    assert memory._free_in_container(tmp_path) == 500
    (tmp_path / "memory.max").write_text("max")
    assert memory._free_in_container(tmp_path) == float("inf")


def test_from_ten_megabytes_to_unlimited_the_numbers_are_the_same():
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(128, 128) if i % 2 == 0 else nn.Tanh() for i in range(8)]).double()
    x, y = torch.randn(400, 128, dtype=torch.float64), torch.randn(400, 128, dtype=torch.float64)
    partition = gn.Partition.by_tensor(model)

    def loss():
        return nn.functional.mse_loss(model(x), y)

    u = gn.direction.gradient(loss, partition)
    tape = record(loss, partition)
    assert memory.peak(tape, partition, 3) > 1e7  # so that the first needs blocks
    unlimited = gn.summarize(loss, partition, u, max_memory=float("inf"))
    for room in (1e7, 1.3e7, None):
        got = gn.summarize(loss, partition, u, max_memory=room)
        for name in ("gradient", "hessian", "third"):
            expected = getattr(unlimited, name)
            torch.testing.assert_close(getattr(got, name), expected, rtol=0, atol=1e-12 * expected.abs().max().item())
