"""Functions of matrices that read one triangle, while torch's gradient is that of the symmetric part, or of both triangles.

``cholesky`` and ``eigh`` never look at the upper triangle, yet their gradient says that it counts for half; ``cholesky_solve`` and
``cholesky_inverse`` take a triangular factor, and their gradient reads all of it. Where the other triangle is what it is meant to
be, nothing is lost: the gradient is right along every direction in which it stays so. Where it is not, the gradient is that of
another function, and the loss is refused.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

# How far, relative to the largest entry, what is computed as a symmetric matrix may be from one: kernels made of distances.
_TOLERANCES = {torch.float64: 1e-6, torch.complex128: 1e-6}
_LOOSE = 1e-3


def _gap_to_symmetry(a: Tensor, upper: bool) -> Tensor:
    return a - a.mH


def _other_triangle(factor: Tensor, upper: bool) -> Tensor:
    return factor.tril(-1) if upper else factor.triu(1)


# name of the function -> position and keyword of the matrix, what of it must be 0, and its word
_Reader = tuple[int, str, Callable[[Tensor, bool], Tensor], str]
_SYMMETRIC: _Reader = (0, "A", _gap_to_symmetry, "symmetric")
_READERS: dict[str, _Reader] = {
    **dict.fromkeys(("linalg_cholesky", "linalg_cholesky_ex", "linalg_eigh", "linalg_eigvalsh"), _SYMMETRIC),
    "linalg_matrix_sqrth": _SYMMETRIC,  # from torch 2.14 on
    "cholesky": (0, "input", _gap_to_symmetry, "symmetric"),
    "cholesky_inverse": (0, "input", _other_triangle, "triangular"),
    "cholesky_solve": (1, "input2", _other_triangle, "triangular"),
}


@cache
def reads_one(function: Any) -> bool:
    """Whether a torch function reads one triangle of a matrix, by its name.

    >>> reads_one(torch.linalg.cholesky), reads_one(torch.linalg.inv)
    (True, False)
    """
    name = getattr(function, "__name__", "")
    return name in _READERS or name == "linalg_pinv"


def check_triangle(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raises ValueError where the triangle that is not read would have a part in the gradient alone.

    >>> w = torch.tensor([[2.0, 0.0], [1.0, 2.0]], requires_grad=True)
    >>> check_triangle(torch.linalg.cholesky, (w @ w.T,), {})
    >>> check_triangle(torch.linalg.cholesky, (w,), {})
    Traceback (most recent call last):
    ...
    ValueError: expected a symmetric matrix, got one that is not in linalg_cholesky, ...
    """
    name = function.__name__
    if name == "linalg_pinv" and not kwargs.get("hermitian"):
        return
    place, keyword, other, word = _READERS.get(name, _SYMMETRIC)
    matrix = args[place] if len(args) > place else kwargs.get(keyword)
    if not isinstance(matrix, Tensor) or not torch.is_grad_enabled() or not matrix.requires_grad or matrix.is_meta:
        return
    if (
        matrix.dim() < 2
        or matrix.shape[-1] != matrix.shape[-2]
        or torch._C._functorch.is_functorch_wrapped_tensor(matrix)
    ):
        return  # torch has its own words for the first, and nobody can look into the second
    upper = bool(kwargs.get("upper", args[place + 1] if len(args) > place + 1 else False))
    values = matrix.detach()
    allowed = _TOLERANCES.get(values.dtype, _LOOSE) * values.abs().max() if values.numel() else 0
    if bool((other(values, upper).abs() > allowed).any()):
        instead = "(A + A.mT) / 2" if word == "symmetric" else "A.triu()" if upper else "A.tril()"
        raise ValueError(
            f"expected a {word} matrix, got one that is not in {name}, which reads one triangle while its gradient in torch counts "
            f"both; write {instead} in the place of A"
        )
