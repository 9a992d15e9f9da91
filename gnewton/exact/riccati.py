r"""The exact damped Newton direction d = -(H + rho)^{-1} (g + G) of every sample, by one backward and one forward sweep.

An exact stochastic Newton method after Mehouachi and Kasmi; derivation ours. The quadratic model of the loss is a linear
control problem: the state is the change adot_l of the activations, the control the change U_l of the weights, the costate
lambda_l the adjoint of z_l's change. Its Riccati recursion goes backward from Q_L = C_L, h_L = delta_L:

    A = I + alpha^2 / rho Q_l,   f = -(G_l abar + alpha^2 h_l) / rho,   F = W_l - delta_l a^T / rho,   [M | m] = A^{-1} [F | f],
    P = F^T Q_l M - |delta_l|^2 / rho,   h = F^T (Q_l m + h_l) - (G_l^W)^T delta_l / rho,
    Q_{l-1} = S P S + K,   h_{l-1} = S h,   with a = a_{l-1}, alpha = |abar_{l-1}|, S and K of layer l - 1,

and then forward: zdot_l = M adot_{l-1} + m, lambda_l = Q_l zdot_l + h_l, adot_l = S_l zdot_l, where

    U_l = -(lambda_l abar_{l-1}^T + delta_l [adot_{l-1}; 0]^T + G_l) / rho_l.

O(sum of n^3) a sample, and the first layer, however many inputs it has, only n_1^3. H + rho is positive definite exactly
where every A_l is; the pivots A_l are indefinite otherwise, and the solution is then a saddle's stationary point.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from gnewton.exact.passes import Passes, solvable
from gnewton.exact.sample_directions import Extra, SampleDirections


class Pivot(NamedTuple):
    """Layer l of the backward sweep: A, Q (B, n, n), h (B, n), [M S | m]^T (B, n_{l-1} + 1, n), for the first layer m alone.

    Transposed, as solvers want the columns of a right-hand side in a row.
    """

    A: Tensor
    Q: Tensor
    h: Tensor
    solution: Tensor


def riccati_sweep(passes: Passes, rho: list[Tensor], extras: list[Extra], absolute: bool = False) -> SampleDirections:
    """The direction for dampings rho (B, 1) a layer; absolute: with |Q_l| in the place of Q_l, always a descent."""
    # A is not kept: what is freed now serves the next layer. Q is symmetric, and the product from the left is the faster one.
    pivots = [pivot[1:] for pivot in backward(passes, rho, extras, absolute)]
    left, right = [], []
    change: Tensor | None = None
    for i, (Q, h, solution) in enumerate(reversed(pivots)):
        r = -1 / rho[i]
        z = solution[:, -1]
        if change is not None:
            z = plus_transposed(z, solution[:, :-1], change)
        left.append(r * plus_transposed(h, Q, z))
        right.append(None if change is None else r * passes.slopes[i - 1] * change)
        change = z
    return SampleDirections(passes, left, passes.deltas, right, [([-1 / r for r in rho], extra) for extra in extras], z)


def backward(passes: Passes, rho: list[Tensor], extras: list[Extra], absolute: bool = False) -> Iterator[Pivot]:
    """The pivots from the last layer to the first."""
    Q, h = passes.loss.hessian(), passes.deltas[-1]
    for i in range(len(passes) - 1, -1, -1):
        if absolute:
            with solvable(passes):
                Q = absolute_value(Q)
        r = -1 / rho[i]
        ratio = r * passes.lengths[i]
        A = Q * -ratio[:, :, None]
        A.diagonal(dim1=1, dim2=2).add_(1)
        f = sum((r * extra.on_input(passes, i) for extra in extras), ratio * h)
        if i == 0:
            yield Pivot(A, Q, h, solve(A, f[:, :, None]).mT)
            return
        W, a, delta, s = passes.weights[i], passes.inputs[i], passes.deltas[i], passes.slopes[i - 1]
        scaled = r * delta
        rhs = a.new_empty(len(a), a.shape[1] + 1, len(W))
        G = torch.addcmul(W.mT, a[:, :, None], scaled[:, None, :], out=rhs[:, :-1]).mul_(s[:, :, None])
        rhs[:, -1] = f
        # Q and A are symmetric, and so are their own transposes.
        solution = solve(A.mT, rhs.mT).mT
        yield Pivot(A, Q, h, solution)
        costates = torch.bmm(solution, Q)
        costates[:, -1].add_(h)
        P = torch.bmm(costates, G.mT)
        h = sum((r * s * extra.on_delta(passes, i) for extra in extras), P[:, -1])
        # The mean of it and its transpose, as rounding would grow from layer to layer.
        Q = torch.lerp(P[:, :-1], P[:, :-1].mT, 0.5)
        diagonal = torch.addcmul(passes.curvatures[i - 1], s * s, (scaled * delta).sum(1, keepdim=True))
        Q.diagonal(dim1=1, dim2=2).add_(diagonal)


def plus_transposed(sums: Tensor, matrices: Tensor, vectors: Tensor) -> Tensor:
    """(B, m) plus the transposes of (B, n, m) times (B, n)."""
    return torch.baddbmm(sums[:, None], vectors[:, None], matrices)[:, 0]


def solve(A: Tensor, rhs: Tensor) -> Tensor:
    """A^{-1} rhs by LU, as A may be indefinite; a singular A gives infinities, which the caller meets as such."""
    # The check for a singular pivot would wait for the device.
    solution: Tensor = torch.linalg.solve_ex(A, rhs, check_errors=False)[0]
    return solution


def absolute_value(Q: Tensor) -> Tensor:
    """|Q| of symmetric matrices (B, n, n)."""
    values, vectors = torch.linalg.eigh(Q)
    absolute: Tensor = (vectors * values.abs()[:, None, :]) @ vectors.mT
    return absolute
