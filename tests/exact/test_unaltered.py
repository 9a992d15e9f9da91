"""ExactNewton reads torch's losses and layers as they are, or refuses them by name; never something else in their place.

The cases are generated: every loss and every layer of ``torch.nn`` that can be built, with each option of its
constructor off its default. What is accepted must have the value, the gradient and the Hessian that autograd finds.
"""

import inspect

import pytest
import torch
import torch.nn.functional as F
from support.custom_functions import InNumpy, OnCtx, Sine, StraightThrough
from torch import nn
from torch.nn.modules import loss as losses_module

import gnewton as gn

DTYPE = torch.float64
X, CLASSES = torch.linspace(-1, 1, 15, dtype=DTYPE).reshape(5, 3).sin(), torch.tensor([0, 1, 2, 1, 0])
TARGETS = torch.linspace(-1, 2, 20, dtype=DTYPE).reshape(5, 4).cos()
LOSSES = [c for n, c in vars(losses_module).items() if inspect.isclass(c) and issubclass(c, nn.Module) and "Loss" in n]
OFF = {
    "weight": torch.tensor([0.5, 1.0, 2.0, 1.5], dtype=DTYPE),
    "pos_weight": torch.tensor([0.5, 1.0, 2.0, 1.5], dtype=DTYPE),
    "reduction": "sum",
    "size_average": False,
    "reduce": False,
    "ignore_index": 1,
    "label_smoothing": 0.1,
    "distance_function": lambda a, b: (a - b).norm(dim=-1),
}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4)).to(DTYPE)


def off(name, default):
    """A value other than the default of an option."""
    if name in OFF:
        return OFF[name]
    if isinstance(default, bool):
        return not default
    if isinstance(default, int | float):
        return default + 1 if isinstance(default, int) else default / 2 + 0.1
    return None


def variants(kind):
    """The keyword arguments to try: the defaults, and each option alone off its default."""
    parameters = inspect.signature(kind).parameters.values()
    yield {}
    for p in parameters:
        if p.default is not p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY):
            value = off(p.name, p.default)
            if value is not None:
                yield {p.name: value}


@pytest.mark.filterwarnings("ignore:size_average and reduce", "ignore::FutureWarning")
@pytest.mark.parametrize("kind", LOSSES, ids=lambda kind: kind.__name__)
def test_every_loss_of_torch_with_every_option(kind):
    for options in variants(kind):
        try:
            loss = kind(**options)
        except TypeError:
            return  # one that needs more than a loss: adaptive softmax
        for y in (CLASSES, TARGETS, TARGETS.softmax(1)):
            model = network()
            try:
                tape_value = gn.ExactNewton(model, loss, lr=0.0).step(X, y)
            except ValueError:
                continue
            torch.testing.assert_close(tape_value, loss(model(X), y).detach())


def test_the_plain_losses_are_taken():
    for loss, y in ((nn.CrossEntropyLoss(), CLASSES), (nn.MSELoss(), TARGETS)):
        gn.ExactNewton(network(), loss).step(X, y)


class Focal(nn.CrossEntropyLoss):
    def forward(self, z, y):
        ce = F.cross_entropy(z, y, reduction="none")
        return ((1 - (-ce).exp()) ** 2 * ce).mean()


class Renamed(nn.MSELoss):
    pass


def altered(module, how):
    """The module, changed in a way that its class does not show."""
    if how == "forward":
        module.forward = lambda *args: 3 * type(module).forward(module, *args)
    elif how == "hook":
        module.register_forward_hook(lambda m, args, out: 2 * out)
    elif how == "pre-hook":
        module.register_forward_pre_hook(lambda m, args: tuple(2 * a for a in args))
    elif how == "backward hook":
        module.register_full_backward_hook(lambda m, given, out: (2 * given[0],))
    elif how == "backward pre-hook":
        module.register_full_backward_pre_hook(lambda m, out: (2 * out[0],))
    return module


WAYS = ["forward", "hook", "pre-hook", "backward hook", "backward pre-hook"]


@pytest.mark.parametrize("how", WAYS)
def test_an_altered_loss_is_refused(how):
    with pytest.raises(ValueError, match="CrossEntropyLoss with a"):
        gn.ExactNewton(network(), altered(nn.CrossEntropyLoss(), how))


@pytest.mark.parametrize("loss", [Focal(), Renamed(), torch.jit.script(nn.MSELoss())], ids=lambda m: type(m).__name__)
@pytest.mark.filterwarnings("ignore:`torch.jit.script`")
def test_another_class_is_refused(loss):
    with pytest.raises(ValueError, match="expected loss="):
        gn.ExactNewton(network(), loss)


def test_an_option_set_later_is_refused():
    loss = nn.CrossEntropyLoss()
    loss.ignore_index = 2
    with pytest.raises(ValueError, match="ignore_index=2"):
        gn.exact.forward_backward(network(), X, CLASSES, loss=loss)


@pytest.mark.parametrize("place", [0, 1, 2, None])
@pytest.mark.parametrize("how", WAYS)
def test_an_altered_layer_is_refused_before_and_after_it_was_read(how, place):
    for read_first in (False, True):
        model = network()
        optimizer = gn.ExactNewton(model) if read_first else None
        altered(model if place is None else model[place], how)
        before = [p.clone() for p in model.parameters()]
        with pytest.raises(ValueError, match="the model with a" if place is None else rf"{place} \("):
            optimizer.step(X, CLASSES) if optimizer else gn.ExactNewton(model)
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_parametrizations_and_hooks_on_parameters_are_refused():
    for alter in (
        lambda m: nn.utils.parametrizations.weight_norm(m),
        lambda m: nn.utils.parametrizations.spectral_norm(m),
        lambda m: m.weight.register_hook(lambda g: 2 * g),
    ):
        model = network()
        optimizer = gn.ExactNewton(model)
        alter(model[0])
        with pytest.raises(ValueError, match="expected"):
            gn.ExactNewton(model)
        with pytest.raises(ValueError, match="expected"):
            optimizer.step(X, CLASSES)


def test_a_hook_on_all_modules_is_refused_while_it_is_there():
    model = network()
    handle = nn.modules.module.register_module_forward_hook(lambda m, args, out: out)
    try:
        with pytest.raises(ValueError, match="hook on all modules"):
            gn.ExactNewton(model)
    finally:
        handle.remove()
    gn.ExactNewton(model)


class Doubled(nn.Identity):
    def forward(self, x):
        return 2 * x


class DoubledFlatten(nn.Flatten):
    def forward(self, x):
        return 2 * super().forward(x)


class Relabelled(nn.Sequential):
    def __call__(self, x):
        return 2 * super().__call__(x)


def test_subclasses_of_what_is_skipped_are_not_skipped():
    inner = network()
    doubled = nn.Sequential(*list(inner)[:2], Doubled(), inner[2])
    expected = F.cross_entropy(doubled(X), CLASSES).detach()
    torch.testing.assert_close(gn.exact.forward_backward(doubled, X, CLASSES).values.mean(), expected)
    for model in (nn.Sequential(DoubledFlatten(), *inner), Relabelled(*inner)):
        with pytest.raises((ValueError, TypeError), match="expected"):
            gn.ExactNewton(model)


# -- every layer of torch ---------------------------------------------------------------------------------------------


def layers():
    """Every module of torch.nn that can be built from numbers, with each option off its default."""
    for name, kind in vars(nn).items():
        if not (inspect.isclass(kind) and issubclass(kind, nn.Module)) or "Loss" in name or name.startswith("Lazy"):
            continue
        needed = [p for p in inspect.signature(kind).parameters.values() if p.default is p.empty and p.kind < 2]
        for options in variants(kind):
            try:
                yield f"{name} {options}", kind(*[4] * len(needed), **options)
            except Exception:  # a module that cannot be built so
                continue


@pytest.mark.filterwarnings("ignore")
def test_every_layer_of_torch_with_every_option():
    taken = []
    for name, layer in layers():
        first, last = nn.Linear(3, 4, dtype=DTYPE), nn.Linear(4, 2, dtype=DTYPE)
        try:
            model = nn.Sequential(first, layer, last).to(DTYPE)
            passes = gn.exact.forward_backward(model, X, CLASSES % 2)
        except (ValueError, TypeError):
            continue
        taken.append(name.split()[0])
        parameters = list(model.parameters())
        value = F.cross_entropy(model(X), CLASSES % 2)
        torch.testing.assert_close(passes.values.mean(), value.detach(), msg=name)
        slopes = torch.autograd.grad(value, parameters, create_graph=True)
        for ours, theirs in zip(passes.gradient().values(), slopes, strict=True):
            torch.testing.assert_close(ours.mean(0), theirs.detach(), msg=name)
        u = {n: torch.randn_like(p) for n, p in model.named_parameters()}
        along = sum((g * v).sum() for g, v in zip(slopes, u.values(), strict=True))
        turned = torch.autograd.grad(along, parameters, allow_unused=True)
        ours = gn.exact.hessian.product(passes, u).mean()
        for product, theirs in zip(ours.values(), turned, strict=True):
            torch.testing.assert_close(product, torch.zeros_like(product) if theirs is None else theirs, msg=name)
    assert {"Tanh", "ELU", "Softplus", "GELU", "Linear", "Hardtanh", "Identity"} <= set(taken)


@pytest.mark.parametrize("function", [InNumpy, OnCtx, StraightThrough], ids=lambda f: f.__name__)
def test_an_activation_with_a_backward_that_is_no_derivative_is_refused(function):
    model = nn.Sequential(nn.Linear(3, 4), gn.exact.Elementwise(function.apply), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"1 \(Elementwise\)"):
        gn.ExactNewton(model)


def test_an_activation_with_a_right_backward_is_taken():
    # The control of the test above.
    inner = network()
    plain = nn.Sequential(inner[0], gn.exact.Elementwise(torch.sin), inner[2])
    custom = nn.Sequential(inner[0], gn.exact.Elementwise(Sine.apply), inner[2])
    dense = [gn.exact.hessian.dense(gn.exact.forward_backward(model, X, CLASSES)) for model in (plain, custom)]
    torch.testing.assert_close(dense[1], dense[0])
