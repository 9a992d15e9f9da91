"""What torch's gradient assumes of an argument without a word: that a matrix is symmetric, a factor triangular, a row normalized.

``cholesky`` and ``eigh`` never look at the upper triangle, yet their gradient says that it counts for half. ``cholesky_solve`` and
``cholesky_inverse`` take a triangular factor, and their gradient reads all of it. That of ``ctc_loss`` is right for probabilities
that sum to 1, that of ``as_strided`` where it reads no memory but its argument's. Where the argument is what it is meant to be, it is
right along every direction in which it stays so. Where it is not, the gradient is that of another function, and the loss is refused.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor

# How far, relative to the largest entry, an argument may be from it by rounding alone: kernels made of distances.
_TOLERANCES = {torch.float64: 1e-6, torch.complex128: 1e-6}
_LOOSE = 1e-3


class _Assumption(NamedTuple):
    """The argument's place and keyword, what of it is 0 where the assumption holds, that in a word, and what to write."""

    place: int
    keyword: str
    gap: Callable[[Tensor, bool], Tensor]
    word: str
    instead: str


def _other_triangle(factor: Tensor, upper: bool) -> Tensor:
    return factor.tril(-1) if upper else factor.triu(1)


def _symmetric(keyword: str) -> _Assumption:
    return _Assumption(0, keyword, lambda a, upper: a - a.mH, "a symmetric matrix", "(A + A.mT) / 2")


_TRIANGULAR = _Assumption(0, "input", _other_triangle, "a triangular matrix", "L.tril(), or L.triu() with upper=True,")
_NORMALIZED = _Assumption(
    0, "log_probs", lambda rows, upper: rows.logsumexp(-1, keepdim=True), "normalized log_probs", "x.log_softmax(-1)"
)
_WHOLE = _Assumption(
    0, "input", lambda t, _: t, "an argument that holds all that is read", "slices of the whole tensor"
)
# By the name of the function; torch's own tests of gradients keep to the same ones. matrix_sqrth came with torch 2.14.
_ASSUMED: dict[str, _Assumption] = {
    **{f"linalg_{name}": _symmetric("A") for name in ("cholesky", "cholesky_ex", "eigh", "eigvalsh", "matrix_sqrth")},
    "linalg_pinv": _symmetric("A"),
    "cholesky": _symmetric("input"),
    "cholesky_inverse": _TRIANGULAR,
    "cholesky_solve": _TRIANGULAR._replace(place=1, keyword="input2"),
    "ctc_loss": _NORMALIZED,
    "as_strided": _WHOLE,
}


@cache
def assumption(function: Any) -> _Assumption | None:
    """What the gradient of a torch function assumes, by the function's name.

    >>> assumption(torch.linalg.cholesky).word, assumption(torch.linalg.inv)
    ('a symmetric matrix', None)
    """
    return _ASSUMED.get(getattr(function, "__name__", ""))


def check_argument(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raises ValueError where the function has an ``assumption`` that does not hold.

    >>> w = torch.tensor([[2.0, 0.0], [1.0, 2.0]], requires_grad=True)
    >>> check_argument(torch.linalg.cholesky, (w @ w.T,), {})
    >>> check_argument(torch.linalg.cholesky, (w,), {})
    Traceback (most recent call last):
    ...
    ValueError: expected a symmetric matrix in linalg_cholesky, got another, ...
    """
    assumed, name = assumption(function), function.__name__
    if assumed is None or (name == "linalg_pinv" and True not in (kwargs.get("hermitian"), *args[2:3])):
        return
    argument = args[assumed.place] if len(args) > assumed.place else kwargs.get(assumed.keyword)
    if not _can_be_wrong(argument):
        return
    if assumed is _WHOLE:
        holds = _reads_within(argument.detach(), function(*args, **kwargs).detach())
    else:
        upper = kwargs.get("upper", args[assumed.place + 1] if len(args) > assumed.place + 1 else False)
        holds = _is_met(assumed, argument.detach(), upper is True)
    if not holds:
        raise ValueError(
            f"expected {assumed.word} in {name}, got another, for which torch's gradient is not the derivative; "
            f"write {assumed.instead} in its place"
        )


def _is_met(assumed: _Assumption, values: Tensor, upper: bool) -> bool:
    if assumed is not _NORMALIZED and not _is_square(values):
        return True
    allowed = _TOLERANCES.get(values.dtype, _LOOSE) * (1 if assumed is _NORMALIZED else values.abs().max())
    return not bool((assumed.gap(values, upper).abs() > allowed).any())


def _reads_within(argument: Tensor, read: Tensor) -> bool:
    """Whether the argument has an entry at each place of the memory where one is read."""
    fills = argument.numel() * argument.element_size() == argument.untyped_storage().nbytes()
    if fills and argument.is_contiguous():
        return True
    return bool(torch.isin(_places(read), _places(argument)).all())


def _places(t: Tensor) -> Tensor:
    """Where in the memory the entries of a tensor lie, counted in entries."""
    places = torch.tensor([t.storage_offset()])
    for size, stride in zip(t.shape, t.stride(), strict=True):
        places = (places[:, None] + torch.arange(size) * stride).flatten()
    return places


def _can_be_wrong(argument: Any) -> TypeGuard[Tensor]:
    # Nobody can look into what a transformation of torch.func hands over.
    return (
        isinstance(argument, Tensor)
        and torch.is_grad_enabled()
        and argument.requires_grad
        and not argument.is_meta
        and argument.numel() > 0
        and not torch._C._functorch.is_functorch_wrapped_tensor(argument)
    )


def _is_square(argument: Tensor) -> bool:
    return argument.dim() >= 2 and argument.shape[-1] == argument.shape[-2]
