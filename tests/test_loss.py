"""Every unfit loss is refused by name, at the one door, and nothing is left changed."""

import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from support.problems import build
from torch import nn

import gnewton as gn
from gnewton.loss import RandomLossWarning, differentiable_mode, evaluate

CASE = build("perceptron")
PARTITION = gn.Partition.by_tensor(CASE.model)
STORED = CASE.loss()
OUTPUT = CASE.model(CASE.x)


def under_no_grad():
    with torch.no_grad():
        return CASE.loss()


def with_backward():
    value = CASE.loss()
    value.backward()
    return value


def of_another_model():
    other = build("perceptron", seed=1)
    return other.loss()


UNFIT = {
    "a value instead of a callable": (STORED, TypeError, "callable that returns the loss, got Tensor"),
    "no tensor": (lambda: CASE.loss().item(), TypeError, "as a tensor, got float"),
    "not a scalar": (lambda: CASE.model(CASE.x), ValueError, r"scalar loss, got shape \(12, 3\)"),
    "complex": (lambda: CASE.loss() * (1 + 1j), TypeError, r"a real number, got one of torch.complex.*\.real"),
    "detached": (lambda: CASE.loss().detach(), ValueError, "got a detached one"),
    "under no_grad": (under_no_grad, ValueError, "got a detached one"),
    "stored value": (lambda: STORED, ValueError, "computed outside the closure"),
    "stored output": (lambda: F.cross_entropy(OUTPUT, CASE.y), ValueError, "computed outside the closure"),
    "another model's": (of_another_model, ValueError, "reaches none of them"),
    "calls backward": (with_backward, ValueError, "without calling backward"),
    "nan": (lambda: CASE.loss() * float("nan"), FloatingPointError, "finite loss, got nan"),
    "infinite": (lambda: CASE.loss() / 0, FloatingPointError, "finite loss, got inf"),
}
CALLS = {
    "summarize": lambda loss: gn.summarize(loss, PARTITION, CASE.direction(PARTITION)),
    "gradient": lambda loss: gn.direction.gradient(loss, PARTITION),
    "optimizer": lambda loss: gn.GroupedNewton(PARTITION).step(loss),
}


@pytest.mark.parametrize("name", UNFIT)
@pytest.mark.parametrize("call", CALLS)
def test_an_unfit_loss_is_refused_by_name_and_changes_nothing(call, name):
    loss, error, text = UNFIT[name]
    before = [p.detach().clone() for p in CASE.model.parameters()]
    with pytest.raises(error, match=text):
        CALLS[call](loss)
    assert all(torch.equal(p, q) for p, q in zip(CASE.model.parameters(), before, strict=True))
    if name != "calls backward":  # there the closure itself wrote them
        assert all(p.grad is None for p in CASE.model.parameters())
    for p in CASE.model.parameters():
        p.grad = None


def test_works_under_no_grad_and_inference_mode_of_the_caller():
    u = CASE.direction(PARTITION)
    expected = gn.summarize(CASE.loss, PARTITION, u).hessian
    with torch.no_grad():
        assert torch.equal(gn.summarize(CASE.loss, PARTITION, u).hessian, expected)
    with torch.inference_mode():
        got = gn.summarize(CASE.loss, PARTITION, u).hessian
    assert torch.equal(got, expected)


def test_a_frozen_backbone_computed_once_outside_is_not_stale():
    features = torch.tanh(CASE.model[0](CASE.x))
    head = nn.Linear(4, 3, dtype=torch.float64)
    value = evaluate(lambda: F.cross_entropy(head(features), CASE.y), gn.Partition.by_tensor(head))
    assert value.requires_grad


def test_a_loss_that_is_a_parameter_itself():
    theta = torch.tensor(2.0, requires_grad=True)
    partition = gn.Partition.from_groups([{"theta": theta}])
    assert gn.direction.gradient(lambda: theta, partition)["theta"] == 1


def dropout_case():
    model = nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5), nn.Linear(4, 3)).to(torch.float64)
    return model, lambda: F.cross_entropy(model(CASE.x), CASE.y)


def test_dropout_is_warned_of_by_name():
    model, loss = dropout_case()
    partition = gn.Partition.by_tensor(model)
    with pytest.warns(RandomLossWarning, match=r"1 \(Dropout\)"):
        gn.summarize(loss, partition, CASE.direction(partition))
    model.eval()
    gn.summarize(loss, partition, CASE.direction(partition))


def test_random_numbers_outside_any_module_are_warned_of():
    with pytest.warns(RandomLossWarning, match="not deterministic: it drew random numbers"):
        evaluate(lambda: CASE.loss() * torch.rand(()), PARTITION)


def test_buffers_are_restored():
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).to(torch.float64)
    partition = gn.Partition.by_layer(model)
    before = {n: b.clone() for n, b in model.named_buffers()}
    gn.summarize(lambda: F.cross_entropy(model(CASE.x), CASE.y), partition, CASE.direction(partition))
    assert all(torch.equal(b, before[n]) for n, b in model.named_buffers())
    with differentiable_mode(partition, restore_buffers=False):
        evaluate(lambda: F.cross_entropy(model(CASE.x), CASE.y), partition)
    assert not torch.equal(model[1].running_mean, before["1.running_mean"])


def test_attention_uses_its_math_back_end_only_meanwhile():
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(4, 2, batch_first=True)
    x = torch.randn(3, 5, 4)
    partition = gn.Partition.by_tensor(attention)
    flags = torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled()
    u = {n: torch.randn_like(p) for n, p in partition.parameters.items()}
    summary = gn.summarize(lambda: attention(x, x, x)[0].square().mean(), partition, u)
    assert summary.hessian.abs().min() > 0
    assert flags == (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled())


def test_randomness_is_warned_of_once_a_partition():
    model, loss = dropout_case()
    partition = gn.Partition.by_tensor(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            gn.direction.gradient(loss, partition)
    assert len(caught) == 1


NORMS = {
    "batch norm": nn.BatchNorm1d,
    "batch norm, cumulative": partial(nn.BatchNorm1d, momentum=None),
    "instance norm": partial(nn.InstanceNorm1d, affine=True, track_running_stats=True),
}


def held_graph(norm, training):
    """A network with running statistics, its loss, and a graph of the loss that a training loop holds."""
    model = nn.Sequential(nn.Conv1d(1, 4, 2), NORMS[norm](4), nn.Tanh(), nn.Flatten(), nn.LazyLinear(3))
    model.to(torch.float64)(CASE.x[:, None])
    model.train(training)

    def loss():
        return F.cross_entropy(model(CASE.x[:, None]), CASE.y)

    return model, loss, loss()


ASKED = {
    "gradient": lambda loss, partition, u: gn.direction.gradient(loss, partition),
    "order 2": partial(gn.summarize, order=2),
    "order 3": partial(gn.summarize, order=3),
    "nested": partial(gn.summarize, order=3, engine="nested"),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("norm", NORMS)
def test_a_graph_that_the_caller_holds_survives(norm, asked, training):
    model, loss, held = held_graph(norm, training)
    before = torch.autograd.grad(held, [*model.parameters()], retain_graph=True)
    partition = gn.Partition.by_layer(model)
    ASKED[asked](loss, partition, CASE.direction(partition))
    assert all(map(torch.equal, before, torch.autograd.grad(held, [*model.parameters()])))


def test_a_write_that_counts_would_break_it():
    model, _, held = held_graph("batch norm", training=True)
    model[1].running_mean.mul_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        held.backward()


def test_buffers_that_the_module_replaces_or_makes_are_put_back():
    class Averaging(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(5, 3, dtype=torch.float64)
            self.register_buffer("mean", torch.zeros(3, dtype=torch.float64))

        def forward(self, x):
            out = self.linear(x)
            self.mean = 0.9 * self.mean + out.detach().mean(0)
            self.register_buffer("made", out.detach())
            return out

    model = Averaging()
    mean = model.mean
    gn.direction.gradient(lambda: F.cross_entropy(model(CASE.x), CASE.y), gn.Partition.by_tensor(model))
    assert model.mean is mean
    assert not mean.any()
    assert "made" not in dict(model.named_buffers())


class Remembering(nn.Module):
    """A layer whose buffer its forward pass writes, replaces, makes or drops, between two layers of batch norm."""

    def __init__(self, write, first):
        super().__init__()
        self.linear = nn.Linear(5, 3, dtype=torch.float64)
        self.norms = nn.ModuleList(nn.BatchNorm1d(3, dtype=torch.float64) for _ in range(2))
        self.register_buffer("kept", first)
        self.write = write

    def forward(self, x):
        out = self.norms[0](self.linear(x))
        self.write(self, out.detach())
        return self.norms[1](out)


def _write(module, out):
    module.kept.add_((out + 1).sum())


def _replace(module, out):
    module.kept = module.kept + (out + 1).sum()


def _grow(module, out):
    module.kept = torch.cat([module.kept, (out + 1).mean(0)])


def _drop(module, out):
    del module._buffers["kept"]


def _empty(module, out):
    module.kept = None


def _make(module, out):
    module.register_buffer("made", out)


ALL_ASKED = ASKED | {
    "differences": partial(gn.summarize, order=2, engine="differences"),
    "rates": lambda loss, partition, u: gn.suggest_learning_rates(loss, partition),
    "monitor": lambda loss, partition, u: gn.RateMonitor(
        torch.optim.SGD(partition.parameters.values(), lr=0.1), partition
    ).look(loss),
}
WRITES = [
    pytest.param(
        write, torch.ones(size, dtype=torch.float64), id=f"{write.__name__[1:]}-{len(torch.Size(size))}-{size}"
    )
    for write in (_write, _replace, _grow, _drop, _empty, _make)
    for size in ((), (1,), (3,), (2, 3))
    if write is not _grow or len(size) == 1
]


def buffers_of(model):
    return [
        (name, id(one), None if one is None else one.tolist())
        for module in model.modules()
        for name, one in module._buffers.items()
    ]


@pytest.mark.parametrize(("write", "first"), WRITES)
@pytest.mark.parametrize("asked", [*ALL_ASKED, "an error"])
def test_a_buffer_is_put_back_whatever_the_module_does_with_it(write, first, asked):
    model = Remembering(write, first.clone())
    partition = gn.Partition.by_layer(model)
    direction = {name: torch.ones_like(p) for name, p in partition.parameters.items()}
    before = buffers_of(model)

    def loss():
        return F.cross_entropy(model(CASE.x), CASE.y)

    def failing():
        loss()
        raise KeyError("mine")

    if asked == "an error":
        for optimizer in (gn.GroupedNewton(partition), gn.StochasticNewton(partition)):
            with pytest.raises(KeyError, match="mine"):
                optimizer.step(failing)
    else:
        ALL_ASKED[asked](loss, partition, direction)
    assert buffers_of(model) == before


@pytest.mark.parametrize(("write", "first"), WRITES)
def test_a_step_leaves_buffers_as_one_evaluation_does(write, first):
    models = [Remembering(write, first.clone()) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    models[0](CASE.x)
    gn.GroupedNewton(gn.Partition.by_layer(models[1])).step(lambda: F.cross_entropy(models[1](CASE.x), CASE.y))
    expected, after = ([(name, numbers) for name, _, numbers in buffers_of(model)] for model in models)
    assert [name for name, _ in after] == [name for name, _ in expected]
    for (_, one), (_, other) in zip(after, expected, strict=True):
        # What is recorded has its norms written out, and adds in another order; a second evaluation would move a buffer by a tenth.
        if other is not None:
            one, other = (torch.tensor(numbers, dtype=torch.float64) for numbers in (one, other))
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_what_a_module_does_with_its_buffer_shows():
    for parameter in WRITES:
        write, first = parameter.values
        model = Remembering(write, first.clone())
        before = buffers_of(model)
        model(CASE.x)
        assert buffers_of(model) != before


def test_from_groups_restores_the_buffers_of_the_module_it_is_given():
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).to(torch.float64)
    partition = gn.Partition.from_groups([{"w": model[0].weight}], module=model)
    gn.direction.gradient(lambda: F.cross_entropy(model(CASE.x), CASE.y), partition)
    assert model[1].num_batches_tracked == 0


def test_active_autocast_is_refused_by_name():
    with torch.autocast("cpu"), pytest.raises(ValueError, match=r"enter torch\.autocast inside the closure"):
        gn.direction.gradient(CASE.loss, PARTITION)


def test_an_operation_without_second_derivative_is_named():
    def loss():
        return torch.nn.functional.ctc_loss(
            CASE.model(CASE.x)[:, None].log_softmax(-1), torch.ones(1, 2, dtype=torch.long), (len(CASE.x),), (2,)
        )

    with pytest.raises(NotImplementedError, match=r"cannot: .*ctc"):
        gn.summarize(loss, PARTITION, CASE.direction(PARTITION))


def test_what_is_no_partition_is_named():
    with pytest.raises(TypeError, match="expected a Partition, got Sequential"):
        gn.direction.gradient(CASE.loss, CASE.model)


def test_batches_whose_samples_cannot_be_counted_ask_for_a_weight():
    data = [{"x": CASE.x[:7], "y": CASE.y[:7]}, {"x": CASE.x[7:], "y": CASE.y[7:]}]

    def loss(batch):
        return CASE.loss_on(batch["x"], batch["y"])

    with pytest.raises(ValueError, match=r"got dict; put a tensor .* or give weight="):
        gn.direction.gradient(loss, PARTITION, data=data)
    got = gn.direction.gradient(loss, PARTITION, data=data, weight=lambda batch: len(batch["x"]))
    torch.testing.assert_close(got["0.weight"], gn.direction.gradient(CASE.loss, PARTITION)["0.weight"])


def test_sparse_gradients_of_an_embedding():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 4, sparse=True), nn.Flatten(), nn.Linear(8, 3)).to(torch.float64)
    x = torch.randint(7, (9, 2))
    partition = gn.Partition.by_tensor(model)
    g = gn.direction.gradient(lambda: F.cross_entropy(model(x), x[:, 0] % 3), partition)
    model[0].sparse = False
    dense = gn.direction.gradient(lambda: F.cross_entropy(model(x), x[:, 0] % 3), partition)
    torch.testing.assert_close(g["0.weight"], dense["0.weight"])


class Graphs:
    """Like a batch of graphs: its length is the number of its fields."""

    def __init__(self, x):
        self.x = x

    def __len__(self):
        return 2


MANY = {
    "several tensors": lambda x: (x, x.sign()),
    "a list of tensors": lambda x: [x, x.sign()],
    "a packed sequence": lambda x: nn.utils.rnn.pack_sequence([x]),
    "an object with fields": Graphs,
    "a word": lambda x: "two words",
}


@pytest.mark.parametrize("kind", MANY)
def test_the_number_of_fields_is_no_number_of_samples(kind):
    # Each batch is ragged: 7 samples, then the rest; its first element has as many fields whatever their number.
    parts = [(MANY[kind](CASE.x[i]), CASE.x[i], CASE.y[i]) for i in (slice(0, 7), slice(7, None))]

    def loss(_, x, y):
        return CASE.loss_on(x, y)

    with pytest.raises(ValueError, match=r"one row per sample.*give weight="):
        gn.direction.gradient(loss, PARTITION, data=parts)
    whole = gn.direction.gradient(CASE.loss, PARTITION)["0.weight"]
    right = gn.direction.gradient(loss, PARTITION, data=parts, weight=lambda _, x, y: len(x))["0.weight"]
    torch.testing.assert_close(right, whole)
    # The control: by the lengths of the first elements it is another mean.
    wrong = gn.direction.gradient(loss, PARTITION, data=parts, weight=lambda first, x, y: len(first))["0.weight"]
    assert (wrong - whole).norm() > 1e-3 * whole.norm()


def test_a_list_with_an_entry_for_each_sample_is_counted():
    parts = [(["a"] * len(CASE.x[i]), CASE.x[i], CASE.y[i]) for i in (slice(0, 7), slice(7, None))]
    got = gn.direction.gradient(lambda _, x, y: CASE.loss_on(x, y), PARTITION, data=parts)["0.weight"]
    torch.testing.assert_close(got, gn.direction.gradient(CASE.loss, PARTITION)["0.weight"])


@pytest.mark.parametrize("ask", [gn.summarize, gn.direction.gradient])
def test_data_that_are_no_batches_are_refused(ask):
    with pytest.raises(TypeError, match=r"expected data as batches, got int; a Dataset gives them by \.batches"):
        ask(CASE.loss_on, PARTITION, data=5)
