"""Inside every mode of the package a function of torch does what it does outside, also where torch leaves an argument out."""

import ast
import inspect
import textwrap

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode, handle_torch_function

import gnewton as gn
from gnewton.derivatives.opened import _Unstopped
from gnewton.elementary import Elementary
from gnewton.forgotten import _FORGOTTEN
from gnewton.repeated import WatchedCalls

torch.manual_seed(0)
X, Y, WEIGHT = (torch.rand(4, 3, dtype=torch.float64) for _ in range(3))
LOSSES = [F.mse_loss, F.l1_loss, F.huber_loss, F.binary_cross_entropy, F.binary_cross_entropy_with_logits]
WEIGHTED = [f for f in LOSSES if "weight" in inspect.signature(f).parameters]  # in torch 2.6 fewer of them
MODES = [Elementary, WatchedCalls, _Unstopped]


class Forgetful(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def left_out(function):
    """The parameters that the function does not hand to ``handle_torch_function``, by its source."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    asked = [
        call
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "handle_torch_function"
    ]
    if not asked:
        return ()
    # After the function and the tuple of what may override it.
    handed = {
        n.id for part in (*asked[0].args[2:], *asked[0].keywords) for n in ast.walk(part) if isinstance(n, ast.Name)
    }
    named = handed | {k.arg for k in asked[0].keywords}
    return tuple(p for p in inspect.signature(function).parameters if p not in named)


def functions_of_torch():
    return [f for f in vars(F).values() if inspect.isfunction(f) and f.__module__ == F.__name__]


def test_all_that_torch_leaves_out_is_known():
    forgotten = {f: names for f in functions_of_torch() if (names := left_out(f))}
    assert set(forgotten.items()) <= set(_FORGOTTEN.items())


def forgets_its_scale(x, scale=1.0):
    if torch.overrides.has_torch_function_unary(x):
        return handle_torch_function(forgets_its_scale, (x,), x)
    return x * scale


def test_the_search_finds_what_is_left_out():
    assert left_out(forgets_its_scale) == ("scale",)
    assert sum("handle_torch_function" in inspect.getsource(f) for f in functions_of_torch()) > 60


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("loss", WEIGHTED)
def test_inside_a_mode_weights_count(mode, loss):
    outside = loss(X, Y, weight=WEIGHT)
    with mode():
        torch.testing.assert_close(loss(X, Y, weight=WEIGHT), outside, rtol=1e-13, atol=0)


def test_a_mode_that_does_not_ask_is_told_less():
    with Forgetful():
        inside = [loss(X, Y, weight=WEIGHT) for loss in WEIGHTED]
    outside = [loss(X, Y, weight=WEIGHT) for loss in WEIGHTED]
    assert {f for f, a, b in zip(WEIGHTED, inside, outside, strict=True) if not torch.equal(a, b)} == set(
        filter(left_out, WEIGHTED)
    )


@pytest.mark.parametrize("loss", WEIGHTED)
def test_gradients_and_differences_are_those_of_the_weighted_loss(loss):
    model = nn.Linear(3, 3).double()
    partition = gn.Partition.by_tensor(model)

    def value():
        return loss(model(X).sigmoid(), Y, weight=WEIGHT)

    expected = torch.autograd.grad(value(), list(model.parameters()))
    u = gn.direction.gradient(value, partition)
    torch.testing.assert_close(list(u.values()), list(expected), rtol=1e-12, atol=1e-15)
    for engine in ("tape", "nested", "differences"):
        summary = gn.summarize(value, partition, u, order=2, engine=engine)
        own = torch.stack([(g * g).sum() for g in expected])
        torch.testing.assert_close(summary.gradient, own, rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(summary.value, value().detach(), rtol=1e-12, atol=0)
