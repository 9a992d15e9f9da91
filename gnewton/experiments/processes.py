"""What the processes of the experiment ``scaling`` do, and how they are started."""

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.futures import Future

from gnewton import buckets
from gnewton.datasets import digits
from gnewton.direction import gradient
from gnewton.models import perceptron
from gnewton.optimizer import GroupedNewton
from gnewton.partition import Partition
from gnewton.policies import Calibrated

Job = Callable[..., dict[str, Any]]
SAMPLES = 128
_LIMIT = 600.0  # seconds for one measurement

# name -> what it is called, and the settings of GroupedNewton; None is Adam by itself.
METHODS: dict[str, tuple[str, dict[str, Any] | None]] = {
    "adam": ("DistributedDataParallel, Adam", None),
    "reuse": ("rates reused, a step without a summary", {"cubic": 1e4, "period": 10**6}),
    "reuse-10": ("rates reused for 10 steps", {"cubic": 1e4, "period": 10}),
    "calibrated-first": ("calibrated, the first steps, which look for the rate", {"policy": Calibrated(steps=10**6)}),
    "calibrated": ("calibrated, the steps after them", {"policy": Calibrated()}),
    "adaptive-5": ("adaptive, curvature kept for 5 steps", {"period": 5}),
    "adaptive-1": ("adaptive, a summary a step", {"period": 1}),
}


def run_processes(size: int, job: Job, *arguments: Any) -> list[dict[str, Any]]:
    """What ``job(rank, *arguments)`` returns in each of ``size`` gloo processes. Raises TimeoutError after ten minutes."""
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results = torch.multiprocessing.get_context("spawn").SimpleQueue()
    context = torch.multiprocessing.start_processes(  # type: ignore[no-untyped-call]
        _serve, args=(size, port, results, job, arguments), nprocs=size, join=False, start_method="spawn"
    )
    answers: dict[int, dict[str, Any]] = {}
    end = time.monotonic() + _LIMIT
    try:
        while len(answers) < size:
            context.join(timeout=0.1)  # raises what a process raised
            while not results.empty():
                rank, answer = results.get()
                answers[rank] = answer
            if time.monotonic() > end:
                raise TimeoutError(f"{size} processes took longer than {_LIMIT:.0f} seconds")
    finally:
        for process in context.processes:
            process.kill()
    return [answers[rank] for rank in range(size)]


def _serve(rank: int, size: int, port: int, results: Any, job: Job, arguments: tuple[Any, ...]) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=size, timeout=timedelta(seconds=_LIMIT))
    results.put((rank, job(rank, *arguments)))
    torch.distributed.barrier()  # nobody leaves while another still computes
    torch.distributed.destroy_process_group()


def measure_link(rank: int, repeats: int) -> dict[str, Any]:
    """The latency of a small all-reduce, and the seconds that a byte adds to a large one; the fastest of each."""
    sizes = [40, 400, 4_000, 40_000, 400_000, 4_000_000]
    seconds = [_all_reduce_seconds(torch.zeros(size // 8, dtype=torch.float64), repeats) for size in sizes]
    slope = (seconds[-1] - seconds[0]) / (sizes[-1] - sizes[0])
    return {"sizes": sizes, "seconds": seconds, "latency": seconds[0], "seconds_per_byte": slope}


def _all_reduce_seconds(tensor: Tensor, repeats: int) -> float:
    times = []
    for _ in range(repeats + 2):
        torch.distributed.barrier()
        start = time.perf_counter()
        torch.distributed.all_reduce(tensor)
        times.append(time.perf_counter() - start)
    return min(times[2:])


def measure_gradient(rank: int, repeats: int) -> dict[str, Any]:
    """A gradient of eight layers of 1024 x 1024: of this process alone, of all in one piece, and in buckets; the fastest of each.

    The three take turns, so that all of them meet whatever else the machine does.
    """
    model = perceptron([1024] * 9, generator=torch.Generator().manual_seed(0))
    x = torch.randn(SAMPLES, 1024, generator=torch.Generator().manual_seed(rank))
    alone = Partition.by_layer(model).over(None)
    together = alone.over(torch.distributed.group.WORLD)
    ways = {"alone": (alone, 0), "one piece": (together, 2**40), "buckets": (together, buckets.BUCKET_BYTES)}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(repeats + 1):
        for name, (partition, most) in ways.items():
            with _bucket_bytes(most):
                times[name].append(_gradient_seconds(partition, lambda: model(x).square().mean()))
    fastest = {name: [min(seconds) for seconds in zip(*pairs[1:], strict=True)] for name, pairs in times.items()}
    return {name: {"ms": 1000 * wall, "processor_ms": 1000 * work} for name, (wall, work) in fastest.items()} | {
        "scalars": sum(together.sizes),
        "all-reduces": len(buckets.cut(together.parameters)),
    }


def _gradient_seconds(partition: Partition, loss: Callable[[], Tensor]) -> tuple[float, float]:
    """By the clock, until every process has it, and by this one's processor."""
    torch.distributed.barrier()
    start, work = time.perf_counter(), time.process_time()
    gradient(loss, partition)
    work = time.process_time() - work
    torch.distributed.barrier()
    return time.perf_counter() - start, work


@contextlib.contextmanager
def _bucket_bytes(most: int) -> Iterator[None]:
    before, buckets.BUCKET_BYTES = buckets.BUCKET_BYTES, most
    try:
        yield
    finally:
        buckets.BUCKET_BYTES = before


def measure_methods(rank: int, blocks: int, steps: int) -> dict[str, Any]:
    """Every method, one after the other: mean seconds a step of each block, by the clock and by the processor, and what is sent."""
    return {name: _measure(rank, settings, blocks, steps) for name, (_, settings) in METHODS.items()}


def _measure(rank: int, settings: dict[str, Any] | None, blocks: int, steps: int) -> dict[str, Any]:
    data = digits()
    few = slice(SAMPLES * rank, SAMPLES * (rank + 1))
    x, y = data.train_x[few], data.train_y[few]
    inner = perceptron([64, 256, 256, 10], generator=torch.Generator().manual_seed(0))
    model = nn.parallel.DistributedDataParallel(inner)
    partition = Partition.by_tensor(model)
    proposer = torch.optim.Adam(model.parameters())
    if settings is None:
        step, sent = _adam_step(model, proposer, x, y)
    else:
        step, sent = _newton_step(model, GroupedNewton(partition, proposer, **settings), x, y)
    for _ in range(2 * steps):  # and the steps that look for a calibrated rate, and memory is where it stays
        step()
    before, times = sent(), _times(step, blocks, steps)
    bytes_sent, collectives = ((after - then) / (blocks * steps) for after, then in zip(sent(), before, strict=True))
    counts = {"bytes": bytes_sent, "collectives": collectives}
    return counts | times | {"scalars": sum(partition.sizes), "groups": len(partition)}


def _times(step: Callable[[], Any], blocks: int, steps: int) -> dict[str, list[float]]:
    """Mean seconds a step of each block, by the clock and by the processor."""
    seconds, processor = [], []
    for _ in range(blocks):
        torch.distributed.barrier()
        start, work = time.perf_counter(), time.process_time()
        for _ in range(steps):
            step()
        seconds.append((time.perf_counter() - start) / steps)
        processor.append((time.process_time() - work) / steps)
    return {"seconds": seconds, "processor": processor}


# A step, and what has been sent so far: bytes and collectives.
_Steps = tuple[Callable[[], Any], Callable[[], tuple[int, int]]]


def _newton_step(model: nn.parallel.DistributedDataParallel, optimizer: GroupedNewton, x: Tensor, y: Tensor) -> _Steps:
    ranks = optimizer.partition.ranks
    return (
        lambda: optimizer.step(lambda: F.cross_entropy(model(x), y)),
        lambda: (ranks.sent, ranks.collectives),
    )


def _adam_step(model: nn.parallel.DistributedDataParallel, adam: torch.optim.Optimizer, x: Tensor, y: Tensor) -> _Steps:
    """A step of Adam, and what has been sent so far: DistributedDataParallel's own buckets, counted."""
    from torch.distributed import GradBucket  # not on every system

    counts = [0, 0]

    def count(state: object, bucket: GradBucket) -> Future[Tensor]:
        counts[0] += bucket.buffer().numel() * bucket.buffer().element_size()
        counts[1] += 1
        size = torch.distributed.get_world_size()
        work = torch.distributed.all_reduce(bucket.buffer().div_(size), async_op=True)
        reduced: Future[Tensor] = work.get_future().then(lambda future: future.value()[0])
        return reduced

    def step() -> None:
        adam.zero_grad()
        F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
        adam.step()

    model.register_comm_hook(None, count)
    return step, lambda: (counts[0], counts[1])
