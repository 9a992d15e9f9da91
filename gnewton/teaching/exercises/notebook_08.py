"""Exercises of notebook 08: a tangent rule, and what two kinds of operations add to H-bar."""

import torch
from torch import Tensor

from gnewton.teaching.exercises.exercise import Exercise


def layer(seed: int) -> tuple[Tensor, ...]:
    """x (5, 3), W (2, 3), b (2,), and their tangents of the same shapes."""
    draw = torch.Generator().manual_seed(seed)
    shapes = ((5, 3), (2, 3), (2,)) * 2
    return tuple(torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes)


def linear_tangent(x: Tensor, W: Tensor, b: Tensor, x_s: Tensor, W_s: Tensor, b_s: Tensor) -> Tensor:
    """The derivative of x W^T + b along (x_s, W_s, b_s)."""
    return x_s @ W.T + x @ W_s.T + b_s


def activation(seed: int) -> tuple[Tensor, ...]:
    """v (5, 4), the adjoint of tanh v (5, 4), and three tangents of v (3, 5, 4)."""
    draw = torch.Generator().manual_seed(seed)
    shapes = ((5, 4), (5, 4), (3, 5, 4))
    return tuple(torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes)


def gram(weights: Tensor, v_s: Tensor) -> Tensor:
    """X Diag(weights) X^T with the tangents as rows of X."""
    rows = v_s.flatten(1)
    return (rows * weights.flatten()) @ rows.T


def bend(v: Tensor) -> Tensor:
    """The second derivative of tanh, -2 h (1 - h^2)."""
    h = torch.tanh(v)
    return -2 * h * (1 - h**2)


def tanh_share(v: Tensor, adjoint: Tensor, v_s: Tensor) -> Tensor:
    """sum_i lambda_i tanh''(v_i) v_s,i v_t,i (S, S)."""
    return gram(adjoint * bend(v), v_s)


def product(seed: int) -> tuple[Tensor, ...]:
    """The adjoint of a * b (6,), and three tangents of a and of b, (3, 6) each."""
    draw = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=draw, dtype=torch.float64) for shape in ((6,), (3, 6), (3, 6)))


def product_share(adjoint: Tensor, a_s: Tensor, b_s: Tensor) -> Tensor:
    """sum_i lambda_i (a_s,i b_t,i + a_t,i b_s,i) (S, S)."""
    half = (a_s * adjoint) @ b_s.T
    return half + half.T


EXERCISES = (
    Exercise(
        "08.1",
        "The tangent of a linear layer's output x W^T + b, where input, weight and bias all move.",
        layer,
        linear_tangent,
        {
            "the input's tangent is missing: groups of earlier layers reach this one through x_s": lambda x, W, b, x_s, W_s, b_s: (
                x @ W_s.T + b_s
            ),
            "the weight's tangent is missing: x W_s^T": lambda x, W, b, x_s, W_s, b_s: x_s @ W.T + b_s,
            "the bias moves as well: its tangent is added as it is": lambda x, W, b, x_s, W_s, b_s: (
                x_s @ W.T + x @ W_s.T
            ),
            "that is the layer applied to the tangents: differentiate the product, one factor at a time": lambda x, W, b, x_s, W_s, b_s: (
                x_s @ W_s.T + b_s
            ),
            "the bias itself does not belong here: its derivative is b_s": lambda x, W, b, x_s, W_s, b_s: (
                x_s @ W.T + x @ W_s.T + b
            ),
        },
        (
            "Put x + e x_s, W + e W_s, b + e b_s into the formula, and keep what has one factor e.",
            "The product rule: x moves while W stands still, then W moves while x stands still.",
            "return x_s @ W.T + x @ W_s.T + b_s",
        ),
    ),
    Exercise(
        "08.2",
        "What an activation tanh adds to H-bar, from its input v, its output's adjoint and the tangents of v.",
        activation,
        tanh_share,
        {
            "that is the first derivative of tanh: H-bar needs the second one": lambda v, adjoint, v_s: gram(
                adjoint * (1 - torch.tanh(v) ** 2), v_s
            ),
            "the adjoint is missing: how much does the loss care for each of these numbers?": lambda v, adjoint, v_s: (
                gram(bend(v), v_s)
            ),
            "a factor 2 is missing: the derivative of 1 - h^2 is -2 h h', with h' = 1 - h^2": lambda v, adjoint, v_s: (
                gram(adjoint * bend(v) / 2, v_s)
            ),
            "the sign: tanh bends down where v is positive": lambda v, adjoint, v_s: gram(-adjoint * bend(v), v_s),
            "divided by the number of samples: the 1/N of the mean is in the adjoint already": lambda v, adjoint, v_s: (
                tanh_share(v, adjoint, v_s) / len(v)
            ),
            "the inner derivative is missing: the derivative of -h^2 by v is -2 h times h' = 1 - h^2": lambda v, adjoint, v_s: (
                gram(-2 * adjoint * torch.tanh(v), v_s)
            ),
        },
        (
            "tanh acts number by number: the share is a sum over all numbers of v, with tanh'' at each.",
            "With h = tanh v: h' = 1 - h^2, and h'' = -2 h h'. Weigh h'' with the adjoint.",
            "rows = v_s.flatten(1); return (rows * (adjoint * second).flatten()) @ rows.T",
        ),
    ),
    Exercise(
        "08.3",
        "What a product a * b, entry by entry, adds to H-bar, from its output's adjoint and the tangents of a and b.",
        product,
        product_share,
        {
            "half of it: either factor may move along s and the other along t; H-bar is symmetric": lambda adjoint, a_s, b_s: (
                (a_s * adjoint) @ b_s.T
            ),
            "twice one half is not symmetric: either factor may move along s, the other along t": lambda adjoint, a_s, b_s: (
                2 * (a_s * adjoint) @ b_s.T
            ),
            "that pairs each factor with itself: a * b is linear in a, so a_s and a_t together give nothing": lambda adjoint, a_s, b_s: (
                (a_s * adjoint) @ a_s.T + (b_s * adjoint) @ b_s.T
            ),
            "the adjoint is missing: how much does the loss care for each of these numbers?": lambda adjoint, a_s, b_s: (
                a_s @ b_s.T + b_s @ a_s.T
            ),
            "both halves, but averaged: the two terms are added": lambda adjoint, a_s, b_s: (
                ((a_s * adjoint) @ b_s.T + (b_s * adjoint) @ a_s.T) / 2
            ),
        },
        (
            "Put a + e a_s + d a_t and b + e b_s + d b_t into a * b. Which terms carry e d?",
            "Two of them: a_s b_t and a_t b_s. Weigh with the adjoint, and add up over the entries.",
            "half = (a_s * adjoint) @ b_s.T; return half + half.T",
        ),
    ),
)
