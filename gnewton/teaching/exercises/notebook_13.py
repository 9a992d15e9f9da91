"""Exercises of notebook 13: the time to a loss, which methods stand apart, and what tuning is worth."""

import math
from typing import Any

import torch
from torch import Tensor

from gnewton.teaching.exercises.exercise import Exercise


def curves(seed: int) -> tuple[Any, ...]:
    """Losses of four runs (4, 6), the seconds at which they were seen (6,), and the loss to reach.

    The first falls and rises again; the second dips below and comes back; the third never arrives; the fourth starts there.
    """
    losses = torch.tensor(
        [
            [2.0, 1.5, 1.1, 0.7, 1.2, 0.6],
            [2.5, 0.4, 1.6, 1.4, 1.2, 0.8],
            [3.0, 2.5, 2.2, 2.0, 1.9, 1.8],
            [0.8, 0.7, 0.6, 0.5, 0.4, 0.3],
        ],
        dtype=torch.float64,
    )
    seconds = torch.tensor([1.0, 2.0, 4.0, 5.0, 8.0, 9.0], dtype=torch.float64)
    return losses, seconds * (1 + seed), 1.0 + 0.05 * seed


def time_to(losses: Tensor, seconds: Tensor, target: float) -> Tensor:
    """The second at which each run is first at or below the target (n,), infinite where it never is."""
    there = losses <= target
    first = seconds[there.double().argmax(1)]
    return torch.where(there.any(1), first, math.inf)


def last_arrival(losses: Tensor, seconds: Tensor, target: float) -> Tensor:
    """The second after which a run stays at or below the target."""
    above = losses > target
    last = torch.where(above.any(1), above.shape[1] - above.flip(1).double().argmax(1), 0)
    return torch.where(last < above.shape[1], seconds[last.clamp(max=above.shape[1] - 1)], math.inf)


def grid(seed: int) -> tuple[Tensor, int]:
    """Validation losses of six settings (6,), no two alike, and how many of them may be tried."""
    losses = torch.tensor([0.9, 0.55, 0.35, 0.2, 0.3, 2.1], dtype=torch.float64)
    return losses.roll(seed) * (1 + seed), 2 + seed


def best_of(losses: Tensor, k: int) -> float:
    """The mean, over all choices of k different settings, of the lowest loss among them."""
    ordered, n = losses.sort().values, len(losses)
    # The i-th lowest is the best of the k if the other k - 1 come from the n - 1 - i above it.
    return float(sum(ordered[i] * math.comb(n - 1 - i, k - 1) for i in range(n)) / math.comb(n, k))


def best_with_repeats(losses: Tensor, k: int) -> float:
    """The same, where a setting may be drawn more than once."""
    ordered, n = losses.sort().values, len(losses)
    return float(sum(ordered[i] * ((n - i) ** k - (n - i - 1) ** k) for i in range(n)) / n**k)


def finals(seed: int) -> tuple[Tensor]:
    """Final losses of four methods from five seeds (4, 5), two whose ranges touch, one diverged once."""
    losses = torch.tensor(
        [
            [0.10, 0.12, 0.11, 0.13, 0.10],
            [0.13, 0.16, 0.15, 0.14, 0.17],
            [0.20, 0.22, 0.19, 0.25, 0.21],
            [0.15, 0.14, math.inf, 0.16, 0.15],
        ],
        dtype=torch.float64,
    )
    return (losses[[[0, 1, 2, 3], [2, 0, 3, 1]][seed % 2]],)


def apart(losses: Tensor) -> Tensor:
    """1 where the ranges of two methods over the seeds have nothing in common, else 0 (M, M)."""
    low, high = losses.amin(1), losses.amax(1)
    before = high[:, None] < low
    return (before | before.T).double()


def means_apart(losses: Tensor) -> Tensor:
    """1 where the means differ."""
    means = losses.mean(1)
    return (means[:, None] != means).double()


EXERCISES = (
    Exercise(
        "13.1",
        "The time to a loss, for several runs, from their curves.",
        curves,
        time_to,
        {
            "that is the first place in the list, not its second": lambda v, s, t: torch.where(
                (v <= t).any(1), (v <= t).double().argmax(1).double(), math.inf
            ),
            "a run that never arrives gets the first or the last second: it has to be infinite": lambda v, s, t: (
                torch.where((v <= t).any(1), time_to(v, s, t), s[-1])
            ),
            "argmax of nothing but False is 0: a run that never arrives looks like the fastest": lambda v, s, t: s[
                (v <= t).double().argmax(1)
            ],
            "that is when it is below for good: asked is the first time, the second run dips": last_arrival,
            "that is the second of the lowest loss, which nobody asked for": lambda v, s, t: s[v.argmin(1)],
        },
        (
            "there = losses <= target is a table of True and False. Which column is the first True of each row?",
            "there.double().argmax(1) gives it, since argmax takes the first of several maxima. What does it give for a row without one?",
            "return torch.where(there.any(1), seconds[there.double().argmax(1)], torch.inf)",
        ),
    ),
    Exercise(
        "13.2",
        "Which pairs of methods stand apart: ranges over the seeds that have nothing in common.",
        finals,
        apart,
        {
            "different means are not enough: the ranges may still overlap": means_apart,
            "a method is not apart from itself: the diagonal is 0": lambda v: apart(v).fill_diagonal_(1.0),
            "turned round: 1 is for ranges that have nothing in common": lambda v: 1 - apart(v),
            "only one order of the two is looked at: either may be the lower one": lambda v: (
                v.amax(1)[:, None] < v.amin(1)
            ).double(),
            "ranges that touch in a point have that point in common: < and not <=": lambda v: (
                (v.amax(1)[:, None] <= v.amin(1)) | (v.amin(1)[:, None] >= v.amax(1))
            ).double(),
        },
        (
            "A range is a lowest and a highest value over the seeds. When does one range lie wholly below another?",
            "When its highest is smaller than the other's lowest: high[:, None] < low. That looks at one order only.",
            "before = losses.amax(1)[:, None] < losses.amin(1); return (before | before.T).double()",
        ),
    ),
    Exercise(
        "13.3",
        "The validation loss that k settings out of n may be expected to reach.",
        grid,
        best_of,
        {
            "the best of all n: with k tries one may miss it": lambda v, k: float(v.min()),
            "the mean of all settings: that is the case k = 1": lambda v, k: float(v.mean()),
            "the first k of the list: the order in which they stand is an accident": lambda v, k: float(v[:k].min()),
            "that draws with replacement: nobody tries the same setting twice": best_with_repeats,
            "the worst of the k, not the best": lambda v, k: -best_of(-v, k),
        },
        (
            "itertools.combinations(losses.tolist(), k) lists every choice of k settings. What does one keep of each choice?",
            "Its minimum. All choices are equally likely, so take the mean of the minima.",
            "choices = list(itertools.combinations(losses.tolist(), k)); return sum(map(min, choices)) / len(choices)",
        ),
    ),
)
