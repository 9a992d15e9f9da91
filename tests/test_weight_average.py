"""The averaged parameters: the closed form of their weights, any optimizer's steps, and batch norm's statistics."""

import copy
import math

import pytest
import torch
from support.problems import DTYPE, build
from torch import nn
from torch.optim.swa_utils import update_bn

import gnewton as gn
from gnewton.weight_average import follow_weight


def test_the_average_of_known_steps_has_the_weights_of_the_rule():
    model = nn.Linear(1, 1, bias=False, dtype=DTYPE)
    averaged = gn.average_weights(model)
    values = torch.randn(40, generator=torch.Generator().manual_seed(0), dtype=DTYPE)
    for value in values:
        nn.init.constant_(model.weight, float(value))
        averaged.update_parameters(model)
    weights = [follow_weight(n) for n in range(40)]
    expected = sum(
        w * v * torch.tensor([1 - later for later in weights[n + 1 :]]).prod()
        for n, (w, v) in enumerate(zip(weights, values, strict=True))
    )
    assert averaged.module.weight.item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_constant_stays_what_it_is_and_old_values_are_forgotten():
    model = nn.Linear(1, 1, bias=False, dtype=DTYPE)
    averaged = gn.average_weights(model)
    nn.init.constant_(model.weight, 100.0)
    for _ in range(10):
        averaged.update_parameters(model)
    assert averaged.module.weight.item() == pytest.approx(100.0, rel=1e-12)
    nn.init.constant_(model.weight, 1.0)
    for _ in range(90):
        averaged.update_parameters(model)
    # What was averaged after n steps keeps the factor 1 - 9 / (n + 9) = n / (n + 9) at each step.
    left = math.prod(n / (n + 9) for n in range(10, 100))
    assert averaged.module.weight.item() == pytest.approx(1 + 99 * left, rel=1e-12)
    assert left < 1e-7


OPTIMIZERS = {
    "Adam": lambda model: torch.optim.Adam(model.parameters(), lr=0.01),
    "GroupedNewton": lambda model: gn.GroupedNewton(gn.Partition.single(model), policy=gn.policies.Calibrated()),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_follows_every_step_and_changes_none(name):
    case, alone = build("perceptron"), build("perceptron")
    optimizer, other = OPTIMIZERS[name](case.model), OPTIMIZERS[name](alone.model)
    averaged, by_hand = gn.average_weights(case.model, optimizer), None
    for step in range(12):
        for one, some in ((case, optimizer), (alone, other)):
            closure = one.loss
            if name == "Adam":
                some.zero_grad()
                closure().backward()
                some.step()
            else:
                some.step(closure)
        now = [p.detach().clone() for p in alone.model.parameters()]
        by_hand = (
            now if by_hand is None else [x.lerp(p, follow_weight(step)) for x, p in zip(by_hand, now, strict=True)]
        )
    for p, q, x, y in zip(
        case.model.parameters(), alone.model.parameters(), averaged.module.parameters(), by_hand, strict=True
    ):
        assert torch.equal(p, q)
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-14)
        assert not torch.equal(x, p)


def test_one_call_renews_batch_norm_and_a_saved_average_goes_on():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    averaged = gn.average_weights(model, optimizer)
    x = torch.randn(64, 3) + 1
    for _ in range(10):
        optimizer.zero_grad()
        (model(x) - 1).square().mean().backward()
        optimizer.step()
    update_bn([x], averaged)
    hidden = averaged.module[0](x)
    torch.testing.assert_close(averaged.module[1].running_mean, hidden.mean(0).detach())
    assert not torch.allclose(model[1].running_mean, hidden.mean(0))
    resumed = gn.average_weights(copy.deepcopy(model))
    resumed.load_state_dict(averaged.state_dict())
    for one in (averaged, resumed):
        one.update_parameters(model)
    assert all(map(torch.equal, averaged.module.parameters(), resumed.module.parameters()))


def test_whole_numbers_are_copied_as_they_are():
    # Frozen codes of a quantized layer, beside parameters that are averaged.
    class Coded(nn.Module):
        def __init__(self):
            super().__init__()
            self.codes = nn.Parameter(torch.tensor([1, 2]), requires_grad=False)
            self.weight = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    model = Coded()
    averaged = gn.average_weights(model)
    for step in range(3):
        with torch.no_grad():
            model.codes.fill_(step), model.weight.fill_(step)
        averaged.update_parameters(model)
    assert averaged.module.codes.tolist() == [2, 2]
    assert 0 < averaged.module.weight[0] < 2
