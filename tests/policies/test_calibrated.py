"""One rate: the closed form on a quadratic, freedom from units, what a step costs, and what it leaves alone."""

import io
import itertools
import math
import warnings
from contextlib import nullcontext

import pytest
import torch
from pytorch_optimizer import SOAP
from support.problems import DTYPE, build
from torch import nn
from torch.nn import functional as F

import gnewton as gn
from gnewton.cubic import NewtonStepError
from gnewton.experiments.twins import Twin
from gnewton.line import Line, Objective
from gnewton.optimizer import StepWarning
from gnewton.policies.calibrated import GUARDED, SEARCHED, Calibrated, Look, change, look_back, newton_ratio, parabola
from gnewton.proposer import Proposal

TINY = 1e-30  # an eps without a part in any update


def adam(parameters, lr=1.0, eps=TINY):
    return torch.optim.Adam(parameters, lr=lr, betas=(0.9, 0.99), eps=eps)


PROPOSERS = {
    "Adam": adam,
    "RMSprop": lambda parameters, lr=1.0: torch.optim.RMSprop(parameters, lr=lr, momentum=0.9, eps=TINY),
    "SGD": lambda parameters, lr=1.0: torch.optim.SGD(parameters, lr=lr, momentum=0.9),
    "AdamW": lambda parameters, lr=1.0: torch.optim.AdamW(parameters, lr=lr, eps=TINY, weight_decay=0.0),
    "CautiousAdam": lambda parameters, lr=1.0: gn.CautiousAdam(parameters, lr=lr, eps=TINY),
}


def batches(steps, dtype=DTYPE, seed=0):
    data = gn.datasets.digits()
    loader = data.batches(100, torch.Generator().manual_seed(seed))
    drawn = [(x.to(dtype), y) for _ in range(1 + steps // len(loader)) for x, y in loader]
    return drawn[:steps]


def network(dtype=DTYPE):
    return gn.models.perceptron([64, 16, 10], generator=torch.Generator().manual_seed(0), dtype=dtype)


def trained(model, steps=40, proposer=adam, unit=1.0, policy=None, **settings):
    """The losses, in their own unit, and the optimizer."""
    dtype = next(model.parameters()).dtype
    proposer = None if proposer is None else proposer(model.parameters())
    optimizer = gn.GroupedNewton(gn.Partition.single(model), proposer, policy=policy or Calibrated(), **settings)
    losses = [
        float(optimizer.step(lambda x=x, y=y: unit * F.cross_entropy(model(x), y))) / unit
        for x, y in batches(steps, dtype)
    ]
    return torch.tensor(losses, dtype=torch.float64), optimizer


# -- the closed form ---------------------------------------------------------------------------------------------------


def test_the_parabola_is_the_loss_of_a_quadratic_along_the_last_step():
    model = gn.models.Quadratic([1.0, 4.0, 0.1], generator=torch.Generator().manual_seed(3), dtype=DTYPE)
    partition = gn.Partition.single(model)
    u = {"theta": torch.tensor([0.3, -1.0, 2.0], dtype=DTYPE)}
    summary = gn.summarize(model, partition, u, order=2)
    previous = {"theta": model.theta.detach().clone()}
    Line(Objective(partition, model), Proposal(u)).move(torch.tensor([0.7], dtype=DTYPE))
    line = Line(Objective(partition, model), Proposal(u))
    stand = model.theta.detach().clone()
    look = look_back(line, previous, 0.7)
    # Two losses of size 1 are subtracted and divided by 0.7^2: a few roundings.
    assert look.slope == pytest.approx(float(summary.gradient), rel=1e-12)
    assert look.curvature == pytest.approx(float(summary.hessian), rel=1e-12)
    assert look.before == pytest.approx(float(summary.value), rel=1e-12)
    assert torch.equal(model.theta, stand)


@pytest.mark.parametrize("curvature", [1e-2, 1.0, 1e5])
def test_without_noise_the_second_step_has_the_inverse_curvature_as_its_rate(curvature):
    w = nn.Parameter(torch.tensor([3.0], dtype=DTYPE))
    optimizer = gn.GroupedNewton(gn.Partition.from_groups([{"w": w}]), policy=Calibrated())
    loss = lambda: curvature / 2 * (w - 1).square().sum()  # noqa: E731
    optimizer.step(loss)
    assert float(optimizer.learning_rates) == pytest.approx(0.1 / curvature, rel=1e-10)
    optimizer.step(loss)
    assert float(optimizer.learning_rates) == pytest.approx(1 / curvature, rel=1e-10)
    assert w.item() == pytest.approx(1.0, rel=1e-10)
    assert optimizer.history[0].newton_ratio == pytest.approx(10.0, rel=1e-10)


def test_a_parabola_goes_through_what_was_measured():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        before, after, slope, step = (float(x) for x in torch.randn(4, generator=generator, dtype=DTYPE))
        a, c = parabola(before, after, slope, step)
        assert before - a * step + c * step**2 / 2 == pytest.approx(after, rel=1e-9, abs=1e-9)
        assert a - c * step == pytest.approx(slope, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("interval", [SEARCHED, GUARDED])
def test_the_factor_brings_the_ratio_back_into_the_interval(interval):
    shortest, longest = interval
    for ratio in (0.06, 0.3, 0.5, 0.7, 0.95, 1.4, 9.0):
        factor = change(ratio, interval, (0.01, 10.0))
        assert shortest - 1e-12 <= ratio / factor <= longest + 1e-12
        assert (factor == 1) == (shortest <= ratio <= longest)
    assert (change(math.inf, interval, (0.9, 1.1)), change(-math.inf, interval, (0.9, 1.1))) == (1.1, 0.9)
    assert newton_ratio(0.0, 0.0, 1.0) == 0


@pytest.mark.parametrize("rate", [0.1, 0.5, 1.2])
def test_at_rest_in_noise_the_ratio_is_a_half_whatever_the_rate(rate):
    # Bowls of curvature 1, whose minimum each batch puts elsewhere; gradient descent, in 10,000 of them at once.
    generator = torch.Generator().manual_seed(0)
    noise = lambda: torch.randn(10_000, generator=generator, dtype=DTYPE)  # noqa: E731
    w = noise()
    for _ in range(100):
        start = w
        w = start - rate * (start - noise())
    slopes, curvatures = 0.0, 0.0
    for _ in range(100):  # other batches than those of the steps
        batch = noise()
        before, after = (float((x - batch).square().mean()) / 2 for x in (start, w))
        slope, curvature = parabola(before, after, float(((w - batch) * (start - w)).mean()), 1.0)
        slopes, curvatures = slopes + slope, curvatures + curvature
    # In units of the step, t* is A / C. The means have errors of about a hundredth.
    assert newton_ratio(slopes, curvatures, 1.0) == pytest.approx(0.5, abs=0.05)
    assert SEARCHED[0] > 0.55
    assert GUARDED[0] > 0.55


# -- units -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("proposer", PROPOSERS)
@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_the_unit_of_the_parameters_of_the_loss_and_of_the_proposer_s_rate_drop_out(proposer, unit):
    plain, _ = trained(network(), proposer=PROPOSERS[proposer])
    stored = Twin(network(), [unit, unit])
    others = {
        "parameters": trained(stored, proposer=PROPOSERS[proposer])[0],
        "loss": trained(network(), proposer=PROPOSERS[proposer], unit=unit)[0],
        "rate": trained(network(), proposer=lambda p: PROPOSERS[proposer](p, lr=min(unit, 1e-3)))[0],
    }
    assert plain[-5:].mean() < 0.5 * plain[0]
    for losses in others.values():
        torch.testing.assert_close(losses, plain, rtol=1e-6, atol=0)


def test_a_rate_with_a_unit_is_noticed():
    class Fixed(Calibrated):
        def _start(self, line, settings, before):
            state = {"eta": torch.tensor([1e-3], dtype=DTYPE), "step": 0, "sums": [0.0, 0.0], "early_rate": None}
            return None, self._advance(line, settings, state)

    plain, _ = trained(network(), 5, policy=Fixed())
    other, _ = trained(Twin(network(), [1e3, 1e3]), 5, policy=Fixed())
    assert (other / plain - 1).abs().max() > 0.1


def test_in_single_precision_the_units_drop_out_up_to_its_roundings():
    plain, _ = trained(network(torch.float32), 25)
    for unit in (1e-3, 1e3):
        other, _ = trained(network(torch.float32), 25, unit=unit)
        # 25 steps amplify roundings of 6e-8; another batch order moves the same losses by a tenth.
        torch.testing.assert_close(other, plain, rtol=1e-2, atol=0)


# -- what a step costs, and what it leaves alone -----------------------------------------------------------------------


class Counted(nn.Module):
    """A perceptron that counts its evaluations, and remembers the random numbers that each of them drew."""

    def __init__(self, noise=0.0):
        super().__init__()
        self.model, self.noise, self.draws = network(), noise, []
        self.norm = nn.BatchNorm1d(64, dtype=DTYPE)

    def forward(self, x):
        self.draws.append(float(torch.rand((), dtype=DTYPE)))
        return self.model(self.norm(x)) * (1 + self.noise * self.draws[-1])


@pytest.mark.filterwarnings("ignore::gnewton.loss.RandomLossWarning")
def test_a_step_costs_one_gradient_and_a_look_one_more_evaluation(monkeypatch):
    model, gradients = Counted(), []
    grad = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **more: gradients.append(1) or grad(*args, **more))
    optimizer = gn.GroupedNewton(gn.Partition.single(model), adam(model.parameters()), policy=Calibrated())
    counts = []
    for x, y in batches(32):
        before = len(model.draws), len(gradients)
        optimizer.step(lambda x=x, y=y: F.cross_entropy(model(x), y))
        counts.append((len(model.draws) - before[0], len(gradients) - before[1]))
    looks = {step for step, count in enumerate(counts) if step and count == (2, 1)}
    assert set(counts[1:]) == {(1, 1), (2, 1)}
    assert {outcome.step for outcome in optimizer.history} == looks
    # The search is the first steps without a gap; then every tenth looks.
    last = next(step for step in itertools.count(1) if step not in looks) - 1
    assert 6 <= last <= 15
    assert looks - {*range(1, last + 1)} == {step for step in (10, 20, 30) if step > last}


def steps_that_look(asks, steps=15):
    """Their numbers, where the k-th look asks for asks(k) times the rate."""

    class Told(Calibrated):
        def _judge(self, look, state):
            slope = asks(state["looked"] + 1) * float(state["eta"]) * look.curvature
            return super()._judge(look._replace(slope=slope), state | {"sums": [0.0, 0.0]})

    w = nn.Parameter(torch.tensor([3.0], dtype=DTYPE))
    optimizer = gn.GroupedNewton(gn.Partition.from_groups([{"w": w}]), policy=Told(steps=steps, period=100))
    for _ in range(40):
        optimizer.step(lambda: w.square().sum())
    return [outcome.step for outcome in optimizer.history]


def after_a_look(slope, curvature, looked):
    """The factor on the rate by a look with this slope and curvature."""
    look = Look(slope=slope, curvature=curvature, before=2.0, after=1.0)
    state = {"eta": torch.ones(1, dtype=DTYPE), "step": 1, "sums": [0.0, 0.0], "early_rate": None, "looked": looked}
    return Calibrated()._judge(look, state)[2]


def test_an_odd_batch_changes_the_rate_by_little():
    assert after_a_look(20.0, 1.0, looked=0) == after_a_look(1.0, -1.0, looked=0) == 10  # it begins from a tenth
    assert after_a_look(20.0, 1.0, looked=1) == after_a_look(1.0, -1.0, looked=1) == 3
    for looked in (0, 1):
        assert after_a_look(-6.0, 1.0, looked) == 0.5  # the minimum lies before the start
        assert after_a_look(0.1, 1.0, looked) == pytest.approx(0.1 / SEARCHED[0])  # ten times too long
        assert after_a_look(-1.0, -1.0, looked) == 0.05  # it climbs, and has no minimum anywhere


def test_the_search_ends_with_six_looks_where_the_last_three_ask_for_little():
    assert steps_that_look(lambda look: 1.0) == [*range(1, 7)]
    assert steps_that_look(lambda look: 1.09) == [*range(1, 7)]
    assert steps_that_look(lambda look: 1.2) == [*range(1, 16)]
    assert steps_that_look(lambda look: 1.2 if look < 7 else 1.0) == [*range(1, 10)]
    assert steps_that_look(lambda look: 1.2 if look in (3, 6) else 1.0) == [*range(1, 10)]
    assert steps_that_look(lambda look: 1.0, steps=4) == [*range(1, 5)]


@pytest.mark.filterwarnings("ignore::gnewton.loss.RandomLossWarning")
def test_extra_evaluations_replay_the_random_numbers_and_leave_batch_norm_alone():
    model = Counted(noise=0.5)
    optimizer = gn.GroupedNewton(gn.Partition.single(model), adam(model.parameters()), policy=Calibrated())
    torch.manual_seed(0)
    expected = torch.rand(18, dtype=DTYPE)
    torch.manual_seed(0)
    for step, (x, y) in enumerate(batches(18)):
        before = len(model.draws)
        optimizer.step(lambda x=x, y=y: F.cross_entropy(model(x), y))
        # Every evaluation of a step sees the numbers of the first, and a training loop without looks would see the same.
        assert set(model.draws[before:]) == {model.draws[before]}
        assert model.draws[before] == float(expected[step])
    assert int(model.norm.num_batches_tracked) == 18


@pytest.mark.parametrize("stop", [1, 7, 19, 20])
def test_a_resumed_run_goes_on_bit_for_bit(stop):
    def fresh(model):
        return gn.GroupedNewton(gn.Partition.single(model), adam(model.parameters()), policy=Calibrated())

    def go(model, optimizer, some):
        return [float(optimizer.step(lambda x=x, y=y: F.cross_entropy(model(x), y))) for x, y in some]

    whole = network()
    expected = go(whole, fresh(whole), batches(30))
    model = network()
    optimizer = fresh(model)
    losses = go(model, optimizer, batches(30)[:stop])
    file = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "model": model.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = network()
    other.load_state_dict(saved["model"])
    resumed = fresh(other)
    resumed.load_state_dict(saved["optimizer"])
    assert losses + go(other, resumed, batches(30)[stop:]) == expected


@pytest.mark.parametrize("other", [{"steps": 30}, {"period": 3}, {"weight_decay": 0.1}])
def test_a_state_of_other_settings_is_refused(other):
    model = network()

    def optimizer(**settings):
        return gn.GroupedNewton(gn.Partition.single(model), policy=Calibrated(**settings))

    saved = optimizer(**other).state_dict()
    optimizer(**other).load_state_dict(saved)
    with pytest.raises(ValueError, match=f"{next(iter(other))}={next(iter(other.values()))}"):
        optimizer().load_state_dict(saved)


@pytest.mark.parametrize("proposer", PROPOSERS)
def test_the_proposer_s_own_step_is_the_step_along_its_direction(proposer):
    kind = type(PROPOSERS[proposer]([nn.Parameter(torch.zeros(1))]))
    # Another type, the same rule: of an unknown one the step is never scaled by its learning rate.
    unknown = type("Unknown", (kind,), {})
    known, _ = trained(network(), proposer=PROPOSERS[proposer])

    def cast(parameters):
        optimizer = PROPOSERS[proposer](parameters)
        optimizer.__class__ = unknown
        return optimizer

    torch.testing.assert_close(trained(network(), proposer=cast)[0], known, rtol=1e-9, atol=0)


OF_MATRICES = {
    "SOAP": lambda parameters, lr: SOAP(parameters, lr=lr, weight_decay=0.0),
    **(
        {"Muon": lambda parameters, lr: torch.optim.Muon(parameters, lr=lr, weight_decay=0.0)}
        if hasattr(torch.optim, "Muon")
        else {}
    ),
}


@pytest.mark.parametrize("proposer", OF_MATRICES)
def test_a_proposer_of_matrices_gets_its_rate_whatever_its_own(proposer):
    curves = []
    for lr in (1e-3, 0.1):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 16, bias=False), nn.Tanh(), nn.Linear(16, 10, bias=False)).to(DTYPE)
        curves.append(trained(model, proposer=lambda p, lr=lr: OF_MATRICES[proposer](p, lr))[0])
    # Later Muon does not settle: all its steps have one length, and t* says of a rate that is far too large that it fits.
    assert curves[0][5:15].mean() < 0.5 * curves[0][0]
    torch.testing.assert_close(curves[1], curves[0], rtol=1e-6, atol=0)


def test_weight_decay_is_a_part_of_the_parameters_whatever_the_rate():
    used, idle = (nn.Parameter(torch.tensor([2.0], dtype=DTYPE)) for _ in range(2))
    partition = gn.Partition.from_groups([{"used": used, "idle": idle}])
    optimizer = gn.GroupedNewton(partition, adam([used, idle], eps=1e-8), lr=0.5, policy=Calibrated(weight_decay=0.1))
    for _ in range(20):
        optimizer.step(lambda: (used - 1).square().sum() + 0 * idle.sum())
    shortened = sum(0 <= outcome.newton_ratio < 0.25 for outcome in optimizer.history)
    assert shortened < 10
    assert idle.item() == pytest.approx(2.0 * 0.95 ** (20 - shortened), rel=1e-12)


def test_a_schedule_of_lambda_1_scales_the_steps():
    model = network()
    optimizer = gn.GroupedNewton(gn.Partition.single(model), adam(model.parameters()), policy=Calibrated())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(step < 25))
    for step, (x, y) in enumerate(batches(40)):
        before = [p.detach().clone() for p in model.parameters()]
        optimizer.step(lambda x=x, y=y: F.cross_entropy(model(x), y))
        schedule.step()
        still = all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
        assert still == (step >= 25)


# -- the guard ---------------------------------------------------------------------------------------------------------


def test_late_the_rate_changes_by_a_tenth_at_most_and_keeps_a_part_of_what_was_found():
    model = network()
    optimizer = gn.GroupedNewton(gn.Partition.single(model), adam(model.parameters()), policy=Calibrated())
    for x, y in batches(16):
        optimizer.step(lambda x=x, y=y: F.cross_entropy(model(x), y))
    early_rate = optimizer.state["grouped_newton"]["policy"]["early_rate"]
    assert early_rate == float(optimizer.learning_rates)
    # The parameters are pushed and pulled: every look finds that the last step went up.
    rates, sign = [early_rate], 1.0
    for _ in range(300):
        sign = -sign
        optimizer.step(
            lambda s=sign: (
                s * sum(p.sum() for p in model.parameters()) + sum(p.square().sum() for p in model.parameters())
            )
        )
        rates.append(float(optimizer.learning_rates))
    factors = [after / before for before, after in itertools.pairwise(rates)]
    assert all(0.9 - 1e-12 <= factor <= 1.1 + 1e-12 for factor in factors)
    assert min(rates) == pytest.approx(0.1 * early_rate, rel=1e-12)


def test_a_step_that_was_far_too_long_is_shortened_and_the_proposer_does_not_learn_of_it():
    model = gn.models.Quadratic([1.0, 2.0], dtype=DTYPE)
    proposer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    optimizer = gn.GroupedNewton(gn.Partition.single(model), proposer, policy=Calibrated())
    for _ in range(3):
        optimizer.step(model)
    previous = optimizer.state["grouped_newton"]["policy"]["previous"]["theta"]
    last, momentum = model.theta.detach() - previous, proposer.state[model.theta]["momentum_buffer"].clone()
    # On this batch a steep valley lies where the last step began.
    optimizer.step(lambda: model() + 1e3 * (model.theta - previous).square().sum())
    ratio = optimizer.history[-1].newton_ratio
    assert ratio < 0.25
    torch.testing.assert_close(model.theta.detach() - previous, max(2 * ratio, 0.05) * last, rtol=1e-9, atol=0)
    assert torch.equal(proposer.state[model.theta]["momentum_buffer"], momentum)


@pytest.mark.parametrize("proposer", PROPOSERS)
@pytest.mark.parametrize("spectrum", [[1.0, 4.0], [1.0, 100.0, 10.0], [1.0, 1e-2]])
def test_without_noise_momentum_that_overshoots_does_not_lower_the_rate_for_good(proposer, spectrum):
    # Momentum climbs after the minimum, where no length of a step is right: the look after a shortened step is left out.
    model = gn.models.Quadratic(spectrum, generator=torch.Generator().manual_seed(1), dtype=DTYPE)
    partition = gn.Partition.single(model)
    optimizer = gn.GroupedNewton(partition, PROPOSERS[proposer](model.parameters()), policy=Calibrated())
    losses = [optimizer.step(model).item() for _ in range(200)]
    # Without momentum that overshoots, the steps of a short memory of squares stay as long as the rate.
    assert losses[-1] < (1e-2 if proposer == "CautiousAdam" else 1e-5) * losses[0]


def noisy_quadratic(policy, seed, steps=200):
    """Loss without its noise at the start and at the end; each batch has another minimum."""
    generator = torch.Generator().manual_seed(seed)
    curvature = torch.logspace(0, -4, 20, dtype=DTYPE)
    w = nn.Parameter(3 * torch.randn(20, generator=generator, dtype=DTYPE))
    start = float((curvature * w.detach() ** 2).sum())
    optimizer = gn.GroupedNewton(gn.Partition.from_groups([{"w": w}]), adam([w]), policy=policy)
    for _ in range(steps):
        shift = 0.3 * torch.randn(20, generator=generator, dtype=DTYPE)
        optimizer.step(lambda shift=shift: (curvature * (w - shift) ** 2).sum() / 2)
    return start, float((curvature * w.detach() ** 2).sum())


@pytest.mark.parametrize("seed", range(5))
def test_nothing_diverges_on_a_noisy_quadratic(seed):
    start, end = noisy_quadratic(Calibrated(), seed)
    assert end < 0.2 * start


def test_a_rate_that_diverges_there_is_noticed():
    class Reckless(Calibrated):
        def _judge(self, look, state):
            return state | {"eta": 1.3 * state["eta"], "early_rate": 1.0}, 1.0, 1.0

    start, end = noisy_quadratic(Reckless(), 0)
    assert end > start


# -- groups, refusals --------------------------------------------------------------------------------------------------


def test_groups_of_the_partition_share_one_rate():
    case, other = build("perceptron"), build("perceptron")
    losses = []
    for one, partition in ((case, gn.Partition.single), (other, gn.Partition.by_tensor)):
        optimizer = gn.GroupedNewton(partition(one.model), adam(one.model.parameters()), policy=Calibrated())
        losses.append([float(optimizer.step(one.loss)) for _ in range(30)])
        assert len(set(optimizer.learning_rates.tolist())) == 1
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


def test_a_scalar_in_no_group_stays_where_it_is():
    w = nn.Parameter(torch.tensor([3.0, 3.0], dtype=DTYPE))
    frozen = nn.Parameter(torch.tensor([3.0], dtype=DTYPE), requires_grad=False)
    groups = {"first": {"w": (w, torch.tensor([True, False]))}, "frozen": {"frozen": frozen}}
    partition = gn.Partition.from_groups(groups, rest="ignore")
    optimizer = gn.GroupedNewton(partition, adam([w]), policy=Calibrated(weight_decay=1e-3))
    for _ in range(60):
        optimizer.step(lambda: (w - 1).square().sum() * frozen.sum())
    assert w[1].item() == frozen.item() == 3.0
    assert abs(w[0].item() - 1) < 0.5


def test_a_curvature_batch_judges_the_steps():
    case = build("perceptron")
    optimizer = gn.GroupedNewton(gn.Partition.single(case.model), adam(case.model.parameters()), policy=Calibrated())
    twice = lambda: 2 * case.loss()  # noqa: E731
    losses = [float(optimizer.step(case.loss, curvature=twice)) for _ in range(20)]
    assert losses[-1] < losses[0]
    last = optimizer.history[-1]
    assert last.value == pytest.approx(2 * losses[last.step], rel=1e-12)


@pytest.mark.parametrize(("name", "number"), [("steps", 0), ("period", 0.5), ("weight_decay", 1.0)])
def test_numbers_out_of_range_are_refused(name, number):
    with pytest.raises(ValueError, match=name):
        Calibrated(**{name: number})


# -- what is frozen, written or missing between the steps -----------------------------------------------------------------


class Target(nn.Module):
    """A quadratic in ``w``, beside frozen values that their owner moves."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([3.0, -2.0], dtype=DTYPE))
        self.other = nn.Parameter(torch.tensor([5.0], dtype=DTYPE))
        self.mask = nn.Parameter(torch.tensor([-math.inf], dtype=DTYPE), requires_grad=False)

    def forward(self):
        return (self.w.square() * torch.tensor([1.0, 4.0], dtype=DTYPE)).sum() / 2 + 500 * self.other.square().sum()


def test_a_frozen_parameter_has_no_part_in_a_look_and_stays_where_its_owner_puts_it():
    model = Target()
    optimizer = gn.GroupedNewton(gn.Partition.single(model), adam(model.parameters()), policy=Calibrated())
    previous, length = model.w.detach().clone(), 0.0
    for step in range(7):
        before = model.w.detach().clone()
        optimizer.step(model)
        model.other.requires_grad_(step < 2)
        with torch.no_grad():
            placed = model.other.mul_(0.9) if step >= 2 else model.other
        if step >= 4:
            # Of the last step the look saw what may move: the exact second difference of the quadratic in w.
            look, last = optimizer.history[-1], previous - before
            curvature = (last.square() * torch.tensor([1.0, 4.0], dtype=DTYPE)).sum() / length**2
            assert float(look.hessian) == pytest.approx(float(curvature), rel=1e-9)
        previous, length = before, optimizer.state_dict()["state"]["grouped_newton"]["policy"]["taken"]
        assert torch.equal(model.other, placed)
    assert len(optimizer.history) == 6
    assert model.mask.item() == -math.inf


def test_a_step_that_is_shortened_moves_no_frozen_parameter():
    model = Target()
    model.other.requires_grad_(False)
    line = Line(Objective(gn.Partition.single(model), model), Proposal({}))
    previous = {name: p.detach() + 1 for name, p in model.named_parameters()}
    line.shorten(previous, 0.25)
    assert model.w.tolist() == [3.75, -1.25]
    assert (model.other.item(), model.mask.item()) == (5.0, -math.inf)


class Annealed(nn.Module):
    """A loss that grows with a counter in a buffer."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([2.0], dtype=DTYPE))
        self.register_buffer("calls", torch.tensor(0.0, dtype=DTYPE))

    def forward(self):
        self.calls += 1
        return self.w.square().sum() / 2 + self.calls


def test_both_evaluations_of_a_look_begin_with_the_same_buffers():
    model = Annealed()
    optimizer = gn.GroupedNewton(gn.Partition.single(model), adam(model.parameters()), policy=Calibrated(period=2))
    previous = math.nan
    for step in range(24):
        before, looks = model.w.item(), len(optimizer.history)
        optimizer.step(model)
        if len(optimizer.history) > looks:
            look = optimizer.history[-1]
            assert look.actual_decrease == pytest.approx((previous**2 - before**2) / 2, rel=1e-9, abs=1e-12)
        previous = before
        assert float(model.calls) == step + 1
    assert len(optimizer.history) > 12


def test_the_search_begins_with_the_first_step_that_a_schedule_allows():
    model = network()
    optimizer = gn.GroupedNewton(gn.Partition.single(model), adam(model.parameters()), policy=Calibrated())
    warm = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(step >= 20))
    for x, y in batches(60):
        optimizer.step(lambda x=x, y=y: F.cross_entropy(model(x), y))
        warm.step()
    # Step 20 is the first one, and is looked back at by the next.
    looks = [look.step for look in optimizer.history]
    last = next(step for step in itertools.count(21) if step not in looks) - 1
    assert 26 <= last <= 35
    assert looks == [*range(21, last + 1), *(step for step in (30, 40, 50) if step > last)]


class Broken(torch.optim.Optimizer):
    """Its step is not finite, from some step on."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 1.0})
        self.breaks = False

    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p.data.sub_(math.nan if self.breaks else p.grad)


@pytest.mark.parametrize("before", [1, 5, 19])
def test_a_direction_that_is_not_finite_moves_nothing(before):
    model = gn.models.Quadratic([1.0, 4.0], dtype=DTYPE)
    proposer = Broken(model.parameters())
    optimizer = gn.GroupedNewton(gn.Partition.single(model), proposer, policy=Calibrated())
    for _ in range(before):
        optimizer.step(model)
    proposer.breaks, stands = True, model.theta.detach().clone()
    with pytest.raises(FloatingPointError, match="finite direction"):
        optimizer.step(model)
    assert torch.equal(model.theta, stands)


def test_the_loss_that_is_returned_is_the_one_before_the_step():
    w = nn.Parameter(torch.tensor(3.0, dtype=DTYPE))
    sgd = torch.optim.SGD([w], lr=0.1)
    optimizer = gn.GroupedNewton(gn.Partition.from_groups([{"w": w}]), sgd, policy=Calibrated(steps=1))
    for _ in range(2):
        optimizer.step(lambda: w.square() / 2)
    for _ in range(3):
        before = w.item()
        assert optimizer.step(lambda: w).item() == before != w.item()


def test_a_thawed_parameter_that_the_proposer_does_not_hold_is_named():
    model = Target()
    model.other.requires_grad_(False)
    optimizer = gn.GroupedNewton(gn.Partition.single(model), adam([model.w]), policy=Calibrated(steps=1))
    for _ in range(4):
        optimizer.step(model)
    model.other.requires_grad_(True)
    with pytest.raises(ValueError, match="to hold the partition's parameters, got none of other"):
        optimizer.step(model)


MISTAKES = {
    "a number": (lambda loss: float(loss().detach()), TypeError, "return the loss as a tensor"),
    "nothing": (lambda loss: None, TypeError, "return the loss as a tensor"),
    "detached": (lambda loss: loss().detach(), ValueError, "loss with a graph"),
    "several": (lambda loss: loss().repeat(2), ValueError, "scalar loss"),
    "used up": (lambda loss: used_up(loss()), ValueError, "whole, got one that backward"),
}


def used_up(value):
    value.backward()
    return value


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("step", [2, 19, 20])
def test_a_closure_that_goes_wrong_later_is_told_so(mistake, step):
    wrong, error, text = MISTAKES[mistake]
    model = gn.models.Quadratic([1.0, 4.0], dtype=DTYPE)
    optimizer = gn.GroupedNewton(gn.Partition.single(model), adam(model.parameters()), policy=Calibrated())
    for _ in range(step):
        optimizer.step(model)
    before = repr(optimizer.state_dict()), model.theta.tolist()
    with pytest.raises(error, match=text):
        optimizer.step(lambda: wrong(model))
    assert (repr(optimizer.state_dict()), model.theta.tolist()) == before


def test_a_look_inside_autocast_is_refused():
    model = network(torch.float32)
    optimizer = gn.GroupedNewton(gn.Partition.single(model), adam(model.parameters()), policy=Calibrated())
    some = batches(3, torch.float32)
    for x, y in some[:2]:
        optimizer.step(lambda x=x, y=y: F.cross_entropy(model(x), y))
    x, y = some[2]
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="expected no active autocast"):
        optimizer.step(lambda: F.cross_entropy(model(x), y))


def test_a_rate_that_rounding_hid_from_every_early_look_is_found_by_a_later_one():
    model = network()
    optimizer = gn.GroupedNewton(gn.Partition.single(model), adam(model.parameters()), policy=Calibrated(steps=3))
    for step, (x, y) in enumerate(batches(12)):
        far = 1e20 if 1 <= step < 6 else 0.0  # beside which no step is seen
        with pytest.warns(UserWarning, match="the rate was not found: in 3 steps") if step == 3 else nullcontext():
            optimizer.step(lambda x=x, y=y, far=far: F.cross_entropy(model(x), y) + far)
    state = optimizer.state_dict()["state"]["grouped_newton"]["policy"]
    assert [look.step for look in optimizer.history] == [10]
    assert state["early_rate"] > 0


# -- where there is no first rate --------------------------------------------------------------------------------------

# What the optimizer is built of, a factor on the loss, and what the warning says.
OBSTACLES = {
    "a proposer at 0": (lambda p: torch.optim.Adam(p, lr=0.0), 1.0, "its lr is 0"),
    "a gradient of 0": (adam, 0.0, "the gradient is"),
    "a proposer that maximizes": (lambda p: torch.optim.SGD(p, maximize=True), 1.0, "climbs along"),
    "a slope that overflows": (torch.optim.SGD, 1e200, "not a finite number"),
}


@pytest.mark.parametrize("name", OBSTACLES)
def test_who_finds_no_first_rate_says_so_at_the_third_step_and_stays(name):
    proposer, factor, words = OBSTACLES[name]
    for on_failure in ("report", "raise"):
        model = network()
        before = [p.detach().clone() for p in model.parameters()]
        optimizer = gn.GroupedNewton(
            gn.Partition.single(model), proposer(model.parameters()), policy=Calibrated(), on_failure=on_failure
        )
        steps = [lambda x=x, y=y, model=model: factor * F.cross_entropy(model(x), y) for x, y in batches(3)]
        for step in steps[:2]:
            optimizer.step(step)
        error = pytest.warns(StepWarning, match=words)
        if on_failure == "raise":
            error = pytest.raises(NewtonStepError, match=words)
        with error:
            optimizer.step(steps[2])
        assert all(map(torch.equal, before, model.parameters()))
        assert [outcome.accepted for outcome in optimizer.history] == ([False] if on_failure == "report" else [])
        assert optimizer.learning_rates is None


def test_one_step_of_zero_is_no_obstacle():
    # SOAP's first step makes its preconditioner and moves nothing.
    losses, optimizer = trained(network(), 12, proposer=lambda p: SOAP(p, lr=1.0))
    assert losses[-1] < losses[0]
    assert all(outcome.accepted for outcome in optimizer.history)


@pytest.mark.parametrize("decay", [math.nan, 1.0, -1.0, math.inf, "a", None])
@pytest.mark.parametrize("steps", [0, 3, 20])
def test_a_weight_decay_that_was_changed_is_asked_again(decay, steps):
    model = network()
    optimizer = gn.GroupedNewton(
        gn.Partition.single(model), adam(model.parameters()), policy=Calibrated(weight_decay=0.1)
    )
    drawn = [lambda x=x, y=y: F.cross_entropy(model(x), y) for x, y in batches(steps + 1)]
    for step in drawn[:-1]:
        optimizer.step(step)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.param_groups[0]["weight_decay"] = decay
    with pytest.raises(ValueError, match="expected 0 <= weight_decay < 1"):
        optimizer.step(drawn[-1])
    assert all(map(torch.equal, before, model.parameters()))


def test_a_loss_that_rounding_hides_is_said_once():
    model = network(torch.float32)
    optimizer = gn.GroupedNewton(
        gn.Partition.single(model), gn.CautiousAdam(model.parameters()), policy=Calibrated(steps=4)
    )
    said = []
    for x, y in batches(10, torch.float32):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            # Beside this constant float32 sees the first step's descent, and no look its bend.
            optimizer.step(lambda x=x, y=y: F.cross_entropy(model(x), y) + 2e4)
        said.append([str(one.message) for one in caught if "was not found" in str(one.message)])
    assert [len(one) for one in said] == [0, 0, 0, 0, 1, 0, 0, 0, 0, 0]
