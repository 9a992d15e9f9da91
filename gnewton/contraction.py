"""``torch.einsum`` as products of two tensors, each bilinear, in place of one function of many.

Diagonals are taken and broadcast axes named first. Then the pair whose product is smallest is multiplied, until one is left.
"""

from collections.abc import Sequence
from itertools import combinations
from math import prod
from string import ascii_letters
from typing import Any

import torch
from torch import Tensor

Terms = list[str]


def contract(*args: Any) -> Tensor:
    """``torch.einsum``, in either of its notations, operand by operand.

    >>> a, b, c = torch.ones(2, 3), torch.ones(3, 4), torch.ones(4)
    >>> contract("ij,jk,k->i", a, b, c)
    tensor([12., 12.])
    """
    equation, operands = _normalize(args)
    parsed = _parse(equation, operands)
    if parsed is None:
        # Wrong equations, for torch's own error, and axes of length 1 that broadcast against longer ones.
        return torch.einsum(equation, *operands)
    terms, out = parsed
    factors = [_diagonal(term, x) for term, x in zip(terms, operands, strict=True)]
    sizes = {c: n for term, x in factors for c, n in zip(term, x.shape, strict=True)}
    while len(factors) > 2:
        i, j = min(combinations(range(len(factors)), 2), key=lambda p: _size(factors, p, out, sizes))
        (a, x), (b, y) = factors[i], factors[j]
        kept = _letters_to_keep(factors, (i, j), out)
        product = torch.einsum(f"{a},{b}->{kept}", x, y)
        factors = [f for k, f in enumerate(factors) if k not in (i, j)] + [(kept, product)]
    contracted: Tensor = torch.einsum(",".join(term for term, _ in factors) + "->" + out, *(x for _, x in factors))
    return contracted


def _normalize(args: Sequence[Any]) -> tuple[str, list[Tensor]]:
    """The equation as a string, and the operands."""
    if isinstance(args[0], str):
        rest = args[1:]
        return args[0], list(rest[0] if len(rest) == 1 and isinstance(rest[0], list | tuple) else rest)
    lists = [*args[1::2], *args[-1:]] if len(args) % 2 else args[1::2]
    letters = ["".join("..." if n is Ellipsis else ascii_letters[n] for n in numbers) for numbers in lists]
    operands = list(args[: 2 * (len(args) // 2) : 2])
    inputs = ",".join(letters[: len(operands)])
    return inputs + "".join("->" + out for out in letters[len(operands) :]), operands


def _parse(equation: str, operands: Sequence[Tensor]) -> tuple[Terms, str] | None:
    """The letters of each operand and of the result, ellipses named; None where torch must say what is wrong."""
    left, arrow, out = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(operands) or not all(isinstance(x, Tensor) for x in operands):
        return None
    free = [c for c in ascii_letters if c not in equation]
    extra = [
        x.dim() - len(term.replace("...", "")) if "..." in term else 0 for term, x in zip(terms, operands, strict=True)
    ]
    if min(extra) < 0 or max(extra) > len(free):
        return None
    # Axes of an ellipsis are aligned at their end.
    names = "".join(free[: max(extra)])
    named = [term.replace("...", names[len(names) - n :]) for term, n in zip(terms, extra, strict=True)]
    if not arrow:
        letters = "".join(named)
        out = names + "".join(sorted(c for c in set(letters) - set(names) if letters.count(c) == 1))
    out = out.replace("...", names)
    shapes = {(c, n) for term, x in zip(named, operands, strict=True) for c, n in zip(term, x.shape, strict=False)}
    fits = all(len(term) == x.dim() for term, x in zip(named, operands, strict=True))
    letters = "".join(named) + out
    whole = letters.isalpha() and len(set(out)) == len(out) and set(out) <= set("".join(named))
    return (named, out) if fits and whole and len(shapes) == len(dict(shapes)) else None


def _diagonal(term: str, x: Tensor) -> tuple[str, Tensor]:
    once = "".join(dict.fromkeys(term))
    return once, x if once == term else torch.einsum(f"{term}->{once}", x)


def _letters_to_keep(factors: Sequence[tuple[str, Tensor]], pair: tuple[int, int], out: str) -> str:
    """The letters that the product of a pair must keep: those that the result or another factor has."""
    others = out + "".join(term for k, (term, _) in enumerate(factors) if k not in pair)
    both = factors[pair[0]][0] + factors[pair[1]][0]
    return "".join(c for c in dict.fromkeys(both) if c in others)


def _size(factors: Sequence[tuple[str, Tensor]], pair: tuple[int, int], out: str, sizes: dict[str, int]) -> int:
    return prod(sizes[c] for c in _letters_to_keep(factors, pair, out))
