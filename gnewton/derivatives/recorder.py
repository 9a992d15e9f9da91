"""The recorder: every torch function that a loss calls, written down as an operation and compared with autograd's graph."""

from collections.abc import Container, Iterable
from contextlib import nullcontext
from functools import cache, partial
from types import FunctionType
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from gnewton.caller import line_of_caller
from gnewton.derivatives.complex_pairs import to_pairs
from gnewton.derivatives.graph import functions_with_hooks, hooks_so_far, nodes
from gnewton.derivatives.operation import Operation, Ref, Variable, registered_rules, substitute
from gnewton.derivatives.rules import rule_for
from gnewton.derivatives.tape import Tape
from gnewton.derivatives.writes import RESHAPING, assign, base_of, positions_in, replacement, replaces, storage
from gnewton.elementary import COMPOSITE, Elementary
from gnewton.loss import Loss
from gnewton.partition import Partition
from gnewton.sharded import Recipe, written_into
from gnewton.undo import RandomState, version


class Recorder(Elementary):
    def __init__(self, partition: Partition) -> None:
        super().__init__()
        self._partition, self._weights = partition, partition.weights
        # Each with its tensor, whose id must not be given to another while the recording lasts. Weights of a sharded model, and
        # what looks into them, are not kept alive: with the tensor its entry goes.
        self._known: dict[int, tuple[Tensor | ref[Tensor], Any, Variable]] = {}
        self._reasons: dict[int, tuple[Tensor, str]] = {}
        self._read: list[tuple[Tensor, int, Operation]] = []
        # Which variables keep their values in which memory, and which of these values some rule will read.
        self._kept: dict[int, list[Variable]] = {}
        self._needed: set[Variable] = set()
        self._hooked = any(p._backward_hooks for p in partition.parameters.values())
        self._hooks = hooks_so_far()
        self._device = partition.device.type
        self._autocasts = torch.amp.is_autocast_available(self._device)
        for name, p in partition.parameters.items():
            if p.requires_grad:
                self._know(p, partition.groups_in(name), name)
        self._ours = set(self._known)
        self.tape = Tape(tuple(v for _, _, v in self._known.values()))

    def wrap(self, loss: Loss) -> Loss:
        def record_once(*batch: Any) -> Tensor:
            if self.tape.result or self.tape.missing:
                return loss(*batch)
            with self, nullcontext() if self._weights is None else self._weights.telling(self._know_weight):
                value = loss(*batch)
            with torch._C.DisableTorchFunction():
                self._finish(value)
            return value

        return record_once

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._hooked |= function is Tensor.register_hook
        return super().__torch_function__(function, types, args, kwargs)

    # -- one operation -------------------------------------------------------------------------------------------

    def run(self, function: Any, args: Any, kwargs: Any) -> Any:
        """Call the function, and write it down if it is a step from the parameters to the loss."""
        if function in QUESTIONS:
            return function(*args, **kwargs)
        if kwargs.get("out", ()) is None:
            kwargs = {name: value for name, value in kwargs.items() if name != "out"}
        tensors = tensors_in((*args, *kwargs.values()))
        if not any(map(self._may_be_known, tensors)) or not torch.is_grad_enabled():
            result = function(*args, **kwargs)
            if torch.is_grad_enabled():
                self._propagate_unseen(tensors, result)
            return result
        if _is_operation(function):
            with torch._C.DisableTorchFunction():
                if all(map(_is_plain, tensors)):
                    return self._perform(function, args, kwargs, tensors)
        result = function(*args, **kwargs)
        self._mark_unseen(result, f"{_name(function)} is not an operation on plain tensors")
        return result

    def _perform(self, function: Any, args: Any, kwargs: Any, tensors: list[Tensor]) -> Any:
        for t in tensors:
            self._look_again(t)
        target = tensors[0] if _writes(function, kwargs) else None
        if target is not None and (recipe := self._recipe(target)):
            raise ValueError(written_into(recipe.name))
        if target is not None and (replaces(_name(function)) or target._is_view()):
            return self._write(function, args, kwargs, target)
        return self._step(function, args, kwargs, target)

    def _write(self, function: Any, args: Any, kwargs: Any, target: Tensor) -> Any:
        """Write into a view, or replace entries: new values, if any are to be computed, and their assignment."""
        name, base = _name(function), base_of(target)
        pure = _pure(name, kwargs)
        if name in RESHAPING or base.dtype != target.dtype or (pure is None and not replaces(name)):
            result = function(*args, **kwargs)
            self._mark_unseen((result, target, base), f"{name} writes into a tensor")
            return result
        positions = positions_in(base, target)
        if replaces(name):
            positions, new = replacement(name, args, kwargs, positions)
            write = partial(function, *args, **kwargs)
        else:
            # Autograd may want the old values, which are about to be overwritten.
            old = self._step(torch.clone, (target,), {}, None) if self._variable(target) else target.clone()
            args, kwargs = substitute((args, kwargs), Tensor, lambda t: old if t is target else t)
            new = self._step(pure, args, kwargs, None)
            write = partial(target.copy_, new)
        self._step(assign, (base, positions, new), {}, base, lambda *_: (write(), base)[1])
        return None if name == "__setitem__" else target

    def _look_again(self, view: Tensor) -> None:
        """Write down that a view of what was overwritten is read anew."""
        base = base_of(view)
        if base is not view and self._variable(view) is None and self._variable(base) and base.dtype == view.dtype:
            self._step(torch.take, (base, positions_in(base, view)), {}, None, lambda *_: view)

    def _step(self, function: Any, args: Any, kwargs: Any, target: Tensor | None, run: Any = None) -> Any:
        """Run one operation, by ``run`` where it is not the function itself, and write it down."""
        tensors = tensors_in((*args, *kwargs.values()))
        operation = self._operation(function, args, kwargs, target)
        # Where walks through autograd's graph stop: a parameter by its id, a value by its node and output number.
        taken = set(operation.inputs)
        edges: set[Any] = {id(t) for t in tensors if self._variable(t) in taken}
        edges.update((v.edge.node, v.edge.output_nr) for v in operation.inputs if v.edge)
        self._note_reads([t for t in tensors if t is not target], operation)
        # An argument that was not recorded must not depend on a parameter, not even through a recorded value.
        unseen = [t for t in tensors if t.requires_grad and not self._variable(t) and self._strays([t], set())]
        reason = self._reason(unseen[0]) if unseen else self._flaw(operation, tensors, target)
        if self._autocasts and torch.is_autocast_enabled(self._device):
            # What is cast inside the function cannot be seen from here.
            reason = reason or f"{operation.name} casts under autocast"
        # A function that has a rule draws no random numbers.
        state = None if registered_rules(operation.name) else RandomState(self._partition)
        if target is not None:
            self._keep_values(target, operation)
        result = (run or function)(*args, **kwargs)
        if state is not None and RandomState(self._partition) != state:
            reason = f"{operation.name} draws random numbers"
        self._append(operation, result, edges, reason, target)
        return result

    def _note_reads(self, tensors: Iterable[Tensor], operation: Operation) -> None:
        if self._weights is not None:
            tensors = [t for t in tensors if not self._recipe(t)]
        self._read += [(t, version(t), operation) for t in tensors]

    def _operation(self, function: Any, args: Any, kwargs: Any, target: Tensor | None) -> Operation:
        inputs: list[Variable] = []
        pairs: list[bool] = []
        constants: list[bool] = []  # which of them are complex

        def slot(tensor: Tensor) -> Any:
            variable = self._variable(tensor)
            if variable is None:
                constants.append(tensor.is_complex())
                # What the operation is going to overwrite is kept as it was.
                return tensor.detach().clone() if tensor is target else tensor.detach()
            if variable.value.data_ptr() != tensor.data_ptr():
                self._keep_in(variable, tensor)
            inputs.append(variable)
            pairs.append(tensor.is_complex())
            return Ref(len(inputs) - 1)

        arguments = substitute((args, kwargs), Tensor, slot)
        pure = function if target is None or function is assign else _pure(_name(function), kwargs)
        # In-place functions have the rules of those that return what they write.
        name = _name(function) if target is None or pure is None else _name(pure)
        is_complex = any(pairs) or any(constants)
        return Operation(name, pure, arguments, tuple(inputs), pairs=tuple(pairs), is_complex=is_complex)

    def _keep_in(self, variable: Variable, tensor: Tensor) -> None:
        variable.value = to_pairs(tensor.detach())
        recipe = self._recipe(variable.value)
        if recipe is not None and self._weights is not None:
            variable.again = partial(self._weights.follow, recipe)
            variable.forget()
        else:
            self._kept.setdefault(storage(tensor), []).append(variable)

    def _recipe(self, tensor: Tensor) -> Recipe | None:
        """How to make a tensor again that looks into a weight of a sharded model."""
        return None if self._weights is None else self._weights.recipe(tensor)

    def _keep_values(self, target: Tensor, operation: Operation) -> None:
        """Before an operation writes: the values that the tape has in this memory move elsewhere, if any rule may read them."""
        memory = storage(target)
        self._needed.update(operation.inputs if rule_for(operation).reads_inputs else ())
        for v in self._kept.pop(memory, ()):
            if storage(v.value) == memory:
                v.value = v.value.clone() if v in self._needed else v.value.new_empty(()).expand(v.value.shape)
        overwritten = [o for t, _, o in self._read if storage(t) == memory]
        for o in dict.fromkeys(overwritten):
            o.arguments = substitute(o.arguments, Tensor, lambda t: t.clone() if storage(t) == memory else t)
        self._read = [entry for entry in self._read if storage(entry[0]) != memory]

    def _flaw(self, operation: Operation, tensors: list[Tensor], target: Tensor | None) -> str | None:
        """What of the operation, before it runs, the tape could not repeat."""
        if target is not None and (
            operation.function is None
            or any(t.dtype != target.dtype for t in tensors if t.is_floating_point() and not target.is_complex())
        ):
            return f"{operation.name} writes into a tensor"
        given = (*operation.arguments[0], *operation.arguments[1].values())
        # torch asks its compiler at each isinstance of a Generator; a function that has a rule takes none.
        if not registered_rules(operation.name) and any(isinstance(one, torch.Generator) for one in given):
            return f"{operation.name} draws random numbers from a generator"
        if operation.name == "embedding" and operation.argument(3, "scale_grad_by_freq", False):
            return "embedding scales its gradient by frequency"
        if operation.name == "as_strided" and not (tensors[0].is_contiguous() and tensors[0].storage_offset() == 0):
            # Which entries it reads is a matter of the memory, which tangents lay out otherwise.
            return "as_strided looks into the memory of a view"
        if operation.name in _OF_CONSTANT_RANK:
            return f"{operation.name} has derivatives only where the rank of its argument stays as it is"
        return None

    def _append(
        self, operation: Operation, result: Any, edges: set[Any], reason: str | None, target: Tensor | None
    ) -> None:
        many = isinstance(result, tuple | list)
        outputs = {i: t for i, t in enumerate(result if many else [result]) if self._is_new(t)}
        reason = reason or self._gap(operation.name, list(outputs.values()), edges)
        if any(t.layout != torch.strided for t in outputs.values()):
            reason = f"{operation.name} makes a tensor that is not dense"
        if reason is not None:
            self._mark_unseen((result, target), reason)
        elif outputs:
            groups = tuple(dict.fromkeys(g for v in operation.inputs for g in v.groups))
            operation.picks = tuple(outputs) if many else None
            operation.others = tuple(t for t in tensors_in(result) if not t.requires_grad)
            operation.outputs = tuple(self._know(t, groups) for t in outputs.values())
            operation.is_complex |= any(t.is_complex() for t in outputs.values())
            operation.rule = rule_for(operation)
            self._needed.update(operation.inputs if operation.rule.reads_inputs else ())
            if operation.rule.reads_outputs:
                # What is written into them behind the record would be read in their place: `_finish` sees it.
                self._needed.update(operation.outputs)
                self._read += [(t, t._version, operation) for t in outputs.values()]
            self.tape.operations.append(operation)

    def _gap(self, name: str, outputs: list[Tensor], edges: set[Any]) -> str | None:
        """What autograd knows of the outputs and the record does not."""
        if self._strays(outputs, edges):
            return f"{name} depends on parameters that it was not given"
        inner = {t.grad_fn for t in outputs}
        if len(inner) > 1 and self._strays(outputs, edges, inner):
            return f"{name} has outputs of which one depends on another"
        return None

    def _strays(self, outputs: Iterable[Tensor], edges: set[Any], towards: Container[Any] = ()) -> bool:
        """Whether autograd has a path from an output, past the edges, to a parameter of ours (or ``towards`` a node)."""
        todo = [t.grad_fn for t in outputs if t.grad_fn is not None]
        seen = set(todo)
        while todo:
            for child, number in todo.pop().next_functions:
                if child is None or (child, number) in edges:
                    continue
                leaf = id(getattr(child, "variable", None))
                if (leaf in self._ours and leaf not in edges) or child in towards:
                    return True
                if child not in seen:
                    seen.add(child)
                    todo.append(child)
        return False

    # -- what is known ---------------------------------------------------------------------------------------------

    def _know(self, tensor: Tensor, groups: tuple[int, ...], name: str | None = None) -> Variable:
        edge = None if tensor.grad_fn is None else GradientEdge(tensor.grad_fn, tensor.output_nr)
        variable, key = Variable(tensor, groups, edge, name), id(tensor)
        self._keep_in(variable, tensor)
        held = tensor if variable.again is None else ref(tensor, lambda _: self._known.pop(key, None))
        self._known[key] = (held, tensor.grad_fn, variable)
        return variable

    def _know_weight(self, weight: Tensor, name: str) -> None:
        # A frozen one is a value that depends on no group: as such it is not kept, which a constant would be.
        frozen = not weight.requires_grad
        self._know(weight, () if frozen else self._partition.groups_in(name), None if frozen else name)

    def _may_be_known(self, tensor: Tensor) -> bool:
        return id(tensor) in self._known or (tensor.requires_grad and id(tensor._base) in self._known)

    def _variable(self, tensor: Tensor) -> Variable | None:
        entry = self._known.get(id(tensor))
        # Writing through a view gives a tensor another history: it is no longer the value that was recorded.
        return entry[2] if entry and tensor.grad_fn is entry[1] else None

    def _is_new(self, result: Any) -> bool:
        return isinstance(result, Tensor) and result.requires_grad and self._variable(result) is None

    def _mark_unseen(self, result: Any, reason: str) -> None:
        # What an operation inherits was noticed where it began.
        reason = reason if _NOTICED in reason else f"{reason}{_NOTICED}{line_of_caller()}"
        for t in tensors_in(result):
            self._reasons.setdefault(id(t), (t, reason))

    def _propagate_unseen(self, tensors: list[Tensor], result: Any) -> None:
        unseen = [t for t in tensors if id(t) in self._reasons or t.grad_fn is not None]
        if unseen:
            self._mark_unseen(result, self._reason(unseen[0]))

    def _reason(self, tensor: Tensor) -> str:
        known = self._reasons.get(id(tensor))
        return known[1] if known else f"{tensor.grad_fn.name() if tensor.grad_fn else 'a parameter'} was not seen"

    def _finish(self, value: Any) -> None:
        if not isinstance(value, Tensor):
            return
        self.tape.result = self._variable(value)
        if self.tape.result is None:
            self.tape.missing = self._reason(value)
            return
        self.tape.prune()
        needed = set(self.tape.operations)
        changed = [o.name for t, old, o in self._read if o in needed and version(t) != old]
        if changed:
            self.tape.missing = f"what {changed[0]} read or returned was overwritten later"
        if self._hooked or (hooks_so_far() != self._hooks and functions_with_hooks(nodes(value))):
            self.tape.missing = HOOKED
        for memory in (self._known, self._reasons, self._read, self._kept, self._needed):
            memory.clear()


_NOTICED = ", noticed at "
# What is asked of a tensor's kind and shape: its answer is no tensor, and depends on no parameter's value.
QUESTIONS = frozenset(
    [
        *(Tensor.dim, Tensor.size, Tensor.stride, Tensor.numel, Tensor.nelement, Tensor.is_contiguous),
        *(kind for home in (torch, Tensor) for kind in (home.is_floating_point, home.is_complex)),
        *(
            getattr(Tensor, name).__get__
            for name in ("shape", "ndim", "dtype", "device", "layout", "requires_grad", "is_leaf")
        ),
    ]
)
HOOKED = "a hook may change gradients"
# Their second derivative, taken alone, depends on directions that the parameters never move the argument in.
_OF_CONSTANT_RANK = {"linalg_pinv", "pinverse", "linalg_lstsq"}


@cache
def _is_operation(function: Any) -> bool:
    return (
        not isinstance(function, FunctionType)
        or function.__module__ in COMPOSITE
        or getattr(function, "one_operation", False)
    )


@cache
def _name(function: Any) -> str:
    if isinstance(function, torch._ops.OpOverload):
        function = function.overloadpacket
    name = str(getattr(function, "__name__", function))
    if isinstance(function, torch._ops.OpOverloadPacket) and not function._qualified_op_name.startswith("aten::"):
        # Another library may call its operator like one of torch's, whose rule is none for it.
        return function._qualified_op_name.replace("::", ".")
    # A property, such as Tensor.T, is called by its getter.
    return str(getattr(function.__self__, "__name__", name)) if name == "__get__" else name


def _writes(function: Any, kwargs: Any) -> bool:
    """Whether the function writes into its first tensor: add_, __iadd__, __setitem__, out=."""
    return "out" in kwargs or _writes_by_name(_name(function))


@cache
def _writes_by_name(name: str) -> bool:
    dunder = name.startswith("__")
    return name == "__setitem__" or (name.startswith("__i") if dunder else name.endswith("_"))


def _pure(name: str, kwargs: Any) -> Any:
    """The function that returns what the in-place one writes: add for add_; None where torch has none."""
    if "out" in kwargs:
        return None
    pure = name.replace("__i", "__", 1) if name.startswith("__i") else name.removesuffix("_")
    homes = (Tensor, torch, torch._C._nn)
    return next((getattr(home, pure) for home in homes if pure != name and hasattr(home, pure)), None)


def _is_plain(tensor: Tensor) -> bool:
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.layout == torch.strided
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    )


def tensors_in(structure: Any) -> list[Tensor]:
    if isinstance(structure, Tensor):
        return [structure]
    tensors = []
    if isinstance(structure, tuple | list):
        for entry in structure:
            if isinstance(entry, Tensor):
                tensors.append(entry)
            elif isinstance(entry, tuple | list | dict):
                tensors += tensors_in(entry)
    elif isinstance(structure, dict):
        tensors = tensors_in(tuple(structure.values()))
    return tensors
