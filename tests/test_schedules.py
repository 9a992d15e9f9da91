"""Schedulers drive lambda_int, the ridge and any other number as they drive a learning rate."""

import copy

import pytest
import torch
from support.problems import build
from torch.optim import lr_scheduler

import gnewton as gn

SCHEDULES = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, step_size=2, gamma=0.5),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda k: 1 / (1 + k)),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=6),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, total_iters=4),
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("setting", ["cubic", "ridge"])
def test_a_schedule_is_the_same_for_any_setting(name, setting):
    case = build("perceptron")
    optimizer = gn.GroupedNewton(gn.Partition.by_tensor(case.model), lr=0.3, cubic=2.0, ridge=2.0, period=1)
    plain = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    ours, theirs = SCHEDULES[name](gn.AsRate(optimizer, setting)), SCHEDULES[name](plain)
    for _ in range(6):
        optimizer.step(case.loss)
        plain.step()
        ours.step()
        theirs.step()
        assert optimizer.param_groups[0][setting] == plain.param_groups[0]["lr"]
    assert optimizer.param_groups[0]["lr"] == 0.3


def test_two_plateaus_side_by_side_and_a_loaded_state():
    case = build("perceptron")
    optimizer = gn.GroupedNewton(gn.Partition.by_tensor(case.model), lr=0.8, cubic=8.0, period=1)
    view = gn.AsRate(optimizer, "cubic")
    schedules = [lr_scheduler.ReduceLROnPlateau(o, patience=0, factor=0.5, threshold=1e-4) for o in (optimizer, view)]
    saved = optimizer.state_dict()
    optimizer.load_state_dict(saved)
    for loss in (1.0, 1.0, 1.0):
        for schedule in schedules:
            schedule.step(loss)
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["cubic"]) == (0.2, 2.0)


def test_an_unknown_setting_and_a_step_are_refused():
    case = build("perceptron")
    optimizer = gn.GroupedNewton(gn.Partition.by_tensor(case.model), cubic=1.0, lr=0.3, period=1)
    for wrong in ("damping", "diagonal", "on_failure"):
        with pytest.raises(ValueError, match="a setting among cubic"):
            gn.AsRate(optimizer, wrong)
    with pytest.raises(RuntimeError, match="step the optimizer itself"):
        gn.AsRate(optimizer, "cubic").step()


def test_an_optimizer_and_its_schedule_are_copied_together():
    case = build("perceptron")
    optimizer = gn.GroupedNewton(gn.Partition.by_tensor(case.model), cubic=8.0)
    schedule = lr_scheduler.StepLR(gn.schedules.AsRate(optimizer, "cubic"), step_size=1, gamma=0.5)
    twin, of_the_twin = copy.deepcopy((optimizer, schedule))
    of_the_twin.step()
    assert (twin.param_groups[0]["cubic"], optimizer.param_groups[0]["cubic"]) == (4.0, 8.0)
