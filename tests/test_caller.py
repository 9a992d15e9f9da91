"""A warning points at the line of whoever called, however torch has wrapped the call."""

import itertools
import sys
import warnings

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

import gnewton as gn
from gnewton.caller import line_of_caller
from gnewton.optimizer import StepWarning


def infinite_curvature():
    w = nn.Parameter(torch.ones(2, dtype=torch.float64))
    return w, lambda: (w - w.detach()).abs().pow(1.5).sum() + w.sum()


def drawing():
    w = nn.Parameter(torch.ones(2, dtype=torch.float64))
    numbers = itertools.count(1)
    return w, lambda: next(numbers) * w.exp().sum()


def scheduled(optimizer):
    lr_scheduler.StepLR(optimizer, step_size=2)


def plain(optimizer):
    return None


@pytest.mark.parametrize("wrap", [plain, scheduled])
@pytest.mark.parametrize("cubic", [1.0, "adaptive"])
@pytest.mark.parametrize("problem", [infinite_curvature, drawing])
def test_step_warnings_point_here(problem, cubic, wrap):
    w, loss = problem()
    optimizer = gn.GroupedNewton(gn.Partition.from_groups([{"w": w}]), cubic=cubic, period=1)
    wrap(optimizer)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        optimizer.step(loss)
        here = sys._getframe().f_lineno - 1
    assert {(one.filename, one.lineno) for one in seen if one.category is StepWarning} == {(__file__, here)}


def test_so_do_warnings_of_the_loss_and_of_the_proposer():
    model = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5))
    partition = gn.Partition.by_tensor(model)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        optimizer = gn.GroupedNewton(partition, torch.optim.AdamW(model.parameters(), weight_decay=0.1))
        optimizer.step(lambda: model(torch.ones(4, 3)).square().mean())
        here = sys._getframe().f_lineno - 1
    assert [(one.filename, one.lineno) for one in seen] == [(__file__, here - 1), (__file__, here)]


@pytest.mark.parametrize(
    ("file", "place"),
    [
        ("/tmp/ipykernel_71/3820463092.py", "line 2 of a cell"),
        ("<ipython-input-3-f0e1>", "line 2 of a cell"),
        ("model.py", "model.py:2"),
    ],
)
def test_a_line_is_named_by_its_file_or_as_that_of_a_cell(file, place):
    names = {"line_of_caller": line_of_caller}
    exec(compile("\nplace = line_of_caller()", file, "exec"), names)
    assert names["place"] == place
