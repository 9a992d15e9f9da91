"""The damped Gauss-Newton direction of each sample, for comparison: J^T C J in the place of H."""

import torch
from torch import Tensor

from gnewton.exact.hessian import times
from gnewton.exact.newton import right_hand_side
from gnewton.exact.passes import Passes
from gnewton.exact.riccati import solve
from gnewton.exact.sample_directions import SampleDirections, check_damping, of_samples


@torch.no_grad()
def gauss_newton_direction(passes: Passes, damping: float | Tensor, *, weight_decay: float = 0.0) -> SampleDirections:
    r"""d = -(J^T C_L J + rho + kappa)^{-1} (g + kappa V), through the n_L x n_L tangent kernel J J^T.

    With D_l = dz_L / dz_l and Theta = sum_l |abar_{l-1}|^2 D_l D_l^T = J J^T, the outputs change by
    -(I + Theta C / rho)^{-1} (Theta delta_L + kappa J V) / rho, and U_l = -(D_l^T lambda abar_{l-1}^T + kappa V_l) / rho with
    lambda = C zdot_L + delta_L. damping: rho > 0, a number or (B,). Raises ValueError for misfits.

    >>> import gnewton as gn
    >>> model = gn.models.perceptron([3, 4, 2], dtype=torch.float64)
    >>> passes = gn.exact.forward_backward(model, torch.randn(1, 3, dtype=torch.float64), torch.tensor([1]))
    >>> bool(gn.exact.gauss_newton_direction(passes, damping=1.0).slope() < 0)
    True
    """
    rho, extras = of_samples(passes, damping) + weight_decay, right_hand_side(passes, weight_decay)
    check_damping(damping, weight_decay)
    C, delta = passes.loss.hessian(), passes.deltas[-1]
    D = [torch.eye(C.shape[1], dtype=C.dtype, device=C.device).expand_as(C)]
    for i in range(len(passes) - 1, 0, -1):
        D.insert(0, (D[0] @ passes.weights[i]) * passes.slopes[i - 1][:, None, :])
    theta = torch.stack([a[:, :, None] * (d @ d.mT) for a, d in zip(passes.lengths, D, strict=True)]).sum(0)
    pull = times(theta, delta)
    for extra in extras:
        pull = pull + torch.stack([times(d, extra.on_input(passes, i)) for i, d in enumerate(D)]).sum(0)
    A = theta @ C / rho[:, :, None]
    A.diagonal(dim1=1, dim2=2).add_(1)
    z = solve(A, (-pull / rho)[:, :, None])[:, :, 0]
    costate = times(C, z) + delta
    left = [times(d.mT, costate) / -rho for d in D]
    rest = [([-1 / rho] * len(passes), extra) for extra in extras]
    return SampleDirections(passes, left, passes.deltas, [None] * len(passes), rest, z)
