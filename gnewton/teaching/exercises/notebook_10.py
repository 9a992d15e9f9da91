"""Exercises of notebook 10: the adjoint of a convolution, its part of H-bar, and a kernel before batch norm."""

import torch
import torch.nn.functional as F
from torch import Tensor

from gnewton.teaching.exercises.exercise import Exercise


def convolve(w: Tensor, x: Tensor) -> Tensor:
    """z_i = sum over j of w_j x_{i + j}: (k,), (n,) -> (n - k + 1,)."""
    return F.conv1d(x[None, None], w[None, None])[0, 0]


def backwards(seed: int) -> tuple[Tensor, Tensor]:
    """A kernel (3,) and the adjoints of the output (6,)."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(3, generator=draw, dtype=torch.float64), torch.randn(6, generator=draw, dtype=torch.float64)


def transpose(w: Tensor, lam: Tensor) -> Tensor:
    """x-adjoint_m = sum over j of w_j lambda_{m - j} (n,)."""
    return F.conv_transpose1d(lam[None, None], w[None, None])[0, 0]


def tangents(seed: int) -> tuple[Tensor, ...]:
    """lambda (6,), and the tangents of kernel (3,) and input (8,) along two groups."""
    draw = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(n, generator=draw, dtype=torch.float64) for n in (6, 3, 8, 3, 8))


def share(lam: Tensor, w_s: Tensor, x_s: Tensor, w_t: Tensor, x_t: Tensor) -> Tensor:
    """lambda . (w_s * x_t + w_t * x_s)."""
    return lam @ (convolve(w_s, x_t) + convolve(w_t, x_s))


def free_of_scale(seed: int) -> tuple[Tensor, float, float]:
    """A gradient (4,), the curvature along it, and the factor c."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(4, generator=draw, dtype=torch.float64), 0.7 + seed, 3.0 - 0.5 * seed


def scale(g: Tensor, curvature: float, c: float) -> Tensor:
    """g-bar, H-bar and their quotient at c w (3,)."""
    return powers(g, curvature, c, -2, -4)


def powers(g: Tensor, curvature: float, c: float, first: int, second: int) -> Tensor:
    """g-bar times c^first, H-bar times c^second, and their quotient (3,)."""
    slope, bend = (g @ g) * c**first, torch.tensor(curvature, dtype=torch.float64) * c**second
    return torch.stack([slope, bend, slope / bend])


EXERCISES = (
    Exercise(
        "10.1",
        "The adjoint of a convolution in one dimension.",
        backwards,
        transpose,
        {
            "the kernel is the wrong way round: lambda_i goes to x_i with w_0, to x_{i+1} with w_1, and so on": lambda w, lam: (
                transpose(w.flip(0), lam)
            ),
            "shifted: output i comes from the inputs i to i + k - 1, not from those around i": lambda w, lam: transpose(
                w, lam
            ).roll(-1),
            "convolved with a zero-padded lambda as in the forward pass: that is the kernel the wrong way round, and shifted": (
                lambda w, lam: transpose(w.flip(0), lam).roll(1)
            ),
            "every output counts alike: each brings its own lambda_i": lambda w, lam: transpose(
                w, torch.ones_like(lam)
            ),
        },
        (
            "Each output i asks for w_j times lambda_i at the input i + j. Add up what arrives at each input.",
            "A loop over i: x[i : i + k] += lam[i] * w.",
            "x = torch.zeros(len(lam) + len(w) - 1); for i in range(len(lam)): x[i : i + len(w)] += lam[i] * w",
        ),
    ),
    Exercise(
        "10.2",
        "The part of H-bar_st that one convolution contributes.",
        tangents,
        share,
        {
            "one half of it: the other pair, kernel of t with input of s, counts too": lambda lam, ws, xs, wt, xt: (
                lam @ convolve(ws, xt)
            ),
            "kernel and input of the same group: z is bilinear, and its second derivative takes one of each group": (
                lambda lam, ws, xs, wt, xt: lam @ (convolve(ws, xs) + convolve(wt, xt))
            ),
            "halved: the two pairs are not the same one twice": lambda *given: share(*given) / 2,
            "without lambda: every output has its own weight in the loss": lambda lam, *given: share(
                torch.ones_like(lam), *given
            ),
        },
        (
            "z = w * x is linear in w and in x. What is the derivative of a product, twice, along s and along t?",
            "D2z = w_s * x_t + w_t * x_s. The contribution is its inner product with lambda.",
            "conv = lambda w, x: x.unfold(0, len(w), 1) @ w; return lam @ (conv(w_s, x_t) + conv(w_t, x_s))",
        ),
    ),
    Exercise(
        "10.3",
        "Slope, curvature and rate of a kernel before batch norm, when the kernel is multiplied by c.",
        free_of_scale,
        scale,
        {
            "unchanged: the loss is, its derivatives are not": lambda g, k, c: powers(g, k, c, 0, 0),
            "g-bar has the gradient twice, once as the direction": lambda g, k, c: powers(g, k, c, -1, -4),
            "the Hessian falls by c², and along the shorter gradient by another c²": lambda g, k, c: powers(
                g, k, c, -2, -2
            ),
            "the wrong way round: a longer kernel turns less under the same step": lambda g, k, c: powers(
                g, k, c, 2, 4
            ),
        },
        (
            "L(c w) = L(w) for all w. Differentiate with respect to w: how long is the gradient at c w?",
            "It is the one at w divided by c; the Hessian is divided by c². The direction u is the new gradient.",
            "g-bar is divided by c², H-bar by c² times c²: torch.stack([g @ g / c**2, kappa / c**4, c**2 * (g @ g) / kappa])",
        ),
    ),
)
