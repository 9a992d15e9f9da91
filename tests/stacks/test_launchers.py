"""What starts several processes: the examples of the book, run as they are, each with a time limit of its own."""

import math
import os
import re
import signal
import subprocess
import sys
import tempfile
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
    # Into a file: a pipe would stay open for as long as any process does that was started in there.
    with tempfile.TemporaryFile("w+") as printed:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=LAUNCHERS,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
            stdout=printed,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        in_time = wait(process, seconds)
        printed.seek(0)
        text = printed.read()
    assert in_time, f"took longer than {seconds} seconds: {text}"
    assert process.returncode == 0, text
    return LINE.findall(text)


def wait(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Whether it ended by itself. If not it is asked to end, as a launcher has workers in sessions of their own to end first."""
    for limit, number in ((seconds, signal.SIGTERM), (60.0, signal.SIGKILL)):
        try:
            return process.wait(limit) is not None and number == signal.SIGTERM
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, number)
    process.wait()
    return False


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


def test_a_worker_in_a_session_of_its_own_does_not_keep_us() -> None:
    # It would sleep for longer than any test may take.
    stray = "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(3600)'], start_new_session=True)"
    start = f"import subprocess, sys, time; print({stray}.pid, flush=True); "
    with pytest.raises(AssertionError, match="took longer than 3") as caught:
        launched("-c", start + "time.sleep(3600)", seconds=3)
    os.kill(int(str(caught.value).splitlines()[0].split()[-1]), signal.SIGKILL)


def test_the_comparison_sees_ranks_that_differ() -> None:
    for lines in ([("0", "2", "0.5"), ("1", "2", "0.6")], [("0", "1", "0.5")], [("0", "2", "2.4"), ("1", "2", "2.4")]):
        with pytest.raises(AssertionError):
            check_two_alike(lines)
