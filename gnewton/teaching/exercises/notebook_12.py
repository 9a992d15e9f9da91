"""Exercises of notebook 12: the signs of a one-sample Hessian, one layer by hand, and a step with |H| and a ceiling."""

import itertools
from typing import Any

import torch
from torch import Tensor

from gnewton.teaching.exercises.exercise import Exercise


def one_layer(seed: int) -> tuple[Any, ...]:
    """The error e (3,), the extended input abar (5,), whose last entry is 1, and rho."""
    draw = torch.Generator().manual_seed(seed)
    e, a = torch.randn(3, generator=draw, dtype=torch.float64), torch.randn(4, generator=draw, dtype=torch.float64)
    return e, torch.cat([a, torch.ones(1, dtype=torch.float64)]), 0.7 + seed


def normalize(e: Tensor, a: Tensor, rho: float) -> Tensor:
    """-e abar^T / (rho + |abar|^2)."""
    return -torch.outer(e, a) / (rho + a @ a)


def widths(seed: int) -> tuple[list[int]]:
    """n_0, ..., n_L."""
    return ([5, 4, 3, 6] if seed == 0 else [8, 7, 4 + seed],)


def signs(n: list[int]) -> Tensor:
    """(3,): how many negative, zero and positive eigenvalues."""
    hidden, P = sum(n[1:-1]), sum(b * (a + 1) for a, b in itertools.pairwise(n))
    positive = hidden + n[-1] - 1
    return torch.tensor([hidden, P - hidden - positive, positive], dtype=torch.float64)


def _signs(n: list[int], hidden: int, rank: int, bias: int = 1) -> Tensor:
    P = sum(b * (a + bias) for a, b in itertools.pairwise(n))
    return torch.tensor([hidden, P - 2 * hidden - rank, hidden + rank], dtype=torch.float64)


def spectrum(seed: int) -> tuple[Any, ...]:
    """Eigenvalues (6,) of both signs, some beyond the ceiling; the gradient's coordinates c (6,); rho and the ceiling."""
    draw = torch.Generator().manual_seed(seed)
    values = torch.tensor([-4.0, -0.5, 0.0, 0.3, 1.5, 9.0], dtype=torch.float64) * (1 + 0.3 * seed)
    return values, torch.randn(6, generator=draw, dtype=torch.float64), 0.5 + seed, 2.0


def saddle_free(values: Tensor, c: Tensor, rho: float, ceiling: float) -> Tensor:
    """-c / (min(|lambda|, ceiling) + rho)."""
    return -c / (values.abs().clamp(max=ceiling) + rho)


EXERCISES = (
    Exercise(
        "12.1",
        "How many eigenvalues of a one-sample Hessian are negative, zero, positive: three numbers.",
        widths,
        signs,
        {
            "cross-entropy's own Hessian has the rank n_L - 1: the probabilities sum to one": lambda n: _signs(
                n, sum(n[1:-1]), n[-1]
            ),
            "the inputs are no hidden units": lambda n: _signs(n, sum(n[:-1]), n[-1] - 1),
            "the biases are parameters too": lambda n: _signs(n, sum(n[1:-1]), n[-1] - 1, bias=0),
            "no zeros are counted: the three numbers add up to the number of parameters": lambda n: (
                signs(n) * torch.tensor([1.0, 0.0, 1.0])
            ),
            "the order is negative, zero, positive": lambda n: signs(n).flip(0),
        },
        (
            "N hidden units: N negative eigenvalues, and N + rank C_L positive ones. What is the rank of Diag(p) - p p^T?",
            "Its rank is n_L - 1. All other eigenvalues are zero: count the parameters, (n_{l-1} + 1) n_l in layer l.",
            "N = sum(n[1:-1]); P = sum(b * (a + 1) for a, b in zip(n, n[1:])); return [N, P - 2 * N - n[-1] + 1, N + n[-1] - 1]",
        ),
    ),
    Exercise(
        "12.2",
        "The damped Newton direction of one linear layer and the squared error, a matrix.",
        one_layer,
        normalize,
        {
            "the length of the input is missing: that is gradient descent with the rate 1 / rho": lambda e, a, rho: (
                -torch.outer(e, a) / rho
            ),
            "it goes uphill: the direction is minus the inverse times the gradient": lambda e, a, rho: (
                torch.outer(e, a) / (rho + a @ a)
            ),
            "|abar| where |abar|^2 stands: the curvature along abar is its square": lambda e, a, rho: (
                -torch.outer(e, a) / (rho + a.norm())
            ),
            "the damping is missing": lambda e, a, rho: -torch.outer(e, a) / (a @ a),
        },
        (
            "The loss is |V abar - y|^2 / 2. Along which directions of V does it bend at all, and how much?",
            "V changes the output by U abar alone. Try U = u abar^T: then U abar = |abar|^2 u, and u solves a system of one number.",
            "return -torch.outer(e, a) / (rho + a @ a)",
        ),
    ),
    Exercise(
        "12.3",
        "The saddle-free step with a ceiling, in the coordinates of the eigenvectors.",
        spectrum,
        saddle_free,
        {
            "the sign of lambda is still there: along negative curvature this goes up": lambda v, c, rho, top: (
                -c / (v.clamp(max=top) + rho)
            ),
            "there is no ceiling: the largest eigenvalues divide by themselves": lambda v, c, rho, top: (
                -c / (v.abs() + rho)
            ),
            "the ceiling is for |lambda| alone; rho is added afterwards": lambda v, c, rho, top: (
                -c / (v.abs() + rho).clamp(max=top)
            ),
            "it goes uphill: minus the gradient": lambda v, c, rho, top: c / (v.abs().clamp(max=top) + rho),
        },
        (
            "In these coordinates H is diagonal, so that every coordinate is a problem of its own.",
            "Newton divides by lambda + rho. Put |lambda| in its place, but never more than the ceiling.",
            "return -c / (values.abs().clamp(max=ceiling) + rho)",
        ),
    ),
)
