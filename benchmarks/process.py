"""One task, one fresh process: its threads are set before torch starts, its memory is nobody else's.

A task is a dictionary, ``{"task": "time", "network": "lenet", ...}``; what comes back is a dictionary too.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
Task = dict[str, Any]


def run(task: str, threads: int = 1, **arguments: Any) -> Task:
    """The result of a task in a process of its own. Raises RuntimeError with its last words when it fails."""
    print(f"  {task}: " + ", ".join(map(str, [*arguments.values()][:2])), file=sys.stderr, flush=True)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "benchmarks.task", json.dumps({"task": task, **arguments})],
        cwd=ROOT,
        env=os.environ | _settings(task, threads),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        words = done.stderr.strip().splitlines()[-12:]
        raise RuntimeError(f"{task} {arguments} failed with code {done.returncode}:\n" + "\n".join(words))
    return json.loads(done.stdout.splitlines()[-1])


def all_threads() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _settings(task: str, threads: int) -> dict[str, str]:
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    # Blocks of 64 KiB and more go back to the system when freed: the resident memory follows the live tensors. That
    # costs time, so that it is for memory alone.
    returned = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"} if task == "memory" else {}
    return dict.fromkeys(names, str(threads)) | returned
