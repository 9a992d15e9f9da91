"""Convolutions, transposed or not."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gnewton.derivatives.group_tangents import GroupTangents
from gnewton.derivatives.operation import Operation, register
from gnewton.derivatives.rules.bilinear import Product


class Convolution(Product):
    """Convolution of a batch (N, C, ...), transposed or not, plus a bias per channel."""

    right = (1, "weight")

    def __init__(self, transposed: bool) -> None:
        self.transposed = transposed

    def applies(self, o: Operation) -> bool:
        same = bool(o.value(*self.left).dim() == o.value(*self.right).dim())
        return super().applies(o) and same and not isinstance(o.argument(4, "padding", 0), str)

    def times(self, o: Operation, a: Tensor, b: Tensor) -> Tensor:
        return _per_kernel(lambda x, w: torch.convolution(x, w, None, *self._geometry(o)), a, b)

    def pull_a(self, o: Operation, adjoint: Tensor, b: Tensor) -> Tensor:
        x, geometry = o.value(*self.left), self._geometry(o)

        def pull(d: Tensor, w: Tensor) -> Any:
            # Only the shape of the input matters to this product.
            shape = x.new_empty(1).expand(len(d), *x.shape[1:])
            return torch.ops.aten.convolution_backward(d, shape, w, None, *geometry, [True, False, False])[0]

        return _per_kernel(pull, adjoint, b)

    def pull_b(self, o: Operation, adjoint: Tensor, a: Tensor) -> Tensor:
        w, geometry = o.value(*self.right), self._geometry(o)
        k = max(len(a), len(adjoint))
        pairs = zip(adjoint.expand(k, *adjoint.shape[1:]), a.expand(k, *a.shape[1:]), strict=True)
        backward = torch.ops.aten.convolution_backward
        return torch.stack([backward(d, x, w, None, *geometry, [False, True, False])[1] for d, x in pairs])

    def offset(self, o: Operation, c: GroupTangents | None) -> GroupTangents | None:
        return c and GroupTangents(c.groups, c.values.reshape(*c.values.shape, *[1] * (o.outputs[0].value.dim() - 2)))

    def offset_adjoint(self, o: Operation, m: GroupTangents | None, shape: Sequence[int]) -> GroupTangents | None:
        return m and GroupTangents(m.groups, m.values.sum([1, *range(3, m.values.dim())]))

    def multiplications(self, o: Operation) -> int:
        values = o.value(*self.left) if self.transposed else o.outputs[0].value
        return int(o.value(*self.right)[0].numel()) * values.numel()

    def _geometry(self, o: Operation) -> tuple[Any, ...]:
        """Stride, padding, dilation, transposed, output padding and groups, as torch's convolution takes them."""
        n = o.value(*self.left).dim() - 2
        late = (("output_padding", 5, 0), ("groups", 6, 1), ("dilation", 7, 1))
        early = (("dilation", 5, 1), ("groups", 6, 1))
        places = (("stride", 3, 1), ("padding", 4, 0), *(late if self.transposed else early))
        options = {name: o.argument(position, name, default) for name, position, default in places}
        lists = {name: _as_list(value, n) for name, value in options.items()}
        output_padding = lists.get("output_padding", [0] * n)
        return lists["stride"], lists["padding"], lists["dilation"], self.transposed, output_padding, options["groups"]


for n in (1, 2, 3):
    register(f"conv{n}d", Convolution(transposed=False))
    register(f"conv_transpose{n}d", Convolution(transposed=True))


def _as_list(value: Any, n: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * n if len(values) == 1 else values


def _per_kernel(product: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> Tensor:
    """A product of stacks: all samples of all groups in one batch where the kernel is shared, else group by group."""
    if len(b) == 1:
        out = product(a.flatten(0, 1), b[0])
        return out.reshape(*a.shape[:2], *out.shape[1:])
    return torch.stack([product(x, w) for x, w in zip(a.expand(len(b), *a.shape[1:]), b, strict=True)])
