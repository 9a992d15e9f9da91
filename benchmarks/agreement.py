"""Requirement 1: the numbers are the oracle's. Nobody is timed who has not passed.

The error of a tensor is max |difference| / max |float64 oracle|. Both dtypes compute with the same float32 numbers.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import gnewton as gn
from benchmarks.measure import EXPECTED, Subject, why
from benchmarks.networks import Network, build, direction, partition
from benchmarks.peers import PEERS
from gnewton.derivatives.nested import contract
from gnewton.loss import differentiable_mode

FLOAT64 = 1e-10
FLOAT32 = 1e-5
FULL_THIRD_UP_TO = 12  # groups: the oracle needs S^2 passes

Tensors = dict[str, Tensor | None]


def agree(network: str, groups: str, batch: int, subjects: Sequence[Subject] = ()) -> dict[str, Any]:
    """Errors of the tape in float64 and float32, of the oracle in float32, and of the peers in float64, by order."""
    wide, narrow = (build(network, batch, dtype) for dtype in (torch.float64, torch.float32))
    parts, narrow_parts = partition(groups, wide.model), partition(groups, narrow.model)
    narrow_u = direction(narrow, narrow_parts)
    u = {name: part.double() for name, part in narrow_u.items()}
    full = len(parts) <= FULL_THIRD_UP_TO
    exact = oracle(wide, parts, u, full)
    return {
        "network": network,
        "groups": groups,
        "S": len(parts),
        "batch": batch,
        "float64": errors(tape(wide, parts, u, full), exact),
        "float32": errors(tape(narrow, narrow_parts, narrow_u, full), exact),
        "oracle32": errors(oracle(narrow, narrow_parts, narrow_u, full), exact),
        "peers": {f"{p} {order}": _peer(p, order, wide, parts, u, exact) for p, order in subjects},
    }


def errors(computed: Mapping[str, Tensor | None], exact: Mapping[str, Tensor | None]) -> dict[str, float]:
    """By name of the order; what one of the two did not compute is left out."""
    return {name: error(t, e) for name, t in computed.items() if t is not None and (e := exact[name]) is not None}


def error(computed: Tensor, exact: Tensor) -> float:
    """max |computed - exact| / max |exact|, where 0 / 0 is 0.

    >>> error(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]))
    0.5
    """
    difference, scale = (computed - exact).abs().max().item(), exact.abs().max().item()
    return difference / scale if scale else difference


def passes(result: Mapping[str, Any]) -> bool:
    """1e-10 in float64; in float32 the larger of 1e-5 and four times the float32 oracle's own error."""
    narrow = all(e <= max(FLOAT32, 4 * result["oracle32"][name]) for name, e in result["float32"].items())
    return narrow and all(e <= FLOAT64 for e in result["float64"].values())


def disagreeing(result: Mapping[str, Any]) -> list[str]:
    """The peers that ran and are wrong."""
    return [
        peer
        for peer, by_order in result["peers"].items()
        if isinstance(by_order, dict) and max(by_order.values()) > FLOAT64
    ]


def tape(net: Network, parts: gn.Partition, u: dict[str, Tensor], full: bool) -> Tensors:
    """What is under test, by name of the order."""
    s = gn.summarize(net.loss, parts, u, order=3, full_third=full, engine="tape")
    return {"1": s.gradient, "2": s.hessian, "3": s.third, "3 full": s.third_full}


def oracle(net: Network, parts: gn.Partition, u: dict[str, Tensor], full: bool) -> Tensors:
    """The oracle's contractions, row by row: the graphs of all rows at once do not fit where S and the layers are large."""
    rows, thirds = [], []
    with differentiable_mode(parts):
        gradient = contract(net.loss(), parts, u, create_graph=True)
        for s, entry in enumerate(gradient):
            row = contract(entry, parts, u, create_graph=True)
            wanted = row if full else row[s : s + 1]
            thirds.append(torch.stack([contract(e, parts, u) for e in wanted]))
            rows.append(row.detach())
    third = torch.stack([t[s if full else 0, s] for s, t in enumerate(thirds)])
    return {
        "1": gradient.detach(),
        "2": torch.stack(rows),
        "3": third,
        "3 full": torch.stack(thirds) if full else None,
    }


def _peer(
    peer: str, order: int, net: Network, parts: gn.Partition, u: dict[str, Tensor], exact: Tensors
) -> dict[str, float] | str:
    try:
        tensors = PEERS[peer].run(net, parts, u, order)
    except EXPECTED as problem:
        return why(problem)
    return errors(dict(zip(("1", "2", "3"), tensors, strict=True)), exact)
