"""Several processes: the loss is the mean over the samples of all ranks, on ``torch.distributed``.

    L  =  sum_r n_r L_r / sum_r n_r

and so are its gradient and its summaries of every order. What a rank computes from its own samples is summed, and everything
that follows (the proposal, the Newton step, the ratio test) is the same arithmetic on the same numbers everywhere.

Every exchange begins with a header of one size, whatever is asked. So a rank that fails, wherever it fails, can answer the
next question of the others, and all of them raise.
"""

import weakref
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gnewton.interrupts import DeferredInterrupts

if torch.distributed.is_available():
    # torch imports it at the first optimizer, and its functions keep the group that there is by then: destroy_process_group could
    # not end gloo's threads any more, and one of them may abort the process when Python ends. Imported early, they keep None.
    import torch.distributed.nn.functional

_MESSAGE_BYTES = 512
_CALLS = 2**18  # the square of a call's number, summed over 10^5 ranks, is exact in float64


class RankError(RuntimeError):
    """Another rank failed. The message says which and with what; nothing has changed on this one."""


class NotFiniteOnRank(RankError, FloatingPointError):
    """Another rank met a number that is not finite: for whoever asks for that, it is so on this rank too."""


class Part(NamedTuple):
    """What one rank adds to a mean.

    Args:
        value: the loss on its samples.
        tensors: of any shapes and dtypes, the same ones on every rank.
        samples: their weight, the number of samples.
    """

    value: float = 0.0
    tensors: Sequence[Tensor] = ()
    samples: float = 1.0


# Sent last, and kept: gloo's thread lets go of a tensor only after the answer, and whoever is the last to do so needs Python's lock, which
# the end of a group holds while it waits for that thread (torch 2.6).
_LATEST: list[Tensor] = []


class Ranks:
    """The processes that share a loss; made by a partition. With one process nothing is sent.

    Args:
        like: a parameter, on whose device the exchange takes place.
        group: a process group, or None.
        alone: whether it was said that this process works alone.
        wrapper: the DistributedDataParallel around the model, or None.

    ``size`` is the number of processes, ``rank`` the number of this one, ``sent`` the bytes that it gave to ``collectives``
    all-reduces so far.
    """

    def __init__(self, like: Tensor, group: Any = None, *, alone: bool = False, wrapper: Any = None) -> None:
        self.alone, self._like, self._wrapper = alone, like, wrapper
        # Weak: a process that holds a group when it ends may be aborted by gloo's threads, with all its work done.
        self._group = None if group is None else weakref.ref(group)
        self.size = 1 if group is None else torch.distributed.get_world_size(group)
        self.rank = 0 if group is None else torch.distributed.get_rank(group)
        self.sent = self.collectives = 0
        self._told: bool | None = None  # whether the others know of an error; None outside a session
        self._owed: Callable[[], Any] | None = None  # sends the rest of what the others wait for
        self._interrupts = DeferredInterrupts()
        # Made now: after an error there may be no memory left.
        self._header = torch.zeros(5, dtype=torch.float64, device=like.device) if self.size > 1 else None

    @property
    def group(self) -> Any:
        """The process group, or None. Raises ValueError after ``destroy_process_group``."""
        if self._group is None:
            return None
        group = self._group()
        if group is None:
            raise ValueError(
                "expected the process group that the partition was built over, got one that destroy_process_group has "
                "ended; build the Partition again after the new init_process_group"
            )
        return group

    def __repr__(self) -> str:
        return (
            f"Ranks({self.rank} of {self.size})" if self.size > 1 else f"Ranks({'alone' if self.alone else 'not said'})"
        )

    def __deepcopy__(self, memo: Any) -> "Ranks":
        return self  # the processes are who they are

    def here(self) -> "Ranks":
        """This process alone, for its part of a mean."""
        return Ranks(self._like, alone=True, wrapper=self._wrapper)

    def check_said(self) -> None:
        """Raises ValueError where torch.distributed has several ranks and nobody said which of them share the loss."""
        ranks = world_size()
        if ranks > 1 and self.group is None and not self.alone:
            raise ValueError(
                f"expected to know which of the {ranks} ranks share the loss, got a partition that does not say: build it on "
                "DistributedDataParallel(model), or write partition.over(torch.distributed.group.WORLD) for replicas that "
                "start alike, or partition.over(None) if each rank works alone, on a model of its own"
            )

    # -- means -----------------------------------------------------------------------------------------------------

    def mean(self, call: str, compute: Callable[[], Part]) -> Part:
        """The mean over all samples of what every rank computes; raises on every rank where it raised on one.

        Args:
            call: what is computed, the same word on every rank.
            compute: returns this rank's part.

        ``samples`` of the result is this rank's share of all samples.
        """
        if self.size == 1:
            return compute()
        with self.session():
            try:
                with self._interrupts.listen():
                    part = compute()
                    _check_samples(part.samples)
            except BaseException:
                self._settle()
                raise
            # Copied before the header: past it there is no way to say that memory has run out.
            flat = _flatten(part.tensors)
            value, share = self._exchange_headers(_number(call, part.tensors), part)
            for buffer in flat.values():
                self._all_reduce(_weigh(buffer, share))
            return Part(value, _unflatten(flat, part.tensors), share)

    def share(self, call: str, samples: float, owed: Callable[[], Any]) -> float:
        """This rank's share of all samples: what a rank asks before it sends parts of a mean.

        Args:
            call: what the parts are of.
            samples: of this rank.
            owed: sends what is missing of the parts, in the place of a computation that fails before ``settled()``.
        """
        _check_samples(samples)
        with self.session(), self._interrupts.deafen():
            _, share = self._exchange_headers(_number(call, ()), Part(samples=samples))
            self._owed = owed
        return share

    def start_mean(self, buffer: Tensor, share: float) -> Callable[[], None]:
        """Send a part of a mean, and go on; what is returned waits until ``buffer`` is the mean of all ranks' parts."""
        works: list[Any] = []
        send = partial(torch.distributed.all_reduce, group=self.group, async_op=True)
        with torch.no_grad():
            self._send(_weigh(buffer, share), lambda: works.append(send(buffer)))
        return lambda: self._answered(works[0].wait)

    def uninterrupted(self) -> AbstractContextManager[None]:
        """Inside, Ctrl-C waits: what has been sent and what is noted of it belong together."""
        return self._interrupts.deafen()

    def settled(self) -> None:
        """All parts of a mean have been sent."""
        self._owed = None

    def from_first(self, call: str, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The first rank's tensors, bit for bit, on every rank."""
        if self.size == 1:
            return list(tensors)
        return list(self.mean(call, lambda: Part(0.0, tensors, float(self.rank == 0))).tensors)

    def gather(self, call: str, part: Tensor, whole: Tensor) -> None:
        """The parts of all ranks, of one shape, one after the other along the first axis of ``whole``."""
        send = (
            getattr(torch.distributed, "all_gather_single", None) or torch.distributed.all_gather_into_tensor
        )  # from torch 2.13 on
        self._fill(call, whole, lambda: send(whole, part, group=self.group), lambda: whole.copy_(part))

    def sum(self, call: str, tensor: Tensor) -> Tensor:
        """The sum over the ranks, in the place of what each of them gave."""
        self._fill(call, tensor, lambda: torch.distributed.all_reduce(tensor, group=self.group))
        return tensor

    def largest(self, call: str, number: Tensor) -> Tensor:
        """The largest of the ranks' numbers ()."""
        each = number.new_zeros(self.size)
        each[self.rank] = number
        return self.sum(call, each).max()

    def any(self, call: str, flag: bool) -> bool:
        """Whether it is so on some rank."""
        return bool(self.sum(call, torch.tensor(float(flag), device=self._like.device)))

    def commit(self, buffers: Sequence[Tensor] = ()) -> None:
        """The end of a session: once every rank has come here, nobody goes back. Buffers become the first rank's."""
        for buffer, first in zip(buffers, self.from_first("commit", buffers), strict=True):
            if self.size > 1:
                buffer.copy_(first)
        self._told = True

    @contextmanager
    def session(self) -> Iterator[None]:
        """Several calls that succeed on all ranks, or on none: an error inside is the answer to the others' next call."""
        if self.size == 1 or self._told is not None:
            yield
            return
        self._told = False
        try:
            with self._interrupts:
                try:
                    yield
                except BaseException as error:
                    if not self._told:
                        self._tell(error)
                    raise
        finally:
            self._told = None

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """Before a call of all ranks: an error inside is the answer to the others' call, and Ctrl-C comes at once."""
        with self.session(), self._interrupts.listen():
            yield

    @contextmanager
    def silence_wrapper(self) -> Iterator[None]:
        """Inside, DistributedDataParallel sends nothing of its own: neither gradients nor, in its forward pass, buffers."""
        if self._wrapper is None:
            yield
            return
        before = self._wrapper.require_forward_param_sync
        self._wrapper.require_forward_param_sync = False
        try:
            with self._wrapper.no_sync():
                yield
        finally:
            self._wrapper.require_forward_param_sync = before

    # -- what goes over the wire -----------------------------------------------------------------------------------

    def _exchange_headers(self, call: int, part: Part) -> tuple[float, float]:
        """The mean value and this rank's share."""
        weighted = part.samples * part.value if part.samples else 0.0
        failed, calls, squares, total, values = self._headers([0.0, call, call**2, part.samples, weighted])
        if failed:
            self._told = True
            raise self._other_ranks_error()
        if int(calls) ** 2 != self.size * int(squares):
            self._told = True
            raise RankError(
                "expected the same call on all ranks, got different ones: give every rank the same settings, the same "
                "number of batches and the same partition"
            )
        if not total > 0:
            self._told = True
            raise ValueError("expected a sample on some rank, got samples=0 on all")
        return values / total, part.samples / total

    def _headers(self, numbers: Sequence[float]) -> list[float]:
        assert self._header is not None
        for i, number in enumerate(numbers):
            self._header[i] = number
        self._all_reduce(self._header)
        sums: list[float] = self._header.tolist()
        return sums

    def _settle(self) -> None:
        """After an error: send what the others wait for, so that they come to the next question, and hear of the error there."""
        owed, self._owed = self._owed, None
        if owed is not None and not self._told:
            with suppress(RankError):  # nobody is left to be told
                owed()

    def _tell(self, error: BaseException) -> None:
        """Answer the others' next call with this error, which is about to be raised here."""
        self._told = True
        try:
            self._headers([1.0, 0.0, 0.0, 0.0, 0.0])
            self._messages(f"{type(error).__name__}: {error}")
        except (RankError, RuntimeError):
            return  # nobody is left to be told

    def _other_ranks_error(self) -> RankError:
        said = self._messages("")
        first = next((rank for rank, text in enumerate(said) if text), 0)
        kind = NotFiniteOnRank if said[first].startswith("FloatingPointError") else RankError
        return kind(f"rank {first} of {self.size} stopped with {said[first]}")

    def _messages(self, text: str) -> list[str]:
        """What every rank says."""
        board = torch.zeros(self.size, _MESSAGE_BYTES, dtype=torch.uint8)
        mine = text.encode()[:_MESSAGE_BYTES]
        board[self.rank, : len(mine)] = torch.tensor(list(mine), dtype=torch.uint8)
        board = board.to(self._like.device)
        self._all_reduce(board)
        return [bytes(row).rstrip(b"\0").decode(errors="ignore") for row in board.tolist()]

    def _fill(
        self, call: str, tensor: Tensor, send: Callable[[], Any], alone: Callable[[], Any] = lambda: None
    ) -> None:
        """An exchange in the middle of a computation: all ranks write the same call's answer into the tensor."""
        if self.size == 1:
            alone()
            return
        with torch.no_grad(), self.session(), self._interrupts.deafen():
            self._exchange_headers(_number(call, [tensor]), Part())
            self._send(tensor, send)

    def _all_reduce(self, tensor: Tensor) -> None:
        self._send(tensor, lambda: torch.distributed.all_reduce(tensor, group=self.group))

    def _send(self, tensor: Tensor, send: Callable[[], Any]) -> None:
        _LATEST[:] = [tensor]
        self.collectives += 1
        self.sent += tensor.numel() * tensor.element_size()
        self._answered(send)

    def _answered(self, send: Callable[[], Any]) -> None:
        try:
            send()
        except RuntimeError as error:
            self._told = True
            raise RankError(
                f"expected all {self.size} ranks in the same call, got no answer from one of them: it has ended, or has fewer "
                "batches than the others, or waits elsewhere. Give every rank the same number of batches "
                f"(DistributedSampler), or let one without samples take part with samples=0 ({error})"
            ) from error


def unwrap(module: Any) -> Any:
    """The module inside DistributedDataParallel, whose names are those of one process; any other module as it is."""
    return module.module if _is_wrapper(module) else module


def ranks_of(module: nn.Module | None, like: Tensor) -> Ranks:
    """The ranks of a DistributedDataParallel; any other module does not say.

    Raises ValueError where a DistributedDataParallel lies inside the module: its parameters would be taken for those of one
    process.
    """
    if module is None:
        return Ranks(like)
    if _is_wrapper(module):
        return Ranks(like, module.process_group, wrapper=module)
    inside = next((name for name, one in module.named_modules() if _is_wrapper(one)), None)
    if inside is not None:
        raise ValueError(
            f"expected the DistributedDataParallel itself, got a module around it (in {inside}); build the Partition on the "
            "DistributedDataParallel, or wrap the whole model in one"
        )
    return Ranks(like)


def ranks_over(group: Any, like: Tensor, wrapper_of: Ranks) -> Ranks:
    """The ranks of a process group or a device mesh of one dimension; None is this process alone, said on purpose.

    Raises TypeError for another object, ValueError for a group without this process.
    """
    wrapper = wrapper_of._wrapper
    if group is None:
        return Ranks(like, alone=True, wrapper=wrapper)
    group = group.get_group() if hasattr(group, "get_group") else group
    distributed = torch.distributed
    if distributed.is_available() and group is distributed.GroupMember.NON_GROUP_MEMBER:
        raise ValueError(
            "expected a process group with this rank in it, got one of others; write over(None) on this rank"
        )
    if not distributed.is_available() or not isinstance(group, distributed.ProcessGroup):
        raise TypeError(
            f"expected a process group, got {group!r}; write partition.over(torch.distributed.group.WORLD) after "
            "init_process_group, or over(None) for this process alone"
        )
    return Ranks(like, group, wrapper=wrapper)


def members(group: Any) -> list[int]:
    """The ranks of a process group, none of what is no group.

    >>> members(None)
    []
    """
    distributed = torch.distributed
    known = distributed.is_available() and isinstance(group, distributed.ProcessGroup)
    return distributed.get_process_group_ranks(group) if known else []


def check_batch_norm(module: nn.Module | None) -> None:
    """Raises ValueError for synchronized batch norm in training: its statistics join the samples of all ranks.

    >>> check_batch_norm(nn.BatchNorm1d(3))
    """
    for name, one in module.named_modules() if module and world_size() > 1 else ():
        if isinstance(one, nn.SyncBatchNorm) and one.training:
            raise ValueError(
                f"expected batch norm over each rank's own samples, got SyncBatchNorm in {name or 'the model'}, which torch "
                "cannot differentiate twice; use BatchNorm, whose statistics are each rank's as in DistributedDataParallel, "
                "or put it into eval()"
            )


def _is_wrapper(module: Any) -> bool:
    return isinstance(module, nn.parallel.DistributedDataParallel)


def world_size() -> int:
    """The processes of torch.distributed; one without it.

    >>> world_size()
    1
    """
    distributed = torch.distributed
    if not distributed.is_available() or not distributed.is_initialized():
        return 1
    return int(distributed.get_world_size())


def _check_samples(samples: float) -> None:
    if not 0 <= samples < float("inf"):
        raise ValueError(f"expected samples >= 0, the number of samples of this rank, got {samples!r}")


def _number(call: str, tensors: Sequence[Tensor]) -> int:
    """A number for a call and the sizes of its tensors: ranks that differ in it are not in the same place."""
    sizes = [(tuple(t.shape), str(t.dtype)) for t in tensors]
    return zlib.crc32(f"{call} {sizes}".encode()) % _CALLS


def _kind(tensor: Tensor) -> tuple[torch.dtype, torch.device]:
    return (torch.uint8 if tensor.dtype == torch.bool else tensor.dtype), tensor.device


def _flatten(tensors: Sequence[Tensor]) -> dict[tuple[torch.dtype, torch.device], Tensor]:
    """One new buffer for each dtype and device."""
    kinds = dict.fromkeys(map(_kind, tensors))
    return {
        kind: torch.cat([t.detach().reshape(-1).to(kind[0]) for t in tensors if _kind(t) == kind]) for kind in kinds
    }


def _unflatten(flat: dict[tuple[torch.dtype, torch.device], Tensor], tensors: Sequence[Tensor]) -> list[Tensor]:
    used = dict.fromkeys(flat, 0)
    out = []
    for t in tensors:
        start = used[_kind(t)]
        used[_kind(t)] += t.numel()
        out.append(flat[_kind(t)][start : start + t.numel()].reshape(t.shape).to(t.dtype))
    return out


def _weigh(buffer: Tensor, share: float) -> Tensor:
    # Without samples nothing is added, not even NaN; whole numbers come from one rank alone.
    return buffer.zero_() if share == 0 else buffer if share == 1 else buffer.mul_(share)
