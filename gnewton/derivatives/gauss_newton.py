"""The generalized Gauss-Newton matrix of the groups: the curvature of the loss in the model's outputs alone.

A loss in two parts, outputs z = f(theta) and then l(z), has the Hessian  J^T H_l J + sum over i of (dl/dz_i) H_{z_i} . The first
term, with J = dz/dtheta, is the Gauss-Newton matrix (Schraudolph, Neural Computation 14(7), 2002), positive semi-definite where l
is convex. Between groups,

    G_st = (J u_s)^T H_l (J u_t) .

On a tape it is the share that the operations after z have in H-bar. So the same sweep gives it, with the adjoints before z
left out.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.utils._pytree import tree_leaves, tree_map

from gnewton.derivatives import nested
from gnewton.derivatives.operation import Variable
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

    def on_copies(self) -> "TwoParts":
        """The same loss, whose criterion may write into what it is given: the outputs stay as they are."""
        return TwoParts(self.outputs, lambda z, *batch: self.criterion(_replaced(z, Tensor.clone), *batch))

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
                raise ValueError(_leak(o.name, self.latest))
        self.latest = None  # the tape has what it needs
        tape.flat = {v for o in tape.operations for v in o.outputs if v in model}

    def _is_output(self, v: Variable, names: set[str]) -> bool:
        return v.name in names if v.edge is None else (v.edge.node, v.edge.output_nr) in self._edges

    def nested(
        self, value: Tensor, outputs: Any, partition: Partition, direction: Mapping[str, Tensor], batch: Sequence[Any]
    ) -> tuple[Tensor, Tensor, None, None]:
        """g-bar (S,) and the Gauss-Newton matrix (S, S) by backward passes; ``value`` is that of the ``outputs``, as they were returned."""
        slope = nested.contract(value, partition, direction).detach()
        z = [t for t in _tensors(outputs) if t.requires_grad]
        if not z:
            raise ValueError(_leak("the criterion", outputs))
        tangents = _tangents(z, partition, direction)
        leaves = {id(t): t.detach().requires_grad_() for t in z}
        loss = self.criterion(_replaced(outputs, lambda t: leaves.get(id(t), t)), *batch)
        parameters = [p for p in partition.parameters.values() if p.requires_grad]
        if any(g is not None for g in differentiate(loss, parameters, retain_graph=True)):
            raise ValueError(_leak("the criterion", outputs))
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


def _leak(name: str, outputs: Any) -> str:
    strange = _unopened(outputs)
    if strange:
        return (
            f"expected outputs in tuples, lists, dictionaries or dataclasses, got a {strange[0]}, whose tensors are not seen; return "
            f"those that the criterion reads, such as (out.mean, out.scale), and make the {strange[0]} of them in the criterion"
        )
    return (
        f"expected a criterion that depends on the parameters through the outputs alone, got one that reads others ({name}); "
        "return them among the outputs, such as (model(x), model.weight) for weight decay"
    )


# -- outputs in containers ------------------------------------------------------------------------------------------------


def _tensors(outputs: Any) -> list[Tensor]:
    """The tensors among the outputs, each once."""
    tensors: dict[int, Tensor] = {}
    _replaced(outputs, lambda t: tensors.setdefault(id(t), t))
    return list(tensors.values())


def _replaced(outputs: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The outputs with every tensor changed, in containers of the same types: torch's (named tuples, registered classes) and below."""
    return tree_map(lambda leaf: _replaced_in(leaf, change), outputs)


def _replaced_in(leaf: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(leaf, Tensor):
        return change(leaf)
    if not _is_opened(leaf):
        return leaf
    # Copied and not made anew: a class may have an __init__ of its own. One may be both, as the outputs of transformers.
    new = copy(leaf)
    if isinstance(leaf, dict):
        for key, entry in leaf.items():
            new[key] = _replaced(entry, change)
    if isinstance(leaf, list):
        new[:] = [_replaced(entry, change) for entry in leaf]
    for field in fields(leaf) if is_dataclass(leaf) else ():
        if hasattr(leaf, field.name):
            object.__setattr__(new, field.name, _replaced(getattr(leaf, field.name), change))
    return new


def _is_opened(leaf: Any) -> bool:
    return isinstance(leaf, dict | list) or (is_dataclass(leaf) and not isinstance(leaf, type))


def _unopened(outputs: Any) -> list[str]:
    """The classes among the outputs that may hold tensors which nobody sees."""
    names: list[str] = []
    for leaf in tree_leaves(outputs):
        if isinstance(leaf, dict):
            names += _unopened(list(leaf.values()))
        elif isinstance(leaf, list):
            names += _unopened(list(leaf))
        elif _is_opened(leaf):
            names += _unopened([getattr(leaf, field.name, None) for field in fields(leaf)])
        elif not isinstance(leaf, Tensor | str | bytes | int | float | complex | None):
            names.append(type(leaf).__name__)
    return names
