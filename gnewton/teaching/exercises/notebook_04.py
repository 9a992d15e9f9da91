"""Exercises of notebook 04: the ratio, the pole, and the secular equation."""

from typing import Any

import torch
from torch import Tensor

from gnewton.teaching.exercises.exercise import Exercise


def indefinite(seed: int, size: int) -> Tensor:
    """A symmetric (size, size) matrix with curvatures of both signs."""
    draw = torch.Generator().manual_seed(seed)
    axes: Tensor = torch.linalg.qr(torch.randn(size, size, generator=draw, dtype=torch.float64)).Q
    spectrum = torch.linspace(-1.5 - seed, 3.0, size, dtype=torch.float64)
    return axes @ spectrum.diag() @ axes.T


def step(seed: int) -> tuple[Any, ...]:
    """The loss before and after a step, g (3,), H (3, 3), eta (3,)."""
    g, eta = torch.randn(2, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).unbind()
    return 2.0 + seed, 1.3 - seed, g, indefinite(seed, 3), eta


def ratio(before: float, after: float, g: Tensor, H: Tensor, eta: Tensor) -> Tensor:
    """Actual over predicted decrease, of the quadratic model."""
    return (before - after) / (g @ eta - eta @ H @ eta / 2)


def metric(seed: int) -> tuple[Tensor, Tensor]:
    """H (4, 4) with negative curvature, and the diagonal of D (4,), positive."""
    draw = torch.Generator().manual_seed(seed)
    return indefinite(seed, 4), 0.5 + torch.rand(4, generator=draw, dtype=torch.float64)


def pole(H: Tensor, D: Tensor) -> Tensor:
    """Minus the lowest eigenvalue of D^-1 H D^-1."""
    kappa: Tensor = torch.linalg.eigvalsh(H / D / D[:, None])
    return -kappa[0]


def spectrum(seed: int) -> tuple[Any, ...]:
    """sigma beyond the pole, kappa (3,), b (3,), lambda_int."""
    b = torch.randn(3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return 2.0 + 0.3 * seed, torch.tensor([-1.0, 0.4, 3.0], dtype=torch.float64), b, 1.5 + seed


def excess(sigma: float, kappa: Tensor, b: Tensor, strength: float) -> Tensor:
    """|y(sigma)| - 2 sigma / lambda_int."""
    length: Tensor = torch.linalg.vector_norm(b / (kappa + sigma))
    return length - 2 * sigma / strength


EXERCISES = (
    Exercise(
        "04.1",
        "Compute the ratio of actual to predicted decrease for a step of the quadratic model.",
        step,
        ratio,
        {
            "upside down: the actual decrease over the predicted one": lambda before, after, g, H, eta: (
                (g @ eta - eta @ H @ eta / 2) / (before - after)
            ),
            "the sign: a decrease is before minus after": lambda before, after, g, H, eta: (
                (after - before) / (g @ eta - eta @ H @ eta / 2)
            ),
            "the factor 1/2 of the second-order term is missing": lambda before, after, g, H, eta: (
                (before - after) / (g @ eta - eta @ H @ eta)
            ),
            "only the first order predicts: the curvature belongs to the model": lambda before, after, g, H, eta: (
                (before - after) / (g @ eta)
            ),
            "the sign of the curvature: what bends up takes from the decrease": lambda before, after, g, H, eta: (
                (before - after) / (g @ eta + eta @ H @ eta / 2)
            ),
        },
        (
            "The model says that the loss changes by -g . eta + 1/2 eta^T H eta. What decrease is that?",
            "Predicted: g . eta - 1/2 eta^T H eta. Actual: before - after. Which goes on top?",
            "return (before - after) / (g @ eta - eta @ H @ eta / 2)",
        ),
    ),
    Exercise(
        "04.2",
        "Find the pole: the smallest sigma for which H + sigma D^2 has no negative curvature.",
        metric,
        pole,
        {
            "without D: the curvature must be seen in the units of D": lambda H, D: -torch.linalg.eigvalsh(H)[0],
            "the sign: to lift a curvature of -2 to 0, add 2": lambda H, D: torch.linalg.eigvalsh(H / D / D[:, None])[
                0
            ],
            "divided on one side only: K = D^-1 H D^-1 has D on both": lambda H, D: -torch.linalg.eigvalsh(H / D**2)[0],
            "D H D: it is D^-1 on both sides": lambda H, D: -torch.linalg.eigvalsh(H * D * D[:, None])[0],
            "the largest curvature: the lowest one decides": lambda H, D: (
                -torch.linalg.eigvalsh(H / D / D[:, None])[-1]
            ),
            "H + sigma D: D comes squared": lambda H, D: -torch.linalg.eigvalsh(H / D.sqrt() / D.sqrt()[:, None])[0],
        },
        (
            "H + sigma D^2 = D (K + sigma I) D with K = D^-1 H D^-1. When is K + sigma I positive semi-definite?",
            "Its eigenvalues are those of K, plus sigma. The lowest must come up to 0.",
            "K = H / D / D[:, None]; return -torch.linalg.eigvalsh(K)[0]",
        ),
    ),
    Exercise(
        "04.3",
        "Write the secular equation as a function that is zero at its root.",
        spectrum,
        excess,
        {
            "the square of the length: the line 2 sigma / lambda is a length": lambda s, k, b, strength: (
                (b / (k + s)).square().sum() - 2 * s / strength
            ),
            "the wrong way round: from sigma = lambda |y| / 2 the length is 2 sigma / lambda": lambda s, k, b, strength: (
                torch.linalg.vector_norm(b / (k + s)) - s * strength / 2
            ),
            "kappa - sigma: the shift lifts every curvature": lambda s, k, b, strength: (
                torch.linalg.vector_norm(b / (k - s)) - 2 * s / strength
            ),
            "the sum of the sizes: along orthogonal axes lengths add in squares": lambda s, k, b, strength: (
                (b / (k + s)).abs().sum() - 2 * s / strength
            ),
            "the components are added up: the length is the root of the sum of their squares": lambda s, k, b, strength: (
                (b / (k + s)).sum() - 2 * s / strength
            ),
            "the other sign: length minus line": lambda s, k, b, strength: (
                2 * s / strength - torch.linalg.vector_norm(b / (k + s))
            ),
        },
        (
            "Two things must be equal: the length of y(sigma), and the length that sigma stands for.",
            "y has the components b_i / (kappa_i + sigma). And sigma = lambda |y| / 2: solve that for |y|.",
            "return torch.linalg.vector_norm(b / (kappa + sigma)) - 2 * sigma / strength",
        ),
    ),
)
