"""The exact damped Newton direction of each sample's own loss, by the cheapest way there is."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from gnewton.exact.direction import Direction, Extra, by_layer, dampings, weight_decay
from gnewton.exact.shortcuts import is_safe, one_hidden_layer, one_layer
from gnewton.exact.sweep import sweep
from gnewton.exact.tape import Tape

Way = Literal["auto", "sweep", "shortcut"]


@torch.no_grad()
def newton_direction(
    tape: Tape,
    damping: float | Tensor,
    *,
    weight_decay: float = 0.0,
    extra: Mapping[str, Tensor] | None = None,
    absolute: bool = False,
    way: Way = "auto",
) -> Direction:
    r"""d = -(H + rho + kappa)^{-1} (g + kappa V + G) for every sample, exact up to rounding.

    Args:
        tape: B samples, from ``record``.
        damping: rho > 0: a number, (B,) for the samples, or (B, L) or (1, L) for samples and layers. Where rho is not above
            -lambda_min, d goes to a saddle and may ascend: ``safe_damping`` gives a rho that never does.
        weight_decay: kappa >= 0, the loss being the sample's own plus kappa |V|^2 / 2, biases included.
        extra: G, any other term of the right-hand side: parameter name -> tensor, shared or (B, ...).
        absolute: |Q_l| in the place of every Q_l of the sweep: the Newton step of a Hessian that was made larger where it
            bends down; a descent direction for every rho > 0, but not |H|, which is ``saddle_free_direction``.
        way: "auto" (the shortcuts for one layer and for one hidden layer twice as wide as the output, where they are as
            accurate), "sweep" or "shortcut".

    Raises:
        ValueError: a shape or a setting does not fit.

    An exact stochastic Newton method after Mehouachi and Kasmi (arXiv 2104.03804); derivation ours.

    >>> import gnewton as gn
    >>> model = gn.models.perceptron([3, 4, 2], dtype=torch.float64)
    >>> tape = gn.exact.record(model, torch.randn(1, 3, dtype=torch.float64), torch.tensor([1]))
    >>> d = gn.exact.newton_direction(tape, damping=5.0).mean()
    >>> H, g = gn.exact.hessian.dense(tape)[0], torch.cat([g.flatten() for g in tape.gradient().values()])
    >>> exact = torch.linalg.solve(H + 5 * torch.eye(26, dtype=torch.float64), -g)
    >>> torch.allclose(torch.cat([t.flatten() for t in d.values()]), exact)
    True
    """
    rho, extras = dampings(tape, damping, weight_decay), right_hand_side(tape, weight_decay, extra)
    if way not in ("auto", "sweep", "shortcut"):
        raise ValueError(f'expected way="auto", "sweep" or "shortcut", got {way!r}; choose one of them')
    if way == "sweep" or absolute:
        return sweep(tape, rho, extras, absolute)
    if len(tape) == 1 and (tape.loss.convex or tape.loss.vector is None):
        return one_layer(tape, rho, extras)
    if len(tape) == 2 and (way == "shortcut" or _is_cheaper(tape, rho)):
        return one_hidden_layer(tape, rho, extras)
    if way == "shortcut":
        raise ValueError(f'expected a network of one or two layers for way="shortcut", got {tape}; use "auto"')
    return sweep(tape, rho, extras)


def right_hand_side(tape: Tape, kappa: float, extra: Mapping[str, Tensor] | None = None) -> list[Extra]:
    """What stands beside the gradient; ValueError for a negative weight decay or misfits."""
    if not 0 <= kappa < float("inf"):
        raise ValueError(f"expected weight_decay >= 0 and finite, got {kappa}")
    return weight_decay(tape, kappa) + ([] if extra is None else [Extra(by_layer(tape, extra))])


def _is_cheaper(tape: Tape, rho: list[Tensor]) -> bool:
    outputs, hidden = tape.weights[1].shape
    return hidden >= 2 * outputs and (tape.values.is_meta or bool(is_safe(tape, rho)))
