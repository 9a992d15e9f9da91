"""Exercises of notebook 00: the step, and what it promises."""

from typing import Any

import torch
from torch import Tensor

from gnewton.teaching.exercises.exercise import Exercise


def five_parameters(seed: int) -> tuple[Any, ...]:
    """theta (5,), u (5,), the group of each parameter (5,), eta (2,)."""
    draw = torch.Generator().manual_seed(seed)
    theta, u = torch.randn(2, 5, generator=draw, dtype=torch.float64)
    return (
        theta,
        u,
        torch.tensor([0, 0, 1, 1, 1]),
        torch.rand(2, generator=draw, dtype=torch.float64) + 0.5 * (1 + seed),
    )


def step(theta: Tensor, u: Tensor, group: Tensor, eta: Tensor) -> Tensor:
    """theta - U I eta (P,)."""
    return theta - eta[group] * u


def small_summary(seed: int) -> tuple[Any, ...]:
    """The loss, g-bar (3,), H-bar (3, 3) and rates eta (3,)."""
    draw = torch.Generator().manual_seed(seed)
    g, eta, a, b, c = torch.randn(5, 3, generator=draw, dtype=torch.float64)
    root = torch.stack([a, b, c])
    return 2.0 + seed, g, root + root.T, eta


def promise(loss: float, g: Tensor, H: Tensor, eta: Tensor) -> Tensor:
    """L - g-bar . eta + 1/2 eta^T H-bar eta."""
    return loss - g @ eta + eta @ H @ eta / 2


EXERCISES = (
    Exercise(
        "00.1",
        "Take one step: each parameter moves against its part of u, at the rate of its group.",
        five_parameters,
        step,
        {
            "the sign: the step subtracts, since u points where the loss grows": lambda t, u, k, eta: t + eta[k] * u,
            "one rate for all: parameter p has the rate of its own group, eta[group[p]]": lambda t, u, k, eta: (
                t - eta[0] * u
            ),
            "without u: the rate says how far along u, so it multiplies u": lambda t, u, k, eta: t - eta[k],
        },
        (
            "First make one rate per parameter. If group is [0, 0, 1] and eta is [.1, .2], it should be [.1, .1, .2].",
            "Indexing with a tensor does that at once: eta[group].",
            "return theta - eta[group] * u",
        ),
    ),
    Exercise(
        "00.2",
        "Compute the loss that the model of order two promises after the step eta.",
        small_summary,
        promise,
        {
            "the sign of the first term: a positive rate goes downhill, so that term is subtracted": lambda loss, g, H, eta: (
                loss + g @ eta + eta @ H @ eta / 2
            ),
            "the sign of the second term: curvature adds to the loss, that term is added": lambda loss, g, H, eta: (
                loss - g @ eta - eta @ H @ eta / 2
            ),
            "the factor 1/2 of the second-order term is missing": lambda loss, g, H, eta: (
                loss - g @ eta + eta @ H @ eta
            ),
            "only the diagonal of H: the pairs of two different groups count too": lambda loss, g, H, eta: (
                loss - g @ eta + H.diagonal() @ eta**2 / 2
            ),
            "that is the change of the loss: add the loss before the step": lambda loss, g, H, eta: (
                -g @ eta + eta @ H @ eta / 2
            ),
        },
        (
            "It is a Taylor expansion: a constant, a term with g and one eta, a term with H and two etas.",
            "g @ eta is the sum over the groups; eta @ H @ eta the sum over all pairs of groups.",
            "The slope along -u is -g, so: loss - g @ eta + eta @ H @ eta / 2.",
        ),
    ),
)
