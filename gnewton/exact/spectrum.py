r"""The exact eigenvalues of one sample's Hessian: all of them, in closed form, by counting, or the two at the ends.

An exact stochastic Newton method after Mehouachi and Kasmi; derivation ours. What is not listed is zero, P - m times.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gnewton.exact.bound import safe_damping
from gnewton.exact.hessian import layer_hessians
from gnewton.exact.passes import Passes, check_finite, solvable
from gnewton.exact.reduced import Basis, basis
from gnewton.exact.riccati import backward
from gnewton.exact.sample_directions import SampleDirections, dampings

_MOVES = 8  # away from an eigenvalue, each twice as far


@dataclass(frozen=True, eq=False)
class Spectrum:
    """values (B, m) ascending; vectors (B, m, m), whose columns are the eigenvectors' coordinates in ``basis``."""

    values: Tensor
    vectors: Tensor
    basis: Basis

    def vector(self, i: int) -> SampleDirections:
        """The i-th eigenvector of every sample, of norm 1, as a direction in parameter space."""
        return self.basis.direction(self.vectors[:, :, i])


@torch.no_grad()
def eigenvalues(passes: Passes) -> Tensor:
    """The m = n_L + 2N eigenvalues that need not be zero, ascending, (B, m), from the reduced m x m problem.

    m does not depend on the number of inputs; it is smaller by one for every layer after the first that has no bias.

    >>> import gnewton as gn
    >>> model = gn.models.perceptron([100, 4, 2], dtype=torch.float64)
    >>> passes = gn.exact.forward_backward(model, torch.randn(1, 100, dtype=torch.float64), torch.tensor([1]))
    >>> gn.exact.spectrum.eigenvalues(passes).shape
    torch.Size([1, 10])
    """
    with solvable(passes):
        values: Tensor = torch.linalg.eigvalsh(basis(passes).hessian())
    return values


@torch.no_grad()
def decompose(passes: Passes) -> Spectrum:
    """The same eigenvalues with their eigenvectors."""
    frame = basis(passes)
    with solvable(passes):
        values, vectors = torch.linalg.eigh(frame.hessian())
    return Spectrum(values, vectors, frame)


@torch.no_grad()
def closed_form(passes: Passes) -> Tensor:
    r"""The same eigenvalues without a matrix, for one layer, and for two layers with one output and a bias before it.

    One layer: |abar|^2 times the eigenvalues of C, for the cross-entropy from the secular equation
    sum_i p_i^2 / (p_i - lambda) = 1. Two layers, one output: hidden unit i gives the poles
    mu_i = (alpha^2 k_i +- sqrt(alpha^4 k_i^2 + 4 delta^2 alpha^2 s_i^2)) / 2, with one more at 0, and the term C g g^T of
    rank one moves them to the roots of 1 + C sum_j (q_j . g)^2 / (mu_j - lambda) = 0. Raises ValueError for other networks.
    """
    if len(passes) == 1:
        d, v = passes.loss.diagonal, passes.loss.vector
        own = d.sort(1).values if v is None else rank_one_eigenvalues(d, v, -torch.ones_like(d[:, 0]))
        return own * passes.lengths[0]
    if len(passes) != 2 or len(passes.weights[1]) != 1 or passes.biases[1] is None:
        raise ValueError(f"expected one layer, or two with one output and a bias, got {passes}; use eigenvalues")
    k, s, delta, alpha = passes.curvatures[0], passes.slopes[0], passes.deltas[1], passes.lengths[0].sqrt()
    half, coupling = alpha.square() * k / 2, delta * alpha * s
    radius = torch.hypot(half, coupling)
    # The eigenvectors of [[2 half, coupling], [coupling, 0]] are (cos t, sin t) and (-sin t, cos t).
    t = torch.atan2(coupling, half) / 2
    g, r = alpha * passes.weights[1] * s, passes.inputs[1]
    poles = torch.cat([half + radius, half - radius, torch.zeros_like(delta)], 1)
    along = torch.cat([t.cos() * g + t.sin() * r, t.cos() * r - t.sin() * g, torch.ones_like(delta)], 1)
    return rank_one_eigenvalues(poles, along, passes.loss.hessian()[:, 0, 0])


def rank_one_eigenvalues(poles: Tensor, v: Tensor, c: Tensor) -> Tensor:
    """Those of Diag(poles) + c v v^T, ascending: poles and v (B, m), c (B,); by bisection between the poles.

    Below lambda there are as many as there are poles below it, corrected by the sign of the secular function
    1 + c sum_j v_j^2 / (poles_j - lambda) (Golub 1973): that stays right where poles coincide or a v_j is zero.
    """
    order = poles.argsort(1)
    poles, v2 = poles.gather(1, order), v.square().gather(1, order)
    shift = (c * v2.sum(1))[:, None]
    # Interlacing: each root lies between a pole and the next, the last one within c |v|^2 of its own.
    up = torch.cat([poles[:, 1:], poles[:, -1:] + shift], 1)
    down = torch.cat([poles[:, :1] + shift, poles[:, :-1]], 1)
    low, high = torch.where(shift > 0, poles, down), torch.where(shift > 0, up, poles)
    index = torch.arange(poles.shape[1], device=poles.device)
    for _ in range(2 * _digits(poles)):
        middle = (low + high) / 2
        gaps = poles[:, None, :] - middle[:, :, None]
        secular = 1 + c[:, None] * (v2[:, None, :] / gaps).nan_to_num(nan=0.0).sum(2)
        sign = torch.where(c > 0, 1, -1)[:, None]
        below = (gaps < 0).sum(2) + (sign * secular > 0).long() - (c > 0).long()[:, None]
        high, low = torch.where(below > index, middle, high), torch.where(below > index, low, middle)
    return (low + high) / 2


@torch.no_grad()
def count_below(passes: Passes, mu: float | Tensor) -> Tensor:
    """How many eigenvalues lie below -mu, mu > 0: the negative eigenvalues of all pivots A_l at rho = mu; (B,) int64.

    mu: a number, or (B,). Haynsworth's inertia of H + mu, in O(sum of n^3); no eigenvalue problem larger than a layer.
    Raises ValueError unless mu > 0.
    """
    return _count(passes, _positive(passes, mu))


@torch.no_grad()
def count_above(passes: Passes, mu: float | Tensor) -> Tensor:
    """How many eigenvalues lie above mu > 0, as ``count_below``, from the pivots at rho = -mu."""
    return _count(passes, -_positive(passes, mu))


@torch.no_grad()
def lowest(passes: Passes) -> Tensor:
    """The smallest eigenvalue or 0, whichever is less, (B,), by bisection on ``count_below``.

    0 is an eigenvalue of every network with more parameters than m.
    """
    return -_last(passes, lambda mu: _count(passes, mu))


@torch.no_grad()
def highest(passes: Passes) -> Tensor:
    """The largest eigenvalue or 0, whichever is more, (B,), by bisection on ``count_above``."""
    return _last(passes, lambda mu: _count(passes, -mu))


def _count(passes: Passes, rho: Tensor) -> Tensor:
    step = 4 * torch.finfo(rho.dtype).eps
    for _ in range(_MOVES):
        pivots = [pivot.A for pivot in backward(passes, dampings(passes, rho), [])]
        solved = torch.stack([A.isfinite().flatten(1).all(1) for A in pivots]).all(0)
        if bool(solved.all()):
            return torch.stack([(torch.linalg.eigvalsh(A) < 0).sum(1) for A in pivots]).sum(0)
        # A pivot is singular where -rho is an eigenvalue to the last digit: beside it the count is defined.
        rho = torch.where(solved, rho, rho * (1 + step))
        step *= 2
    check_finite(passes)
    raise FloatingPointError(
        "expected pivots that can be inverted, got singular ones; compute in float64: model.double(), x.double()"
    )


def _last(passes: Passes, count: Callable[[Tensor], Tensor]) -> Tensor:
    """The largest mu beyond which nothing is counted, to rounding; 0 where there is none."""
    # Rounding makes counts below about eps |H| meaningless: what is there is one of the zeros.
    high = _scale(passes)
    floor = 1e3 * torch.finfo(high.dtype).eps * high
    while bool((beyond := count(high) > 0).any()):
        high = torch.where(beyond, 2 * high, high)
    # Down to the eigenvalue's own size first, so that all its digits are found.
    low = high / 2
    while bool((empty := (count(low) == 0) & (low > floor)).any()):
        high, low = torch.where(empty, low, high), torch.where(empty, low / 2, low)
    exists = low > floor
    for _ in range(_digits(high)):
        middle = (low + high) / 2
        beyond = count(middle) > 0
        low, high = torch.where(beyond, middle, low), torch.where(beyond, high, middle)
    return torch.where(exists, (low + high) / 2, 0.0)


def _scale(passes: Passes) -> Tensor:
    """A positive number of the size of H, (B,)."""
    diagonal = [a[:, 0] * C.norm(dim=(1, 2)) for a, C in zip(passes.lengths, layer_hessians(passes), strict=True)]
    return (torch.stack(diagonal).sum(0) + safe_damping(passes)).clamp(min=torch.finfo(passes.values.dtype).tiny ** 0.5)


def _digits(x: Tensor) -> int:
    """Halvings that bring an interval to rounding."""
    return 54 if x.dtype == torch.float64 else 25


def _positive(passes: Passes, mu: float | Tensor) -> Tensor:
    positive = torch.as_tensor(mu, dtype=passes.values.dtype, device=passes.values.device).expand(passes.samples)
    if not bool((positive > 0).all()):
        raise ValueError(f"expected mu > 0, got {mu}; zero itself is an eigenvalue, many times over")
    return positive
