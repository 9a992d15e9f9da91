"""Rates for several steps: the steps are torch's RMSprop, the derivatives finite differences', the minimum Newton's."""

import copy

import pytest
import torch
from torch import nn

import gnewton as gn
from gnewton.experiments.horizon import Moment, Unrolled, minimize

DTYPE = torch.float64


def problem(seed=0):
    """A network with batch norm, which has run three steps already, its RMSprop, and batches."""
    torch.manual_seed(seed)
    layers = [nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)]
    model = nn.Sequential(*layers).to(DTYPE)
    batches = [(torch.randn(6, 3, dtype=DTYPE), torch.randint(2, (6,))) for _ in range(8)]
    rmsprop = torch.optim.RMSprop(model.parameters(), lr=0.01, momentum=0.9)
    for batch in batches[:3]:
        step(model, rmsprop, batch)
    return model, rmsprop, batches[3:]


def step(model, optimizer, batch):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()
    optimizer.step()


def unrolled(model, rmsprop, partition):
    states = {name: rmsprop.state[p] for name, p in model.named_parameters()}
    moment = Moment(
        {name: p.detach().clone() for name, p in model.named_parameters()},
        *({name: s[key].clone() for name, s in states.items()} for key in ("square_avg", "momentum_buffer")),
    )
    return Unrolled(model, nn.CrossEntropyLoss(), partition, moment)


def test_with_one_rate_the_steps_are_those_of_torch():
    model, rmsprop, batches = problem()
    start = unrolled(model, rmsprop, gn.Partition.by_tensor(model))
    rates = torch.full((len(start.partition),), 0.02, dtype=DTYPE)
    ours = start.after(rates, batches).parameters
    twin = copy.deepcopy(model)
    other = torch.optim.RMSprop(twin.parameters(), lr=0.02, momentum=0.9)
    other.load_state_dict(rmsprop.state_dict())
    other.param_groups[0]["lr"] = 0.02
    for batch in batches:
        step(twin, other, batch)
    for name, p in twin.named_parameters():
        # Sums of the same float64 numbers in another order.
        assert torch.allclose(ours[name], p, rtol=1e-10, atol=1e-12), name


def test_the_network_itself_learns_nothing_of_it():
    model, rmsprop, batches = problem()
    before = copy.deepcopy(model.state_dict())
    start = unrolled(model, rmsprop, gn.Partition.single(model))
    start.objective([batches], batches[0])(torch.tensor([0.02], dtype=DTYPE))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("horizon", [1, 5])
def test_the_slope_goes_through_every_step(horizon):
    model, rmsprop, batches = problem()
    start = unrolled(model, rmsprop, gn.Partition.by_tensor(model))
    objective = start.objective([batches[:horizon], batches[-horizon:]], batches[0])
    draw = torch.Generator().manual_seed(1)
    rates = 0.01 * (1 + torch.rand(len(start.partition), generator=draw, dtype=DTYPE))
    along = torch.randn(len(rates), generator=draw, dtype=DTYPE)
    # Of central differences with h = 1e-6 the error is h^2 of a third derivative, and 1e-16 / h of the rounding.
    h = 1e-6
    difference = (objective(rates + h * along)[0] - objective(rates - h * along)[0]) / (2 * h)
    assert float(objective(rates)[1] @ along) == pytest.approx(difference, rel=1e-6)


def test_a_gradient_that_is_always_zero_spoils_no_derivative():
    model = nn.Linear(2, 1, bias=False).to(DTYPE)
    names = dict(model.named_parameters())
    nothing = {name: torch.zeros_like(p) for name, p in names.items()}
    moment = Moment({name: p.detach() for name, p in names.items()}, nothing, nothing)
    start = Unrolled(model, nn.MSELoss(), gn.Partition.single(model), moment)
    batch = torch.tensor([[1.0, 0.0]], dtype=DTYPE), torch.ones(1, 1, dtype=DTYPE)
    value, slope = start.objective([[batch] * 3], batch)(torch.tensor([0.01], dtype=DTYPE))
    assert value > 0
    assert bool(torch.isfinite(slope).all())


def test_bfgs_finds_the_minimum_of_a_badly_scaled_bowl():
    hessian = torch.tensor([[4.0, 1.0], [1.0, 400.0]], dtype=DTYPE)
    best = torch.tensor([-0.5, 0.02], dtype=DTYPE)

    def bowl(x):
        return 1e-9 + float((x - best) @ hessian @ (x - best)) / 2, hessian @ (x - best)

    minimum = minimize(bowl, torch.tensor([0.1, 0.1], dtype=DTYPE))
    assert bowl(minimum)[0] < 1e-8


def test_bfgs_never_ends_above_its_start():
    wall = lambda x: (float(x.abs().sum()), torch.full_like(x, -1.0))  # noqa: E731
    start = torch.tensor([0.3], dtype=DTYPE)
    assert torch.equal(minimize(wall, start), start)
