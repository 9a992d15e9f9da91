"""The tape: one evaluation of a loss as a list of operations (a Wengert list).

A program that computes a loss is a list of steps  v_k = o_k(v_i, v_j, ...) , from the parameters to the loss. From that
list and the adjoints  lambda_k = dL / dv_k , which one ordinary backward pass gives, the summaries of every order follow
in one sweep over the list (`sweep.py`), by the rules of its operations (`rules.py`). `record.py` writes the list.

>>> import torch, gnewton as gn
>>> from gnewton.derivatives.record import record
>>> model = gn.models.perceptron([3, 2])
>>> x, y = torch.zeros(5, 3), torch.zeros(5, dtype=torch.long)
>>> tape = record(lambda: torch.nn.functional.cross_entropy(model(x), y), gn.Partition.by_tensor(model))
>>> print(tape)
Tape: 3 operations, complete
   operation    inputs            output  rule      groups  multiplications
0  linear       0.weight, 0.bias  5x2     Linear    2       30
1  log_softmax  5x2               5x2     Softmax   2       40
2  nll_loss_nd  5x2               scalar  Straight  2       2
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from gnewton.loss import differentiate

if TYPE_CHECKING:
    from gnewton.derivatives.rules import Rule


@dataclass(eq=False)
class Variable:
    """A value on the tape, a parameter or the output of an operation; ``groups`` are those that it depends on."""

    value: Tensor  # without graph
    groups: tuple[int, ...]
    edge: Any  # where autograd collects its adjoint
    name: str | None = None  # of a parameter

    def __str__(self) -> str:
        return self.name or "x".join(map(str, self.value.shape)) or "scalar"


@dataclass(frozen=True)
class Ref:
    """Stands, among an operation's arguments, for its i-th input."""

    index: int


@dataclass(eq=False)
class Operation:
    """One step: a function of ``arguments``, in which a ``Ref`` stands in the place of each input.

    ``picks`` are the entries of the returned tuple that are the outputs; None where the function returns a tensor.
    ``others`` are returned tensors without derivative, such as indices.
    """

    name: str
    function: Callable[..., Any]
    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    inputs: tuple[Variable, ...]
    outputs: tuple[Variable, ...] = ()
    picks: tuple[int, ...] | None = None
    others: tuple[Tensor, ...] = ()
    rule: "Rule" = field(init=False)

    def call(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The outputs at other values of the inputs."""
        args, kwargs = replaced(self.arguments, Ref, lambda ref: inputs[ref.index])
        result = self.function(*args, **kwargs)
        return (result,) if self.picks is None else tuple(result[i] for i in self.picks)

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument by position or name, a ``Ref`` if it is an input."""
        args, kwargs = self.arguments
        if position < len(args):
            return args[position]
        return kwargs.get(name, default)

    def place(self, position: int, name: str) -> int | None:
        """Which input stands at an argument; None where it is a constant."""
        entry = self.argument(position, name)
        return entry.index if isinstance(entry, Ref) else None

    def given(self, position: int, name: str) -> Any:
        """The value of an argument, whether it is an input or not."""
        entry = self.argument(position, name)
        return self.inputs[entry.index].value if isinstance(entry, Ref) else entry


@dataclass(eq=False)
class Tape:
    """The operations between a partition's parameters and a loss, in the order of their evaluation.

    ``value`` is the loss with its graph, ``parameters`` the variables that begin the tape, ``result`` the variable that
    ends it. ``missing`` is None, or says what the record lacks; then the tape must not be used. Printed, it is a table of
    the operations: shapes, rule, groups alive in the output, multiplications of the first-order sweep.
    """

    parameters: tuple[Variable, ...]
    operations: list[Operation] = field(default_factory=list)
    missing: str | None = None
    value: Tensor | None = None
    result: Variable | None = None
    _known: "dict[Variable, Tensor] | None" = field(default=None, init=False)

    def adjoints(self) -> dict[Variable, Tensor]:
        """dL/dv for each output v of the operations that have curvature; one backward pass, which uses up the graph."""
        if self._known is None:
            # To these edges and not to the parameters: the products that make weight gradients are never formed.
            self.gradients([])
        known, self._known = self._known, None
        assert known is not None
        return known

    def gradients(self, parameters: Sequence[Tensor]) -> list[Tensor | None]:
        """dL/dp of each parameter, None where it is not used; the same backward pass gives the adjoints."""
        assert self.value is not None
        wanted = [v for operation in self.operations if operation.rule.bends(operation) for v in operation.outputs]
        if self.missing is not None:
            wanted = []
        found = differentiate(self.value, [*parameters, *(v.edge for v in wanted)])
        adjoints = zip(wanted, found[len(parameters) :], strict=True)
        self._known = {v: a for v, a in adjoints if a is not None}
        return found[: len(parameters)]

    def keep_what_matters(self) -> None:
        """Drop the operations that the result does not depend on: the printed text, a metric, an unused branch."""
        needed, kept = {self.result}, []
        for operation in reversed(self.operations):
            if not needed.isdisjoint(operation.outputs):
                needed.update(operation.inputs)
                kept.append(operation)
        self.operations = kept[::-1]

    def forget_unread(self) -> None:
        """Drop the values of which the rules need no more than the shape; the graph keeps what autograd needs."""
        read = {v for o in self.operations if o.rule.reads_inputs for v in o.inputs}
        read |= {v for o in self.operations if o.rule.reads_outputs for v in o.outputs}
        for v in (v for o in self.operations for v in o.outputs if v not in read):
            v.value = v.value.new_empty(()).expand(v.value.shape)

    def behind_curvature(self) -> set[Variable]:
        """The values that depend on the parameters through curvature: there, adjoints along tangents matter."""
        found: set[Variable] = set()
        for o in self.operations:
            if o.rule.bends(o) or not found.isdisjoint(o.inputs):
                found.update(o.outputs)
        return found

    def last_readers(self) -> dict[Variable, Operation]:
        """The operation after which a variable is read no more."""
        return {v: o for o in self.operations for v in o.inputs}

    def bytes_per_group(self, kept: bool = False) -> int:
        """The memory of one group's first-order tangents where most are alive at once; ``kept``: of all together.

        Counted as if every value depended on the group, with a working copy of the operation at hand.
        """
        last, most = self.last_readers(), 0
        alive: set[Variable] = set()
        for o in self.operations:
            alive.update(o.inputs, o.outputs)
            most = max(most, sum(map(_bytes, alive)) + sum(map(_bytes, o.outputs)))
            alive -= set() if kept else {v for v in o.inputs if last[v] is o}
        return most

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("", "operation", "inputs", "output", "rule", "groups", "multiplications")]
        rows += [(str(i), *_row(operation)) for i, operation in enumerate(self.operations)]
        wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(text.ljust(w) for text, w in zip(row, wide, strict=True)).rstrip() for row in rows]
        state = "complete" if self.missing is None else f"not complete ({self.missing})"
        return "\n".join([f"Tape: {len(self.operations)} operations, {state}", *lines])


def replaced(structure: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """The nested tuples, lists and dictionaries with every entry of a kind changed.

    >>> replaced((1, [2, "a"], {"k": 3}), int, lambda i: i + 1)
    (2, [3, 'a'], {'k': 4})
    """

    def entry(e: Any) -> Any:
        return change(e) if isinstance(e, kind) else replaced(e, kind, change) if type(e) in _CONTAINERS else e

    if type(structure) is dict:
        return {key: entry(e) for key, e in structure.items()}
    return type(structure)([entry(e) for e in structure]) if type(structure) in _CONTAINERS else entry(structure)


_CONTAINERS = {tuple, list, dict}


def _bytes(v: Variable) -> int:
    return v.value.numel() * v.value.element_size()


def _row(o: Operation) -> tuple[str, ...]:
    inputs, outputs = (", ".join(map(str, variables)) for variables in (o.inputs, o.outputs))
    groups = max(len(v.groups) for v in o.outputs)
    return o.name, inputs, outputs, type(o.rule).__name__, str(groups), f"{o.rule.cost(o):,}"
