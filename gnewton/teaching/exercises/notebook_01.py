"""Exercises of notebook 01: rates on a bowl."""

from typing import Any

import torch
from torch import Tensor

from gnewton.teaching.exercises.exercise import Exercise


def bowl(seed: int, size: int = 3) -> tuple[Tensor, Tensor]:
    """A vector (size,) and a positive definite A (size, size)."""
    draw = torch.Generator().manual_seed(seed)
    root = torch.randn(size, size, generator=draw, dtype=torch.float64)
    vector = torch.randn(size, generator=draw, dtype=torch.float64)
    return vector, root @ root.T + torch.eye(size, dtype=torch.float64)


def rate(g: Tensor, A: Tensor) -> Tensor:
    """Cauchy's learning rate along the gradient."""
    return (g @ g) / (g @ A @ g)


def limit(A: Tensor) -> Tensor:
    """The learning rate at which gradient descent begins to diverge."""
    return torch.as_tensor(2 / torch.linalg.eigvalsh(A)[-1])


def groups_of_two(seed: int) -> tuple[Any, ...]:
    """A (4, 4), u (4,), and groups (2, 4), ones where a coordinate is in a group."""
    u, A = bowl(seed, size=4)
    return A, u, torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1]], dtype=torch.float64)


def h_bar(A: Tensor, u: Tensor, groups: Tensor) -> Tensor:
    """V^T A V, with rows u_s of V^T."""
    parts = groups * u
    return parts @ A @ parts.T


def one_sided(A: Tensor, u: Tensor, groups: Tensor) -> Tensor:
    """u on one side alone."""
    return (groups * u) @ A @ groups.T


def every_scalar(A: Tensor, u: Tensor, groups: Tensor) -> Tensor:
    """H-bar of the finest partition."""
    return u[:, None] * A * u


def diagonal_entries(A: Tensor, u: Tensor, groups: Tensor) -> Tensor:
    """Only the diagonal of A."""
    parts = groups * u
    return parts @ A.diagonal().diag() @ parts.T


EXERCISES = (
    Exercise(
        "01.1",
        "From A alone: the learning rate above which gradient descent diverges.",
        lambda seed: bowl(seed)[1:],
        limit,
        {
            "half of it: at 1 / largest eigenvalue the steepest error vanishes at once; it diverges from twice that on": lambda A: (
                1 / torch.linalg.eigvalsh(A)[-1]
            ),
            "the wrong end: the steepest direction, the largest eigenvalue, breaks first": lambda A: (
                2 / torch.linalg.eigvalsh(A)[0]
            ),
            "the largest entry of the diagonal is not the largest curvature: the steepest direction need not be a coordinate": lambda A: (
                2 / A.diagonal().max()
            ),
        },
        (
            "What happens to the error along one eigenvector of A in one step?",
            "It is multiplied by 1 - eta lambda. It grows when that is below -1.",
            "torch.linalg.eigvalsh(A) lists the eigenvalues in ascending order; the limit is 2 over the last.",
        ),
    ),
    Exercise(
        "01.2",
        "Compute Cauchy's learning rate for the gradient g on a bowl with Hessian A.",
        bowl,
        rate,
        {
            "upside down: the rate is slope over curvature": lambda g, A: (g @ A @ g) / (g @ g),
            "a factor 2: the loss has 1/2 in front, so the slope along g is g . g and its derivative g . A g": lambda g, A: (
                (g @ g) / (2 * g @ A @ g)
            ),
            "the norm of g instead of its square: the slope along u = g is g . g": lambda g, A: g.norm() / (g @ A @ g),
            "A is missing below: the curvature along g is g . A g, not |A| or g . g": lambda g, A: (g @ g) / (g @ g),
        },
        (
            "Along the line, L(theta - eta g) is a parabola in eta. What are its slope and its curvature at eta = 0?",
            "The slope is -g . g and the curvature g . A g; a parabola is lowest where slope + eta curvature = 0.",
            "return (g @ g) / (g @ A @ g)",
        ),
    ),
    Exercise(
        "01.3",
        "Compute H-bar of a bowl with Hessian A for the direction u and any groups.",
        groups_of_two,
        h_bar,
        {
            "u is there once: H-bar[s, t] = u_s . A u_t has it on both sides": one_sided,
            "without u: that sums the entries of A; H-bar is the curvature along u": lambda A, u, groups: (
                groups @ A @ groups.T
            ),
            "one row per coordinate: sum over the groups too": every_scalar,
            "only the diagonal of A: two coordinates of one group have a common entry as well": diagonal_entries,
        },
        (
            "Row s of groups * u is u_s: u inside group s, zero elsewhere.",
            "H-bar[s, t] = u_s . A u_t. With the u_s as rows of a matrix, that is one product of three matrices.",
            "parts = groups * u; return parts @ A @ parts.T",
        ),
    ),
)
