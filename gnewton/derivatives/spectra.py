"""Decompositions of a matrix: torch's derivatives of eigh, eig and svd are divided by gaps, those of qr and lu by singular values.

Of a gap that is r times the largest value the k-th derivative keeps the relative error eps / r^(k - 1), and eps / r^k where
vectors are used. Half of that was the most that a sweep over gaps, types and functions showed. Where the matrix is not square, or
complex, torch divides by the singular values as well. Gaps between values that are not used cost one order less: the
second derivative of the spectral norm is right whatever the small singular values do.

Where the matrix is not normal, its eigenvectors may be all but parallel, and each step through their inverse multiplies what is lost:
by the power 3/2 of their condition number, in sweeps over nearly defective and over triangular matrices. Of a triangular factor
whose least singular value is r times the largest the k-th derivative keeps 5 eps / r^(k - 1), through its inverse.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Lost(NamedTuple):
    """The k-th derivative has the relative error share * eps / ratio ** powers[k - 2]."""

    ratio: float
    powers: tuple[int, int]
    share: float


class _Decomposition(NamedTuple):
    """What autograd saved of the values; which output they are; of the others the axis along which vectors are counted."""

    saved: str
    values: int
    axes: dict[int, int]


_KINDS = {
    "LinalgEigh": _Decomposition("_saved_eigenvalues", 0, {1: -1}),
    "LinalgEig": _Decomposition("_saved_eigenvalues", 0, {1: -1}),
    "LinalgSvd": _Decomposition("_saved_S", 1, {0: -1, 2: -2}),
}
# Triangular factors, by the inverses of which torch differentiates.
_FACTORS: dict[str, Callable[[Any], list[Tensor]]] = {
    "LinalgQr": lambda node: [node._saved_R],
    "LinalgLu": lambda node: [node._saved_L, node._saved_U],
    "LinalgLuFactorEx": lambda node: _unpacked(node._saved_LU),
}
NAMES = (*_KINDS, *_FACTORS)
_SHARE = 0.5
_EXTREMES = {"Amax": Tensor.argmax, "Max": Tensor.argmax, "Amin": Tensor.argmin, "Min": Tensor.argmin}


def lost_digits(name: str, node: Any, reached: Iterable[Any]) -> Iterator[Lost]:
    """Where the derivatives of a decomposition lose digits.

    Args:
        name: one of ``NAMES``.
        node: autograd's node of the decomposition.
        reached: all nodes of the graph, which tell what of it is used.

    >>> import torch
    >>> spectrum = torch.linalg.eigvalsh(torch.diag(torch.tensor([1.0, 0.75, 0.5])).requires_grad_())
    >>> list(lost_digits("LinalgEigh", spectrum.grad_fn, [spectrum.sum().grad_fn]))
    [Lost(ratio=0.25, powers=(1, 2), share=0.5), Lost(ratio=0.25, powers=(0, 1), share=0.5)]
    """
    if name in _FACTORS:
        yield from (Lost(_reciprocal_condition(_leading(f.detach())), (1, 2), 5.0) for f in _FACTORS[name](node))
        return
    kind = _KINDS[name]
    values = getattr(node, kind.saved).detach()
    if values.is_meta or not values.numel():
        return
    outputs, places = _read(node, kind, values, reached)
    if not places:
        return
    vectors = bool(outputs - {kind.values})
    every, used = range(values.shape[-1]), sorted(places)
    powers = (2, 3) if vectors else (1, 2)
    parallel = _reciprocal_condition(node._saved_eigenvectors.detach()) ** 1.5 if name == "LinalgEig" else 1.0
    yield Lost(_smallest_gap(values, used) * parallel, powers, _SHARE)
    # What is multiplied by 0 beside them is 0 up to rounding: one order less is lost.
    yield Lost(_smallest_gap(values, every) * parallel, (powers[0] - 1, powers[1] - 1), _SHARE)
    if name == "LinalgSvd" and _divides_by_values(node):
        powers = (1, 2) if vectors else (1, 1)
        yield Lost(_smallest(values, used), powers, 1.0)
        yield Lost(_smallest(values, every), (powers[0] - 1, powers[1] - 1), 1.0)


def _smallest_gap(values: Tensor, places: Sequence[int]) -> float:
    """That of the values at these places from all others, relative to the largest value."""
    gaps = (values[..., places, None] - values[..., None, :]).abs()
    gaps[..., range(len(places)), places] = float("inf")
    return _least(gaps.amin((-2, -1)) / values.abs().amax(-1))


def _smallest(values: Tensor, places: Sequence[int]) -> float:
    return _least(values[..., places].amin(-1) / values.amax(-1))


def _least(ratios: Tensor) -> float:
    return float(ratios.nan_to_num(0, posinf=float("inf")).amin())


def _unpacked(lu: Tensor) -> list[Tensor]:
    """L and U as they lie in one matrix."""
    square = _leading(lu.detach())
    return [square.tril(-1) + torch.eye(square.shape[-1], dtype=lu.dtype, device=lu.device), square.triu()]


def _leading(factor: Tensor) -> Tensor:
    """The square block of a triangular factor, which is what torch inverts."""
    size = min(factor.shape[-2:])
    return factor[..., :size, :size]


def _reciprocal_condition(matrices: Tensor) -> float:
    """The least singular value relative to the largest, of the worst among the matrices; infinite where there is none."""
    if matrices.is_meta or not matrices.numel():
        return float("inf")
    values = torch.linalg.svdvals(matrices.nan_to_num(0))
    return _least(values[..., -1] / values[..., 0])


def _divides_by_values(node: Any) -> bool:
    left, right = node._saved_U, node._saved_Vh
    return bool(left.is_complex() or left.shape[-2] != right.shape[-1])


def _read(node: Any, kind: _Decomposition, values: Tensor, reached: Iterable[Any]) -> tuple[set[int], set[int]]:
    """Which outputs of a decomposition the graph uses, and the places of which values or vectors."""
    outputs: set[int] = set()
    places: set[int] = set()
    for reader in reached:
        for child, output in reader.next_functions:
            if child == node:
                outputs.add(output)
                places |= _places(
                    reader, values, -1 if output == kind.values else kind.axes[output], output == kind.values
                )
    return outputs, places


def _places(reader: Any, values: Tensor, axis: int, is_values: bool) -> set[int]:
    """What a node reads along an axis: what it selects, slices or finds to be the largest; all, if it says nothing of it."""
    name, count = reader.name().partition("Backward")[0], values.shape[-1]
    every = range(count)
    if name in _EXTREMES and is_values and values.dim() == 1:
        return {int(_EXTREMES[name](values.abs() if values.is_complex() else values))}
    if name not in ("Select", "Slice"):
        return set(every)
    dims = values.dim() if is_values else values.dim() + 1
    if _signed(reader._saved_dim) % dims != axis % dims:
        return set(every)
    if name == "Select":
        return {every[_signed(reader._saved_index)]}
    return set(every[slice(_signed(reader._saved_start), _signed(reader._saved_end), reader._saved_step)])


def _signed(number: int | None) -> Any:
    # Autograd keeps a negative number as an unsigned one of 64 bits.
    return number if number is None else number - (number >> 63 << 64)
