"""K-FAC is exact for one linear layer with the squared error: there it must be Gauss and Newton's step.

The oracle is torch's own Hessian of the loss as a function of all parameters, which for this model is the Gauss-Newton
matrix; nothing of curvlinops is in it.
"""

import sys
from itertools import repeat

import pytest
import torch
from torch import nn
from torch.func import functional_call, hessian

from gnewton.experiments.kfac import KFAC


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(3)
    x, y = (torch.randn(40, d, generator=generator, dtype=torch.float64) for d in (4, 3))
    model = nn.Linear(4, 3, dtype=torch.float64)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return model, nn.MSELoss(), x, y


def closure(model, loss, x, y):
    def evaluate():
        model.zero_grad()
        value = loss(model(x), y)
        value.backward()
        return value.item()

    return evaluate


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# curvlinops' damping has a floor of 1e-12 and the Hessian's condition number is about 10: errors stay far below 1e-9.
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_the_direction_is_gauss_and_newtons(problem):
    model, loss, x, y = problem
    names = [name for name, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]

    def value(theta):
        parts = theta.split([shape.numel() for shape in shapes])
        values = {n: part.view(shape) for n, part, shape in zip(names, parts, shapes, strict=True)}
        return loss(functional_call(model, values, (x,)), y)

    theta = flat(model)
    expected = torch.linalg.solve(hessian(value)(theta), torch.func.grad(value)(theta))
    optimizer = KFAC(model, loss, repeat((x, y)), lr=1.0, damping=0.0, momentum=0.0, fisher="type-2")
    optimizer.step(closure(model, loss, x, y))
    torch.testing.assert_close(theta - flat(model), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_one_step_of_one_solves_the_regression(problem):
    model, loss, x, y = problem
    optimizer = KFAC(model, loss, repeat((x, y)), lr=1.0, damping=0.0, momentum=0.0, fisher="type-2")
    optimizer.step(closure(model, loss, x, y))
    augmented = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], 1)
    best = torch.linalg.lstsq(augmented, y).solution
    torch.testing.assert_close(torch.cat([model.weight, model.bias[:, None]], 1), best.T, rtol=1e-9, atol=1e-9)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_much_damping_leaves_the_gradient(problem):
    # (F + d)^-1 g -> g / d, and Martens and Grosse's split adds terms of order 1 / sqrt(d).
    model, loss, x, y = problem
    theta, evaluate, damping = flat(model), closure(model, loss, x, y), 1e12
    KFAC(model, loss, repeat((x, y)), lr=damping, damping=damping, momentum=0.0).step(evaluate)
    moved = theta - flat(model)
    with torch.no_grad():
        start = [p.add_(d.view_as(p)) for p, d in zip(model.parameters(), moved.split([12, 3]), strict=True)]
    evaluate()
    gradient = torch.cat([p.grad.flatten() for p in start])
    torch.testing.assert_close(moved, gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_the_factors_are_recomputed_every_period(problem):
    model, loss, x, y = problem
    drawn = []

    def batches():
        while True:
            drawn.append(1)
            yield x, y

    optimizer = KFAC(model, loss, batches(), lr=0.1, period=3)
    for _ in range(7):
        optimizer.step(closure(model, loss, x, y))
    assert len(drawn) == 3


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_factors_that_are_not_finite_are_divergence(problem):
    model, loss, x, y = problem
    optimizer = KFAC(model, loss, repeat((x * float("nan"), y)))
    with pytest.raises(FloatingPointError, match="damping"):
        optimizer.step(closure(model, loss, x, y))


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "curvlinops", None)
    with pytest.raises(ImportError, match=r"gnewton\[bench\]"):
        KFAC(nn.Linear(2, 2), nn.MSELoss(), repeat((torch.zeros(1, 2), torch.zeros(1, 2))))
