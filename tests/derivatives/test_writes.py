"""Writes into tensors: random programs of in-place calls on values, views and views of views, against nested passes.

Each program keeps a tensor of zeros or of activations and writes into parts of it, drawn at random, in forms that autograd
accepts in any order (it keeps no old values of sums and copies); the parts that are read were views before the writes.
"""

from random import Random

import pytest
import torch
from support.problems import DTYPE
from torch import Tensor, nn

import gnewton as gn
from gnewton.derivatives.record import IncompleteRecordWarning, record
from gnewton.derivatives.recorder import Recorder

ROWS, COLUMNS = 4, 6
MASK = torch.arange(ROWS * COLUMNS).reshape(ROWS, COLUMNS) % 3 == 0
VIEWS = [
    lambda t: t,
    lambda t: t[1],
    lambda t: t[:, ::2],
    lambda t: t.T[2],
    lambda t: t.view(-1)[5:15],
    lambda t: t.view(2, 2, 6).transpose(0, 1)[1],
    lambda t: t.diagonal(),
    lambda t: t[1:3].select(1, 4),
    lambda t: t.view(ROWS, 3, 2)[..., 0].unsqueeze(1),
    lambda t: t.narrow(0, 2, 2).flatten(),
]
WRITES = [
    lambda v, new: v.copy_(new),
    lambda v, new: v.add_(new, alpha=-0.5),
    lambda v, new: v.sub_(new),
    lambda v, new: v.mul_(0.7),
    lambda v, new: v.div_(1.3),
    lambda v, new: v.fill_(0.3),
    lambda v, new: v.zero_(),
    lambda v, new: v.neg_(),
    lambda v, new: v.__setitem__(..., new),
    lambda v, new: v.__setitem__(0, new[-1]),
    lambda v, new: v.__setitem__(slice(1, None), new[:-1].detach()),
    lambda v, new: v.__setitem__([0, -1], new[[-1, 0]]),
    lambda v, new: v.__setitem__((..., slice(0, 1)), 2.0),
    lambda v, new: v.__setitem__(torch.ones_like(v, dtype=torch.bool), new.flatten()),
    lambda v, new: v.masked_fill_(torch.ones_like(v, dtype=torch.bool), 0.1),
    lambda v, new: v.__iadd__(new.sum()),
]


class Program(nn.Module):
    def __init__(self, seed: int, steps: int = 4) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.w = nn.Parameter(torch.randn(ROWS, COLUMNS, dtype=DTYPE))
        self.v = nn.Parameter(torch.randn(COLUMNS, dtype=DTYPE))
        draw = Random(seed)
        self.zeros = draw.random() < 0.3
        self.steps = [(draw.choice(VIEWS), draw.choice(WRITES), draw.choice(VIEWS)) for _ in range(steps)]

    def forward(self) -> Tensor:
        source = (self.w * self.v).tanh()
        memory = torch.zeros(ROWS, COLUMNS, dtype=DTYPE) if self.zeros else source + 0.1 * self.v
        before = [view(memory) for view, *_ in self.steps] if not self.zeros else []
        total = 0.1 * self.w.sin().sum()
        for view, write, read in self.steps:
            part = view(memory)
            new = (source + memory).flatten()[: part.numel()].reshape(part.shape).sin()
            write(part, new)
            total = total + read(memory).sum() * 0.1
        weights = torch.linspace(0.5, 1.5, ROWS * COLUMNS, dtype=DTYPE).view(ROWS, COLUMNS)
        return total + (memory.sin() * weights).mean() + sum((part + 1).exp().mean() for part in before)


@pytest.mark.parametrize("seed", range(60))
def test_tape_and_nested_passes_agree(seed):
    program = Program(seed)
    partition = gn.Partition.by_tensor(program)
    u = {name: torch.randn_like(p) for name, p in partition.parameters.items()}
    value = program().detach()
    expected = gn.summarize(program, partition, u, engine="nested", full_third=True)
    for options in ({}, {"full_third": True}, {"max_memory": 1.0}):
        summary = gn.summarize(program, partition, u, engine="tape", **options)
        assert torch.equal(summary.value, value)
        for name in ("gradient", "hessian", "third", "third_full"):
            got, want = getattr(summary, name), getattr(expected, name)
            # Some hundred roundings relative to the largest entry.
            assert got is None or (got - want).abs().max() <= 1e-11 * max(want.abs().max(), 1e-3), (name, options)


def test_a_view_that_is_believed_to_be_as_it_was_gives_wrong_numbers(monkeypatch):
    """The negative control: without a second look, a view that was overwritten through its base is out of the record."""
    w = nn.Parameter(torch.linspace(0.1, 1.0, 6, dtype=DTYPE))

    def loss():
        h = w * 1.0
        row = h[:2]
        h.mul_(3.0)
        return row.sin().sum()

    partition = gn.Partition.from_groups({"w": {"w": w}})
    assert record(loss, partition).missing is None
    monkeypatch.setattr(Recorder, "_look_again", lambda *arguments: None)
    assert record(loss, partition).missing


def test_values_that_no_rule_reads_are_not_copied():
    # A loop that fills a tensor row by row would keep as many copies of it as it has rows.
    w = nn.Parameter(torch.ones(3, dtype=DTYPE))

    def loss():
        rows = torch.zeros(50, 3, dtype=DTYPE)
        for i in range(50):
            rows[i] = w * i
        return rows.sin().sum()

    tape = record(loss, gn.Partition.from_groups({"w": {"w": w}}))
    kept = {
        v.value.untyped_storage()._cdata: v.value.untyped_storage().nbytes() for o in tape.operations for v in o.outputs
    }
    assert sum(kept.values()) < 10 * 50 * 3 * 8


def test_a_write_behind_a_recorded_value_is_found():
    w = nn.Parameter(torch.ones(3, dtype=DTYPE))

    def loss():
        h = w * 2.0
        later = h + 1
        h.detach().zero_()
        return later.sin().sum()

    assert "overwritten" in str(record(loss, gn.Partition.from_groups({"w": {"w": w}})).missing)


# Functions whose derivatives are computed from their values, which autograd keeps.
KEPT = {
    "exp": torch.exp,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "sqrt": torch.sqrt,
    "reciprocal": torch.reciprocal,
    "softmax": lambda t: t.softmax(-1),
    "log_softmax": lambda t: t.log_softmax(-1),
}


def written_unseen(t):
    with torch.no_grad():
        t.mul_(2.0)


UNSEEN = {"no_grad": written_unseen, "detach": lambda t: t.detach().mul_(2.0)}


def unseen_case(function, write):
    w = nn.Parameter(torch.linspace(0.3, 0.9, 6, dtype=DTYPE).reshape(2, 3))

    def loss():
        y = function(w * 1.5)
        write(y)
        return y.square().sum()

    return loss, gn.Partition.from_groups({"w": {"w": w}}), {"w": torch.ones_like(w, requires_grad=False)}


@pytest.mark.parametrize("engine", ["auto", "tape", "nested"])
@pytest.mark.parametrize("write", UNSEEN)
@pytest.mark.parametrize("name", KEPT)
def test_a_value_that_is_overwritten_unseen_is_refused(name, write, engine):
    loss, partition, u = unseen_case(KEPT[name], UNSEEN[write])
    with pytest.raises(ValueError, match="overwr"):
        gn.summarize(loss, partition, u, engine=engine)


@pytest.mark.parametrize("write", UNSEEN)
def test_a_value_that_no_derivative_reads_may_be_overwritten_unseen(write):
    # y = 2 sin x as a number, cos x as its slope: L = y^2 and dL/dw = 2 y cos(x) 1.5, as autograd has it.
    loss, partition, u = unseen_case(torch.sin, UNSEEN[write])
    x = partition.parameters["w"].detach() * 1.5
    expected = (4 * x.sin() * x.cos() * 1.5).sum()
    got = gn.summarize(loss, partition, u, engine="nested").gradient[0]
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)
    with pytest.warns(IncompleteRecordWarning, match="sin read or returned was overwritten"):
        assert gn.summarize(loss, partition, u).gradient[0] == got


def test_the_control_without_the_note_the_tape_takes_what_was_written(monkeypatch):
    loss, partition, u = unseen_case(torch.exp, written_unseen)
    append = Recorder._append

    def forgetful(recorder, operation, *rest):
        append(recorder, operation, *rest)
        recorder._read = [entry for entry in recorder._read if entry[2] is not operation]

    monkeypatch.setattr(Recorder, "_append", forgetful)
    got = gn.summarize(loss, partition, u).gradient[0]
    right = (4 * (1.5 * partition.parameters["w"].detach()).exp().square() * 1.5).sum()
    assert abs(got - right) > 0.5 * right
