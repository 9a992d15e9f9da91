"""The tape: one evaluation of a loss as a list of operations (a Wengert list).

A program that computes a loss is a list of steps  v_k = o_k(v_i, v_j, ...) , from the parameters to the loss. From that
list and the adjoints  lambda_k = dL / dv_k , which one ordinary backward pass gives, the summaries of every order follow
in one sweep over the list (`sweep.py`), by the rules of its operations (`rules/`). `record.py` writes the list.

>>> import torch, gnewton as gn
>>> from gnewton.derivatives.record import record
>>> model = gn.models.perceptron([3, 2])
>>> x, y = torch.zeros(5, 3), torch.zeros(5, dtype=torch.long)
>>> tape = record(lambda: torch.nn.functional.cross_entropy(model(x), y), gn.Partition.by_tensor(model))
>>> print(tape)
Tape: 3 operations, complete
   operation    inputs            output  rule             groups  multiplications
0  linear       0.weight, 0.bias  5x2     Linear           2       30
1  log_softmax  5x2               5x2     Softmax          2       40
2  nll_loss_nd  5x2               scalar  PiecewiseLinear  2       2
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gnewton.derivatives.complex_pairs import to_pairs
from gnewton.derivatives.operation import Operation, Variable
from gnewton.loss import differentiate

_SMALL = 2**14  # bytes: to drop so small a value takes longer than its memory is worth


@dataclass(eq=False)
class Tape:
    """The operations between a partition's parameters and a loss, in the order of their evaluation.

    Printed, it is a table: shapes, rule, groups alive in the output, multiplications of the first-order sweep.

    Args:
        parameters: the variables that begin the tape.
        operations: each after those whose outputs it reads.
        missing: what the record lacks, in words; the tape must then not be used. None: it is complete.
        value: the loss (), with its graph.
        result: the variable that ends the tape.
        flat: outputs of operations whose curvature is not to be counted.
        unused: names of the parameters that the result does not depend on.
    """

    parameters: tuple[Variable, ...]
    operations: list[Operation] = field(default_factory=list)
    missing: str | None = None
    value: Tensor | None = None
    result: Variable | None = None
    flat: set[Variable] = field(default_factory=set)
    unused: tuple[str, ...] = ()
    _adjoints: dict[Variable, Tensor] | None = field(default=None, init=False)

    def adjoints(self) -> dict[Variable, Tensor]:
        """dL/dv for each output v of the operations that have curvature; one backward pass, which uses up the graph."""
        if self._adjoints is None:
            # To these edges and not to the parameters: the products that make weight gradients are never formed.
            self.gradients([])
        adjoints, self._adjoints = self._adjoints, None
        assert adjoints is not None
        return {v: a for v, a in adjoints.items() if v not in self.flat}

    def gradients(self, parameters: Sequence[Tensor]) -> list[Tensor | None]:
        """dL/dp of each parameter, None where it is not used; the same backward pass gives the adjoints."""
        assert self.value is not None
        curved = [o for o in self.operations if self.missing is None and o.rule.has_curvature(o)]
        outputs = [v for o in curved for v in o.outputs]
        gradients = differentiate(self.value, [*parameters, *(v.edge for v in outputs)])
        adjoints = zip(outputs, gradients[len(parameters) :], strict=True)
        with torch._C.DisableTorchFunction():
            self._adjoints = {v: to_pairs(a) for v, a in adjoints if a is not None}
        return gradients[: len(parameters)]

    def prune(self) -> None:
        """Drop the operations that the result does not depend on: the printed text, a metric, an unused branch."""
        needed, operations = {self.result}, []
        for o in reversed(self.operations):
            if not needed.isdisjoint(o.outputs):
                needed.update(o.inputs)
                operations.append(o)
        self.operations = operations[::-1]
        self.unused = tuple(str(v) for v in self.parameters if v not in needed)

    def drop_unread_values(self) -> None:
        """Drop the values of which the rules need no more than the shape; the graph keeps what autograd needs."""
        read = {v for o in self.operations if o.rule.reads_inputs for v in o.inputs}
        read |= {v for o in self.operations if o.rule.reads_outputs for v in o.outputs}
        for v in (v for o in self.operations for v in o.outputs if v not in read):
            if v.value.nbytes > _SMALL:
                v.value = v.value.new_empty(()).expand(v.value.shape)

    def behind_curvature(self) -> set[Variable]:
        """The values that depend on the parameters through curvature: there, adjoints along tangents matter."""
        behind: set[Variable] = set()
        for o in self.operations:
            if o.rule.has_curvature(o) or not behind.isdisjoint(o.inputs):
                behind.update(o.outputs)
        return behind

    def last_readers(self) -> dict[Variable, Operation]:
        """The operation after which a variable is read no more."""
        return {v: o for o in self.operations for v in o.inputs}

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("", "operation", "inputs", "output", "rule", "groups", "multiplications")]
        rows += [(str(i), *_row(operation)) for i, operation in enumerate(self.operations)]
        wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(text.ljust(w) for text, w in zip(row, wide, strict=True)).rstrip() for row in rows]
        state = "complete" if self.missing is None else f"not complete ({self.missing})"
        return "\n".join([f"Tape: {len(self.operations)} operations, {state}", *lines])


def _row(o: Operation) -> tuple[str, ...]:
    inputs, outputs = (", ".join(map(str, variables)) for variables in (o.inputs, o.outputs))
    groups = max(len(v.groups) for v in o.outputs)
    return o.name, inputs, outputs, type(o.rule).__name__, str(groups), f"{o.rule.cost(o):,}"
