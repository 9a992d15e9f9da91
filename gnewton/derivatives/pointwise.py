"""Rules in closed form for operations that act scalar by scalar or row by row: activations, sums, softmax, norms.

Each needs a few passes over the tangents and, for H-bar, one Gram matrix.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gnewton.derivatives.rule import Adjoints, Jet, Moved, Rule, Sums, Wanted, filled, rows
from gnewton.derivatives.stack import Stack, scaled, summed_to, total

if TYPE_CHECKING:
    from gnewton.derivatives.tape import Operation, Variable


class Elementwise(Rule):
    """y = f(x): D o is a product with f', D^2 o one with f'', D^3 o one with f'''; derived from the function itself."""

    reads_outputs = True

    def __init__(self, curved: bool = True) -> None:
        self.curved = curved

    def forward(self, o: "Operation", jets: Sequence[Jet], adjoints: Adjoints, sums: Sums) -> list[Jet]:
        ((x, x2),) = jets
        assert x is not None
        f1, f2, f3 = derivatives(o, sums.order if self.curved else 1)
        if f2 is None:
            return [Jet(*(scaled(s, f1) for s in (x, x2)))]
        # Second-order tangents come later than first-order ones: their groups are the first of x's, or are made so.
        if x2 and x2.groups != x.groups[: len(x2.groups)]:
            x2 = Stack(x.groups, x2.over(x.groups))
        # rows() of a permuted stack is a copy: the results get memory of their own, in order.
        fresh = partial(torch.empty_like, x.values, memory_format=torch.contiguous_format)
        first = Stack(x.groups, x.values if x.owned and x.values.is_contiguous() else fresh(), owned=True)
        second = Stack(x.groups, fresh(), owned=True) if sums.order == 3 else None
        adjoint = torch.zeros_like(f1) if adjoints[0] is None else adjoints[0]
        # At order 2, f'' is needed only times the adjoint.
        w2 = f2.mul_(adjoint) if second is None and f2 is not f1 else f2 * adjoint
        functions = (f1, f2, w2, None if f3 is None else f3 * adjoint)
        flat = [None if f is None else f.flatten() for f in functions]
        rows2, out2 = (None if stack is None else stack.rows() for stack in (x2, second))
        gram, third = _through(flat, x.rows(), rows2, first.rows(), out2)
        sums.hessian(x.groups, x.groups, gram)
        if second:
            sums.third(x.groups, third)
        return [Jet(first, second)]

    def backward(
        self, o: "Operation", jets: Sequence[Jet], adjoints: Adjoints, moved: Moved, wanted: Wanted, sums: Sums
    ) -> Moved:
        x, m, adjoint = jets[0].first, moved[0], adjoints[0]
        f1, f2, f3 = derivatives(o, 3 if self.curved else 1)
        if x and f2 is not None and adjoint is not None:
            # lambda^r f'' x_s x_t in each of the three places, and a third of  lambda f3 x_r x_s x_t  there as well.
            _add_cubes(sums, m, x, f2)
            _add_cubes(sums, x, x, None if f3 is None else (adjoint * f3).div_(3))
        if not wanted[0]:
            return [None]
        del f3
        bent = x and f2 is not None and adjoint is not None and Stack(x.groups, x.values * (adjoint * f2))
        return [total([scaled(m, f1), bent or None], f1.shape)]


def _add_cubes(sums: Sums, left: Stack | None, x: Stack, weights: Tensor | None) -> None:
    """D3_rst += <left_r weights, x_s x_t> , and with r in the second and in the third place."""
    if left is not None and weights is not None:
        rows_r, rows_s, w, k = left.rows(), x.rows(), weights.flatten(), len(x.groups)
        # Symmetric in s and t: each pair is formed once.
        s, t = torch.triu_indices(k, k, device=w.device)
        found = w.new_zeros(len(rows_r), len(s))
        for part in _blocks(len(w), len(s)):
            here = rows_s[:, part]
            pairs = torch.cat([here[i:] * row for i, row in enumerate(here * w[part])])
            found += rows_r[:, part] @ pairs.T
        block = w.new_empty(len(rows_r), k, k)
        block[:, s, t] = block[:, t, s] = found
        sums.full(left.groups, x.groups, x.groups, block)


class Sum(Rule):
    """a + alpha b or a - alpha b, with broadcasting."""

    curved = False
    reads_inputs = False

    def __init__(self, sign: int) -> None:
        self.sign = sign

    def forward(self, o: "Operation", jets: Sequence[Jet], adjoints: Adjoints, sums: Sums) -> list[Jet]:
        shape = o.outputs[0].value.shape
        return [Jet(*(total(self._signed(o, stacks), shape) for stacks in zip(*jets, strict=True)))]

    def backward(
        self, o: "Operation", jets: Sequence[Jet], adjoints: Adjoints, moved: Moved, wanted: Wanted, sums: Sums
    ) -> Moved:
        return self._signed(o, [summed_to(moved[0], v.value.shape) for v in o.inputs])

    def _signed(self, o: "Operation", stacks: Sequence[Stack | None]) -> list[Stack | None]:
        factor = self.sign * o.argument(2, "alpha", 1)
        second = o.place(1, "other")
        return [
            Stack(s.groups, s.values * factor) if s and i == second and factor != 1 else s for i, s in enumerate(stacks)
        ]


class Scale(Rule):
    """A product with a number, or a quotient by one."""

    curved = False
    reads_inputs = False

    def __init__(self, inverse: bool) -> None:
        self.inverse = inverse

    def forward(self, o: "Operation", jets: Sequence[Jet], adjoints: Adjoints, sums: Sums) -> list[Jet]:
        return [Jet(*(self._scaled(o, s) for s in jets[0]))]

    def backward(
        self, o: "Operation", jets: Sequence[Jet], adjoints: Adjoints, moved: Moved, wanted: Wanted, sums: Sums
    ) -> Moved:
        return [self._scaled(o, moved[0])]

    def _scaled(self, o: "Operation", s: Stack | None) -> Stack | None:
        number = o.argument(1, "other")
        return s and Stack(s.groups, s.values / number if self.inverse else s.values * number)


class Reshaped(Rule):
    """The same scalars in the same order."""

    curved = False
    reads_inputs = False

    def forward(self, o: "Operation", jets: Sequence[Jet], adjoints: Adjoints, sums: Sums) -> list[Jet]:
        return [Jet(*(_shaped(s, o.outputs[0]) for s in jets[0]))]

    def backward(
        self, o: "Operation", jets: Sequence[Jet], adjoints: Adjoints, moved: Moved, wanted: Wanted, sums: Sums
    ) -> Moved:
        return [_shaped(moved[0], o.inputs[0])]


def _shaped(s: Stack | None, v: "Variable") -> Stack | None:
    return s and Stack(s.groups, s.values.reshape(len(s.groups), *v.value.shape), s.owned)


class MaxPool(Rule):
    """The greatest entry of each window: a choice, found once and made for all tangents."""

    curved = False
    reads_inputs = False

    def forward(self, o: "Operation", jets: Sequence[Jet], adjoints: Adjoints, sums: Sums) -> list[Jet]:
        index, axes = self._chosen(o)

        def picked(s: Stack) -> Stack:
            flat = s.values.flatten(-axes)
            found = flat.gather(-1, index.flatten(-axes).expand(len(flat), *index.flatten(-axes).shape))
            return Stack(s.groups, found.reshape(len(flat), *index.shape))

        return [Jet(*(s and picked(s) for s in jets[0]))]

    def backward(
        self, o: "Operation", jets: Sequence[Jet], adjoints: Adjoints, moved: Moved, wanted: Wanted, sums: Sums
    ) -> Moved:
        m, x = moved[0], o.inputs[0].value
        if m is None:
            return [None]
        index, axes = self._chosen(o)
        flat = m.values.flatten(-axes)
        out = flat.new_zeros(len(flat), *x.flatten(-axes).shape)
        # Windows may overlap: an entry that two of them chose collects from both.
        out.scatter_add_(-1, index.flatten(-axes).expand_as(flat), flat)
        return [Stack(m.groups, out.reshape(len(flat), *x.shape))]

    def _chosen(self, o: "Operation") -> tuple[Tensor, int]:
        """The index of each output in the last axes of the input, and how many axes these are."""
        return o.others[0], int(o.name.removeprefix("max_pool")[0])


class Softmax(Rule):
    """Softmax, or its logarithm, along one axis.

    Let p be the probabilities and  a_s = x_s - <p, x_s>  the centred tangents of a row. The derivatives of the logarithm
    are those of -log sum exp: after a_s the covariance  -<p, a_s a_t>  in every entry, then the third cumulant.
    """

    repeatable = True
    reads_inputs = False
    reads_outputs = True

    def __init__(self, logarithm: bool) -> None:
        self.logarithm = logarithm

    def forward(self, o: "Operation", jets: Sequence[Jet], adjoints: Adjoints, sums: Sums) -> list[Jet]:
        ((x, x2),), (adjoint,) = jets, filled(adjoints, o)
        assert x is not None
        p, axis, mean = self._means(o)
        a = x.values - mean(x.values)
        inner = adjoint if self.logarithm else adjoint * p
        w = -p * inner.sum(axis, keepdim=True) + (0 if self.logarithm else inner)
        sums.hessian(x.groups, x.groups, (rows(a) * w.flatten()) @ rows(a).T)
        if sums.order < 3:
            return [Jet(Stack(x.groups, a if self.logarithm else p * a))]
        b = 0 if x2 is None else x2.over(x.groups) - mean(x2.over(x.groups))
        log2 = (b - mean(a * a)).expand_as(a)
        log3 = -mean(a * (a * a + 3 * b))
        third = log3.expand_as(a) if self.logarithm else p * (a**3 + 3 * a * log2 + log3)
        sums.third(x.groups, rows(third) @ adjoint.flatten())
        first, second = (a, log2) if self.logarithm else (p * a, p * (a * a + log2))
        return [Jet(Stack(x.groups, first), Stack(x.groups, second))]

    def backward(
        self, o: "Operation", jets: Sequence[Jet], adjoints: Adjoints, moved: Moved, wanted: Wanted, sums: Sums
    ) -> Moved:
        (x, _), m, (adjoint,) = jets[0], moved[0], filled(adjoints, o)
        p, axis, mean = self._means(o)

        def weights(v: Tensor) -> Tensor:
            """w such that  v . D^2 [x_s, x_t] = <w, a_s a_t>"""
            return -p * v.sum(axis, keepdim=True) if self.logarithm else p * (v - mean(v))

        pulled = m and Stack(m.groups, weights(m.values) + (m.values if self.logarithm else 0), owned=True)
        if x is None:
            return [pulled]
        a = Stack(x.groups, x.values - mean(x.values))
        cross = 0 if self.logarithm else p * mean(adjoint * a.values)
        one = torch.ones_like(p)
        _add_cubes(sums, m and Stack(m.groups, weights(m.values)), a, one)
        _add_cubes(sums, Stack(x.groups, weights(adjoint) * a.values / 3 - cross), a, one)
        return [total([pulled, Stack(x.groups, weights(adjoint) * a.values - cross)], p.shape)]

    def _means(self, o: "Operation") -> tuple[Tensor, int, Callable[[Tensor], Tensor]]:
        """The probabilities, the axis that they sum to 1 along, and the mean under them."""
        y = o.outputs[0].value
        p, axis = y.exp() if self.logarithm else y, o.argument(1, "dim") % y.dim() - y.dim()
        return p, axis, lambda v: (p * v).sum(axis, keepdim=True)


class Standardized(Rule):
    """y = c r  with  c = x - mean(x)  and  r = (mean(c^2) + eps)^(-1/2)  over some axes: the core of the norm layers."""

    repeatable = True

    def forward(self, o: "Operation", jets: Sequence[Jet], adjoints: Adjoints, sums: Sums) -> list[Jet]:
        ((x, x2),), (adjoint,) = jets, filled(adjoints, o)
        assert x is not None
        value, eps = o.inputs[0].value, o.argument(2, "eps")
        axes = [axis % value.dim() - value.dim() for axis in o.argument(1, "axes")]

        def mean(v: Tensor) -> Tensor:
            return v.mean(axes, keepdim=True)

        c, c1 = value - mean(value), x.values - mean(x.values)
        r = (mean(c * c) + eps).rsqrt()
        q1 = 2 * mean(c * c1)  # the derivatives of mean(c^2), and then of r
        r1 = -(r**3) * q1 / 2
        size = c.numel() // r.numel()
        pull, pull1 = size * mean(adjoint * c), size * mean(adjoint * c1)
        gram = (rows(c1) * (-pull * r**3 / size).expand_as(c).flatten()) @ rows(c1).T
        cross = rows(pull1) @ rows(r1).T
        bend = rows(pull * r**5 * q1) @ rows(q1).T * 0.75
        sums.hessian(x.groups, x.groups, gram + cross + cross.T + bend)
        first = Stack(x.groups, c1 * r + c * r1)
        if sums.order < 3:
            return [Jet(first)]
        c2 = torch.zeros_like(c1) if x2 is None else x2.over(x.groups) - mean(x2.over(x.groups))
        q2, q3 = 2 * mean(c1 * c1 + c * c2), 6 * mean(c1 * c2)
        r2 = 0.75 * r**5 * q1 * q1 - r**3 * q2 / 2
        r3 = -1.875 * r**7 * q1**3 + 2.25 * r**5 * q1 * q2 - r**3 * q3 / 2
        third = 3 * size * mean(adjoint * c2) * r1 + 3 * pull1 * r2 + pull * r3
        sums.third(x.groups, rows(third).sum(1))
        return [Jet(first, Stack(x.groups, c2 * r + 2 * c1 * r1 + c * r2))]

    def backward(
        self, o: "Operation", jets: Sequence[Jet], adjoints: Adjoints, moved: Moved, wanted: Wanted, sums: Sums
    ) -> Moved:
        (x, _), m, (adjoint,) = jets[0], moved[0], filled(adjoints, o)
        value, axes, eps = o.inputs[0].value, o.argument(1, "axes"), o.argument(2, "eps")
        # All in the layout (groups, cells, entries of a cell): a cell is what shares one mean and one variance.
        c = _centred(_cells(value[None], axes))[0]
        n, r = c.shape[1], (c.square().mean(1) + eps).rsqrt()
        pulled = None if m is None else _cells(m.values, axes)
        out = []
        if m and pulled is not None:
            out.append(Stack(m.groups, _centred(pulled * r[:, None] - c * (r**3 * (pulled * c).mean(2))[..., None])))
        if x:
            a, weights = _centred(_cells(x.values, axes)), _cells(adjoint[None], axes)[0]
            v, pairs = 2 * (c * a).mean(2), 2 / n * torch.einsum("scn,tcn->stc", a, a)
            slope = -(r**3) * v / 2
            bend = 0.75 * r**5 * v[:, None] * v - r**3 * pairs / 2
            if m and pulled is not None:
                along, level = torch.einsum("rcn,scn->rsc", pulled, a), (pulled * c).sum(2)
                cross = torch.einsum("rsc,tc->rst", along, slope)
                block = cross + cross.mT + torch.einsum("rc,stc->rst", level, bend)
                sums.full(m.groups, x.groups, x.groups, block)
            along, level = (weights * a).sum(2), (weights * c).sum(1)
            twist = -1.875 * torch.einsum("c,rc,sc,tc->rst", level * r**7, v, v, v)
            # What is symmetric in two places only goes to all three by the way in which blocks of D3 are added.
            mixed = torch.einsum("rc,stc->rst", along, bend)
            mixed = mixed + torch.einsum("rc,stc->rst", 0.75 * level * r**5 * v, pairs)
            sums.full(x.groups, x.groups, x.groups, mixed + twist / 3)
            turned = weights * slope[..., None] - c * (along * r**3)[..., None] / n
            turned = turned + (level * 1.5 * r**5 * v)[..., None] * c / n - (level * r**3)[:, None] * a / n
            out.append(Stack(x.groups, _centred(turned)))
        found = total(out, c.shape)
        return [found and Stack(found.groups, _uncelled(found.values, axes, value.shape))]


def _cells(stacked: Tensor, axes: Sequence[int]) -> Tensor:
    """(k, *shape) -> (k, cells, entries): the axes that a mean is taken over come last, as one."""
    dims = [axis % (stacked.dim() - 1) + 1 for axis in axes]
    return stacked.movedim(dims, list(range(-len(dims), 0))).flatten(-len(dims)).flatten(1, -2)


def _uncelled(celled: Tensor, axes: Sequence[int], shape: Sequence[int]) -> Tensor:
    """The inverse of ``_cells``."""
    dims = [axis % len(shape) for axis in axes]
    kept = [n for i, n in enumerate(shape) if i not in dims]
    values = celled.reshape(len(celled), *kept, *(shape[i] for i in dims))
    return values.movedim(list(range(-len(dims), 0)), [i + 1 for i in dims])


def _centred(celled: Tensor) -> Tensor:
    return celled - celled.mean(-1, keepdim=True)


def _blocks(n: int, k: int) -> Iterator[slice]:
    """Parts of k rows of length n that stay in the cache from one pass to the next."""
    size = max(256, 2**17 // k)
    return (slice(i, i + size) for i in range(0, n, size))


def _through(
    functions: Sequence[Any], x: Tensor, x2: Tensor | None, first: Tensor, second: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Write the tangents of f(x) into ``first`` and ``second`` (k, n), and return their share of H-bar and D3.

    ``functions``, each (n,): the first two derivatives, then the last two times the adjoint. ``first`` may be ``x`` itself.
    """
    f1, f2, w2, w3 = functions
    gram, third = x.new_zeros(len(x), len(x)), x.new_zeros(len(x))
    some = 0 if x2 is None else len(x2)
    for part in _blocks(x.shape[1], len(x)):
        here = x[:, part]
        bent = here * w2[part]
        gram += bent @ here.T
        if second is not None:
            if x2 is not None:
                third[:some] += 3 * torch.linalg.vecdot(bent[:some], x2[:, part])
            torch.mul(here, here, out=bent)
            torch.mul(bent, f2[part], out=second[:, part])
            if x2 is not None:
                second[:some, part].addcmul_(x2[:, part], f1[part])
            if w3 is not None:
                third += bent.mul_(here) @ w3[part]
        torch.mul(here, f1[part], out=first[:, part])
    return gram, third


def derivatives(o: "Operation", order: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The first three derivatives of f at the input; from the second on, None where zero or above ``order``."""
    args, kwargs = o.arguments
    by_hand = (len(args) < 3 and kwargs.keys() <= {"alpha"}) or kwargs == {"approximate": "none"}
    found = _KNOWN[o.name](o, order) if by_hand and o.name in _KNOWN else _derived(o, order)
    return found[0], found[1] if len(found) > 1 else None, found[2] if len(found) > 2 else None


def _derived(o: "Operation", order: int) -> list[Tensor]:
    # The function acts scalar by scalar, so that the derivative of its sum holds all of them.
    x = o.inputs[0].value.detach().requires_grad_()
    with torch.enable_grad():
        y = o.call(x)[0]
        found: list[Tensor] = []
        while len(found) < order and y.requires_grad:
            again = len(found) + 1 < order
            (y,) = torch.autograd.grad(y, x, torch.ones_like(y), create_graph=again, materialize_grads=True)
            found.append(y.detach())
    return found


def _of_tanh(o: "Operation", order: int) -> list[Tensor]:
    y = o.outputs[0].value
    slope = torch.addcmul(y.new_ones(()), y, y, value=-1)
    found = [slope, (y * slope).mul_(-2)][:order]
    return [*found, (y * y).mul_(6).sub_(2).mul_(slope)] if order > 2 else found


def _of_sigmoid(o: "Operation", order: int) -> list[Tensor]:
    y = o.outputs[0].value
    slope = y * (1 - y)
    found = [slope, (1 - 2 * y).mul_(slope)][:order]
    return [*found, (1 - 6 * slope).mul_(slope)] if order > 2 else found


def _of_elu(o: "Operation", order: int) -> list[Tensor]:
    x, y, alpha = o.inputs[0].value, o.outputs[0].value, o.argument(1, "alpha", 1.0)
    straight = (x > 0).to(y)
    slope = (y + alpha).mul_(1 - straight).add_(straight)
    # At 0 torch takes the slope from the left and the curvature from the right.
    bent = (y + alpha) * (x < 0).to(y)
    return [slope, bent, bent][:order]


def _of_gelu(o: "Operation", order: int) -> list[Tensor]:
    x = o.inputs[0].value
    density = (x * x).mul_(-0.5).exp_().mul_(1 / math.sqrt(2 * math.pi))
    slope = (x * math.sqrt(0.5)).erf_().add_(1).mul_(0.5).addcmul_(x, density)
    found = [slope, (2 - x * x).mul_(density)][:order]
    return [*found, (x**3 - 4 * x).mul_(density)] if order > 2 else found


def _of_exp(o: "Operation", order: int) -> list[Tensor]:
    return [o.outputs[0].value] * order


# By hand where the output holds what the derivatives need: autograd takes ten passes over it.
_KNOWN = {"tanh": _of_tanh, "sigmoid": _of_sigmoid, "exp": _of_exp, "elu": _of_elu, "gelu": _of_gelu}
