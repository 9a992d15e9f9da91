"""The laws of summaries, on every problem, with random directions, in float64.

Both sides of a law are computed by the same code from different inputs; they differ by roundings of sums of at most a
few thousand terms, so 1e-11 of the largest entry is generous, and a wrong factor, sign, group or index fails by orders.
"""

import copy
import dataclasses
import io
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.problems import PARTITIONS, PROBLEMS, build
from support.zoo import SHAPES, ZOO
from torch import nn

import gnewton as gn

RELATIVE = 1e-11
# What a law says of tensors whose exact value is 0 (D3 of a quadratic) needs a floor: the loss is of order 1 here.
FLOOR = 1e-13


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=RELATIVE, atol=RELATIVE * expected.abs().max().item() + FLOOR)


def same(one, other):
    for name in ("value", "gradient", "hessian", "third", "third_full"):
        if getattr(other, name) is not None:
            close(getattr(one, name), getattr(other, name))


@pytest.fixture(params=PROBLEMS)
def case(request):
    return build(request.param)


@pytest.fixture(params=[*PROBLEMS, *SHAPES])
def any_case(request):
    return build(request.param) if request.param in PROBLEMS else ZOO[request.param].build()


def summarized(case, partition, u=None, **options):
    u = case.direction(partition) if u is None else u
    return gn.summarize(case.loss, partition, u, **({"engine": "tape"} | options))


def test_homogeneity_in_the_direction(case):
    partition = gn.Partition.by_layer(case.model)
    u = case.direction(partition)
    c = -1.7
    one, scaled = (summarized(case, partition, d, full_third=True) for d in (u, {n: c * t for n, t in u.items()}))
    for order, name in enumerate(("gradient", "hessian", "third_full"), start=1):
        close(getattr(scaled, name), c**order * getattr(one, name))


def test_homogeneity_per_group(any_case):
    # D^d L is linear in each argument, so each index of group s brings its own factor.
    partition = gn.Partition.by_tensor(any_case.model)
    u = any_case.direction(partition)
    c = torch.randn(len(partition), dtype=torch.float64)
    one, scaled = (
        summarized(any_case, partition, u, full_third=True),
        summarized(any_case, partition, partition.scale(u, c), full_third=True),
    )
    close(scaled.gradient, c * one.gradient)
    close(scaled.hessian, c[:, None] * one.hessian * c)
    close(scaled.third_full, torch.einsum("r,s,t,rst->rst", c, c, c, one.third_full))


def test_symmetry_and_the_two_ways_to_the_diagonal(any_case):
    partition = gn.Partition.by_tensor(any_case.model)
    full, cheap = (summarized(any_case, partition, full_third=all_of_it) for all_of_it in (True, False))
    close(full.hessian, full.hessian.T)
    for order in ((0, 2, 1), (1, 0, 2), (2, 1, 0)):
        close(full.third_full.permute(order), full.third_full)
    close(cheap.third, full.third)


@pytest.mark.parametrize("coarse", ["single", "by layer", "by kind"])
def test_coarsening_sums_the_entries(any_case, coarse):
    fine, target = gn.Partition.by_tensor(any_case.model), PARTITIONS[coarse](any_case.model)
    u = any_case.direction(fine)
    groups = {target.names[s]: target.members(s) for s in range(len(target))}
    merged = summarized(any_case, fine, u, full_third=True).coarsen(groups)
    same(merged, summarized(any_case, target, u, full_third=True))
    assert merged.names == target.names
    same(summarized(any_case, fine.coarsen(groups), u), summarized(any_case, target, u))


def test_permuting_groups_permutes_the_tensors(any_case):
    partition = gn.Partition.by_tensor(any_case.model)
    order = torch.randperm(len(partition), generator=torch.Generator().manual_seed(1)).tolist()
    u = any_case.direction(partition)
    one = summarized(any_case, partition, u, full_third=True)
    permuted = summarized(any_case, partition.coarsen([[i] for i in order]), u, full_third=True)
    close(permuted.gradient, one.gradient[order])
    close(permuted.hessian, one.hessian[order][:, order])
    close(permuted.third, one.third[order])
    close(permuted.third_full, one.third_full[order][:, order][:, :, order])


def test_one_group_is_the_directional_derivative(case):
    partition = gn.Partition.single(case.model)
    u = case.direction(partition)
    phi = case.phi(partition, u)
    zero = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(phi(zero), zero, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), zero)
    summary = summarized(case, partition, u, order=2)
    close(summary.gradient, -first.detach())
    close(summary.hessian, second[None])


def test_every_scalar_a_group_is_the_hessian_itself():
    case = build("quadratic")
    partition = gn.Partition.by_scalar(case.model)
    ones = {n: torch.ones_like(p) for n, p in partition.parameters.items()}
    close(summarized(case, partition, ones, order=2).hessian, case.model.a)


@pytest.mark.parametrize("engine", ["tape", "nested"])
@pytest.mark.parametrize("partition", PARTITIONS)
def test_closed_form_on_a_quadratic(partition, engine):
    # H-bar is V^T A V with the parts of u in the columns of V.
    case = build("quadratic")
    groups = PARTITIONS[partition](case.model)
    u = case.direction(groups)
    parts = [groups.restrict(u, s) for s in range(len(groups))]
    v = torch.stack([torch.cat([part["first"].flatten(), part["second"]]) for part in parts], dim=1)
    theta = torch.cat([case.model.first.flatten(), case.model.second]).detach()
    summary = summarized(case, groups, u, full_third=True, engine=engine)
    close(summary.gradient, v.T @ (case.model.a @ theta - case.x))
    close(summary.hessian, v.T @ case.model.a @ v)
    assert summary.third_full.abs().max() <= 1e-13 * summary.hessian.abs().max()


def test_taylor_models_agree_with_the_loss_to_their_order(case):
    # The remainder of order d is c h^(d+1) + O(h^(d+2)): halving a small h must divide it by about 2^(d+1).
    partition = gn.Partition.by_tensor(case.model)
    u = case.direction(partition)
    phi, summary = case.phi(partition, u), summarized(case, partition, u, full_third=True)
    eta = torch.randn(len(partition), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for order in (0, 1, 2, 3):
        errors = [(phi(h * eta) - summary.taylor(h * eta, order)).abs().item() for h in (2e-3, 1e-3)]
        rounding = 1e-14 * max(1.0, abs(phi(0 * eta).item()))
        assert errors[1] <= rounding or errors[0] / errors[1] > 2 ** (order + 0.7), (order, errors)


def transformed(case, partition, scales, rotations):
    """The same function of theta~, where theta_s = a_s Q_s theta~_s for every whole-tensor group s."""

    class Rescaled(nn.Module):
        def __init__(self):
            super().__init__()
            for i, (name, p) in enumerate(partition.parameters.items()):
                flat = rotations[name].T @ p.detach().flatten() / scales[name]
                self.register_parameter(f"p{i}", nn.Parameter(flat))

        def forward(self, x):
            theta = {
                name: (scales[name] * (rotations[name] @ getattr(self, f"p{i}"))).reshape(p.shape)
                for i, (name, p) in enumerate(partition.parameters.items())
            }
            return torch.func.functional_call(case.model, theta, (x,))

    model = Rescaled()
    return model, lambda: case.criterion(model(case.x), case.y)


def orthogonal(n):
    return torch.linalg.qr(torch.randn(n, n, dtype=torch.float64))[0]


def metric(summary):
    return summary.third.abs().pow(1 / 3)


@pytest.mark.parametrize("name", ["perceptron", "elu", "regression", "convolution"])
def test_invariance_under_a_scale_and_a_rotation_per_group(name):
    torch.manual_seed(0)
    case = build(name)
    partition = gn.Partition.by_tensor(case.model)
    a = torch.exp(torch.randn(len(partition), dtype=torch.float64))
    scales = dict(zip(partition.parameters, a, strict=True))
    rotations = {n: orthogonal(p.numel()) for n, p in partition.parameters.items()}
    model, loss = transformed(case, partition, scales, rotations)
    other = gn.Partition.by_tensor(model)
    one = summarized(case, partition, gn.direction.gradient(case.loss, partition))
    two = gn.summarize(loss, other, gn.direction.gradient(loss, other))
    close(two.gradient, a**2 * one.gradient)
    close(two.hessian, a[:, None] ** 2 * one.hessian * a**2)
    close(two.third, a**6 * one.third)
    step, step2 = (gn.newton_step(s, cubic=1.0) for s in (one, two))
    torch.testing.assert_close(step2.learning_rates, step.learning_rates / a**2, rtol=1e-8, atol=0)
    assert step2.radius == pytest.approx(step.radius, rel=1e-8)


def test_two_scales_inside_one_group_break_the_invariance():
    # The negative control: the exact group is one scalar and one orthogonal map per group, no more.
    case = build("perceptron")
    partition = gn.Partition.by_tensor(case.model)
    rotations = {n: torch.eye(p.numel(), dtype=torch.float64) for n, p in partition.parameters.items()}
    scales = {n: torch.ones(p.numel(), dtype=torch.float64) for n, p in partition.parameters.items()}
    scales["0.weight"][::2] = 3.0
    model, loss = transformed(case, partition, scales, rotations)
    other = gn.Partition.by_tensor(model)
    radii = [
        gn.newton_step(gn.summarize(f, p, gn.direction.gradient(f, p)), cubic=1.0).radius
        for f, p in ((case.loss, partition), (loss, other))
    ]
    assert abs(radii[0] / radii[1] - 1) > 1e-2


@pytest.mark.parametrize("size", [1, 7, 12, 96])
def test_a_data_set_is_the_mean_weighted_by_the_samples(size):
    case = build("perceptron")
    case.x, case.y = torch.randn(96, 5, dtype=torch.float64), torch.randint(3, (96,))
    partition = gn.Partition.by_tensor(case.model)
    u = case.direction(partition)
    batches = list(zip(case.x.split(size), case.y.split(size), strict=True))
    whole = summarized(case, partition, u, full_third=True)
    same(gn.summarize(case.loss_on, partition, u, data=batches, full_third=True), whole)
    uneven = gn.summarize(case.loss_on, partition, u, data=batches, weight=lambda x, y: 1.0, full_third=True)
    if 96 % size:
        assert not torch.allclose(uneven.hessian, whole.hessian, rtol=1e-6)  # the ragged last batch must weigh less


def test_a_data_loader_and_a_generator_are_data():
    case = build("perceptron")
    partition = gn.Partition.by_tensor(case.model)
    u = case.direction(partition)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(case.x, case.y), batch_size=5)
    whole = summarized(case, partition, u)
    same(gn.summarize(case.loss_on, partition, u, data=loader), whole)
    same(gn.summarize(case.loss_on, partition, u, data=iter(list(loader))), whole)


@pytest.mark.parametrize("what", ["frozen", "unused", "zero direction"])
def test_a_group_without_derivative_is_zero_not_an_error(what):
    case = build("perceptron")
    if what == "unused":
        case.model.register_parameter("extra", nn.Parameter(torch.randn(3, dtype=torch.float64)))
    partition = gn.Partition.by_tensor(case.model)
    u = case.direction(partition)
    group = partition.names.index("extra" if what == "unused" else "2.weight")
    full = summarized(case, partition, u, full_third=True)
    if what == "frozen":
        case.model[2].weight.requires_grad_(False)
    if what == "zero direction":
        u["2.weight"].zero_()
    s = summarized(case, partition, u, full_third=True)
    assert s.gradient[group] == s.third[group] == 0
    assert not s.hessian[group].any()
    assert not s.third_full[group].any()
    kept = [i for i in range(len(partition)) if i != group]
    close(s.hessian[kept][:, kept], full.hessian[kept][:, kept])


def test_a_parameter_that_enters_linearly():
    w = torch.randn(3, dtype=torch.float64, requires_grad=True)
    partition = gn.Partition.from_groups([{"w": w}])
    s = gn.summarize(lambda: w.sum(), partition, {"w": torch.randn(3, dtype=torch.float64)}, full_third=True)
    assert s.gradient.abs() > 0
    assert not s.hessian.any()
    assert not s.third_full.any()


def test_float32_models_under_accumulation_in_float64():
    case = build("perceptron")
    partition = gn.Partition.by_tensor(case.model)
    u = case.direction(partition)
    exact = summarized(case, partition, u)
    case.model.to(torch.float32)
    case.x = case.x.float()
    got = summarized(case, partition, u)
    assert got.hessian.dtype == torch.float64
    # A few hundred float32 roundings (6e-8 each) of terms no larger than the largest entry.
    torch.testing.assert_close(got.hessian, exact.hessian, rtol=0, atol=2e-5 * exact.hessian.abs().max().item())


def test_without_a_direction_it_is_along_the_gradient():
    case = build("perceptron")
    partition = gn.Partition.by_tensor(case.model)
    here, along = gn.summarize(case.loss, partition), gn.direction.gradient(case.loss, partition)
    for a, b in zip(here.tensors(), gn.summarize(case.loss, partition, along).tensors(), strict=True):
        assert torch.equal(a, b)
    data = list(zip(case.x.split(5), case.y.split(5), strict=True))
    # The same mean in another order of summation.
    torch.testing.assert_close(
        gn.summarize(case.loss_on, partition, data=data).hessian, here.hessian, rtol=1e-9, atol=1e-12
    )


def test_rescaled_is_the_summary_along_the_rescaled_direction():
    case = build("perceptron")
    partition = gn.Partition.by_tensor(case.model)
    u, factors = case.direction(partition), torch.arange(6, dtype=torch.float64) / 2
    other = gn.summarize(case.loss, partition, partition.scale(u, factors), full_third=True)
    rescaled = gn.summarize(case.loss, partition, u, full_third=True).rescaled(factors)
    for a, b in zip(rescaled.tensors(), other.tensors(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_parameters_and_grad_stay_as_they_were():
    case = build("convolution")
    partition = gn.Partition.by_tensor(case.model)
    before = [p.detach().clone() for p in case.model.parameters()]
    summarized(case, partition)
    assert all(torch.equal(p, q) and p.grad is None for p, q in zip(case.model.parameters(), before, strict=True))


def test_state_dict_round_trip_under_weights_only():
    case = build("perceptron")
    summary = summarized(case, gn.Partition.by_layer(case.model), full_third=True)
    buffer = io.BytesIO()
    torch.save(summary.state_dict(), buffer)
    buffer.seek(0)
    loaded = gn.Summary.from_state_dict(torch.load(buffer, weights_only=True))
    assert loaded.names == summary.names
    assert torch.equal(loaded.third_full, summary.third_full)


def test_sums_and_multiples():
    case = build("perceptron")
    partition = gn.Partition.by_tensor(case.model)
    u = case.direction(partition)
    one = summarized(case, partition, u)
    two = gn.summarize(lambda: 3 * case.loss(), partition, u)
    same(one + 2 * one, two)


def test_python_numbers_keep_all_their_digits():
    s = gn.Summary.from_tensors(gradient=[0.1], hessian=[[0.3]], third=[1e-50], value=0.7)
    assert (s.gradient.item(), s.hessian.item(), s.third.item(), s.value.item()) == (0.1, 0.3, 1e-50, 0.7)


def test_sum_and_bad_products():
    one = gn.Summary.from_tensors(gradient=[0.1], hessian=[[0.3]])
    assert torch.equal(sum([one, one]).hessian, (one + one).hessian)
    with pytest.raises(TypeError):
        one * one


def test_products_of_half_precision_do_not_underflow():
    w = torch.tensor(2e-4, dtype=torch.float16, requires_grad=True)
    s = gn.summarize(lambda: w.square() / 2, gn.Partition.from_groups([{"w": w}]), {"w": w.detach()}, order=1)
    assert s.gradient.item() == w.detach().double().square().item()


CASE = build("perceptron")
LAYERS = gn.Partition.by_layer(CASE.model)
PLAIN = gn.Summary.from_tensors(gradient=[1.0, 2.0], hessian=[[1.0, 0.0], [0.0, 1.0]], third=[1.0, 1.0])


def ask(**options):
    return lambda: summarized(CASE, LAYERS, **options)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (ask(order=4), "order 1, 2 or 3, got 4"),
        (ask(order=2, full_third=True), "order=3 with full_third=True"),
        (ask(engine="magic"), "engine among auto, tape, nested, differences, got 'magic'"),
        (ask(max_memory=0), "positive max_memory in bytes, got 0"),
        (lambda: gn.summarize(CASE.loss_on, LAYERS, CASE.direction(LAYERS), data=[]), "at least one batch"),
        (
            lambda: gn.summarize(
                CASE.loss_on, LAYERS, CASE.direction(LAYERS), data=[(CASE.x, CASE.y)], weight=lambda x, y: 0
            ),
            "positive batch weight, got 0",
        ),
        (lambda: PLAIN + gn.Summary.from_tensors(gradient=[1.0, 2.0]), "difference in hessian, third"),
        (lambda: PLAIN.coarsen([[0, 1]]), "full order-3 tensor to merge groups"),
        (lambda: PLAIN.taylor([1.0, 1.0], 3), "expected third_full for order 3"),
        (lambda: PLAIN.taylor([1.0, 1.0], 4), "order from 0 to 3, got 4"),
        (lambda: PLAIN.taylor([1.0], 2), r"eta of shape \(..., 2\), got \(1,\)"),
        (lambda: gn.Summary.from_tensors(gradient=[1.0], hessian=[1.0]), r"hessian of shape \(1, 1\), got \(1,\)"),
        (lambda: gn.Summary.from_tensors(gradient=[1.0], names=["a", "b"]), "1 names, got 2"),
        (lambda: gn.Summary.from_tensors(gradient=[]), "at least one group"),
    ],
)
def test_bad_requests_are_refused_by_name(call, text):
    with pytest.raises(ValueError, match=text):
        call()


def test_cross_entropy_of_relu_layers_has_third_order_and_mse_has_none():
    # A ReLU network is piecewise affine in each tensor: under MSE its order-3 diagonal vanishes.
    torch.manual_seed(1)
    model = gn.models.perceptron([5, 4, 3], activation="relu", dtype=torch.float64)
    x = torch.randn(9, 5, dtype=torch.float64)
    partition = gn.Partition.by_tensor(model)
    u = {n: torch.randn_like(p) for n, p in partition.parameters.items()}
    mse = gn.summarize(lambda: F.mse_loss(model(x), x[:, :3]), partition, u)
    entropy = gn.summarize(lambda: F.cross_entropy(model(x), torch.arange(9) % 3), partition, u)
    assert mse.third.abs().max() < 1e-12 * mse.hessian.abs().max()
    assert entropy.third.abs().max() > 1e-6


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_summary_prints_a_line_for_each_of_the_first_twenty_groups(device):
    tensors = {"gradient": torch.zeros(30, device=device), "hessian": torch.zeros(30, 30, device=device)}
    names = [f"<{i}>" for i in range(30)]
    summary = gn.Summary.from_tensors(**tensors, value=torch.zeros((), device=device), names=names)
    title, header, *rows, rest = str(summary).splitlines()
    assert title == repr(summary)
    assert header.split() == ["group", "g_s", "H_ss"]
    assert [row.split()[0] for row in rows] == names[:20]
    assert "10 more" in rest
    assert summary._repr_html_().count("<tr>") == 22
    assert "&lt;0&gt;" in summary._repr_html_()


def in_half_precision(scale, engine):
    """The relative errors of a summary in float16 along ``scale`` u: the numbers along u in float64, times powers of the scale."""
    case = build("perceptron")
    wide, model, x = case.model, copy.deepcopy(case.model).half(), case.x.half()
    for p, q in zip(wide.parameters(), model.parameters(), strict=True):
        p.data.copy_(q)
    case.x = x.double()
    partition, narrow = gn.Partition.by_layer(wide), gn.Partition.by_layer(model)
    u = {name: part.half() * scale for name, part in case.direction(partition).items()}
    expected = gn.summarize(case.loss, partition, {n: part.double() for n, part in u.items()}, full_third=True)
    got = gn.summarize(lambda: case.criterion(model(x).double(), case.y), narrow, u, engine=engine, full_third=True)
    pairs = zip(got.tensors(), expected.tensors(), strict=True)
    return [float((a - b).abs().max() / b.abs().max()) for a, b in pairs]


@pytest.mark.parametrize("engine", ["tape", "nested"])
@pytest.mark.parametrize("scale", [1.0, 1 / 256, 1 / 8192, 32.0, 4096.0])
def test_in_half_precision_short_and_long_directions_keep_their_digits(scale, engine):
    # Some hundred roundings of 5e-4 each, of either sign; squares of the shortest one would be 0, whose error is 1, and those of
    # the longest are beyond 65504.
    assert max(in_half_precision(scale, engine)) < 0.05


def test_the_control_products_vanish_or_overflow_in_half_precision(monkeypatch):
    monkeypatch.setattr(gn.summary, "within_range", lambda u, partition: (u, None))
    assert max(in_half_precision(1 / 8192, "tape")) > 0.5
    assert not all(math.isfinite(error) for error in in_half_precision(4096.0, "tape"))


W = torch.tensor([0.4, -0.7, 1.2], dtype=torch.float64, requires_grad=True)
HERE, ROWS = W.detach().clone(), torch.tensor([0, 1, 2, 1])


def by_padding(w, held):
    table = torch.stack([w, w * w, w.sin()])
    rows = F.embedding(ROWS, table, padding_idx=None if held else 1)
    if held:
        rows = torch.where(ROWS[:, None] == 1, rows.detach(), rows)
    return (rows @ table.T).logsumexp(1).sum()


# A loss, and the same one with what leaves autograd computed before.
LEAVING = {
    "item": (lambda w: (w * w.norm().item()).exp().sum(), lambda w: (w * HERE.norm()).exp().sum()),
    "numpy": (
        lambda w: (w * torch.from_numpy(w.detach().numpy().copy())).exp().sum(),
        lambda w: (w * HERE).exp().sum(),
    ),
    "straight through": (
        lambda w: (w + (w.round() - w).detach()).exp().sum(),
        lambda w: (w + HERE.round() - HERE).exp().sum(),
    ),
    "padding_idx": (lambda w: by_padding(w, False), lambda w: by_padding(w, True)),
}


@pytest.mark.parametrize("engine", ["tape", "nested"])
@pytest.mark.parametrize("name", LEAVING)
def test_what_leaves_autograd_is_held(name, engine):
    loss, held = LEAVING[name]
    partition = gn.Partition.from_groups({"w": {"w": W}})
    u = {"w": torch.tensor([1.0, 0.5, -0.3], dtype=torch.float64)}
    got = gn.summarize(lambda: loss(W), partition, u, engine=engine, full_third=True)
    same(got, gn.summarize(lambda: held(W), partition, u, engine="nested", full_third=True))
    # The control: differences move it.
    moved = gn.summarize(lambda: loss(W), partition, u, engine="differences")
    assert (moved.hessian - got.hessian).abs() > 0.01 * got.hessian.abs()


def by_differences(third):
    summary = gn.Summary.from_tensors(gradient=torch.ones(3), hessian=torch.ones(3, 3), third_full=torch.ones(3, 3, 3))
    return dataclasses.replace(summary, engine="differences", errors={"hessian": 1e-3, "third": third})


def test_errors_grow_with_the_entries_that_are_merged_and_with_the_factors():
    # Errors of one sign, the worst case: the summary with the error in every entry, less the one without.
    one = by_differences(1e-2)
    worst = one.with_tensors([one.value, one.gradient, one.hessian + 1e-3, one.third + 1e-2, one.third_full + 1e-2])
    factors = torch.tensor([3.0, 0.5, -4.0])
    for change in (lambda s: s.coarsen([[0, 1, 2]]), lambda s: s.rescaled(factors), lambda s: s * -2.0):
        made, true = change(worst), change(one)
        for name in ("hessian", "third"):
            error = (getattr(made, name) - getattr(true, name)).abs().max()
            assert true.errors[name] == pytest.approx(float(error), rel=1e-9)


def test_there_is_a_factor_for_every_group():
    for factors in (torch.ones(2), torch.ones(3, 3), torch.tensor(1.0), torch.ones(1)):
        with pytest.raises(ValueError, match=r"expected factors of shape \(3,\), got"):
            by_differences(0.0).rescaled(factors)


def test_the_diagonal_of_a_full_third_derivative_is_its_own():
    summary = gn.Summary.from_tensors(gradient=[1.0], hessian=[[1.0]], third=[5.0], third_full=[[[2.0]]])
    assert summary.third.tolist() == [2.0]


def test_a_limit_of_memory_is_a_number():
    with pytest.raises(TypeError, match="expected max_memory in bytes, a number, got '1GB'; 1e9 is a gigabyte"):
        ask(max_memory="1GB")()
    assert torch.equal(ask(max_memory=np.int64(10**9))().gradient, ask()().gradient)


def test_a_summary_does_not_follow_the_numbers_it_was_made_of():
    g, array = torch.tensor([1.0, 2.0], dtype=torch.float64), np.array([1.0, 2.0])
    for numbers in (g, array):
        s = gn.Summary.from_tensors(numbers)
        numbers *= 0
        assert s.gradient.tolist() == [1.0, 2.0]


def test_merging_keeps_given_names_and_refuses_an_empty_group():
    s = gn.Summary.from_tensors([1.0, 4.0], [[1.0, 0.0], [0.0, 2.0]])
    assert s.coarsen({"x": [0], "y": [1]}).names == ("x", "y")
    with pytest.raises(ValueError, match="expected at least one group in each of the lists"):
        s.coarsen([[0], [1], []])


def test_factors_may_be_a_list_and_an_order_is_a_whole_number():
    s = gn.Summary.from_tensors([1.0, 4.0], [[1.0, 0.0], [0.0, 2.0]])
    assert s.rescaled([1.0, 2.0]).gradient.tolist() == [1.0, 8.0]
    with pytest.raises(ValueError, match="expected an order from 0 to 3, got 2"):
        s.taylor([1.0, 1.0], order=2.0)


def test_a_state_of_other_shapes_is_refused():
    state = gn.Summary.from_tensors([1.0, 4.0], [[1.0, 0.0], [0.0, 2.0]]).state_dict()
    state["gradient"] = torch.ones(3, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"expected hessian of shape \(3, 3\)"):
        gn.Summary.from_state_dict(state)
