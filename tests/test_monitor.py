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


SCHEDULES = {
    "constant": lambda step, s: 0.1,
    "drop": lambda step, s: 0.1 if step < 6 else 1e-3,
    "rise": lambda step, s: 1e-3 if step < 6 else 0.2,
    "one group": lambda step, s: 0.1 if step < 6 or s else 1e-3,
    "warm-up from 0": lambda step, s: 0.02 * step,
    "cosine": lambda step, s: 0.1 * math.cos(step / 8) ** 2,
    "rest": lambda step, s: 0.0 if step == 5 else 0.1 * (1 + s),
}


@pytest.mark.parametrize("split", ["by_tensor", "single", "by_scalar"])
@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("name", SCHEDULES)
def test_what_is_remembered_is_seen_at_the_rates_of_the_last_step(name, momentum, split):
    # On a quadratic every step from one place tells the same, so that a monitor with a memory must say what one without says.
    curvatures = (0.5, 3.0)
    model = nn.ParameterList([torch.full((2,), 3.0, dtype=DTYPE) for _ in curvatures])
    partition = getattr(gn.Partition, split)(model)

    def loss():
        return sum((c / 2 * p.square()).sum() for c, p in zip(curvatures, model, strict=True))

    optimizer = torch.optim.SGD([{"params": [p]} for p in model], lr=1.0, momentum=momentum)
    monitor = RateMonitor(optimizer, partition, period=1)
    for step in range(12):
        with torch.no_grad():
            for p in model:
                p.fill_(3.0)
        for s, group in enumerate(optimizer.param_groups):
            group["lr"] = SCHEDULES[name](step, s)
        if momentum:  # the same step each time
            optimizer.state.clear()
        fresh = RateMonitor(optimizer, partition, period=1)
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        monitor.look(loss)
        fresh.look(loss)
        seen, alone = monitor.history[-1], fresh.history[-1]
        assert seen.group_ratios == pytest.approx(alone.group_ratios, rel=1e-9, nan_ok=True)
        assert seen.newton_ratio == pytest.approx(alone.newton_ratio, rel=1e-9, nan_ok=True)
        assert monitor.words() == fresh.words()
        if len(monitor._seen) > 1:
            assert max(n / t for n, t in zip(seen.noise, seen.group_ratios, strict=True)) < 1e-9


def test_a_step_that_changes_without_its_rate_is_remembered_as_it_was():
    # The control of the law above: only the optimizer's own rate tells how long the remembered steps would be.
    p = nn.Parameter(torch.tensor([3.0], dtype=DTYPE))
    partition = gn.Partition.from_groups({"p": {"p": p}})
    optimizer = torch.optim.SGD([p], lr=0.1)
    monitor = RateMonitor(optimizer, partition, period=1)
    for scale in (1.0, 0.01):
        with torch.no_grad():
            p.fill_(3.0)
        p.grad = scale * p.detach()
        optimizer.step()
        monitor.look(lambda: (p.square() / 2).sum())
    assert monitor.history[-1].group_ratios[0] < 20  # 1000 for the last step alone


@pytest.mark.parametrize("still", ["rate 0", "frozen", "unused", "lost in rounding"])
def test_a_group_without_effect_is_said_to_be_one(still):
    moving, other = (nn.Parameter(torch.tensor([3.0], dtype=DTYPE)) for _ in range(2))
    partition = gn.Partition.from_groups({"moving": {"moving": moving}, "other": {"other": other}})
    optimizer = torch.optim.SGD([{"params": [moving]}, {"params": [other]}], lr=0.1)
    monitor = RateMonitor(optimizer, partition, period=1)
    unused = [False]

    def loss():
        return (moving.square() + (0.0 if unused[0] else 1.0) * other.square()).sum()

    descend(monitor, optimizer, loss, 4)
    assert monitor.words() == ["moving: the rate is 5.0 times too small", "other: the rate is 5.0 times too small"]
    optimizer.param_groups[1]["lr"] = {"rate 0": 0.0, "lost in rounding": 1e-30}.get(still, 0.1)
    other.requires_grad_(still != "frozen")
    unused[0] = still == "unused"
    descend(monitor, optimizer, loss, 3)
    look = monitor.history[-1]
    assert math.isnan(look.group_ratios[1])
    assert monitor.words() == [
        "moving: the rate is 5.0 times too small",
        "other: no effect: it did not move, or the loss does not depend on it",
    ]
    assert math.isfinite(look.newton_ratio)
    assert "no effect" in plots.watched_rates(monitor).get_title(loc="left")


def test_without_any_effect_there_is_no_ratio():
    p = nn.Parameter(torch.tensor([3.0], dtype=DTYPE))
    optimizer = torch.optim.SGD([p], lr=0.0)
    monitor = RateMonitor(optimizer, gn.Partition.from_groups({"p": {"p": p}}), period=1)
    descend(monitor, optimizer, lambda: p.square().sum(), 3)
    assert math.isnan(monitor.history[-1].newton_ratio)
    assert monitor.history[-1].noise == (math.inf,)
    plots.watched_rates(monitor).figure.canvas.draw()


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
