"""Functions whose derivatives in torch lose their digits at some points, written out so that autograd keeps them.

torch computes the functions right; its formulas for their gradients, or the derivatives of these, are not: they cancel (sinc
and the Bessel functions near 0, products with a factor near 0, log_ndtr and erfcx in the tail), overflow (mish, gelu, logaddexp), are kept away from a pole (binary
cross-entropy), or lack a term that a mask hides (x^y, differentiated in both, at y = 0 and at y = 1; in x alone, at x = 0). Here a function that
cancels is replaced, where it does, by a series or by an integral of positive terms, whose derivatives are again such sums.
`tests/test_special.py` compares with mpmath.
"""

import math
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Function = Callable[[Tensor], Tensor]


def _patched(x: Tensor, where: Tensor, inside: Function, outside: Function, edge: float) -> Tensor:
    """One function or the other, each called in its own region alone: 0 times infinity would be nan."""
    safe = torch.full_like(x, edge, requires_grad=False)
    return torch.where(where, inside(torch.where(where, x, safe)), outside(torch.where(where, safe, x)))


def _series(t: Tensor, coefficients: list[float]) -> Tensor:
    total = torch.full_like(t, coefficients[-1], requires_grad=False)
    for c in reversed(coefficients[:-1]):
        total = total * t + c
    return total


# 10 terms: for |x| < 1/2 the first that is left out is below 1e-17, with the factor 20^3 of its third derivative below 1e-14.
_SINC = [(-1) ** k / math.factorial(2 * k + 1) for k in range(10)]
_I0 = [1 / math.factorial(k) ** 2 for k in range(10)]
_I1 = [1 / (math.factorial(k) * math.factorial(k + 1)) for k in range(10)]


def sinc(input: Tensor) -> Tensor:
    """``torch.sinc``: sin(pi x) / (pi x), and its series near 0."""
    return _patched(input, input.abs() < 0.5, lambda x: _series((math.pi * x) ** 2, _SINC), torch.sinc, 0.5)


def i0(input: Tensor) -> Tensor:
    """``torch.special.i0``: sum of (x/2)^2k / k!^2 near 0."""
    return _patched(input, input.abs() < 0.5, _small_i0, torch.special.i0, 0.5)


def i0e(input: Tensor) -> Tensor:
    """``torch.special.i0e``: exp(-|x|) i0(x)."""
    return _patched(input, input.abs() < 0.5, lambda x: _small_i0(x) * (-x.abs()).exp(), torch.special.i0e, 0.5)


def i1(input: Tensor) -> Tensor:
    """``torch.special.i1``: the derivative of i0."""
    return _patched(input, input.abs() < 0.5, _small_i1, torch.special.i1, 0.5)


def i1e(input: Tensor) -> Tensor:
    """``torch.special.i1e``: exp(-|x|) i1(x)."""
    return _patched(input, input.abs() < 0.5, lambda x: _small_i1(x) * (-x.abs()).exp(), torch.special.i1e, 0.5)


def _small_i0(x: Tensor) -> Tensor:
    return _series(x * x / 4, _I0)


def _small_i1(x: Tensor) -> Tensor:
    return x / 2 * _series(x * x / 4, _I1)


def log_ndtr(input: Tensor) -> Tensor:
    """``torch.special.log_ndtr``: below -5 it is -x^2/2 - log(sqrt(2 pi) |x|) + log q(|x|), q as in ``_mills``."""
    return _patched(input, input < -5, _tail_of_log_ndtr, torch.special.log_ndtr, -5.0)


def _tail_of_log_ndtr(x: Tensor) -> Tensor:
    return -x * x / 2 - (-math.sqrt(2 * math.pi) * x).log() + _mills(-x).log()


def erfcx(input: Tensor) -> Tensor:
    """``torch.special.erfcx``: above 4 it is q(sqrt(2) x) / (sqrt(pi) x), q as in ``_mills``."""
    return _patched(input, input > 4, _tail_of_erfcx, torch.special.erfcx, 4.0)


def _tail_of_erfcx(x: Tensor) -> Tensor:
    return _mills(x * math.sqrt(2)) / (x * math.sqrt(math.pi))


_NODES, _WEIGHTS = (v.tolist() for v in np.polynomial.laguerre.laggauss(24))


def _mills(a: Tensor) -> Tensor:
    """q(a) = a Q(a) / phi(a), a times Mills' ratio: the integral of exp(-s - s^2 / 2a^2) over s > 0, by Gauss and Laguerre.

    Where its ratio to the exponential is smooth, for a > 4, 24 nodes give it and its derivatives to rounding.
    """
    scaled = a.new_tensor(_NODES) / a[..., None]
    return (scaled * scaled / -2).exp() @ a.new_tensor(_WEIGHTS)


def mish(input: Tensor) -> Tensor:
    """``F.mish``: x tanh(softplus(x))."""
    return input * F.softplus(input).tanh()


def gelu(input: Tensor, *, approximate: str = "none") -> Tensor:
    """``F.gelu``; by tanh it is  x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) ."""
    if approximate != "tanh":
        return F.gelu(input, approximate=approximate)
    return input / 2 * (1 + (math.sqrt(2 / math.pi) * (input + 0.044715 * input * input * input)).tanh())


def logcumsumexp(input: Tensor, dim: int) -> Tensor:
    """``torch.logcumsumexp``: row by row the logarithm of a sum; torch's own third derivative is nan."""
    if input.dim() == 0:
        return torch.logcumsumexp(input, dim)
    rows = input.movedim(dim, -1)
    later = torch.ones(rows.shape[-1:] * 2, dtype=torch.bool, device=input.device).triu(1)
    return rows[..., None, :].masked_fill(later, -math.inf).logsumexp(-1).movedim(-1, dim)


def logaddexp(input: Tensor, other: Tensor) -> Tensor:
    """``torch.logaddexp``, as the logarithm of a sum of two exponentials along an axis."""
    return torch.stack(torch.broadcast_tensors(input, other)).logsumexp(0)  # type: ignore[no-untyped-call]


def logaddexp2(input: Tensor, other: Tensor) -> Tensor:
    """``torch.logaddexp2``: the same to the base 2."""
    return logaddexp(input * math.log(2), other * math.log(2)) / math.log(2)


def power(input: Tensor, exponent: Tensor) -> Tensor:
    """x^y, differentiated in both: exp(y log x) where x has that logarithm, and torch's own where it has none."""
    if not may_be_differentiated(exponent):
        return _fixed_power(input, exponent)
    if not may_be_differentiated(input):
        return torch.pow(input, exponent)
    if input.is_complex() or exponent.is_complex():
        # A negative base has a logarithm among the complex numbers.
        dtype = torch.result_type(input, exponent)
        input, exponent = input.to(dtype), exponent.to(dtype)
        return _by_logarithm(input, exponent, input != 0)
    return _by_logarithm(input, exponent, input > 0)


def _by_logarithm(input: Tensor, exponent: Tensor, where: Tensor) -> Tensor:
    safe, rest = torch.where(where, input, 1.0), torch.where(where, 1.0, input)
    return torch.where(where, (exponent * safe.log()).exp(), torch.pow(rest, exponent))


def _fixed_power(input: Tensor, exponent: Tensor) -> Tensor:
    """x^y of constants y: 1 and x by themselves, as at x = 0 torch's derivatives of these are 0 times infinity."""
    zero, one = exponent == 0, exponent == 1
    others = torch.pow(torch.where(zero | one, 1.0, input), exponent)
    return torch.where(zero, 1.0, torch.where(one, input, others))


def float_power(input: Tensor, exponent: Tensor) -> Tensor:
    """``torch.float_power``: the same in float64, or complex128."""
    return power(*(t.to(torch.complex128 if t.is_complex() else torch.float64) for t in (input, exponent)))


def prod(input: Tensor, dim: int | None = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Tensor:
    """``torch.prod``, pair by pair: torch's derivatives divide by each factor, and lose their digits near 0."""
    if not _has_factors(input, dim, dtype) or (dim is None and keepdim):
        own: dict[str, Any] = {} if dim is None and not keepdim else {"dim": dim, "keepdim": keepdim}
        return torch.prod(input, **own, dtype=dtype)
    axis = -1 if dim is None else dim
    rows = (input.flatten() if dim is None else input).to(dtype or input.dtype).movedim(axis, -1)
    while (n := rows.shape[-1]) > 1:
        pairs = rows[..., : n // 2] * rows[..., n // 2 : n - n % 2]
        rows = torch.cat([pairs, rows[..., n - 1 :]], -1) if n % 2 else pairs
    return rows.movedim(-1, axis) if keepdim else rows.squeeze(-1)


def _has_factors(input: Tensor, dim: Any, dtype: torch.dtype | None) -> bool:
    """Whether there is something to multiply, along an axis with a number, into numbers that have derivatives."""
    plain = dtype is None or dtype.is_floating_point or dtype.is_complex
    return plain and input.dim() > 0 and input.numel() > 0 and not isinstance(dim, str)


def cumprod(input: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
    """``torch.cumprod``: the same; after k rounds each entry is the product of the last 2^k."""
    if not _has_factors(input, dim, dtype):
        return torch.cumprod(input, dim, dtype=dtype)
    rows, length = input.to(dtype or input.dtype).movedim(dim, -1), 1
    while length < rows.shape[-1]:
        rows = torch.cat([rows[..., :length], rows[..., length:] * rows[..., :-length]], -1)
        length *= 2
    return rows.movedim(-1, dim)


def binary_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: None = None,
    reduce: None = None,
    reduction: str = "none",
) -> Tensor:
    """``F.binary_cross_entropy`` of each entry; torch's second derivative adds 1e-12 to x (1 - x)."""
    inner = (input > 0) & (input < 1)
    at_edge = F.binary_cross_entropy(torch.where(inner, 0.5, input), target, weight, reduction="none")
    x = torch.where(inner, input, 0.5)
    logs = target * x.log().clamp(min=-100) + (1 - target) * (-x).log1p().clamp(min=-100)
    return torch.where(inner, -logs if weight is None else -logs * weight, at_edge)


def linalg_vander(x: Tensor, *, N: int | None = None) -> Tensor:
    """``torch.linalg.vander``, which calls cumprod below Python: here it is called where it is written out."""
    count = N if N is not None else x.shape[-1] if x.dim() else 0
    if count < 3 or not x.dim() or not x.numel() or not may_be_differentiated(x):
        own: Tensor = torch.linalg.vander(x, N=N)
        return own
    powers = x[..., None].expand(*x.shape, count - 1).cumprod(-1)
    return torch.cat([torch.ones_like(powers[..., :1]), powers], -1)


# Those that act scalar by scalar, or have a rule of their own, are one operation to a recorder; the rest are their steps.
WHOLE: tuple[Callable[..., Tensor], ...] = (sinc, i0, i0e, i1, i1e, log_ndtr, erfcx, mish, gelu, logcumsumexp)
IN_STEPS: dict[str, Callable[..., Tensor]] = {
    "logaddexp": logaddexp,
    "logaddexp2": logaddexp2,
    "pow": power,
    "float_power": float_power,
    "prod": prod,
    "cumprod": cumprod,
}


def homes(name: str) -> Iterator[Any]:
    """What torch calls by this name: functions, methods, entries of its operator library; then what works in place."""
    for home in (torch, Tensor, torch.special, torch._C._nn, torch.ops.aten):
        for each in (name, f"special_{name}", f"__{name}__", f"{name}_", f"__i{name}__"):
            function = getattr(home, each, None)
            if function is not None:
                yield function
                yield from (getattr(function, overload) for overload in getattr(function, "overloads", list)())


def written_out(own: Any, parts: Callable[..., Tensor]) -> Callable[..., Any]:
    """A function of torch by its parts where it is differentiated, and by itself where not."""
    name = own.overloadpacket.__name__ if isinstance(own, torch._ops.OpOverload) else own.__name__
    in_place = name.endswith("_") and (not name.endswith("__") or name.startswith("__i"))

    @wraps(own)
    def run(*args: Any, **kwargs: Any) -> Any:
        tensors = [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)]
        if not _fits(parts, tensors) or kwargs.get("out") is not None:
            return own(*args, **kwargs)
        options = {key: value for key, value in kwargs.items() if key != "out"}
        if in_place:
            # Autograd may want the old values, which are about to be overwritten.
            return args[0].copy_(parts(args[0].clone(), *args[1:], **options))
        return parts(*args, **options)

    return run


_POWERS = (power, float_power)
_OF_COMPLEX_NUMBERS = (*_POWERS, sinc, prod, cumprod, logaddexp, logcumsumexp)


def _fits(parts: Callable[..., Tensor], tensors: list[Tensor]) -> bool:
    """Whether there is something to differentiate, in numbers that the parts take: a power by another tensor, which may be of integers."""
    if not any(map(may_be_differentiated, tensors)):
        return False
    parts = getattr(parts, "__wrapped__", parts)
    if parts in _POWERS:
        return len(tensors) == 2
    return all(t.is_floating_point() or (t.is_complex() and parts in _OF_COMPLEX_NUMBERS) for t in tensors)


def may_be_differentiated(t: Tensor) -> bool:
    """Whether it depends on what is differentiated, by autograd or by a transformation of torch.func.

    >>> may_be_differentiated(torch.ones(2)), may_be_differentiated(torch.ones(2, requires_grad=True))
    (False, True)
    """
    return torch.is_grad_enabled() and (t.requires_grad or torch._C._functorch.is_functorch_wrapped_tensor(t))
