"""The slow oracle: summary tensors of any order by repeated contraction.

One contraction takes a scalar T to the S numbers  sum over p in T_s of (dT / d theta_p) u_p , where the T_s are the
groups. Applied to the loss it gives g-bar, applied to each entry of g-bar a row of H-bar, and so on (Wolinski, arXiv
2312.03885, section 3). Every contraction is one backward pass, so order d costs 1 + S + ... + S^(d-1) of them; the
summary with the order-3 diagonal costs 2 S + 1. Nothing here is clever, on purpose: it is what faster engines are
compared with.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gnewton.derivatives.proof import check_symmetry
from gnewton.loss import differentiate
from gnewton.partition import Partition, accumulator_dtype

Direction = Mapping[str, Tensor]


def summary_tensor(value: Tensor, partition: Partition, direction: Direction, *, order: int) -> Tensor:
    """The summary tensor of one order, D^d L[u_{s1}, ..., u_{sd}]: shape (S,) * order, float64.

    Args:
        value: the loss () with its graph; the tensor has its unit.
        partition: the S groups.
        direction: u by parameter name, in the parameters' shapes.
        order: d >= 1.

    Raises TypeError when given a callable, ValueError for order < 1 or a graph that was used up.

    >>> import torch, gnewton as gn
    >>> a = torch.tensor(2.0, requires_grad=True); b = torch.tensor(1.0, requires_grad=True)
    >>> partition = gn.Partition.from_groups({"a": {"a": a}, "b": {"b": b}})
    >>> u = {"a": torch.tensor(1.0), "b": torch.tensor(2.0)}
    >>> summary_tensor((a * b - 1) ** 2 / 2, partition, u, order=2)
    tensor([[ 1.,  6.],
            [ 6., 16.]], dtype=torch.float64)
    """
    _check(value, order)
    return _nested(value, partition, direction, order)


def summary(
    value: Tensor,
    partition: Partition,
    direction: Direction,
    *,
    order: int = 3,
    full_third: bool = False,
    doubtful: Sequence[str] = (),
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """g-bar (S,), H-bar (S, S), the order-3 diagonal (S,) and, if asked, the full order-3 tensor (S, S, S); float64.

    Args:
        value, partition, direction: as in ``summary_tensor``, whose errors are raised.
        order: 1, 2 or 3, the highest to compute; what is above it is None.
        full_third: all of D3, and not its diagonal alone.
        doubtful: names of functions whose backward torch did not write. With one, NotImplementedError is raised where H-bar
            is not symmetric.

    >>> import torch, gnewton as gn
    >>> model = gn.models.Rosenbrock(2, dtype=torch.float64)
    >>> u = {"theta": torch.tensor([1.0, 1.0])}
    >>> gradient, hessian, third, _ = summary(model(), gn.Partition.by_scalar(model), u)
    >>> third
    tensor([-2880.,     0.], dtype=torch.float64)
    """
    _check(value, order)
    gradient = contract(value, partition, direction, create_graph=order > 1)
    if order == 1:
        return gradient.detach(), None, None, None
    rows, thirds = [], []
    for s, entry in enumerate(gradient):
        row = contract(entry, partition, direction, create_graph=order > 2)
        if full_third:
            thirds.append(torch.stack([contract(e, partition, direction) for e in row]))
        elif order > 2:
            thirds.append(contract(row[s], partition, direction, only=s)[s])
        # Its graph ends here: S of them at once would fill the memory.
        rows.append(row.detach())
    hessian = torch.stack(rows)
    if doubtful:
        check_symmetry(hessian, doubtful, partition)
    # Two roundings of one symmetric number: their mean is no less exact.
    hessian = (hessian + hessian.T) / 2
    if order == 2:
        return gradient.detach(), hessian, None, None
    third = torch.stack(thirds)
    if full_third:
        return gradient.detach(), hessian, third.diagonal().diagonal().clone(), third
    return gradient.detach(), hessian, third, None


def contract(
    scalar: Tensor, partition: Partition, direction: Direction, *, create_graph: bool = False, only: int | None = None
) -> Tensor:
    """One contraction, T -> sum over p in T_s of (dT / d theta_p) u_p: () -> (S,), float64.

    Args:
        scalar: T (), whose graph is kept.
        partition, direction: as in ``summary_tensor``.
        create_graph: whether the result is differentiated again.
        only: the one entry to compute, the others are 0; None is all.

    >>> import torch, gnewton as gn
    >>> model = gn.models.Rosenbrock(2)
    >>> contract(model(), gn.Partition.by_scalar(model), {"theta": torch.ones(2)})
    tensor([-215.6000,  -88.0000], dtype=torch.float64)
    """
    names = partition.parameters if only is None else partition.members(only)
    used = [n for n in names if partition.parameters[n].requires_grad]
    inputs = [partition.parameters[n] for n in used]
    gradients = differentiate(scalar, inputs, retain_graph=True, create_graph=create_graph)
    wide = accumulator_dtype(partition.device)  # products of half-precision numbers underflow
    return partition.sums(
        {n: g.to_dense().to(wide) * direction[n] for n, g in zip(used, gradients, strict=True) if g is not None}
    )


def _nested(value: Tensor, partition: Partition, direction: Direction, order: int) -> Tensor:
    row = contract(value, partition, direction, create_graph=order > 1)
    if order == 1:
        return row
    return torch.stack([_nested(entry, partition, direction, order - 1) for entry in row]).detach()


def _check(value: Tensor, order: int) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(
            f"expected the value of the loss (a tensor), got {type(value).__name__}; call the closure first"
        )
    if value.numel() != 1:
        raise ValueError(f"expected a scalar loss, got shape {tuple(value.shape)}; take its mean or sum")
    if not value.requires_grad:
        raise ValueError("expected a loss with a graph, got a detached one; compute it with gradients enabled")
    if order < 1:
        raise ValueError(f"expected an order of at least 1, got {order}")
