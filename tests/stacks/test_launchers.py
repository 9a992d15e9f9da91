"""What starts several processes: the examples of the book, run as they are, each with a time limit of its own."""

import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.rank_pool import free_port

LAUNCHERS = Path(__file__).parents[2] / "book" / "launchers"
LINE = re.compile(r"rank (\d+) of (\d+): loss ([\d.]+)")

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or sys.platform == "win32",
    reason="this torch has no torch.distributed, or this system no process groups",
)


def launched(*command: str, seconds: float = 300.0, **environment: str) -> list[tuple[str, str, str]]:
    """(rank, ranks, loss) of each line that the processes printed."""
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=LAUNCHERS,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        printed, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"took longer than {seconds} seconds: {process.communicate()[0]}")
    assert process.returncode == 0, printed
    return LINE.findall(printed)


def check_two_alike(lines: list[tuple[str, str, str]]) -> None:
    assert sorted(line[:2] for line in lines) == [("0", "2"), ("1", "2")]
    assert len({loss for *_, loss in lines}) == 1
    assert float(lines[0][2]) < math.log(10), "it learned more than to guess"


@pytest.mark.parametrize("program", ["with_torchrun.py", "with_fsdp.py"])
def test_torchrun(program: str) -> None:
    port = f"--master-port={free_port()}"
    check_two_alike(launched("-m", "torch.distributed.run", "--nproc-per-node=2", port, program))


@pytest.mark.zoo
def test_accelerate_launch() -> None:
    pytest.importorskip("accelerate")
    options = ["--multi_gpu", "--num_processes=2", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
    command = ["-m", "accelerate.commands.launch", *options, f"--main_process_port={free_port()}", "with_accelerate.py"]
    # Accelerate's own launcher of several processes is named after GPUs; this makes it take processors.
    check_two_alike(launched(*command, ACCELERATE_USE_CPU="true"))


@pytest.mark.zoo
def test_lightning_with_manual_optimization() -> None:
    pytest.importorskip("lightning")
    check_two_alike(launched("with_lightning.py"))


def test_the_comparison_sees_ranks_that_differ() -> None:
    for lines in ([("0", "2", "0.5"), ("1", "2", "0.6")], [("0", "1", "0.5")], [("0", "2", "2.4"), ("1", "2", "2.4")]):
        with pytest.raises(AssertionError):
            check_two_alike(lines)
