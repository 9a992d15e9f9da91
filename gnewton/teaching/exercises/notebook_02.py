"""Exercises of notebook 02: the summary by hand, and by automatic differentiation."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gnewton.teaching.exercises.exercise import Exercise

Loss = Callable[[Tensor], Tensor]


def point(seed: int) -> tuple[float, float]:
    """(a, b), where L = 1/2 (ab - 1)^2 has the gradient (r b, r a), r = ab - 1."""
    return ((3.0, 1.0), (-1.0, 2.0))[seed % 2]


def gradient(a: float, b: float) -> Tensor:
    """u = grad L (2,)."""
    return (a * b - 1) * torch.tensor([b, a], dtype=torch.float64)


def g_bar(a: float, b: float) -> Tensor:
    """(u_a^2, u_b^2), since u is the gradient."""
    return gradient(a, b) ** 2


def hessian(a: float, b: float) -> Tensor:
    """The Hessian of L (2, 2)."""
    return torch.tensor([[b * b, 2 * a * b - 1], [2 * a * b - 1, a * a]], dtype=torch.float64)


def h_bar(a: float, b: float) -> Tensor:
    """U H U (2, 2)."""
    u = gradient(a, b)
    return u[:, None] * hessian(a, b) * u


def without_residual(a: float, b: float) -> Tensor:
    """ab in place of 2ab - 1: the residual's own curvature forgotten."""
    u, slope = gradient(a, b), torch.tensor([b, a], dtype=torch.float64)
    return (u * slope)[:, None] * (u * slope)


def quartic(seed: int) -> tuple[Any, ...]:
    """A loss of theta (4,), theta with requires_grad, and parts (2, 4), whose rows are u_1 and u_2."""
    draw = torch.Generator().manual_seed(seed)
    theta, u, c = torch.randn(3, 4, generator=draw, dtype=torch.float64)
    groups = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1]], dtype=torch.float64)
    return lambda theta: ((c @ theta) ** 3 + (theta**2).sum() ** 2) / 4, theta.requires_grad_(), groups * u


def contract(loss: Loss, theta: Tensor, parts: Tensor) -> Tensor:
    """H-bar (S, S) by one backward pass for g-bar and one for each of its entries."""
    (g,) = torch.autograd.grad(loss(theta), theta, create_graph=True)
    rows = [torch.autograd.grad(entry, theta, retain_graph=True)[0] for entry in parts @ g]
    return torch.stack(rows) @ parts.T


def gradient_squared(loss: Loss, theta: Tensor, parts: Tensor) -> Tensor:
    """g-bar g-bar^T."""
    g = parts @ torch.autograd.grad(loss(theta), theta)[0]
    return g[:, None] * g


def not_contracted_twice(loss: Loss, theta: Tensor, parts: Tensor) -> Tensor:
    """The derivative of g-bar by every parameter (S, P)."""
    (g,) = torch.autograd.grad(loss(theta), theta, create_graph=True)
    return torch.stack([torch.autograd.grad(entry, theta, retain_graph=True)[0] for entry in parts @ g])


def four_groups(seed: int) -> tuple[Tensor]:
    """A symmetric H-bar (4, 4)."""
    root = torch.randn(4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (root + root.T,)


def merge(H: Tensor) -> Tensor:
    """The groups (0, 1) and (2, 3) made one each: (2, 2)."""
    return H.reshape(2, 2, 2, 2).sum(dim=(1, 3))


EXERCISES = (
    Exercise(
        "02.1",
        "For L = 1/2 (ab - 1)^2 and u its gradient, compute g-bar at any point (a, b).",
        point,
        g_bar,
        {
            "that is the gradient: g-bar multiplies it with u, which is the gradient once more": lambda a, b: gradient(
                a, b
            ),
            "the sign: g-bar is the derivative of L along +u, so it is positive when u is the gradient": lambda a, b: (
                -g_bar(a, b)
            ),
            "the inner derivatives are swapped: dL/da has the factor b": lambda a, b: gradient(a, b).flip(0) ** 2,
        },
        (
            "First the gradient: dL/da = (ab - 1) b. And dL/db?",
            "g-bar for group a is dL/da times u_a, and u_a is dL/da too.",
            "r = a * b - 1; return [(r * b) ** 2, (r * a) ** 2]",
        ),
    ),
    Exercise(
        "02.2",
        "For the same L and u, compute H-bar at any point (a, b).",
        point,
        h_bar,
        {
            "twice too much: u was differentiated too, and it is held constant": lambda a, b: 2 * h_bar(a, b),
            "that is the derivative of 02.1, in which u moves too: hold u constant, and let both sides have it": lambda a, b: (
                2 * gradient(a, b)[:, None] * hessian(a, b)
            ),
            "that is the Hessian of L: multiply its entry [s, t] with u_s and u_t": hessian,
            "off the diagonal the second derivative is 2ab - 1: differentiate the bracket (ab - 1) too": without_residual,
            "the sign: along -u twice, the two minus signs cancel": lambda a, b: -h_bar(a, b),
            "u is there once: both arguments of D2L[u_s, u_t] carry it": lambda a, b: hessian(a, b) * gradient(a, b),
        },
        (
            "Begin with the Hessian: differentiate dL/da = (ab - 1) b by a, then by b. Mind the product.",
            "The Hessian is [[b^2, 2ab - 1], [2ab - 1, a^2]].",
            "Then H-bar[s, t] = u_s H[s, t] u_t with u = ((ab - 1) b, (ab - 1) a).",
        ),
    ),
    Exercise(
        "02.3",
        "Compute H-bar of any loss by contraction: autograd twice, one row at a time.",
        quartic,
        contract,
        {
            "that is g-bar times g-bar: differentiate g-bar once more, with create_graph=True": gradient_squared,
            "the derivative of g-bar by every parameter: contract it with the parts as well": not_contracted_twice,
            "the sign: H-bar is the second derivative of L along +u": lambda loss, theta, parts: (
                -contract(loss, theta, parts)
            ),
        },
        (
            "g-bar is parts @ gradient. Take the gradient with create_graph=True, so that g-bar can be differentiated.",
            "For each entry of g-bar one more torch.autograd.grad by theta, with retain_graph=True: a vector (P,).",
            "Stack these vectors, (S, P), and multiply by parts.T: the same contraction once more.",
        ),
    ),
    Exercise(
        "02.4",
        "Merge four groups into two, (0, 1) and (2, 3): H-bar of the coarser partition from the finer one.",
        four_groups,
        merge,
        {
            "a mean: u_A is the sum of its u_s, so entries add up": lambda H: merge(H) / 4,
            "only the diagonal of each block: the pairs inside a merged group count too, both ways": lambda H: (
                torch.stack(
                    [
                        torch.stack([H[0, 0] + H[1, 1], H[0, 2] + H[1, 3]]),
                        torch.stack([H[2, 0] + H[3, 1], H[2, 2] + H[3, 3]]),
                    ]
                )
            ),
            "the wrong groups: 0 goes with 1, and 2 with 3": lambda H: H.reshape(2, 2, 2, 2).sum(dim=(0, 2)),
        },
        (
            "The merged group A has u_A = u_0 + u_1. What is D2L[u_A, u_A] when you multiply it out?",
            "Four entries of the finer H-bar for each of the coarser one: a sum over a block.",
            "M = [[1, 1, 0, 0], [0, 0, 1, 1]]; return M @ H @ M.T (or sum the blocks H[:2, :2], H[:2, 2:], ...).",
        ),
    ),
)
