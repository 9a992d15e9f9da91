"""Three oracles of the same tensors agree; tests/test_summary.py has the closed form of a quadratic.

1. Nested ``torch.autograd.grad`` (the code under test). 2. ``torch.func`` on phi(eta) through ``functional_call``: forward
mode and vmap, no group sums. 3. Central differences of phi, which know
nothing of automatic differentiation.

Tolerances: 1 and 2 differ by float64 roundings of at most a few thousand terms, 1e-12 of the largest entry. A central
difference with step h errs by h^2 phi^(d+2) / 6 and eps L / h^d: at h = 1e-3, order 3, both are below 1e-3 of the entry.
"""

import gc
import tracemalloc

import pytest
import torch
from support.problems import PARTITIONS, PROBLEMS, build, central_differences
from torch.func import jacfwd, jacrev

from gnewton.derivatives.nested import summary, summary_tensor

CASES = [(problem, partition) for problem in PROBLEMS for partition in PARTITIONS if partition != "by row"]


def assert_close(got, expected, relative):
    worst = (got - expected).abs().max().item()
    assert worst <= relative * expected.abs().max().clamp(min=1e-12).item(), f"off by {worst}, expected {expected}"


def cubes_by_torch_func(phi, groups):
    zero = torch.zeros(groups, dtype=torch.float64)
    return -jacrev(phi)(zero), jacfwd(jacrev(phi))(zero), -jacfwd(jacfwd(jacrev(phi)))(zero)


@pytest.mark.parametrize(("problem", "partition"), CASES)
def test_agrees_with_torch_func_on_phi(problem, partition):
    case = build(problem)
    groups = PARTITIONS[partition](case.model)
    u = case.direction(groups)
    oracle = cubes_by_torch_func(case.phi(groups, u), len(groups))
    for order, expected in enumerate(oracle, start=1):
        assert_close(summary_tensor(case.loss(), groups, u, order=order), expected, 1e-12)


def test_order_four_agrees_with_torch_func_on_phi():
    case = build("perceptron")
    groups = PARTITIONS["by kind"](case.model)
    u = case.direction(groups)
    fourth = jacfwd(jacfwd(jacfwd(jacrev(case.phi(groups, u)))))(torch.zeros(2, dtype=torch.float64))
    assert_close(summary_tensor(case.loss(), groups, u, order=4), fourth, 1e-12)


@pytest.mark.parametrize("problem", ["perceptron", "regression", "convolution"])
def test_finite_differences_of_phi(problem):
    case = build(problem)
    groups = PARTITIONS["by tensor"](case.model)
    u = {n: t / 3 for n, t in case.direction(groups).items()}
    got, expected = summary(case.loss(), groups, u)[:3], central_differences(case.phi(groups, u), len(groups))
    for ours, theirs, relative in zip(got, expected, (1e-4, 1e-4, 1e-3), strict=True):
        assert_close(ours, theirs, relative)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_cheap_paths_equal_the_full_tensors(problem):
    case = build(problem)
    groups = PARTITIONS["by tensor"](case.model)
    u = case.direction(groups)
    gradient, hessian, third, full = summary(case.loss(), groups, u, full_third=True)
    assert_close(gradient, summary_tensor(case.loss(), groups, u, order=1), 1e-14)
    assert_close(hessian, summary_tensor(case.loss(), groups, u, order=2), 1e-14)
    assert_close(full, summary_tensor(case.loss(), groups, u, order=3), 1e-14)
    assert_close(third, summary(case.loss(), groups, u)[2], 1e-13)


def test_nothing_leaks_over_1000_calls():
    case = build("perceptron")
    groups = PARTITIONS["by kind"](case.model)
    u = case.direction(groups)

    def calls(n):
        for _ in range(n):
            summary(case.loss(), groups, u)
        gc.collect()
        return tracemalloc.get_traced_memory()[0], sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())

    tracemalloc.start()
    try:
        bytes_before, tensors_before = calls(20)
        bytes_after, tensors_after = calls(1000)
    finally:
        tracemalloc.stop()
    assert tensors_after == tensors_before
    # A leaked graph node costs hundreds of bytes a call; interpreter caches settle within kilobytes in all.
    assert bytes_after - bytes_before < 100_000


@pytest.mark.accelerator
@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_follows_the_parameters_device(device):
    if not (torch.cuda.is_available() if device == "cuda" else torch.backends.mps.is_available()):
        pytest.skip(f"no {device} here")
    case = build("perceptron")
    groups = PARTITIONS["by row"](case.model)
    u = case.direction(groups)
    expected = summary(case.loss(), groups, u)
    dtype = torch.float64 if device == "cuda" else torch.float32
    case.model.to(device, dtype)
    case.x, case.y = case.x.to(device, dtype), case.y.to(device)
    got = summary(case.loss(), groups, {n: t.to(device, dtype) for n, t in u.items()})
    for ours, theirs in zip(got[:3], expected[:3], strict=True):
        assert_close(ours.cpu().double(), theirs, 1e-12 if device == "cuda" else 1e-4)


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (lambda: torch.tensor(1.0), TypeError, "call the closure first"),
        (torch.ones(3, requires_grad=True) * 2, ValueError, r"scalar loss, got shape \(3,\)"),
        (torch.tensor(1.0), ValueError, "detached"),
    ],
)
def test_refuses_an_unfit_value(value, error, text):
    case = build("quadratic")
    groups = PARTITIONS["single"](case.model)
    with pytest.raises(error, match=text):
        summary_tensor(value, groups, case.direction(groups), order=1)


def test_refuses_a_used_up_graph_and_order_zero():
    case = build("perceptron")
    groups = PARTITIONS["single"](case.model)
    value = case.loss()
    with pytest.raises(ValueError, match="at least 1, got 0"):
        summary_tensor(value, groups, case.direction(groups), order=0)
    value.backward()
    with pytest.raises(ValueError, match="used up"):
        summary_tensor(value, groups, case.direction(groups), order=1)
