"""The step of GroupedNewton is watched as every torch optimizer's: hooks, profilers, schedulers."""

import pytest
import torch
from support.problems import build
from torch.optim import optimizer as module

import gnewton as gn


def newton(policy=None):
    case = build("perceptron")
    proposer = gn.CautiousAdam(case.model.parameters())
    return case, gn.GroupedNewton(gn.Partition.single(case.model), proposer, policy=policy)


def test_hooks_are_called_before_and_after_with_torch_s_arguments():
    heard = {}
    for name in ("ours", "torch"):
        case, optimizer = newton()
        if name == "torch":  # another class has torch's own wrapper
            optimizer = torch.optim.SGD(case.model.parameters(), lr=0.0)
        calls = heard[name] = []
        optimizer.register_step_pre_hook(lambda one, args, kwargs, calls=calls: calls.append(("pre", len(args))))
        optimizer.register_step_post_hook(lambda one, args, kwargs, calls=calls: calls.append(("post", len(args))))
        optimizer.step(lambda case=case: case.loss())
    assert heard["ours"] == heard["torch"] == [("pre", 2), ("post", 2)]


def test_a_hook_after_the_step_alone_is_called_and_can_be_removed():
    case, optimizer = newton()
    seen = []
    handle = optimizer.register_step_post_hook(lambda one, args, kwargs: seen.append((one, args, kwargs)))
    optimizer.step(case.loss)
    handle.remove()
    optimizer.step(case.loss)
    assert seen == [(optimizer, (optimizer, case.loss), {})]


def test_hooks_of_all_optimizers_are_called():
    case, optimizer = newton()
    seen = []
    handles = [
        module.register_optimizer_step_pre_hook(lambda one, *_: seen.append(("pre", one))),
        module.register_optimizer_step_post_hook(lambda one, *_: seen.append(("post", one))),
    ]
    try:
        optimizer.step(case.loss)
    finally:
        for handle in handles:
            handle.remove()
    # The proposer's own step is one too.
    assert [what for what, one in seen if one is optimizer] == ["pre", "post"]


def test_hooks_of_all_optimizers_hear_of_the_proposer_s_held_steps():
    case, optimizer = newton(gn.policies.Calibrated(steps=2))
    for _ in range(4):
        optimizer.step(case.loss)
    seen = []
    handle = module.register_optimizer_step_post_hook(lambda one, *_: seen.append(one))
    try:
        for _ in range(3):
            optimizer.step(case.loss)
    finally:
        handle.remove()
    assert seen == [optimizer.proposer.optimizer, optimizer] * 3


@pytest.mark.parametrize("profiled", [True, False])
def test_a_profiler_finds_the_step_by_name(profiled):
    case, optimizer = newton()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        if profiled:
            optimizer.step(case.loss)
    names = {event.name for event in profiler.events()}
    assert ("Optimizer.step#GroupedNewton.step" in names) is profiled


def test_its_name_and_documentation_are_the_step_s():
    assert gn.GroupedNewton.step.__name__ == "step"
    assert "One step; returns the loss before it" in gn.GroupedNewton.step.__doc__
