"""Rules in closed form for bilinear operations: products of a value with a weight, or of two values.

B(a, b) has the tangent  B(a_s, b) + B(a, b_s) , the second derivative  B(a_s, b_t) + B(a_t, b_s) , and no third one. So
H-bar gets entries between the groups that reach a and those that reach b. With B_t^T lambda for each tangent b_t, formed
once, they are plain scalar products with all the a_s.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gnewton.derivatives.rule import Adjoints, Jet, Moved, Rule, Sums, Wanted, rows
from gnewton.derivatives.stack import Stack, add_rows, lifted, sum_to, summed_to, total, union

if TYPE_CHECKING:
    from gnewton.derivatives.tape import Operation


class Product(Rule):
    """B(a, b), plus a term c that enters linearly.

    The three products below take stacks: with a leading axis of length k, or 1 for a value that all groups share.
    ``pull_a`` and ``pull_b`` are the adjoints of B in its first and its second argument.
    """

    second = "other"

    def times(self, o: "Operation", a: Tensor, b: Tensor) -> Tensor:
        raise NotImplementedError

    def pull_a(self, o: "Operation", adjoint: Tensor, b: Tensor) -> Tensor:
        raise NotImplementedError

    def pull_b(self, o: "Operation", adjoint: Tensor, a: Tensor) -> Tensor:
        raise NotImplementedError

    def offset(self, o: "Operation", c: Stack | None) -> Stack | None:
        """The tangent of the term c, in a shape that broadcasts to the output."""
        return c

    def forward(self, o: "Operation", jets: Sequence[Jet], adjoints: Adjoints, sums: Sums) -> list[Jet]:
        (a, a2), (b, b2), (c, c2) = self._jets(o, jets)
        if a and b and adjoints[0] is not None:
            self._add(o, a, b, adjoints[0][None], sums)
            if sums.order == 3:
                self._add_diagonal(o, Jet(a, a2), Jet(b, b2), adjoints[0][None], sums)
        first = self._moved(o, a, b, self.offset(o, c))
        if sums.order < 3:
            return [Jet(first)]
        return [Jet(first, self._moved(o, a2, b2, self.offset(o, c2), self._both(o, a, b)))]

    def backward(
        self, o: "Operation", jets: Sequence[Jet], adjoints: Adjoints, moved: Moved, wanted: Wanted, sums: Sums
    ) -> Moved:
        (a, _), (b, _), _ = self._jets(o, jets)
        m = moved[0]
        if m and a and b:
            for t, group in enumerate(b.groups):
                # lambda^r . B(a_s, b_t): s reaches the first argument and t the second, or the other way round.
                block = m.rows() @ rows(self.times(o, a.values, b.values[t : t + 1])).T
                sums.full(m.groups, a.groups, [group], block[:, :, None])
                sums.full(m.groups, [group], a.groups, block[:, None, :])
        return [self._adjoint(o, i, (a, b), adjoints[0], m) if wanted[i] else None for i in range(len(o.inputs))]

    def bends(self, o: "Operation") -> bool:
        return None not in self._places(o)

    def cost(self, o: "Operation") -> int:
        a, b = (len(o.inputs[i].groups) if i is not None else 0 for i in self._places(o))
        return (a + b + (min(a, b) if a and b else 0)) * self.multiplications(o)

    def multiplications(self, o: "Operation") -> int:
        """Multiplications in one B(a, b)."""
        return o.outputs[0].value.numel()

    def _add(self, o: "Operation", a: Stack, b: Stack, adjoint: Tensor, sums: Sums) -> None:
        # One product per group on the side with fewer groups.
        if len(b.groups) <= len(a.groups):
            block = a.rows() @ rows(self.pull_a(o, adjoint, b.values)).T
        else:
            block = rows(self.pull_b(o, adjoint, a.values)) @ b.rows().T
        sums.hessian(a.groups, b.groups, block)
        sums.hessian(b.groups, a.groups, block.T)

    def _add_diagonal(self, o: "Operation", a: Jet, b: Jet, adjoint: Tensor, sums: Sums) -> None:
        """3 lambda . ( B(a2_s, b_s) + B(a_s, b2_s) )"""
        for left, right in ((a.second, b.first), (a.first, b.second)):
            common = _common(left, right)
            if left and right and common:
                pulled = rows(self.pull_a(o, adjoint, right.over(common)))
                sums.third(common, 3 * torch.linalg.vecdot(rows(left.over(common)), pulled))

    def _moved(self, o: "Operation", a: Stack | None, b: Stack | None, *more: Stack | None) -> Stack | None:
        """B(a_s, b) + B(a, b_s), and more terms."""
        moved = [
            a and Stack(a.groups, self.times(o, a.values, o.given(1, self.second)[None]), owned=True),
            b and Stack(b.groups, self.times(o, o.given(0, "input")[None], b.values), owned=True),
        ]
        found = total([*moved, *more], o.outputs[0].value.shape)
        if found and (a or b):
            found.owned = True
        return found

    def _both(self, o: "Operation", a: Stack | None, b: Stack | None) -> Stack | None:
        """D^2 B [(a_s, b_s), (a_s, b_s)], for the groups that reach both."""
        common = _common(a, b)
        return Stack(common, 2 * self.times(o, a.over(common), b.over(common))) if a and b and common else None

    def _adjoint(
        self, o: "Operation", i: int, jets: tuple[Stack | None, Stack | None], adjoint: Tensor | None, m: Stack | None
    ) -> Stack | None:
        """The adjoint tangents of the i-th input."""
        v, places = o.inputs[i], self._places(o)
        if i not in places:
            return self._offset_adjoint(o, m, v.value.shape)
        mine = places.index(i)
        pull, fixed = ((self.pull_a, o.given(1, self.second)), (self.pull_b, o.given(0, "input")))[mine]
        other = jets[1 - mine]
        kept = m and Stack(m.groups, pull(o, m.values, fixed[None]), owned=True)
        turned = other and adjoint is not None and Stack(other.groups, pull(o, adjoint[None], other.values), owned=True)
        return total([kept, turned or None], v.value.shape)

    def _offset_adjoint(self, o: "Operation", m: Stack | None, shape: Sequence[int]) -> Stack | None:
        return summed_to(m, shape)

    def _places(self, o: "Operation") -> tuple[int | None, int | None]:
        return o.place(0, "input"), o.place(1, self.second)

    def _jets(self, o: "Operation", jets: Sequence[Jet]) -> tuple[Jet, Jet, Jet]:
        places = self._places(o)
        a, b = (Jet() if i is None else jets[i] for i in places)
        rest = [jet for i, jet in enumerate(jets) if i not in places]
        return a, b, rest[0] if rest else Jet()


class Mul(Product):
    """a * b, entry by entry, with broadcasting."""

    def times(self, o: "Operation", a: Tensor, b: Tensor) -> Tensor:
        dim = o.outputs[0].value.dim()
        return lifted(a, dim) * lifted(b, dim)

    def pull_a(self, o: "Operation", adjoint: Tensor, b: Tensor) -> Tensor:
        return sum_to(self.times(o, adjoint, b), o.given(0, "input").shape)

    def pull_b(self, o: "Operation", adjoint: Tensor, a: Tensor) -> Tensor:
        return sum_to(self.times(o, adjoint, a), o.given(1, "other").shape)


class Matmul(Product):
    """a @ b, matrices or batches of matrices that broadcast."""

    def times(self, o: "Operation", a: Tensor, b: Tensor) -> Tensor:
        dim = o.outputs[0].value.dim()
        return lifted(a, dim) @ lifted(b, dim)

    def pull_a(self, o: "Operation", adjoint: Tensor, b: Tensor) -> Tensor:
        return sum_to(adjoint @ lifted(b, adjoint.dim() - 1).mT, o.given(0, "input").shape)

    def pull_b(self, o: "Operation", adjoint: Tensor, a: Tensor) -> Tensor:
        return sum_to(lifted(a, adjoint.dim() - 1).mT @ adjoint, o.given(1, self.second).shape)

    def multiplications(self, o: "Operation") -> int:
        return int(o.given(0, "input").shape[-1]) * o.outputs[0].value.numel()


class Bmm(Matmul):
    second = "mat2"


class Linear(Product):
    """x W^T + bias."""

    second = "weight"

    def times(self, o: "Operation", a: Tensor, b: Tensor) -> Tensor:
        if len(b) == 1:
            return a @ b[0].T
        return (_samples(a) @ b.mT).reshape(-1, *a.shape[1:-1], b.shape[1])

    def _moved(self, o: "Operation", a: Stack | None, b: Stack | None, *more: Stack | None) -> Stack | None:
        if a is None:
            return super()._moved(o, a, b, *more)
        # The product for all of a's groups, by far the largest, is written where it is to stay.
        groups, shape, k = union([a, b, *more]), o.outputs[0].value.shape, len(a.groups)
        out = a.values.new_empty(len(groups), *shape)
        weight = o.given(1, "weight")
        torch.mm(a.values.reshape(-1, weight.shape[1]), weight.T, out=out[:k].view(-1, weight.shape[0]))
        out[k:] = 0
        for stack in (b and Stack(b.groups, self.times(o, o.given(0, "input")[None], b.values)), *more):
            if stack:
                add_rows(out, groups, stack.groups, lifted(stack.values, len(shape)))
        return Stack(groups, out, owned=True)

    def pull_a(self, o: "Operation", adjoint: Tensor, b: Tensor) -> Tensor:
        return self.times(o, adjoint, b.mT)

    def pull_b(self, o: "Operation", adjoint: Tensor, a: Tensor) -> Tensor:
        return _samples(adjoint).mT @ _samples(a)

    def multiplications(self, o: "Operation") -> int:
        return int(o.given(1, "weight").shape[1]) * o.outputs[0].value.numel()


class Convolution(Product):
    """Convolution of a batch (N, C, ...), transposed or not, plus a bias per channel."""

    second = "weight"

    def __init__(self, transposed: bool) -> None:
        self.transposed = transposed

    def times(self, o: "Operation", a: Tensor, b: Tensor) -> Tensor:
        return _per_kernel(lambda x, w: torch.convolution(x, w, None, *self._geometry(o)), a, b)

    def pull_a(self, o: "Operation", adjoint: Tensor, b: Tensor) -> Tensor:
        x, geometry = o.given(0, "input"), self._geometry(o)

        def pull(d: Tensor, w: Tensor) -> Any:
            # Only the shape of the input matters to this product.
            shape = x.new_empty(1).expand(len(d), *x.shape[1:])
            return torch.ops.aten.convolution_backward(d, shape, w, None, *geometry, [True, False, False])[0]

        return _per_kernel(pull, adjoint, b)

    def pull_b(self, o: "Operation", adjoint: Tensor, a: Tensor) -> Tensor:
        w, geometry = o.given(1, "weight"), self._geometry(o)
        k = max(len(a), len(adjoint))
        pairs = zip(adjoint.expand(k, *adjoint.shape[1:]), a.expand(k, *a.shape[1:]), strict=True)
        backward = torch.ops.aten.convolution_backward
        return torch.stack([backward(d, x, w, None, *geometry, [False, True, False])[1] for d, x in pairs])

    def offset(self, o: "Operation", c: Stack | None) -> Stack | None:
        return c and Stack(c.groups, c.values.reshape(*c.values.shape, *[1] * (o.outputs[0].value.dim() - 2)))

    def _offset_adjoint(self, o: "Operation", m: Stack | None, shape: Sequence[int]) -> Stack | None:
        return m and Stack(m.groups, m.values.sum([1, *range(3, m.values.dim())]))

    def multiplications(self, o: "Operation") -> int:
        values = o.given(0, "input") if self.transposed else o.outputs[0].value
        return int(o.given(1, "weight")[0].numel()) * values.numel()

    def _geometry(self, o: "Operation") -> tuple[Any, ...]:
        """Stride, padding, dilation, transposed, output padding and groups, as torch's convolution takes them."""
        n = o.given(0, "input").dim() - 2
        late = (("output_padding", 5, 0), ("groups", 6, 1), ("dilation", 7, 1))
        early = (("dilation", 5, 1), ("groups", 6, 1))
        places = (("stride", 3, 1), ("padding", 4, 0), *(late if self.transposed else early))
        found = {name: o.argument(position, name, default) for name, position, default in places}
        listed = {name: _listed(value, n) for name, value in found.items()}
        output_padding = listed.get("output_padding", [0] * n)
        return listed["stride"], listed["padding"], listed["dilation"], self.transposed, output_padding, found["groups"]


def _listed(value: Any, n: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * n if len(values) == 1 else values


def _per_kernel(product: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> Tensor:
    """A product of stacks: all samples of all groups in one batch where the kernel is shared, else group by group."""
    if len(b) == 1:
        moved = product(a.flatten(0, 1), b[0])
        return moved.reshape(*a.shape[:2], *moved.shape[1:])
    return torch.stack([product(x, w) for x, w in zip(a.expand(len(b), *a.shape[1:]), b, strict=True)])


def _samples(stacked: Tensor) -> Tensor:
    """(k, ..., n) -> (k, N, n)."""
    return stacked.reshape(len(stacked), -1, stacked.shape[-1])


def _common(a: Stack | None, b: Stack | None) -> tuple[int, ...]:
    return tuple(g for g in a.groups if g in b.groups) if a and b else ()
