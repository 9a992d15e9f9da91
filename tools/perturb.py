"""Perturb the training data of every data set by its last bits; ``elsewhere.py`` has IPython run this in each kernel.

x becomes x (1 + 1e-7 z) with z standard normal: in float32 about half of the numbers move by one unit in the last place,
which is what another order of summation does to a loss. Zeros stay zeros, and samples that were equal no longer are.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from gnewton import datasets

SIZE = 1e-7


def perturbing(load: Callable[..., datasets.Dataset]) -> Callable[..., datasets.Dataset]:
    """The same loader, its training data perturbed; torch's global random state is left alone."""

    @functools.wraps(load)
    def loaded(*args: Any, **options: Any) -> datasets.Dataset:
        data = load(*args, **options)
        # Drawn on the CPU in float64: the same noise for each dtype and device.
        z = torch.randn(data.train_x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        noisy = data.train_x.double() * (1 + SIZE * z.to(data.train_x.device))
        return replace(data, train_x=noisy.to(data.train_x.dtype))

    return loaded


for name, function in inspect.getmembers(datasets, inspect.isfunction):
    if not name.startswith("_") and function.__annotations__.get("return") is datasets.Dataset:
        setattr(datasets, name, perturbing(function))
