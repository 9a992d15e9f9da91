"""Exercises of notebook 14: H-bar by finite differences, curvature per unit of length, and groups that stay."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gnewton.teaching.exercises.exercise import Exercise

STEP = 1e-3

Phi = Callable[[Tensor], Tensor]


def directions(seed: int) -> tuple[list[Tensor], Tensor]:
    """u of four groups, tensors of several shapes, the last one zero; H-bar (4, 4)."""
    draw = torch.Generator().manual_seed(seed)
    shapes = ((3, 2), (4,), (2, 2, 2), (3,))
    u = [torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes]
    u[3].zero_()
    root = torch.randn(4, 4, generator=draw, dtype=torch.float64)
    hessian = root + root.T + 4 * torch.eye(4, dtype=torch.float64)
    hessian[3], hessian[:, 3] = 0.0, 0.0
    return u, hessian


def bend(u: Sequence[Tensor], hessian: Tensor) -> Tensor:
    """H_ss / |u_s|^2, 0 where u_s is zero (S,)."""
    squares = torch.stack([part.square().sum() for part in u])
    return torch.where(squares == 0, 0.0, hessian.diagonal() / torch.where(squares == 0, 1.0, squares))


def valley(seed: int) -> tuple[Phi, int]:
    """phi(eta), a loss as a function of three learning rates, and S = 3."""
    draw = torch.Generator().manual_seed(seed)
    slopes = torch.randn(6, 3, generator=draw, dtype=torch.float64)

    def phi(eta: Any) -> Tensor:
        return torch.exp(slopes @ torch.as_tensor(eta, dtype=torch.float64)).mean()

    return phi, 3


def differences(phi: Phi, groups: int) -> Tensor:
    """The second derivatives of phi at 0 by central differences (S, S)."""
    e = STEP * torch.eye(groups, dtype=torch.float64)
    rows = [[phi(a + b) - phi(a - b) - phi(b - a) + phi(-a - b) for b in e] for a in e]
    return torch.stack([torch.stack(row) for row in rows]) / (4 * STEP**2)


def slopes(phi: Phi, groups: int) -> Tensor:
    """The first derivatives of phi at 0 (S,)."""
    e = STEP * torch.eye(groups, dtype=torch.float64)
    return torch.stack([phi(a) - phi(-a) for a in e]) / (2 * STEP)


def some_stay(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """g-bar (4,), a positive definite H-bar (4, 4), and which groups move (4,), bool."""
    draw = torch.Generator().manual_seed(seed)
    root = torch.randn(4, 4, generator=draw, dtype=torch.float64)
    g = 1 + torch.rand(4, generator=draw, dtype=torch.float64)
    moves = torch.tensor([[True, False, True, True], [True, True, False, False]][seed % 2])
    return g, root @ root.T + torch.eye(4, dtype=torch.float64), moves


def step_of(g: Tensor, H: Tensor, moves: Tensor) -> Tensor:
    """The Newton step of the groups that move, 0 for the others (S,)."""
    eta = torch.zeros_like(g)
    eta[moves] = torch.linalg.solve(H[moves][:, moves], g[moves])
    return eta


EXERCISES = (
    Exercise(
        "14.1",
        "H-bar from values of the loss alone: second differences of phi at 0.",
        valley,
        differences,
        {
            "only the diagonal: move two groups at once for the others": lambda phi, S: (
                differences(phi, S).diag().diag()
            ),
            "the mixed difference is taken over 2 steps in each direction: divide by 4 steps squared": lambda phi, S: (
                4 * differences(phi, S)
            ),
            "divided by the step once: a second difference needs its square": lambda phi, S: STEP * differences(phi, S),
            "an outer product of first derivatives is not a second derivative": lambda phi, S: torch.outer(
                slopes(phi, S), slopes(phi, S)
            ),
        },
        (
            "With e_s a small step of group s: which four values of phi tell how the slope along s changes along t?",
            "phi(e_s + e_t) - phi(e_s - e_t) - phi(e_t - e_s) + phi(-e_s - e_t), which also works for s = t.",
            "Divide it by 4 step**2. A step of 1e-3 is good in float64. Two loops over range(S) fill H[s, t].",
        ),
        tolerance=1e-2,  # differences to one side are off by the step times the third derivative
    ),
    Exercise(
        "14.2",
        "The curvature of each group per unit of length along its part of u.",
        directions,
        bend,
        {
            "divided by |u_s|: twice the direction is four times the H-bar, so take the square": lambda u, H: (
                bend(u, H) * torch.stack([part.square().sum().sqrt() for part in u])
            ),
            "divided by |u|^2 of all groups together: each group has a length of its own": lambda u, H: (
                H.diagonal() / sum(part.square().sum() for part in u)
            ),
            "divided by the mean of the squares: a layer of many weights then looks more curved": lambda u, H: (
                bend(u, H) * torch.tensor([part.numel() for part in u])
            ),
            "0 / 0 where u_s is zero: the answer there has to be 0": lambda u, H: (
                H.diagonal() / torch.stack([part.square().sum() for part in u])
            ),
        },
        (
            "H_ss is the second derivative along u_s. How does it change if u_s is twice as long?",
            "It grows fourfold: divide by |u_s|^2, the sum of the squares of all entries of u[s].",
            "squares = torch.stack([part.square().sum() for part in u]); then torch.where for those that are 0.",
        ),
    ),
    Exercise(
        "14.3",
        "The Newton step when some groups must not move.",
        some_stay,
        step_of,
        {
            "the step of all the groups with some entries struck out: the others counted on them to move": lambda g, H, m: (
                torch.where(m, torch.linalg.solve(H, g), 0.0)
            ),
            "all groups move": lambda g, H, m: torch.linalg.solve(H, g),
            "the groups that move are left out, those that stay move": lambda g, H, m: step_of(g, H, ~m),
            "g-bar over the diagonal: the groups that move still act on each other": lambda g, H, m: torch.where(
                m, g / H.diagonal(), 0.0
            ),
        },
        (
            "eta is 0 for a group that stays. Put that into the model of the loss: which rows and columns of H are left?",
            "Those of the groups that move: H[moves][:, moves] and g[moves].",
            "eta = torch.zeros_like(g); eta[moves] = torch.linalg.solve(H[moves][:, moves], g[moves])",
        ),
    ),
)
