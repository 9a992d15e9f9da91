"""The exact damped Newton direction of each sample's own loss, by the cheapest solver."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from gnewton.exact.passes import Passes
from gnewton.exact.riccati import riccati_sweep
from gnewton.exact.sample_directions import Extra, SampleDirections, by_layer, check_damping, dampings, weight_decay
from gnewton.exact.shortcuts import is_safe, one_hidden_layer, one_layer

Solver = Literal["auto", "riccati", "shortcut"]


@torch.no_grad()
def newton_direction(
    passes: Passes,
    damping: float | Tensor,
    *,
    weight_decay: float = 0.0,
    extra: Mapping[str, Tensor] | None = None,
    absolute: bool = False,
    solver: Solver = "auto",
) -> SampleDirections:
    r"""d = -(H + rho + kappa)^{-1} (g + kappa V + G) for every sample, exact up to rounding.

    Args:
        passes: B samples, from ``forward_backward``.
        damping: rho > 0: a number, (B,) for the samples, or (B, L) or (1, L) for samples and layers. Where rho is not above
            -lambda_min, d goes to a saddle and may ascend: ``safe_damping`` gives a rho that never does.
        weight_decay: kappa >= 0, the loss being the sample's own plus kappa |V|^2 / 2, biases included.
        extra: G, any other term of the right-hand side: parameter name -> tensor, shared or (B, ...).
        absolute: |Q_l| in the place of every Q_l of the sweep: the Newton step of a Hessian that was made larger where it
            has negative curvature; a descent direction for every rho > 0, but not |H|, which is ``saddle_free_direction``.
        solver: "auto" (the shortcuts for one layer and for one hidden layer twice as wide as the output, where they are as
            accurate), "riccati" or "shortcut".

    Raises:
        ValueError: a shape or a setting does not fit.

    An exact stochastic Newton method after Mehouachi and Kasmi (arXiv 2104.03804); derivation ours.

    >>> import gnewton as gn
    >>> model = gn.models.perceptron([3, 4, 2], dtype=torch.float64)
    >>> passes = gn.exact.forward_backward(model, torch.randn(1, 3, dtype=torch.float64), torch.tensor([1]))
    >>> d = gn.exact.newton_direction(passes, damping=5.0).mean()
    >>> H, g = gn.exact.hessian.dense(passes)[0], torch.cat([g.flatten() for g in passes.gradient().values()])
    >>> exact = torch.linalg.solve(H + 5 * torch.eye(26, dtype=torch.float64), -g)
    >>> torch.allclose(torch.cat([t.flatten() for t in d.values()]), exact)
    True
    """
    rho, extras = dampings(passes, damping, weight_decay), right_hand_side(passes, weight_decay, extra)
    check_damping(damping, weight_decay)
    if solver not in ("auto", "riccati", "shortcut"):
        raise ValueError(f'expected solver="auto", "riccati" or "shortcut", got {solver!r}; choose one of them')
    if solver == "riccati" or absolute:
        return riccati_sweep(passes, rho, extras, absolute)
    if len(passes) == 1 and (passes.loss.convex or passes.loss.vector is None):
        return one_layer(passes, rho, extras)
    if len(passes) == 2 and (solver == "shortcut" or _is_cheaper(passes, rho)):
        return one_hidden_layer(passes, rho, extras)
    if solver == "shortcut":
        raise ValueError(f'expected a network of one or two layers for solver="shortcut", got {passes}; use "auto"')
    return riccati_sweep(passes, rho, extras)


def right_hand_side(passes: Passes, kappa: float, extra: Mapping[str, Tensor] | None = None) -> list[Extra]:
    """What stands beside the gradient; ValueError for a negative weight decay or misfits."""
    if not 0 <= kappa < float("inf"):
        raise ValueError(f"expected weight_decay >= 0 and finite, got {kappa}")
    return weight_decay(passes, kappa) + ([] if extra is None else [Extra(by_layer(passes, extra))])


def _is_cheaper(passes: Passes, rho: list[Tensor]) -> bool:
    outputs, hidden = passes.weights[1].shape
    return hidden >= 2 * outputs and (passes.values.is_meta or bool(is_safe(passes, rho)))
