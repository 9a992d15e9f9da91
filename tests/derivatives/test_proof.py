"""No exact summary without proof: a backward pass that is no derivative, or has none, is refused by name.

Each way to write a wrong backward stands beside a right one. The oracle of the right ones is the same loss in torch's
operations, to 1e-9 of its largest entry: the same products in another order.
"""

import contextlib
import copy
import re

import pytest
import torch
import torch.nn.functional as F
from support.custom_functions import (
    Ascent,
    InNumpy,
    NoGrad,
    Once,
    OnceInTheSecond,
    OnCtx,
    OneInAHundred,
    Reversal,
    Sine,
    SineByAnother,
    SineInNumpy,
    StraightThrough,
)
from torch import nn
from torch.utils.checkpoint import checkpoint

import gnewton as gn
from gnewton.derivatives import graph
from gnewton.derivatives.proof import check_symmetry
from gnewton.derivatives.record import IncompleteRecordWarning, record_in_mode
from gnewton.loss import differentiable_mode
from gnewton.summary import summarize_tape

pytestmark = pytest.mark.filterwarnings("ignore::gnewton.derivatives.record.IncompleteRecordWarning")


def fixed_point(a):
    """As a deep equilibrium model: z = cos(z) / 3 + a without a graph, and a solver in a hook for the backward pass."""
    with torch.no_grad():
        z = a.clone()
        for _ in range(60):
            z = z.cos() / 3 + a
    z = z.cos() / 3 + a
    if z.requires_grad:
        kept = z.detach()
        z.register_hook(lambda g: g / (1 + kept.sin() / 3))
    return z


def scaled_by_a_hook(a):
    out = a.sin()
    out.register_hook(lambda g: 2 * g)
    return out.sin()


def scaled_by_a_node_hook(a):
    out = a.sin()
    if out.grad_fn is not None:
        out.grad_fn.register_hook(lambda inward, outward: tuple(2 * g for g in inward))
    return out.sin()


def scaled_by_a_prehook(a):
    out = a.sin()
    if out.grad_fn is not None:
        out.grad_fn.register_prehook(lambda outward: tuple(2 * g for g in outward))
    return out.sin()


def watched(a):
    out = a.sin()
    if out.grad_fn is not None:
        out.register_hook(lambda g: None)
        out.grad_fn.register_hook(lambda inward, outward: None)
        out.grad_fn.register_prehook(lambda outward: None)
    return out


def detached_by_a_node_hook(a):
    out = a.sin()
    if out.grad_fn is not None:
        out.grad_fn.register_hook(lambda inward, outward: tuple(g.detach() for g in inward))
    return out


@torch.library.custom_op("gnewton_tests::sine", mutates_args=())
def sine_operator(a: torch.Tensor) -> torch.Tensor:
    return a.sin()


sine_operator.register_autograd(
    lambda ctx, g: g * ctx.slope,
    setup_context=lambda ctx, inputs, output: setattr(ctx, "slope", inputs[0].detach().cos()),
)


@torch.library.custom_op("gnewton_tests::right_sine", mutates_args=())
def right_sine_operator(a: torch.Tensor) -> torch.Tensor:
    return a.sin()


right_sine_operator.register_autograd(
    lambda ctx, g: g * ctx.saved_tensors[0].cos(),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[0]),
)

RIGHT = {
    "custom function": Sine.apply,
    "one inside another": SineByAnother.apply,
    "NumPy in the forward pass alone": SineInNumpy.apply,
    "hooks that look": watched,
    "custom operator": right_sine_operator,
}
# Refused by nested passes; those of the first half have a forward pass that can be opened.
WRONG = {
    "once_differentiable": (Once.apply, "Once"),
    "NumPy": (InNumpy.apply, "InNumpy"),
    "on ctx": (OnCtx.apply, "OnCtx"),
    "no_grad": (NoGrad.apply, "NoGrad"),
    "one in a hundred": (OneInAHundred.apply, "OneInAHundred"),
    "straight-through": (StraightThrough.apply, "StraightThrough"),
    "solved again": (Ascent.apply, "Ascent"),
    "solver in a hook": (fixed_point, "hook"),
    "scaled by a tensor hook": (scaled_by_a_hook, "hook"),
    "scaled by a node's hook": (scaled_by_a_node_hook, "hook"),
    "scaled by a node's prehook": (scaled_by_a_prehook, "hook"),
    "detached by a node's hook": (detached_by_a_node_hook, "hook"),
    "custom operator": (sine_operator, "gnewton_tests"),
}
OPENED = ("once_differentiable", "on ctx", "no_grad", "one in a hundred", "solved again")
REFUSED = [
    (name, engine) for name in WRONG for engine in ("auto", "nested") if name not in OPENED or engine == "nested"
]


def model(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(dtype)


def problem(function, dtype=torch.float64):
    net = model(dtype)
    x = torch.linspace(-1, 1, 18).reshape(6, 3).cos().to(dtype)
    partition = gn.Partition.by_tensor(net)
    g = torch.Generator().manual_seed(1)
    u = {n: torch.randn(p.shape, generator=g).to(dtype) for n, p in partition.parameters.items()}
    return (lambda: function(net(x)).square().sum()), partition, u


def assert_close(got, expected, relative=1e-9):
    scale = expected.hessian.abs().max().item()
    for name in ("gradient", "hessian", "third"):
        torch.testing.assert_close(getattr(got, name), getattr(expected, name), rtol=relative, atol=relative * scale)


@pytest.mark.parametrize("engine", ["auto", "nested"])
@pytest.mark.parametrize("name", RIGHT)
def test_a_right_backward_is_taken(name, engine):
    expected = gn.summarize(*problem(torch.sin))
    summary = gn.summarize(*problem(RIGHT[name]), engine=engine)
    assert_close(summary, expected)
    assert summary.exact


@pytest.mark.parametrize(("name", "engine"), REFUSED)
def test_a_wrong_backward_is_refused_by_name(name, engine):
    function, named = WRONG[name]
    loss, partition, u = problem(function)
    before = {n: p.detach().clone() for n, p in partition.parameters.items()}
    with pytest.raises(NotImplementedError, match=rf'{named}.*engine="differences"'):
        gn.summarize(loss, partition, u, engine=engine)
    assert all(torch.equal(p, before[n]) for n, p in partition.parameters.items())
    assert all(p.grad is None for p in partition.parameters.values())


@pytest.mark.parametrize("name", [n for n in WRONG if n not in ("once_differentiable", "one in a hundred")])
def test_a_wrong_backward_is_refused_in_float32(name):
    loss, partition, u = problem(WRONG[name][0], torch.float32)
    with pytest.raises(NotImplementedError, match=WRONG[name][1]):
        gn.summarize(loss, partition, u, order=2, engine="nested")


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_backward_is_taken_in_float32(name):
    summary = gn.summarize(*problem(RIGHT[name], torch.float32))
    # A few hundred float32 roundings of 6e-8.
    assert_close(summary, gn.summarize(*problem(torch.sin)), 1e-4)


def kinked(function, dtype, seed):
    """A function of the outputs of a network with kinks, which differences of gradients cross."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3)).to(dtype)
    x, y = torch.randn(16, 4).to(dtype), torch.randn(16, 3).to(dtype)
    partition = gn.Partition.by_layer(net)
    u = {n: torch.randn_like(p) for n, p in partition.parameters.items()}
    return (lambda: (function(net(x)) - y).square().mean()), partition, u


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(4))
def test_kinks_hide_no_lost_derivative(seed, dtype):
    for order in (2, 3):
        for name in ("on ctx", "NumPy", "no_grad"):
            with pytest.raises(NotImplementedError, match="off by"):
                gn.summarize(*kinked(WRONG[name][0], dtype, seed), order=order, engine="nested")
    with pytest.raises(NotImplementedError, match="third derivative"):
        gn.summarize(*kinked(OnceInTheSecond.apply, dtype, seed), engine="nested")


@pytest.mark.parametrize("seed", range(4))
def test_a_right_backward_behind_kinks_is_taken_or_cannot_be_checked(seed):
    """In float32 rounding hides the third derivative between kinks; in float64 all is settled."""
    assert gn.summarize(*kinked(SineInNumpy.apply, torch.float32, seed), order=2, engine="nested").exact
    assert gn.summarize(*kinked(SineInNumpy.apply, torch.float64, seed), engine="nested").exact
    with pytest.raises(NotImplementedError, match=r"third derivative cannot be checked.*model\.double"):
        gn.summarize(*kinked(SineInNumpy.apply, torch.float32, seed), engine="nested")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_third_derivative_that_is_zero_is_taken(dtype):
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, a):
            return 2 * a

        @staticmethod
        def backward(ctx, g):
            return 2 * g

    layer = nn.Linear(3, 2).to(dtype)
    x = torch.linspace(-1, 1, 18).reshape(6, 3).cos().to(dtype)
    summary = gn.summarize(
        lambda: Double.apply(layer(x)).square().sum(), gn.Partition.by_tensor(layer), engine="nested"
    )
    assert not summary.third.any()


def test_a_lost_third_derivative_is_refused_at_order_three_alone():
    loss, partition, u = problem(OnceInTheSecond.apply)
    expected = gn.summarize(*problem(torch.sin), order=2)
    torch.testing.assert_close(gn.summarize(loss, partition, u, order=2, engine="nested").hessian, expected.hessian)
    with pytest.raises(NotImplementedError, match="third derivative"):
        gn.summarize(loss, partition, u, order=3, engine="nested")


def test_a_hessian_that_is_not_symmetric_is_refused():
    """Gradient reversal between two parts of a network: its backward is the derivative of nothing."""
    net = model()
    x = torch.linspace(-1, 1, 18, dtype=torch.float64).reshape(6, 3)
    partition = gn.Partition.by_layer(net)
    u = {n: torch.ones_like(p) for n, p in partition.parameters.items()}
    with pytest.raises(NotImplementedError, match="Reversal"):
        gn.summarize(lambda: net[2](Reversal.apply(net[1](net[0](x)))).exp().sum(), partition, u)


def test_symmetry_is_checked_by_itself():
    partition = gn.Partition.by_layer(model())
    check_symmetry(torch.tensor([[2.0, 1.0], [1.0 + 1e-9, 3.0]], dtype=torch.float64), ["Reversal"], partition)
    with pytest.raises(NotImplementedError, match=r"asymmetric by 3\.3 % through Reversal"):
        check_symmetry(torch.tensor([[2.0, 1.0], [1.1, 3.0]], dtype=torch.float64), ["Reversal"], partition)


def test_no_symmetry_between_the_groups_hides_a_gap():
    """Along the sum of all groups cross-entropy is flat: H u = 0 with and without the share that is lost."""
    bias = nn.Parameter(torch.tensor([0.3, -0.2, 0.5, 0.1], dtype=torch.float64))
    partition = gn.Partition.from_groups(
        {str(i): {"bias": (bias, torch.arange(4) == i)} for i in range(4)},
    )
    u = {"bias": torch.ones(4, dtype=torch.float64)}
    right, wrong = (lambda f=f: -f(F.log_softmax(f(bias), 0))[1] for f in (Sine.apply, OnCtx.apply))
    flat = gn.summarize(lambda: -F.log_softmax(bias, 0)[1], partition, u)
    assert flat.hessian.sum().abs() < 1e-14
    assert_close(
        gn.summarize(right, partition, u), gn.summarize(lambda: -F.log_softmax(bias.sin(), 0)[1].sin(), partition, u)
    )
    with pytest.raises(NotImplementedError, match="OnCtx"):
        gn.summarize(wrong, partition, u, engine="nested")


def test_what_is_order_one_needs_no_proof():
    loss, partition, u = problem(Once.apply)
    expected = gn.summarize(*problem(torch.sin), order=1)
    torch.testing.assert_close(gn.summarize(loss, partition, u, order=1).gradient, expected.gradient)


def test_the_optimizer_refuses_too_and_takes_differences():
    loss, partition, _ = problem(InNumpy.apply)
    before = copy.deepcopy([p.detach() for p in partition.parameters.values()])
    optimizer = gn.GroupedNewton(partition)
    for _ in range(2):
        with pytest.raises(NotImplementedError, match="InNumpy"):
            optimizer.step(loss)
    assert all(torch.equal(p, q) for p, q in zip(partition.parameters.values(), before, strict=True))
    optimizer = gn.GroupedNewton(partition, engine="differences")
    losses = [float(optimizer.step(loss)) for _ in range(4)]
    assert losses[-1] < losses[0]


def test_the_stochastic_newton_refuses_too():
    loss, partition, _ = problem(OnCtx.apply)
    before = copy.deepcopy([p.detach() for p in partition.parameters.values()])
    with pytest.raises(NotImplementedError, match="OnCtx"):
        gn.StochasticNewton(partition).step(loss)
    assert all(torch.equal(p, q) for p, q in zip(partition.parameters.values(), before, strict=True))
    loss, partition, _ = problem(Sine.apply)
    expected, other, _ = problem(torch.sin)
    for _ in range(3):
        gn.StochasticNewton(partition).step(loss)
        gn.StochasticNewton(other).step(expected)
    for p, q in zip(partition.parameters.values(), other.parameters.values(), strict=True):
        torch.testing.assert_close(p, q)


def test_suggested_rates_refuse_too_and_take_differences():
    loss, partition, _ = problem(InNumpy.apply)
    with pytest.raises(NotImplementedError, match="InNumpy"):
        gn.suggest_learning_rates(loss, partition)
    rates = gn.suggest_learning_rates(loss, partition, engine="differences").learning_rates
    expected = gn.suggest_learning_rates(*problem(torch.sin)[:2]).learning_rates
    torch.testing.assert_close(rates, expected, rtol=1e-5, atol=1e-7)


def test_the_proof_costs_a_fixed_number_of_evaluations():
    evaluations = 0

    def counted(a):
        nonlocal evaluations
        evaluations += 1
        return Sine.apply(a)

    loss, partition, u = problem(counted)
    gn.summarize(loss, partition, u, engine="nested")
    # One of the summary; in the proof one for the products, one at theta, and four around it.
    assert evaluations == 7


def test_torchs_own_nodes_need_no_proof():
    loss, _, _ = problem(lambda a: F.layer_norm(a, (2,)).cumsum(0).clamp(-1, 1).sort(0)[0][:, [0, 1, 1]].exp())
    assert graph.unproven(graph.nodes(loss())) == []
    value = checkpoint(model(), torch.ones(2, 3, dtype=torch.float64), use_reentrant=False).sum()
    assert graph.unproven(graph.nodes(value)) == []
    assert graph.unproven(graph.nodes(Sine.apply(torch.ones(2, requires_grad=True)).sum())) == ["Sine"]


COPIES = {
    "alias_copy": (),
    "as_strided_copy": ((2, 2), (1, 2)),
    "diagonal_copy": (),
    "expand_copy": ((2, 3, 3),),
    "permute_copy": ((1, 0),),
    "select_copy": (0, 1),
    "slice_copy": (0, 1),
    "split_copy": (2,),
    "split_with_sizes_copy": ((1, 2),),
    "squeeze_copy": (),
    "t_copy": (),
    "transpose_copy": (0, 1),
    "unbind_copy": (),
    "unfold_copy": (0, 2, 1),
    "unsqueeze_copy": (0,),
    "view_copy": ((9,),),
}


@pytest.mark.parametrize("name", COPIES)
def test_copies_of_views_are_torchs_own(name):
    """Their nodes have names of their own, DiagonalBackward0_copy for one."""
    weight = torch.randn(3, 3, dtype=torch.float64).requires_grad_()
    result = getattr(torch, name)(weight.sin(), *COPIES[name])
    value = sum(r.cos().sum() for r in (result if isinstance(result, tuple | list) else [result]))
    assert graph.unproven(graph.nodes(value)) == []


def test_a_function_of_torch_with_a_backward_that_loses_its_share_is_refused():
    """torch 2.13's chunked linear cross-entropy computes its gradients in the forward pass."""
    if not hasattr(nn, "LinearCrossEntropyOptions"):
        pytest.skip("not in this torch")
    options = nn.LinearCrossEntropyOptions(allow_retain_graph=True, batch_chunk_size=2)
    net, y = nn.Linear(3, 4).double(), torch.tensor([0, 1, 2, 3, 1])
    x = torch.linspace(-1, 1, 15, dtype=torch.float64).reshape(5, 3).sin()
    partition = gn.Partition.by_tensor(net)
    u = {
        n: torch.linspace(-1, 2, p.numel(), dtype=p.dtype).reshape(p.shape).cos()
        for n, p in partition.parameters.items()
    }

    def loss():
        return F.linear_cross_entropy(x, net.weight, y, options=options)

    with pytest.raises((NotImplementedError, ValueError), match="linear_cross_entropy"):
        gn.summarize(loss, partition, u)


# -- torch's own backward passes that are no derivatives ---------------------------------------------------------------


def observed(a):
    """As a fused observer in training: the range is kept, the scale and the zero point follow from it."""
    switches = [torch.ones(1, dtype=torch.long)] * 2
    state = [torch.tensor([-3.0]), torch.tensor([3.0]), torch.ones(1), torch.zeros(1, dtype=torch.int32)]
    return torch.fused_moving_avg_obs_fake_quant(a, *switches, *state, 0.01, -128, 127, -1)


CHANNELS = torch.tensor([0.1, 0.2])
NO_DERIVATIVES = {
    "per tensor": lambda a: torch.fake_quantize_per_tensor_affine(a, 0.1, 0, -128, 127),
    "per tensor, by tensors": lambda a: torch.fake_quantize_per_tensor_affine(
        a, CHANNELS[:1], torch.zeros(1, dtype=torch.int32), -128, 127
    ),
    "per channel": lambda a: torch.fake_quantize_per_channel_affine(
        a, CHANNELS, torch.zeros(2, dtype=torch.int32), 1, -128, 127
    ),
    "learnable": lambda a: torch._fake_quantize_learnable_per_tensor_affine(
        a, CHANNELS[:1], torch.zeros(1), -128, 127, 1.0
    ),
    "learnable per channel": lambda a: torch._fake_quantize_learnable_per_channel_affine(
        a, CHANNELS, torch.zeros(2), 1, -128, 127, 1.0
    ),
    "observed": observed,
}


@pytest.mark.parametrize("engine", ["auto", "nested"])
@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("name", NO_DERIVATIVES)
def test_fake_quantization_is_refused(name, order, engine):
    """The loss is a staircase, and its gradient that of a straight-through estimator."""
    loss, partition, u = problem(NO_DERIVATIVES[name], torch.float32)
    with pytest.raises(NotImplementedError, match=r'(FakeQuant|ObsFq).*derivative of nothing.*engine="differences"'):
        gn.summarize(loss, partition, u, order=order, engine=engine)
    # The gradient alone is torch's, and goes on.
    gn.direction.gradient(loss, partition)
    gn.summarize(loss, partition, u, order=order, engine="differences")
    with pytest.raises(NotImplementedError, match="derivative of nothing"):
        gn.StochasticNewton(partition).step(loss)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_a_model_that_is_prepared_for_quantization_is_refused():
    quantization = pytest.importorskip("torch.ao.quantization")
    net = model(torch.float32).train()
    net.qconfig = quantization.get_default_qat_qconfig("fbgemm")
    net = quantization.prepare_qat(net)
    x = torch.linspace(-1, 1, 18).reshape(6, 3).cos()
    net(x)
    with pytest.raises(NotImplementedError, match="fake quantization"):
        gn.summarize(lambda: net(x).square().sum(), gn.Partition.by_tensor(net))


def test_what_quantizes_beside_the_parameters_is_taken():
    x = torch.fake_quantize_per_tensor_affine(torch.ones(6, 3).requires_grad_(), 0.1, 0, -128, 127)
    net = model(torch.float32)
    assert gn.summarize(lambda: net(x).square().sum(), gn.Partition.by_tensor(net)).exact


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
@pytest.mark.parametrize("engine", ["auto", "nested"])
def test_an_embedding_scaled_by_frequency_is_refused(kind, scaled, engine):
    table = kind(4, 3, scale_grad_by_freq=scaled, dtype=torch.float64)
    rows = torch.tensor([[0, 0, 1]])
    partition, u = gn.Partition.by_tensor(table), {"weight": torch.ones(4, 3, dtype=torch.float64)}

    def loss():
        return table(rows).exp().sum()

    if not scaled:
        expected = kind(4, 3, _weight=table.weight.detach())(rows).exp().sum()
        assert float(gn.summarize(loss, partition, u, engine="auto").hessian) == pytest.approx(float(expected.detach()))
        return
    gn.direction.gradient(loss, partition)
    with pytest.raises(NotImplementedError, match=r"Embedding.*derivative of nothing; leave scale_grad_by_freq out"):
        gn.summarize(loss, partition, u, engine=engine)


@pytest.mark.parametrize("engine", ["auto", "nested", "differences"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_as_strided_scatter_is_refused_where_its_gradient_is_wrong(engine, order):
    a = nn.Parameter(torch.tensor([0.5, 1.0, -0.3], dtype=torch.float64))
    partition, u = gn.Partition.from_groups({"a": {"a": a}}), {"a": torch.ones(3, dtype=torch.float64)}
    fixed = torch.zeros(3, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"as_strided_scatter.*slice_scatter"):
        gn.summarize(
            lambda: a.sin().as_strided_scatter(fixed[:1], (1,), (1,), 1).exp().sum(),
            partition,
            u,
            order=order,
            engine=engine,
        )
    # What is written into a constant has the right gradient.
    summary = gn.summarize(
        lambda: fixed.as_strided_scatter(a.sin(), (3,), (1,)).exp().sum(), partition, u, engine=engine
    )
    assert float(summary.gradient) == pytest.approx((a.sin().exp() * a.cos()).sum().item())


def test_the_control_the_gradient_of_as_strided_scatter_is_wrong():
    a = torch.tensor([0.5, 1.0, -0.3], dtype=torch.float64, requires_grad=True)
    a.sin().as_strided_scatter(torch.zeros(1, dtype=torch.float64), (1,), (1,), 1).exp().sum().backward()
    assert not torch.allclose(a.grad, (a.sin().exp() * a.cos() * torch.tensor([1, 0, 1])).detach())


# -- norm kernels by another name -------------------------------------------------------------------------------------

WEIGHT = torch.linspace(0.5, 1.5, 4, dtype=torch.float64)
CALLS = {
    "torch.layer_norm": (lambda z: torch.layer_norm(z, [4], WEIGHT), lambda z: F.layer_norm(z, (4,), WEIGHT)),
    "aten.layer_norm": (lambda z: torch.ops.aten.layer_norm(z, [4], WEIGHT), lambda z: F.layer_norm(z, (4,), WEIGHT)),
    "aten.layer_norm.default": (
        lambda z: torch.ops.aten.layer_norm.default(z, [4], WEIGHT),
        lambda z: F.layer_norm(z, (4,), WEIGHT),
    ),
    "native_layer_norm": (
        lambda z: torch.native_layer_norm(z, [4], WEIGHT, None, 1e-5)[0],
        lambda z: F.layer_norm(z, (4,), WEIGHT),
    ),
    "aten.native_layer_norm": (
        lambda z: torch.ops.aten.native_layer_norm.default(z, [4], WEIGHT, None, 1e-5)[0],
        lambda z: F.layer_norm(z, (4,), WEIGHT),
    ),
    "torch.batch_norm": (
        lambda z: torch.batch_norm(z, WEIGHT, None, None, None, True, 0.1, 1e-5, False),
        lambda z: F.batch_norm(z, None, None, WEIGHT, None, True),
    ),
    "native_batch_norm": (
        lambda z: torch.native_batch_norm(z, WEIGHT, None, None, None, True, 0.1, 1e-5)[0],
        lambda z: F.batch_norm(z, None, None, WEIGHT, None, True),
    ),
    "_native_batch_norm_legit": (
        lambda z: torch._native_batch_norm_legit(z, WEIGHT, None, True, 0.1, 1e-5)[0],
        lambda z: F.batch_norm(z, None, None, WEIGHT, None, True),
    ),
    "batch norm in evaluation": (
        lambda z: torch.native_batch_norm(z, WEIGHT, None, 0 * WEIGHT, WEIGHT, False, 0.1, 1e-5)[0],
        lambda z: F.batch_norm(z, 0 * WEIGHT, WEIGHT, WEIGHT),
    ),
    "torch.instance_norm": (
        lambda z: torch.instance_norm(z.view(5, 2, 2), None, None, None, None, True, 0.1, 1e-2, False),
        lambda z: F.instance_norm(z.view(5, 2, 2), eps=1e-2),
    ),
    "aten.instance_norm": (
        lambda z: torch.ops.aten.instance_norm(z.view(5, 2, 2), None, None, None, None, True, 0.1, 1e-2, False),
        lambda z: F.instance_norm(z.view(5, 2, 2), eps=1e-2),
    ),
    "torch.group_norm": (lambda z: torch.group_norm(z, 2, WEIGHT), lambda z: F.group_norm(z, 2, WEIGHT)),
    "native_group_norm": (
        lambda z: torch.native_group_norm(z, WEIGHT, None, 5, 4, 1, 2, 1e-5)[0],
        lambda z: F.group_norm(z, 2, WEIGHT),
    ),
    "aten.rms_norm": (lambda z: torch.ops.aten.rms_norm(z, [4], WEIGHT), lambda z: F.rms_norm(z, (4,), WEIGHT)),
    "aten._weight_norm": (
        lambda z: torch.ops.aten._weight_norm(z, WEIGHT[None], 1),
        lambda z: z * WEIGHT / z.norm(dim=0),
    ),
    "_weight_norm_interface": (
        lambda z: torch._weight_norm_interface(z, WEIGHT[None].clone(), 1)[0],
        lambda z: z * WEIGHT / z.norm(dim=0),
    ),
}


def norm_problem(call):
    torch.manual_seed(0)
    net = nn.Linear(3, 4).double()
    x = torch.linspace(-1, 2, 15, dtype=torch.float64).reshape(5, 3).sin()
    partition = gn.Partition.by_tensor(net)
    u = {n: torch.linspace(-1, 1, p.numel(), dtype=p.dtype).reshape(p.shape) for n, p in partition.parameters.items()}
    return (lambda: call(net(x)).exp().sum()), partition, u


@pytest.mark.parametrize("name", CALLS)
def test_a_norm_by_another_name_is_right_or_refused(name):
    call, written = CALLS[name]
    expected = gn.summarize(*norm_problem(written))
    for engine in ("auto", "nested"):
        for order in (2, 3):
            summary = error = None
            try:
                summary = gn.summarize(*norm_problem(call), order=order, engine=engine)
            except NotImplementedError as raised:
                error = str(raised)
            if summary is None:
                assert ("Norm" if order == 3 else "WeightNorm") in error
                continue
            torch.testing.assert_close(summary.hessian, expected.hessian, rtol=1e-9, atol=1e-9)
            if order == 3:
                torch.testing.assert_close(summary.third, expected.third, rtol=1e-9, atol=1e-9)


# -- determinants of matrices that are all but singular -----------------------------------------------------------------


def determinant(smallest, function):
    """det A along a direction, A (3, 3) with singular values 1, 1/2 and the smallest one."""
    torch.manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0] for _ in range(2))
    spread = torch.diag(torch.tensor([1.0, 0.5, smallest], dtype=torch.float64))
    matrix = nn.Parameter(left @ spread @ right)
    partition = gn.Partition.from_groups({"matrix": {"matrix": matrix}})
    return (lambda: function(matrix)), partition, {"matrix": torch.randn(3, 3, dtype=torch.float64)}


def by_products(a):
    return torch.linalg.cross(a[0], a[1]) @ a[2]


@pytest.mark.parametrize("engine", ["auto", "nested"])
@pytest.mark.parametrize(("smallest", "order"), [(s, o) for s in (0.1, 1e-3, 1e-6, 1e-11, 0.0) for o in (1, 2, 3)])
def test_a_determinant_is_right_or_refused(smallest, order, engine):
    refused = {2: smallest < 1e-9, 3: smallest < 1e-5}.get(order, False)
    expected = gn.summarize(*determinant(smallest, by_products), order=order)
    if refused:
        with pytest.raises(NotImplementedError, match=r"LinalgDet.*products of its entries.*differences"):
            gn.summarize(*determinant(smallest, torch.linalg.det), order=order, engine=engine)
        return
    summary = gn.summarize(*determinant(smallest, torch.linalg.det), order=order, engine=engine)
    for ours, theirs in zip(summary.tensors(), expected.tensors(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_the_optimizer_does_not_take_from_its_tape_what_is_refused():
    loss, partition, u = determinant(1e-7, torch.linalg.det)
    with differentiable_mode(partition, restore_buffers=False):
        tape = record_in_mode(loss, partition)
    assert summarize_tape(tape, partition, u, 2) is not None
    assert summarize_tape(tape, partition, u, 3) is None


def test_the_control_the_third_derivative_of_a_determinant_is_lost():
    from gnewton.derivatives import nested

    loss, partition, u = determinant(1e-9, torch.linalg.det)
    expected = gn.summarize(*determinant(1e-9, by_products)).third
    assert not torch.allclose(nested.summary(loss(), partition, u)[2], expected, rtol=1e-2)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("norm", [nn.LayerNorm(4), nn.BatchNorm1d(4), nn.GroupNorm(2, 4), nn.RMSNorm(4)])
@pytest.mark.parametrize("how", ["exported", "scripted", "traced"])
def test_an_exported_scripted_or_traced_norm_is_right_or_refused(norm, how):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), norm, nn.Tanh()).double()
    x = torch.linspace(-1, 2, 18, dtype=torch.float64).reshape(6, 3).sin()
    other = {
        "exported": lambda: torch.export.export(net, (x,)).module(),
        "scripted": lambda: torch.jit.script(net),
        "traced": lambda: torch.jit.trace(net, x, check_trace=False),
    }[how]()
    results = []
    for call in (net, other):
        partition = gn.Partition.by_tensor(call)
        u = {n: torch.ones_like(p) / (1 + i) for i, (n, p) in enumerate(partition.parameters.items())}
        # Traced modules keep the parameters of the module, under other names of their own.
        with contextlib.suppress(NotImplementedError):
            results.append(gn.summarize(lambda call=call: call(x).exp().sum(), partition, u).third)
        torch.testing.assert_close(
            gn.summarize(lambda call=call: call(x).exp().sum(), partition, u, order=2).value,
            net(x).exp().sum().detach(),
        )
    assert all(torch.allclose(r, results[0], rtol=1e-9, atol=1e-9) for r in results)


def test_the_guard_is_needed():
    """The control: without it torch's kernel gives another third derivative."""
    loss, partition, u = norm_problem(CALLS["native_layer_norm"][0])
    from gnewton.derivatives import nested

    wrong = nested.summary(loss(), partition, u)[2]
    expected = gn.summarize(*norm_problem(CALLS["native_layer_norm"][1])).third
    assert not torch.allclose(wrong, expected, rtol=1e-2)


def test_the_fallback_still_warns_once():
    loss, partition, u = problem(SineInNumpy.apply)
    with pytest.warns(IncompleteRecordWarning, match="SineInNumpy"):
        gn.summarize(loss, partition, u)


# -- sparse and nested layouts -------------------------------------------------------------------------------------------

INDICES = torch.tensor([[0, 0, 1, 1], [0, 1, 0, 1]])
ROWS, COLUMNS = torch.tensor([0, 2, 4]), torch.tensor([0, 1, 0, 1])
ONES = torch.ones(2, 2, dtype=torch.float64)
# A 2 x 2 matrix of the parameters a, by row, in every layout.
MADE = {
    "coo": lambda a: torch.sparse_coo_tensor(INDICES, a.flatten(), (2, 2)),
    "csr": lambda a: torch.sparse_csr_tensor(ROWS, COLUMNS, a.flatten(), (2, 2)),
    "csc": lambda a: torch.sparse_csc_tensor(ROWS, COLUMNS, a.T.flatten(), (2, 2)),
    "bsr": lambda a: torch.sparse_bsr_tensor(torch.tensor([0, 1]), torch.tensor([0]), a[None], (2, 2)),
    "bsc": lambda a: torch.sparse_bsc_tensor(torch.tensor([0, 1]), torch.tensor([0]), a[None], (2, 2)),
    "to_sparse": lambda a: a.to_sparse(),
    "to_sparse_csr": lambda a: a.to_sparse_csr(),
    "to_sparse_csc": lambda a: a.to_sparse_csc(),
    "to_sparse_bsr": lambda a: a.to_sparse_bsr((1, 1)),
    "sparse_mask": lambda a: a.sparse_mask(ONES.to_sparse()),
    "sampled_addmm": lambda a: torch.sparse.sampled_addmm(ONES.to_sparse_csr(), a, torch.eye(2).to(a), beta=0.0),
    "product with a constant": lambda a: ONES.to_sparse() * a,
    "csr product with a number": lambda a: ONES.to_sparse_csr() * a[0, 0],
    "nested": lambda a: torch.nested.as_nested_tensor([a[0], a[1]]),
    "jagged": lambda a: torch.nested.as_nested_tensor([a[0], a[1]], layout=torch.jagged),
}
# And what a loss may do with it, beside the same of a dense matrix.
READ = {
    "dense": (lambda m: m.to_dense(), lambda m: m),
    "times": (lambda m: m @ ONES.cumsum(0), lambda m: m @ ONES.cumsum(0)),
    "times itself": (lambda m: m @ m.to_dense(), lambda m: m @ m),
    "mm": (lambda m: torch.sparse.mm(m, ONES.cumsum(0)), lambda m: m @ ONES.cumsum(0)),
    "values": (lambda m: m.coalesce().values() if m.layout == torch.sparse_coo else m.values(), torch.flatten),
    "sum": (lambda m: torch.sparse.sum(m, 1).to_dense(), lambda m: m.sum(1)),
    "softmax": (lambda m: torch.sparse.softmax(m, 1).to_dense(), lambda m: m.softmax(1)),
    "squared": (lambda m: (m * m).to_dense(), torch.square),
    "padded": (lambda m: torch.nested.to_padded_tensor(m, 0.0), lambda m: m),
}
LAYOUTS = pytest.mark.filterwarnings("ignore:Sparse:UserWarning", "ignore:The PyTorch API of nested:UserWarning")
WEIGHTS = torch.arange(1, 5, dtype=torch.float64).cos()


def layout_problem(made, read):
    """The loss, and what three derivatives of its dense twin are: by torch.func, along both rows of the parameter."""
    a = nn.Parameter(torch.tensor([[0.5, -1.0], [0.3, 0.7]], dtype=torch.float64))
    u = torch.tensor([[0.3, 0.7], [-0.4, 0.2]], dtype=torch.float64)
    entries = torch.tensor([[True, True], [False, False]])
    partition = gn.Partition.from_groups({"first": {"a": (a, entries)}, "second": {"a": (a, ~entries)}})

    def of(entries):
        return (entries.flatten() * WEIGHTS[: entries.numel()]).exp().sum()

    def twin(t):
        moved = a.detach() + t[:, None] * u
        dense = moved[0, 0] * ONES if "number" in made else moved
        return of(READ[read][1](dense))

    zero = torch.zeros(2, dtype=torch.float64)
    hessian = torch.func.hessian(twin)
    expected = twin(zero), hessian(zero), torch.func.jacfwd(hessian)(zero).diagonal().diagonal()
    return (lambda: of(READ[read][0](MADE[made](a)))), partition, {"a": u}, expected


def answer(made, read, engine):
    """Whether a summary is right; None where it is refused, or where torch has no such loss or no gradient of it."""
    loss, partition, u, expected = layout_problem(made, read)
    try:
        gn.direction.gradient(loss, partition)
    except (RuntimeError, ValueError, TypeError, AttributeError):
        return None
    try:
        summary = gn.summarize(loss, partition, u, engine=engine)
    except RuntimeError as error:
        # By name, or by torch itself, which has no second derivative; a crash of ours is neither.
        return None if re.search("expected a loss|layout|Sparse|sparse", str(error)) else False
    pairs = zip((summary.value, summary.hessian, summary.third), expected, strict=True)
    return all(torch.allclose(got, wanted, rtol=1e-9, atol=1e-9) for got, wanted in pairs)


@LAYOUTS
@pytest.mark.parametrize("engine", ["auto", "nested"])
@pytest.mark.parametrize("made", MADE)
def test_a_parameter_in_another_layout_is_right_or_refused(made, engine):
    assert False not in {answer(made, read, engine) for read in READ}


@LAYOUTS
@pytest.mark.parametrize("engine", ["auto", "nested"])
def test_what_torch_differentiates_in_another_layout_is_taken(engine):
    assert answer("to_sparse", "times", engine)
    assert answer("to_sparse", "values", engine)
    assert answer("nested", "padded", engine)


@LAYOUTS
@pytest.mark.parametrize("made", ["coo", "csr"])
def test_values_that_torch_stops_at_are_refused_by_name_and_the_sentence_says_what_to_write(made):
    loss, partition, u, _ = layout_problem(made, "dense")
    with pytest.raises(NotImplementedError, match=r'through .*Sparse.*index_add.*engine="differences"'):
        gn.summarize(loss, partition, u)


def test_the_sentence_is_right():
    _, partition, u, expected = layout_problem("coo", "mm")
    a, x = partition.parameters["a"], ONES.cumsum(0)
    rows, columns = INDICES

    def written():
        product = torch.zeros(2, 2, dtype=torch.float64).index_add(0, rows, a.flatten()[:, None] * x[columns])
        return (product.flatten() * WEIGHTS).exp().sum()

    summary = gn.summarize(written, partition, u)
    assert summary.engine == "tape"
    torch.testing.assert_close(summary.hessian, expected[1], rtol=1e-12, atol=1e-12)


@LAYOUTS
def test_the_control_torch_stops_at_the_values_of_a_sparse_matrix():
    from gnewton.derivatives import nested

    loss, partition, u, expected = layout_problem("coo", "dense")
    assert not torch.allclose(nested.summary(loss(), partition, u)[1], expected[1], rtol=0.1)
