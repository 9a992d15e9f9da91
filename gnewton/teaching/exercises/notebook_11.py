"""Exercises of notebook 11: gradient and Hessian of a chain of scalar layers, and rates in other units."""

import torch
from torch import Tensor

from gnewton.teaching.exercises.exercise import Exercise


def chain(seed: int) -> tuple[Tensor, float]:
    """Weights (5,) of a chain, and the target."""
    draw = torch.Generator().manual_seed(seed)
    return 0.6 + 0.5 * torch.rand(5, generator=draw, dtype=torch.float64), 1.0 + 0.5 * seed


def slopes(w: Tensor, y: float) -> Tensor:
    """f / w_s for each layer (n,), the derivative of the product f."""
    return w.prod() / w


def chain_gradient(w: Tensor, y: float) -> Tensor:
    """(f - y) f / w_s (n,)."""
    return (w.prod() - y) * slopes(w, y)


def chain_hessian(w: Tensor, y: float) -> Tensor:
    """f² / (w_s w_t), and (f - y) f / (w_s w_t) more off the diagonal (n, n)."""
    return gauss_newton(w, y) + between(w, y)


def gauss_newton(w: Tensor, y: float) -> Tensor:
    """The products of the slopes."""
    return torch.outer(slopes(w, y), slopes(w, y))


def between(w: Tensor, y: float) -> Tensor:
    """The residual times the second derivatives of f, which vanish for s = t."""
    curved = (w.prod() - y) * w.prod() / torch.outer(w, w)
    return curved - curved.diagonal().diag()


def units(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """SGD's rates (4,), Adam's (4,), and a in theta = a theta~ (4,)."""
    draw = torch.Generator().manual_seed(seed)
    sgd, adam, a = 0.1 + torch.rand(3, 4, generator=draw, dtype=torch.float64)
    return sgd, adam / 100, 4 * a


def in_other_units(sgd: Tensor, adam: Tensor, a: Tensor) -> Tensor:
    """eta / a² for SGD, eta / a for Adam (2, S)."""
    return torch.stack([sgd / a**2, adam / a])


EXERCISES = (
    Exercise(
        "11.1",
        "The gradient of a chain of scalar layers.",
        chain,
        chain_gradient,
        {
            "that is the derivative of the product alone: the residual f - y belongs to it": slopes,
            "f times the residual for every layer: the derivative with respect to w_s has all factors but its own": lambda w, y: (
                (w.prod() - y) * w.prod().expand(5)
            ),
            "the sign of the residual: it is f - y": lambda w, y: -chain_gradient(w, y),
            "a factor of 2: the loss has a half in front": lambda w, y: 2 * chain_gradient(w, y),
            "the residual is still squared: differentiating the square leaves it once": lambda w, y: (
                (w.prod() - y) ** 2 * slopes(w, y)
            ),
        },
        (
            "f = w_1 w_2 ... w_n. What is left of f when you differentiate it with respect to w_s?",
            "The product of the others, f / w_s. And the derivative of (f - y)² / 2 with respect to f is f - y.",
            "return (w.prod() - y) * w.prod() / w",
        ),
    ),
    Exercise(
        "11.2",
        "The Hessian of a chain of scalar layers.",
        chain,
        chain_hessian,
        {
            "the residual's part is missing: f has second derivatives between two different layers": gauss_newton,
            "the residual's part on the diagonal too: f is linear in each single weight": lambda w, y: (
                gauss_newton(w, y) + (w.prod() - y) * w.prod() / torch.outer(w, w)
            ),
            "only the residual's part: the products of the slopes belong to it": between,
            "the outer product of the gradient: that has the residual twice": lambda w, y: torch.outer(
                chain_gradient(w, y), chain_gradient(w, y)
            ),
        },
        (
            "Differentiate (f - y) f / w_s with respect to w_t. There are two cases, s = t and s != t.",
            "For all s, t: (f / w_s)(f / w_t). For s != t also (f - y) f / (w_s w_t).",
            "slope = f / w; rest = (f - y) * f / torch.outer(w, w); return torch.outer(slope, slope) + rest - rest.diagonal().diag()",
        ),
    ),
    Exercise(
        "11.3",
        "The rates of SGD and of Adam, one per group, for a network that is stored in other units.",
        units,
        in_other_units,
        {
            "Adam's divided by a² like SGD's: the length of its step does not grow with the gradient": lambda s, m, a: (
                torch.stack([s, m]) / a**2
            ),
            "SGD's divided by a only: the gradient has another length, too": lambda s, m, a: torch.stack([s, m]) / a,
            "multiplied: theta~ = theta / a, so its steps are those of theta divided by a": lambda s, m, a: torch.stack(
                [s * a**2, m * a]
            ),
            "unchanged: then the step of theta depends on a": lambda s, m, a: torch.stack([s, m]),
        },
        (
            "The step of theta must be what it was, so the step of theta~ must be that divided by a.",
            "The gradient with respect to theta~ is a times that with respect to theta. SGD steps in proportion to it, Adam does not.",
            "return torch.stack([sgd / a**2, adam / a])",
        ),
    ),
)
