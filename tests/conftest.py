"""What every test process has, wherever it was started: one thread unless told otherwise, Ctrl-C as a keyboard has it, and tests
of the same names, without which several processes cannot share them."""

import os
import signal

import pytest
import torch

# The problems are tiny and the test runner already uses every core.
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
# A shell starts its background jobs so that they ignore Ctrl-C, and their children with them.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse a name that holds an address, which is another one in every process."""
    if named := [item.nodeid for item in items if " at 0x" in item.nodeid]:
        raise pytest.UsageError(f"expected ids without addresses, got {named[0]}; give its parametrize ids=")
