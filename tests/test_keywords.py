"""What is written out is torch's own function in every keyword: value, gradients and errors.

The calls are generated: for each function every combination of the values below, one list for each keyword of its
signature. A keyword that torch adds and this page does not know fails the first test.
"""

import inspect
import itertools
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._ops import OpOverload, OpOverloadPacket

from gnewton import transposed
from gnewton.elementary import SPECIAL, WRITTEN_OUT, Elementary

DTYPE = torch.float64
OPTIONS = [None, True, False]
REDUCTIONS = ["mean", "sum", "none", "median"]


def rand(*shape, seed=0, low=0.1, high=0.9, dtype=DTYPE):
    g = torch.Generator().manual_seed(seed)
    return (low + (high - low) * torch.rand(shape, generator=g, dtype=DTYPE)).to(dtype)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DTYPE)


def classes(*shape):
    return torch.arange(int(torch.tensor(shape).prod())).reshape(shape) % 3


PAIRS = [(rand(4, 3), rand(4, 3, seed=1)), (rand(4, 3), rand(1, 3, seed=1)), (rand(4, 3), rand(3, 1, seed=1))]
REDUCED = {"size_average": OPTIONS, "reduce": OPTIONS, "reduction": REDUCTIONS}
WEIGHTED = {"weight": [None, rand(4, 3, seed=2), rand(3, seed=2), rand(4, 1, seed=2).expand(4, 3)]}
PADDED = torch.tensor([[0, 2], [1, 2], [4, 2]])
MASKS = [
    *(None, torch.ones(5, 5, dtype=torch.bool).tril(), randn(5, 5, seed=4), randn(4, seed=4), randn(4, 5, 5, seed=4)),
    *(torch.arange(5)[:, None].expand(5, 5) != 2, randn(3, 1, 1, 5, seed=4), rand(5, 5, dtype=torch.float32)),
]

DROPPED = [(randn(2, 4, 3), p, train) for p in (0.0, 0.3, 1.0, 1.5) for train in (False, True)]


def recurrent_cell(gates, state):
    inputs = [(randn(2, 3), state, randn(gates, n), randn(gates, 4)) for n in (3, 2)]  # the second does not fit
    return inputs, {"b_ih": [None, randn(gates, seed=2)], "b_hh": [None, randn(gates, seed=3)]}


# function -> (the first arguments, by position; a list of values for each further keyword)
CALLS = {
    torch.cdist: (
        [(randn(4, 3), randn(5, 3, seed=1)), (randn(2, 4, 3), randn(5, 3, seed=1)), (randn(4, 3), randn(5, 2, seed=1))],
        {
            "p": [2.0, 1.0, 3.0, -1.0],
            "compute_mode": ["use_mm_for_euclid_dist_if_necessary", "donot_use_mm_for_euclid_dist"],
        },
    ),
    torch.einsum: (
        [
            ("ij,jk->ik", randn(4, 3), randn(3, 2, seed=1)),
            ("ij,jk", randn(4, 3), [randn(3, 2, seed=1)]),
            ("ij, jk", [randn(4, 3), randn(3, 2, seed=1)]),
            ("ij,jk", [randn(4, 3), randn(2, 2, seed=1)]),
            ("ij,kj->ik", randn(4, 1), randn(2, 3, seed=1)),
            ("...i,...ij->...j", randn(2, 5, 3), randn(1, 5, 3, 2, seed=1)),
            ("...i,...ij->...j", randn(2, 5, 3), randn(5, 3, 2, seed=1)),
            ("i...,ij->j", randn(3, 2), randn(3, 2, seed=1)),
            ("b...i,...ij->b...j", randn(2, 3), randn(3, 2, seed=1)),
            ("ii,ij->ji", randn(3, 3), randn(3, 2, seed=1)),
            ("ii->", randn(3, 3)),
            ("ii", randn(3, 3)),
            ("i,j,k,kl->lji", randn(2), randn(3, seed=1), randn(4, seed=2), randn(4, 2, seed=3)),
            ("ij,jk,kl,lm->im", *(randn(3, 3, seed=i) for i in range(4))),
            ("ab,cd->a", randn(4, 3), randn(3, 2, seed=1)),
            (",i->i", randn(), randn(3, seed=1)),
            (randn(4, 3), [0, 1], randn(3, 2, seed=1), [1, 2], [2, 0]),
            (randn(4, 3), [0, 1], randn(3, 2, seed=1), [1, 2]),
            (randn(2, 4, 3), [Ellipsis, 0, 1], randn(3, 2, seed=1), [1, 2], [Ellipsis, 2]),
            ("ij,jk->iz", randn(4, 3), randn(3, 2, seed=1)),
            ("ij,jk->ii", randn(4, 3), randn(3, 2, seed=1)),
            ("ij->i", randn(4, 3), randn(3, 2, seed=1)),
            ("ijk->i", randn(4, 3)),
            ("i1,ij->j", randn(3, 3), randn(3, 2, seed=1)),
        ],
        {},
    ),
    torch.linalg.norm: (
        [(x,) for x in (randn(4, 3), randn(3), randn(2, 4, 3), randn())],
        {"ord": [None, 2, 1, 3.5, float("inf"), "fro", "nuc", "max"], "dim": [None, 0, -1, (0, 1), (1,), (0, 1, 2)]}
        | {"keepdim": [False, True], "dtype": [None]},
    ),
    F.embedding_bag: (
        [(PADDED, randn(5, 3)), (PADDED.flatten(), randn(5, 3))],
        {
            "offsets": [None, *(torch.tensor(o) for o in ([0, 2, 4], [0, 2, 2, 6], [0, 4, 2], [1, 3], [0, 9]))],
            "max_norm": [None],
            "norm_type": [2.0],
        }
        | {"scale_grad_by_freq": [False, True], "mode": ["mean", "sum", "max"], "sparse": [False]}
        | {"per_sample_weights": [None, rand(3, 2, seed=1), rand(6, seed=1)], "include_last_offset": [False, True]}
        | {"padding_idx": [None, 2]},
    ),
    F.mse_loss: (PAIRS, REDUCED | WEIGHTED),
    F.l1_loss: (PAIRS, REDUCED | WEIGHTED),
    F.smooth_l1_loss: (PAIRS, REDUCED | {"beta": [1.0, 0.2, 0.0, -1.0]}),
    F.huber_loss: (PAIRS, {"reduction": REDUCTIONS, "delta": [1.0, 0.2, 0.0]} | WEIGHTED),
    F.binary_cross_entropy: (PAIRS, REDUCED | WEIGHTED),
    F.binary_cross_entropy_with_logits: (
        PAIRS,
        REDUCED | WEIGHTED | {"pos_weight": [None, rand(3, seed=3), rand(4, 3, seed=3), rand(2, seed=3)]},
    ),
    F.poisson_nll_loss: (
        [*PAIRS, (rand(4, 3), rand(4, 3, seed=1) * 5)],
        REDUCED | {"log_input": [True, False], "full": [False, True], "eps": [1e-8, 0.3]},
    ),
    F.soft_margin_loss: ([(a, b.sub(0.5).sign()) for a, b in PAIRS], REDUCED),
    F.cross_entropy: (
        [
            (randn(5, 3), classes(5)),
            (randn(3), classes(1)[0]),
            (randn(2, 3, 4), classes(2, 4)),
            (randn(5, 3), rand(5, 3, seed=1)),
            (randn(2, 3, 4), rand(2, 3, 4, seed=1)),
            (randn(5, 3), classes(4)),
            (randn(5, 3), classes(5) * 0 + 1),
        ],
        REDUCED
        | {"weight": [None, rand(3, seed=2), rand(2, seed=2)], "ignore_index": [-100, 1, 0]}
        | {"label_smoothing": [0.0, 0.2, 1.5]},
    ),
    F.multi_margin_loss: (
        [(randn(5, 3), classes(5)), (randn(3), classes(1)), (randn(3), classes(1)[0]), (randn(5, 3), classes(4))],
        {"p": [1, 2, 3], "margin": [1.0, 0.3, -0.2], "weight": [None, rand(3, seed=2), rand(2, seed=2)]} | REDUCED,
    ),
    F.multilabel_margin_loss: (
        [
            (randn(3, 4), torch.tensor([[2, 0, -1, 1], [-1, 1, 2, 3], [1, 1, 3, -1]])),
            (randn(4), torch.tensor([2, 0, -1, 1])),
            (randn(3, 4), torch.tensor([2, 0, -1, 1])),
            (randn(1, 3), torch.tensor([[2, 5, -1]])),
        ],
        REDUCED,
    ),
    F.layer_norm: (
        [(randn(5, 4), [4]), (randn(2, 5, 4), (5, 4)), (randn(2, 5, 4), [4]), (randn(5, 4), [3]), (randn(5, 4), [])],
        {"weight": [None, randn(4, seed=1), randn(5, 4, seed=1), randn(1, seed=1)]}
        | {"bias": [None, randn(4, seed=2), randn(5, 4, seed=2), randn(1, seed=2)], "eps": [1e-5, 0.5]},
    ),
    torch.layer_norm: (
        [(randn(5, 4), [4]), (randn(2, 5, 4), (5, 4)), (randn(5, 4), [3])],
        {"weight": [None, randn(4, seed=1), randn(5, 4, seed=1)], "bias": [None, randn(4, seed=2)]}
        | {"eps": [1e-5, 0.5], "cudnn_enable": [True, False]},
    ),
    F.batch_norm: (
        [
            (x, mean, var)
            for x in (randn(5, 4), randn(5, 4, 3), randn(2, 4, 2, 3), randn(1, 4), randn(1, 4, 2), randn(4))
            for mean, var in ((None, None), (randn(4, seed=5), rand(4, seed=6)), (randn(3, seed=5), rand(3, seed=6)))
        ],
        {"weight": [None, randn(4, seed=1), randn(3, seed=1)], "bias": [None, randn(4, seed=2), randn(1, seed=2)]}
        | {"training": [False, True], "momentum": [0.1, 0.7], "eps": [1e-5, 0.5]},
    ),
    F.instance_norm: (
        [(randn(2, 4, 3),), (randn(2, 4, 2, 3),), (randn(2, 4, 1),), (randn(2, 4),), (randn(2, 4, 2, 1, 3),)],
        {"running_mean": [None, randn(4, seed=5)], "running_var": [None, rand(4, seed=6)]}
        | {"weight": [None, randn(4, seed=1), randn(3, seed=1)], "bias": [None, randn(4, seed=2)]}
        | {"use_input_stats": [True, False], "momentum": [0.1, 0.7], "eps": [1e-5, 0.5]},
    ),
    F.group_norm: (
        [
            *((randn(2, 4, 3), n) for n in (1, 2, 4, 3)),
            *((randn(*shape), 2) for shape in ((2, 4), (1, 2), (4,), (2, 4, 2, 3), (0, 4, 3))),
        ],
        {"weight": [None, randn(4, seed=1), randn(2, seed=1)], "bias": [None, randn(4, seed=2), randn(2, seed=1)]}
        | {"eps": [1e-5, 0.5]},
    ),
    torch.batch_norm: (
        [(x,) for x in (randn(5, 4), randn(5, 4, 3), randn(1, 4), randn(4))],
        {"weight": [None, randn(4, seed=1), randn(3, seed=1)], "bias": [None, randn(4, seed=2)]}
        | {"running_mean": [None, randn(4, seed=5)], "running_var": [None, rand(4, seed=6)]}
        | {"training": [False, True], "momentum": [0.1, 0.7], "eps": [1e-5, 0.5], "cudnn_enabled": [False, True]},
    ),
    torch.instance_norm: (
        [(x,) for x in (randn(2, 4, 3), randn(2, 4, 2, 3), randn(2, 4), randn(4))],
        {"weight": [None, randn(4, seed=1), randn(3, seed=1)], "bias": [None, randn(4, seed=2)]}
        | {"running_mean": [None, randn(4, seed=5)], "running_var": [None, rand(4, seed=6)]}
        | {"use_input_stats": [False, True], "momentum": [0.1, 0.7], "eps": [0.5], "cudnn_enabled": [False, True]},
    ),
    torch.group_norm: (
        [(randn(*shape), n) for shape in ((2, 4, 3), (2, 4), (1, 2), (4,), (2, 4, 2, 3)) for n in (1, 2, 3)],
        {"weight": [None, randn(4, seed=1), randn(2, seed=1)], "bias": [None, randn(4, seed=2), randn(1, seed=2)]}
        | {"eps": [1e-5, 0.5], "cudnn_enabled": [False, True]},
    ),
    **{
        rms: (
            [(randn(5, 4), [4]), (randn(2, 5, 4), (5, 4)), (randn(5, 4), [3]), (randn(5, 4), [])],
            {"weight": [None, randn(4, seed=1), randn(5, 4, seed=1), randn(1, seed=1)], "eps": [None, 1e-5, 0.5]},
        )
        for rms in (F.rms_norm, torch.rms_norm)
    },
    # Its kernel does not check its arguments: only those that fit.
    torch._weight_norm: (
        [
            *((randn(4, 3), randn(4, 1, seed=1), dim) for dim in (0, -2)),
            *((randn(4, 3), randn(1, 3, seed=1), dim) for dim in (1,)),
            (randn(4, 3, 2), randn(1, 3, 1, seed=1), 1),
            (randn(4, 3, 2), randn(4, 1, 1, seed=1), 0),
        ],
        {},
    ),
    torch.embedding: (
        [(randn(5, 3), PADDED), (randn(2, 3), PADDED)],
        {"padding_idx": [-1, 0, 2, 4], "scale_grad_by_freq": [False, True], "sparse": [False, True]},
    ),
    F.scaled_dot_product_attention: (
        [
            (randn(2, 4, 5, 3), randn(2, 4, 5, 3, seed=1), randn(2, 4, 5, 2, seed=2)),
            (randn(2, 4, 5, 3), randn(2, 2, 5, 3, seed=1), randn(2, 2, 5, 3, seed=2)),
            (randn(4, 5, 3), randn(4, 5, 3, seed=1), randn(4, 5, 2, seed=2)),
            (randn(2, 4, 7, 3), randn(2, 2, 5, 3, seed=1), randn(2, 2, 5, 2, seed=2)),
            (randn(2, 4, 5, 3), randn(2, 4, 5, 2, seed=1), randn(2, 4, 5, 2, seed=2)),
        ],
        {"attn_mask": MASKS, "dropout_p": [0.0, 0.4], "is_causal": [False, True], "scale": [None, 0.3]}
        | {"enable_gqa": [False, True]},
    ),
    torch.linalg.vander: (
        [(x,) for x in (randn(4), randn(2, 3), randn(1), randn(1)[0], torch.arange(4))],
        {"N": [None, 0, 1, 2, 3, 6]},
    ),
    torch.dropout: (DROPPED, {}),
    torch.feature_dropout: (DROPPED, {}),
    torch.prelu: ([(randn(4, 3), rand(n, seed=1)) for n in (1, 3, 2)], {}),
    # A max_norm that would shorten rows is refused: tests/test_max_norm.py.
    F.embedding: (
        [(PADDED, randn(5, 3))],
        {"padding_idx": [None, 2, 0, -1, 7, -9], "max_norm": [None, 100.0], "norm_type": [2.0, 1.0]}
        | {"scale_grad_by_freq": [False, True], "sparse": [False, True]},
    ),
    torch.lstm_cell: recurrent_cell(16, (randn(2, 4), randn(2, 4, seed=1))),
    torch.gru_cell: recurrent_cell(12, randn(2, 4)),
    torch.rnn_tanh_cell: recurrent_cell(4, randn(2, 4)),
    torch.rnn_relu_cell: recurrent_cell(4, randn(2, 4)),
    **{
        pool: (
            [(torch.arange(3 * 2 * 7**n).reshape(3, 2, *[7] * n).to(DTYPE).mul(1.7).cos().mul(3).round(),)],
            {"kernel_size": [2, 3], "stride": [None, 1, 2], "padding": [0, 1, 2], "dilation": [1, 2]}
            | {"ceil_mode": [False, True], "return_indices": [False, True]},
        )
        for n, pool in enumerate((F.max_pool1d, F.max_pool2d, F.max_pool3d), start=1)
    },
}
# Recurrent kernels take one packed list of weights; their modules have the keywords.
RECURRENT = {torch.lstm: nn.LSTM, torch.gru: nn.GRU, torch.rnn_tanh: nn.RNN, torch.rnn_relu: nn.RNN}
SCHEMAS = {
    torch.layer_norm: "layer_norm",
    torch._weight_norm: "_weight_norm",
    **{getattr(torch, n): n for n in ("batch_norm", "instance_norm", "group_norm", "rms_norm", "embedding")},
    **{getattr(torch, n): n for n in ("dropout", "feature_dropout", "prelu")},
    F.scaled_dot_product_attention: "scaled_dot_product_attention",
    torch.linalg.norm: "linalg_norm",
    torch.linalg.vander: "linalg_vander",
    **{getattr(torch, n): n for n in ("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")},
}


def keywords(function):
    """The parameters of a function, from its signature, or from torch's schema where it is not written in Python."""
    if function in SCHEMAS:
        return [a.name for a in getattr(torch.ops.aten, SCHEMAS[function]).default._schema.arguments]
    pools = {F.max_pool1d: F._max_pool1d, F.max_pool2d: F._max_pool2d, F.max_pool3d: F._max_pool3d}
    return list(inspect.signature(pools.get(function, function)).parameters)


def calls(function):
    """Every combination, as (args, kwargs) with fresh tensors."""
    firsts, rest = CALLS[function]
    for first in firsts:
        for values in itertools.product(*rest.values()):
            yield first, dict(zip(rest, values, strict=True))


def fresh(value):
    if isinstance(value, tuple):
        return tuple(map(fresh, value))
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.clone().requires_grad_()
    return value


def tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for v in value for t in tensors(v)] if isinstance(value, tuple | list) else []


def outcome(function, args, kwargs, statistics=()):
    """The outputs, the gradients of all arguments and the arguments afterwards; or the type of the error."""
    args, kwargs = fresh(args), {k: fresh(v) for k, v in kwargs.items()}
    leaves = [t for t in tensors((*args, *kwargs.values())) if t.is_floating_point()]
    for t in (*(kwargs.get(name) for name in ("running_mean", "running_var")), *(args[i] for i in statistics)):
        if t is not None:
            t.requires_grad_(False)
    torch.manual_seed(0)
    try:
        out = tensors(function(*args, **kwargs))
    except Exception as error:
        return type(error)
    scalars = [
        (o * torch.linspace(0.5, 1.5, o.numel(), dtype=o.dtype).reshape(o.shape)).sum() for o in out if o.requires_grad
    ]
    wanted = [t for t in leaves if t.requires_grad]
    try:
        slopes = torch.autograd.grad(sum(scalars), wanted, allow_unused=True) if scalars else []
    except Exception as error:
        return type(error)
    slopes = [torch.zeros_like(t) if g is None else g.to_dense() for t, g in zip(wanted, slopes, strict=bool(scalars))]
    return [t.detach() for t in (*out, *slopes, *leaves)]


def compare(function, ours, args, kwargs):
    statistics = (1, 2) if function is F.batch_norm else ()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of deprecated keywords and of shapes that broadcast
        expected, got = outcome(function, args, kwargs, statistics), outcome(ours, args, kwargs, statistics)
    assert isinstance(expected, type) == isinstance(got, type), (expected, got)
    if isinstance(expected, type):
        assert got is expected
        return
    assert [(t.shape, t.dtype) for t in got] == [(t.shape, t.dtype) for t in expected]
    for t, e in zip(got, expected, strict=True):
        torch.testing.assert_close(t, e, rtol=1e-10, atol=1e-12, equal_nan=True)


def written_out(function):
    def run(*args, **kwargs):
        with Elementary():
            return function(*args, **kwargs)

    return run


NAMES = {f"{getattr(f, '__module__', None) or 'torch'}.{f.__name__}": f for f in CALLS}


def test_every_written_out_function_and_keyword_is_tried():
    # hardsigmoid has a test of its own: torch's slope is the float32 number next to 1/6, whatever the dtype.
    # Those of special.py are tried in test_special.py, of transposed.py in test_transposed.py, torch.cond in test_elementary.py.
    covered, all_of_them = (
        set(CALLS) | set(RECURRENT) | set(IN_PLACE) | {F.hardsigmoid, torch.ops.higher_order.cond},
        set(WRITTEN_OUT) - set(SPECIAL) - set(transposed.WRITTEN_OUT),
    )
    assert {f for f in all_of_them if not isinstance(f, OpOverload | OpOverloadPacket)} == covered
    for name in {f.__name__.split(".")[0] for f in all_of_them - covered}:
        # The operator library's function is the same, under the same keywords.
        assert WRITTEN_OUT[getattr(torch.ops.aten, name)] is WRITTEN_OUT[getattr(torch, name)]
    for function, (firsts, rest) in CALLS.items():
        known = keywords(function)
        assert set(known[len(firsts[0]) :]) == set(rest), function


IN_PLACE = (torch.dropout_, torch.feature_dropout_)


@pytest.mark.parametrize("function", IN_PLACE)
@pytest.mark.parametrize("arguments", DROPPED)
def test_a_dropout_in_place_is_torchs(function, arguments):
    def run(x, *rest):
        changed = x * 1.0
        out = function(changed, *rest)
        return out, changed

    expected, got = outcome(run, arguments, {}), outcome(written_out(run), arguments, {})
    assert isinstance(expected, type) == isinstance(got, type)
    if isinstance(expected, type):
        assert got is expected
    else:
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("inplace", [False, True])
def test_hardsigmoid_is_torchs_up_to_the_rounding_of_its_slope(inplace):
    x = (4 * randn(20)).requires_grad_()
    with Elementary():
        ours = F.hardsigmoid(x * 1.0, inplace=inplace)
    theirs = F.hardsigmoid(x * 1.0, inplace=inplace)
    torch.testing.assert_close(ours, theirs, rtol=1e-15, atol=1e-15)
    slopes = (torch.autograd.grad(y.sum(), x)[0] for y in (ours, theirs))
    torch.testing.assert_close(*slopes, rtol=1e-7, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_value_gradients_and_errors_are_torchs(name):
    function = NAMES[name]
    for args, kwargs in calls(function):
        try:
            compare(function, written_out(function), args, kwargs)
        except AssertionError as error:
            shapes = [tuple(t.shape) for t in tensors(args)]
            raise AssertionError(f"{name} of {shapes} with {kwargs}: {error}") from error


def test_a_wrong_keyword_is_found():
    # The control: a loss that forgets its weights, a norm that forgets eps and one that accepts any shape.
    wrong = {
        F.mse_loss: lambda a, b, weight=None, **options: F.mse_loss(a, b, **options),
        F.layer_norm: lambda x, shape, weight=None, bias=None, eps=0.0: F.layer_norm(x, shape, weight, bias),
        F.batch_norm: lambda x, *args, **options: F.batch_norm(torch.cat([x, x]), *args, **options)[: len(x)],
        F.embedding: lambda i, w, padding_idx=None, **options: F.embedding(i, w, **options),
    }
    for function, bad in wrong.items():
        failed = 0
        for args, kwargs in calls(function):
            try:
                compare(function, bad, args, kwargs)
            except AssertionError:
                failed += 1
        assert failed, function


def test_half_precision_and_mixed_dtypes_are_torchs():
    x, w = rand(5, 4, dtype=torch.bfloat16), rand(4, seed=1, dtype=torch.float32)
    calls = {
        "layer norm": lambda a, b: F.layer_norm(a, (4,), b),
        "batch norm": lambda a, b: F.batch_norm(a, None, None, b, training=True),
        "group norm": lambda a, b: F.group_norm(a, 2, b),
    }
    for weight in (None, w.bfloat16(), w):
        for name, call in calls.items():
            expected, got = call(x, weight), written_out(call)(x, weight)
            assert got.dtype == expected.dtype, name
            # One rounding of bfloat16, 2^-8, of numbers near 2.
            torch.testing.assert_close(got.float(), expected.float(), rtol=1e-2, atol=1e-2, msg=name)
