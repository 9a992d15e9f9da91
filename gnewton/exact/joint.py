r"""The exact Newton direction of a mini-batch's mean loss: the sweep on B samples stacked, B^3 times the work of one.

The loss terms delta, K and C carry 1 / B. The samples share U, so that layer l's pivot couples them: with A^T = rows of
abar_{l-1}, Delta = rows of delta_l and the pairs (sample, unit) in that order,

    A = I + (Abar Abar^T x I) Q / rho,   F_{(b,i),(c,j)} = [b = c] W_ij - delta_{c,i} a_{b,j} / rho,
    P = F^T Q A^{-1} F - (Delta Delta^T x I) / rho.

(After Mehouachi and Kasmi; derivation ours.) rho must be above the negative curvature of the mean loss for a descent.
"""

import torch
from torch import Tensor

from gnewton.exact.newton import right_hand_side
from gnewton.exact.passes import Passes
from gnewton.exact.riccati import solve
from gnewton.exact.sample_directions import Extra, SampleDirections, check_damping


@torch.no_grad()
def joint_direction(passes: Passes, damping: float | Tensor, *, weight_decay: float = 0.0) -> SampleDirections:
    """d = -(H + rho + kappa)^{-1} (g + kappa V) with H and g of the mean loss of all B samples.

    The result's ``mean()`` is d; its ``output`` (B, n_L) is what d changes each sample's outputs by, and ``slope().mean()`` is
    g . d. damping: rho > 0, one number, or (L,) for the layers. O(B^3 sum of n^3): for small B. Raises ValueError for misfits.

    >>> import gnewton as gn
    >>> model = gn.models.perceptron([3, 4, 2], dtype=torch.float64)
    >>> passes = gn.exact.forward_backward(model, torch.randn(2, 3, dtype=torch.float64), torch.tensor([0, 1]))
    >>> {name: tuple(t.shape) for name, t in gn.exact.joint_direction(passes, damping=5.0).mean().items()}
    {'0.weight': (4, 3), '0.bias': (4,), '2.weight': (2, 4), '2.bias': (2,)}
    """
    rho = torch.as_tensor(damping, dtype=passes.values.dtype, device=passes.values.device)
    if rho.shape not in ((), (len(passes),)):
        raise ValueError(f"expected one damping, or one for each of {len(passes)} layers, got shape {tuple(rho.shape)}")
    rho = (rho + weight_decay).expand(len(passes))
    extras = right_hand_side(passes, weight_decay)
    check_damping(damping, weight_decay)
    steps = _backward(passes, rho, extras)
    return _forward(passes, rho, extras, steps)


def _backward(passes: Passes, rho: Tensor, extras: list[Extra]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Q, h and [M | m] of every layer, the first layer first."""
    B, steps = passes.samples, []
    Q: Tensor = torch.block_diag(*(passes.loss.hessian() / B))  # type: ignore[no-untyped-call]
    h = passes.deltas[-1] / B
    for i in range(len(passes) - 1, -1, -1):
        n, r = len(passes.weights[i]), -1 / rho[i]
        extended = passes.extended_input(i)
        kernel = extended @ extended.mT
        A = torch.eye(B * n, dtype=Q.dtype, device=Q.device) - r * _kron(kernel, Q)
        f = r * (sum((extra.on_input(passes, i) for extra in extras), torch.zeros_like(h)) + kernel @ h)
        if i == 0:
            steps.append((Q, h, solve(A, f.reshape(-1, 1))))
            break
        a, delta, W = passes.inputs[i], passes.deltas[i] / B, passes.weights[i]
        # F[b, i, c, j]
        F = r * delta.mT[None, :, :, None] * a[:, None, None, :]
        F.diagonal(dim1=0, dim2=2).add_(W[:, :, None])
        F = F.reshape(B * n, -1)
        solution = solve(A, torch.cat([F, f.reshape(-1, 1)], 1))
        steps.append((Q, h, solution))
        costates = Q @ solution
        costates[:, -1] += h.flatten()
        pulled = sum((e.on_delta(passes, i) / B for e in extras), torch.zeros_like(a))
        Q, h = _through_activation(passes, i - 1, F.mT @ costates, r * pulled, r * (delta @ delta.mT))
    return steps[::-1]


def _through_activation(passes: Passes, i: int, P: Tensor, pulled: Tensor, gram: Tensor) -> tuple[Tensor, Tensor]:
    """Q and h of layer i, from [P | p] of its outputs, what the weight decay adds to p, and -Delta Delta^T / rho."""
    s, width = passes.slopes[i], pulled.shape[1]
    Q = P[:, :-1] + torch.kron(gram, torch.eye(width, dtype=P.dtype, device=P.device))
    Q = Q * s.flatten()[:, None] * s.flatten()
    Q = (Q + Q.mT) / 2 + torch.diag(passes.curvatures[i].flatten() / passes.samples)
    return Q, s * (P[:, -1].reshape(passes.samples, width) + pulled)


def _forward(
    passes: Passes, rho: Tensor, extras: list[Extra], steps: list[tuple[Tensor, Tensor, Tensor]]
) -> SampleDirections:
    B, left, right = passes.samples, [], []
    change: Tensor | None = None
    for i, (Q, h, solution) in enumerate(steps):
        z = solution[:, -1]
        if change is not None:
            z = z + solution[:, :-1] @ change.flatten()
        # B times each sample's share, as a direction's mean divides by B; delta carries 1 / B of its own.
        left.append((Q @ z + h.flatten()).reshape(h.shape) * (-B / rho[i]))
        right.append(None if change is None else change / -rho[i])
        z = z.reshape(h.shape)
        change = passes.slopes[i] * z if i < len(passes) - 1 else change
    coefficients = [(-1 / r).expand(B, 1) for r in rho]
    return SampleDirections(passes, left, passes.deltas, right, [(coefficients, extra) for extra in extras], z)


def _kron(kernel: Tensor, Q: Tensor) -> Tensor:
    """(kernel x I_n) Q without the zeros."""
    return (kernel @ Q.reshape(len(kernel), -1)).reshape(Q.shape)
