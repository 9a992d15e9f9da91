"""Exercises of notebook 05: Taylor's signs, one group's cubic step, and what D does not see."""

import math
from typing import Any

import torch
from torch import Tensor

from gnewton.teaching.exercises.exercise import Exercise


def line(seed: int) -> tuple[Any, ...]:
    """t and the derivatives (4,) of L along v, orders 1 to 4."""
    draw = torch.Generator().manual_seed(seed)
    return 0.7 + 0.5 * seed, 1.0 + torch.rand(4, generator=draw, dtype=torch.float64)


def change(t: float, d: Tensor) -> Tensor:
    """L(theta - t v) - L(theta) to order 4."""
    return -t * d[0] + t**2 * d[1] / 2 - t**3 * d[2] / 6 + t**4 * d[3] / 24


def alone(seed: int) -> tuple[float, float, float, float]:
    """g > 0, H of either sign, a negative third derivative, lambda_int."""
    return 0.8 + seed, 1.1 - 1.9 * seed, -2.0 - seed, 1.5


def cubic_rate(g: float, H: float, third: float, strength: float) -> float:
    """The minimum of -g eta + H eta^2 / 2 + strength |third| |eta|^3 / 6."""
    return 2 * g / (H + math.sqrt(H * H + 2 * strength * abs(third) * g))


def half_blind(seed: int) -> tuple[Tensor, Tensor]:
    """H (4, 4), and the diagonal of D3 (4,) with two zeros."""
    root = torch.randn(4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    third = torch.tensor([[2.0, 0.0, -1.0, 0.0], [0.0, 1.0, 0.0, -3.0]], dtype=torch.float64)[seed % 2]
    return root + root.T, third


def lowest_unseen(H: Tensor, third: Tensor) -> Tensor:
    """The lowest eigenvalue of H among the groups whose D is 0."""
    unseen = third == 0
    kappa: Tensor = torch.linalg.eigvalsh(H[unseen][:, unseen])
    return kappa[0]


EXERCISES = (
    Exercise(
        "05.1",
        "Predict the change of the loss to order 4 from the derivatives along v, for a step to theta - t v.",
        line,
        change,
        {
            "plus everywhere: the step goes along -v, so that odd orders change their sign": lambda t, d: (
                t * d[0] + t**2 * d[1] / 2 + t**3 * d[2] / 6 + t**4 * d[3] / 24
            ),
            "no factorials: order n is divided by n!": lambda t, d: -t * d[0] + t**2 * d[1] - t**3 * d[2] + t**4 * d[3],
            "divided by n: it is n!, 1, 2, 6, 24": lambda t, d: (
                -t * d[0] + t**2 * d[1] / 2 - t**3 * d[2] / 3 + t**4 * d[3] / 4
            ),
            "minus in the first order alone: the third is odd too": lambda t, d: (
                -t * d[0] + t**2 * d[1] / 2 + t**3 * d[2] / 6 + t**4 * d[3] / 24
            ),
            "minus everywhere: two signs cancel in the even orders": lambda t, d: (
                -(t * d[0] + t**2 * d[1] / 2 + t**3 * d[2] / 6 + t**4 * d[3] / 24)
            ),
            "it stops at order 3: the fourth is missing": lambda t, d: -t * d[0] + t**2 * d[1] / 2 - t**3 * d[2] / 6,
        },
        (
            "Taylor of phi(t) = L(theta - t v): what are its derivatives in terms of those of L along v?",
            "Every derivative brings a factor -1 and a factor t: (-t)^n d_n / n!.",
            "return -t * d[0] + t**2 * d[1] / 2 - t**3 * d[2] / 6 + t**4 * d[3] / 24",
        ),
    ),
    Exercise(
        "05.2",
        "The cubic step of one group alone, in closed form, for g > 0.",
        alone,
        cubic_rate,
        {
            "Newton's rate: the cubic term is missing": lambda g, H, third, strength: g / H,
            "the derivative of |eta|^3 / 6 is eta^2 / 2, not eta^2 / 6": lambda g, H, third, strength: (
                2 * g / (H + math.sqrt(H * H + 2 / 3 * strength * abs(third) * g))
            ),
            "the other root of the quadratic equation: it is negative, and g > 0 wants a positive rate": (
                lambda g, H, third, strength: 2 * g / (H - math.sqrt(H * H + 2 * strength * abs(third) * g))
            ),
            "D instead of its third power: |D eta|^3 = |D3| |eta|^3": lambda g, H, third, strength: (
                2 * g / (H + math.sqrt(H * H + 2 * strength * abs(third) ** (1 / 3) * g))
            ),
            "lambda_int is not there": lambda g, H, third, strength: (
                2 * g / (H + math.sqrt(H * H + 2 * abs(third) * g))
            ),
        },
        (
            "Set the derivative of m to zero, for eta > 0. It is a quadratic equation.",
            "-g + H eta + strength |third| eta^2 / 2 = 0. Take the positive root.",
            "return 2 * g / (H + math.sqrt(H**2 + 2 * strength * abs(third) * g))",
        ),
    ),
    Exercise(
        "05.3",
        "Find the lowest curvature that the cubic term does not see.",
        half_blind,
        lowest_unseen,
        {
            "of all of H: where D is not 0, the cubic term does see": lambda H, third: torch.linalg.eigvalsh(H)[0],
            "of the other groups: D is 0 where the third derivative is 0": lambda H, third: torch.linalg.eigvalsh(
                H[third != 0][:, third != 0]
            )[0],
            "the smallest entry of the diagonal: two groups moving together may find less": lambda H, third: (
                H.diagonal()[third == 0].min()
            ),
            "the largest eigenvalue: the lowest one decides": lambda H, third: torch.linalg.eigvalsh(
                H[third == 0][:, third == 0]
            )[-1],
        },
        (
            "Along which steps is D eta = 0? Those move only some of the groups.",
            "The block of H that belongs to the groups with third == 0, and its eigenvalues.",
            "k = third == 0; return torch.linalg.eigvalsh(H[k][:, k])[0]",
        ),
    ),
)
