r"""Saddle-free Newton, exact: d = -(|H| + rho)^{-1} g, and adjustments of the spectrum that favour flat minima.

With H = Y Lambda Y^T on the range of ``gnewton.exact.reduced``, d = -Y f(Lambda) Y^T g with f(lambda) = 1 / (|lambda| + rho): a
descent for its own sample at every rho > 0. Other f change which minima are stable. (After Mehouachi and Kasmi, arXiv
2104.03804, who name the absolute Hessian and the adjustment of the spectrum as goals; the formulas are ours.)
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from gnewton.exact.newton import right_hand_side
from gnewton.exact.passes import Passes
from gnewton.exact.sample_directions import SampleDirections, check_damping, of_samples
from gnewton.exact.spectrum import decompose


@dataclass(frozen=True, kw_only=True)
class Adjustment:
    """What stands in the place of |lambda|: min(max((negative |lambda|)^power, floor), ceiling).

    Args:
        ceiling: above it a step is that of gradient descent with the rate 1 / (ceiling + rho). Minima sharper than
            2 (ceiling + rho) then repel, as they do there. The plain |H| has no such limit.
        floor: the least curvature that is believed.
        power: 1 for Newton, 0 for gradient descent.
        negative: a factor for negative eigenvalues alone. Below 1 saddles are left faster.

    Raises ValueError for numbers out of range.

    >>> Adjustment(ceiling=2.0)(torch.tensor([-1.0, 0.0, 5.0]))
    tensor([1., 0., 2.])
    """

    ceiling: float = float("inf")
    floor: float = 0.0
    power: float = 1.0
    negative: float = 1.0

    def __post_init__(self) -> None:
        for name in ("ceiling", "floor", "power", "negative"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"expected {name} >= 0, got {getattr(self, name)}; the defaults leave |lambda| alone")

    def __call__(self, values: Tensor) -> Tensor:
        """Eigenvalues of any shape -> the curvatures used."""
        size = torch.where(values < 0, -self.negative * values, values) ** self.power
        return size.clamp(min=self.floor).clamp(max=self.ceiling)


@torch.no_grad()
def saddle_free_direction(
    passes: Passes, damping: float | Tensor, *, weight_decay: float = 0.0, adjustment: Adjustment | None = None
) -> SampleDirections:
    """d = -(|H| + rho + kappa)^{-1} (g + kappa V) for every sample, O(m^3) each with m = n_L + 2N.

    Args:
        passes: from ``forward_backward``.
        damping: rho > 0, a number or (B,).
        weight_decay: kappa.
        adjustment: replaces |lambda|, in the null space of H too.

    Raises ValueError for misfits.

    >>> import gnewton as gn
    >>> model = gn.models.perceptron([3, 4, 2], dtype=torch.float64)
    >>> passes = gn.exact.forward_backward(model, torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 1, 0, 1, 0]))
    >>> bool((gn.exact.saddle_free_direction(passes, damping=0.1).slope() < 0).all())
    True
    """
    check_damping(damping, weight_decay)
    adjustment = adjustment or Adjustment()
    rho = of_samples(passes, damping) + weight_decay
    extras = right_hand_side(passes, weight_decay)
    spectrum = decompose(passes)
    Y, frame = spectrum.vectors, spectrum.basis
    outside = 1 / (adjustment(rho.new_zeros(())) + rho)
    c = frame.gradient()
    decay = torch.zeros_like(c)
    for extra in extras:
        decay = extra.factor * frame.coordinates(extra.parts)
    inside = (Y.mT @ (c + decay)[:, :, None]) / (adjustment(spectrum.values) + rho)[:, :, None]
    # Of what lies outside the range, only the weight decay has a part: all of V, less its projection.
    projected = frame.direction(outside * decay - (Y @ inside)[:, :, 0])
    rest = [([-outside] * len(passes), extra) for extra in extras]
    return SampleDirections(passes, projected.left, projected.axis, projected.right, rest)
