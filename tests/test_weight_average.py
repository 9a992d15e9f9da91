"""The averaged parameters: the closed form of their weights, any optimizer's steps, and batch norm's statistics."""

import copy
import math

import pytest
import torch
from support.problems import DTYPE, build
from torch import nn
from torch.optim.swa_utils import AveragedModel, update_bn

import gnewton as gn
from gnewton import weight_average
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


class Tied(nn.Module):
    """One weight in two layers, parameters of three dtypes, buffers of two, one of them in two places."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3, dtype=DTYPE), nn.Linear(3, 3, bias=False, dtype=DTYPE)
        self.second.weight = self.first.weight
        self.norm, self.twin = nn.BatchNorm1d(3), nn.Identity()
        self.twin.register_buffer("shared", self.norm.running_mean)
        self.short = nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
        self.wave = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)


MODELS = {
    "one layer": lambda: nn.Linear(2, 1),
    "nested": lambda: nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1, dtype=DTYPE))),
    "tied": Tied,
    "recurrent": lambda: nn.LSTM(2, 3, num_layers=2),
}


def follow_by_torch(averages, values, count):
    weight = follow_weight(int(count))
    for average, value in zip(averages, values, strict=True):
        average.lerp_(value, weight)


def two_averages(model, generator):
    """Ours and torch's, after twelve changes of everything in the model."""
    ours, theirs = gn.average_weights(model), AveragedModel(model, multi_avg_fn=follow_by_torch)
    for _ in range(12):
        with torch.no_grad():
            for tensor in {id(t): t for t in [*model.parameters(), *model.buffers()]}.values():
                tensor.add_(torch.randn(tensor.shape, generator=generator).mul(4).to(tensor.dtype))
        ours.update_parameters(model)
        theirs.update_parameters(model)
    return ours, theirs


@pytest.mark.parametrize("kind", MODELS)
def test_the_average_is_the_one_that_torch_takes_tensor_by_tensor(kind):
    ours, theirs = two_averages(MODELS[kind](), torch.Generator().manual_seed(0))
    assert isinstance(ours, AveragedModel)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, theirs.state_dict()[name], rtol=0, atol=0)


def test_a_shared_weight_that_is_followed_twice_is_noticed(monkeypatch):
    def each_time(module):
        parameters = [p.detach() for m in module.modules() for p in m._parameters.values() if p is not None]
        return weight_average._Tensors(parameters, [])

    monkeypatch.setattr(weight_average, "_tensors_in", each_time)
    ours, theirs = two_averages(Tied(), torch.Generator().manual_seed(0))
    assert not torch.equal(ours.module.first.weight, theirs.module.first.weight)


def test_another_model_s_parameters_are_refused():
    averaged = gn.average_weights(nn.Linear(2, 1))
    before = repr(averaged.state_dict())
    for other in (nn.Linear(2, 1, bias=False), nn.Linear(1, 1), nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1))):
        with pytest.raises(ValueError, match="expected the model that is averaged"):
            averaged.update_parameters(other)
    averaged.update_parameters(nn.Sequential(nn.Linear(2, 1)))  # a wrapper's parameters are the same
    assert averaged.n_averaged == 1
    assert repr(averaged.state_dict()) != before


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_that_changes_its_dtype_is_followed_in_that_of_the_average(dtype):
    model = nn.Linear(2, 1)
    averaged = gn.average_weights(model)
    averaged.update_parameters(model)
    start = averaged.module.weight.detach().clone()
    model.to(dtype)
    nn.init.constant_(model.weight, 2.0)
    averaged.update_parameters(model)
    torch.testing.assert_close(averaged.module.weight, start.lerp(torch.full((1, 2), 2.0), follow_weight(1)))
