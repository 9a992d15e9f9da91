"""A step waits for the device a fixed number of times, however many parameters and groups there are.

Each wait costs what an idle card costs. Calls that wait are counted on the CPU, where they are as many; with CUDA torch's
sync debug mode has to see no more than these.
"""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gnewton as gn
from benchmarks.waits import Waits

SUMMARY = 2  # the direction is checked for NaN before, the summary after
UPDATE = 24  # checks, the solver's numbers on their way to the CPU, what the history keeps, the ratio test


def problem(layers, device="cpu"):
    """A step and a summary of a perceptron with so many hidden layers."""
    draw = torch.Generator().manual_seed(0)
    model = gn.models.perceptron([6, *[5] * layers, 3], "tanh", generator=draw).to(device)
    x, y = torch.randn(12, 6, generator=draw).to(device), (torch.arange(12) % 3).to(device)
    partition = gn.Partition.by_tensor(model)

    def loss():
        return F.cross_entropy(model(x), y)

    proposer = torch.optim.RMSprop(model.parameters(), lr=1.0, momentum=0.9)
    optimizer = gn.GroupedNewton(partition, proposer, lr=0.1)
    u = gn.direction.gradient(loss, partition)
    return lambda: optimizer.step(loss), lambda: gn.summarize(loss, partition, u)


def waits(function):
    function()  # what is counted once is not counted
    with Waits() as seen:
        function()
    return seen.places


@pytest.mark.parametrize("layers", [1, 6])
def test_a_summary_waits_for_its_two_checks(layers):
    _, summarize = problem(layers)
    assert len(waits(summarize)) <= SUMMARY


def test_a_step_waits_as_often_for_many_parameters():
    few, many = (waits(problem(layers)[0]) for layers in (1, 6))
    assert sorted(few) == sorted(many)
    assert 1 <= len(few) <= UPDATE


def test_waiting_for_each_parameter_is_noticed():
    counts = []
    for layers in (1, 6):
        model = nn.Sequential(*[nn.Linear(3, 3) for _ in range(layers)])
        counts.append(len(waits(lambda model=model: [p.sum().item() for p in model.parameters()])))
    assert counts == [2, 12]


@pytest.mark.accelerator
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("which", [0, 1])
def test_cuda_sees_no_other_waits(which):
    function = problem(3, "cuda")[which]
    listed = len(waits(function))
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
