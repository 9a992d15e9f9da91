"""The networks that are measured: seven of ordinary size, a tiny one, and a family that grows.

All have a classification loss, batch 100, seeded weights and generated data: what a summary costs does not depend on
what the numbers mean.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

import gnewton as gn


@dataclass
class Network:
    """A model with its loss on one batch: ``loss()`` is the closure, ``batch`` = (inputs, classes)."""

    name: str
    model: nn.Module
    batch: tuple[Tensor, Tensor]
    criterion: nn.Module

    def loss(self) -> Tensor:
        x, y = self.batch
        return self.criterion(self.model(x), y)

    def loss_at(self, parameters: dict[str, Tensor]) -> Tensor:
        """The same loss with other values in place of the parameters."""
        x, y = self.batch
        return self.criterion(functional_call(self.model, parameters, (x,)), y)


class Residual(nn.Module):
    """x + f(x) with two convolutions and batch norms; the shortcut is a convolution where shapes differ."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, out, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(out),
            nn.ELU(),
            nn.Conv2d(out, out, 3, padding=1, bias=False),
            nn.BatchNorm2d(out),
        )
        self.shortcut = nn.Identity()
        if (stride, channels) != (1, out):
            self.shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        self.activation = nn.ELU()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.shortcut(x) + self.body(x))


class Classifier(nn.Module):
    """An encoder over sequences (batch, length, width); its mean over the length is classified."""

    def __init__(self, width: int, heads: int, layers: int, classes: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(1))


def _tanh_perceptron() -> nn.Module:
    return gn.models.perceptron([784, 1024, 200, 100, 10], "tanh")


def _elu_perceptron(inputs: int, hidden: int, width: int) -> nn.Module:
    return gn.models.perceptron([inputs, *[width] * hidden, 10], "elu")


def _lenet() -> nn.Module:
    features = [nn.Conv2d(3, 6, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2)]
    head = [nn.Linear(400, 120), nn.Tanh(), nn.Linear(120, 84), nn.Tanh(), nn.Linear(84, 10)]
    return nn.Sequential(*features, nn.Flatten(), *head)


def _vgg11() -> nn.Module:
    """VGG-11 with every width divided by four; "pool" halves the image."""
    layers: list[nn.Module] = []
    channels = 3
    for width in (16, "pool", 32, "pool", 64, 64, "pool", 128, 128, "pool", 128, 128, "pool"):
        if isinstance(width, int):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ELU()]
            channels = width
        else:
            layers.append(nn.MaxPool2d(2))
    head = [nn.Linear(128, 1024), nn.ELU(), nn.Linear(1024, 1024), nn.ELU(), nn.Linear(1024, 10)]
    return nn.Sequential(*layers, nn.Flatten(), *head)


def _residual() -> nn.Module:
    stem = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ELU()]
    blocks = [Residual(16, 16, 1), Residual(16, 32, 2), Residual(32, 64, 2)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def _transformer() -> nn.Module:
    return Classifier(width=64, heads=4, layers=2, classes=10)


_IMAGE = (3, 32, 32)
# name: (what it is, shape of one input, constructor)
NETWORKS: dict[str, tuple[str, tuple[int, ...], Callable[[], nn.Module]]] = {
    "perceptron": ("784-1024-200-100-10 tanh", (784,), _tanh_perceptron),
    "20x256": ("256 - 20 x 256 - 10 ELU", (256,), lambda: _elu_perceptron(256, 20, 256)),
    "20x1024": ("3072 - 20 x 1024 - 10 ELU", (3072,), lambda: _elu_perceptron(3072, 20, 1024)),
    "lenet": ("LeNet 6-16-120-84-10 tanh, 3x32x32", _IMAGE, _lenet),
    "vgg11": ("VGG-11, width / 4, ELU, 3x32x32", _IMAGE, _vgg11),
    "residual": ("residual, batch norm, 16-32-64, ELU, 3x32x32", _IMAGE, _residual),
    "transformer": ("2-layer transformer encoder, width 64, 4 heads, length 32", (32, 64), _transformer),
    "tiny": ("64-32-10 tanh, batch 32", (64,), lambda: gn.models.perceptron([64, 32, 10], "tanh")),
    "small": ("64-32-32-10 tanh", (64,), lambda: gn.models.perceptron([64, 32, 32, 10], "tanh")),
}
SEVEN = [name for name in NETWORKS if name not in ("tiny", "small")]


def build(name: str, batch: int | None = None, dtype: torch.dtype = torch.float32, seed: int = 0) -> Network:
    """The network of that name, or "chain-DEPTH-WIDTH": DEPTH linear layers of WIDTH units with ELU between them.

    The numbers are drawn in float32: both dtypes get exactly the same network and data. The global random state stays.
    """
    _, shape, make = _chain(name) if name.startswith("chain-") else NETWORKS[name]
    batch = batch or (32 if name == "tiny" else 100)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make().to(dtype)
        x = torch.randn(batch, *shape).to(dtype)
        y = torch.randint(10, (batch,))
    return Network(name, model, (x, y), nn.CrossEntropyLoss())


def _chain(name: str) -> tuple[str, tuple[int, ...], Callable[[], nn.Module]]:
    depth, width = map(int, name.split("-")[1:])
    return name, (width,), lambda: _elu_perceptron(width, depth - 1, width)


PARTITIONS: dict[str, Callable[[nn.Module], gn.Partition]] = {
    "by tensor": gn.Partition.by_tensor,
    "by layer": gn.Partition.by_layer,
    "by kind": gn.Partition.by_kind,
    "single": gn.Partition.single,
}


def partition(name: str, model: nn.Module) -> gn.Partition:
    """The partition of that name, or "in S": the tensors in S consecutive groups of nearly equal number."""
    if not name.startswith("in "):
        return PARTITIONS[name](model)
    fine, n = gn.Partition.by_tensor(model), int(name.removeprefix("in "))
    groups: list[list[int | str]] = [[] for _ in range(n)]
    for i in range(len(fine)):
        groups[i * n // len(fine)].append(i)
    return fine.coarsen(groups)


def direction(network: Network, groups: gn.Partition) -> dict[str, Tensor]:
    """The gradient, each group's part scaled to norm 1: no group is so small that an error in it would not show."""
    u = gn.direction.gradient(network.loss, groups)
    norms = groups.sums({name: part.double() ** 2 for name, part in u.items()}).sqrt()
    return groups.scale(u, torch.where(norms > 0, 1 / norms, torch.zeros_like(norms)))
