"""The monitor: the closed form on a quadratic, and that a training with it is the training without it, bit for bit."""

import math

import pytest
import torch
from support.problems import DTYPE, build
from torch import nn

import gnewton as gn
from gnewton import plots
from gnewton.monitor import RateMonitor


def descend(monitor, optimizer, loss, steps):
    for _ in range(steps):
        if monitor is not None:
            monitor.look(loss)
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


@pytest.mark.parametrize("rate", [1e-3, 0.1, 1.0])
def test_without_momentum_a_group_s_ratio_is_the_inverse_curvature_over_its_rate(rate):
    a, b = (nn.Parameter(torch.tensor([3.0], dtype=DTYPE)) for _ in range(2))
    partition = gn.Partition.from_groups({"a": {"a": a}, "b": {"b": b}})
    optimizer = torch.optim.SGD([a, b], lr=rate)
    monitor = RateMonitor(optimizer, partition, period=2)
    descend(monitor, optimizer, lambda: (0.25 * a.square() + 1.5 * b.square()).sum(), 5)
    look = monitor.history[-1]
    assert look.group_ratios == pytest.approx((1 / (0.5 * rate), 1 / (3.0 * rate)), rel=1e-9)
    assert [one.step for one in monitor.history] == [2, 4]
    # Together: sum of the slopes over sum of the curvatures along the step.
    s = [0.5 * 3.0, 3.0 * 3.0]
    expected = sum(g * g for g in s) / (rate * (0.5 * s[0] ** 2 + 3.0 * s[1] ** 2))
    first = RateMonitor(optimizer, partition, period=1)
    with torch.no_grad():
        a.fill_(3.0), b.fill_(3.0)
    descend(first, optimizer, lambda: (0.25 * a.square() + 1.5 * b.square()).sum(), 2)
    assert first.history[0].newton_ratio == pytest.approx(expected, rel=1e-9)


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, x):
        return self.body(x)


@pytest.mark.filterwarnings("ignore::gnewton.loss.RandomLossWarning")
def test_the_training_is_the_same_bit_for_bit():
    ends = []
    x, y = torch.randn(20, 5, generator=torch.Generator().manual_seed(1)), torch.arange(20) % 3
    for watched in (True, False):
        torch.manual_seed(0)
        model = Noisy()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        monitor = RateMonitor(optimizer, gn.Partition.by_tensor(model), period=3) if watched else None
        descend(monitor, optimizer, lambda m=model: nn.functional.cross_entropy(m(x), y), 12)
        ends.append([*model.state_dict().values(), torch.get_rng_state()])
        if monitor is not None:
            assert len(monitor.history) == 3
            gradients = [p.grad.clone() for p in model.parameters()]
            monitor.look(lambda m=model: nn.functional.cross_entropy(m(x), y))
            assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
            torch.set_rng_state(ends[0][-1])
    assert all(map(torch.equal, *ends))


def test_another_rate_tells_another_ratio_and_says_it_in_words():
    words = []
    for rate in (1e-4, 3.0):
        case = build("perceptron")
        optimizer = torch.optim.SGD(case.model.parameters(), lr=rate)
        monitor = RateMonitor(optimizer, gn.Partition.single(case.model), period=1)
        assert monitor.words() == []
        descend(monitor, optimizer, case.loss, 6)
        words.append(monitor.words()[0])
    assert "times too small" in words[0]
    assert "times too small" not in words[1]


def test_the_picture_shows_every_look_and_says_the_words():
    case = build("perceptron")
    optimizer = torch.optim.SGD(case.model.parameters(), lr=0.01)
    monitor = RateMonitor(optimizer, gn.Partition.by_tensor(case.model), period=2)
    descend(monitor, optimizer, case.loss, 9)
    ax = plots.watched_rates(monitor)
    drawn = {line.get_label(): line.get_xydata() for line in ax.get_lines()}
    for s, name in enumerate(monitor.partition.names):
        expected = [
            (look.step, look.group_ratios[s]) for look in monitor.history if 0 < look.group_ratios[s] < math.inf
        ]
        assert drawn[name][:, 0].tolist() == [look.step for look in monitor.history]
        finite = [tuple(point) for point in drawn[name].tolist() if not math.isnan(point[1])]
        assert finite == expected
    assert all(line in ax.get_title(loc="left") for line in monitor.words()[:3])


@pytest.mark.parametrize("period", [0, 2.5])
def test_a_period_out_of_range_is_refused(period):
    case = build("perceptron")
    optimizer = torch.optim.SGD(case.model.parameters(), lr=0.01)
    with pytest.raises(ValueError, match="period"):
        RateMonitor(optimizer, gn.Partition.single(case.model), period=period)


def test_an_optimizer_of_other_parameters_is_refused():
    # Its steps do not move the partition's parameters, and a step of zero fits every rate.
    case, other = build("perceptron"), build("perceptron")
    optimizer = torch.optim.SGD(case.model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="moves none of them"):
        RateMonitor(optimizer, gn.Partition.single(other.model))
    with pytest.raises(TypeError, match="expected a Partition, got Sequential"):
        RateMonitor(optimizer, case.model)
    with pytest.raises(TypeError, match=r"expected a torch\.optim optimizer, got Sequential"):
        RateMonitor(case.model, gn.Partition.single(case.model))
    # Some of them are enough: the others stand still.
    RateMonitor(torch.optim.SGD(case.model[0].parameters(), lr=0.1), gn.Partition.single(case.model))
