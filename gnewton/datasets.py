"""Small data sets that need no network: real 8x8 digits, and a toy regression taught by a random perceptron.

Everything fits in memory, so a mini-batch is one indexing of whole tensors: no worker, no collation.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from gnewton.models import perceptron


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """A training and a test part, with their origin.

    train_x (N, d) and test_x (M, d) floating; train_y and test_y either (N,) int64 classes or (N, k) floating targets;
    name: one word; source: one sentence for the reader who asks where the numbers come from.
    """

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    name: str
    source: str

    def __repr__(self) -> str:
        shape = " x ".join(str(n) for n in self.train_x.shape[1:])
        return f"{self.name}: {len(self.train_x):,} training and {len(self.test_x):,} test samples of {shape} numbers"

    def batches(
        self,
        size: int,
        generator: torch.Generator | None = None,
        drop_last: bool = False,
        part: Literal["train", "test"] = "train",
    ) -> "Batches":
        """Mini-batches (x, y) of one part in random order, a new order at each pass; ``len()`` is their number.

        size: samples a batch; the last one is smaller where the division leaves a rest, and is left out with
        ``drop_last=True`` (which biases averages over the data set). generator: a CPU generator; without one torch's
        global random state is used, as ``torch.utils.data.DataLoader`` does. Raises ValueError for a size below 1, a
        size that leaves no batch, or an unknown part.

        >>> data = teacher_student(samples=10)
        >>> [len(x) for x, y in data.batches(4, torch.Generator().manual_seed(0))]
        [4, 4, 2]
        """
        if part not in ("train", "test"):
            raise ValueError(f'expected part="train" or "test", got {part!r}; choose one of them')
        x, y = (self.train_x, self.train_y) if part == "train" else (self.test_x, self.test_y)
        if size < 1 or (drop_last and size > len(x)):
            raise ValueError(
                f"expected a batch size from 1 to {len(x)} samples ({part}), got {size}; choose one between"
            )
        return Batches(x, y, size, generator, drop_last)


class Batches:
    """What ``Dataset.batches`` returns: iterate as often as you like, each pass draws a new order.

    >>> batches = Batches(torch.arange(5.0), torch.arange(5), size=2, generator=torch.Generator().manual_seed(0))
    >>> len(batches), sorted(torch.cat([y for x, y in batches]).tolist())
    (3, [0, 1, 2, 3, 4])
    """

    def __init__(
        self, x: Tensor, y: Tensor, size: int, generator: torch.Generator | None = None, drop_last: bool = False
    ) -> None:
        self._x, self._y, self._size, self._generator, self._drop_last = x, y, size, generator, drop_last

    def __len__(self) -> int:
        whole, rest = divmod(len(self._x), self._size)
        return whole + (rest > 0 and not self._drop_last)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        # The order is drawn on the CPU: one seed gives one order on every device.
        order = torch.randperm(len(self._x), generator=self._generator, device="cpu").to(self._x.device)
        for start in range(0, len(self) * self._size, self._size):
            rows = order[start : start + self._size]
            yield self._x[rows], self._y[rows]


def digits(
    test_fraction: float = 0.2,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Dataset:
    """1,797 handwritten digits of 8 x 8 pixels, shipped with scikit-learn: 64 numbers a sample, classes 0 to 9.

    Pixels are divided by 16, then the mean over all pixels of the training part is subtracted (one number, so that a
    reshaped sample still is a picture). The split is stratified: each class has nearly the same share of both parts.
    ``seed`` decides the split and its order. Raises ImportError without scikit-learn, ValueError for a fraction that
    leaves a part without all ten classes.

    >>> digits()
    digits: 1,437 training and 360 test samples of 64 numbers
    >>> digits().train_y[:5].dtype
    torch.int64
    """
    load_digits, train_test_split = _scikit_learn()
    if not 0.01 <= test_fraction <= 0.99:
        raise ValueError(f"expected a test fraction from 0.01 to 0.99, got {test_fraction}; 0.2 is a fair choice")
    pixels, labels = load_digits(return_X_y=True)
    split = train_test_split(pixels, labels, test_size=test_fraction, stratify=labels, random_state=seed)
    train_x, test_x = (torch.from_numpy(part) / 16 for part in split[:2])
    mean = train_x.mean()
    dtype, device = dtype or torch.get_default_dtype(), device or torch.get_default_device()
    source = (
        "The test part of the UCI 'Optical Recognition of Handwritten Digits' data (Alpaydin and Kaynak, 1998), "
        "as shipped with scikit-learn (sklearn.datasets.load_digits)."
    )
    train_x, test_x = ((part - mean).to(device, dtype) for part in (train_x, test_x))
    train_y, test_y = (torch.from_numpy(part).to(device, torch.int64) for part in split[2:])
    return Dataset(train_x, train_y, test_x, test_y, "digits", source)


def teacher_student(
    widths: Sequence[int] = (10, 10, 1),
    samples: int = 512,
    test_samples: int = 512,
    noise: float = 0.0,
    activation: str = "tanh",
    seed: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Dataset:
    """A toy regression: y = teacher(x) + noise * N(0, 1), where the teacher is a random perceptron.

    x (samples, widths[0]) is drawn from N(0, 1); y is (samples, widths[-1]). The teacher is ``perceptron(widths,
    activation, torch.Generator().manual_seed(seed))``: a student of the same widths can reach the loss noise^2 (mean
    squared error, in y's scale), and 0 without noise. Raises ValueError for fewer than one sample, a negative or
    non-finite noise, or unfit widths.

    >>> teacher_student((3, 5, 2), samples=100, test_samples=20)
    teacher-student: 100 training and 20 test samples of 3 numbers
    """
    if min(samples, test_samples) < 1:
        raise ValueError(f"expected at least one sample in each part, got {samples} and {test_samples}; ask for more")
    if not 0 <= noise < float("inf"):
        raise ValueError(f"expected noise >= 0 and finite, got {noise}; 0 means exact targets")
    generator = torch.Generator("cpu").manual_seed(seed)
    dtype, device = dtype or torch.get_default_dtype(), device or torch.get_default_device()
    # In float64 on the CPU, then converted: one seed gives one data set on every device.
    with torch.no_grad(), torch.device("cpu"):
        teacher = perceptron(widths, activation, generator, torch.float64)
        x = torch.randn(samples + test_samples, widths[0], generator=generator, dtype=torch.float64)
        y = teacher(x)
        y = y + noise * torch.randn(y.shape, generator=generator, dtype=torch.float64)
    x, y = (part.to(device, dtype) for part in (x, y))
    source = f"Drawn from a random {'-'.join(map(str, widths))} {activation} perceptron (seed {seed}, noise {noise:g})."
    return Dataset(x[:samples], y[:samples], x[samples:], y[samples:], "teacher-student", source)


def _scikit_learn() -> tuple[Callable[..., Any], Callable[..., Any]]:
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ImportError(
            "expected scikit-learn, which ships the digits, got no such package; install it: pip install 'gnewton[lab]'"
        ) from error
    return load_digits, train_test_split
