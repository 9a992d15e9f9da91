"""The generalized Gauss-Newton matrix of the groups: the curvature of the loss in the model's outputs alone.

A loss in two parts, outputs z = f(theta) and then l(z), has the Hessian  J^T H_l J + sum over i of (dl/dz_i) H_{z_i} . The first
term, with J = dz/dtheta, is the Gauss-Newton matrix (Schraudolph, Neural Computation 14(7), 2002), positive semi-definite where l
is convex. Between groups,

    G_st = (J u_s)^T H_l (J u_t) .

On a tape it is the share that the operations after z have in H-bar. So the same sweep gives it, with the adjoints before z
left out.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from gnewton.derivatives import nested
from gnewton.derivatives.operation import Variable, substitute
from gnewton.derivatives.tape import Tape
from gnewton.loss import differentiate
from gnewton.partition import Partition

_SECOND_PART = "write loss=(lambda: model(x), lambda z: F.cross_entropy(z, y))"


class TwoParts:
    """A loss as ``criterion(outputs(*batch), *batch)``, which remembers where its outputs are.

    >>> TwoParts(lambda: torch.ones(2), lambda z: z.sum())()
    tensor(2.)
    """

    def __init__(self, outputs: Callable[..., Any], criterion: Callable[..., Tensor]) -> None:
        self.outputs, self.criterion = outputs, criterion
        self._edges: set[tuple[Any, int]] = set()
        self._leaves: set[int] = set()
        self.latest: Any = None  # the outputs of the latest call

    def __call__(self, *batch: Any) -> Tensor:
        self.latest = self.outputs(*batch)
        with torch._C.DisableTorchFunction():
            for z in _tensors(self.latest):
                self._remember(z)
        return self.criterion(self.latest, *batch)

    def _remember(self, z: Tensor) -> None:
        if z.grad_fn is not None:
            edge = GradientEdge(z.grad_fn, z.output_nr)
            self._edges.add((edge.node, edge.output_nr))
        else:
            self._leaves.add(id(z))

    def drop_outer_adjoints(self, tape: Tape, partition: Partition) -> None:
        """Let the tape's sweep add up the curvature of the operations after the outputs only.

        Raises ValueError where the criterion reads a parameter in another way than through the outputs.
        """
        names = {name for name, p in partition.parameters.items() if id(p) in self._leaves}
        ends = {v for o in tape.operations for v in (*o.inputs, *o.outputs) if self._is_output(v, names)}
        model = set(ends)
        for o in reversed(tape.operations):
            if not model.isdisjoint(o.outputs):
                model.update(o.outputs, o.inputs)
        known = ends.union(*(o.outputs for o in tape.operations if model.isdisjoint(o.outputs)))
        for o in tape.operations:
            if model.isdisjoint(o.outputs) and not known.issuperset(o.inputs):
                raise ValueError(_leak(o.name))
        self.latest = None  # the tape has what it needs
        tape.flat = {v for o in tape.operations for v in o.outputs if v in model}

    def _is_output(self, v: Variable, names: set[str]) -> bool:
        return v.name in names if v.edge is None else (v.edge.node, v.edge.output_nr) in self._edges

    def nested(
        self, value: Tensor, outputs: Any, partition: Partition, direction: Mapping[str, Tensor], batch: Sequence[Any]
    ) -> tuple[Tensor, Tensor, None, None]:
        """g-bar (S,) and the Gauss-Newton matrix (S, S) by backward passes; ``value`` is that of the ``outputs``."""
        slope = nested.contract(value, partition, direction).detach()
        z = [t for t in _tensors(outputs) if t.requires_grad]
        tangents = _tangents(z, partition, direction)
        leaves = {id(t): t.detach().requires_grad_() for t in z}
        loss = self.criterion(substitute(outputs, Tensor, lambda t: leaves.get(id(t), t)), *batch)
        parameters = [p for p in partition.parameters.values() if p.requires_grad]
        if any(g is not None for g in differentiate(loss, parameters, retain_graph=True)):
            raise ValueError(_leak("the criterion"))
        inputs = list(leaves.values())
        first = torch.autograd.grad(loss, inputs, create_graph=True, materialize_grads=True)
        rows = []
        for row in tangents:
            product = torch.stack([(g * t).sum() for g, t in zip(first, row, strict=True)]).sum()
            h = differentiate(product, inputs, retain_graph=True)
            rows.append(torch.stack([_dot(h, other) for other in tangents]).to(slope))
        return slope, torch.stack(rows), None, None


def two_parts(loss: Any) -> TwoParts:
    """A pair of callables as one loss. Raises TypeError for anything else.

    >>> two_parts((lambda: torch.ones(2), lambda z: z.sum()))()
    tensor(2.)
    """
    if isinstance(loss, tuple) and len(loss) == 2 and all(map(callable, loss)):
        return TwoParts(*loss)
    got = f"a tuple of {len(loss)}" if isinstance(loss, tuple) else type(loss).__name__
    raise TypeError(f"expected a loss in two parts, the outputs and then the loss of them, got {got}; {_SECOND_PART}")


def _tangents(z: Sequence[Tensor], partition: Partition, direction: Mapping[str, Tensor]) -> list[list[Tensor]]:
    """J u_s of each group, one tensor per output: J^T v is linear in v, and its derivative along u_s is J u_s."""
    used = {name: p for name, p in partition.parameters.items() if p.requires_grad}
    v = [torch.zeros_like(t, requires_grad=True) for t in z]
    along = torch.stack([(t * d).sum() for t, d in zip(z, v, strict=True)]).sum()
    pulled = differentiate(along, list(used.values()), create_graph=True)
    out = []
    for s in range(len(partition)):
        part = partition.restrict(dict(direction), s)
        product = torch.stack([(g * part[n]).sum() for n, g in zip(used, pulled, strict=True) if g is not None]).sum()
        tangents = differentiate(product, v, retain_graph=True)
        out.append([torch.zeros_like(t) if j is None else j for t, j in zip(z, tangents, strict=True)])
    return out


def _dot(h: Sequence[Tensor | None], row: Sequence[Tensor]) -> Tensor:
    return torch.stack([(a * b).sum() if a is not None else b.new_zeros(()) for a, b in zip(h, row, strict=True)]).sum()


def _leak(name: str) -> str:
    return (
        f"expected a criterion that depends on the parameters through the outputs alone, got one that reads others ({name}); "
        "return them among the outputs, such as (model(x), model.weight) for weight decay"
    )


def _tensors(structure: Any) -> list[Tensor]:
    tensors: list[Tensor] = []

    def note(t: Tensor) -> Tensor:
        tensors.append(t)
        return t

    substitute(structure, Tensor, note)
    return tensors
