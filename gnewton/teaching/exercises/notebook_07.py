"""Exercises of notebook 07: what a change of units does to the summary, to the rates of SGD and Adam, and to neither."""

from typing import Any

import torch
from torch import Tensor

from gnewton.teaching.exercises.exercise import Exercise


def summary_and_scales(seed: int) -> tuple[Tensor, Tensor]:
    """H-bar (4, 4), symmetric, and a (4,), positive."""
    draw = torch.Generator().manual_seed(seed)
    root = torch.randn(4, 4, generator=draw, dtype=torch.float64)
    return root + root.T, torch.rand(4, generator=draw, dtype=torch.float64) * 3 + 0.2


def hessian_in_units(hessian: Tensor, a: Tensor) -> Tensor:
    """a_s^2 H-bar_st a_t^2."""
    return a[:, None] ** 2 * hessian * a**2


def rates_and_scales(seed: int) -> tuple[Any, ...]:
    """A rate for SGD, one for Adam, and a (3,), positive."""
    a = torch.rand(3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3 + 0.2
    return 0.3 + seed, 0.02 * (1 + seed), a


def rates_in_units(sgd_rate: float, adam_rate: float, a: Tensor) -> Tensor:
    """(2, S): the rates of SGD over a^2, those of Adam over a."""
    return torch.stack([sgd_rate / a**2, adam_rate / a])


def own_derivatives(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """g-bar, the diagonals of H-bar and of D3 (4,) each, of both signs and of different sizes."""
    draw = torch.Generator().manual_seed(seed)
    g, h, third = torch.randn(3, 4, generator=draw, dtype=torch.float64)
    size = torch.tensor([10.0, 1.0, 0.1, 3.0], dtype=torch.float64)
    signs = torch.tensor([1.0, -1.0, 1.0, 1.0], dtype=torch.float64)
    return size * g, size**2 * (0.5 + h.abs()) * signs, size**3 * third


def without_units(g: Tensor, h: Tensor, third: Tensor) -> Tensor:
    """(2, S): g-bar_s / |H_ss|^(1/2) and D3_sss / |H_ss|^(3/2)."""
    return torch.stack([g / h.abs() ** 0.5, third / h.abs() ** 1.5])


EXERCISES = (
    Exercise(
        "07.1",
        "The summary Hessian in other units, from H-bar and the scales a of the groups.",
        summary_and_scales,
        hessian_in_units,
        {
            "the derivatives alone: the direction u brings a factor of its own, so a_s comes twice": lambda H, a: (
                a[:, None] * H * a
            ),
            "on one side only: two derivatives, by group s and by group t": lambda H, a: a[:, None] ** 2 * H,
            "the other way round: with theta = a theta~, derivatives by theta~ are multiplied by a": lambda H, a: (
                H / (a[:, None] ** 2 * a**2)
            ),
            "one scale for all entries: entry [s, t] has the scales of its own two groups": lambda H, a: (
                a.mean() ** 4 * H
            ),
        },
        (
            "H-bar[s, t] = D2L[u_s, u_t]: two derivatives and two directions. How does each of the four change?",
            "For group s: a factor a_s from the derivative and another from u_s. The same for t.",
            "return a[:, None] ** 2 * hessian * a**2",
        ),
    ),
    Exercise(
        "07.2",
        "The rates, one per tensor, with which SGD (first row) and Adam (second row) make the same steps in the other units.",
        rates_and_scales,
        rates_in_units,
        {
            "the other way round: where a is large, one unit of theta~ is a long way, and the rate must be smaller": lambda s, d, a: (
                torch.stack([s * a**2, d * a])
            ),
            "Adam's step does not grow with the gradient: one factor a, from the parameter alone": lambda s, d, a: (
                torch.stack([s / a**2, d / a**2])
            ),
            "SGD's gradient is in the other units too: a second factor a": lambda s, d, a: torch.stack([s / a, d / a]),
            "the rows are exchanged: SGD comes first": lambda s, d, a: torch.stack([d / a, s / a**2]),
        },
        (
            "The step in theta must stay, and theta = a theta~. So the step in theta~ is the old one over a.",
            "SGD's step in theta~ is its rate times the gradient there, which is a times the old one. Adam's is its rate alone.",
            "return torch.stack([sgd_rate / a**2, adam_rate / a])",
        ),
    ),
    Exercise(
        "07.3",
        "g-bar and the diagonal of D3 without units: each over the power of |H-bar[s, s]| that takes its scale away.",
        own_derivatives,
        without_units,
        {
            "the root is missing: g-bar carries a_s^2, the diagonal entry a_s^4": lambda g, h, t: torch.stack(
                [g / h.abs(), t / h.abs() ** 1.5]
            ),
            "D3 carries a_s^6, and |H-bar[s, s]| only a_s^4: one power is not enough": lambda g, h, t: torch.stack(
                [g / h.abs() ** 0.5, t / h.abs()]
            ),
            "the size of H-bar[s, s] divides, not H-bar[s, s]: a negative one has no root": lambda g, h, t: torch.stack(
                [g / h**0.5, t / h**1.5]
            ),
            "the sign is lost: g-bar and D3 keep theirs": lambda g, h, t: without_units(g, h, t).abs(),
            "the rows are exchanged: g-bar comes first": lambda g, h, t: without_units(g, h, t).flip(0),
        },
        (
            "In the table: g-bar is multiplied by a_s^2, the diagonal entry of H-bar by a_s^4, that of D3 by a_s^6.",
            "So the root of |H-bar[s, s]| carries a_s^2, and its third power a_s^6.",
            "return torch.stack([g / h.abs() ** 0.5, third / h.abs() ** 1.5])",
        ),
    ),
)
