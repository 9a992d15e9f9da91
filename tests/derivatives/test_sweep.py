"""Laws of summaries on models of every shape that test_summary.py does not state, and the sweep's own promises.

Both sides of a law come from the same code with other inputs: roundings of sums of a few thousand float64 terms, below
1e-11 of the largest entry. A wrong factor, sign, group or index fails by orders of magnitude.
"""

import gc
import tracemalloc

import pytest
import torch
import torch.nn.functional as F
from support.problems import PROBLEMS, build, central_differences
from support.zoo import SHAPES, ZOO
from torch import nn
from torch.func import functional_call

import gnewton as gn
from gnewton.derivatives import memory, nested, sweep
from gnewton.derivatives.operation import Rule
from gnewton.derivatives.record import record
from gnewton.derivatives.rules import softmax

ORDERS = ("gradient", "hessian", "third", "third_full")


@pytest.fixture(params=SHAPES)
def case(request):
    return ZOO[request.param].build()


def swept(problem, partition, u=None, **options):
    u = problem.direction(partition) if u is None else u
    return gn.summarize(problem.loss, partition, u, engine="tape", **({"full_third": True} | options))


def close(got, expected, relative=1e-11):
    worst, largest = (got - expected).abs().max().item(), expected.abs().max().item()
    assert worst <= relative * largest + 1e-13, f"off by {worst} of {largest}"


def same(got, expected, relative=1e-11):
    for name in ORDERS:
        assert (getattr(got, name) is None) == (getattr(expected, name) is None)
        if getattr(got, name) is not None:
            close(getattr(got, name), getattr(expected, name), relative)


# -- laws ----------------------------------------------------------------------------------------------------------


def test_groups_that_are_parts_of_tensors_add_up():
    # Both groups of a masked tensor reach each operation through the same argument.
    problem = build("perceptron")
    rows = gn.Partition.by_row(problem.model)
    u = problem.direction(rows)
    same(swept(problem, rows, u).coarsen([range(len(rows))]), swept(problem, gn.Partition.single(problem.model), u))


def test_finite_differences_of_phi(case):
    # With h = 1e-3 the error of order 3 is h^2 phi^(5) / 4 + eps L / h^3, about 1e-6 each for directions of this length.
    partition = gn.Partition.by_tensor(case.model)
    u = {n: t / 5 for n, t in case.direction(partition).items()}
    got, expected = (
        swept(case, partition, u, full_third=False),
        central_differences(case.phi(partition, u), len(partition)),
    )
    for ours, theirs in zip((got.gradient, got.hessian, got.third), expected, strict=True):
        close(ours, theirs, 1e-3)


def test_invariance_under_a_scale_per_group(case):
    # theta_s = a_s theta~_s. The model is evaluated at products, so that its parameters are not leaves either.
    partition = gn.Partition.by_tensor(case.model)
    a = torch.exp(torch.randn(len(partition), generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    scales = dict(zip(partition.parameters, a, strict=True))
    scaled = nn.ParameterList([p.detach() / scales[n] for n, p in partition.parameters.items()])
    other = gn.Partition.by_tensor(scaled)

    def loss():
        theta = {n: scales[n] * p for n, p in zip(partition.parameters, scaled, strict=True)}
        return case.criterion(functional_call(case.model, theta, (case.x,)), case.y)

    one = swept(case, partition, gn.direction.gradient(case.loss, partition))
    two = gn.summarize(loss, other, gn.direction.gradient(loss, other), full_third=True, engine="tape")
    close(two.gradient, a**2 * one.gradient)
    close(two.hessian, a[:, None] ** 2 * one.hessian * a**2)
    close(two.third_full, torch.einsum("r,s,t,rst->rst", a**2, a**2, a**2, one.third_full))


# -- the sweep's own promises --------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"order": 2}, {"order": 3}, {"order": 3, "full_third": True}])
@pytest.mark.parametrize("groups", [0.1, 1, 2, 3, 5])
def test_a_small_memory_gives_the_same_numbers(case, groups, options):
    partition = gn.Partition.by_tensor(case.model)
    u = case.direction(partition)
    options = {"full_third": False} | options
    # Room for about so many groups at a time.
    everything = memory.peak(record(case.loss, partition), partition, options["order"], options["full_third"])
    room = groups / len(partition) * everything
    got = swept(case, partition, u, max_memory=room, **options)
    same(got, swept(case, partition, u, **options), 1e-12)


def test_a_small_memory_sweeps_a_few_groups_at_a_time(monkeypatch):
    problem = build("perceptron")
    partition = gn.Partition.by_tensor(problem.model)
    seen, tangents = [], sweep._tangents
    monkeypatch.setattr(sweep, "_tangents", lambda *arguments: seen.append(arguments[2]) or tangents(*arguments))
    swept(problem, partition, order=2, full_third=False, max_memory=1)
    assert {len(groups) for groups in seen} == {2}
    assert len(set(seen)) == 15  # every pair of six groups


@pytest.mark.parametrize(("order", "known"), [(1, 1), (2, 2), (3, 3)])
def test_orders_hold_what_was_asked(order, known):
    problem = build("perceptron")
    got = swept(problem, gn.Partition.by_tensor(problem.model), order=order, full_third=False)
    assert [getattr(got, name) is not None for name in ORDERS] == [i < known for i in range(4)]


@pytest.mark.parametrize("name", PROBLEMS)
def test_float32_is_as_good_as_the_float32_oracle(name):
    problem = build(name)
    partition = gn.Partition.by_tensor(problem.model)
    u = {n: t.float() for n, t in problem.direction(partition).items()}
    single = {}
    for engine in ("tape", "nested"):
        to(problem, torch.float32)
        single[engine] = gn.summarize(problem.loss, partition, u, full_third=True, engine=engine)
    to(problem, torch.float64)  # the rounded parameters, exactly
    exact = gn.summarize(
        problem.loss, partition, {n: t.double() for n, t in u.items()}, full_third=True, engine="nested"
    )
    for order in ORDERS:
        truth = getattr(exact, order)
        ours, theirs = ((getattr(single[e], order) - truth).abs().max().item() for e in ("tape", "nested"))
        assert ours <= max(1e-5 * truth.abs().max().item(), 4 * theirs) + 1e-12, (order, ours, theirs)


def to(problem, where):
    problem.model.to(where)
    problem.x = problem.x.to(where)
    if problem.y.is_floating_point() or not isinstance(where, torch.dtype):
        problem.y = problem.y.to(where)


@pytest.mark.parametrize("engine", ["tape", "nested"])
@pytest.mark.parametrize("name", ["perceptron", "regression", "convolution"])
def test_runs_on_the_meta_device(name, engine):
    problem = build(name)
    to(problem, "meta")
    partition = gn.Partition.by_tensor(problem.model)
    u = {n: torch.empty_like(p) for n, p in partition.parameters.items()}
    s = len(partition)
    got = gn.summarize(problem.loss, partition, u, full_third=True, engine=engine)
    assert [tuple(getattr(got, n).shape) for n in ORDERS] == [(s,), (s, s), (s,), (s, s, s)]
    cheap = gn.summarize(problem.loss, partition, u, engine=engine)
    assert {t.device.type for r in (got, cheap) for t in (r.value, r.gradient, r.hessian, r.third)} == {"meta"}


@pytest.mark.accelerator
@pytest.mark.parametrize("device", ["cuda", "mps"])
@pytest.mark.parametrize("name", ["perceptron", "convolution", "MultiheadAttention", "BatchNorm2d", "GRU"])
def test_follows_the_parameters_device(device, name):
    if not (torch.cuda.is_available() if device == "cuda" else torch.backends.mps.is_available()):
        pytest.skip(f"no {device} here")
    problem = ZOO[name].build() if name in ZOO else build(name)
    partition = gn.Partition.by_tensor(problem.model)
    u = problem.direction(partition)
    expected = swept(problem, partition, u)
    dtype = torch.float64 if device == "cuda" else torch.float32
    to(problem, dtype)
    to(problem, device)
    got = swept(problem, partition, {n: t.to(device, dtype) for n, t in u.items()})
    for order in ORDERS:
        assert getattr(got, order).device.type == device
        close(getattr(got, order).cpu().double(), getattr(expected, order), 1e-11 if device == "cuda" else 1e-4)


@pytest.mark.parametrize("full_third", [False, True])
def test_nothing_leaks_over_many_calls(full_third):
    problem = build("perceptron")
    partition = gn.Partition.by_kind(problem.model)
    u = problem.direction(partition)

    def calls(n):
        for _ in range(n):
            swept(problem, partition, u, full_third=full_third)
        gc.collect()
        return tracemalloc.get_traced_memory()[0], sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())

    tracemalloc.start()
    try:
        counts = [calls(80), calls(80)]
        # Caches of the interpreter fill more and more slowly. A leak never stops: a tensor object, some 100 bytes, a call.
        while counts[-1][0] - counts[-2][0] > 80 * 100 and len(counts) < 15:
            counts.append(calls(80))
    finally:
        tracemalloc.stop()
    # Fewer is what an earlier test left behind, gone at last.
    assert counts[-1][1] <= counts[0][1]
    assert counts[-1][0] - counts[-2][0] <= 80 * 100


def test_the_engines_share_a_signature():
    problem = build("perceptron")
    partition = gn.Partition.by_tensor(problem.model)
    u = problem.direction(partition)
    ours = sweep.summary(record(problem.loss, partition), partition, u, full_third=True)
    theirs = nested.summary(problem.loss(), partition, u, full_third=True)
    for got, expected in zip(ours, theirs, strict=True):
        assert got.dtype == torch.float64
        close(got, expected)


# What has no axis takes 0 as one; what has no entry adds nothing.
OF_A_NUMBER = {
    "softmax": lambda t: t.softmax(0),
    "log_softmax": lambda t: t.log_softmax(-1),
    "transpose": lambda t: t.transpose(0, 0),
    "flip": lambda t: t.flip(0),
    "cumsum": lambda t: t.cumsum(0),
    "sort": lambda t: t.sort(0)[0],
    "logcumsumexp": lambda t: t.logcumsumexp(0),
    "cumprod": lambda t: t.cumprod(0),
    "amax": lambda t: t.amax(0),
    "index_fill": lambda t: t.cos().index_fill(0, torch.tensor([0]), t),
    "index_copy": lambda t: t.cos().index_copy(0, torch.tensor([0]), t),
    "scatter": lambda t: t.cos().scatter(0, torch.tensor(0), t),
}
OF_NOTHING = {
    "layer_norm": lambda t: F.layer_norm(t, (3,)),
    "group_norm": lambda t: F.group_norm(t, 1),
    "softmax": lambda t: t.softmax(0),
    "bilinear": lambda t: F.bilinear(t, t, t.new_ones(2, 3, 3)),
    "cdist": lambda t: torch.cdist(t, t.new_ones(2, 3)),
    "chain": lambda t: torch.linalg.multi_dot([t, t.new_ones(3, 3), t.new_ones(3, 2)]),
    "erfc": torch.erfc,
    "prod": lambda t: t.prod(1),
    "norm": lambda t: t.norm(dim=1),
    "attention": lambda t: F.scaled_dot_product_attention(t[None], t[None], t[None]),
    "matmul": lambda t: t.T @ t,
    "cat": lambda t: torch.cat([t, t.new_ones(1, 3)]),
}


# Each of them returns the number itself, but for these.
CONSTANTS = {"softmax": 1.0, "log_softmax": 0.0}


def of_a_number(function):
    w = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    return lambda: (function(w.sin()) * w).exp() + w**3, gn.Partition.from_groups({"w": {"w": w}}), {"w": w.detach()}


@pytest.mark.parametrize("name", OF_A_NUMBER)
def test_a_number_is_a_tensor(name):
    loss, partition, u = of_a_number(OF_A_NUMBER[name])
    w = partition.parameters["w"]
    expected = nested.summary((CONSTANTS.get(name, w.sin()) * w).exp() + w**3, partition, u, full_third=True)
    got = gn.summarize(loss, partition, u, engine="tape", full_third=True)
    for one, other in zip((got.gradient, got.hessian, got.third, got.third_full), expected, strict=True):
        close(one, other)


@pytest.mark.parametrize("name", OF_NOTHING)
def test_what_has_no_entry_adds_nothing(name):
    w = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3).requires_grad_()
    function = OF_NOTHING[name]
    partition = gn.Partition.from_groups({"w": {"w": w}})
    u = {"w": torch.linspace(1, 2, 6, dtype=torch.float64).reshape(2, 3)}
    got = gn.summarize(lambda: function(w[:0]).sum() + w.exp().sum(), partition, u, engine="tape", full_third=True)
    for order, tensor in enumerate((got.gradient, got.hessian, got.third_full), 1):
        torch.testing.assert_close(tensor.flatten()[0], (w.detach().exp() * u["w"] ** order).sum(), rtol=1e-12, atol=0)


def test_the_control_closed_forms_need_an_axis_and_an_entry(monkeypatch):
    monkeypatch.setattr(softmax.Softmax, "applies", Rule.applies)
    loss, partition, u = of_a_number(OF_A_NUMBER["softmax"])
    with pytest.raises(ZeroDivisionError):
        gn.summarize(loss, partition, u, engine="tape")
