"""Derivatives of functions of one number at extreme points: near 0, in the tails, at the edge of their domain; in both engines.

The oracle is mpmath with 90 digits: central differences of the function itself with h = 1e-15 |x|, whose error of order h^2 is
far below. Tolerance: 1e-6 of the derivative, and 1e-15 of the largest of 1, f and its derivatives so far, which a value that was
rounded once carries into what is computed from it. The negative control: torch's own derivatives fail where a function was
written out.
"""

import functools
import math
import warnings
from itertools import product

import mpmath as mp
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gnewton as gn
from gnewton.derivatives import nested
from gnewton.derivatives.operation import _RULES
from gnewton.derivatives.rules.pointwise import Pointwise
from gnewton.elementary import SPECIAL, Elementary

DTYPE = torch.float64
REAL = [-1e3, -200.0, -40.0, -3.5, -0.4, -1e-3, -1e-8, 0.0, 1e-8, 1e-3, 0.4, 3.5, 40.0, 200.0, 1e3]
NOT_AT_0 = [x for x in REAL if x]
SMALL = [x for x in REAL if abs(x) <= 200]
POSITIVE = [1e-8, 1e-3, 0.3, 1.0, 2.0, 8.0, 40.0, 200.0, 1e3]
INNER = [-1 + 1e-10, -0.999, -0.5, -1e-8, 0.0, 1e-8, 0.5, 0.999, 1 - 1e-10]
SHARE = [1e-8, 1e-3, 0.3, 0.7, 0.999, 1 - 1e-8]
S = torch.special


def sigmoid(x):
    return 1 / (1 + mp.exp(-x))


def softplus(x):
    return mp.log1p(mp.exp(-abs(x))) + max(x, 0)


def normal(x):
    return mp.erfc(-x / mp.sqrt(2)) / 2


def by_tanh(x):
    return x / 2 * (1 + mp.tanh(mp.sqrt(2 / mp.pi) * (x + mp.mpf(0.044715) * x**3)))


def selu(x):
    # The numbers of the paper, as torch has them.
    return mp.mpf(1.0507009873554805) * (x if x > 0 else mp.mpf(1.6732632423543772) * mp.expm1(x))


def steps(edges, *pieces):
    """A function by pieces, between edges."""
    return lambda x: next(piece(x) for edge, piece in zip((*edges, mp.inf), pieces, strict=True) if x < edge)


def zero(x):
    return 0 * x


# function of torch: name, function, the same in mpmath, points
LINEAR = {
    name: (f, g, [x for x in REAL if x not in without])
    for name, f, g, without in (
        ("abs", torch.abs, abs, [0.0]),
        ("ceil", torch.ceil, zero, [0.0, -40.0, 40.0, 200.0, -200.0, 1e3, -1e3]),
        ("floor", torch.floor, zero, [0.0, -40.0, 40.0, 200.0, -200.0, 1e3, -1e3]),
        ("round", torch.round, zero, [3.5, -3.5]),
        ("trunc", torch.trunc, zero, [-40.0, 40.0, 200.0, -200.0, 1e3, -1e3]),
        ("sign", torch.sign, zero, [0.0]),
        ("frac", torch.frac, lambda x: x, [-40.0, 40.0, 200.0, -200.0, 1e3, -1e3]),
        ("relu", F.relu, lambda x: max(x, 0), [0.0]),
        ("relu6", F.relu6, lambda x: min(max(x, 0), 6), [0.0]),
        ("leaky_relu", F.leaky_relu, lambda x: x if x > 0 else x * mp.mpf(0.01), [0.0]),
        ("hardtanh", F.hardtanh, lambda x: min(max(x, -1), 1), []),
        ("hardshrink", F.hardshrink, lambda x: x if abs(x) > 0.5 else zero(x), []),
        ("softshrink", F.softshrink, lambda x: mp.sign(x) * max(abs(x) - 0.5, 0), []),
        ("threshold", lambda x: F.threshold(x, 0.7, 2.0), lambda x: x if x > 0.7 else 2 + zero(x), []),
        ("hardsigmoid", F.hardsigmoid, lambda x: min(max(x / 6 + mp.mpf(1) / 2, 0), 1), []),
        ("hardswish", F.hardswish, steps([-3, 3], zero, lambda x: x * (x + 3) / 6, lambda x: x), []),
    )
}
CURVED = {
    "acos": (torch.acos, mp.acos, INNER),
    "acosh": (torch.acosh, mp.acosh, [1 + 1e-10, 1.001, 2.0, 40.0, 1e3]),
    "asin": (torch.asin, mp.asin, INNER),
    "asinh": (torch.asinh, mp.asinh, REAL),
    "atan": (torch.atan, mp.atan, REAL),
    "atanh": (torch.atanh, mp.atanh, INNER),
    "celu": (lambda x: F.celu(x, 0.7), lambda x: x if x > 0 else mp.mpf(0.7) * mp.expm1(x / mp.mpf(0.7)), NOT_AT_0),
    "cos": (torch.cos, mp.cos, REAL),
    "cosh": (torch.cosh, mp.cosh, SMALL),
    "digamma": (torch.digamma, mp.digamma, [-200.7, -40.3, -0.5, *POSITIVE]),
    "elu": (lambda x: F.elu(x, 0.7), lambda x: x if x > 0 else mp.mpf(0.7) * mp.expm1(x), NOT_AT_0),
    "erf": (torch.erf, mp.erf, REAL),
    "erfc": (torch.erfc, mp.erfc, REAL),
    "erfcx": (S.erfcx, lambda x: mp.exp(x * x) * mp.erfc(x), [x for x in REAL if x > -26]),
    "erfinv": (torch.erfinv, mp.erfinv, INNER),
    "exp": (torch.exp, mp.exp, SMALL),
    "exp2": (torch.exp2, lambda x: mp.mpf(2) ** x, REAL),
    "expm1": (torch.expm1, mp.expm1, SMALL),
    "gelu": (F.gelu, lambda x: x * normal(x), REAL),
    "gelu by tanh": (lambda x: F.gelu(x, approximate="tanh"), by_tanh, REAL),
    "i0": (S.i0, lambda x: mp.besseli(0, x), SMALL),
    "i0e": (S.i0e, lambda x: mp.exp(-abs(x)) * mp.besseli(0, x), NOT_AT_0),
    "i1": (S.i1, lambda x: mp.besseli(1, x), SMALL),
    "i1e": (S.i1e, lambda x: mp.exp(-abs(x)) * mp.besseli(1, x), NOT_AT_0),
    "lgamma": (torch.lgamma, lambda x: mp.log(abs(mp.gamma(x))), [-40.3, -0.5, *POSITIVE]),
    "log": (torch.log, mp.log, POSITIVE),
    "log10": (torch.log10, mp.log10, POSITIVE),
    "log1p": (torch.log1p, lambda x: mp.log(1 + x), [-1 + 1e-10, -0.5, -1e-8, 0.0, *POSITIVE]),
    "log2": (torch.log2, lambda x: mp.log(x, 2), POSITIVE),
    "log_ndtr": (S.log_ndtr, lambda x: mp.log(normal(x)), REAL),
    "log_sigmoid": (F.logsigmoid, lambda x: -softplus(-x), REAL),
    "mish": (F.mish, lambda x: x * mp.tanh(softplus(x)), REAL),
    "pow": (lambda x: x**2.5, lambda x: x ** mp.mpf(2.5), POSITIVE),
    "pow 3": (lambda x: x**3, lambda x: x**3, REAL),
    "pow 1": (lambda x: x**1, lambda x: x, REAL),
    "pow -2": (lambda x: x**-2, lambda x: x**-2, NOT_AT_0),
    "reciprocal": (torch.reciprocal, lambda x: 1 / x, NOT_AT_0),
    "rsqrt": (torch.rsqrt, lambda x: 1 / mp.sqrt(x), POSITIVE),
    "selu": (F.selu, selu, NOT_AT_0),
    "sigmoid": (torch.sigmoid, sigmoid, REAL),
    "silu": (F.silu, lambda x: x * sigmoid(x), REAL),
    "sin": (torch.sin, mp.sin, REAL),
    "sinc": (torch.sinc, mp.sincpi, REAL),
    "sinh": (torch.sinh, mp.sinh, SMALL),
    # Above 20 / beta torch takes x for it.
    "softplus": (lambda x: F.softplus(x, 2.5, 40.0), lambda x: softplus(x * 2.5) / 2.5, [x for x in REAL if x < 16]),
    "special_erf": (S.erf, mp.erf, REAL),
    "special_expit": (S.expit, sigmoid, REAL),
    "sqrt": (torch.sqrt, mp.sqrt, POSITIVE),
    "square": (torch.square, lambda x: x * x, REAL),
    "tan": (torch.tan, mp.tan, REAL),
    "tanh": (torch.tanh, mp.tanh, REAL),
    "tanhshrink": (F.tanhshrink, lambda x: x - mp.tanh(x), REAL),
}
# No rule of one number serves these.
OTHER = {
    "entr": (S.entr, lambda x: -x * mp.log(x), POSITIVE),
    "glu": (lambda x: F.glu(torch.cat([x, x]), 0), lambda x: x * sigmoid(x), REAL),
    "hypot": (lambda x: torch.hypot(x, torch.ones_like(x)), lambda x: mp.sqrt(x * x + 1), REAL),
    "logaddexp": (lambda x: torch.logaddexp(x, -x), lambda x: abs(x) + mp.log1p(mp.exp(-2 * abs(x))), REAL),
    "logaddexp2": (
        lambda x: torch.logaddexp2(x, torch.zeros_like(x)),
        lambda x: softplus(x * mp.log(2)) / mp.log(2),
        REAL,
    ),
    "logcumsumexp": (lambda x: torch.cat([torch.zeros_like(x), x]).logcumsumexp(0)[1], softplus, REAL),
    "logit": (torch.logit, lambda x: mp.log(x) - mp.log(1 - x), SHARE),
    "log_softmax": (lambda x: torch.cat([x, torch.zeros_like(x)]).log_softmax(0)[0], lambda x: -softplus(-x), REAL),
    "logsumexp": (lambda x: torch.cat([x, torch.zeros_like(x)]).logsumexp(0), softplus, REAL),
    "ndtr": (S.ndtr, normal, REAL),
    "ndtri": (S.ndtri, lambda p: mp.sqrt(2) * mp.erfinv(2 * p - 1), SHARE),
    "polygamma": (lambda x: S.polygamma(1, x), lambda x: mp.polygamma(1, x), POSITIVE),
    "quotient": (lambda x: 1 / (1 + x * x), lambda x: 1 / (1 + x * x), REAL),
    "softsign": (F.softsign, lambda x: x / (1 + abs(x)), NOT_AT_0),
    "softmax": (lambda x: torch.cat([x, torch.zeros_like(x)]).softmax(0)[0], sigmoid, REAL),
    "to the power of itself": (lambda x: x**x, lambda x: x**x, [1e-3, 0.3, 1.0, 2.0, 8.0, 40.0]),
    "2 to the power": (lambda x: 2.0**x, lambda x: mp.mpf(2) ** x, REAL),
    "vector_norm": (lambda x: torch.cat([x, torch.ones_like(x)]).norm(), lambda x: mp.sqrt(x * x + 1), REAL),
    "vector_norm, p = 1.5": (
        lambda x: torch.linalg.vector_norm(torch.cat([x, torch.ones_like(x)]), 1.5),
        lambda x: (abs(x) ** mp.mpf(1.5) + 1) ** (mp.mpf(2) / 3),
        NOT_AT_0,
    ),
    "xlogy": (lambda x: torch.xlogy(x, x), lambda x: x * mp.log(x), POSITIVE),
    "xlog1py": (lambda x: S.xlog1py(x, x), lambda x: x * mp.log(1 + x), POSITIVE),
}
T = torch.tensor([0.3], dtype=DTYPE)
SHARP = mp.mpf(0.3)
LOSSES = {
    "binary_cross_entropy": (
        lambda x: F.binary_cross_entropy(x, T),
        lambda x: -SHARP * mp.log(x) - (1 - SHARP) * mp.log(1 - x),
        SHARE,
    ),
    "binary_cross_entropy_with_logits": (
        lambda x: F.binary_cross_entropy_with_logits(x, T),
        lambda x: softplus(x) - SHARP * x,
        REAL,
    ),
    "huber_loss": (
        lambda x: F.huber_loss(x, T, delta=2.0),
        lambda x: (x - SHARP) ** 2 / 2 if abs(x - SHARP) < 2 else 2 * abs(x - SHARP) - 2,
        REAL,
    ),
    "mse_loss": (lambda x: F.mse_loss(x, T), lambda x: (x - SHARP) ** 2, REAL),
    "poisson_nll_loss": (lambda x: F.poisson_nll_loss(x, T), lambda x: mp.exp(x) - SHARP * x, SMALL),
    "smooth_l1_loss": (
        lambda x: F.smooth_l1_loss(x, T, beta=2.0),
        lambda x: (x - SHARP) ** 2 / 4 if abs(x - SHARP) < 2 else abs(x - SHARP) - 1,
        REAL,
    ),
    "soft_margin_loss": (lambda x: F.soft_margin_loss(x, torch.ones_like(x)), lambda x: softplus(-x), SMALL),
}
TABLE = LINEAR | CURVED | OTHER | LOSSES


@functools.cache
def truth(name, x):
    """f and its first three derivatives at x."""
    f = TABLE[name][1]
    with mp.workdps(90):
        x, h = mp.mpf(x), mp.mpf(10) ** -15 * max(abs(mp.mpf(x)), mp.mpf(10) ** (-8 if x else 0))
        a, b, c, d, e = (f(x + k * h) for k in (-2, -1, 0, 1, 2))
        return [float(v) for v in (c, (d - b) / (2 * h), (d - 2 * c + b) / h**2, (e - 2 * d + 2 * b - a) / (2 * h**3))]


def problem(function, x):
    w = nn.Parameter(torch.tensor([x], dtype=DTYPE))
    partition = gn.Partition.from_groups({"w": {"w": w}})
    return (lambda: function(w).sum()), partition, {"w": torch.ones(1, dtype=DTYPE)}


def faults(name, x, numbers):
    expected = truth(name, x)
    scale = [1e-15 * max(1, *map(abs, expected[: k + 2])) for k in range(3)]
    pairs = zip(numbers, expected[1:], scale, strict=True)
    return [(name, x, k, g, e) for k, (g, e, s) in enumerate(pairs, 1) if not abs(g - e) <= 1e-6 * abs(e) + s]


@pytest.mark.parametrize("name", TABLE)
def test_three_derivatives_at_extreme_points(name):
    function, _, points = TABLE[name]
    for x, engine in product(points, ("tape", "nested")):
        s = gn.summarize(*problem(function, x), engine=engine)
        assert faults(name, x, [s.gradient.item(), s.hessian.item(), s.third.item()]) == [], engine


def test_every_function_with_a_rule_of_one_number_is_tried():
    rules = {n for n, rules in _RULES.items() if any(isinstance(r, Pointwise) for r in rules)}
    assert rules - set(TABLE) == set()


# What torch's own formulas get wrong, the control of all that is written out.
WRONG = {
    **{"sinc": 1e-8, "i0": 1e-8, "i1": 1e-8, "i1e": 1e-8, "log_ndtr": -200.0, "erfcx": 1e3, "mish": 1e3},
    **{
        "binary_cross_entropy": 1e-8,
        "gelu by tanh": 40.0,
        "logaddexp": 1e3,
        "logcumsumexp": 0.4,
        "to the power of itself": 1.0,
    },
}


@pytest.mark.parametrize("name", WRONG)
def test_the_control_torchs_own_derivatives_are_wrong(name):
    loss, partition, u = problem(TABLE[name][0], WRONG[name])
    gradient, hessian, third, _ = nested.summary(loss(), partition, u)
    assert faults(name, WRONG[name], [gradient.item(), hessian.item(), third.item()])


POWERS = {
    "pow": torch.pow,
    "**": lambda x, y: x**y,
    "method": lambda x, y: x.pow(y),
    "pow_": lambda x, y: x.clone().pow_(y),
    "**=": lambda x, y: x.clone().__ipow__(y),
    "float_power": torch.float_power,
    "aten": torch.ops.aten.pow.Tensor_Tensor,
    "vmap": torch.func.vmap(torch.pow),
    "by name": lambda x, y: torch.pow(input=x, exponent=y),
}


@pytest.mark.parametrize("engine", ["tape", "nested"])
@pytest.mark.parametrize("y", [0.0, 1.0, 2.0, -1.0, 0.5])
@pytest.mark.parametrize("name", POWERS)
def test_powers_in_both_arguments(name, y, engine):
    """Where y = 0 torch hides y x^(y-1) by a mask, whose derivative along y is 1 / x."""
    x, y = (nn.Parameter(torch.tensor(v, dtype=DTYPE)) for v in ([0.5, 1.0, 3.0], [y, y, y]))
    partition = gn.Partition.from_groups({"x": {"x": x}, "y": {"y": y}})
    u = {"x": torch.tensor([0.3, -1.0, 2.0], dtype=DTYPE), "y": torch.tensor([1.0, 0.7, -0.4], dtype=DTYPE)}
    options = {"engine": engine, "full_third": True}
    summary = gn.summarize(lambda: POWERS[name](x, y).sin().sum(), partition, u, **options)
    expected = gn.summarize(lambda: (y * x.log()).exp().sin().sum(), partition, u, **options)
    for ours, theirs in zip(summary.tensors(), expected.tensors(), strict=True):
        # A few roundings of numbers below 100.
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-11)


# -- several numbers: zeros, ones and ties, where formulas branch ------------------------------------------------------------


def spread(y):
    return (y * torch.arange(1, y.numel() + 1, dtype=DTYPE).reshape(y.shape).sin()).sum()


def summed(x, reduce):
    return spread(torch.ones(2, dtype=DTYPE).scatter_reduce(0, torch.tensor([0, 0, 1]), x, reduce))


# function of x (3,), and the same in sums and products, exponentials and logarithms
SEVERAL = {
    "prod": (torch.prod, lambda x: x[0] * x[1] * x[2]),
    "cumprod": (lambda x: spread(x.cumprod(0)), lambda x: spread(torch.stack([x[0], x[0] * x[1], x[0] * x[1] * x[2]]))),
    "norm": (lambda x: (x + 1).norm(), lambda x: ((x + 1) * (x + 1)).sum().sqrt()),
    "norm, p = 4": (lambda x: (x + 1).norm(p=4), lambda x: ((x + 1) ** 4).sum() ** 0.25),
    "softmax": (lambda x: spread(x.softmax(0)), lambda x: spread(x.exp() / x.exp().sum())),
    "logsumexp": (lambda x: x.logsumexp(0), lambda x: x.exp().sum().log()),
    "logaddexp": (lambda x: torch.logaddexp(x[0], x[1]), lambda x: (x[0].exp() + x[1].exp()).log()),
    "var": (lambda x: x.var() ** 2, lambda x: (((x - x.mean()) ** 2).sum() / 2) ** 2),
    "xlogy": (lambda x: torch.xlogy(x[0], x[1] + 1), lambda x: x[0] * (x[1] + 1).log()),
    "xlog1py": (lambda x: S.xlog1py(x[0], x[1]), lambda x: x[0] * (1 + x[1]).log()),
    "hypot": (lambda x: torch.hypot(x[0], x[1] + 1), lambda x: (x[0] ** 2 + (x[1] + 1) ** 2).sqrt()),
    "atan2": (lambda x: torch.atan2(x[0], x[1] + 1), lambda x: (x[0] / (x[1] + 1)).atan()),
    "lerp": (lambda x: torch.lerp(x[0], x[1], x[2]), lambda x: x[0] + x[2] * (x[1] - x[0])),
    "kl_div": (lambda x: F.kl_div(x[0], x[1] + 1, reduction="sum"), lambda x: (x[1] + 1) * ((x[1] + 1).log() - x[0])),
    "prod, keepdim": (lambda x: spread(x.prod(0, keepdim=True)), lambda x: spread((x[0] * x[1] * x[2])[None])),
    "cumprod_": (
        lambda x: spread((x * 1.0).cumprod_(-1)),
        lambda x: spread(torch.stack([x[0], x[0] * x[1], x[0] * x[1] * x[2]])),
    ),
    "scatter_reduce prod": (
        lambda x: summed(x + 1, "prod"),
        lambda x: spread((x + 1)[[0, 2]] * torch.stack([x[1] + 1, T[0] / 0.3])),
    ),
    "scatter_reduce mean": (
        lambda x: summed(x, "mean") ** 3,
        lambda x: spread(torch.stack([(1 + x[0] + x[1]) / 3, (1 + x[2]) / 2])) ** 3,
    ),
    "matrix_power": (
        lambda x: spread(torch.matrix_power(torch.outer(x, x), 2)),
        lambda x: spread(torch.outer(x, x) * (x * x).sum()),
    ),
    "cov": (
        lambda x: torch.cov(torch.stack([x, x * x]))[0, 1],
        lambda x: ((x - x.mean()) * (x * x - (x * x).mean())).sum() / 2,
    ),
}
TIES = [[2.0, 3.0, 4.0], [0.0, 2.0, 3.0], [0.0, 0.0, 3.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [2.0, 0.0, 5.0]]
TIES += [[1e-8, 2.0, 3.0], [2.0, 1e-4, 1e-9], [1e-20, 0.0, 1.0]]


@pytest.mark.parametrize("engine", ["tape", "nested"])
@pytest.mark.parametrize("name", SEVERAL)
def test_zeros_ones_and_ties(name, engine):
    for point in TIES:
        check_formula(*SEVERAL[name], point, engine)


def check_formula(function, formula, point, engine):
    """A function and its formula have one summary, to some dozen roundings of the largest entry."""
    x = nn.Parameter(torch.tensor(point, dtype=DTYPE))
    partition = gn.Partition.by_scalar(nn.ParameterList([x]))
    u = {n: torch.tensor([1.0, -0.7, 0.4], dtype=DTYPE) for n in partition.parameters}
    summary = gn.summarize(lambda: function(x), partition, u, full_third=True, engine=engine)
    expected = gn.summarize(lambda: formula(x), partition, u, full_third=True, engine="nested")
    for ours, theirs in zip(summary.tensors(), expected.tensors(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10 * max(1.0, theirs.abs().max().item()))


@pytest.mark.parametrize("name", ["prod", "cumprod"])
def test_the_control_torchs_own_products_lose_their_third_derivative_near_zero(name):
    function, formula = SEVERAL[name]
    x = nn.Parameter(torch.tensor([2.0, 1e-4, 1e-9], dtype=DTYPE))
    partition = gn.Partition.by_scalar(nn.ParameterList([x]))
    u = {n: torch.tensor([1.0, -0.7, 0.4], dtype=DTYPE) for n in partition.parameters}
    own, expected = (nested.summary(f(x), partition, u, full_third=True)[3] for f in (function, formula))
    assert (own - expected).abs().max() > 1e-5 * expected.abs().max()


INTO = torch.zeros(2, dtype=torch.long)
REDUCTIONS = {
    "scatter_reduce": lambda before, x, **options: before.scatter_reduce(0, INTO, x, "prod", **options),
    "index_reduce": lambda before, x, **options: before.index_reduce(0, INTO, x, "prod", **options),
}
# What is multiplied with what, and the factor of the three that may be small: before the reduction, or among what is reduced.
REDUCED = {
    "source": (lambda f, x: f(torch.ones(1, dtype=DTYPE), x[:2]) * x[2], 1),
    "before": (lambda f, x: f(x[:1], x[1:]), 0),
    "constant before": (lambda f, x: f(torch.full((1,), 1e-12, dtype=DTYPE), x[:2]) * x[2] * 1e12, None),
    "excluded": (lambda f, x: f(x[2:], x[:2], include_self=False) * x[2], 2),
    "constant source": (lambda f, x: f(x[:1], torch.tensor([1e-12, 1e12], dtype=DTYPE)) * x[1] * x[2], None),
}


@pytest.mark.filterwarnings("ignore:index_reduce")
@pytest.mark.parametrize("engine", ["tape", "nested"])
@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("name", REDUCED)
def test_products_by_reduction_are_right_or_refused(name, reduce, engine):
    """Torch divides by each factor that is differentiated, what was there before among them."""
    function, place = REDUCED[name]
    for least, order in product((0.1, 1e-3, 1e-6, 1e-11), (2, 3)):
        x = nn.Parameter(torch.tensor([1.0, 0.8, -0.7], dtype=DTYPE))
        if place is not None:
            x.data[place] = least
        partition = gn.Partition.by_scalar(nn.ParameterList([x]))
        u = {n: torch.tensor([1.0, -0.7, 0.4], dtype=DTYPE) for n in partition.parameters}
        loss = lambda x=x: function(REDUCTIONS[reduce], x).sum()  # noqa: E731
        if place is not None and name != "excluded" and least < {2: 1e-9, 3: 1e-5}[order]:
            with pytest.raises(NotImplementedError, match=r"Reduce.*torch\.prod"):
                gn.summarize(loss, partition, u, order=order, engine=engine)
            continue
        summary = gn.summarize(loss, partition, u, order=order, engine=engine)
        expected = gn.summarize(lambda x=x: x[0] * x[1] * x[2], partition, u, order=order)
        for ours, theirs in zip(summary.tensors(), expected.tensors(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore:index_reduce")
@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("name", ["source", "before"])
def test_the_control_products_by_reduction_lose_their_digits(name, reduce):
    function, place = REDUCED[name]
    third = []
    for f in (lambda x: function(REDUCTIONS[reduce], x).sum(), lambda x: x[0] * x[1] * x[2]):
        x = nn.Parameter(torch.tensor([1.0, 0.8, -0.7], dtype=DTYPE))
        x.data[place] = 1e-11
        partition = gn.Partition.by_scalar(nn.ParameterList([x]))
        u = {n: torch.tensor([1.0, -0.7, 0.4], dtype=DTYPE) for n in partition.parameters}
        third.append(nested.summary(f(x).sin(), partition, u, full_third=True)[3])
    assert not torch.allclose(third[0], third[1], rtol=1e-3)


# -- complex numbers: the same formulas, with the same holes -----------------------------------------------------------------


def both_parts(z):
    """A real number of complex ones that is smooth wherever they are."""
    z = z.reshape(-1)
    return (z.real * torch.arange(1, len(z) + 1).cos() + z.imag * torch.arange(2, len(z) + 2).sin()).sum().sin()


def by_log(base, exponent):
    return (exponent * (base + 0j).log()).exp()


def series_of_sinc(z):
    return sum((-1) ** k * (math.pi * z) ** (2 * k) / float(math.factorial(2 * k + 1)) for k in range(25))


# function of z (3,), the same in sums, products, exponentials and logarithms, and a point at which most of torch's own derivatives are wrong
COMPLEX = {
    "prod": (torch.prod, lambda z: z[0] * z[1] * z[2], [1e-9 + 1e-9j, 2 + 1j, 3 - 1j]),
    "prod, dim": (
        lambda z: torch.stack([z, 2 * z]).prod(1, keepdim=True),
        lambda z: torch.stack([z[0] * z[1] * z[2], 8 * z[0] * z[1] * z[2]]),
        [1e-9 + 1e-9j, 2 + 1j, 3 - 1j],
    ),
    "prod into complex": (
        lambda z: z.real.prod(dtype=torch.complex128),
        lambda z: z.real[0] * z.real[1] * z.real[2] + 0j,
        [1e-9 + 1e-9j, 2 + 1j, 3 - 1j],
    ),
    "cumprod": (
        lambda z: z.cumprod(0),
        lambda z: torch.stack([z[0], z[0] * z[1], z[0] * z[1] * z[2]]),
        [1e-9 + 1e-9j, 2 + 1j, 3 - 1j],
    ),
    "cumprod_": (
        lambda z: (z * 1.0).cumprod_(0),
        lambda z: torch.stack([z[0], z[0] * z[1], z[0] * z[1] * z[2]]),
        [1e-9 + 1e-9j, 2 + 1j, 3 - 1j],
    ),
    "vander": (
        lambda z: torch.linalg.vander(z, N=4),
        lambda z: torch.stack([0 * z + 1, z, z * z, z * z * z], -1),
        [1e-9 + 1e-9j, 2 + 1j, 0.3 - 1j],
    ),
    "sinc": (torch.sinc, series_of_sinc, [1e-9 + 1e-9j, 0.4 + 0.3j, 0.6 - 0.5j]),
    "logcumsumexp": (
        lambda z: z.logcumsumexp(0),
        lambda z: torch.stack([z[0], z[:2].exp().sum().log(), z.exp().sum().log()]),
        [0.3 + 0.1j, 0.4 + 0.5j, -0.2j],
    ),
    "logaddexp": (
        lambda z: torch.logaddexp(z[0], z[1] - 1000 * z[2]),
        lambda z: z[0] + (z[1] - 1000 * z[2] - z[0]).exp().log1p(),
        [0.3 + 0.1j, 0.4 + 0.5j, 1 - 0.2j],
    ),
    **{
        f"pow at {y}": (
            lambda z: z[0] ** (z[1] * z[2]),
            lambda z: by_log(z[0], z[1] * z[2]),
            [0.7 + 0.4j, y + 0j, 1 + 0j],
        )
        for y in (0, 1)
    },
    "pow of a negative base": (lambda z: z[0] ** z[1], lambda z: by_log(z[0], z[1]), [-0.7 + 0.1j, 0j, 0j]),
    "float_power": (lambda z: torch.float_power(z[0], z[1]), lambda z: by_log(z[0], z[1]), [0.7 + 0.4j, 0j, 0j]),
    "a real base": (lambda z: z[0].real ** z[1], lambda z: by_log(z[0].real, z[1]), [0.7 + 0.4j, 0j, 0j]),
    "a negative real base": (lambda z: z[0].real ** z[1], lambda z: by_log(z[0].real, z[1]), [-0.7 + 0.4j, 0j, 0j]),
    "a real exponent": (lambda z: z[0] ** z[1].real, lambda z: by_log(z[0], z[1].real), [0.7 + 0.4j, 0j, 0j]),
    "pow_": (lambda z: (z[:1] * 1.0).pow_(z[1:2]), lambda z: by_log(z[:1], z[1:2]), [0.7 + 0.4j, 0j, 0j]),
    "fixed exponents": (
        lambda z: z[:, None] ** torch.arange(4),
        lambda z: torch.stack([0 * z + 1, z, z * z, z * z * z], -1),
        [1e-9 + 0j, 1e-3j, 0.3 - 1j],
    ),
}


def complex_problem(function, point):
    z = torch.tensor(point, dtype=torch.complex128)
    parts = {name: {name: nn.Parameter(getattr(z, name).clone())} for name in ("real", "imag")}
    partition = gn.Partition.from_groups(parts)
    u = {"real": torch.tensor([1.0, -0.7, 0.4], dtype=DTYPE), "imag": torch.tensor([0.3, 0.8, -0.5], dtype=DTYPE)}
    x, y = partition.parameters.values()
    return (lambda: both_parts(function(torch.complex(x, y)))), partition, u


@pytest.mark.parametrize("engine", ["tape", "nested"])
@pytest.mark.parametrize("name", COMPLEX)
def test_complex_numbers_where_torchs_derivatives_fail(name, engine):
    function, formula, point = COMPLEX[name]
    # There, and where nothing special is.
    for where in (point, [0.7 + 0.2j, 0.4 - 0.3j, 1.3 + 0.1j]):
        summary = gn.summarize(*complex_problem(function, where), full_third=True, engine=engine)
        expected = gn.summarize(*complex_problem(formula, where), full_third=True, engine="nested")
        for ours, theirs in zip(summary.tensors(), expected.tensors(), strict=True):
            # Some dozen roundings of the largest entry.
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10 * max(1.0, theirs.abs().max().item()))


@pytest.mark.parametrize("name", sorted(set(COMPLEX) - {"prod into complex", "logcumsumexp", "fixed exponents"}))
def test_the_control_torchs_own_complex_derivatives_are_wrong(name):
    function, formula, point = COMPLEX[name]
    third = []
    for f in (function, formula):
        loss, partition, u = complex_problem(f, point)
        third.append(nested.summary(loss(), partition, u, full_third=True)[3])
    assert not torch.allclose(third[0], third[1], rtol=1e-6, atol=1e-6)


# -- products below Python, and powers of zero -------------------------------------------------------------------------------

BELOW = {
    "linalg.vander": (
        lambda x: torch.linalg.vander(x, N=4),
        lambda x: torch.stack([0 * x + 1, x, x * x, x * x * x], -1),
    ),
    "powers of integers": (
        lambda x: x[:, None] ** torch.arange(4),
        lambda x: torch.stack([0 * x + 1, x, x * x, x * x * x], -1),
    ),
    "powers of numbers": (
        lambda x: torch.pow(x, torch.tensor([0.0, 1.0, 2.0])),
        lambda x: torch.stack([0 * x[0] + 1, x[1], x[2] * x[2]]),
    ),
    "powers in float64": (
        lambda x: torch.float_power(x, torch.tensor([1, 0, 1])),
        lambda x: torch.stack([x[0], 0 * x[1] + 1, x[2]]),
    ),
    "powers in place": (
        lambda x: (x * 1.0).pow_(torch.tensor([1, 0, 1])),
        lambda x: torch.stack([x[0], 0 * x[1] + 1, x[2]]),
    ),
}


@pytest.mark.parametrize("engine", ["tape", "nested"])
@pytest.mark.parametrize("name", BELOW)
def test_products_below_python_and_powers_of_zero(name, engine):
    ours, theirs = ((lambda x, f=f: spread(f(x)).sin()) for f in BELOW[name])
    for point in TIES:
        check_formula(ours, theirs, point, engine)


@pytest.mark.parametrize("name", BELOW)
def test_the_control_torchs_own_derivatives_are_wrong_or_nan(name):
    third = []
    for f in BELOW[name]:
        x = nn.Parameter(torch.tensor([1e-9, 0.0, 2.0] if "power" in name else [1e-9, 2e-9, 2.0], dtype=DTYPE))
        partition = gn.Partition.by_scalar(nn.ParameterList([x]))
        u = {n: torch.tensor([1.0, -0.7, 0.4], dtype=DTYPE) for n in partition.parameters}
        third.append(nested.summary(spread(f(x)).sin(), partition, u, full_third=True)[3])
    assert not torch.allclose(third[0], third[1], rtol=1e-6)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("function", [torch.prod, lambda x: x.cumprod(0)[2]])
@pytest.mark.parametrize("engine", ["auto", "nested"])
def test_products_in_a_script_are_right_or_refused(function, engine):
    """Scripts call torch's own products, whose node stands in the graph."""
    script = torch.jit.trace(function, torch.ones(3, dtype=DTYPE), check_trace=False)
    for least in (0.5, 1e-3, 1e-6, 1e-11, 0.0):
        x = nn.Parameter(torch.tensor([1.0, least, -0.7], dtype=DTYPE))
        partition = gn.Partition.by_scalar(nn.ParameterList([x]))
        u = {n: torch.tensor([1.0, -0.7, 0.4], dtype=DTYPE) for n in partition.parameters}
        if least < 1e-5:
            with pytest.raises(NotImplementedError, match=r"(Cump|P)rodBackward.*torch\.prod"):
                gn.summarize(lambda x=x: script(x), partition, u, engine=engine)
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of nested passes in the place of the tape
            summary = gn.summarize(lambda x=x: script(x), partition, u, engine=engine)
        expected = gn.summarize(lambda x=x: x[0] * x[1] * x[2], partition, u)
        for ours, theirs in zip(summary.tensors(), expected.tensors(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


SHAPES = [(1,), (2,), (7,), (4, 5), (2, 3, 5), (3, 0)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("function", [torch.prod, torch.cumprod])
def test_products_along_every_axis_are_torchs(function, shape):
    x = torch.linspace(-1, 2, torch.Size(shape).numel(), dtype=DTYPE).reshape(shape).requires_grad_()
    options = [{"keepdim": True}, {"keepdim": False}] if function is torch.prod else [{}]
    calls = [{"dim": dim} | more for dim in range(-len(shape), len(shape)) for more in options]
    calls += [{"dim": 9}, *([{}, {"dtype": torch.float32}, {"keepdim": True}] if function is torch.prod else [])]
    for call in calls:
        results = []
        for mode in (Elementary(), torch.enable_grad()):
            try:
                with mode:
                    value = function(x, **call)
                results.append((value.shape, value.dtype, value.detach(), *torch.autograd.grad(value.sum(), x)))
            except (IndexError, TypeError) as error:
                results.append(type(error))
        # A few roundings, in float32 where it is asked for.
        assert isinstance(results[0], type) or results[0][:2] == results[1][:2]
        digits = 1e-6 if torch.float32 in call.values() else 1e-13
        for ours, theirs in zip(*results, strict=True) if isinstance(results[0], tuple) else [results]:
            if isinstance(ours, torch.Tensor):
                torch.testing.assert_close(ours, theirs, rtol=digits, atol=digits)
            else:
                assert ours == theirs


# -- what is written out is torch's function ---------------------------------------------------------------------------

ARGUMENTS = {
    **dict.fromkeys(("logaddexp", "logaddexp2", "pow", "float_power"), 2),
    **dict.fromkeys(("__pow__", "__ipow__", "pow_", "float_power_"), 2),
}
X = torch.tensor([[0.2, 0.49, 0.51], [1.5, 4.5, 7.0]], dtype=DTYPE)
Y = torch.tensor([0.3, -0.2, 1.0], dtype=DTYPE)


def outcome(function, name, mode, x):
    x, y = x.clone().requires_grad_(), Y.clone().requires_grad_()
    given = x * 1.0 if name.rstrip("0123456789").endswith("_") or name.startswith("__i") else x
    along = name in ("logcumsumexp", "cumprod", "cumprod_")
    rest = [y] if ARGUMENTS.get(name) else [1] if along else []
    with mode:
        out = function(given, *rest)
    slopes = torch.autograd.grad(out.sum(), [x, *[y] * bool(ARGUMENTS.get(name))])
    return out.detach(), *slopes


OVERLOADS = ("default", "Tensor_Tensor", "Tensor")
OWN = {
    f"{i} {f if isinstance(f, torch._ops.OpOverload | torch._ops.OpOverloadPacket) else f.__name__}": f
    for i, f in enumerate(SPECIAL)
    if not isinstance(f, torch._ops.OpOverload) or f._overloadname in OVERLOADS
}


def short(function):
    name = function.overloadpacket.__name__ if isinstance(function, torch._ops.OpOverload) else function.__name__
    return name.removeprefix("special_")


@pytest.mark.parametrize("which", OWN)
def test_value_and_gradients_are_torchs(which):
    function, name = OWN[which], short(OWN[which])
    for x in (X, -X) if name not in ("pow", "pow_", "__pow__", "__ipow__", "float_power", "float_power_") else (X,):
        if name == "float_power_":
            continue  # its result is float64, as all here
        ours, theirs = outcome(function, name, Elementary(), x), outcome(function, name, torch.enable_grad(), x)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


def test_what_is_not_differentiated_is_torchs_own():
    out = torch.empty(3)
    with Elementary():
        assert torch.sinc(torch.arange(3), out=out) is out
        assert torch.pow(torch.tensor([2, 3]), 2).tolist() == [4, 9]
        assert torch.pow(2, torch.tensor([2.0])).tolist() == [4.0]
        assert math.isnan(torch.special.log_ndtr(torch.tensor(float("nan"))).item())
        assert F.gelu(torch.ones(2), approximate="tanh").equal(
            torch.nn.functional.gelu(torch.ones(2), approximate="tanh")
        )


def test_negative_and_zero_bases_are_torchs():
    x = torch.tensor([-2.0, 0.0, 0.0], dtype=DTYPE)
    y = torch.tensor([2.0, 2.0, 0.5], dtype=DTYPE, requires_grad=True)
    with Elementary():
        base = x.clone().requires_grad_()
        value = base**y
    torch.testing.assert_close(value, torch.pow(x, y))


def test_entries_of_minus_infinity_are_masks():
    a = torch.tensor([-math.inf, 0.5], dtype=DTYPE, requires_grad=True)
    b = torch.tensor([0.3, -math.inf], dtype=DTYPE, requires_grad=True)
    with Elementary():
        value = torch.logaddexp(a, b)
    torch.testing.assert_close(value.detach(), torch.tensor([0.3, 0.5], dtype=DTYPE))
    assert [g.tolist() for g in torch.autograd.grad(value.sum(), [a, b])] == [[0.0, 1.0], [1.0, 0.0]]
