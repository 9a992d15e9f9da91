"""Suggested learning rates minimize what they claim to, mean what they say to torch, and touch nothing.

The oracle is a bowl whose mini-batches shift its centre: all its batches share one Hessian, so that the mean over the
batches of L(theta - U_b I eta) is a quadratic function of eta, written out below with dense matrices and no gnewton.
"""

import copy
import json
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from support.problems import build
from torch import nn
from torch.func import functional_call

import gnewton as gn
from gnewton.tuning import Suggestion, suggest_learning_rates

DTYPE = torch.float64
SIZES = (5, 5, 3, 1)  # the last ones are ragged


class NoisyBowl(nn.Module):
    """Per batch the mean over its rows x of (theta - x) A (theta - x) / 2; two tensors, 6 scalars."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(draw(2, 2)), nn.Parameter(draw(2))
        root = draw(6, 6)
        self.A = root @ root.T + torch.eye(6, dtype=DTYPE)

    def forward(self, x):
        r = torch.cat([self.first.flatten(), self.second]) - x
        return (r * (r @ self.A)).sum(1).mean() / 2


def draw(*shape):
    return torch.randn(*shape, dtype=DTYPE)


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        yield


@pytest.fixture
def case():
    return build("perceptron")


@pytest.fixture
def data(case):
    return list(zip(case.x.split((5, 5, 2)), case.y.split((5, 5, 2)), strict=True))


def bowl_batches():
    return [(draw(n, 6),) for n in SIZES]


def bowl_theta(bowl):
    return torch.cat([bowl.first.flatten(), bowl.second]).detach()


def bowl_rates(bowl, data, columns, weight):
    """argmin over eta of mean_b L(theta - U_b eta); columns (6, S) holds ones where a scalar is in a group."""
    weights = torch.tensor([weight(x) for (x,) in data], dtype=DTYPE)
    weights = weights / weights.sum()
    gradients = torch.stack([bowl.A @ (bowl_theta(bowl) - x.mean(0)) for (x,) in data])
    mean = weights @ gradients
    U = gradients[:, :, None] * columns
    return torch.linalg.solve(
        torch.einsum("b,bps,pq,bqt->st", weights, U, bowl.A, U), torch.einsum("b,bps,p->s", weights, U, mean)
    )


COLUMNS = {
    "single": torch.ones(6, 1, dtype=DTYPE),
    "by_tensor": torch.tensor([[1.0, 0.0]] * 4 + [[0.0, 1.0]] * 2, dtype=DTYPE),
    "by_scalar": torch.eye(6, dtype=DTYPE),
}


def close(one, other, rtol=1e-9):
    torch.testing.assert_close(one, other, rtol=rtol, atol=1e-12)


@pytest.mark.parametrize("weight", [None, lambda x: 1.0 + x[0, 0].item() ** 2])
@pytest.mark.parametrize("partition", COLUMNS)
def test_the_rates_minimize_the_mean_loss_over_the_directions_of_ragged_batches(partition, weight):
    bowl, data = NoisyBowl(), bowl_batches()
    suggestion = suggest_learning_rates(bowl, getattr(gn.Partition, partition)(bowl), data, cubic=0.0, weight=weight)
    # Error: the condition of H-bar, here up to 1e5, times 1e-16.
    close(suggestion.learning_rates, bowl_rates(bowl, data, COLUMNS[partition], weight or len), rtol=1e-8)
    assert (suggestion.batches, suggestion.failed) == (4, 0)


def test_one_group_on_a_bowl_is_the_exact_line_search():
    bowl = gn.models.Quadratic([1.0, 3.0, 10.0], start=draw(3), generator=torch.Generator().manual_seed(0), dtype=DTYPE)
    g = bowl.A @ (bowl.theta.detach() - bowl.minimiser)
    suggestion = suggest_learning_rates(bowl, gn.Partition.single(bowl), cubic=0.0)
    close(suggestion.learning_rates, (g @ g / (g @ bowl.A @ g)).reshape(1), rtol=1e-13)
    assert torch.equal(suggestion.low, suggestion.high)


def test_noise_in_the_batches_lowers_the_rate():
    bowl, rows = NoisyBowl(), draw(sum(SIZES), 6)
    single, centre = gn.Partition.single(bowl), rows.mean(0)
    # The mean over all rows stays, so that the batches differ in their noise alone; 0 makes every batch the whole.
    rates = [
        suggest_learning_rates(bowl, single, [(centre + noise * (x - centre),) for x in rows.split(SIZES)], cubic=0.0)
        for noise in (0.0, 1.0, 3.0)
    ]
    assert rates[0].learning_rates > rates[1].learning_rates > rates[2].learning_rates > 0


def test_one_batch_is_the_newton_step_of_its_summary(case, data):
    partition = gn.Partition.by_tensor(case.model)
    loss = partial(case.loss_on, *data[0])
    summary = gn.summarize(loss, partition, gn.direction.gradient(loss, partition))
    for settings in ({}, {"cubic": 0.0, "ridge": 0.1}, {"diagonal": True}):
        suggestion = suggest_learning_rates(case.loss_on, partition, data, batches=1, lr=0.5, **settings)
        close(suggestion.learning_rates, 0.5 * gn.newton_step(summary, **settings).learning_rates)
        close(suggestion.low, suggestion.learning_rates)


@pytest.mark.parametrize("kind", [None, "Adam"])
def test_the_order_of_the_batches_does_not_matter(case, data, kind):
    partition = gn.Partition.by_tensor(case.model)
    proposer = warm(torch.optim.Adam(case.model.parameters()), case) if kind else None
    one, other = (suggest_learning_rates(case.loss_on, partition, d, proposer=proposer) for d in (data, data[::-1]))
    for name in ("learning_rates", "low", "high"):
        close(getattr(one, name), getattr(other, name))


def test_repeated_batches_and_weights_in_proportion_change_nothing(case, data):
    partition = gn.Partition.by_tensor(case.model)
    expected = suggest_learning_rates(case.loss_on, partition, data).learning_rates
    close(suggest_learning_rates(case.loss_on, partition, data * 2).learning_rates, expected)
    weighted = suggest_learning_rates(case.loss_on, partition, data, weight=lambda x, y: 0.1 * len(y))
    close(weighted.learning_rates, expected)
    equal = suggest_learning_rates(case.loss_on, partition, data, weight=lambda x, y: 1.0)
    assert (equal.learning_rates - expected).abs().max() > 1e-6


def test_the_batches_come_from_the_front_and_a_generator_is_read_once(case, data):
    partition = gn.Partition.by_tensor(case.model)
    two = suggest_learning_rates(case.loss_on, partition, iter(data), batches=2)
    close(two.learning_rates, suggest_learning_rates(case.loss_on, partition, data[:2]).learning_rates)
    assert suggest_learning_rates(case.loss_on, partition, data * 8, batches=None).batches == 24


def rates_in_units(model, criterion, data, units, cubic):
    """Suggested rates for theta = units * theta~; one group per entry of the units, a tensor of them or one a tensor."""
    leaves = {n: nn.Parameter(p.detach() / units[n]) for n, p in model.named_parameters()}
    masks = {n: torch.eye(c.numel(), dtype=torch.bool).reshape(-1, *c.shape) for n, c in units.items()}
    groups = [{n: (leaf, mask.expand(leaf.shape))} for n, leaf in leaves.items() for mask in masks[n]]

    def loss(x, *y):
        return criterion(functional_call(model, {n: units[n] * leaf for n, leaf in leaves.items()}, (x,)), *y)

    return suggest_learning_rates(loss, gn.Partition.from_groups(groups), data, cubic=cubic).learning_rates


@pytest.mark.parametrize("cubic", [0.0, 1.0])
def test_a_rescaled_group_rescales_its_rate_by_the_inverse_square(case, data, cubic):
    for model, criterion, batches, shape in (
        (NoisyBowl(), lambda value: value + cubic * value**2, bowl_batches(), lambda p: p.shape),
        (case.model, case.criterion, data, lambda p: ()),
    ):
        ones = {n: torch.ones(shape(p), dtype=DTYPE) for n, p in model.named_parameters()}
        units = {n: 10.0 ** torch.randn_like(c) for n, c in ones.items()}
        rates, rescaled = (rates_in_units(model, criterion, batches, c, cubic) for c in (ones, units))
        square = torch.cat([c.flatten() for c in units.values()]) ** 2
        torch.testing.assert_close(rescaled * square, rates, rtol=1e-6, atol=0.0)


# -- what the rates mean to torch ------------------------------------------------------------------------------------


def warm(optimizer, case):
    """The optimizer after two steps' worth of state, the parameters where they were."""
    values = [p.detach().clone() for p in case.model.parameters()]
    for rows in (slice(0, 4), slice(4, 8)):
        optimizer.zero_grad()
        case.loss_on(case.x[rows], case.y[rows]).backward()
        optimizer.step()
    optimizer.zero_grad()
    with torch.no_grad():
        for p, value in zip(case.model.parameters(), values, strict=True):
            p.copy_(value)
    return optimizer


PROPOSERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.03, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.002),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.002, weight_decay=0.1),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.004),
}


@pytest.mark.parametrize("name", PROPOSERS)
@pytest.mark.parametrize("factory", [gn.Partition.by_tensor, gn.Partition.by_layer])
def test_one_step_with_the_parameter_groups_is_theta_minus_u_eta(case, data, name, factory):
    optimizer = warm(PROPOSERS[name](case.model.parameters()), case)
    partition = factory(case.model)
    suggestion = suggest_learning_rates(case.loss_on, partition, data, proposer=None if name == "SGD" else optimizer)
    assert (suggestion.learning_rates > 0).any()
    case.loss().backward()
    before = {n: p.detach().clone() for n, p in partition.parameters.items()}
    # u is the whole step of the very same optimizer at lr = 1, taken by a copy.
    model, unit = copy.deepcopy((case.model, optimizer))
    for group in unit.param_groups:
        group["lr"] = 1.0
    for p, q in zip(model.parameters(), case.model.parameters(), strict=True):
        p.grad = q.grad.clone()
    unit.step()
    u = {n: before[n] - p.detach() for n, p in model.named_parameters()}
    options = {k: v for k, v in optimizer.defaults.items() if k in ("momentum", "weight_decay")}
    rated = type(optimizer)(suggestion.parameter_groups(scale=0.7), **options)
    rated.state.update(optimizer.state)
    rated.step()
    for n, change in partition.scale(u, 0.7 * suggestion.learning_rates.clamp(min=0.0)).items():
        torch.testing.assert_close(partition.parameters[n].detach(), before[n] - change, rtol=1e-12, atol=1e-12)


def test_the_rates_of_an_optimizer_do_not_depend_on_its_own_lr(case, data):
    partition = gn.Partition.by_tensor(case.model)
    one, other = (
        suggest_learning_rates(case.loss_on, partition, data, proposer=torch.optim.Adam(case.model.parameters(), lr=lr))
        for lr in (1e-4, 2.0)
    )
    assert torch.equal(one.learning_rates, other.learning_rates)
    plain = torch.optim.SGD(case.model.parameters(), lr=0.1)
    along = [suggest_learning_rates(case.loss_on, partition, data, proposer=proposer) for proposer in (plain, None)]
    close(along[0].learning_rates, along[1].learning_rates)


def saddle():
    """L = a^2 + c^2 - 2 b^2, one tensor each, at (1, 1, 1), b downhill the long way."""
    model = nn.ParameterDict({name: nn.Parameter(torch.ones(1, dtype=DTYPE)) for name in "abc"})
    return model, lambda: (model["a"] ** 2 + model["c"] ** 2 - 2 * model["b"] ** 2).sum()


def test_negative_rates_are_kept_marked_and_never_given_to_torch():
    model, loss = saddle()
    suggestion = suggest_learning_rates(loss, gn.Partition.by_tensor(model), cubic=0.0)
    close(suggestion.learning_rates, torch.tensor([0.5, -0.25, 0.5], dtype=DTYPE))
    marked = [line for line in repr(suggestion).splitlines() if "negative" in line]
    assert [line.split()[0] for line in marked] == ["b"]
    assert [group["lr"] for group in suggestion.parameter_groups()] == [0.5, 0.0, 0.5]
    with pytest.raises(ValueError, match="no negative learning rate, got one for b;"):
        suggestion.parameter_groups(negative="raise")


@pytest.mark.parametrize("factory", [gn.Partition.by_row, gn.Partition.by_scalar])
def test_a_split_tensor_is_named_with_what_to_do(case, data, factory):
    suggestion = suggest_learning_rates(case.loss_on, factory(case.model), data, cubic=0.0, ridge=1.0)
    with pytest.raises(ValueError, match=r"whole tensors, got 0.weight split .* 5 more tensors.* Coarsen"):
        suggestion.parameter_groups()


def test_groups_of_rows_that_were_merged_again_are_whole_tensors(case, data):
    rows = gn.Partition.by_row(case.model)
    partition = rows.coarsen([[s for s, n in enumerate(rows.names) if n.startswith(i)] for i in ("0", "2", "4")])
    groups = suggest_learning_rates(case.loss_on, partition, data).parameter_groups()
    assert [[id(p) for p in group["params"]] for group in groups] == [
        [id(p) for p in case.model[i].parameters()] for i in (0, 2, 4)
    ]


# -- batches without a step, groups without effect ---------------------------------------------------------------------


@pytest.fixture
def plane():
    return gn.models.Quadratic([1.0, 1.0], start=[1.0, 2.0], dtype=DTYPE)


def curved_where(model):
    """loss(x): coordinates with x = 1 are a bowl, the others a slope without curvature."""
    return lambda x: (x * model.theta**2 / 2 + (1 - x) * model.theta).sum(-1).mean()


def test_a_batch_without_a_step_is_counted_and_its_groups_are_named(plane):
    rows = [torch.ones(2, 2), torch.tensor([[1.0, 0.0]]), torch.ones(1, 2)]
    partition = gn.Partition.by_scalar(plane)
    suggestion = suggest_learning_rates(curved_where(plane), partition, [(x,) for x in rows], cubic=0.0)
    assert (suggestion.batches, suggestion.failed) == (3, 1)
    assert suggestion.failures[0].startswith("batch 1: theta[1]:")
    assert "batch 1: theta[1]:" in repr(suggestion)
    # The batch still counts in the mean: H-bar = diag of mean u^2 A, g-bar of mean u times the mean gradient.
    g, weights = torch.tensor([[1.0, 2.0], [1.0, 1.0], [1.0, 2.0]], dtype=DTYPE), torch.tensor([2.0, 1.0, 1.0]) / 4
    curvature = weights.double() @ (g**2 * torch.cat([x[:1] for x in rows]))
    close(suggestion.learning_rates, (weights.double() @ g) ** 2 / curvature)
    assert torch.isfinite(torch.stack([suggestion.low, suggestion.high])).all()


def test_without_any_step_of_a_batch_there_are_no_quartiles(plane):
    rows = [(torch.tensor([x]),) for x in ([1.0, 0.0], [0.0, 1.0])]
    suggestion = suggest_learning_rates(curved_where(plane), gn.Partition.by_scalar(plane), rows, cubic=0.0)
    assert suggestion.failed == 2
    assert (suggestion.learning_rates > 0).all()
    assert suggestion.low.isnan().all()
    assert json.loads(json.dumps(suggestion.to_dict(), allow_nan=False))["high"] == [None, None]


def test_without_a_step_of_the_mean_the_groups_are_named(plane):
    rows = [(torch.tensor([[1.0, 0.0]]),)]
    with pytest.raises(gn.NewtonStepError, match=r"theta\[1\]: a gradient, but neither curvature"):
        suggest_learning_rates(curved_where(plane), gn.Partition.by_scalar(plane), rows, cubic=0.0)


def test_frozen_and_unused_groups_get_zero(case, data):
    case.model.register_parameter("unused", nn.Parameter(draw(3)))
    case.model[2].bias.requires_grad_(False)
    suggestion = suggest_learning_rates(case.loss_on, gn.Partition.by_tensor(case.model), data)
    zero = [name for name, rate in zip(suggestion.names, suggestion.learning_rates, strict=True) if rate == 0]
    assert sorted(zero) == ["2.bias", "unused"]
    assert repr(suggestion).count("no effect here") == 2
    assert (torch.stack([suggestion.low, suggestion.high])[:, suggestion.learning_rates == 0] == 0).all()


# -- what is left alone, what is refused, how it prints ------------------------------------------------------------------


@pytest.mark.parametrize("fails", [False, True])
def test_model_grad_buffers_proposer_and_random_state_stay_as_they_were(fails):
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 2)).to(DTYPE)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.125, momentum=0.9)
    x, y = draw(24, 4), torch.randint(2, (24,))
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    shuffled = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=8, shuffle=True)
    grads = [p.grad for p in model.parameters()]

    def loss(x, y):
        calls.append(1)
        return F.cross_entropy(model(x), y) * (float("nan") if fails and len(calls) > 4 else 1.0)

    def state():
        values = [copy.deepcopy(model.state_dict()), [p.grad.clone() for p in model.parameters()]]
        return [*values, copy.deepcopy(optimizer.state_dict()), torch.get_rng_state(), model.training]

    calls, before, partition = [], state(), gn.Partition.by_layer(model)
    if fails:
        with pytest.raises(FloatingPointError):
            suggest_learning_rates(loss, partition, shuffled, proposer=optimizer)
    else:
        one, other = (suggest_learning_rates(loss, partition, shuffled, proposer=optimizer) for _ in range(2))
        assert torch.equal(one.learning_rates, other.learning_rates)
    torch.testing.assert_close(state(), before, rtol=0, atol=0)
    assert all(p.grad is g for p, g in zip(model.parameters(), grads, strict=True))


def test_the_results_are_float64_whatever_the_model(case, data):
    partition = gn.Partition.by_tensor(case.model)
    exact = suggest_learning_rates(case.loss_on, partition, data)
    case.model.float()
    data = [(x.float(), y) for x, y in data]
    single = suggest_learning_rates(case.loss_on, gn.Partition.by_tensor(case.model), data)
    for name in ("learning_rates", "low", "high"):
        assert getattr(single, name).dtype == DTYPE
        assert getattr(single, name).shape == (6,)
    # float32 errs by 1e-7 times the condition of H-bar.
    close(single.learning_rates, exact.learning_rates, rtol=1e-2)
    assert (exact.low <= exact.high).all()


def test_it_prints_every_group_and_goes_through_json(case, data):
    names = list(dict(case.model.named_parameters()))
    partition = gn.Partition.from_groups({f"<{n}>": {n: p} for n, p in case.model.named_parameters()})
    suggestion = suggest_learning_rates(case.loss_on, partition, data)
    lines = repr(suggestion).splitlines()
    assert lines[0] == "Suggestion: 6 learning rates from 3 batches, 0 failed"
    assert [line.split()[0] for line in lines[2:]] == [f"<{n}>" for n in names]
    assert float(lines[2].split()[1]) == pytest.approx(suggestion.learning_rates[0].item(), rel=5e-3)
    html = suggestion._repr_html_()
    assert html.count("<tr>") == 7
    assert all(f"&lt;{n}&gt;" in html for n in names)
    plain = json.loads(json.dumps(suggestion.to_dict()))
    assert plain["names"] == list(suggestion.names)
    assert plain["learning_rates"] == suggestion.learning_rates.tolist()
    assert (plain["batches"], plain["failed"], plain["failures"]) == (3, 0, [])


def test_a_long_table_says_how_much_it_leaves_out():
    bowl = gn.models.Quadratic([1.0] * 75, dtype=DTYPE)
    suggestion = suggest_learning_rates(bowl, gn.Partition.by_scalar(bowl), cubic=0.0)
    assert len(repr(suggestion).splitlines()) == 63
    assert "15 more" in repr(suggestion)


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"partition": "by_tensor"}, TypeError, "expected a Partition, got str"),
        ({"data": gn.datasets.teacher_student}, TypeError, r"expected data as batches, got function; .*\.batches"),
        ({"data": []}, ValueError, "at least one batch, got none"),
        ({"batches": 0}, ValueError, "at least one batch, got batches=0; None takes all"),
        ({"batches": 2.5}, ValueError, "got batches=2.5"),
        ({"lr": 0.0}, ValueError, "a finite lr above 0, got 0.0"),
        ({"loss": 3.0}, TypeError, "a callable that returns the loss"),
        ({"proposer": "Adam"}, TypeError, "expected a torch.optim optimizer"),
        *(
            ({name: wrong}, ValueError, f"{name} must be a finite number >= 0")
            for name in ("cubic", "ridge")
            for wrong in (-1.0, float("nan"), float("inf"), "1", None)
        ),
        *(({"lr": wrong}, ValueError, "a finite lr above 0, got") for wrong in ("1", None, float("nan"), -1)),
    ],
)
def test_unfit_arguments_are_refused_by_name(case, data, settings, error, text):
    fit = {"loss": case.loss_on, "partition": gn.Partition.by_tensor(case.model), "data": data}
    with pytest.raises(error, match=text):
        suggest_learning_rates(**fit | settings)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"scale": -1.0}, "finite scale above 0"),
        ({"scale": float("nan")}, "finite scale"),
        ({"scale": None}, "finite scale above 0, got None"),
        ({"scale": "1"}, "finite scale above 0, got '1'"),
        ({"negative": "keep"}, "keep"),
    ],
)
def test_unfit_settings_of_the_parameter_groups_are_refused(case, settings, text):
    partition, nothing = gn.Partition.single(case.model), torch.zeros(1, dtype=DTYPE)
    with pytest.raises(ValueError, match=text):
        Suggestion(partition, nothing, nothing, nothing, 1).parameter_groups(**settings)
