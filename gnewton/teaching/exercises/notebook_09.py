"""Exercises of notebook 09: means over uneven batches and over steps, a step that is repeated, and the ratio test."""

from typing import Any

import torch
from torch import Tensor

from gnewton.teaching.exercises.exercise import Exercise


def uneven_batches(seed: int) -> tuple[Tensor, Tensor]:
    """H-bar of four batches (4, 3, 3), and their sizes (4,), the last one smaller."""
    draw = torch.Generator().manual_seed(seed)
    root = torch.randn(4, 3, 3, generator=draw, dtype=torch.float64)
    return root + root.mT, torch.tensor([50.0, 50.0, 50.0, 7.0 + 10 * seed], dtype=torch.float64)


def over_the_data(hessians: Tensor, sizes: Tensor) -> Tensor:
    """The mean weighted by n_b / N (S, S)."""
    return torch.einsum("b,bst->st", sizes / sizes.sum(), hessians)


def noisy_numbers(seed: int) -> tuple[Tensor, float]:
    """g-bar of six updates (6, 2), and beta."""
    draw = torch.Generator().manual_seed(seed)
    return 3 + torch.randn(6, 2, generator=draw, dtype=torch.float64), (0.9, 0.7)[seed % 2]


def running(values: Tensor, beta: float) -> Tensor:
    """The exponential average after each update, divided by the sum of its weights (T, S)."""
    total, weight, means = torch.zeros_like(values[0]), 0.0, []
    for value in values:
        total, weight = beta * total + (1 - beta) * value, beta * weight + 1 - beta
        means.append(total / weight)
    return torch.stack(means)


def average_as_it_is(values: Tensor, beta: float, start: Tensor) -> Tensor:
    """A <- beta A + (1 - beta) value, from ``start``, as it is."""
    averages = [start]
    for value in values:
        averages.append(beta * averages[-1] + (1 - beta) * value)
    return torch.stack(averages[1:])


def reuse(seed: int) -> tuple[Any, ...]:
    """lambda_1 and the period."""
    return ((0.3, 8), (0.5, 8))[seed % 2]


def slopes(lr: float, period: int) -> Tensor:
    """1 - lambda_1 j for j = 0, ..., period (period + 1,)."""
    return 1 - lr * torch.arange(period + 1, dtype=torch.float64)


def trials(seed: int) -> tuple[Any, ...]:
    """The loss before (6,), after (6,), the promised decrease (6,), and lambda_int."""
    draw = torch.Generator().manual_seed(seed)
    before = 2 + torch.rand(6, generator=draw, dtype=torch.float64)
    promised = 0.2 + torch.rand(6, generator=draw, dtype=torch.float64)
    ratios = torch.tensor([-1.0, 0.1, 0.2, 0.5, 0.9, 1.4], dtype=torch.float64)
    return before, before - ratios.roll(seed) * promised, promised, 1.0 + seed


def update_regularization(before: Tensor, after: Tensor, promised: Tensor, strength: float) -> Tensor:
    """lambda_int doubled where rho < 1/4, halved where rho > 3/4 (n,)."""
    return strengths((before - after) / promised, strength)


def strengths(rho: Tensor, strength: float) -> Tensor:
    """The rule, for any ratio."""
    return strength * torch.where(rho < 0.25, 2.0, torch.where(rho > 0.75, 0.5, 1.0)).double()


EXERCISES = (
    Exercise(
        "09.1",
        "H-bar of the whole data set from those of its mini-batches, the last of which is smaller.",
        uneven_batches,
        over_the_data,
        {
            "every batch counts alike: the few samples of the last one weigh too much": lambda H, n: H.mean(0),
            "a sum without the weights: each H-bar is a mean over its own batch already": lambda H, n: H.sum(0),
            "multiplied with the sizes, but not divided by their sum": lambda H, n: torch.einsum("b,bst->st", n, H),
            "the last batch is left out: the data set has its samples too": lambda H, n: H[:-1].mean(0),
        },
        (
            "The loss of the data set is a mean over samples. What is the share of batch b in it?",
            "Its share is sizes[b] / sizes.sum(). H-bar is linear in the loss, so it has the same shares.",
            "weights = sizes / sizes.sum(); return (weights[:, None, None] * hessians).sum(0)",
        ),
    ),
    Exercise(
        "09.2",
        "The exponential average of g-bar after each update, without a bias towards its start.",
        noisy_numbers,
        running,
        {
            "it starts at zero and stays too small for a while: divide by the sum of the weights so far": lambda v, b: (
                average_as_it_is(v, b, torch.zeros_like(v[0]))
            ),
            "it starts at the first value, which then weighs more than any other": lambda v, b: average_as_it_is(
                v, b, v[0]
            ),
            "the weights are exchanged: beta is the share of the past": lambda v, b: running(v, 1 - b),
            "the plain mean of all values so far: it never forgets": lambda v, b: (
                v.cumsum(0) / torch.arange(1.0, len(v) + 1)[:, None]
            ),
        },
        (
            "total <- beta total + (1 - beta) value, from zero. Which weights do the values have in it?",
            "The weights obey the same rule: weight <- beta weight + 1 - beta, from zero. They do not add up to one yet.",
            "After each update the average is total / weight. Collect them, and stack.",
        ),
    ),
    Exercise(
        "09.3",
        "The slope along a direction when the same step is taken again and again on a parabola.",
        reuse,
        slopes,
        {
            "that is what a fresh step at each point leaves: here the step does not shrink with the slope": lambda lr, p: (
                (1 - lr) ** torch.arange(p + 1, dtype=torch.float64)
            ),
            "only the slope at the end: return all of them, the first one too": lambda lr, p: 1 - lr * p,
            "the first slope is missing: before any step it is 1": lambda lr, p: slopes(lr, p)[1:],
            "the sign: the step goes downhill, so the slope falls": lambda lr, p: 2 - slopes(lr, p),
        },
        (
            "On a parabola the slope is a straight line in the position. How far does one step of lr = 1 go?",
            "The whole step takes the slope from 1 to 0. A part lr of it takes away lr, wherever it begins.",
            "return 1 - lr * torch.arange(period + 1)",
        ),
    ),
    Exercise(
        "09.4",
        "The ratio test: the next lambda_int from what was promised and what came of it, for several trials.",
        trials,
        update_regularization,
        {
            "the ratio is upside down: actual over promised": lambda a, b, p, k: strengths(p / (a - b), k),
            "the sign: the actual decrease is the loss before minus the loss after": lambda a, b, p, k: strengths(
                (b - a) / p, k
            ),
            "doubled and halved are exchanged: a model that promised too much needs a stronger cubic term": lambda a, b, p, k: (
                k**2 / strengths((a - b) / p, k)
            ),
            "between the two thresholds it stays as it is": lambda a, b, p, k: (
                k * torch.where((a - b) / p < 0.25, 2.0, 0.5).double()
            ),
        },
        (
            "First rho, the actual decrease over the promised one, for each trial.",
            "Below 1/4: times 2. Above 3/4: times 1/2. Otherwise times 1. torch.where does it for all at once.",
            "return strength * torch.where(rho < 0.25, 2.0, torch.where(rho > 0.75, 0.5, 1.0))",
        ),
    ),
)
