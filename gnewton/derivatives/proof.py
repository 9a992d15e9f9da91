"""Proof at run time that nested backward passes differentiate a loss, where torch alone does not vouch for it.

Where the graph holds a backward that torch did not write (a custom autograd function, a hook), its second derivative may
be anything: ``once_differentiable``, NumPy, an intermediate kept on ctx and a solver in a hook all lose their share
without a word. So one product H v, and D3[v, v, .] where order 3 is wanted, is compared with central differences of the
gradient, parameter by parameter. v = sum of c_s u_s with irregular factors c_s: no symmetry between the groups hides a gap. It costs about as much as a dozen gradients, and is done only for such graphs.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gnewton.derivatives import graph
from gnewton.derivatives.differences import Gradients, step_length
from gnewton.loss import Loss, differentiate, evaluate
from gnewton.partition import Partition, accumulator_dtype
from gnewton.undo import RandomState

Direction = Mapping[str, Tensor]
Gradient = dict[str, Tensor]

_WRITE_BACKWARD = "write its backward in torch operations on ctx.saved_tensors (no NumPy, no detached intermediate, no once_differentiable)"
_WRITE_DENSE = (
    "write it in dense operations, such as torch.zeros(n, m).index_add(0, rows, values[:, None] * x[columns]) for a sparse "
    "matrix times x"
)


def doubts(value: Tensor, partition: Partition, hooks: int) -> list[str]:
    """The custom functions in the graph of a loss, parameters with hooks, and nodes with hooks if there are more than before."""
    reached = graph.nodes(value)
    names = graph.unproven(reached)
    names += [f"a hook on {name}" for name, p in partition.parameters.items() if p._backward_hooks]
    if graph.hooks_so_far() != hooks:
        names += [f"a hook on {name}" for name in graph.functions_with_hooks(reached)] or ["a tensor hook"]
    return names


def check_kernels(reached: Iterable[Any], partition: Partition, order: int) -> None:
    """Raises NotImplementedError where torch's own derivatives of this order are known to be wrong at one of the nodes."""
    wrong = graph.wrong_kernels(reached, partition, order)
    if wrong:
        kernels, which = ", ".join(wrong), "third" if order == 3 else "second"
        kind, instead = next((kind, text) for part, kind, text in _INSTEAD if any(part in name for name in wrong))
        raise NotImplementedError(
            f"expected a loss whose derivatives of order {order} torch computes right, got one through the kernel {kernels}, "
            f'{kind.format(which=which)}; {instead}, lower the order, or use engine="differences"'
        )


_WRONG = "whose {which} derivative is wrong in torch"
_NOTHING = "whose backward is the derivative of nothing"
_CLOSE = "whose {which} derivative loses its digits in torch, since eigenvalues or singular values lie close together or near 0"
_OF_A_MATRIX = "write the function of the matrix without its decomposition (A.square().sum(), torch.linalg.inv, solve, cholesky, matrix_exp)"
# By a part of the kernel's name: what is wrong with it, and what to write instead.
_INSTEAD = [
    *((part, _NOTHING, "leave the fake quantization out of the loss") for part in graph.STRAIGHT_THROUGH),
    ("Embedding", _NOTHING, "leave scale_grad_by_freq out"),
    ("LinalgDet", _WRONG, "write the determinant of a matrix that is all but singular as products of its entries"),
    ("Linalg", _CLOSE, _OF_A_MATRIX),
    *(
        (
            kernel,
            _WRONG,
            "call torch.prod and torch.cumprod outside torch.jit, where gnewton writes their derivatives out",
        )
        for kernel in ("ProdBackward", "CumprodBackward")
    ),
    (
        "Reduce",
        _WRONG,
        "write a product of factors of which one is near 0 by torch.prod, whose derivatives gnewton writes out",
    ),
    ("", _WRONG, "call F.layer_norm, F.batch_norm or their modules outside torch.jit, which gnewton writes out"),
]


def prove(loss: Loss, partition: Partition, direction: Direction, order: int, names: Sequence[str]) -> None:
    """Raises NotImplementedError unless H v, and at order 3 D3[v, v, .], are those that differences of gradients show.

    Args:
        loss: called again without arguments, with the random numbers that come next; none are used up.
        partition: its parameters.
        direction: u, with tensors of the parameters' shapes.
        order: 2 or 3.
        names: what is in doubt, for the message.
    """
    if "CheckpointFunction" in names:
        raise NotImplementedError(
            "expected a loss that torch can differentiate twice, got a reentrant checkpoint, which it cannot; "
            'write checkpoint(..., use_reentrant=False), or use engine="differences"'
        )
    wide = accumulator_dtype(partition.device)
    irregular = torch.arange(1, len(partition) + 1, dtype=wide, device=partition.device).mul(2.3).cos()
    direction = partition.scale(direction, irregular + 1.2)
    with RandomState(partition).replay():
        gradients = Gradients(loss, partition, ())
        nested = _nested_products(loss, partition, direction, order, names)
        here = gradients.at({})  # with the buffers that the products began with
    h = step_length(partition, direction, gradients.eps or 0.0)
    if h == 0 or partition.device.type == "meta":
        return
    best = [_Comparison(float("inf"), 0.0, "")] * len(nested)
    # Smaller steps where the first ones crossed a kink.
    for shrink in (1, 16, 256):
        smaller = _compare(gradients, here, nested, direction, h / shrink)
        best = [min(pair, key=lambda c: c.error) for pair in zip(best, smaller, strict=True)]
        if all(c.error < 0.1 for c in best):
            break
    for which, comparison in zip(("second", "third"), best, strict=False):
        _check(comparison, which, names, partition)


class _Comparison(NamedTuple):
    """How large a share of the derivative the differences cannot tell from their own error, the largest misfit, and where it is."""

    error: float
    misfit: float
    name: str


def _nested_products(
    loss: Loss, partition: Partition, direction: Direction, order: int, names: Sequence[str]
) -> list[Gradient]:
    """H u and, at order 3, D3[u, u, .] by nested backward passes."""
    parameters = {name: p for name, p in partition.parameters.items() if p.requires_grad}
    products: list[Gradient] = []
    scalar = evaluate(loss, partition)
    for degree in range(1, order + 1):
        try:
            slopes = differentiate(scalar, list(parameters.values()), create_graph=degree < order)
        except RuntimeError as error:
            which = ("first", "second", "third")[degree - 1]
            raise NotImplementedError(
                f"expected a loss that torch can differentiate to order {order}, got one through {', '.join(names)}, "
                f"of which there is no {which} derivative ({str(error).splitlines()[0]}); {_what_to_do(names)}"
            ) from error
        pairs = zip(parameters, slopes, strict=True)
        product = {name: torch.zeros_like(parameters[name]) if g is None else g.to_dense() for name, g in pairs}
        if degree > 1:
            products.append({name: g.detach() for name, g in product.items()})
        scalar = torch.stack([(g * direction[n].to(g)).sum().double() for n, g in product.items()]).sum()
    return products


def _compare(
    gradients: Gradients, here: Gradient, nested: Sequence[Gradient], direction: Direction, h: float
) -> list[_Comparison]:
    """Nested products beside differences with steps h and 2h: for order 2 and, if there is one, order 3."""
    near, far = (_differences(gradients, here, direction, length) for length in (h, 2 * h))
    eps = max(gradients.eps or 0.0, *(torch.finfo(p.dtype).eps for p in gradients.partition.parameters.values()))
    length = sum(float(g.double().square().sum()) for g in here.values()) ** 0.5
    whole = step_length(gradients.partition, direction, gradients.eps or 0.0)
    comparisons = []
    for i, product in enumerate(nested):
        # What rounding alone may do to a difference of gradients, and the size of a derivative that changes them at all.
        floor, usual = 4 * eps * length / h ** (i + 1), length * (eps**0.25 / whole) ** (i + 1)
        rows = [_row(name, product[name], near[i][name], far[i][name], (floor, usual)) for name in near[i]]
        error, misfit = max(row.error for row in rows), max(rows, key=lambda row: row.misfit)
        comparisons.append(_Comparison(error, misfit.misfit, misfit.name))
    return comparisons


def _row(name: str, product: Tensor, near: Tensor, far: Tensor, sizes: tuple[float, float]) -> _Comparison:
    best, (floor, usual) = (4 * near - far) / 3, sizes
    unknown = 10 * float((near - far).norm()) + floor
    scale = max(float(product.double().norm()), float(best.norm()))
    misfit = max(float((product.double() - best).norm()) - unknown, 0.0) / max(scale, floor)
    # Where all of a derivative is noise, its share of the usual size counts.
    return _Comparison(unknown / max(float(product.double().norm()), usual, floor / 1000), misfit, name)


def _differences(gradients: Gradients, here: Gradient, direction: Direction, h: float) -> tuple[Gradient, Gradient]:
    """(g(h) - g(-h)) / 2h and (g(h) - 2 g(0) + g(-h)) / h^2 along u, by parameter."""
    ahead, behind = (gradients.at({n: sign * h * u for n, u in direction.items()}) for sign in (1, -1))
    first, second = {}, {}
    for name, g in here.items():
        zero, plus, minus = (t.double() for t in (g, ahead.get(name, 0 * g), behind.get(name, 0 * g)))
        first[name], second[name] = (plus - minus) / (2 * h), (plus - 2 * zero + minus) / h**2
    return first, second


def tolerance(partition: Partition) -> float:
    """How far two computations of one derivative may differ, relative to it: 1e-6 in float64, 5e-3 in float32."""
    eps = max(torch.finfo(p.dtype).eps for p in partition.parameters.values())
    return max(1e-6, 15 * float(eps**0.5))


def _check(comparison: _Comparison, which: str, names: Sequence[str], partition: Partition) -> None:
    if comparison.misfit <= tolerance(partition) and comparison.error < 0.5:
        return
    what = (
        f"whose {which} derivative by nested backward passes is off by {100 * comparison.misfit:.3g} % at {comparison.name}"
        if comparison.misfit > tolerance(partition)
        else f"whose {which} derivative cannot be checked: its gradient jumps too much between nearby parameters{_wider(partition)}"
    )
    raise NotImplementedError(
        f"expected a loss whose backward passes are its derivatives, got one through {', '.join(names)}, {what}; "
        + _what_to_do(names)
    )


def _wider(partition: Partition) -> str:
    """What settles it where rounding is in the way."""
    narrow = any(p.dtype != torch.float64 for p in partition.parameters.values())
    return " for its rounding (in float64 it may be settled: model.double())" if narrow else ""


def _what_to_do(names: Sequence[str]) -> str:
    instead = _WRITE_DENSE if all(map(graph.is_of_other_layout, names)) else _WRITE_BACKWARD
    return f'{instead}, or use engine="differences", which takes any gradient and is not exact'


def check_symmetry(hessian: Tensor, names: Sequence[str], partition: Partition) -> None:
    """Raises NotImplementedError where H, before it is made symmetric, is not: then it is the derivative of no gradient."""
    if hessian.is_meta or not torch.isfinite(hessian).all():
        return
    gap, size = float((hessian - hessian.T).abs().max()), float(hessian.abs().max())
    if gap > 10 * tolerance(partition) * size:
        raise NotImplementedError(
            f"expected a symmetric Hessian, got one that is asymmetric by {100 * gap / size:.2g} % through "
            f"{', '.join(names)}: its backward is the derivative of no function; {_what_to_do(names)}"
        )
