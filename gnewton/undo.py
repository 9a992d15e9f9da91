"""What a step may change, kept so that it can be put back: parameters, buffers, random numbers."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn

from gnewton.partition import Partition
from gnewton.sharded import local_part


class Restorable(Protocol):
    """Anything that can go back to what it was."""

    def restore(self) -> None:
        """Put everything back."""


class undone_on_error:  # a function to whoever reads it, and a third of a generator's time
    """Where an error leaves the block, put back what is held, and let the error pass."""

    def __init__(self, *held: Restorable) -> None:
        self._held = held

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            for one in self._held:
                one.restore()


@contextmanager
def restored(partition: Partition) -> Iterator["Parameters"]:
    """Inside, the partition's parameters may be written to; afterwards they are what they were.

    >>> import gnewton as gn
    >>> model = gn.models.Rosenbrock(2)
    >>> with torch.no_grad(), restored(gn.Partition.single(model)):
    ...     _ = model.theta.zero_()
    >>> model.theta.any()
    tensor(True)
    """
    start = Parameters(partition)
    try:
        yield start
    finally:
        start.restore()


class Parameters:
    """The values of a partition's parameters as they are now, to be put back or to start from."""

    @torch.no_grad()
    def __init__(self, partition: Partition) -> None:
        self._held = partition.parameters
        self.values = {name: p.clone() for name, p in self._held.items()}

    @torch.no_grad()
    def place(self, values: dict[str, Tensor]) -> None:
        """Go to these values."""
        here = [local_part(p) for p in self._held.values()]
        torch._foreach_copy_(here, [local_part(values[name]) for name in self._held])

    def restore(self) -> None:
        """Put the values back."""
        self.place(self.values)

    @torch.no_grad()
    def move(self, change: dict[str, Tensor]) -> None:
        """Go to the values minus ``change``, wherever the parameters are now."""
        for name, step in change.items():
            self._held[name].copy_(self.values[name] - step)


class Buffers:
    """The buffers of a module (batch norm's running statistics) as they are now, to be put back."""

    def __init__(self, module: nn.Module | None) -> None:
        self._hold(modules_in(module))

    def _hold(self, owners: Iterable[nn.Module]) -> None:
        self._held = {m: dict(m._buffers) for m in owners}
        self._saved = [
            (b, b.detach().clone(), version(b)) for m in self._held for b in m._buffers.values() if b is not None
        ]

    def now(self) -> "Buffers":
        """The buffers of the same modules as they are now; a module that was made since has no part in it."""
        later = object.__new__(Buffers)
        later._hold(self._held)
        return later

    def restore(self) -> None:
        """Put back every buffer, also where the module replaced the tensor or made a new one."""
        for module, buffers in self._held.items():
            if not (buffers or module._buffers) or isinstance(module, torch.jit.ScriptModule):
                continue
            if not _are_same(module._buffers, buffers):
                module._buffers.clear()
                module._buffers.update(buffers)
        with torch.no_grad() if self._saved else nullcontext():
            for buffer, saved, before in self._saved:
                if buffer.is_inference():
                    continue
                # Writing counts as a change, which would break graphs that the caller still holds; the kernel of batch norm
                # writes without counting, and so does its restoration.
                uncounted = version(buffer) == before
                with torch.autograd._unsafe_preserve_version_counter(buffer) if uncounted else nullcontext():
                    buffer.copy_(saved)


class RandomState:
    """The random state of the CPU and of the partition's device, to be compared and replay."""

    def __init__(self, partition: Partition) -> None:
        device = partition.device
        self._generator = torch.get_device_module(device) if device.type in ("cuda", "mps", "xpu") else None
        self._which = () if device.type == "mps" else (device,)
        self._states = self._read()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RandomState) and all(map(torch.equal, self._states, other._states))

    __hash__ = None  # type: ignore[assignment]

    @contextmanager
    def replay(self) -> Iterator[None]:
        """Inside, random numbers come as they came after this state was read; afterwards nothing was drawn."""
        now = self.now()
        self.restore()
        try:
            yield
        finally:
            now.restore()

    def now(self) -> "RandomState":
        """The state of the same generators as it is now."""
        later = object.__new__(RandomState)
        later._generator, later._which = self._generator, self._which
        later._states = later._read()
        return later

    def restore(self) -> None:
        """Go back to this state."""
        torch.set_rng_state(self._states[0])
        if self._generator:
            self._generator.set_rng_state(self._states[1], *self._which)

    def _read(self) -> list[Tensor]:
        return [torch.get_rng_state()] + ([self._generator.get_rng_state(*self._which)] if self._generator else [])


class Start:
    """The random numbers and buffers that an evaluation of the loss begins with, so that another one is of the same function."""

    def __init__(self, partition: Partition) -> None:
        self.random, self.buffers = RandomState(partition), Buffers(partition.module)

    def restore(self) -> None:
        """Go back to them."""
        self.buffers.restore()
        self.random.restore()

    @contextmanager
    def replay(self) -> Iterator[None]:
        """Inside, an evaluation begins like the one that came after this was read; afterwards nothing was drawn or written."""
        now = self._now()
        self.restore()
        try:
            yield
        finally:
            now.restore()

    def _now(self) -> "Start":
        later = object.__new__(Start)
        later.random, later.buffers = self.random.now(), self.buffers.now()
        return later


def modules_in(module: nn.Module | None) -> list[nn.Module]:
    """The module and all inside it, each once, in a fifth of the time that ``Module.modules`` takes, which names them.

    >>> [type(m).__name__ for m in modules_in(nn.Sequential(nn.Tanh()))]
    ['Sequential', 'Tanh']
    """
    met: dict[nn.Module, None] = {}
    todo = [module]
    while todo:
        one = todo.pop()
        if one is not None and one not in met:
            met[one] = None
            todo += one._modules.values()
    return list(met)


def _are_same(some: Mapping[str, Tensor | None], others: Mapping[str, Tensor | None]) -> bool:
    # To compare their values would ask a tensor whether it is true.
    return some.keys() == others.keys() and all(some[name] is others[name] for name in others)


def version(tensor: Tensor) -> int:
    """How often the tensor was written to.

    >>> version(torch.zeros(2).add_(1))
    1
    """
    # Inference tensors count no changes, and cannot be written to outside inference mode either.
    return -1 if tensor.is_inference() else tensor._version
