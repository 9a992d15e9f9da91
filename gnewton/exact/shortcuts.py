r"""Where the sweep has a cheaper closed form: one layer, and one hidden layer that is wider than the output.

An exact stochastic Newton method after Mehouachi and Kasmi; derivation ours. Notation as in ``gnewton.exact.riccati``.
"""

import torch
from torch import Tensor

from gnewton.exact.hessian import times, transposed_times
from gnewton.exact.passes import Passes
from gnewton.exact.riccati import solve
from gnewton.exact.sample_directions import Extra, SampleDirections


def one_layer(passes: Passes, rho: list[Tensor], extras: list[Extra]) -> SampleDirections:
    """d of a linear model, in O(n) a sample: A = I + c (Diag(q) - v v^T) by the formula of Sherman and Morrison.

    With the squared error it is -delta abar^T / (rho + alpha^2), the normalised LMS rule. Fit for a loss that is convex or
    has no v: then 1 + c q is at least 1, or itself a pivot, and no digits are lost beyond the condition of A.
    """
    c, h, q, v = passes.lengths[0] / rho[0], passes.deltas[0], passes.loss.diagonal, passes.loss.vector
    f = -(c * h + sum(extra.on_input(passes, 0) for extra in extras) / rho[0])
    e = 1 / (1 + c * q)
    z = e * f
    if v is not None:
        z = z + e * v * (c * (v * z).sum(1, keepdim=True) / (1 - c * (v * e * v).sum(1, keepdim=True)))
    costate = q * z if v is None else q * z - v * (v * z).sum(1, keepdim=True)
    scaled = [([-1 / rho[0]], extra) for extra in extras]
    return SampleDirections(passes, [(costate + h) / -rho[0]], passes.deltas, [None], scaled, z)


def one_hidden_layer(passes: Passes, rho: list[Tensor], extras: list[Extra]) -> SampleDirections:
    """d of a network with one hidden layer in O(n_1 n_2^2) a sample, by the formula of Woodbury.

    Q_1 = Diag(D) + G^T X G with X = C A_2^{-1}, G = F S and D = k - s^2 |delta_2|^2 / rho: a diagonal and a term of rank
    n_2. An entry of I + c Diag(D) that is near 0 costs digits, which a positive definite H + rho without C_L rules out.
    """
    r1, r2, s, delta = 1 / rho[0], 1 / rho[1], passes.slopes[0], passes.deltas[1]
    C = passes.loss.hessian()
    inverse, m = _output_pivot(passes, C, r2, extras)
    X = C @ inverse
    G = torch.addcmul(passes.weights[1], (-r2 * delta)[:, :, None], passes.inputs[1][:, None, :]) * s[:, None, :]
    pulled = sum((extra.on_delta(passes, 1) for extra in extras), torch.zeros_like(s))
    h = transposed_times(G, times(C, m) + delta) - s * r2 * pulled
    D = passes.curvatures[0] - s * s * delta.square().sum(1, keepdim=True) * r2

    c = r1 * passes.lengths[0]
    f1 = -r1 * sum((extra.on_input(passes, 0) for extra in extras), passes.lengths[0] * h)
    e = 1 / (1 + c * D)
    inner = (c[:, :, None] * (G * e[:, None, :])) @ G.mT @ X
    inner.diagonal(dim1=1, dim2=2).add_(1)
    z1 = e * f1
    z1 = z1 - c * e * transposed_times(G, times(X, solve(inner, times(G, z1)[:, :, None])[:, :, 0]))
    pushed = times(G, z1)
    left1 = D * z1 + transposed_times(G, times(X, pushed)) + h
    z2 = times(inverse, pushed) + m
    left2 = times(C, z2) + delta
    rest = [([-r1, -r2], extra) for extra in extras]
    return SampleDirections(passes, [-r1 * left1, -r2 * left2], passes.deltas, [None, -r2 * s * z1], rest, z2)


def _output_pivot(passes: Passes, C: Tensor, r2: Tensor, extras: list[Extra]) -> tuple[Tensor, Tensor]:
    """A_2^{-1} and m = A_2^{-1} f_2 of the output layer, C being the Hessian of the loss in the outputs."""
    A = C * (r2 * passes.lengths[1])[:, :, None]
    A.diagonal(dim1=1, dim2=2).add_(1)
    f2 = -r2 * sum((extra.on_input(passes, 1) for extra in extras), passes.lengths[1] * passes.deltas[1])
    identity = torch.eye(A.shape[1], dtype=A.dtype, device=A.device).expand_as(A)
    solution = solve(A, torch.cat([identity, f2[:, :, None]], 2))
    return solution[:, :, :-1], solution[:, :, -1]


def is_safe(passes: Passes, rho: list[Tensor]) -> Tensor:
    """Whether no entry of I + c Diag(D) of ``one_hidden_layer`` is so near 0 that digits are lost, a tensor () bool."""
    D = passes.curvatures[0] - passes.slopes[0].square() * passes.deltas[1].square().sum(1, keepdim=True) / rho[1]
    return (1 + passes.lengths[0] / rho[0] * D).abs().min() > 1e-3
