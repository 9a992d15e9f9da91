"""ExactNewton: what a step does, what it records, how it fails, and that it resumes bit for bit."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from support.problems import unchanged, values
from support.small_networks import DTYPE, build, gap, row
from torch import nn
from torch.optim import lr_scheduler

import gnewton as gn
from gnewton.exact import ExactNewton

METHODS = ["safe", "abs", "absQ", "plain", "joint", "gauss-newton"]


def moved(model, before):
    return torch.cat([(p.detach() - q).flatten() for p, q in zip(model.parameters(), before, strict=True)])


# ---------------------------------------------------------------------------------- what a step does


@pytest.mark.parametrize("cap", [0.1, float("inf")])
@pytest.mark.parametrize("method", METHODS)
def test_a_step_is_the_mean_of_capped_directions(method, cap):
    case = build("two hidden", samples=5)
    before = values(case.model)
    optimizer = ExactNewton(
        case.model, case.loss, lr=0.5, method=method, damping=2.0, safety=1.2, cap=cap, weight_decay=0.1
    )
    passes = case.passes
    d = {
        "safe": lambda: gn.exact.newton_direction(passes, 2 + 1.2 * gn.exact.safe_damping(passes), weight_decay=0.1),
        "abs": lambda: gn.exact.saddle_free_direction(passes, 2.0, weight_decay=0.1),
        "absQ": lambda: gn.exact.newton_direction(passes, 2.0, weight_decay=0.1, absolute=True),
        "plain": lambda: gn.exact.newton_direction(passes, 2.0, weight_decay=0.1),
        "joint": lambda: gn.exact.joint_direction(passes, 2.0, weight_decay=0.1),
        "gauss-newton": lambda: gn.exact.gauss_newton_direction(passes, 2.0, weight_decay=0.1),
    }[method]()
    if method == "joint":
        change = row(d.mean(), samples=False)
        t = (cap / (case.jacobians @ change).norm(dim=1)).clamp(max=1).min()
        expected = 0.5 * t * change
    else:
        each = row(d.per_sample())
        t = (cap / (case.jacobians @ each[:, :, None]).norm(dim=(1, 2))).clamp(max=1)
        expected = 0.5 * (t[:, None] * each).mean(0)
    loss = optimizer.step(case.x, case.y)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(passes.values.mean().item(), rel=1e-14)
    assert gap(moved(case.model, before), expected) < 1e-9
    assert (t < 1).any() == (cap < 1)


def test_the_adjustment_is_passed_on():
    case = build("tanh")
    before = values(case.model)
    options = {"ceiling": 1.0, "floor": 0.1, "power": 0.5, "negative": 0.3}
    d = gn.exact.saddle_free_direction(case.passes, 2.0, adjustment=gn.exact.Adjustment(**options))
    ExactNewton(case.model, method="abs", damping=2.0, cap=float("inf"), **options).step(case.x, case.y)
    assert gap(moved(case.model, before), row(d.per_sample()).mean(0)) < 1e-12


def test_safe_steps_lower_a_samples_own_loss():
    for seed in range(5):
        case = build("tanh", samples=1, seed=seed)
        optimizer = ExactNewton(case.model)
        losses = [float(optimizer.step(case.x, case.y)) for _ in range(20)]
        assert losses[-1] < 0.2 * losses[0] + 1e-3
        assert losses[1] < losses[0]


def test_history_tells_the_truth():
    case = build("tanh", samples=4)
    optimizer = ExactNewton(case.model, lr=0.5, cap=0.3)
    for i in range(3):
        passes = case.passes
        rho = 3 + 1.5 * gn.exact.safe_damping(passes)
        d = gn.exact.newton_direction(passes, rho)
        optimizer.step(case.x, case.y)
        update = optimizer.history[-1]
        assert (update.step, update.lr) == (i, 0.5)
        assert update.value == pytest.approx(passes.values.mean().item(), rel=1e-13)
        assert update.damping == pytest.approx(rho.mean().item(), rel=1e-13)
        assert update.slope == pytest.approx(d.slope().mean().item(), rel=1e-9)
        assert update.output == pytest.approx(d.output.norm(dim=1).mean().item(), rel=1e-9)
        assert update.capped == (d.output.norm(dim=1) > 0.3).double().mean().item()
    assert optimizer.history.maxlen is not None


def test_digits_after_two_epochs_with_the_defaults():
    # Ten runs (other seeds, splits and nn.Linear's own initialization) gave .947 to .972.
    data = gn.datasets.digits()
    model = gn.models.perceptron([64, 32, 10], generator=torch.Generator().manual_seed(3))
    optimizer = ExactNewton(model)
    for epoch in range(2):
        for x, y in data.batches(1, torch.Generator().manual_seed(300 + epoch)):
            optimizer.step(x, y)
    with torch.no_grad():
        accuracy = (model(data.test_x).argmax(1) == data.test_y).double().mean()
    assert accuracy >= 0.95


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_a_regression(method):
    data = gn.datasets.teacher_student((3, 4, 1))
    model = gn.models.perceptron([3, 6, 1], generator=torch.Generator().manual_seed(1))
    optimizer = ExactNewton(model, F.mse_loss, method=method, damping=5.0, lr=4.0)
    before = F.mse_loss(model(data.train_x), data.train_y)
    for _ in range(3):
        for x, y in data.batches(8, torch.Generator().manual_seed(0)):
            optimizer.step(x, y)
    assert F.mse_loss(model(data.train_x), data.train_y) < 0.3 * before


# ---------------------------------------------------------------------------------- the optimizer's contract


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_equals_an_uninterrupted_one(method):
    def run(steps, optimizer, case, start=0):
        for i in range(start, start + steps):
            optimizer.step(case.x[i : i + 2], case.y[i : i + 2])

    whole, first = build("tanh", samples=10), build("tanh", samples=10)
    optimizer = ExactNewton(whole.model, method=method, lr=0.7)
    run(8, optimizer, whole)
    early = ExactNewton(first.model, method=method, lr=0.7)
    run(4, early, first)
    file = io.BytesIO()
    torch.save({"optimizer": early.state_dict(), "model": first.model.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    late = build("tanh", samples=10, seed=5)
    late.x, late.y = whole.x, whole.y
    late.model.load_state_dict(saved["model"])
    resumed = ExactNewton(late.model)
    resumed.load_state_dict(saved["optimizer"])
    assert resumed.param_groups[0]["method"] == method
    run(4, resumed, late, 4)
    assert unchanged(late.model, values(whole.model))
    assert list(resumed.history) == list(optimizer.history)


def test_a_saved_state_does_not_follow_the_run():
    case = build("tanh")
    optimizer = ExactNewton(case.model)
    optimizer.step(case.x, case.y)
    state = optimizer.state_dict()
    kept = copy.deepcopy(state)
    optimizer.step(case.x, case.y)
    assert state == kept != optimizer.state_dict()


def test_another_optimizers_state_is_refused_and_changes_nothing():
    case = build("tanh")
    optimizer = ExactNewton(case.model, lr=0.7)
    optimizer.step(case.x, case.y)
    state = optimizer.state_dict()
    others = [
        torch.optim.SGD(case.model.parameters(), lr=0.1),
        ExactNewton(build("two hidden").model),
        ExactNewton(case.model, "squared_error"),
    ]
    for other in others:
        with pytest.raises(ValueError, match=r"expected (the|a) state of"):
            optimizer.load_state_dict(other.state_dict())
        assert optimizer.state_dict() == state


def test_inputs_that_are_no_tensor_are_refused():
    case = build("tanh")
    with pytest.raises(TypeError, match=r"expected inputs as a tensor, got list; write torch\.as_tensor"):
        ExactNewton(case.model).step(case.x.tolist(), case.y)


def test_a_copy_steps_on_its_own():
    case = build("tanh")
    optimizer = ExactNewton(case.model)
    optimizer.step(case.x, case.y)
    other = copy.deepcopy(optimizer)
    before = values(case.model)
    other.step(case.x, case.y)
    assert unchanged(case.model, before)
    optimizer.step(case.x, case.y)
    assert list(other.history) == list(optimizer.history)
    assert all(torch.equal(p, q) for p, q in zip(case.model.parameters(), other.param_groups[0]["params"], strict=True))


@pytest.mark.parametrize(
    "make",
    [
        lambda o: lr_scheduler.StepLR(o, 2, 0.5),
        lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
        lambda o: lr_scheduler.OneCycleLR(o, 1.0, total_steps=6, cycle_momentum=False),
        lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    ],
)
def test_schedulers_drive_the_step(make):
    case = build("tanh")
    optimizer = ExactNewton(case.model, cap=float("inf"))
    scheduler = make(optimizer)
    rates = []
    for _ in range(5):
        before, passes = values(case.model), case.passes
        optimizer.step(case.x, case.y)
        d = gn.exact.newton_direction(passes, 3 + 1.5 * gn.exact.safe_damping(passes))
        expected = scheduler.get_last_lr()[0] * row(d.mean(), samples=False)
        torch.testing.assert_close(moved(case.model, before), expected, rtol=1e-9, atol=1e-13)
        rates.append(scheduler.get_last_lr()[0])
        scheduler.step()
    assert len(set(rates)) > 1
    assert [update.lr for update in optimizer.history] == rates


def test_a_plateau_and_a_view_drive_lr_and_damping():
    case = build("tanh")
    optimizer = ExactNewton(case.model)
    plateaus = [
        lr_scheduler.ReduceLROnPlateau(one, factor=0.5, patience=0)
        for one in (optimizer, gn.AsRate(optimizer, "damping"))
    ]
    optimizer.step(case.x, case.y)
    for plateau in plateaus:
        plateau.step(1.0)
        plateau.step(1.0)
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["damping"]) == (0.5, 1.5)
    optimizer.step(case.x, case.y)
    assert optimizer.history[-1].lr == 0.5


# ---------------------------------------------------------------------------------- failure


def bad_batches(case):
    nan, huge = case.x.clone(), case.x * 1e200
    nan[1, 2] = float("nan")
    return {
        "NaN": (nan, case.y, FloatingPointError, "finite loss"),
        "a loss beyond float64": (huge, case.y, FloatingPointError, "finite"),
        "a shape": (case.x[:, :2], case.y, ValueError, "expected inputs"),
        "a class": (case.x, case.y + 50, ValueError, "expected classes"),
        "a dtype": (case.x.float(), case.y, ValueError, "expected inputs of"),
        "a length": (case.x, case.y[:1], ValueError, "expected classes"),
    }


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("what", ["NaN", "a loss beyond float64", "a shape", "a class", "a dtype", "a length"])
def test_a_failed_step_changes_nothing(what, method):
    case = build("two hidden")
    optimizer = ExactNewton(case.model, method=method)
    optimizer.step(case.x, case.y)
    before, state = values(case.model), optimizer.state_dict()
    x, y, kind, message = bad_batches(case)[what]
    with pytest.raises(kind, match=message):
        optimizer.step(x, y)
    assert unchanged(case.model, before)
    assert optimizer.state_dict() == state


def test_an_infinite_gradient_of_a_finite_loss_is_named():
    model = nn.Sequential(nn.Linear(1, 1), gn.exact.Elementwise(torch.sqrt), nn.Linear(1, 1)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1.0)
    x, y = torch.tensor([[-1.0]], dtype=DTYPE), torch.tensor([[0.0]], dtype=DTYPE)  # sqrt at 0
    before = values(model)
    with pytest.raises(FloatingPointError, match="finite gradient"):
        ExactNewton(model, "squared_error").step(x, y)
    assert unchanged(model, before)


def test_a_singular_system_is_named():
    # One weight, one sample: H = -1 exactly at this point, and rho = 1.
    model = nn.Sequential(nn.Linear(1, 1, bias=False), gn.exact.Elementwise(lambda z: z - z**2 / 2)).double()
    with torch.no_grad():
        model[0].weight.fill_(0.0)
    x, y = torch.tensor([[1.0]], dtype=DTYPE), torch.tensor([[-2.0]], dtype=DTYPE)
    # a = 0, r = 2, s = 1, sigma'' = -1: C = 1 - 2 = -1.
    before = values(model)
    with pytest.raises(FloatingPointError, match="raise the damping"):
        ExactNewton(model, "squared_error", method="plain", damping=1.0).step(x, y)
    assert unchanged(model, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr >= 0"),
        ({"damping": 0.0}, "damping > 0"),
        ({"damping": float("inf")}, "damping >= 0 and finite"),
        ({"cap": float("nan")}, "cap >= 0"),
        ({"weight_decay": -1.0}, "weight_decay >= 0"),
        ({"safety": 0.5}, "safety >= 1"),
        ({"method": "fast"}, "method among safe"),
        ({"loss": F.l1_loss}, "expected loss="),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ExactNewton(gn.models.perceptron([3, 4, 2]), **options)
    with pytest.raises(TypeError, match="a number for lr"):
        ExactNewton(gn.models.perceptron([3, 4, 2]), lr="1")


def test_a_setting_that_a_schedule_spoiled_is_refused_at_the_step():
    case = build("tanh")
    optimizer = ExactNewton(case.model)
    optimizer.param_groups[0]["damping"] = -1.0
    before = values(case.model)
    with pytest.raises(ValueError, match="damping >= 0"):
        optimizer.step(case.x, case.y)
    assert unchanged(case.model, before)


def test_models_that_it_does_not_cover_and_other_groups_are_refused():
    with pytest.raises(ValueError, match=r"1 \(BatchNorm1d\)"):
        ExactNewton(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)))
    with pytest.raises(ValueError, match=r"0 \(Conv2d\)"):
        ExactNewton(gn.models.lenet())
    optimizer = ExactNewton(gn.models.perceptron([3, 4, 2]))
    with pytest.raises(ValueError, match="another group"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})


@pytest.mark.accelerator
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("method", METHODS)
def test_everything_follows_the_device(method):
    cpu, gpu = build("two hidden"), build("two hidden")
    gpu.model.cuda()
    for case, device in ((cpu, "cpu"), (gpu, "cuda")):
        optimizer = ExactNewton(case.model, method=method)
        for _ in range(3):
            optimizer.step(case.x.to(device), case.y.to(device))
    for p, q in zip(cpu.model.parameters(), gpu.model.parameters(), strict=True):
        torch.testing.assert_close(p, q.cpu(), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state["param_groups"][0].update(method="Safe"), "expected a method among safe"),
        (lambda state: state["param_groups"][0].update(damping=-3.0), "expected damping >= 0"),
        (lambda state: state["param_groups"][0].update(lr="x"), "expected a number for lr"),
        (lambda state: state["state"]["exact_newton"].update(step=None), "expected a whole state"),
        (lambda state: state["state"]["exact_newton"].update(step="3"), "where step is missing or wrong"),
        (lambda state: state["state"]["exact_newton"].clear(), "expected"),
        (lambda state: state.clear(), "got another optimizer's"),
    ],
)
def test_a_state_with_unfit_settings_is_refused_before_anything_moves(change, words):
    model = gn.models.perceptron([3, 4, 2], dtype=torch.float64)
    optimizer = gn.ExactNewton(model)
    state = copy.deepcopy(optimizer.state_dict())
    change(state)
    with pytest.raises(ValueError, match=words):
        optimizer.load_state_dict(state)
    optimizer.step(torch.zeros(2, 3, dtype=torch.float64), torch.tensor([0, 1]))


def test_a_method_that_was_misspelt_is_refused_at_the_step():
    model = gn.models.perceptron([3, 4, 2], dtype=torch.float64)
    optimizer = gn.ExactNewton(model)
    optimizer.param_groups[0]["method"] = "Safe"
    with pytest.raises(ValueError, match="expected a method among safe"):
        optimizer.step(torch.zeros(2, 3, dtype=torch.float64), torch.tensor([0, 1]))
