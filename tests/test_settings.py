"""What GroupedNewton refuses at its door, each with the line to write instead."""

import pytest
import torch
from support.problems import build

import gnewton as gn


@pytest.fixture
def case():
    return build("perceptron")


def grouped(case, **settings):
    return gn.GroupedNewton(gn.Partition.by_tensor(case.model), **settings)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"lr": -1.0}, "expected lr >= 0 and finite, got -1"),
        ({"cubic": -1.0}, "expected cubic >= 0"),
        ({"cubic": float("nan")}, "expected cubic >= 0"),
        ({"ridge": float("inf")}, "expected ridge >= 0"),
        ({"eta_momentum": 1.0}, "eta_momentum < 1"),
        ({"period": 0}, "period of at least 1"),
        ({"period": 2.5}, "period of at least 1"),
        ({"on_failure": "ignore"}, 'on_failure="report" or "raise"'),
    ],
)
def test_settings_out_of_range_are_refused(case, options, text):
    with pytest.raises(ValueError, match=text):
        grouped(case, **options)


MISTAKES = {
    "parameters in place of a partition": (
        lambda case: gn.GroupedNewton(case.model.parameters()),
        r"got generator; write GroupedNewton\(Partition.by_tensor\(model\)\)",
    ),
    "a model in place of a partition": (
        lambda case: gn.GroupedNewton(case.model),
        r"got Sequential; write GroupedNewton\(Partition.by_tensor\(model\)\)",
    ),
    "a step without a closure": (lambda case: grouped(case).step(), r"write optimizer.step\(lambda: F.cross_entropy"),
    "a loss in place of a closure": (
        lambda case: grouped(case).step(case.loss()),
        "expected a callable that returns the loss, got Tensor; write lambda: ",
    ),
    "the proposer by its old name": (
        lambda case: grouped(case, direction=torch.optim.SGD(case.model.parameters())),
        r"write GroupedNewton\(partition, proposer\)",
    ),
    "a setting that is none": (lambda case: grouped(case, damping=0.3), "got damping=; "),
    "a list in place of a direction": (
        lambda case: gn.summarize(case.loss, gn.Partition.by_tensor(case.model), list(case.model.parameters())),
        r"got list; write dict\(zip\(partition.parameters, tensors\)\)",
    ),
    "a direction in place of a proposer": (
        lambda case: gn.GroupedNewton(partition := gn.Partition.by_tensor(case.model), case.direction(partition)),
        "expected a torch.optim optimizer as the proposer, got dict; use SGD or Adam",
    ),
    "an average that is none": (lambda case: grouped(case, average=0.9), r"write gn.average.Exponential\(0.9\)"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_common_mistake_is_answered_with_the_line_to_write(case, mistake):
    call, text = MISTAKES[mistake]
    with pytest.raises(TypeError, match=text):
        call(case)


def test_the_advertised_setting_is_the_default(case):
    settings = grouped(case).param_groups[0]
    assert {name: settings[name] for name in ("lr", "cubic", "period")} == {"lr": 1.0, "cubic": "adaptive", "period": 5}


def test_a_policy_is_an_object():
    partition = gn.Partition.single(gn.models.Rosenbrock(2))
    for wrong in (gn.policies.Calibrated, "calibrated"):
        with pytest.raises(TypeError, match="expected a policy, an object"):
            gn.GroupedNewton(partition, policy=wrong)
    gn.GroupedNewton(partition, policy=gn.policies.Calibrated())
