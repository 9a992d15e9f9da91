"""Sums of products over named axes: einsum of two tensors, and the products of vectors that it describes."""

from math import prod

import torch
from torch import Tensor

from gnewton.derivatives.operation import Operation, register
from gnewton.derivatives.rules.bilinear import Product
from gnewton.derivatives.rules.linear import PiecewiseLinear

_GROUP = "Z"  # the axis of the stack


class Contraction(Product):
    """B(a, b) by an equation such as "ij,jk->ik", which names each axis of an operand once."""

    def equation(self, o: Operation) -> str:
        """The equation of an operation."""
        raise NotImplementedError

    def times(self, o: Operation, a: Tensor, b: Tensor) -> Tensor:
        first, second, out = self._terms(o)
        return torch.einsum(f"{_GROUP}{first},{_GROUP}{second}->{_GROUP}{out}", a, b)

    def pull_a(self, o: Operation, adjoint: Tensor, b: Tensor) -> Tensor:
        first, second, out = self._terms(o)
        return _pull((out, adjoint), (second, b), first, o.value(*self.left))

    def pull_b(self, o: Operation, adjoint: Tensor, a: Tensor) -> Tensor:
        first, second, out = self._terms(o)
        return _pull((out, adjoint), (first, a), second, o.value(*self.right))

    def multiplications(self, o: Operation) -> int:
        first, second, _ = self._terms(o)
        sizes = dict(zip(first + second, (*o.value(*self.left).shape, *o.value(*self.right).shape), strict=True))
        return prod(sizes.values())

    def _terms(self, o: Operation) -> tuple[str, str, str]:
        left, out = self.equation(o).replace(" ", "").split("->")
        first, second = left.split(",")
        return first, second, out


def _pull(adjoint: tuple[str, Tensor], other: tuple[str, Tensor], term: str, like: Tensor) -> Tensor:
    """The product of the adjoint with the other factor, in the shape of the first: (k, *like.shape)."""
    # An axis that was summed on its own has the same derivative everywhere along it.
    here = [c for c in term if c in adjoint[0] + other[0]]
    equation = f"{_GROUP}{adjoint[0]},{_GROUP}{other[0]}->{_GROUP}{''.join(here)}"
    pulled = torch.einsum(equation, adjoint[1], other[1])
    shape = [n if c in here else 1 for c, n in zip(term, like.shape, strict=True)]
    return pulled.reshape(len(pulled), *shape).expand(-1, *like.shape)


class Einsum(Contraction):
    """``torch.einsum`` of two tensors; `contraction.py` makes others into such."""

    left, right = (1, "a"), (2, "b")

    def applies(self, o: Operation) -> bool:
        tensors = len(o.arguments[0]) == 3 and all(
            isinstance(o.value(*place), Tensor) for place in (self.left, self.right)
        )
        if not tensors or not super().applies(o) or o.argument(0, "equation").count("->") != 1:
            return False
        first, second, out = self._terms(o)
        letters = (first + second + out).isalpha() or not first + second + out
        once = all(len(set(term)) == len(term) for term in (first, second, out))
        return letters and once and _GROUP not in first + second and self._same_sizes(o, first + second)

    def equation(self, o: Operation) -> str:
        return str(o.argument(0, "equation"))

    def _same_sizes(self, o: Operation, letters: str) -> bool:
        shapes = (*o.value(*self.left).shape, *o.value(*self.right).shape)
        return len(letters) == len(shapes) and len(set(zip(letters, shapes, strict=True))) == len(set(letters))


class Arranged(PiecewiseLinear):
    """``torch.einsum`` of one tensor: a diagonal, a sum, another order of the axes."""

    def applies(self, o: Operation) -> bool:
        return len(o.arguments[0]) == 2 and isinstance(o.value(1, "a"), Tensor)


register("einsum", Einsum())
register("einsum", Arranged())


class Fixed(Contraction):
    """A product of vectors or matrices that one equation describes."""

    def __init__(self, equation: str, second: str) -> None:
        self._equation, self.right = equation, (1, second)

    def applies(self, o: Operation) -> bool:
        return super().applies(o) and all(isinstance(o.value(*place), Tensor) for place in (self.left, self.right))

    def equation(self, o: Operation) -> str:
        return self._equation


register("mv", Fixed("ij,j->i", "vec"))
register("dot", Fixed("i,i->", "tensor"))
register("vdot", Fixed("i,i->", "other"))
register("outer ger", Fixed("i,j->ij", "vec2"))


class WithVector(Contraction):
    """``torch.matmul`` where a vector is on one side, or on both."""

    def applies(self, o: Operation) -> bool:
        return super().applies(o) and min(o.value(*self.left).dim(), o.value(*self.right).dim()) == 1

    def equation(self, o: Operation) -> str:
        a, b = o.value(*self.left).dim(), o.value(*self.right).dim()
        batch = "abcdefgh"[: max(a, b) - 2] if max(a, b) > 1 else ""
        if a == b == 1:
            return "y,y->"
        return f"{batch}xy,y->{batch}x" if b == 1 else f"y,{batch}yx->{batch}x"


register("matmul __matmul__", WithVector())
