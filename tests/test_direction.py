"""The gradient by name, and u = theta_before - theta_after for every optimizer, with nothing else touched."""

import copy

import pytest
import torch
from support.problems import build

import gnewton as gn
from gnewton.direction import check_direction, slopes
from gnewton.proposer import Proposer

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.3),
    "momentum": lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.9),
    "Nesterov": lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.9, nesterov=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "NAdam": lambda p: torch.optim.NAdam(p),
    "CautiousAdam": lambda p: gn.CautiousAdam(p),
    "RMSprop": lambda p: torch.optim.RMSprop(p),
    "Rprop": lambda p: torch.optim.Rprop(p),
    "weight decay": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
}


@pytest.fixture
def case():
    return build("perceptron")


@pytest.fixture
def partition(case):
    return gn.Partition.by_tensor(case.model)


@pytest.mark.parametrize("size", [1, 5, 7, 12])
def test_the_gradient_over_batches_is_the_gradient_of_the_whole(case, partition, size):
    whole = gn.direction.gradient(case.loss, partition)
    data = zip(case.x.split(size), case.y.split(size), strict=True)
    batched = gn.direction.gradient(case.loss_on, partition, data=data)
    for name, g in whole.items():
        torch.testing.assert_close(batched[name], g, rtol=1e-12, atol=1e-14)
    expected = torch.autograd.grad(case.loss(), list(partition.parameters.values()))
    assert all(torch.equal(g, e) for g, e in zip(whole.values(), expected, strict=True))


def test_frozen_and_unused_parameters_get_zeros(case):
    case.model.register_parameter("unused", torch.nn.Parameter(torch.randn(3, dtype=torch.float64)))
    case.model[0].weight.requires_grad_(False)
    g = gn.direction.gradient(case.loss, gn.Partition.by_tensor(case.model))
    assert not g["unused"].any()
    assert not g["0.weight"].any()
    assert g["2.weight"].any()


def test_the_gradients_of_two_parameters_share_no_memory():
    a, b = (torch.randn(3, requires_grad=True) for _ in range(2))
    g = gn.direction.gradient(lambda: (a + b).sin().sum(), gn.Partition.from_groups([{"a": a}, {"b": b}]))
    before = g["b"].clone()
    g["a"].zero_()
    assert torch.equal(g["b"], before)


@pytest.mark.parametrize("by", ["tensor", "row", "single"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_slopes_are_the_sums_of_the_products_in_each_group(by, dtype):
    model = gn.models.perceptron([40, 30, 5], generator=torch.Generator().manual_seed(0)).to(dtype)
    partition = getattr(gn.Partition, by if by == "single" else f"by_{by}")(model)
    g, u = ({name: torch.randn_like(p) for name, p in partition.parameters.items()} for _ in range(2))
    exact = partition.sums({name: g[name].double() * u[name].double() for name in g})
    size = partition.sums({name: (g[name].double() * u[name].double()).abs() for name in g})
    # A product is rounded once; in float32 it is also added up, in blocks.
    error = (slopes(g, u, partition) - exact).abs() / size
    assert error.max() < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_u_is_the_step_that_the_optimizer_would_take(case, partition, name):
    twin = copy.deepcopy(case.model)
    proposer = Proposer(OPTIMIZERS[name](case.model.parameters()), partition)
    real = OPTIMIZERS[name](twin.parameters())
    for seed in range(3):  # several steps: the optimizer's state must advance as in real training
        gradients = case.direction(partition, seed)
        u = proposer.propose(gradients)
        before = [p.detach().clone() for p in twin.parameters()]
        for p, g in zip(twin.parameters(), gradients.values(), strict=True):
            p.grad = g.clone()
        real.step()
        for ours, old, new in zip(u.values(), before, twin.parameters(), strict=True):
            torch.testing.assert_close(ours, old - new.detach(), rtol=1e-12, atol=1e-14)
        with torch.no_grad():
            for p, q in zip(case.model.parameters(), twin.parameters(), strict=True):
                p.copy_(q)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_proposal_touches_neither_values_nor_grad(case, partition, name):
    for p in case.model.parameters():
        p.grad = torch.randn_like(p)
    saved = [(p.detach().clone(), p.grad, p.grad.clone(), p.data_ptr()) for p in case.model.parameters()]
    gradients = case.direction(partition)
    kept = {n: g.clone() for n, g in gradients.items()}
    Proposer(OPTIMIZERS[name](case.model.parameters()), partition).propose(gradients)
    for p, (value, grad, grad_value, address) in zip(case.model.parameters(), saved, strict=True):
        assert torch.equal(p, value)
        assert p.grad is grad
        assert torch.equal(p.grad, grad_value)
        assert p.data_ptr() == address
    assert all(torch.equal(gradients[n], kept[n]) for n in kept)


def test_the_proposal_from_zero_is_exact_in_float32(case, partition):
    # theta is 1e6 times u: a plain difference would keep no more than one digit of u.
    case.model.to(torch.float32)
    with torch.no_grad():
        for p in case.model.parameters():
            p.mul_(1e6)
    gradients = case.direction(partition)
    u = Proposer(torch.optim.SGD(case.model.parameters(), lr=1.0), partition).propose(gradients)
    assert all(torch.equal(u[n], gradients[n]) for n in u)


def test_weight_decay_in_float32_is_said(case, partition):
    case.model.to(torch.float32)
    with pytest.warns(UserWarning, match="loses the digits"):
        Proposer(torch.optim.SGD(case.model.parameters(), lr=1.0, weight_decay=0.1), partition)


def state_of(optimizer):
    return copy.deepcopy(optimizer.state_dict())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_proposal_can_be_taken_back(case, partition, name):
    optimizer = OPTIMIZERS[name](case.model.parameters())
    proposer = Proposer(optimizer, partition)
    proposer.propose(case.direction(partition, 0))
    before = state_of(optimizer)
    first = proposer.propose(case.direction(partition, 1))
    proposer.undo()
    after = state_of(optimizer)
    torch.testing.assert_close(after["state"], before["state"], rtol=0, atol=0)
    again = proposer.propose(case.direction(partition, 1))
    assert all(torch.equal(first[n], again[n]) for n in first)


def test_a_failing_optimizer_leaves_everything_as_it_was(case, partition):
    class Failing(torch.optim.Adam):
        def step(self, closure=None):
            super().step()
            raise RuntimeError("half way")

    optimizer = Failing(case.model.parameters())
    proposer = Proposer(optimizer, partition)
    before = [p.detach().clone() for p in case.model.parameters()]
    with pytest.raises(RuntimeError, match="half way"):
        proposer.propose(case.direction(partition))
    assert all(torch.equal(p, q) for p, q in zip(case.model.parameters(), before, strict=True))
    assert all(p.grad is None for p in case.model.parameters())
    assert not optimizer.state


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda m: torch.optim.LBFGS(m.parameters()), TypeError, "LBFGS"),
        (lambda m: "SGD", TypeError, "got str"),
        (lambda m: torch.optim.SGD(m[0].parameters(), lr=1.0), ValueError, "got none of 2.weight, 2.bias"),
    ],
)
def test_unfit_optimizers_are_refused_by_name(case, partition, make, error, text):
    with pytest.raises(error, match=text):
        Proposer(make(case.model), partition)


def test_bad_directions_are_refused_by_name(case, partition):
    u = case.direction(partition)
    bad = {
        "expected the direction as a dictionary": list(u.values()),
        "got no 2.bias": {n: t for n, t in u.items() if n != "2.bias"},
        "unknown extra": u | {"extra": torch.ones(1)},
        r"shape \(4, 5\) for 0.weight in the direction, got \(5, 4\)": u | {"0.weight": u["0.weight"].T},
        "a tensor for 0.bias": u | {"0.bias": [1.0] * 4},
        "on cpu, got meta": u | {"0.bias": u["0.bias"].to("meta")},
        "NaN or infinity in 0.bias": u | {"0.bias": u["0.bias"] / 0},
    }
    for text, direction in bad.items():
        with pytest.raises((TypeError, ValueError), match=text):
            check_direction(direction, partition)


def test_order_of_a_direction_does_not_matter(case, partition):
    u = case.direction(partition)
    shuffled = dict(reversed(u.items()))
    one, other = (gn.summarize(case.loss, partition, d) for d in (u, shuffled))
    assert torch.equal(one.hessian, other.hessian)


@pytest.mark.parametrize("name", ["Shampoo", "SOAP"])
def test_a_preconditioned_optimizer_of_another_package_proposes_the_step_it_would_take(name):
    import pytorch_optimizer

    case, twin = build("perceptron"), build("perceptron")
    make = lambda model: getattr(pytorch_optimizer, name)(model.parameters(), lr=0.1, weight_decay=0.0)  # noqa: E731
    partition = gn.Partition.by_tensor(case.model)
    ours, theirs = gn.GroupedNewton(partition, make(case.model), lr=1.0, cubic="adaptive", period=1), make(twin.model)
    proposer = Proposer(make(twin.model), gn.Partition.by_tensor(twin.model))
    gradient = gn.direction.gradient(twin.loss, gn.Partition.by_tensor(twin.model))
    for _ in range(3):
        u = proposer.propose(gradient)
        before = {n: p.detach().clone() for n, p in twin.model.named_parameters()}
        for n, p in twin.model.named_parameters():
            p.grad = gradient[n].clone()
        theirs.step()
        for n, p in twin.model.named_parameters():
            # The same rule from the same place: roundings of theta - (theta - u).
            torch.testing.assert_close(u[n], before[n] - p.detach(), rtol=1e-9, atol=1e-13)
    losses = [float(ours.step(case.loss)) for _ in range(15)]
    assert losses[-1] < 0.3 * losses[0]


def test_a_direction_of_another_dtype_is_taken_where_its_numbers_are(case, partition):
    u = case.direction(partition)
    assert all(torch.equal(v, u[n]) for n, v in check_direction(u, partition).items())
    wide = {name: part.float() for name, part in u.items()}
    assert all(torch.equal(v, wide[n].double()) for n, v in check_direction(wide, partition).items())
    with pytest.raises(TypeError, match=r"expected real numbers for 0\.weight in the direction, got torch\.complex128"):
        check_direction({name: part * 1j for name, part in u.items()}, partition)
    small = gn.Partition.single(gn.models.Rosenbrock(2, dtype=torch.float32))
    # The control: the number itself is not zero.
    tiny = torch.tensor([1e-60, 1.0], dtype=torch.float64)
    assert tiny.all()
    with pytest.raises(ValueError, match=r"within the range of torch\.float32"):
        check_direction({"theta": tiny}, small)
