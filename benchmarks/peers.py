"""Other ways to the same numbers, each written out here from its description or called from its library.

A peer takes (network, partition, direction, order) and returns (gradient (S,) or None, hessian (S, S), third (S,) or
None), derivatives of the loss along +u. They run with attention on its math back end and norm layers written out, as
the engine does: torch's fused kernels have no second, or a wrong third, derivative.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.func import grad, jacrev, jvp, vmap

import gnewton as gn
from benchmarks.networks import Network
from gnewton.loss import differentiable_mode

Direction = dict[str, Tensor]
Result = tuple[Tensor | None, Tensor, Tensor | None]


@dataclass(frozen=True)
class Peer:
    """One way to a summary; ``orders`` are those that it can reach."""

    title: str
    run: Callable[[Network, gn.Partition, Direction, int], Result]
    orders: tuple[int, ...] = (2, 3)


# -- our engine ----------------------------------------------------------------------------------------------------


def engine(which: str) -> Callable[[Network, gn.Partition, Direction, int], Result]:
    """``gn.summarize`` with that engine, through the public door and with all its checks."""

    def run(network: Network, partition: gn.Partition, direction: Direction, order: int) -> Result:
        summary = gn.summarize(network.loss, partition, direction, order=order, engine=which)
        return summary.gradient, summary.hessian, summary.third

    return run


def full_third(network: Network, partition: gn.Partition, direction: Direction, order: int) -> Result:
    """Our engine with the whole S x S x S tensor; its diagonal is returned."""
    summary = gn.summarize(network.loss, partition, direction, order=3, full_third=True, engine="tape")
    return summary.gradient, summary.hessian, summary.third


# -- nested backward passes ----------------------------------------------------------------------------------------


def paper(network: Network, partition: gn.Partition, direction: Direction, order: int, short: bool = False) -> Result:
    """The paper's algorithm: 2S + 1 backward passes, each to all parameters, each with a graph of its own.

    One contraction takes a scalar T to the S numbers sum over T_s of (dT / d theta_p) u_p. The first is of the loss, the
    next S of the entries of g-bar, the last S of the diagonal of H-bar (arXiv 2312.03885, section 3). With ``short`` the
    last S, of which one number each is needed, go to the parameters of its group alone.
    """
    everything = list(partition.parameters)

    def contract(scalar: Tensor, names: Sequence[str] = everything) -> list[Tensor]:
        return _contract(scalar, partition, direction, names, create_graph=True)

    with differentiable_mode(partition):
        gradient = contract(network.loss())
        rows = [contract(entry) for entry in gradient]
        # What a pass leaves behind is let go at once: kept to the end, S graphs of order 3 fill any memory.
        own = [partition.members(s) if short else everything for s in range(len(partition))]
        third = [contract(row[s], own[s])[s].detach() for s, row in enumerate(rows) if order == 3]
    return _stacked(gradient), torch.stack([_stacked(row) for row in rows]), _stacked(third) if third else None


def tightened(network: Network, partition: gn.Partition, direction: Direction, order: int) -> Result:
    """The same passes without their needless parts.

    Row s of H-bar is taken to the parameters of groups t >= s and mirrored, so that a pass ends at the first of them;
    its graph is built for order 3 only and let go as soon as the diagonal's pass, to the group's own parameters, is done.
    """
    members = [partition.members(s) for s in range(len(partition))]
    rows, third = [], []
    with differentiable_mode(partition):
        everything = list(partition.parameters)
        gradient = _contract(network.loss(), partition, direction, everything, create_graph=True)
        for s, entry in enumerate(gradient):
            later = list(dict.fromkeys(name for group in members[s:] for name in group))
            row = _contract(entry, partition, direction, later, retain_graph=True, create_graph=order == 3)
            rows.append(_stacked(row))
            if order == 3:
                third.append(_contract(row[s], partition, direction, members[s], retain_graph=True)[s])
    upper = torch.stack(rows).triu()
    return _stacked(gradient), upper + upper.triu(1).T, _stacked(third) if third else None


def _contract(
    scalar: Tensor, partition: gn.Partition, direction: Direction, names: Sequence[str], **options: bool
) -> list[Tensor]:
    """sum over p in T_s of (dT / d theta_p) u_p for every s, counting the parameters ``names`` alone.

    S scalars, not one tensor: a pass from one of them must not run through the graphs of the others.
    """
    sums = [scalar.new_zeros(()) for _ in range(len(partition))]
    if not scalar.requires_grad:
        return sums
    inputs = [partition.parameters[name] for name in names]
    gradients = torch.autograd.grad(scalar, inputs, allow_unused=True, **options)
    for name, g in zip(names, gradients, strict=True):
        if g is None:
            continue
        label = partition.label(name)
        if not isinstance(label, int):
            raise NotImplementedError("groups that share a tensor are not written out for this peer")
        sums[label] = sums[label] + torch.dot(g.flatten(), direction[name].flatten())
    return sums


def _stacked(scalars: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(scalars)).detach()


# -- torch.func on phi(eta) ------------------------------------------------------------------------------------------


def func_hessian(network: Network, partition: gn.Partition, direction: Direction, order: int) -> Result:
    """``torch.func`` on phi(eta) = L(theta - sum_s eta_s u_s), a function of S numbers.

    H-bar is forward over reverse mode, which is ``torch.func.hessian`` with a bound on its memory; the order-3 diagonal is
    three nested ``jvp`` along each axis.
    """
    theta = {name: p.detach() for name, p in partition.parameters.items()}
    like = next(iter(theta.values()))
    origin, axes = like.new_zeros(len(partition)), torch.eye(len(partition), dtype=like.dtype, device=like.device)

    def phi(eta: Tensor) -> Tensor:
        return network.loss_at({n: p - eta[partition.label(n)] * direction[n] for n, p in theta.items()})

    def along(f: Callable[[Tensor], Tensor], axis: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda eta: jvp(f, (eta,), (axis,))[1]

    def second(axis: Tensor) -> Tensor:
        return along(jacrev(phi), axis)(origin)

    def third(axis: Tensor) -> Tensor:
        return -along(along(along(phi, axis), axis), axis)(origin)

    with differentiable_mode(partition):
        together = _columns_together(partition)
        gradient = -grad(phi)(origin)
        rows = vmap(second, chunk_size=together)(axes)
        diagonal = vmap(third, chunk_size=together)(axes) if order == 3 else None
    return gradient.detach(), rows.detach(), None if diagonal is None else diagonal.detach()


def _columns_together(partition: gn.Partition, scalars: int = 10**8) -> int:
    """How many tangents, each as large as the parameters, are carried at a time: all of them would fill any memory."""
    return min(len(partition), max(1, scalars // sum(partition.sizes)))


# -- curvlinops ------------------------------------------------------------------------------------------------------


def curvlinops_hessian(network: Network, partition: gn.Partition, direction: Direction, order: int) -> Result:
    """V^T (H V) with V = [u_1 .. u_S] and curvlinops' Hessian operator, which multiplies columns under ``vmap``."""
    from curvlinops import HessianLinearOperator

    parameters = partition.parameters
    with differentiable_mode(partition):
        operator = HessianLinearOperator(
            network.model,
            network.criterion,
            list(parameters.values()),
            [network.batch],
            check_deterministic=False,
            num_data=len(network.batch[1]),
        )
        columns = []
        for some in torch.arange(len(partition)).split(_columns_together(partition)):
            products = operator @ [_stack(name, partition, direction, some.tolist()) for name in parameters]
            columns.append(_transposed_product(partition, direction, dict(zip(parameters, products, strict=True))))
    return None, torch.cat(columns, 1).detach(), None


def _stack(name: str, partition: gn.Partition, direction: Direction, groups: Sequence[int]) -> Tensor:
    """One parameter's part of the columns u_s, (*shape, number of columns)."""
    u, label = direction[name], partition.label(name)
    return torch.stack([u if label == s else torch.zeros_like(u) for s in groups], -1)


def _transposed_product(partition: gn.Partition, direction: Direction, matrix: dict[str, Tensor]) -> Tensor:
    """V^T M, (S, columns), for M given by parameter, (*shape, columns)."""
    parts = {name: direction[name].flatten() @ m.flatten(0, -2) for name, m in matrix.items()}
    return torch.stack([sum(parts[name] for name in partition.members(s)) for s in range(len(partition))])


PEERS: dict[str, Peer] = {
    "engine": Peer("gnewton, tape", engine("tape")),
    "oracle": Peer("gnewton, nested (the oracle)", engine("nested")),
    "full third": Peer("gnewton, tape, all of D3", full_third, orders=(3,)),
    "paper": Peer("the paper's algorithm", paper),
    "paper, short": Peer(
        "the paper's algorithm, its last S passes to one group each", partial(paper, short=True), (3,)
    ),
    "tightened": Peer("nested, tightened", tightened),
    "torch.func": Peer("torch.func on phi", func_hessian),
    "curvlinops": Peer("curvlinops, V^T H V", curvlinops_hessian, orders=(2,)),
}
