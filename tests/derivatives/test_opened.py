"""Custom functions, opened: what has a forward pass of torch's operations is on the tape, whatever its backward can do.

Each backward here is a right first derivative and no more (once_differentiable). Oracles: the same function written without a custom
one, to 1e-9 of the largest entry (the same numbers in another order of summation), and differences of torch's own gradients,
which go through the custom backward and share nothing with what is tested.
"""

import threading

import pytest
import torch
import torch.nn.functional as F
from support.custom_functions import InNumpy, Once, Reversal, Sine, StraightThrough
from support.finite_differences import finite_differences
from torch import nn
from torch.autograd.function import _SingleLevelFunction, once_differentiable

import gnewton as gn
from gnewton.derivatives import opened
from gnewton.derivatives.differences import Gradients
from gnewton.derivatives.opened import functions_opened

pytestmark = pytest.mark.filterwarnings("ignore::gnewton.derivatives.record.IncompleteRecordWarning")
SIZES = [(2, 3), (5, 4), (1, 1)]


def sealed(forward, plain, factor=1.0, setup=False):
    """``apply`` of a function with this forward, whose backward is ``factor`` times the first derivative of ``plain``."""

    def backward(ctx, *g):
        with torch.enable_grad():
            x = [t.detach().requires_grad_() for t in ctx.saved_tensors]
            out = plain(*x)
            gradients = torch.autograd.grad(out, x, g)
        return tuple(factor * t for t in gradients)

    def keep(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    def run(ctx, *x):
        keep(ctx, x, None)
        return forward(*x)

    parts = {"forward": forward, "setup_context": keep} if setup else {"forward": run}
    parts["backward"] = once_differentiable(backward)
    made = type("Sealed", (torch.autograd.Function,), {n: staticmethod(f) for n, f in parts.items()})
    return lambda *args: made.apply(*args)


def shifted(x):
    return torch.cat([x[:1], x[:-1].sin()])


def shifted_in_data(x):
    y = x.clone()
    y.data[1:] = x.data[:-1].sin()
    return y


def without_gradients(x):
    with torch.no_grad():
        return x.sin() * x


def fixed_point(x):
    z = x
    for _ in range(8):
        z = z.cos() / 3 + x
    return z


def in_place(x):
    return x.clone().mul_(x).sin_()


# a forward pass, and the same without what stops gradients
KINDS = {
    "activation": (lambda x: x.sin(), torch.sin),
    "softmax": (lambda x: x.softmax(-1), lambda x: x.softmax(-1)),
    "norm": (lambda x: F.layer_norm(x, x.shape[-1:], eps=0.1), lambda x: F.layer_norm(x, x.shape[-1:], eps=0.1)),
    "two outputs": (lambda x: (x.sin(), x.cos()), lambda x: (x.sin(), x.cos())),
    "detached": (lambda x: x.detach().exp().detach(), torch.exp),
    "data": (lambda x: x.data.exp(), torch.exp),
    "written into data": (shifted_in_data, shifted),
    "no_grad": (without_gradients, lambda x: x.sin() * x),
    "in place": (in_place, lambda x: (x * x).sin()),
    "a solver": (fixed_point, fixed_point),
    "another inside": (lambda x: Once.apply(x).exp(), lambda x: x.sin().exp()),
}


def problem(function, size=(5, 4), dtype=torch.float64):
    torch.manual_seed(0)
    rows, width = size
    net = nn.Sequential(nn.Linear(3, width), nn.Linear(width, 2)).to(dtype)
    x = torch.linspace(-1, 1, rows * 3).reshape(rows, 3).cos().to(dtype)
    partition = gn.Partition.by_tensor(net)
    u = {n: torch.randn_like(p) for n, p in partition.parameters.items()}

    def loss():
        out = function(net[0](x))
        hidden = out if isinstance(out, torch.Tensor) else sum(out)
        return net[1](hidden).square().sum()

    return loss, partition, u


def assert_same(got, expected, relative=1e-9):
    for name in ("gradient", "hessian", "third"):
        ours, theirs = getattr(got, name), getattr(expected, name)
        assert (ours - theirs).abs().max() <= relative * theirs.abs().max(), name


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("setup", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_forward_pass_of_torchs_operations_is_on_the_tape(kind, setup, size):
    loss, partition, u = problem(sealed(*KINDS[kind], setup=setup), size)
    summary = gn.summarize(loss, partition, u)
    assert summary.engine == "tape"
    assert_same(summary, gn.summarize(*problem(KINDS[kind][1], size)))


@pytest.mark.parametrize("kind", KINDS)
def test_differences_of_torchs_gradients_agree(kind):
    loss, partition, u = problem(sealed(*KINDS[kind]))
    summary, finite = gn.summarize(loss, partition, u), finite_differences(loss, partition, u)
    for name in ("hessian", "third"):
        expected, got = getattr(finite, name), getattr(summary, name)
        assert (got - expected.value).abs().max() <= 10 * expected.error.max() + 1e-9 * expected.scale


@pytest.mark.parametrize("kind", KINDS)
def test_a_backward_off_by_a_part_in_ten_thousand_keeps_it_closed(kind):
    """The negative control: the derivatives of the forward pass are not those of the loss as its gradient says."""
    with pytest.raises(NotImplementedError, match="Sealed"):
        gn.summarize(*problem(sealed(*KINDS[kind], factor=1.0001)))


@pytest.mark.parametrize("function", [StraightThrough, Reversal, InNumpy])
@pytest.mark.parametrize("kind", ["activation", "two outputs"])
def test_one_that_cannot_be_opened_keeps_all_closed(function, kind):
    seal = sealed(*KINDS[kind])

    def both(x):
        out = seal(x)
        return function.apply(out if isinstance(out, torch.Tensor) else sum(out))

    with pytest.raises(NotImplementedError, match=f"{function.__name__}.*differences"):
        gn.summarize(*problem(both))


class Hidden(torch.autograd.Function):
    """x + x^2, whose square autograd does not see in the forward pass: at x = 0 the gradient shows nothing of it."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x + x.new_tensor((x * x).tolist())

    @staticmethod
    def backward(ctx, g):
        return g * (1 + 2 * ctx.saved_tensors[0])


def at_zero(function):
    bias = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    partition = gn.Partition.from_groups({"bias": {"bias": bias}})
    return (lambda: (function(bias) * torch.arange(1, 4)).sum()), partition, {"bias": torch.ones_like(bias)}


def test_a_share_that_is_zero_where_the_parameters_stand_shows_nearby():
    loss, partition, u = at_zero(lambda x: Hidden.apply(x))
    summary = gn.summarize(loss, partition, u)
    assert summary.engine == "nested"
    assert_same(summary, gn.summarize(*at_zero(lambda x: x + x * x)))
    # The control: at that point alone both gradients are the same.
    gradients = Gradients(loss, partition)
    here, *nearby = opened._steps(partition)
    assert opened._agree_at(gradients, here)
    assert [opened._agree_at(gradients, step) for step in nearby] == [False, False]


def read_after_a_write(x):
    y = x.clone()
    y.data[1:] = 0.5
    return y.sin()


def test_what_was_written_into_data_and_is_read_again_keeps_it_closed():
    # Opened, y is what it was before the write: another value.
    seal = sealed(read_after_a_write, lambda x: torch.cat([x[:1].sin(), 0 * x[1:]]))
    loss, partition, u = problem(seal)
    with pytest.raises(NotImplementedError, match="Sealed"):
        gn.summarize(loss, partition, u)


def test_float32():
    summary = gn.summarize(*problem(sealed(*KINDS["activation"]), dtype=torch.float32))
    assert summary.engine == "tape"
    # A few hundred roundings of 6e-8.
    assert_same(summary, gn.summarize(*problem(torch.sin)), 1e-4)


def test_outputs_without_a_derivative_stay_without():
    class Sorted(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            values, places = x.sort(0)
            ctx.mark_non_differentiable(order := x.sort(0)[0])
            ctx.save_for_backward(places)
            return values, order

        @staticmethod
        @once_differentiable
        def backward(ctx, g, _):
            return torch.zeros_like(g).scatter(0, ctx.saved_tensors[0], g)

    def function(x):
        values, order = Sorted.apply(x)
        return values.sin() * order

    summary = gn.summarize(*problem(function))
    assert summary.engine == "tape"
    assert_same(summary, gn.summarize(*problem(lambda x: x.sort(0)[0].sin() * x.sort(0)[0].detach())))


def test_random_numbers_buffers_parameters_and_gradients_are_left_as_they_were():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)).double()
    x = torch.randn(6, 3, dtype=torch.float64)
    partition = gn.Partition.by_tensor(net)
    before = {n: t.clone() for n, t in net.state_dict().items()}

    def outcome(function):
        torch.manual_seed(3)
        return gn.summarize(lambda: function(net(x)).square().sum(), partition, u), torch.rand(3)

    u = {n: torch.ones_like(p) for n, p in partition.parameters.items()}
    with pytest.warns(gn.loss.RandomLossWarning):
        (got, after), (expected, then) = map(outcome, (sealed(torch.sin, torch.sin), torch.sin))
    assert_same(got, expected)
    assert torch.equal(after, then)
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


def test_what_stays_closed_is_opened_in_vain_only_once():
    calls = []
    loss, partition, u = problem(lambda x: calls.append(1) or InNumpy.apply(x))
    counts = []
    for _ in range(3):
        calls.clear()
        with pytest.raises(NotImplementedError):
            gn.summarize(loss, partition, u)
        counts.append(len(calls))
    assert counts[0] > counts[1] == counts[2]


def test_an_optimizer_takes_the_same_steps():
    runs = []
    for function in (sealed(torch.sin, torch.sin), torch.sin):
        loss, partition, _ = problem(function)
        optimizer = gn.GroupedNewton(partition)
        runs.append(torch.stack([optimizer.step(loss).detach() for _ in range(4)]))
    # Roundings, four steps long.
    torch.testing.assert_close(*runs, rtol=1e-8, atol=1e-12)


def test_an_apply_that_was_bound_before():
    """From torch 2.14 on nobody sees its calls: then nested passes, which are proven."""
    bound = Sine.apply
    loss, partition, u = problem(bound)
    summary = gn.summarize(loss, partition, u)
    assert summary.engine == ("nested" if opened._PLACE is torch.autograd.Function else "tape")
    loss, partition, u = problem(torch.sin)
    assert_same(summary, gn.summarize(loss, partition, u))


def test_torch_is_as_it_was_and_other_threads_see_nothing():
    x = torch.tensor(0.5, requires_grad=True)
    names, places = [], (torch.autograd.Function, _SingleLevelFunction)
    before = [vars(place).get("apply") for place in places]

    def apply():
        y = Sine.apply(x)
        names.append(y.grad_fn.name())

    with functions_opened(), functions_opened():
        apply()
        other = threading.Thread(target=apply)
        other.start()
        other.join()
    apply()
    assert names == ["SinBackward0", "SineBackward", "SineBackward"]
    assert [vars(place).get("apply") for place in places] == before
    with pytest.raises(ValueError, match="inside"), functions_opened():
        raise ValueError("inside")
    assert [vars(place).get("apply") for place in places] == before
