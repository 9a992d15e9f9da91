r"""A damping that makes one sample's Hessian positive definite, without any eigenvalue problem of its size.

With the norms u_l = |U_l| of a direction's layers, |zdot_l| <= row_l . u where row_l = |W_l|_2 max|s_{l-1}| row_{l-1} plus
alpha_{l-1} at l, so that the negative part of the quadratic form is at most u^T N u with the L x L matrix

    N = sum over l < L of  max(0, -min k_l) row_l row_l^T + c_l (e_{l+1} row_l^T + row_l e_{l+1}^T),   c_l = |delta_{l+1}| max|s_l|,

plus the negative part of C_L. Its largest eigenvalue b gives H + b >= 0. (After Mehouachi and Kasmi's regularization
conditions; derivation ours.)
"""

import torch
from torch import Tensor

from gnewton.exact.passes import Passes


@torch.no_grad()
def safe_damping(passes: Passes) -> Tensor:
    """b >= 0 for each sample, (B,), such that H + b is positive semi-definite.

    The bound vanishes with the gradient. It is loose by a small factor: as |W|_2 stands an upper bound of it that takes
    three matrix products.

    >>> import gnewton as gn
    >>> model = gn.models.perceptron([3, 4, 2], dtype=torch.float64)
    >>> passes = gn.exact.forward_backward(model, torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 1, 0, 1, 0]))
    >>> bool((gn.exact.safe_damping(passes) >= -gn.exact.spectrum.lowest(passes)).all())
    True
    """
    B, L = passes.samples, len(passes)
    N, row = passes.values.new_zeros(B, L, L), passes.values.new_zeros(B, L)
    for i in range(L):
        if i:
            steepest = passes.slopes[i - 1].abs().amax(1, keepdim=True)
            N[:, i] += passes.deltas[i].norm(dim=1, keepdim=True) * steepest * row
            if i == L - 1 and passes.loss.convex:
                break
            row = row * steepest * norm_bound(passes.weights[i])
        row[:, i] = passes.lengths[i].sqrt()[:, 0]
        lowest = passes.curvatures[i].amin(1).clamp(max=0) if i < L - 1 else passes.loss.lowest()
        N -= (lowest / 2)[:, None, None] * row[:, :, None] * row[:, None, :]
    values: Tensor = torch.linalg.eigvalsh(N + N.mT)
    return values[:, -1].clamp(min=0)


def norm_bound(W: Tensor) -> Tensor:
    """At least |W|_2 and at most n^(1/16) times it: the Schatten norm (sum of sigma^16)^(1/16), a tensor ()."""
    G = W.mT @ W if W.shape[1] < W.shape[0] else W @ W.mT
    scale = G.norm().clamp(min=torch.finfo(W.dtype).tiny)
    G = G / scale
    G = G @ G
    bound: Tensor = scale.sqrt() * (G @ G).norm() ** 0.125
    return bound
