"""Fused operations written out in elementary ones, whose derivatives are right to every order.

torch computes layer norm, batch norm, instance norm and weight norm by fused kernels. Their first and second derivatives
are right, but the derivative of the double backward treats the saved mean and variance as constants: the third order comes
out wrong without any error (weight norm already at the second). Written out, each step is an operation that autograd
differentiates to any order. `tests/test_elementary.py` shows both facts. Attention is written out too, as its parts are
cheap to differentiate and the whole is not; recurrent layers are written out in `recurrent.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import cache, partial, wraps
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode, handle_torch_function, has_torch_function_unary

from gnewton import margins, recurrent, repeated, special, transposed
from gnewton.argument_names import with_torch_names
from gnewton.assumptions import assumption, check_argument
from gnewton.contraction import contract
from gnewton.forgotten import with_forgotten
from gnewton.max_norm import is_limited, without_limit


class Elementary(TorchFunctionMode):
    """While it is active, norm layers and attention run as elementary operations; values agree with torch's to rounding.

    Composite Python functions of torch are opened, so that what they call is seen as well.

    >>> x = torch.randn(4, 3)
    >>> with Elementary():
    ...     y = F.layer_norm(x, (3,))
    >>> torch.allclose(y, F.layer_norm(x, (3,)), atol=1e-5)
    True
    """

    def __init__(self) -> None:
        super().__init__()
        self._opened: list[Any] = []

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        args, kwargs = with_torch_names(function, args, kwargs) if kwargs else (args, {})
        if is_limited(function, args, kwargs):
            args, kwargs = without_limit(function, args, kwargs)
        check, parts = _treatment(function)
        if check is not None:
            check(function, args, kwargs)
        # A function that calls itself again within its own parts is meant as it is.
        if parts is None or function in self._opened:
            return self.run(function, args, kwargs)
        kwargs = with_forgotten(function, kwargs)
        self._opened.append(function)
        try:
            with self:
                return parts(*args, **kwargs)
        finally:
            self._opened.pop()

    def run(self, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """What happens to a function that is not opened."""
        return function(*args, **kwargs)


COMPOSITE = {"torch.nn.functional", "torch.functional", "torch._tensor"}
_ASKED_NO_MORE = dict.fromkeys(
    ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic"), lambda *args: False
)


# Asked of every call while a loss runs: kept by function.
@cache
def _treatment(function: Any) -> tuple[Callable[..., None] | None, Callable[..., Any] | None]:
    """What a call's arguments are checked by, and the parts that run in its place; None where there is nothing to do."""
    check = repeated.check_write if repeated.writes(function) else check_argument if assumption(function) else None
    return check, WRITTEN_OUT.get(function) or _body(function)


def _body(function: Any) -> Callable[..., Any] | None:
    """A composite Python function of torch without its own question for modes, so that its parts are seen."""
    if not isinstance(function, FunctionType) or function.__module__ not in COMPOSITE:
        return None
    return _without_question(function)


def open_up(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function without its question for modes, which then see its parts alone.

    >>> open_up(F.relu)(torch.tensor([-1.0, 2.0]))
    tensor([0., 2.])
    """
    return _without_question(function)


@cache
def _without_question(function: Any) -> Callable[..., Any]:
    names = function.__globals__ | _ASKED_NO_MORE
    body = FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    body.__kwdefaults__ = function.__kwdefaults__
    return body


def dropout(input: Tensor, p: float, train: bool) -> Tensor:
    """``torch.dropout``: a product with a mask, which is what dropout makes of ones."""
    return _drop_by_mask(torch.dropout, input, p, train)


def _drop_by_mask(drop: Callable[..., Tensor], input: Tensor, p: float, train: bool) -> Tensor:
    if not train or p == 0:
        return drop(input, p, train)
    mask = drop(torch.ones_like(input, requires_grad=False), p, train)
    return input.mul_(mask) if drop.__name__.endswith("_") else input * mask


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    """``torch.layer_norm`` over the last ``len(normalized_shape)`` axes."""
    shape = _shape(normalized_shape)
    if not shape or input.shape[-len(shape) :] != shape or not _fit(input, shape, weight, bias):
        return torch.layer_norm(input, normalized_shape, weight, bias, eps)
    return _normalize(input, tuple(range(-len(shape), 0)), eps, weight, bias, _autocast_widens(input))


def rms_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """``torch.rms_norm``: x / sqrt(mean of x^2 + eps), which some devices compute by a fused kernel."""
    shape = _shape(normalized_shape)
    if not shape or input.shape[-len(shape) :] != shape or not _fit(input, shape, weight, None):
        return torch.rms_norm(input, normalized_shape, weight, eps)
    x = _wide(input, _autocast_widens(input))
    squares = x.square().mean(tuple(range(-len(shape), 0)), keepdim=True)
    scaled = _affine(x * (squares + (torch.finfo(x.dtype).eps if eps is None else eps)).rsqrt(), weight, None)
    return scaled if _autocast_widens(input) else scaled.to(input.dtype)


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """``F.batch_norm`` of (N, C, ...), its running statistics updated in training as torch does."""
    if training:
        F._verify_batch_size(input.size())  # type: ignore[attr-defined]
    return _batch_norm(input, weight, bias, running_mean, running_var, training, momentum, eps)


def _batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = True,
) -> Tensor:
    """``torch.batch_norm``, which lists its arguments in this order."""
    statistics = (running_mean, running_var)
    if not training or not _normalizable(input, weight, bias, *statistics):
        # With given statistics it is an affine map; the fused kernel differentiates that correctly.
        return torch.batch_norm(input, weight, bias, *statistics, training, momentum, eps, cudnn_enabled)
    axes = (0, *range(2, input.dim()))
    _update(running_mean, running_var, input, axes, momentum)
    return _normalize(input, axes, eps, _channels(weight, input), _channels(bias, input))


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """``F.instance_norm`` of (N, C, ...)."""
    if use_input_stats:
        F._verify_spatial_size(input.size())  # type: ignore[attr-defined]
    return _instance_norm(input, weight, bias, running_mean, running_var, use_input_stats, momentum, eps)


def _instance_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = True,
) -> Tensor:
    """``torch.instance_norm``, which lists its arguments in this order."""
    statistics = (running_mean, running_var)
    if not use_input_stats or input.dim() < 3 or not _normalizable(input, weight, bias, *statistics):
        return torch.instance_norm(input, weight, bias, *statistics, use_input_stats, momentum, eps, cudnn_enabled)
    axes = tuple(range(2, input.dim()))
    _update(running_mean, running_var, input, axes, momentum)
    return _normalize(input, axes, eps, _channels(weight, input), _channels(bias, input))


def one_operation(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, as one operation to a torch function mode, which then does not see the steps inside."""

    @wraps(function)
    def as_one(*args: Any, **kwargs: Any) -> Any:
        first = args[0] if args else next(iter(kwargs.values()))
        if has_torch_function_unary(first):
            return handle_torch_function(as_one, (first,), *args, **kwargs)
        return function(*args, **kwargs)

    as_one.one_operation = True  # type: ignore[attr-defined]
    return as_one


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    """``torch.group_norm`` of (N, C, ...)."""
    dims = input.dim() >= 2 and input.numel() > 0 and num_groups > 0 and input.shape[1] % num_groups == 0
    if not dims or (weight is None and bias is not None) or not _fit(input, input.shape[1:2], weight, bias):
        return torch.group_norm(input, num_groups, weight, bias, eps)
    widened = _autocast_widens(input)
    grouped = standardize(_wide(input, widened).reshape(len(input), num_groups, -1), (2,), eps).reshape(input.shape)
    scaled = _affine(grouped, _channels(weight, input), _channels(bias, input))
    return scaled if widened else scaled.to(input.dtype)


def _group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """``F.group_norm``, which refuses a single value in a group."""
    if input.dim() < 2:
        raise RuntimeError(f"Expected at least 2 dimensions for input tensor but received {input.dim()}")
    size = list(input.size())
    F._verify_batch_size([size[0] * size[1] // num_groups, num_groups, *size[2:]])  # type: ignore[attr-defined]
    return group_norm(input, num_groups, weight, bias, eps)


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """``torch._weight_norm``: g v / ||v||, the norm over all axes but ``dim`` (-1: over all)."""
    axes = [axis for axis in range(v.dim()) if axis != dim % v.dim()] if dim != -1 else list(range(v.dim()))
    return v * (g / v.square().sum(axes, keepdim=True).sqrt())


@one_operation
def standardize(x: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
    """(x - mean) / sqrt(variance + eps) over the axes: what the norm layers share, one operation to a recorder.

    >>> standardize(torch.tensor([1.0, 3.0]), (0,), 0.0)
    tensor([-1.,  1.])
    """
    centred = x - x.mean(axes, keepdim=True)
    return centred * (centred.square().mean(axes, keepdim=True) + eps).rsqrt()


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``F.scaled_dot_product_attention``: softmax(scale q k^T + mask) v; heads that share keys are stacked above each other."""
    if not _attends(query, key, value, attn_mask, is_causal, enable_gqa):
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    heads, shared = query.shape[:-1], (*query.shape[:-3], *key.shape[-3:-2], -1)
    folds = enable_gqa and query.shape[-3] != key.shape[-3]
    scaled = query * (query.shape[-1] ** -0.5 if scale is None else scale)
    scores = (scaled.reshape(*shared, query.shape[-1]) if folds else scaled) @ key.mT
    scores = scores.reshape(*heads, key.shape[-2]) if folds else scores
    mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril() if is_causal else attn_mask
    # What is added to a masked score does not matter to its tangents, and a sum hands them on as they are.
    weights = scores.softmax(-1) if mask is None else torch._safe_softmax(scores + _bias(mask, scores), -1)
    weights = torch.dropout(weights, dropout_p, train=True) if dropout_p else weights
    if not folds:
        return weights @ value
    return (weights.reshape(*shared, key.shape[-2]) @ value).reshape(*heads, value.shape[-1])


def _bias(mask: Tensor, scores: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=scores.dtype).masked_fill(mask.logical_not(), -float("inf"))


def _attends(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, grouped: bool) -> bool:
    """Whether torch takes the arguments, as far as it can be seen from shapes; what it refuses goes to it."""
    if min(query.dim(), key.dim(), value.dim()) < 2 or (causal and mask is not None):
        return False
    heads = [t.shape[-3] if t.dim() > 2 else 1 for t in (query, key, value)]
    if grouped and (query.dim() < 3 or not heads[1] or heads[0] % heads[1] or heads[1] != heads[2]):
        return False
    if mask is None:
        return True
    scores = (*query.shape[:-1], key.shape[-2])
    pairs = zip(reversed(mask.shape), reversed(scores), strict=False)
    fits = 2 <= mask.dim() <= len(scores) and all(m in (1, n) for m, n in pairs)
    return fits and mask.dtype in (torch.bool, query.dtype)


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """``F.cross_entropy``: of class indices, the negative log-likelihood of a log-softmax."""
    options = (weight, size_average, ignore_index, reduce, reduction)
    if target.is_floating_point() or label_smoothing:
        return F.cross_entropy(input, target, *options, label_smoothing)
    return F.nll_loss(F.log_softmax(input, 0 if input.dim() == 1 else 1), target, *options)


def _reduce_last(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A loss that acts entry by entry, and the mean or sum as an operation of its own."""
    # With weights these divide by the sum of the weights or not at all: torch's own lines say it, in elementary steps.
    weighs = loss in (F.mse_loss, F.l1_loss, F.huber_loss)
    each = one_operation(special.binary_cross_entropy) if loss is F.binary_cross_entropy else loss

    @wraps(loss)
    def run(*args: Any, reduction: str = "mean", **kwargs: Any) -> Tensor:
        if weighs and kwargs.get("weight") is not None:
            return _body(loss)(*args, reduction=reduction, **kwargs)  # type: ignore[no-any-return, misc]
        deprecated = any(kwargs.get(name) is not None for name in ("size_average", "reduce"))
        if reduction not in ("mean", "sum", "none") or deprecated:
            return loss(*args, reduction=reduction, **kwargs)
        values = each(*args, reduction="none", **kwargs)
        return values if reduction == "none" else values.mean() if reduction == "mean" else values.sum()

    return run


def embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """``F.embedding`` without a limit; the row ``padding_idx`` gets no gradient from torch, and is a constant here."""
    rows = F.embedding(input, weight, padding_idx, None, norm_type, scale_grad_by_freq, sparse)
    if padding_idx is None:
        return rows
    return torch.where((input == padding_idx % len(weight))[..., None], rows.detach(), rows)


def prelu(input: Tensor, weight: Tensor) -> Tensor:
    """``torch.prelu``, whose second backward takes the other side at 0."""
    channels = input.shape[1] if input.dim() > 1 else 1
    if weight.dim() > 1 or weight.numel() not in (1, channels) or input.dim() == 0 or weight.dtype != input.dtype:
        return torch.prelu(input, weight)
    slope = weight if weight.numel() == 1 else weight.reshape(1, -1, *[1] * (input.dim() - 2))
    return torch.where(input > 0, input, slope * input)


def _embedding(
    weight: Tensor, indices: Tensor, padding_idx: int = -1, scale_grad_by_freq: bool = False, sparse: bool = False
) -> Tensor:
    """``torch.embedding``, where a negative ``padding_idx`` is none."""
    rows = torch.embedding(weight, indices, padding_idx, scale_grad_by_freq, sparse)
    return rows if padding_idx < 0 else torch.where((indices == padding_idx)[..., None], rows.detach(), rows)


def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """``F.hardsigmoid``: min(max(x + 3, 0), 6) / 6; torch has no second derivative of its own."""
    values = (input + 3).clamp(0, 6) / 6
    return input.copy_(values) if inplace else values


def cdist(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: str | None = None) -> Tensor:
    """``torch.cdist``, whose gradient has no derivative in torch: the norms of all differences."""
    if min(x1.dim(), x2.dim()) < 2 or x1.shape[-1] != x2.shape[-1] or p < 0:
        return torch.cdist(x1, x2, p)
    norms: Tensor = torch.linalg.vector_norm(x1[..., :, None, :] - x2[..., None, :, :], p, -1)
    return norms


def embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """``F.embedding_bag``: rows of the weight, summed, averaged or their greatest entries; bags filled up to equal length."""
    places = None if weight.dim() != 2 or scale_grad_by_freq else _bags(input, offsets, include_last_offset)
    scaled = per_sample_weights is not None and (mode != "sum" or per_sample_weights.shape != input.shape)
    if places is None or scaled or mode not in ("sum", "mean", "max") or (sparse and mode == "max"):
        more = (scale_grad_by_freq, mode, sparse, per_sample_weights, include_last_offset, padding_idx)
        return F.embedding_bag(input, weight, offsets, None, norm_type, *more)
    where, inside = places
    words = input.flatten()[where]
    if padding_idx is not None:
        inside = inside & (words != padding_idx % len(weight))
    rows, keep = F.embedding(words, weight), inside[..., None]
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.flatten()[where][..., None]
    if mode == "max":
        return _greatest(rows, keep)
    sums = rows.masked_fill(keep.logical_not(), 0).sum(1)
    return sums if mode == "sum" else sums / inside.sum(1, keepdim=True).clamp(min=1).to(sums.dtype)


def _bags(input: Tensor, offsets: Tensor | None, include_last_offset: bool) -> tuple[Tensor, Tensor] | None:
    """Where the entries of each bag stand (bags, longest), and which of these places are its own; None for torch's error."""
    if input.dtype not in (torch.int32, torch.int64) or not input.numel():
        return None
    # With a last offset that is not there, one torch leaves out the last bag and another does not.
    if input.dim() == 2 and offsets is None and not include_last_offset:
        where = torch.arange(input.numel(), device=input.device).reshape(input.shape)
        return where, torch.ones_like(where, dtype=torch.bool)
    if input.dim() != 1 or offsets is None or offsets.dim() != 1 or not offsets.numel() or offsets[0] != 0:
        return None
    ends = offsets[1:] if include_last_offset else torch.cat([offsets[1:], offsets.new_tensor([len(input)])])
    starts = offsets[: len(ends)]
    lengths = ends - starts
    # Kernels disagree on what lies behind a last offset that is not the end.
    if not len(ends) or (lengths < 0).any() or ends[-1] != len(input):
        return None
    steps = torch.arange(max(1, int(lengths.max())), device=input.device)
    return (starts[:, None] + steps).clamp(max=len(input) - 1), steps < lengths[:, None]


def _greatest(rows: Tensor, keep: Tensor) -> Tensor:
    """The greatest entries of each bag; zeros where it is empty."""
    least = rows.masked_fill(keep.logical_not(), -float("inf")).max(1).values
    return least.masked_fill(keep.any(1).logical_not(), 0)


def linalg_norm(
    input: Tensor,
    ord: float | str | None = None,
    dim: int | Sequence[int] | None = None,
    keepdim: bool = False,
    *,
    out: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """``torch.linalg.norm`` where it is a norm of vectors."""
    axes = [dim] if isinstance(dim, int) else None if dim is None else list(dim)
    single = input.dim() == 1 if axes is None else len(axes) == 1
    frobenius = ord is None or (ord == "fro" and (input.dim() == 2 if axes is None else len(axes) == 2))
    few = axes is None or len(axes) <= min(2, input.dim())
    if out is not None or not few or not (frobenius or (single and not isinstance(ord, str))):
        own: Tensor = torch.linalg.norm(input, ord, dim, keepdim, out=out, dtype=dtype)
        return own
    order: Any = 2 if frobenius else ord
    norm: Tensor = torch.linalg.vector_norm(input, order, axes, keepdim, dtype=dtype)
    return norm


def _with_indices(pool: Callable[..., Tensor], both: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Any]:
    """Max pooling by the function that also says which entries it chose."""

    @wraps(pool)
    def run(*args: Any, return_indices: bool = False, **kwargs: Any) -> Any:
        both_outputs = both(*args, **kwargs)
        return both_outputs if return_indices else both_outputs[0]

    return run


_HALF = (torch.float16, torch.bfloat16)


def _shape(normalized_shape: Sequence[int] | int) -> tuple[int, ...]:
    return (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)


def _fit(input: Tensor, shape: Sequence[int], *parameters: Tensor | None) -> bool:
    """Whether torch's kernel takes the parameters; what it refuses goes to it, for its own error."""
    kinds = (input.dtype, torch.float32) if input.dtype in _HALF else (input.dtype,)
    return input.is_floating_point() and all(
        p is None or (tuple(p.shape) == tuple(shape) and p.dtype in kinds) for p in parameters
    )


def _normalizable(input: Tensor, *parameters: Tensor | None) -> bool:
    both = (parameters[-1] is None) == (parameters[-2] is None)  # statistics come in pairs
    return both and input.dim() >= 2 and input.numel() > 0 and _fit(input, input.shape[1:2], *parameters)


def _autocast_widens(input: Tensor) -> bool:
    """Whether autocast runs layer and group norm in float32, which it does on every device but the CPU."""
    kind = input.device.type
    return kind != "cpu" and torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def _wide(input: Tensor, widened: bool = False) -> Tensor:
    # torch's kernels compute half precision in float32 inside.
    return input.float() if input.dtype in _HALF or widened else input


def _normalize(
    input: Tensor,
    axes: tuple[int, ...],
    eps: float,
    weight: Tensor | None,
    bias: Tensor | None,
    widened: bool = False,
) -> Tensor:
    scaled = _affine(standardize(_wide(input, widened), axes, eps), weight, bias)
    return scaled if widened else scaled.to(input.dtype)


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _channels(parameter: Tensor | None, input: Tensor) -> Tensor | None:
    return None if parameter is None else parameter.reshape(1, -1, *[1] * (input.dim() - 2))


@torch.no_grad()
def _update(mean: Tensor | None, variance: Tensor | None, x: Tensor, axes: tuple[int, ...], momentum: float) -> None:
    # Instance norm has statistics for each sample and keeps their means.
    if mean is not None:
        _follow(mean, x.mean(axes).reshape(-1, len(mean)).mean(0), momentum)
    if variance is not None:
        _follow(variance, x.var(axes).reshape(-1, len(variance)).mean(0), momentum)


def _follow(statistic: Tensor, new: Tensor, momentum: float) -> None:
    # torch's kernel does not count its writes, which no derivative reads: graphs that the caller still holds stay whole.
    with nullcontext() if statistic.is_inference() else torch.autograd._unsafe_preserve_version_counter(statistic):
        statistic.lerp_(new.to(statistic), momentum)


def cond(pred: Any, true_fn: Any, false_fn: Any, operands: Any = (), **others: Any) -> Any:
    """``torch.cond``: one of two branches, run as any other code; torch's own has a first derivative alone.

    >>> cond(torch.tensor(True), torch.sin, torch.cos, (torch.zeros(1),))
    tensor([0.])
    """
    return (true_fn if pred else false_fn)(*operands)


_ENTRY_BY_ENTRY: list[Any] = [
    F.mse_loss,
    F.l1_loss,
    F.smooth_l1_loss,
    F.huber_loss,
    F.binary_cross_entropy,
    F.binary_cross_entropy_with_logits,
    F.poisson_nll_loss,
    F.soft_margin_loss,
]
_POOLS: list[Any] = [
    (F.max_pool1d, F.max_pool1d_with_indices),
    (F.max_pool2d, F.max_pool2d_with_indices),
    (F.max_pool3d, F.max_pool3d_with_indices),
]
WRITTEN_OUT: dict[Any, Callable[..., Any]] = {
    F.layer_norm: layer_norm,
    torch.layer_norm: layer_norm,
    F.rms_norm: rms_norm,
    torch.rms_norm: rms_norm,
    F.batch_norm: batch_norm,
    torch.batch_norm: _batch_norm,
    F.instance_norm: instance_norm,
    torch.instance_norm: _instance_norm,
    F.group_norm: _group_norm,
    torch.group_norm: group_norm,
    torch._weight_norm: weight_norm,
    F.scaled_dot_product_attention: attention,
    F.cross_entropy: cross_entropy,
    F.embedding: embedding,
    F.embedding_bag: embedding_bag,
    F.hardsigmoid: hardsigmoid,
    torch.cdist: cdist,
    torch.einsum: contract,
    torch.linalg.norm: linalg_norm,
    torch.linalg.vander: special.linalg_vander,
    torch.embedding: _embedding,
    torch.prelu: prelu,
    **recurrent.WRITTEN_OUT,
    **transposed.WRITTEN_OUT,
    **margins.WRITTEN_OUT,
    torch.dropout: dropout,
    torch.ops.higher_order.cond: cond,
    **{drop: partial(_drop_by_mask, drop) for drop in (torch.dropout_, torch.feature_dropout, torch.feature_dropout_)},
    **{loss: _reduce_last(loss) for loss in _ENTRY_BY_ENTRY},
    **{pool: _with_indices(pool, both) for pool, both in _POOLS},
}
_BY_PARTS = {whole.__name__: one_operation(whole) for whole in special.WHOLE} | special.IN_STEPS
SPECIAL = {own: special.written_out(own, parts) for name, parts in _BY_PARTS.items() for own in special.homes(name)}
WRITTEN_OUT |= SPECIAL
# Exported programs call the same functions by the names of torch's operator library.
_LIBRARY = ("layer_norm", "rms_norm", "batch_norm", "instance_norm", "group_norm", "_weight_norm", "embedding")
for _name in _LIBRARY:
    _packet = getattr(torch.ops.aten, _name)
    WRITTEN_OUT[_packet] = WRITTEN_OUT[_packet.default] = WRITTEN_OUT[getattr(torch, _name)]
