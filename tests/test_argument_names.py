"""A call with NumPy's names of arguments, or those of torch's operators, is the call with torch's own: in every engine, to rounding."""

import warnings

import pytest
import torch
import torch.nn.functional as F

import gnewton as gn
from gnewton.argument_names import _NUMPY, with_torch_names

DTYPE = torch.float64
W = torch.tensor([[0.5, 1.0, 0.7], [0.2, 0.4, 1.3], [0.9, 0.3, 0.6]], dtype=DTYPE)
V = torch.tensor([[0.1, 0.8, 0.3], [0.6, 0.2, 0.5], [0.4, 0.7, 0.9]], dtype=DTYPE)
# torch's names, each in a call that the loss makes with a parameter a and a value b = exp(V a).
CALLS = {
    "add": (torch.add, lambda a, b: {"input": a, "other": b, "alpha": 2.0}),
    "sub": (torch.sub, lambda a, b: {"input": a, "other": b, "alpha": 2.0}),
    "rsub": (torch.rsub, lambda a, b: {"input": a, "other": b, "alpha": 2.0}),
    "mul": (torch.mul, lambda a, b: {"input": a, "other": b}),
    "div": (torch.div, lambda a, b: {"input": a, "other": b}),
    "matmul": (torch.matmul, lambda a, b: {"input": a, "other": b}),
    "bmm": (torch.bmm, lambda a, b: {"input": a[None], "mat2": b[None]}),
    "linear": (F.linear, lambda a, b: {"input": a, "weight": b}),
    "conv1d": (torch.conv1d, lambda a, b: {"input": a[None], "weight": b[:, :, None]}),
    "prod": (torch.prod, lambda a, b: {"input": a * b, "dim": 1, "keepdim": True}),
    "cumprod": (torch.cumprod, lambda a, b: {"input": a * b, "dim": 1}),
    "logcumsumexp": (torch.logcumsumexp, lambda a, b: {"input": a * b, "dim": 0}),
    "logsumexp": (torch.logsumexp, lambda a, b: {"input": a * b, "dim": 0, "keepdim": True}),
    "sum": (torch.sum, lambda a, b: {"input": a * b, "dim": 0, "keepdim": True}),
    "mean": (torch.mean, lambda a, b: {"input": a * b, "dim": 0}),
    "std": (torch.std, lambda a, b: {"input": a * b, "dim": 0, "keepdim": True}),
    "amax": (torch.amax, lambda a, b: {"input": a * b, "dim": 1}),
    "softmax": (torch.softmax, lambda a, b: {"input": a * b, "dim": 1}),
    "norm": (torch.linalg.norm, lambda a, b: {"input": a * b, "dim": 1, "keepdim": True}),
    "vector_norm": (torch.linalg.vector_norm, lambda a, b: {"x": a * b, "dim": 1}),
    "cat": (torch.cat, lambda a, b: {"tensors": [a, b], "dim": 1}),
    "stack": (torch.stack, lambda a, b: {"tensors": [a, b], "dim": 1}),
    "unbind": (torch.unbind, lambda a, b: {"input": a * b, "dim": 1}),
    "chunk": (torch.chunk, lambda a, b: {"input": a * b, "chunks": 2, "dim": 1}),
    "gather": (torch.gather, lambda a, b: {"input": a * b, "dim": 1, "index": torch.tensor([[0], [2], [1]])}),
    "cosine_similarity": (torch.cosine_similarity, lambda a, b: {"x1": a, "x2": b}),
    "cdist": (torch.cdist, lambda a, b: {"x1": a, "x2": b}),
}


def total(out):
    parts = [out] if isinstance(out, torch.Tensor) else list(out)
    return sum(t.square().sum() for t in parts) + parts[0].flatten()[0].exp()


def spellings(function, kwargs):
    """The keywords with NumPy's names, wherever torch takes them."""
    for foreign, own in _NUMPY.items():
        if own in kwargs:
            named = {foreign if name == own else name: value for name, value in kwargs.items()}
            try:
                function(**named)
            except TypeError:
                continue
            yield foreign, named


def summary(function, make, names, engine):
    w = W.clone().requires_grad_()
    partition = gn.Partition.from_groups({"w": {"w": w}})

    def loss():
        kwargs = make(w, (V @ w).exp())
        return total(function(**names(function, kwargs)))

    return gn.summarize(loss, partition, {"w": V}, engine=engine)


@pytest.mark.parametrize("engine", ["auto", "nested"])
@pytest.mark.parametrize("name", CALLS)
def test_numpy_s_names_are_torch_s(name, engine):
    function, make = CALLS[name]
    expected = summary(function, make, lambda f, kwargs: kwargs, engine)
    for foreign, _ in spellings(function, make(W, V)):
        named = lambda f, kwargs, foreign=foreign: dict(spellings(f, kwargs))[foreign]  # noqa: E731
        got = summary(function, make, named, engine)
        assert got.engine == expected.engine
        for order in ("value", "gradient", "hessian", "third"):
            torch.testing.assert_close(getattr(got, order), getattr(expected, order), rtol=1e-12, atol=1e-12)


def test_torch_takes_most_of_them():
    assert sum(len(list(spellings(f, make(W, V)))) for f, make in CALLS.values()) > 30


@pytest.mark.parametrize("name", ["rsub", "mul", "mm", "exp", "sum"])
def test_operators_take_their_first_argument_by_name(name):
    operator, w = getattr(torch.ops.aten, name), W.clone().requires_grad_()
    rest = {"rsub": {"other": V, "alpha": 2.0}, "mul": {"other": V}, "mm": {"mat2": V}}.get(name, {})
    partition, u = gn.Partition.from_groups({"w": {"w": w}}), {"w": V}
    plain, named = (
        gn.summarize(loss, partition, u)
        for loss in (lambda: total(operator(w, **rest)), lambda: total(operator(self=w, **rest)))
    )
    torch.testing.assert_close(named.hessian, plain.hessian, rtol=1e-12, atol=1e-12)
    assert named.engine == plain.engine == "tape"


def test_names_that_are_a_function_s_own_stay():
    assert with_torch_names(torch.cosine_similarity, (), {"x1": 1, "x2": 2})[1] == {"x1": 1, "x2": 2}
    assert with_torch_names(torch.special.chebyshev_polynomial_t, (), {"x": 1})[1] == {"x": 1}
    assert with_torch_names(F.cosine_embedding_loss, (), {"axis": 1})[1] == {"axis": 1}


def test_without_it_a_factor_is_lost():
    # The control: the name alone decides whether a rule sees the second argument.
    function, given = torch.add, {"input": W, "x2": V, "alpha": 2.0}
    assert "other" not in given
    assert with_torch_names(function, (), given)[1].keys() == {"input", "other", "alpha"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(function(**given), W + 2 * V)
