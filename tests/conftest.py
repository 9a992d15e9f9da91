"""One thread a test process: the problems are tiny and the test runner already uses every core."""

import torch

torch.set_num_threads(1)
