"""What every test process has, wherever it was started: one thread unless told otherwise, and Ctrl-C as a keyboard has it."""

import os
import signal

import torch

# The problems are tiny and the test runner already uses every core.
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
# A shell starts its background jobs so that they ignore Ctrl-C, and their children with them.
signal.signal(signal.SIGINT, signal.default_int_handler)
