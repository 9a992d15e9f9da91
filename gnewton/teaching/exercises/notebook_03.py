"""Exercises of notebook 03: the metric D, the cubic model, and one rate for all groups."""

from typing import Any

import torch
from torch import Tensor

from gnewton.teaching.exercises.exercise import Exercise


def third(seed: int) -> tuple[Tensor]:
    """The diagonal of D3 (4,), of both signs, one entry 0."""
    entries = torch.randn(4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 4
    entries[0] = 0.0
    entries[1] = -entries[1].abs()
    return (entries,)


def metric(third: Tensor) -> Tensor:
    """The diagonal of D (S,)."""
    return torch.as_tensor(third.abs() ** (1 / 3))


def model_at(seed: int) -> tuple[Any, ...]:
    """g-bar (3,), H-bar (3, 3), the diagonal of D (3,), lambda_int, eta (3,)."""
    draw = torch.Generator().manual_seed(seed)
    root = torch.randn(3, 3, generator=draw, dtype=torch.float64)
    g, eta = torch.randn(2, 3, generator=draw, dtype=torch.float64)
    return g, root + root.T, 0.5 + torch.rand(3, generator=draw, dtype=torch.float64), 2.0 + seed, eta


def cubic_model(g: Tensor, H: Tensor, D: Tensor, strength: float, eta: Tensor) -> Tensor:
    """m(eta) = -g . eta + 1/2 eta^T H eta + strength / 6 |D eta|^3."""
    cubed = torch.linalg.vector_norm(D * eta) ** 3
    return -g @ eta + eta @ H @ eta / 2 + strength / 6 * torch.as_tensor(cubed)


def summary(seed: int) -> tuple[Tensor, Tensor]:
    """g-bar (4,), positive, and a positive definite H-bar (4, 4)."""
    draw = torch.Generator().manual_seed(seed)
    root = torch.randn(4, 4, generator=draw, dtype=torch.float64)
    return torch.rand(4, generator=draw, dtype=torch.float64), root @ root.T + torch.eye(4, dtype=torch.float64)


def one_rate(g: Tensor, H: Tensor) -> Tensor:
    """The Newton step of S = 1, from the summary of a finer partition."""
    return g.sum() / H.sum()


EXERCISES = (
    Exercise(
        "03.1",
        "Compute the diagonal of D from the diagonal of the third-order summary.",
        third,
        metric,
        {
            "the sign is kept: all entries of D are at least 0": lambda t: t.sign() * t.abs() ** (1 / 3),
            "the cube root of a negative number is nan here: take the absolute value first": lambda t: t ** (1 / 3),
            "no root: D has the units of 1 / eta, D3 those of its third power": lambda t: t.abs(),
            "a square root: order three calls for the third root": lambda t: t.abs() ** 0.5,
        },
        (
            "D3[s, s, s] can be negative. D is a length scale, so it cannot.",
            "The absolute value, then the third root, entry by entry.",
            "return third.abs() ** (1 / 3)",
        ),
    ),
    Exercise(
        "03.2",
        "Compute the cubic model m at any eta.",
        model_at,
        cubic_model,
        {
            "the entries are cubed one by one, with their signs: it is the norm of the vector, cubed": lambda g, H, D, k, eta: (
                -g @ eta + eta @ H @ eta / 2 + k / 6 * ((D * eta) ** 3).sum()
            ),
            "the sign of the first term: positive rates go downhill": lambda g, H, D, k, eta: (
                g @ eta + eta @ H @ eta / 2 + k / 6 * (D * eta).norm() ** 3
            ),
            "the factor 1/2 of the second-order term is missing": lambda g, H, D, k, eta: (
                -g @ eta + eta @ H @ eta + k / 6 * (D * eta).norm() ** 3
            ),
            "without D: the length of the step is measured by |D eta|": lambda g, H, D, k, eta: (
                -g @ eta + eta @ H @ eta / 2 + k / 6 * eta.norm() ** 3
            ),
            "the square of the norm: the term is cubic": lambda g, H, D, k, eta: (
                -g @ eta + eta @ H @ eta / 2 + k / 6 * (D * eta).norm() ** 2
            ),
            "the sum of |D eta|^3 entry by entry: it is the norm of the vector, cubed": lambda g, H, D, k, eta: (
                -g @ eta + eta @ H @ eta / 2 + k / 6 * ((D * eta).abs() ** 3).sum()
            ),
        },
        (
            "Three terms, as in the formula: with one eta, with two, and with the norm of D eta.",
            "D is diagonal, given by its diagonal: D eta is the product D * eta.",
            "return -g @ eta + eta @ H @ eta / 2 + strength / 6 * (D * eta).norm() ** 3",
        ),
    ),
    Exercise(
        "03.3",
        "From the summary of a fine partition: the Newton step with one rate for all groups.",
        summary,
        one_rate,
        {
            "means in place of sums: H has S times as many entries as g": lambda g, H: g.mean() / H.mean(),
            "only the diagonal: merging groups adds all entries of H-bar": lambda g, H: g.sum() / H.trace(),
            "the mean of the groups' rates: merge first, then solve": lambda g, H: torch.linalg.solve(H, g).mean(),
            "each group alone, then averaged: the groups move together": lambda g, H: (g / H.diagonal()).mean(),
            "upside down: the rate is slope over curvature": lambda g, H: H.sum() / g.sum(),
        },
        (
            "With S = 1 there is one number g-bar and one number H-bar. How do they come from the finer ones?",
            "Merging groups adds entries: all of g-bar, and all of H-bar, off the diagonal too.",
            "return g.sum() / H.sum()",
        ),
    ),
)
