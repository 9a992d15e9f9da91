"""A gradient that goes to the other ranks in parts, each as soon as it is complete, while the backward pass goes on.

A backward pass completes the last parameters first. So they are cut into buckets from the last to the first, and every rank
sends the same buckets in the same order, whatever its own loss completes first. A rank that fails on the way sends zeros in
the place of the rest: the others, who wait for them, come to the next question, and hear of it there.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gnewton.ranks import Ranks

BUCKET_BYTES = 2**22  # sent in a few milliseconds, beside which the latency of one more all-reduce is small


class Buckets:
    """The mean of one gradient over the samples of all ranks.

    Args:
        ranks: whose mean.
        parameters: what the gradient is of, the same ones on every rank.
        samples: of this rank.
    """

    def __init__(self, ranks: Ranks, parameters: Mapping[str, Tensor], samples: float) -> None:
        self._ranks, self._parameters = ranks, parameters
        # Made now: after an error there may be no memory left.
        self._buckets = [_Bucket({name: parameters[name] for name in names}) for names in cut(parameters)]
        self._of = {name: bucket for bucket in self._buckets for name in bucket.missing}
        self._stream = _stream(parameters)
        self._started, self._share = 0, 0.0  # an interrupt may come before the share is known here
        self._share = ranks.share("gradient in buckets", samples, self._send_zeros)

    @contextmanager
    def sent_at_once(self) -> Iterator[None]:
        """Inside, a backward pass sends each bucket as soon as it has completed it."""
        with ExitStack() as undo:
            for name, p in self._parameters.items():
                undo.callback(p.register_hook(partial(self._complete, name)).remove)  # type: ignore[no-untyped-call]
            yield

    def means(self, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The mean gradient, from this rank's: what has not been sent yet is sent now, and all of it is waited for."""
        for bucket in self._buckets:
            for name in list(bucket.missing):
                bucket.fill(name, gradients[name])
        self._start()
        for bucket in self._buckets:
            bucket.wait()
        self._ranks.settled()
        return {name: self._of[name].parts[name] for name in self._parameters}

    def _complete(self, name: str, gradient: Tensor) -> None:
        """What a backward pass calls with the gradient of one parameter."""
        # On another stream the parts of one bucket would not wait for each other: they are sent at the end.
        if _stream(self._parameters) == self._stream:
            self._of[name].fill(name, gradient)
            self._start()

    def _start(self) -> None:
        """Send what is complete, in the order of all ranks."""
        with self._ranks.uninterrupted():
            while self._started < len(self._buckets) and not self._buckets[self._started].missing:
                bucket = self._buckets[self._started]
                bucket.wait = self._ranks.start_mean(bucket.buffer, self._share)
                self._started += 1

    def _send_zeros(self) -> None:
        for bucket in self._buckets[self._started :]:
            bucket.buffer.zero_()
            bucket.missing.clear()
        self._start()
        for bucket in self._buckets:
            bucket.wait()


class _Bucket:
    """Some parameters' gradients, one after the other in one buffer; ``missing`` are those that are not there yet."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self.buffer = torch.cat([torch.zeros_like(p, requires_grad=False).flatten() for p in parameters.values()])
        parts = torch.split(self.buffer, [p.numel() for p in parameters.values()])
        self.parts = {name: part.view(parameters[name].shape) for name, part in zip(parameters, parts, strict=True)}
        self.missing = dict.fromkeys(parameters)
        self.wait: Callable[[], None] = lambda: None

    @torch.no_grad()
    def fill(self, name: str, gradient: Tensor) -> None:
        self.parts[name].copy_(gradient.to_dense())
        del self.missing[name]


def cut(parameters: Mapping[str, Tensor]) -> list[list[str]]:
    """Names from the last parameter to the first, in buckets of one dtype and device, each closed at 4 MiB.

    >>> cut({"0": torch.ones(1000, 1000), "1": torch.ones(1), "2": torch.ones(1100, 1000), "3": torch.ones(2)})
    [['3', '2'], ['1', '0']]
    """
    buckets: list[list[str]] = []
    room = 0
    for name in reversed(list(parameters)):
        p = parameters[name]
        if room <= 0 or _kind(p) != _kind(parameters[buckets[-1][0]]):
            buckets.append([])
            room = BUCKET_BYTES
        buckets[-1].append(name)
        room -= p.numel() * p.element_size()
    return buckets


def _kind(p: Tensor) -> tuple[torch.dtype, torch.device]:
    return p.dtype, p.device


def _stream(parameters: Mapping[str, Tensor]) -> Any:
    """Where a device's work is queued now; None for processors."""
    device = next(iter(parameters.values())).device
    return None if device.type == "cpu" else torch.accelerator.current_stream(device)
