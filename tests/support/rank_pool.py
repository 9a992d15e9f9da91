"""Real processes for tests: started once, then asked to run one job after another, each with a time limit of its own."""

import contextlib
import datetime
import importlib
import os
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch

STARTING_SECONDS = 300.0


class Pool:
    """N gloo processes on 127.0.0.1. ``run(job, *arguments)`` calls ``job(rank, *arguments)`` in each; a job that hangs ends them.

    Args:
        size: their number.
        modules: what each of them imports before it is ready, as that takes a minute where many others do so.
    """

    def __init__(self, size: int, *modules: str) -> None:
        self.size, self._modules = size, modules
        self._start()

    def run(self, job: Callable[..., Any], *arguments: Any, seconds: float = 60.0) -> list[Any]:
        """What the job returned on each rank. Raises AssertionError where one raised or took longer than ``seconds``."""
        for pipe in self._pipes:
            pipe.send((job, arguments))
        end, results = time.monotonic() + seconds, []
        for rank, pipe in enumerate(self._pipes):
            if not pipe.poll(max(0.0, end - time.monotonic())):
                self.close()
                self._start()
                raise AssertionError(f"rank {rank} took longer than {seconds} seconds")
            results.append(pipe.recv())
        errors = [f"rank {rank}:\n{text}" for rank, (ended, text) in enumerate(results) if not ended]
        if errors:
            # What one rank sent may still wait for the others.
            self.close()
            self._start()
            raise AssertionError("\n".join(errors))
        return [value for _, value in results]

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()
            process.join()

    def _start(self) -> None:
        context = torch.multiprocessing.get_context("spawn")
        port = free_port()
        ends = [context.Pipe() for _ in range(self.size)]
        self._pipes: list[Connection] = [ours for ours, _ in ends]
        self._processes = [
            context.Process(target=serve, args=(rank, self.size, port, theirs, self._modules), daemon=True)
            for rank, (_, theirs) in enumerate(ends)
        ]
        for process in self._processes:
            process.start()
        # Importing torch is no part of a job.
        for pipe in self._pipes:
            assert pipe.poll(STARTING_SECONDS), "the processes did not start"
            pipe.recv()


def free_port() -> int:
    """A port that nobody listens on."""
    with contextlib.closing(socket.socket()) as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def serve(rank: int, size: int, port: int, pipe: Connection, modules: Sequence[str]) -> None:
    """What each process does."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    if sys.platform == "darwin":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo0"  # a Mac's own name need not lead to itself
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated")  # torch 2.14, of its own forward mode
    warnings.filterwarnings("ignore", "no step was taken")
    warnings.filterwarnings("ignore", "TypedStorage is deprecated")  # torch 2.6 of its own checkpoints
    torch.distributed.init_process_group("gloo", rank=rank, world_size=size, timeout=datetime.timedelta(seconds=60))
    for module in modules:
        importlib.import_module(module)
    pipe.send("ready")
    while True:
        job, arguments = pipe.recv()
        try:
            pipe.send((True, job(rank, *arguments)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))
