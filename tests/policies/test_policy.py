"""A policy from outside plugs in: the optimizer knows no policy's insides."""

import copy
import re
import signal
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from support.problems import DTYPE, build
from torch import nn
from torch.optim import lr_scheduler

import gnewton as gn
from gnewton.derivatives import sweep
from gnewton.direction import plain_gradient
from gnewton.proposer import Proposer


class ConstantRates:
    """The same rate for every group, at every step."""

    settings: ClassVar = {"rate": 0.1}

    def needs_summary(self, settings, state):
        return False

    def step(self, line, settings, state):
        eta = torch.full((len(line.partition),), settings["rate"], dtype=torch.float64)
        line.move(settings["lr"] * eta)
        return None, {"eta": eta, "steps": state.get("steps", 0) + 1}


def optimizer_for(case, **settings):
    proposer = torch.optim.SGD(case.model.parameters(), lr=1.0, momentum=0.9)
    return gn.GroupedNewton(gn.Partition.by_tensor(case.model), proposer, policy=ConstantRates(), **settings)


def test_constant_rates_are_gradient_descent_with_momentum():
    case, twin = build("perceptron"), build("perceptron")
    ours, theirs = optimizer_for(case, lr=0.5), torch.optim.SGD(twin.model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(5):
        value = twin.loss()
        theirs.zero_grad()
        value.backward()
        theirs.step()
        assert float(ours.step(case.loss)) == pytest.approx(value.item(), rel=1e-10)
    for p, q in zip(case.model.parameters(), twin.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-14)
    assert not ours.history


def test_its_settings_are_scheduled_and_its_state_is_saved():
    case, twin = build("perceptron"), build("perceptron")
    optimizer = optimizer_for(case)
    halving = lr_scheduler.StepLR(gn.AsRate(optimizer, "rate"), step_size=2)
    for _ in range(4):
        optimizer.step(case.loss)
        halving.step()
    saved = optimizer.state_dict()
    resumed = optimizer_for(twin)
    resumed.load_state_dict(saved)
    assert resumed.learning_rates.tolist() == optimizer.learning_rates.tolist() == pytest.approx([0.01] * 6)
    assert resumed.state_dict()["state"]["grouped_newton"]["policy"]["steps"] == 4
    with pytest.raises(ValueError, match="policy is None, got ConstantRates"):
        gn.GroupedNewton(gn.Partition.by_tensor(case.model), optimizer.proposer.optimizer).load_state_dict(saved)


@dataclass
class GivenRate(ConstantRates):
    """A policy whose settings are its fields."""

    rate: float

    @property
    def settings(self):
        return {"rate": self.rate}


class FasterRates(ConstantRates):
    settings: ClassVar = {"rate": 0.2}


@pytest.mark.parametrize(
    ("saver", "loader", "text"),
    [
        (FasterRates(), ConstantRates(), "policy is ConstantRates(rate=0.1), got FasterRates(rate=0.2)"),
        (GivenRate(0.2), GivenRate(0.1), "policy is GivenRate(rate=0.1), got GivenRate(rate=0.2)"),
        (gn.policies.RatioTest(), None, "policy is None, got RatioTest()"),
    ],
)
def test_a_state_of_a_policy_with_other_settings_is_refused(saver, loader, text):
    case = build("perceptron")
    partition = gn.Partition.by_tensor(case.model)
    saved = gn.GroupedNewton(partition, policy=saver).state_dict()
    gn.GroupedNewton(partition, policy=saver).load_state_dict(saved)
    with pytest.raises(ValueError, match=re.escape(f"{text}; build the optimizer as it was then")):
        gn.GroupedNewton(partition, policy=loader).load_state_dict(saved)


@pytest.mark.parametrize("name", ["lr", "period", "params"])
def test_a_setting_by_the_name_of_the_optimizers_is_refused(name):
    class Clashing(ConstantRates):
        settings: ClassVar = {name: 3}

    text = f"settings than GroupedNewton's, got '{name}'; leave it out of Clashing.settings and write GroupedNewton("
    with pytest.raises(ValueError, match=re.escape(text)):
        gn.GroupedNewton(gn.Partition.by_tensor(build("perceptron").model), policy=Clashing())


def test_settings_that_do_not_fit_the_policy_are_refused_at_the_door():
    partition = gn.Partition.by_tensor(build("perceptron").model)
    with pytest.raises(ValueError, match=r'got "adaptive"; write GroupedNewton\(partition, cubic=1.0\)'):
        gn.GroupedNewton(partition, policy=gn.policies.ReuseRates())


def test_the_policy_of_a_number_by_name_is_the_same_run():
    runs = []
    for policy in (None, gn.policies.ReuseRates()):
        case = build("perceptron")
        optimizer = gn.GroupedNewton(gn.Partition.by_tensor(case.model), cubic=1.0, period=2, lr=0.3, policy=policy)
        runs.append([float(optimizer.step(case.loss)) for _ in range(4)])
    assert runs[0] == runs[1]


def test_an_error_in_a_policy_undoes_what_it_moved():
    class Failing(ConstantRates):
        def step(self, line, settings, state):
            line.loss_at(torch.ones(len(line.partition), dtype=torch.float64))
            raise RuntimeError("no rates")

    case = build("perceptron")
    before = [p.detach().clone() for p in case.model.parameters()]
    optimizer = gn.GroupedNewton(gn.Partition.by_tensor(case.model), policy=Failing())
    with pytest.raises(RuntimeError, match="no rates"):
        optimizer.step(case.loss)
    assert all(torch.equal(p, q) for p, q in zip(case.model.parameters(), before, strict=True))


class Idle(ConstantRates):
    """Asks for nothing and moves nothing."""

    def step(self, line, settings, state):
        return None, state


class Twice(torch.autograd.Function):
    """2 w, by a backward pass that torch does not know."""

    @staticmethod
    def forward(w):
        return 2 * w

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, g):
        return 2 * g


SETTINGS = {
    "adaptive": {"period": 1},
    "fixed": {"cubic": 1.0, "period": 1},
    "kept": {"cubic": 1.0, "period": 9},
    "calibrated": {"policy": gn.policies.Calibrated(steps=2)},
    "idle": {"policy": Idle()},
}


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("custom", [False, True])
@pytest.mark.parametrize("before", [0, 1, 3])
@pytest.mark.filterwarnings("ignore::gnewton.derivatives.record.IncompleteRecordWarning")
def test_a_gradient_that_is_not_finite_is_refused_whatever_the_policy_asks(settings, custom, before):
    w = torch.nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
    proposer = torch.optim.SGD([w], lr=0.1, momentum=0.9)
    optimizer = gn.GroupedNewton(gn.Partition.from_groups([{"w": w}]), proposer, **SETTINGS[settings])
    steep = False

    def loss():
        double = Twice.apply(w) if custom else 2 * w
        # The root of 0: a finite loss, whose gradient is infinite.
        return double.square().sum() + ((w - w.detach()).sqrt().sum() if steep else 0)

    for _ in range(before):
        optimizer.step(loss)
    steep, stands, momentum = True, w.detach().clone(), repr(proposer.state_dict())
    with pytest.raises(FloatingPointError, match="finite gradient, got NaN or infinity in w"):
        optimizer.step(loss)
    assert torch.equal(w, stands)
    assert repr(proposer.state_dict()) == momentum


def test_the_gradient_is_named_also_where_the_recording_cannot_be_swept(monkeypatch):
    def refuse(*arguments, **options):
        raise sweep.NoRule("made up")

    w = torch.nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
    optimizer = gn.GroupedNewton(gn.Partition.from_groups([{"w": w}]), period=1)
    optimizer.step(lambda: w.square().sum())
    monkeypatch.setattr(sweep, "summary", refuse)
    with pytest.raises(FloatingPointError, match="finite gradient, got NaN or infinity in w"):
        optimizer.step(lambda: w.square().sum() + (w - w.detach()).sqrt().sum())


class Around:
    """Another policy, every step of which goes through here."""

    def __init__(self, inner):
        self.inner, self.calls = inner, 0
        self.settings, self.needs_summary, self.is_plain = inner.settings, inner.needs_summary, inner.is_plain

    def step(self, line, settings, state):
        self.calls += 1
        return self.inner.step(line, settings, state)


class Watched(gn.policies.Calibrated):
    """A subclass with a step of its own, and no ``hold``."""

    calls = 0

    def step(self, line, settings, state):
        self.calls += 1
        return super().step(line, settings, state)


class Advancing(gn.policies.Calibrated):
    """A subclass that changes what its step is made of."""

    calls = 0

    def _advance(self, line, settings, state):
        self.calls += 1
        return super()._advance(line, settings, state)


class Checked(Watched):
    """It wants the closure checked at every step."""

    def hold(self, settings, state, partition):
        return gn.policies.Calibrated.hold(self, settings, state, partition)

    def is_plain(self, settings, state):
        return False


class Without(Watched):
    hold = None


def with_a_step_of_its_own(**settings):
    policy, calls = gn.policies.Calibrated(**settings), []
    step = policy.step
    policy.calls, policy.step = calls, lambda *arguments: calls.append(1) or step(*arguments)
    return policy


PROPOSERS = {
    "Adam": lambda model: torch.optim.Adam(model.parameters(), betas=(0.8, 0.9), fused=True),
    "SGD": lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
    "AdamW": lambda model: torch.optim.AdamW(model.parameters(), weight_decay=0.01),
    "CautiousAdam": lambda model: gn.CautiousAdam(model.parameters()),
}
SEEN = {
    "around": lambda **settings: Around(gn.policies.Calibrated(**settings)),
    "subclass": Watched,
    "advancing": Advancing,
    "checked": Checked,
    "without": Without,
    "object": with_a_step_of_its_own,
}


@pytest.mark.parametrize("proposer", PROPOSERS)
@pytest.mark.parametrize("kind", SEEN)
@pytest.mark.filterwarnings("ignore:the direction is theta_before")
def test_a_held_step_is_the_step_that_the_policy_would_take_and_hides_none_of_another_one(proposer, kind):
    policy = SEEN[kind](steps=4)
    case, twin = build("perceptron"), build("perceptron")
    runs = [
        gn.GroupedNewton(gn.Partition.single(one.model), PROPOSERS[proposer](one.model), policy=policy)
        for one, policy in ((case, gn.policies.Calibrated(steps=4)), (twin, policy))
    ]
    for _ in range(25):
        values = [run.step(one.loss) for run, one in zip(runs, (case, twin), strict=True)]
        # A closure that is checked is differentiated by other calls of torch, which round alike here.
        assert torch.equal(*values)
    assert (len(policy.calls) if isinstance(policy.calls, list) else policy.calls) == 25
    for p, q in zip(case.model.parameters(), twin.model.parameters(), strict=True):
        assert torch.equal(p, q)
    ours, theirs = (run.state_dict() for run in runs)
    assert repr(ours["state"]) == repr(theirs["state"])
    assert repr(ours["proposer"]) == repr(theirs["proposer"])
    assert len(runs[0].history) == len(runs[1].history) == 6


def test_an_outcome_of_the_policy_s_own_class_is_recorded():
    @dataclass(frozen=True)
    class Note:
        step: int = 0
        accepted: bool = True

    class Noting(ConstantRates):
        def step(self, line, settings, state):
            return Note(), super().step(line, settings, state)[1]

    case = build("perceptron")
    optimizer = gn.GroupedNewton(gn.Partition.by_tensor(case.model), policy=Noting())
    for _ in range(3):
        optimizer.step(case.loss)
    assert [note.step for note in optimizer.history] == [0, 1, 2]


# -- gradients as backward() leaves them ---------------------------------------------------------------------------------


def of_layout(kind):
    """A loss whose gradients share memory, or have other strides than the parameters."""
    generator = torch.Generator().manual_seed(0)
    w, a, b = (torch.nn.Parameter(torch.randn(3, 4, generator=generator, dtype=torch.float64)) for _ in range(3))
    x = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    losses = {
        "shared": lambda: ((w + a + b) @ x).tanh().square().sum(),
        "shared by a view": lambda: ((w + a.reshape(-1).view(3, 4)) @ x).tanh().sum() + b.square().sum(),
        "transposed": lambda: (
            (x @ (1.5 * w.t().contiguous())).tanh().sum() + (a.t() * x[:, :3]).sin().sum() + b.sum().square()
        ),
        "expanded": lambda: w.square().sum() + a.sum() ** 2 + b.sum(0).cos().sum(),
    }
    return [w, a, b], losses[kind]


OPTIMIZERS = {
    "Adam, fused": lambda ps: torch.optim.Adam(ps, betas=(0.8, 0.9), fused=True),
    "Adam, foreach": lambda ps: torch.optim.Adam(ps, foreach=True),
    "SGD, fused": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9, nesterov=True, fused=True),
    "SGD, foreach": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9, nesterov=True, foreach=True),
    "CautiousAdam": lambda ps: gn.CautiousAdam(ps),
    "Adagrad, fused": lambda ps: torch.optim.Adagrad(ps, fused=True),
    "RMSprop": lambda ps: torch.optim.RMSprop(ps, momentum=0.5, centered=True),
}


@pytest.mark.parametrize("kind", ["shared", "shared by a view", "transposed", "expanded"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_proposer_sees_the_gradients_as_backward_leaves_them(name, kind):
    (ours, loss), (theirs, again) = of_layout(kind), of_layout(kind)
    proposer, alone = OPTIMIZERS[name](ours), OPTIMIZERS[name](theirs)
    partition = gn.Partition.from_groups([dict(zip("wab", ours, strict=True))])
    optimizer = gn.GroupedNewton(partition, proposer, policy=gn.policies.Calibrated(steps=1, period=100))
    rates = [group["lr"] for group in alone.param_groups]
    for step in range(8):
        optimizer.step(loss)
        if step < 3:  # what looks for the rate; then every step is held
            for p, q in zip(theirs, ours, strict=True):
                p.data.copy_(q.data)
            alone.load_state_dict(copy.deepcopy(proposer.state_dict()))
            continue
        taken = optimizer.state_dict()["state"]["grouped_newton"]["policy"]["taken"]
        alone.zero_grad()
        again().backward()
        for group, rate in zip(alone.param_groups, rates, strict=True):
            group["lr"] = taken * rate
        alone.step()
        for p, q in zip(ours, theirs, strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=0)


def test_gradients_of_other_strides_are_noticed(monkeypatch):
    def raw(gradients, partition):
        return {p: gradients[name] for name, p in partition.parameters.items()}

    monkeypatch.setattr("gnewton.proposer._as_left_by_backward", raw)
    # Wrong steps; what they read beside the gradient may be no number.
    with pytest.raises((AssertionError, FloatingPointError)):
        test_a_proposer_sees_the_gradients_as_backward_leaves_them("Adam, fused", "transposed")


@pytest.mark.parametrize("kind", ["shared", "transposed", "expanded"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_so_does_a_proposal(name, kind):
    (ours, loss), (theirs, again) = of_layout(kind), of_layout(kind)
    partition = gn.Partition.from_groups([dict(zip("wab", ours, strict=True))])
    proposed = Proposer(OPTIMIZERS[name](ours), partition).propose(plain_gradient(loss, partition)[1])
    before = [p.detach().clone() for p in theirs]
    again().backward()
    OPTIMIZERS[name](theirs).step()
    for u, start, p in zip(proposed.values(), before, theirs, strict=True):
        # The difference of two numbers near 1 against the step itself.
        torch.testing.assert_close(u, start - p.detach(), rtol=0, atol=1e-14)


@pytest.mark.filterwarnings("ignore::gnewton.loss.RandomLossWarning")
def test_a_held_step_that_fails_changes_nothing():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1)).double()
    optimizer = gn.GroupedNewton(
        gn.Partition.single(model), PROPOSERS["Adam"](model), policy=gn.policies.Calibrated(steps=2)
    )
    fails = False

    def loss():
        value = (model(torch.rand(16, 3, dtype=torch.float64)) - 1).square().mean()
        if fails:
            raise KeyError("no batch")
        return value

    for _ in range(6):
        optimizer.step(loss)
    fails = True
    before = [repr(model.state_dict()), repr(optimizer.state_dict()), torch.get_rng_state().tolist()]
    with pytest.raises(KeyError):
        optimizer.step(loss)
    with pytest.raises(TypeError, match="expected a closure"):
        optimizer.step()
    assert [repr(model.state_dict()), repr(optimizer.state_dict()), torch.get_rng_state().tolist()] == before


# -- what every kind of step asks, held or not -------------------------------------------------------------------------

POLICIES = {
    "held": lambda model: {"policy": gn.policies.Calibrated(period=1000)},
    "looks": lambda model: {"policy": gn.policies.Calibrated(steps=1000)},
    "adaptive": lambda model: {"cubic": "adaptive", "period": 3},
    "a number": lambda model: {"cubic": 1.0, "period": 3},
}
TAKEN_BY = {
    "CautiousAdam": lambda p: gn.CautiousAdam(p),
    "Adam": lambda p: torch.optim.Adam(p),
    "SGD": lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.9),
}
kinds_of_steps = pytest.mark.parametrize(
    ("policy", "proposer"), [(policy, proposer) for policy in POLICIES for proposer in TAKEN_BY]
)


class Trained:
    """A network on fixed numbers, a few steps into its training."""

    def __init__(self, policy, proposer, steps):
        self.model = gn.models.perceptron([3, 4, 2], generator=torch.Generator().manual_seed(0), dtype=DTYPE)
        self.x = torch.randn(20, 3, generator=torch.Generator().manual_seed(1), dtype=DTYPE)
        self.y = (self.x[:, 0] > 0).long()
        self.optimizer = gn.GroupedNewton(
            gn.Partition.single(self.model), TAKEN_BY[proposer](self.model.parameters()), **POLICIES[policy](self.model)
        )
        for _ in range(steps):
            self.optimizer.step(self.loss)

    def loss(self):
        return nn.functional.cross_entropy(self.model(self.x), self.y)

    def values(self):
        return torch.cat([p.detach().flatten() for p in self.model.parameters()])


@kinds_of_steps
@pytest.mark.parametrize("steps", [1, 17, 18, 19])
def test_no_step_is_taken_inside_autocast(policy, proposer, steps):
    run = Trained(policy, proposer, steps)
    before = run.values()
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="expected no active autocast"):
        run.optimizer.step(run.loss)
    assert torch.equal(before, run.values())


@kinds_of_steps
def test_the_loss_of_another_model_is_refused_at_every_step(policy, proposer):
    run = Trained(policy, proposer, 0)
    other = Trained(policy, proposer, 0)
    for _ in range(22):
        before = run.values()
        with pytest.raises(ValueError, match="reaches none of them"):
            run.optimizer.step(other.loss)
        assert torch.equal(before, run.values())
        run.optimizer.step(run.loss)


@kinds_of_steps
def test_a_loop_in_inference_mode_is_the_same_run_and_can_be_left(policy, proposer):
    inside, outside = Trained(policy, proposer, 0), Trained(policy, proposer, 25)
    with torch.inference_mode():
        for _ in range(20):
            inside.optimizer.step(inside.loss)
    for _ in range(5):
        inside.optimizer.step(inside.loss)
    assert torch.equal(inside.values(), outside.values())


@kinds_of_steps
def test_what_is_no_loss_is_named_at_every_step(policy, proposer):
    run = Trained(policy, proposer, 0)
    for _ in range(22):
        with pytest.raises(TypeError, match="expected the closure to return the loss as a tensor"):
            run.optimizer.step(lambda: (run.loss(), 0))
        run.optimizer.step(run.loss)


class Counting(torch.optim.Optimizer):
    """Keeps numbers of its own, outside its state."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.1})
        self.count, self.sum = 0, torch.zeros((), dtype=DTYPE)

    @torch.no_grad()
    def step(self):
        self.count += 1
        for p in self.param_groups[0]["params"]:
            self.sum += p.grad.sum()
            p.sub_(0.1 * p.grad / self.count)


def test_a_proposer_forgets_what_it_keeps_in_attributes_too():
    model = gn.models.Rosenbrock(2, dtype=DTYPE)
    counting, partition = Counting(model.parameters()), gn.Partition.single(model)
    proposer = Proposer(counting, partition)
    gradients = gn.direction.gradient(model, partition)
    proposer.propose(gradients)
    assert counting.count == 1
    assert counting.sum != 0
    proposer.undo()
    assert (counting.count, float(counting.sum)) == (0, 0.0)


@pytest.mark.parametrize("kind", ["pre", "post"])
def test_a_hook_of_the_proposer_sees_parameters_and_not_zeros(kind):
    model = gn.models.Rosenbrock(2, dtype=DTYPE)
    sgd, partition, seen = torch.optim.SGD(model.parameters(), lr=1e-3), gn.Partition.single(model), []
    gradients = gn.direction.gradient(model, partition)
    plain = Proposer(sgd, partition).propose(gradients)
    getattr(sgd, f"register_step_{kind}_hook")(lambda *_: seen.append(model.theta.detach().clone()))
    hooked = Proposer(sgd, partition).propose(gradients)
    expected = model.theta.detach() - (hooked["theta"] if kind == "post" else 0)
    torch.testing.assert_close(seen, [expected], rtol=1e-15, atol=0)
    torch.testing.assert_close(hooked, plain, rtol=1e-12, atol=1e-15)


class Interrupting(torch.optim.SGD):
    """Ctrl-C comes in the middle of its step."""

    def step(self, closure=None):
        signal.raise_signal(signal.SIGINT)
        return super().step(closure)


def test_an_interrupt_waits_until_the_proposer_has_put_everything_back():
    model = gn.models.Rosenbrock(2, dtype=DTYPE)
    sgd, partition = Interrupting(model.parameters(), lr=1e-3, momentum=0.9), gn.Partition.single(model)
    proposer, gradients = Proposer(sgd, partition), gn.direction.gradient(model, partition)
    before, memory = model.theta.detach().clone(), model.theta.data_ptr()
    with pytest.raises(KeyboardInterrupt):
        proposer.propose(gradients)
    assert torch.equal(model.theta, before)
    assert model.theta.data_ptr() == memory
    assert model.theta.grad is None
    assert not sgd.state
    with pytest.raises(KeyboardInterrupt):
        proposer.take(gradients, 5.0)
    assert sgd.param_groups[0]["lr"] == 1e-3
    assert model.theta.grad is None
    # A step that was begun is taken whole.
    torch.testing.assert_close(model.theta.detach(), before - 5e-3 * gradients["theta"], rtol=1e-14, atol=0)
