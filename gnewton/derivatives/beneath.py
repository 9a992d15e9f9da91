"""Recording beneath autograd: what torch's kernels are called with, whoever calls them.

A function mode sees the functions that a loss calls, not what torch calls inside: the backward pass of a
``torch.autograd.grad`` in the loss (forces, PINNs, MAML), the parts of ``vmap`` and of the other transformations of
torch.func. A dispatch mode sees all of that, as each becomes kernel calls on plain tensors in the end. A kernel call is one
node of autograd's graph, so that the values are known by where autograd collects their adjoints, and each step is compared
with the graph as in `recorder.py`. The parts are smaller, and more of them have no closed form: it is the second choice.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gnewton.derivatives.graph import hooks_so_far
from gnewton.derivatives.operation import Operation, Ref, Variable
from gnewton.derivatives.recorder import Recorder, tensors_in
from gnewton.derivatives.rules import rule_for
from gnewton.derivatives.writes import RESHAPING
from gnewton.loss import Loss

_aten = torch.ops.aten
# Kernels that are functions of torch by another name: the function, and how many arguments it takes of theirs.
_AS_FUNCTIONS: dict[Any, tuple[Any, int]] = {
    _aten._softmax.default: (torch.softmax, 2),
    _aten._log_softmax.default: (torch.log_softmax, 2),
    _aten._unsafe_view.default: (torch.reshape, 2),
    _aten.view.default: (torch.reshape, 2),
}


def _as_function(kernel: Any, args: Any) -> tuple[Any, int]:
    """A kernel as the function that has a rule, or that returns what the kernel writes, with its number of arguments."""
    if kernel in (_aten._softmax.default, _aten._log_softmax.default) and args[2]:
        return kernel, len(args)
    if kernel._schema.is_mutable:
        packet = getattr(_aten, _name_of(kernel).removesuffix("_"), None)
        return getattr(packet, kernel._overloadname, kernel), len(args)
    return _AS_FUNCTIONS.get(kernel, (kernel, len(args)))


def _name_of(kernel: Any) -> str:
    return str(kernel.overloadpacket.__name__)


class RecorderBeneath(Recorder):
    """A ``Recorder`` of kernel calls."""

    def __init__(self, partition: Any) -> None:
        self._at: dict[Any, Variable] = {}
        self._lost = False
        self._last: tuple[Operation, Any, set[Any], str | None] | None = None
        super().__init__(partition)

    def wrap(self, loss: Loss) -> Loss:
        def record_once(*batch: Any) -> Tensor:
            if self.tape.result or self.tape.missing:
                return loss(*batch)
            with _Calls(self):
                value = loss(*batch)
            with torch._C.DisableTorchFunction():
                self.settle()
                self._hooked |= hooks_so_far() != self._hooks
                if self._lost and not self.tape.missing:
                    self.tape.missing = "complex numbers are overwritten"
                    return value
                self._finish(value)
            return value

        return record_once

    def see(self, function: Any, args: Any, kwargs: Any) -> Any:
        """Call a kernel, and keep what it was called with until autograd has its node."""
        self.settle()
        tensors = tensors_in((*args, *kwargs.values()))
        # To ask for the node of a real view of complex numbers that were overwritten would not come to an end in here.
        self._lost |= function._schema.is_mutable and any(map(_is_complex, tensors))
        if self._lost:
            return function(*args, **kwargs)
        for t in tensors:
            self._see_sum(t)
        if not torch.is_grad_enabled() or not any(map(self._depends, tensors)):
            return function(*args, **kwargs)
        edges = {id(t) for t in tensors} | {(t.grad_fn, t.output_nr) for t in tensors if self._variable(t)}
        unseen = [t for t in tensors if t.requires_grad and not self._variable(t) and self._strays([t], set())]
        reason = self._reason(unseen[0]) if unseen else None
        target = tensors[0] if function._schema.is_mutable else None
        plain, count = _as_function(function, args)
        if target is not None and (plain is function or (target._is_view() and _name_of(function) not in RESHAPING)):
            reason = reason or f"{function._schema.name} writes into a tensor"
        operation = self._operation(plain, args[:count], kwargs, None)
        if target is not None and _name_of(function) not in RESHAPING:
            self._keep_values(target, operation)
        result = function(*args, **kwargs)
        if torch.Tag.nondeterministic_seeded in function.tags:
            reason = reason or f"{operation.name} draws random numbers"
        self._note_reads([t for t in tensors if t is not target], operation)
        self._last = (operation, result, edges, reason or self._flaw(operation, tensors, None))
        return result

    def settle(self) -> None:
        """Write down the last call: now its results have their place in autograd's graph."""
        if self._last is not None:
            (operation, result, edges, reason), self._last = self._last, None
            self._append(operation, result, edges, reason, None)

    def _see_sum(self, tensor: Tensor) -> None:
        """Write down a sum with zeros, which forward mode makes where a tangent is zero, and calls no kernel for."""
        node = tensor.grad_fn
        if node is None or node.name() != "AddBackward0" or self._variable(tensor) or node._saved_alpha != 1:  # type: ignore[attr-defined]
            return
        terms = [edge for edge in node.next_functions if edge[0] is not None]
        v = self._at.get(terms[0]) if len(terms) == 1 else None
        if v is not None and v.value.shape == tensor.shape:
            operation = Operation("add", torch.add, ((Ref(0), tensor.detach() - v.value), {}), (v,))
            operation.rule = rule_for(operation)
            self._append(operation, tensor, set(terms), None, None)

    def _depends(self, tensor: Tensor) -> bool:
        return self._variable(tensor) is not None or (tensor.requires_grad and self._strays([tensor], set()))

    def _know(self, tensor: Tensor, groups: tuple[int, ...], name: str | None = None) -> Variable:
        variable = super()._know(tensor, groups, name)
        if tensor.grad_fn is not None:
            self._at[tensor.grad_fn, tensor.output_nr] = variable
        return variable

    def _variable(self, tensor: Tensor) -> Variable | None:
        if tensor.grad_fn is None:
            return super()._variable(tensor)
        return self._at.get((tensor.grad_fn, tensor.output_nr))


def _is_complex(tensor: Tensor) -> bool:
    return tensor.is_complex() or (tensor._is_view() and tensor._base is not None and tensor._base.is_complex())


class _Calls(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, recorder: RecorderBeneath) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._recorder = recorder

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunction():
            return self._recorder.see(function, args, kwargs or {})
