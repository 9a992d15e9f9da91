"""One thread a test process, unless told otherwise: the problems are tiny and the test runner already uses every core."""

import os

import torch

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
