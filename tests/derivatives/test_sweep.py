"""The laws of summaries through the tape alone, on models of every shape, and the sweep's own promises.

Both sides of a law come from the same code with other inputs: roundings of sums of a few thousand float64 terms, below
1e-11 of the largest entry. A wrong factor, sign, group or index fails by orders of magnitude.
"""

import gc
import tracemalloc

import pytest
import torch
from support.problems import PARTITIONS, PROBLEMS, build
from support.zoo import ZOO
from torch import nn
from torch.func import functional_call

import gnewton as gn
from gnewton.derivatives import memory, nested, sweep
from gnewton.derivatives.record import record

SHAPES = ["tied", "recurrent cell", "GRU", "MultiheadAttention", "BatchNorm2d", "Conv2d grouped", "bmm", "weight decay"]
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


def test_symmetry_and_the_two_ways_to_the_diagonal(case):
    partition = gn.Partition.by_tensor(case.model)
    full, cheap = swept(case, partition), swept(case, partition, full_third=False)
    close(full.hessian, full.hessian.T)
    for order in ((0, 2, 1), (1, 0, 2), (2, 1, 0)):
        close(full.third_full.permute(order), full.third_full)
    close(cheap.third, full.third)


def test_homogeneity_in_the_direction_per_group(case):
    partition = gn.Partition.by_tensor(case.model)
    u = case.direction(partition)
    c = torch.randn(len(partition), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    one, scaled = swept(case, partition, u), swept(case, partition, partition.scale(u, c))
    close(scaled.gradient, c * one.gradient)
    close(scaled.hessian, c[:, None] * one.hessian * c)
    close(scaled.third_full, torch.einsum("r,s,t,rst->rst", c, c, c, one.third_full))


@pytest.mark.parametrize("coarse", ["single", "by layer", "by kind"])
def test_coarsening_sums_the_entries(case, coarse):
    fine, target = gn.Partition.by_tensor(case.model), PARTITIONS[coarse](case.model)
    u = case.direction(fine)
    groups = {target.names[s]: target.members(s) for s in range(len(target))}
    same(swept(case, fine, u).coarsen(groups), swept(case, target, u))


def test_groups_that_are_parts_of_tensors_add_up():
    # Both groups of a masked tensor reach each operation through the same argument.
    problem = build("perceptron")
    rows = gn.Partition.by_row(problem.model)
    u = problem.direction(rows)
    same(swept(problem, rows, u).coarsen([range(len(rows))]), swept(problem, gn.Partition.single(problem.model), u))


def test_permuting_groups_permutes_the_tensors(case):
    partition = gn.Partition.by_tensor(case.model)
    order = torch.randperm(len(partition), generator=torch.Generator().manual_seed(1)).tolist()
    u = case.direction(partition)
    one, permuted = swept(case, partition, u), swept(case, partition.coarsen([[i] for i in order]), u)
    close(permuted.gradient, one.gradient[order])
    close(permuted.hessian, one.hessian[order][:, order])
    close(permuted.third, one.third[order])
    close(permuted.third_full, one.third_full[order][:, order][:, :, order])


@pytest.mark.parametrize("partition", PARTITIONS)
def test_closed_form_on_a_quadratic(partition):
    problem = build("quadratic")
    groups = PARTITIONS[partition](problem.model)
    u = problem.direction(groups)
    parts = [groups.restrict(u, s) for s in range(len(groups))]
    v = torch.stack([torch.cat([part["first"].flatten(), part["second"]]) for part in parts], dim=1)
    theta = torch.cat([problem.model.first.flatten(), problem.model.second]).detach()
    got = swept(problem, groups, u)
    close(got.gradient, v.T @ (problem.model.a @ theta - problem.x))
    close(got.hessian, v.T @ problem.model.a @ v)
    assert got.third_full.abs().max() <= 1e-13 * got.hessian.abs().max()


def test_finite_differences_of_phi(case):
    # With h = 1e-3 the error of order 3 is h^2 phi^(5) / 4 + eps L / h^3, about 1e-6 each for directions of this length.
    partition = gn.Partition.by_tensor(case.model)
    u = {n: t / 5 for n, t in case.direction(partition).items()}
    phi, h = case.phi(partition, u), 1e-3
    steps = h * torch.eye(len(partition), dtype=torch.float64)
    got = swept(case, partition, u, full_third=False)
    first = torch.stack([(phi(-e) - phi(e)) / (2 * h) for e in steps])
    second = torch.stack([torch.stack([mixed_difference(phi, e, f) / (4 * h * h) for f in steps]) for e in steps])
    third = torch.stack([(phi(-2 * e) - 2 * phi(-e) + 2 * phi(e) - phi(2 * e)) / (2 * h**3) for e in steps])
    for ours, theirs in zip((got.gradient, got.hessian, got.third), (first, second, third), strict=True):
        close(ours, theirs.detach(), 1e-3)


def mixed_difference(phi, e, f):
    return phi(e + f) - phi(e - f) - phi(f - e) + phi(-e - f)


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


def test_a_data_set_is_the_mean_weighted_by_the_samples():
    problem = build("perceptron")
    partition = gn.Partition.by_tensor(problem.model)
    batches = list(zip(problem.x.split(5), problem.y.split(5), strict=True))
    u = problem.direction(partition)
    got = gn.summarize(problem.loss_on, partition, u, data=batches, full_third=True, engine="tape")
    same(got, swept(problem, partition, u))


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


@pytest.mark.parametrize("name", ["perceptron", "regression", "convolution"])
def test_runs_on_the_meta_device(name):
    problem = build(name)
    to(problem, "meta")
    partition = gn.Partition.by_tensor(problem.model)
    u = {n: torch.empty_like(p) for n, p in partition.parameters.items()}
    s = len(partition)
    got = gn.summarize(problem.loss, partition, u, full_third=True, engine="tape")
    assert [tuple(getattr(got, n).shape) for n in ORDERS] == [(s,), (s, s), (s,), (s, s, s)]
    cheap = gn.summarize(problem.loss, partition, u, engine="tape")
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
