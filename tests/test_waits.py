"""A step waits for the device a fixed number of times, however many parameters and groups there are.

Each wait costs what an idle card costs. Calls that wait are counted on the CPU, where they are as many; with CUDA torch's
sync debug mode has to see no more than these. A step needs

    one before it moves     the numbers of the summary or of the slope, by which the S x S problem is solved on the CPU; with
                            them comes whether loss, gradient and direction are finite
    one for each trial      the loss there: the policy decides by it whether to stay

A summary that is asked for by itself has three: its direction, the loss and its numbers are finite.
"""

import warnings
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gnewton as gn
from benchmarks.waits import Waits

SUMMARY = 3
BEFORE = 1


def problem(layers, device="cpu", **settings):
    """The optimizer, a step and a summary of a perceptron with so many hidden layers."""
    draw = torch.Generator().manual_seed(0)
    model = gn.models.perceptron([6, *[5] * layers, 3], "tanh", generator=draw).to(device)
    x, y = torch.randn(12, 6, generator=draw).to(device), (torch.arange(12) % 3).to(device)
    partition = gn.Partition.by_tensor(model)

    def loss():
        return F.cross_entropy(model(x), y)

    proposer = torch.optim.RMSprop(model.parameters(), lr=1.0, momentum=0.9)
    optimizer = gn.GroupedNewton(partition, proposer, **({"lr": 0.1} | settings))
    u = gn.direction.gradient(loss, partition)
    return optimizer, lambda: optimizer.step(loss), lambda: gn.summarize(loss, partition, u)


def waits(function, times=1, device="cpu"):
    """The waits of each call after the first, whose own are not counted."""
    starts = []
    with Waits(device) as seen:
        for _ in range(times + 1):
            starts.append(len(seen.places))
            function()
    return [seen.places[a:b] for a, b in pairwise([*starts[1:], len(seen.places)])]


@pytest.mark.parametrize("layers", [1, 6])
def test_a_summary_waits_for_its_three_checks(layers):
    (places,) = waits(problem(layers)[2])
    assert len(places) == SUMMARY


@pytest.mark.parametrize("layers", [1, 6])
def test_an_adaptive_step_waits_once_and_for_its_trials(layers):
    optimizer, step, _ = problem(layers)
    for places, outcome in zip(waits(step, times=7), list(optimizer.history)[1:], strict=True):
        assert len(places) == BEFORE + outcome.evaluations, places
    assert {outcome.age for outcome in optimizer.history} > {0, 1}


@pytest.mark.parametrize("layers", [1, 6])
def test_a_step_of_fixed_rates_waits_once_and_with_a_new_summary_for_the_loss_it_reports(layers):
    _, step, _ = problem(layers, cubic=1.0, period=2)
    assert [len(places) for places in waits(step, times=4)] == [BEFORE, BEFORE + 1] * 2


@pytest.mark.parametrize("layers", [1, 6])
def test_a_calibrated_step_waits_once_and_where_it_looks_back_for_the_loss_there(layers):
    _, step, _ = problem(layers, policy=gn.policies.Calibrated(steps=3, period=4))
    assert [len(places) for places in waits(step, times=8)] == [2, 2, 2, 2, 1, 1, 1, 2]


@pytest.mark.parametrize("layers", [1, 6])
def test_a_training_step_of_torch_waits_once(layers):
    model = gn.models.perceptron([6, *[5] * layers, 3], "tanh")
    batch = torch.randn(12, 6), torch.arange(12) % 3
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    (one, three) = (
        len(waits(lambda n=n: gn.training.fit(model, optimizer, [batch] * n, progress=False))[0]) for n in (1, 3)
    )
    assert three - one == 2


def test_waiting_for_each_parameter_is_noticed():
    counts = []
    for layers in (1, 6):
        model = nn.Sequential(*[nn.Linear(3, 3) for _ in range(layers)])
        counts += map(len, waits(lambda model=model: [p.sum().item() for p in model.parameters()]))
    assert counts == [2, 12]


def test_what_was_brought_to_the_host_is_asked_for_nothing():
    with Waits() as seen:
        here = torch.ones(3).cpu()
        assert [(here * 2).sum().item(), here.new_zeros(1).item(), float(torch.full((), 2.0, device="cpu"))] == [
            6,
            0,
            2,
        ]
        assert len(seen.places) == 1
        assert float((here + torch.ones(3)).sum()) == 6
    assert len(seen.places) == 2


@pytest.mark.accelerator
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("which", [1, 2])
def test_cuda_sees_no_other_waits(which):
    function = problem(3, "cuda")[which]
    listed = len(waits(function, device="cuda")[0])
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            function()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    seen = [warning for warning in caught if "synchroniz" in str(warning.message)]
    assert len(seen) <= listed, "\n".join(f"{w.filename}:{w.lineno} {w.message}" for w in seen)
