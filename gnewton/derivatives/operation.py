"""One operation of a tape, and what a rule must do with it.

Let  y = o(x)  be one operation,  x_s  the tangent of its inputs along u_s  and  lambda = dL/dy  its adjoint. Along the
path  x + e x_s + e^2/2 x2_s  the tangents of the output are

    first order    y_s  = D o [x_s]
    second order   y2_s = D o [x2_s] + D^2 o [x_s, x_s]

and the operation contributes to the summaries

    H-bar_st  +=  lambda . D^2 o [x_s, x_t]
    D3_sss    +=  lambda . ( D^3 o [x_s, x_s, x_s] + 3 D^2 o [x_s, x2_s] ) .

For the full order-3 tensor the list is read backwards once more, with the tangents of the adjoints, lambda^s:

    lambda_x^s  =  D o^T [lambda^s]  +  D^2 o [x_s, .]^T lambda
    D3_rst  +=  lambda . D^3 o [x_r, x_s, x_t]  +  lambda^r . D^2 o [x_s, x_t]  +  the same with lambda^s, lambda^t

(Wigner's 2n + 1 rule: first-order tangents alone give order 3). All inputs are treated as one tuple, so that a group
which reaches an operation through several arguments gets its cross terms.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from gnewton.derivatives.complex_pairs import from_pairs, to_pairs
from gnewton.derivatives.group_tangents import GroupTangents


@dataclass(eq=False)
class Variable:
    """A value on the tape, a parameter or the output of an operation; ``groups`` are those that it depends on.

    Complex numbers are pairs of reals, along a last axis of length 2.
    """

    value: Tensor  # without graph
    groups: tuple[int, ...]
    edge: Any  # where autograd collects its adjoint
    name: str | None = None  # of a parameter
    again: Callable[[], Tensor] | None = None  # makes a value that is not kept; ``value`` then has its shape alone

    def forget(self) -> None:
        """Keep no more of the value than its shape; whoever reads it nevertheless reads NaN."""
        self.value = self.value.new_full((), float("nan")).expand(self.value.shape)

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
    ``others`` are returned tensors without derivative, such as indices. ``pairs`` are the inputs that hold complex numbers
    as pairs of reals; ``is_complex``: such are among the inputs, the constants or the outputs.
    """

    name: str
    function: Callable[..., Any]
    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    inputs: tuple[Variable, ...]
    outputs: tuple[Variable, ...] = ()
    picks: tuple[int, ...] | None = None
    others: tuple[Tensor, ...] = ()
    pairs: tuple[bool, ...] = ()
    is_complex: bool = False
    rule: "Rule" = field(init=False)

    def values_made(self) -> AbstractContextManager[None]:
        """Inside, the values that the rule reads are there, those too that are not kept."""
        if not any(v.again for v in (*self.inputs, *self.outputs)):
            return _NOTHING
        read = (self.inputs if self.rule.reads_inputs else ()) + (self.outputs if self.rule.reads_outputs else ())
        return _made([v for v in dict.fromkeys(read) if v.again is not None])

    def call(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The outputs at other values of the inputs."""
        if any(self.pairs):
            inputs = tuple(from_pairs(x) if pair else x for x, pair in zip(inputs, self.pairs, strict=True))
        args, kwargs = substitute(self.arguments, Ref, lambda ref: inputs[ref.index])
        result = self.function(*args, **kwargs)
        outputs = (result,) if self.picks is None else tuple(result[i] for i in self.picks)
        return tuple(map(to_pairs, outputs)) if self.is_complex else outputs

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

    def value(self, position: int, name: str) -> Any:
        """The value of an argument, whether it is an input or not."""
        entry = self.argument(position, name)
        return self.inputs[entry.index].value if isinstance(entry, Ref) else entry


_NOTHING: AbstractContextManager[None] = nullcontext()


@contextmanager
def _made(variables: Sequence[Variable]) -> Iterator[None]:
    try:
        for v in variables:
            assert v.again is not None
            v.value = v.again()
        yield
    finally:
        for v in variables:
            v.forget()


class Jet(NamedTuple):
    """The tangents of one value, of the first and, where order 3 is wanted, of the second order; None is zero."""

    first: GroupTangents | None = None
    second: GroupTangents | None = None


class Adjoint(NamedTuple):
    """dL/dy of one output and, on the way back, its derivatives along the groups; None is zero."""

    value: Tensor | None = None
    tangents: GroupTangents | None = None


Jets = Sequence[Jet]  # of the inputs
Adjoints = Sequence[Adjoint]  # of the outputs
AdjointTangents = Sequence[GroupTangents | None]  # of the inputs
NeedsAdjoint = Sequence[bool]  # for each input, whether its adjoint tangents are read by an earlier operation


class Accumulator(Protocol):
    """Where rules add what an operation contributes. ``order`` 3 asks for second-order tangents."""

    order: int

    def hessian(self, s: Sequence[int], t: Sequence[int], block: Tensor) -> None:
        """H-bar[s, t] += block (len(s), len(t))."""

    def third(self, s: Sequence[int], values: Tensor) -> None:
        """D3[s, s, s] += values (len(s),)."""

    def full(self, r: Sequence[int], s: Sequence[int], t: Sequence[int], block: Tensor) -> None:
        """D3[r, s, t], D3[s, r, t] and D3[s, t, r] += block.

        Args:
            r, s, t: indices of groups.
            block: (len(r), len(s), len(t)).
        """


class Rule:
    """The derivatives of one kind of operation: ``forward`` and ``backward`` are to be written.

    In the equations above, for input i: x_s is ``jets[i].first``, x2_s ``jets[i].second``; for output k: lambda is
    ``adjoints[k].value``, lambda^s ``adjoints[k].tangents``. x itself is ``o.inputs[i].value``. Each is None where it is
    zero; x_s, x2_s and lambda^s are ``GroupTangents``, with one row for each group s. ``rules/__init__.py`` says where a
    rule goes and what tests it.

    ``curved``: D^2 o is not zero. A function that has a rule draws no random numbers.
    ``reads_inputs``, ``reads_outputs``: needs the values of the operation's inputs and outputs, not their shapes alone.
    """

    curved = True
    reads_inputs = True
    reads_outputs = False

    def applies(self, o: Operation) -> bool:
        """Whether the rule is made for these arguments. Asked before the operation runs, and again with its outputs."""
        return all(v.value.dtype == o.inputs[0].value.dtype for v in o.inputs)

    def forward(self, o: Operation, jets: Jets, adjoints: Adjoints, sums: Accumulator) -> list[Jet]:
        """The jets of the outputs; adds to H-bar and to the diagonal of D3.

        Args:
            o: the operation, with the values of its inputs and outputs.
            jets: the tangents of each input; at least one has some.
            adjoints: the adjoint of each output, without tangents.
            sums: takes the contributions; ``sums.order`` 3 asks for second-order tangents as well.
        """
        raise NotImplementedError

    def backward(
        self, o: Operation, jets: Jets, adjoints: Adjoints, needs: NeedsAdjoint, sums: Accumulator
    ) -> AdjointTangents:
        """lambda_x^s, the adjoint tangents of each input; adds to the full D3.

        Args:
            o: the operation.
            jets: the first-order tangents of each input.
            adjoints: the adjoint of each output, with its tangents lambda^s.
            needs: for each input, whether its adjoint tangents are read; where not, None will do.
            sums: takes the contributions.
        """
        raise NotImplementedError

    def has_curvature(self, o: Operation) -> bool:
        """Whether D^2 o is not zero in the inputs that are variables."""
        return self.curved

    def cost(self, o: Operation) -> int:
        """Multiplications for the first-order tangents and the share of H-bar, in the closed form or as if it were."""
        return sum(v.value.numel() * len(v.groups) for v in o.outputs) * (2 if self.curved else 1)


def adjoint_values(o: Operation, adjoints: Adjoints) -> tuple[Tensor, ...]:
    """The adjoints of all outputs, zeros where the loss does not depend on one."""
    pairs = zip(adjoints, o.outputs, strict=True)
    return tuple(torch.zeros_like(v.value) if a.value is None else a.value for a, v in pairs)


_RULES: dict[str, list[Rule]] = {}


def register(functions: str, rule: Rule) -> None:
    """Let a rule serve torch functions, named as in torch and separated by spaces, wherever it applies."""
    for name in functions.split():
        _RULES.setdefault(name, []).append(rule)


def registered_rules(name: str) -> list[Rule]:
    """The rules that serve a torch function, each for some arguments."""
    return _RULES.get(name, [])


def matching_rules(o: Operation) -> list[Rule]:
    """The registered rules that apply to an operation: one, or none."""
    return [rule for rule in registered_rules(o.name) if rule.applies(o)]


def substitute(structure: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """The nested tuples, lists and dictionaries with every entry of a kind changed.

    >>> substitute((1, [2, "a"], {"k": 3}), int, lambda i: i + 1)
    (2, [3, 'a'], {'k': 4})
    """

    if isinstance(structure, kind):
        return change(structure)
    container = type(structure)
    if container is tuple or container is list:
        return container([substitute(e, kind, change) for e in structure])
    if isinstance(structure, dict):
        return {key: substitute(e, kind, change) for key, e in structure.items()}
    if isinstance(structure, tuple | list) and container is not torch.Size:
        # Of another kind, such as a named tuple, torch's functions read the entries alone.
        return (tuple if isinstance(structure, tuple) else list)([substitute(e, kind, change) for e in structure])
    return structure
