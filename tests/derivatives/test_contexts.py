"""The tape where torch computes twice, masks or breaks: checkpoints, singularities, kinks, and the context of the recording.

Oracles: the same block without a checkpoint; nested passes; central differences of gradients.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import gnewton as gn
from gnewton.derivatives.record import record
from gnewton.summary import summarize_tape

pytestmark = pytest.mark.filterwarnings("ignore::gnewton.derivatives.record.IncompleteRecordWarning")
DTYPE = torch.float64
ORDERS = ("gradient", "hessian", "third")


def assert_same(got, expected, relative=1e-9):
    for name in ORDERS:
        if getattr(expected, name) is not None:
            scale = getattr(expected, name).abs().max().item()
            torch.testing.assert_close(
                getattr(got, name), getattr(expected, name), rtol=relative, atol=relative * scale
            )


# -- checkpoints -------------------------------------------------------------------------------------------------------

ROWS = torch.linspace(-1, 1, 20, dtype=DTYPE).reshape(5, 4).sin()
IMAGE = torch.linspace(-1, 1, 24, dtype=DTYPE).reshape(2, 4, 3).cos()
SEQUENCE = torch.linspace(-1, 1, 32, dtype=DTYPE).reshape(2, 4, 4).cos()
WORDS = torch.tensor([[0, 1], [2, 3]])
BLOCKS = {
    "layer norm": (lambda: nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), ROWS),
    "RMS norm": (lambda: nn.Sequential(nn.Linear(4, 4), nn.RMSNorm(4)), ROWS),
    "batch norm": (lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), ROWS),
    "group norm": (lambda: nn.Sequential(nn.Conv1d(4, 4, 1), nn.GroupNorm(2, 4)), IMAGE),
    "instance norm": (lambda: nn.Sequential(nn.Conv1d(4, 4, 1), nn.InstanceNorm1d(4, affine=True)), IMAGE),
    "weight norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), ROWS),
    "padded embedding": (lambda: nn.Sequential(nn.Embedding(5, 4, padding_idx=0), nn.Tanh(), nn.Linear(4, 2)), WORDS),
    "encoder layer": (lambda: nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True), SEQUENCE),
    "max pooling": (lambda: nn.Sequential(nn.Conv1d(4, 4, 1), nn.MaxPool1d(2)), IMAGE),
    "PReLU": (lambda: nn.Sequential(nn.Linear(4, 4), nn.PReLU()), ROWS),
    "GRU": (lambda: nn.GRU(4, 3, batch_first=True), SEQUENCE),
    "dropout": (lambda: nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.4), nn.Linear(4, 2)), ROWS),
    "dropout in place": (lambda: nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.4, inplace=True), nn.Linear(4, 2)), ROWS),
    "dropout of channels": (lambda: nn.Sequential(nn.Conv1d(4, 4, 1), nn.Dropout1d(0.4)), IMAGE),
}


def first(out):
    return out[0] if isinstance(out, tuple) else out


@pytest.mark.filterwarnings("ignore::gnewton.loss.RandomLossWarning")
@pytest.mark.parametrize("engine", ["tape", "nested", "auto"])
@pytest.mark.parametrize("name", BLOCKS)
def test_a_checkpoint_changes_nothing(name, engine):
    make, x = BLOCKS[name]
    torch.manual_seed(0)
    block = make().double()
    partition = gn.Partition.by_tensor(block)
    u = {
        n: torch.linspace(-1, 1, p.numel(), dtype=DTYPE).reshape(p.shape).cos() for n, p in partition.parameters.items()
    }

    def plain():
        return first(block(x)).sin().square().sum()

    def lean():
        return first(checkpoint(block, x, use_reentrant=False)).sin().square().sum()

    summaries = []
    for loss in (plain, lean):
        torch.manual_seed(1)
        summaries.append(gn.summarize(loss, partition, u, engine=engine))
    assert_same(*summaries)


def test_the_optimizer_takes_a_checkpoint():
    torch.manual_seed(0)
    block = BLOCKS["encoder layer"][0]().double()
    optimizer = gn.GroupedNewton(gn.Partition.by_layer(block))
    losses = [
        float(optimizer.step(lambda: checkpoint(block, SEQUENCE, use_reentrant=False).sin().square().mean()))
        for _ in range(4)
    ]
    assert losses[-1] < losses[0]


# -- the context of the recording --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", ["none", "float", "boolean", "causal"])
def test_a_tape_is_read_after_its_context_was_left(mask):
    torch.manual_seed(0)
    layer = nn.Linear(4, 12, dtype=DTYPE)
    partition = gn.Partition.by_tensor(layer)
    masks = {"float": torch.zeros(4, 4, dtype=DTYPE).triu(1) - 1, "boolean": torch.ones(4, 4, dtype=torch.bool).tril()}

    def loss():
        q, k, v = layer(SEQUENCE).chunk(3, -1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=masks.get(mask), is_causal=mask == "causal")
        return out.square().sum()

    u = {n: torch.ones_like(p) for n, p in partition.parameters.items()}
    tape = record(loss, partition)
    assert_same(summarize_tape(tape, partition, u, 3), gn.summarize(loss, partition, u, engine="nested"))


# -- singularities that torch masks ------------------------------------------------------------------------------------

POWER = torch.tensor([2.0, 3.0, 1.0, 0.0], dtype=DTYPE)
MASKED = {
    "std": lambda h: h.std(0),
    "var": lambda h: h.var(0),
    "std_mean": lambda h: torch.std_mean(h, 0)[0],
    "norm": lambda h: h.norm(dim=0),
    "norm, p=3": lambda h: h.norm(p=3, dim=0),
    "norm, p=1": lambda h: h.norm(p=1, dim=0),
    "norm, p=inf": lambda h: h.norm(p=float("inf"), dim=0),
    "vector_norm": lambda h: torch.linalg.vector_norm(h, dim=0),
    "tensor exponents": lambda h: h**POWER,
    "exponent 3": lambda h: h**3,
    "cosine similarity": lambda h: F.cosine_similarity(h, h.flip(0), dim=0),
    "normalize": lambda h: F.normalize(h, dim=0),
    "pairwise distance": lambda h: F.pairwise_distance(h, h.detach()),
    "product": lambda h: h.prod(0),
    "cumulative product": lambda h: h.cumprod(0),
    "xlogy": lambda h: torch.xlogy(h, h.detach() + 1),
    "masked": lambda h: torch.where(h > 0, h, 1.0).log() * (h > 0),
    "hypot": lambda h: torch.hypot(h, torch.ones_like(h)),
}


@pytest.mark.parametrize("name", MASKED)
def test_what_is_finite_for_autograd_is_finite_here(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU()).double()
    with torch.no_grad():
        model[0].bias[1] = -100.0  # a dead channel
    x = torch.randn(8, 3, dtype=DTYPE)
    partition = gn.Partition.by_tensor(model)
    u = {n: torch.randn_like(p) for n, p in partition.parameters.items()}

    def loss():
        return MASKED[name](model(x)).sin().sum()

    exact = gn.summarize(loss, partition, u, engine="nested")
    for engine in ("tape", "auto"):
        summary = gn.summarize(loss, partition, u, engine=engine)
        for order in ORDERS:
            expected = getattr(exact, order)
            assert torch.isfinite(getattr(summary, order)).all() or not torch.isfinite(expected).all()
            torch.testing.assert_close(getattr(summary, order), expected, rtol=1e-9, atol=1e-9, equal_nan=True)


# -- kinks ---------------------------------------------------------------------------------------------------------------

KINKS = torch.tensor([0.0, -0.0, 1.0, -1.0, 3.0, -3.0, 6.0, 0.5, -0.5, 20.0], dtype=DTYPE)
ZEROS = torch.zeros_like(KINKS)
NAMES = [
    "celu",
    "elu",
    "gelu",
    "hardshrink",
    "hardswish",
    "hardtanh",
    "leaky_relu",
    "logsigmoid",
    "mish",
    "relu",
    "relu6",
]
NAMES += ["selu", "silu", "softplus", "softshrink", "softsign", "tanhshrink", "rrelu"]
PIECEWISE = {
    **{name: getattr(F, name) for name in NAMES},
    "elu, alpha": lambda x: F.elu(x, 2.0),
    "celu, alpha": lambda x: F.celu(x, 0.5),
    "softplus, beta": lambda x: F.softplus(x, 2.0, 2.0),
    "threshold": lambda x: F.threshold(x, 0.5, -1.0),
    "hardtanh, bounds": lambda x: F.hardtanh(x, -0.5, 3.0),
    "prelu": lambda x: F.prelu(x, torch.tensor(0.2, dtype=DTYPE)),
    "abs": torch.abs,
    "clamp": lambda x: x.clamp(-0.5, 1.0),
    "maximum": lambda x: torch.maximum(x, ZEROS),
    "minimum": lambda x: torch.minimum(x, ZEROS),
    "max of two": lambda x: torch.stack([x, ZEROS]).max(0)[0],
    "amax of two": lambda x: torch.stack([x, ZEROS]).amax(0),
    "where": lambda x: torch.where(x > 0, x * x, x),
    "smooth_l1": lambda x: F.smooth_l1_loss(x, ZEROS, reduction="none", beta=0.5),
    "huber": lambda x: F.huber_loss(x, ZEROS, reduction="none", delta=0.5),
    "l1": lambda x: F.l1_loss(x, ZEROS, reduction="none"),
    "hinge": lambda x: F.hinge_embedding_loss(x, ZEROS - 1, reduction="none"),
    "square": lambda x: x**2,
    "in place": lambda x: F.elu_(x.clone()),
}


@pytest.mark.parametrize("name", PIECEWISE)
def test_at_a_kink_torchs_side_is_taken(name):
    p = nn.Parameter(KINKS.clone())
    first_half = torch.arange(len(KINKS)) < 5
    partition = gn.Partition.from_groups({"a": {"p": (p, first_half)}, "b": {"p": (p, ~first_half)}})
    u = {"p": torch.linspace(0.3, 1.7, len(KINKS), dtype=DTYPE)}

    def loss():
        out = PIECEWISE[name](p * 1.0)
        return (out * u["p"].cos() + out.square() * u["p"]).sum()

    tape, nested = (gn.summarize(loss, partition, u, engine=engine) for engine in ("tape", "nested"))
    assert_same(tape, nested)
    torch.testing.assert_close(tape.gradient, partition.sums({"p": u["p"] * torch.autograd.grad(loss(), p)[0]}))


def test_the_side_matters():
    """The control: at 0 the second derivative from the left is another number."""
    at, beside = (nn.Parameter(torch.tensor([x], dtype=DTYPE)) for x in (0.0, -1e-9))
    values = [
        gn.summarize(
            lambda p=p: F.elu(p).sum(), gn.Partition.from_groups({"p": {"p": p}}), {"p": torch.ones(1)}
        ).hessian
        for p in (at, beside)
    ]
    assert abs(values[0] - values[1]) > 0.5


# -- parameters that a function hides ----------------------------------------------------------------------------------


class Reversible(torch.autograd.Function):
    """As reversible blocks: the parameters are not arguments, and get their gradients by a backward inside the backward."""

    @staticmethod
    def forward(ctx, x, block):
        ctx.block = block
        ctx.save_for_backward(x)
        with torch.no_grad():
            return block(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            ctx.block(x).backward(g)
        return x.grad, None


def test_hidden_parameters_are_opened_or_have_no_summary_but_differences():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).double()
    partition = gn.Partition.by_tensor(model)

    def plain():
        return model[1](model[0](ROWS)).sin().sum()

    def hidden():
        return Reversible.apply(model[0](ROWS), model[1]).sin().sum()

    u = gn.direction.gradient(plain, partition)
    torch.testing.assert_close(gn.direction.gradient(hidden, partition), u)
    for order in (2, 3):
        with pytest.raises(NotImplementedError, match="Reversible"):
            gn.summarize(hidden, partition, u, order=order, engine="nested")
    opened = gn.summarize(hidden, partition, u)
    assert opened.engine == "tape"
    assert_same(opened, gn.summarize(plain, partition, u))
    differences = gn.summarize(hidden, partition, u, engine="differences")
    assert_same(differences, gn.summarize(plain, partition, u), 1e-6)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("hook", [lambda g: 2 * g, lambda g: g.detach(), lambda g: g.clamp(-0.01, 0.01)])
def test_a_hook_on_a_parameter_is_seen(hook):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    partition = gn.Partition.by_tensor(model)
    u = {n: torch.ones_like(p) for n, p in partition.parameters.items()}
    model[0].weight.register_hook(hook)
    for engine in ("auto", "nested"):
        with pytest.raises(NotImplementedError, match=r"hook on 0\.weight"):
            gn.summarize(lambda: model(ROWS).exp().sum(), partition, u, engine=engine)


def test_a_hook_on_a_parameter_that_only_looks_is_taken():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    partition = gn.Partition.by_tensor(model)
    u = {n: torch.ones_like(p) for n, p in partition.parameters.items()}
    expected = gn.summarize(lambda: model(ROWS).exp().sum(), partition, u)
    model[0].weight.register_hook(lambda g: None)
    assert_same(gn.summarize(lambda: model(ROWS).exp().sum(), partition, u), expected)
