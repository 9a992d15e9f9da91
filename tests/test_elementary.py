"""Norm layers: the written-out value is torch's, and the summary is right to the third order, which torch's kernels are not.

The oracle is a central difference of the summary one order lower, which needs right derivatives of that order alone:
error h^2 times a higher derivative, about 1e-6 at h = 1e-4, beside 1e-13 / h of rounding.
"""

import copy
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

import gnewton as gn
from gnewton.derivatives import nested
from gnewton.elementary import Elementary

NORMS = {
    "layer norm": lambda: nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3)),
    "batch norm": lambda: nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)),
    "batch norm, no affine": lambda: nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6, affine=False), nn.Linear(6, 3)),
    "batch norm, evaluation": lambda: nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)).eval(),
    "group norm": lambda: nn.Sequential(nn.Linear(6, 6), nn.GroupNorm(2, 6), nn.Linear(6, 3)),
    "instance norm": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 2, 3), nn.InstanceNorm1d(2, affine=True), nn.Flatten(), nn.Linear(8, 3)
    ),
    "weight norm": lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 6)), nn.Tanh(), nn.Linear(6, 3)),
    "RMS norm": lambda: nn.Sequential(nn.Linear(6, 6), nn.RMSNorm(6), nn.Linear(6, 3)),
    "transformer": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 3)),
        nn.Linear(3, 4),
        nn.TransformerEncoderLayer(4, 2, 5, 0.0, batch_first=True),
        nn.Flatten(),
        nn.Linear(8, 3),
    ),
}


def problem(name):
    torch.manual_seed(0)
    model = NORMS[name]().to(torch.float64)
    x, y = torch.randn(12, 6, dtype=torch.float64), torch.randint(3, (12,))
    partition = gn.Partition.single(model)
    u = {n: torch.randn_like(p) / 3 for n, p in partition.parameters.items()}
    return model, lambda: F.cross_entropy(model(x), y), partition, u


def move(partition, u, step):
    with torch.no_grad():
        for name, p in partition.parameters.items():
            p.add_(u[name], alpha=step)


def difference(loss, partition, u, order, h=1e-4):
    """(D^order L at theta + h u, minus that at theta - h u) / 2h = D^(order+1) L[u, ..., u]."""
    ends = []
    for step in (h, -2 * h):
        move(partition, u, step)
        s = gn.summarize(loss, partition, u, order=order)
        ends.append((s.gradient if order == 1 else s.hessian).item())
    move(partition, u, h)
    return (ends[0] - ends[1]) / (2 * h)


@pytest.mark.parametrize("name", NORMS)
def test_the_summary_agrees_with_differences_of_the_order_below(name):
    _, loss, partition, u = problem(name)
    s = gn.summarize(loss, partition, u)
    assert s.hessian.item() == pytest.approx(difference(loss, partition, u, 1), rel=1e-4, abs=1e-6)
    assert s.third.item() == pytest.approx(difference(loss, partition, u, 2), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", NORMS)
def test_the_third_order_is_symmetric(name):
    model, loss, _, _ = problem(name)
    partition = gn.Partition.by_layer(model)
    u = {n: torch.randn_like(p) for n, p in partition.parameters.items()}
    full = gn.summarize(loss, partition, u, full_third=True).third_full
    for order in ((0, 2, 1), (1, 0, 2), (2, 1, 0)):
        torch.testing.assert_close(full.permute(order), full, rtol=1e-9, atol=1e-9 * full.abs().max().item())


def test_torchs_fused_kernels_need_it():
    # When this fails, torch has mended its kernels, and the detour can go.
    _, loss, partition, u = problem("layer norm")
    fused = nested.summary(loss(), partition, u)[2].item()
    assert fused != pytest.approx(difference(loss, partition, u, 2), rel=1e-2)


@pytest.mark.parametrize("name", NORMS)
def test_values_and_running_statistics_are_torchs(name):
    model, _, _, _ = problem(name)
    twin = copy.deepcopy(model)
    x = torch.randn(12, 6, dtype=torch.float64)
    with Elementary():
        written_out = model(x)
    torch.testing.assert_close(written_out, twin(x), rtol=1e-10, atol=1e-12)
    for (buffer_name, ours), theirs in zip(model.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12, msg=buffer_name)


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 3), (5, 4, 3, 2)])
def test_batch_norm_of_every_dimension(shape):
    x = torch.randn(shape, dtype=torch.float64)
    w, b = torch.randn(4, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    with Elementary():
        ours = F.batch_norm(x, None, None, w, b, training=True)
    torch.testing.assert_close(ours, F.batch_norm(x, None, None, w, b, training=True))


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_weight_norm_of_every_axis(dim):
    v = torch.randn(4, 3, dtype=torch.float64)
    g = torch.randn({0: (4, 1), 1: (1, 3), -1: (1, 1)}[dim], dtype=torch.float64)
    with Elementary():
        ours = torch._weight_norm(v, g, dim)
    reference = torch._weight_norm(v, g, dim) if dim != -1 else v * g / v.norm()
    torch.testing.assert_close(ours, reference)


# -- branches -------------------------------------------------------------------------------------------------------------


def branched(threshold, choose):
    a = nn.Parameter(torch.tensor([0.5, 1.0], dtype=torch.float64))
    partition = gn.Partition.from_groups({"a": {"a": a}})
    above, below = (lambda t, b: (t * b).sin()), (lambda t, b: (t * b).exp())
    loss = lambda: choose(a.sum() > threshold, above, below, (a, a.square())).square().sum()  # noqa: E731
    return loss, partition, {"a": torch.tensor([0.7, -0.2], dtype=torch.float64)}


@pytest.mark.parametrize("engine", ["auto", "tape", "nested"])
@pytest.mark.parametrize("threshold", [0.0, 9.0])
def test_a_branch_is_differentiated_as_it_runs(threshold, engine):
    import torch._dynamo  # as whoever compiled or exported a model has

    plain = gn.summarize(*branched(threshold, lambda p, yes, no, operands: (yes if p else no)(*operands)))
    got = gn.summarize(*branched(threshold, torch.cond), engine=engine)
    torch.testing.assert_close(got.hessian, plain.hessian, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got.third, plain.third, rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:Dynamo detected:UserWarning")
def test_where_the_compiler_would_run_or_is_missed_the_sentence_says_what_to_write(monkeypatch):
    import torch._dynamo

    loss, partition, u = branched(0.0, torch.cond)
    # Of the first order alone, torch's own functions are called, whose backward the compiler traces.
    with pytest.raises(NotImplementedError, match="write true_fn"):
        gn.direction.gradient(loss, partition)
    # Where nobody has loaded the compiler before, torch.cond does.
    monkeypatch.setattr("gnewton.loss._uncompiled", nullcontext)
    with pytest.raises(NotImplementedError, match="write true_fn"):
        gn.summarize(loss, partition, u)
