"""Which models are read, and that every other one is refused with a sentence that names the layer."""

import pytest
import torch
from support.small_networks import CASES, build, gap, row
from torch import nn

import gnewton as gn
from gnewton.exact.network import Network


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_of_every_sample_are_autograds(name):
    case = build(name)
    passes = case.passes
    expected = torch.stack([case.one(case.theta, x, y) for x, y in zip(case.x, case.y, strict=True)])
    torch.testing.assert_close(passes.values, expected, rtol=1e-13, atol=1e-14)
    assert gap(row(passes.gradient()), case.gradients) < 1e-13
    assert list(passes.gradient()) == [n for n, _ in case.model.named_parameters()]


def test_a_tape_keeps_the_weights_as_they_were():
    case = build("tanh")
    passes = case.passes
    before = row(gn.exact.newton_direction(passes, 1.0).per_sample())
    with torch.no_grad():
        for p in case.model.parameters():
            p.zero_()
    assert torch.equal(row(gn.exact.newton_direction(passes, 1.0).per_sample()), before)


def test_flatten_may_come_first():
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2))
    x, y = torch.randn(5, 1, 2, 3), torch.tensor([0, 1, 0, 1, 1])
    images = gn.exact.forward_backward(nn.Sequential(nn.Flatten(), *inner), x, y)
    assert torch.equal(images.values, gn.exact.forward_backward(inner, x.flatten(1), y).values)


def tied():
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    return model


def frozen():
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    model[2].bias.requires_grad_(False)
    return model


def hooked():
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    model[1].register_forward_hook(lambda module, args, output: 2 * output)
    return model


def with_a_loose_parameter():
    model = nn.Sequential(nn.Linear(3, 3))
    model.register_parameter("temperature", nn.Parameter(torch.ones(())))
    return model


class Skip(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, x):
        return x + self.inner(x)


class Reversed(nn.Sequential):
    def forward(self, x):
        return super().forward(-x)


class OtherLinear(nn.Linear):
    def forward(self, x):
        return super().forward(x).square()


REFUSED = {
    "convolution": (lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh()), r"0 \(Conv2d\)"),
    "batch norm": (lambda: nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), r"1 \(BatchNorm1d\)"),
    "layer norm": (
        lambda: nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3, elementwise_affine=False)),
        r"1 \(LayerNorm\)",
    ),
    "dropout": (lambda: nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.0)), r"1 \(Dropout\)"),
    "skip connection": (lambda: nn.Sequential(nn.Linear(3, 3), Skip()), r"1 \(Skip\)"),
    "learned activation": (lambda: nn.Sequential(nn.Linear(3, 3), nn.PReLU()), r"1 \(PReLU\)"),
    "softmax": (lambda: nn.Sequential(nn.Linear(3, 3), nn.Softmax(1)), r"expected logits, got 1 \(Softmax\)"),
    "inside": (lambda: nn.Sequential(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))), r"0\.1 \(BatchNorm1d\)"),
    "flatten later": (lambda: nn.Sequential(nn.Linear(3, 3), nn.Flatten(0)), r"1 \(Flatten\)"),
    "flatten the samples": (lambda: nn.Sequential(nn.Flatten(0), nn.Linear(3, 3)), r"0 \(Flatten\)"),
    "activation first": (lambda: nn.Sequential(nn.Tanh(), nn.Linear(3, 3)), r"linear layer first, got 0 \(Tanh\)"),
    "a kind of linear": (lambda: nn.Sequential(OtherLinear(3, 3)), r"0 \(OtherLinear\)"),
    "tied": (tied, r"2\.weight tied to 0\.weight"),
    "the same layer twice": (lambda: nn.Sequential(*[nn.Linear(3, 3)] * 2), r"1\.weight tied to 0\.weight"),
    "frozen": (frozen, r"2\.bias frozen"),
    "hook": (hooked, r"got 1 \(Tanh\) with a hook"),
    "loose parameter": (with_a_loose_parameter, "temperature"),
    "half precision": (lambda: nn.Sequential(nn.Linear(3, 3)).half(), "float16"),
    "two dtypes": (lambda: nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3).double()), "one dtype"),
    "nothing": (lambda: nn.Sequential(nn.Identity()), "got none"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_covered_is_refused_by_name(name):
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        Network(make())


@pytest.mark.parametrize("model", [Skip(), nn.Linear(3, 3), Reversed(nn.Linear(3, 3))], ids=lambda m: type(m).__name__)
def test_other_models_are_refused(model):
    with pytest.raises(TypeError, match=f"got {type(model).__name__}"):
        Network(model)


def test_inputs_and_targets_are_check_inputs():
    model = gn.models.perceptron([3, 4, 2])
    x, y = torch.zeros(5, 3), torch.zeros(5, dtype=torch.int64)
    for bad_x in (torch.zeros(3), torch.zeros(5, 4), torch.zeros(0, 3), torch.zeros(5, 3, dtype=torch.float64)):
        with pytest.raises(ValueError, match="expected inputs"):
            gn.exact.forward_backward(model, bad_x, y)
    for bad_y in (y[:4], y + 2, y - 1, y.int(), torch.zeros(5, 3), torch.zeros(5, 2)):
        with pytest.raises(ValueError, match=r"expected (classes|probabilities|rows)"):
            gn.exact.forward_backward(model, x, bad_y)
    for bad_y in (torch.zeros(5, 3), torch.zeros(5), torch.zeros(5, 2, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"expected (floating )?targets"):
            gn.exact.forward_backward(model, x, bad_y, loss="squared_error")
    with pytest.raises(ValueError, match="expected loss="):
        gn.exact.forward_backward(model, x, y, loss=torch.nn.functional.l1_loss)


# What may be done to a model after it was read, and the words of the refusal.
EDITS = {
    "another activation": (lambda m: m.__setitem__(1, nn.ReLU()), "expected the layers and activations that were read"),
    "another option": (lambda m: setattr(m[1], "beta", 5.0), "other options of theirs"),
    "an activation more": (lambda m: m.insert(2, nn.Sigmoid()), "expected the layers and activations that were read"),
    "one less": (lambda m: m.__delitem__(1), "expected the layers and activations that were read"),
    "dropout": (lambda m: m.append(nn.Dropout(0.5)), "expected the layers and activations that were read"),
    "another linear layer": (lambda m: m.__setitem__(2, nn.Linear(3, 2)), "expected the layers and activations"),
    "a frozen layer": (lambda m: m[0].requires_grad_(False), "got 0.weight frozen"),
    "another dtype": (lambda m: m.half(), "expected parameters in float32 or float64"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_model_that_was_altered_is_refused_and_nothing_moves(edit):
    change, words = EDITS[edit]
    model = nn.Sequential(nn.Linear(2, 3), nn.Softplus(), nn.Linear(3, 2))
    optimizer, x, y = gn.ExactNewton(model), torch.randn(4, 2), torch.tensor([0, 1, 0, 1])
    optimizer.step(x, y)
    change(model)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ValueError, match=words):
        optimizer.step(x.to(before[0].dtype), y)
    assert all(map(torch.equal, before, model.parameters()))


def test_the_mode_of_a_model_is_no_alteration():
    model = nn.Sequential(nn.Linear(2, 3), nn.Softplus(), nn.Linear(3, 2))
    optimizer = gn.ExactNewton(model)
    model.eval()
    optimizer.step(torch.randn(4, 2), torch.tensor([0, 1, 0, 1]))


def test_targets_are_named_where_they_do_not_fit():
    model, x = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)), torch.randn(4, 2)
    for y, error, words in (
        ([[0.0]] * 4, TypeError, "expected y as a tensor, got list"),
        (torch.zeros(4, 1, dtype=torch.float64), ValueError, r"write y\.to\(x\.dtype\)"),
        (torch.zeros(4, 1, dtype=torch.float16), ValueError, r"write y\.to\(x\.dtype\)"),
    ):
        with pytest.raises(error, match=words):
            gn.exact.forward_backward(model, x, y, loss="squared_error")
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="expected no active autocast"):
        gn.exact.forward_backward(model, x, torch.zeros(4, 1), loss="squared_error")
