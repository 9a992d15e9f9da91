"""Custom autograd functions, opened: the forward pass runs as plain operations, and torch differentiates those.

The backward pass of a ``torch.autograd.Function`` is a first derivative. Often nothing can be said of the next ones: it may be written
in NumPy, or keep an intermediate on ctx. The forward pass mostly is a sequence of torch's operations, whose derivatives are right to
every order. In ``functions_opened`` it runs with gradients on. What it stops by ``detach``, ``data`` and ``no_grad`` goes on:
torch records nothing inside a forward pass, so that there they only say what is so anyway.

This is legal where the backward pass is the derivative of the forward pass, which a straight-through estimator's is not. Both
gradients of the loss, with the functions open and as they are, must agree: where the parameters stand, and at two points
nearby, since a share of a second derivative can vanish from a gradient at one point and does not at the next. Two gradients of one
function agree to rounding, without the error of a difference quotient.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from torch.autograd.function import Function, FunctionCtx, _SingleLevelFunction
from torch.overrides import TorchFunctionMode

from gnewton.derivatives import graph, proof
from gnewton.derivatives.differences import Gradients
from gnewton.derivatives.operation import substitute
from gnewton.derivatives.record import record_in_mode
from gnewton.derivatives.tape import Tape
from gnewton.forgotten import with_forgotten
from gnewton.loss import Loss
from gnewton.partition import Partition
from gnewton.undo import Start

_here = threading.local()
_lock = threading.Lock()
_users = 0
# Whose functions have backward passes that are not the derivatives of their forward passes, or that cannot be opened.
_CLOSED: WeakSet[Partition] = WeakSet()


@contextmanager
def functions_opened() -> Iterator[None]:
    """Inside, in this thread, ``apply`` of a custom function runs its forward pass with gradients on.

    >>> class Cube(torch.autograd.Function):
    ...     @staticmethod
    ...     def forward(ctx, x):
    ...         return x.detach() ** 3
    >>> x = torch.tensor(2.0, requires_grad=True)
    >>> with functions_opened():
    ...     print(torch.autograd.grad(Cube.apply(x), x))
    (tensor(12.),)
    """
    before = getattr(_here, "active", False)
    _install(1)
    _here.active = True
    try:
        yield
    finally:
        _here.active = before
        _install(-1)


# ``Function.apply`` in Python looks torch's own up behind it, where also an ``apply`` that was bound before comes by. From torch
# 2.14 on it is torch's own, whose place is taken; what was bound before stays closed.
_TORCHS = vars(Function)["apply"]
_PLACE: Any = _SingleLevelFunction if isinstance(_TORCHS, classmethod) else Function


def _install(more: int) -> None:
    """Take or give back the place of ``apply``."""
    global _users
    with _lock:
        _users += more
        if _users:
            _PLACE.apply = classmethod(_apply)
        elif _PLACE is Function:
            Function.apply = _TORCHS  # type: ignore[method-assign]
        else:
            del _PLACE.apply


def _apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
    needs = tuple(isinstance(a, Tensor) and a.requires_grad for a in args)
    if not (getattr(_here, "active", False) and torch.is_grad_enabled() and any(needs)):
        return super(_SingleLevelFunction, cls).apply(*args, **kwargs)
    ctx: Any = FunctionCtx()
    ctx.needs_input_grad = needs
    unstopped = _Unstopped()
    with unstopped:
        if cls.setup_context is not _SingleLevelFunction.setup_context:
            result = cls.forward(*args, **kwargs)
            cls.setup_context(ctx, args, result)
        else:
            result = cls.forward(ctx, *args, **kwargs)
    stopped = {id(t) for t in getattr(ctx, "non_differentiable", ())}
    return substitute(result, Tensor, lambda t: t.detach() if id(t) in stopped else unstopped.instead_of(t))


class _Unstopped(TorchFunctionMode):
    """What stops a gradient does not. What may be written into behind autograd's back, ``x.data``, is a copy that takes x's place."""

    def __init__(self) -> None:
        super().__init__()
        self._copies: dict[int, tuple[Tensor, Tensor]] = {}

    def instead_of(self, tensor: Tensor) -> Tensor:
        """The copy that took its place, or itself."""
        return self._copies.get(id(tensor), (tensor, tensor))[1]

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch._C._set_grad_enabled:
            return None
        if function == _DATA:
            return self._copies.setdefault(id(args[0]), (args[0], args[0].clone()))[1]
        return args[0].view_as(args[0]) if function in _STOPS else function(*args, **with_forgotten(function, kwargs))


_DATA = Tensor.data.__get__  # type: ignore[attr-defined]
_STOPS = {torch.detach, Tensor.detach, Tensor.detach_}


def record_opened(loss: Loss, partition: Partition, batch: Sequence[Any], before: Start, closed: Tensor) -> Tape | None:
    """The tape of a loss with its custom functions open; None where there are none, or where it is not proven to be the same loss.

    Args:
        loss, partition, batch: as in ``record_in_mode``.
        before: what an evaluation begins with.
        closed: the value of the loss as it is, with its graph.
    """
    if not _can_open(closed, partition):
        return None
    try:
        tape = _record_if_same(loss, partition, batch, before, closed)
    except Exception:
        # Whatever it is, it says nothing of the loss as it is, which is asked next.
        tape = None
    if tape is None:
        _CLOSED.add(partition)
    return tape


def _can_open(value: Tensor, partition: Partition) -> bool:
    """Whether the foreign nodes of a loss are custom functions in Python, which were not opened in vain before."""
    foreign = [node for node in graph.nodes(value) if graph.is_foreign(node)]
    alone = partition.ranks.size == 1 and partition.weights is None
    return alone and partition not in _CLOSED and bool(foreign) and all(map(graph.is_python, foreign))


def _record_if_same(
    loss: Loss, partition: Partition, batch: Sequence[Any], before: Start, closed: Tensor
) -> Tape | None:
    with before.replay():
        gradients = Gradients(loss, partition, batch)
        if not all(_agree_at(gradients, step) for step in _steps(partition)):
            return None
    with before.replay(), functions_opened():
        tape = record_in_mode(loss, partition, batch)
    whole = tape.missing is None and tape.value is not None and not graph.unproven(graph.nodes(tape.value))
    return tape if whole and _is_near(tape.value, closed, partition, 0.0) else None


def _agree_at(gradients: Gradients, step: Mapping[str, Tensor]) -> bool:
    """Whether at theta + step no parameter's two gradients differ by more than rounding."""
    plain = gradients.at(step)
    with functions_opened():
        opened = gradients.at(step)
    partition = gradients.partition
    length = sum(float(g.double().square().sum()) for g in plain.values()) ** 0.5
    floor = 100 * _rounding(partition) * length
    zero = {name: torch.zeros_like(p, requires_grad=False) for name, p in partition.parameters.items()}
    both = [(plain.get(name, zero[name]), opened.get(name, zero[name])) for name in {*plain, *opened}]
    return all(_is_near(a, b, partition, floor) for a, b in both)


def _is_near(a: Any, b: Any, partition: Partition, floor: float) -> bool:
    # A share of the second derivative, relative to it, shows in the gradient nearby as that share times the distance.
    allowed = proof.tolerance(partition) * _distance(partition)
    a, b = a.detach().double(), b.detach().double()
    return a.is_meta or float((a - b).norm()) <= allowed * max(float(a.norm()), float(b.norm())) + floor


def _steps(partition: Partition) -> Iterator[dict[str, Tensor]]:
    """None, and two to points nearby, in irregular directions."""
    yield {}
    parameters = {name: p.detach() for name, p in partition.parameters.items() if p.requires_grad and p.numel()}
    largest = max(float(p.abs().amax()) for p in parameters.values()) or 1.0
    for length, frequency in ((_distance(partition), 2.3), (-_distance(partition), 1.7)):
        step = {}
        for i, (name, p) in enumerate(parameters.items()):
            wave = torch.arange(p.numel(), device=p.device, dtype=torch.float32).add(i + 1).mul(frequency).cos()
            # What is little beside a parameter of zeros the others tell.
            size = p.abs().mean().clamp(min=0.1 * largest)
            step[name] = (length * size * wave.reshape(p.shape)).to(p.dtype)
        yield step


def _distance(partition: Partition) -> float:
    """How far the points nearby are, relative to the parameters: 1 % in float64, 14 % in float32."""
    return float(_rounding(partition) ** 0.125)


def _rounding(partition: Partition) -> float:
    return max(float(torch.finfo(p.dtype).eps) for p in partition.parameters.values())
