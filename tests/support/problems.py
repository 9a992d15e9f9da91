"""The problems on which the laws are tested: small, float64, random data, random directions, seeded.

``Problem.phi`` evaluates L(theta - sum_s eta_s u_s) through ``functional_call``: no line of gnewton is in it, except that
a group's part of u comes from ``Partition.restrict``, which has tests of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import gnewton as gn

DTYPE = torch.float64


@dataclass
class Problem:
    model: nn.Module
    x: Tensor
    y: Tensor
    criterion: Callable[[Tensor, Tensor], Tensor]

    def loss(self) -> Tensor:
        return self.criterion(self.model(self.x), self.y)

    def loss_on(self, x: Tensor, y: Tensor) -> Tensor:
        return self.criterion(self.model(x), y)

    def direction(self, partition: gn.Partition, seed: int = 0) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return {n: torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in partition.parameters.items()}

    def phi(self, partition: gn.Partition, u: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
        parts = [partition.restrict(u, s) for s in range(len(partition))]
        theta = {n: p.detach() for n, p in partition.parameters.items()}

        def value(eta: Tensor) -> Tensor:
            moved = {n: p - sum(eta[s] * part[n] for s, part in enumerate(parts)) for n, p in theta.items()}
            return self.criterion(functional_call(self.model, moved, (self.x,)), self.y)

        return value


def values(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def unchanged(model: nn.Module, before: list[Tensor]) -> bool:
    return all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def central_differences(phi: Callable[[Tensor], Tensor], groups: int, h: float = 1e-3) -> tuple[Tensor, Tensor, Tensor]:
    """g-bar, H-bar and the diagonal of D3 from values of phi alone, (S,), (S, S) and (S,)."""
    steps = h * torch.eye(groups, dtype=DTYPE)
    first = [(phi(-e) - phi(e)) / (2 * h) for e in steps]
    mixed = [[phi(e + f) - phi(e - f) - phi(f - e) + phi(-e - f) for f in steps] for e in steps]
    third = [(phi(-2 * e) - 2 * phi(-e) + 2 * phi(e) - phi(2 * e)) / (2 * h**3) for e in steps]
    second = torch.stack([torch.stack(row) for row in mixed]) / (4 * h * h)
    return torch.stack(first).detach(), second.detach(), torch.stack(third).detach()


class Bowl(nn.Module):
    """L = 1/2 theta^T A theta - b^T theta over two tensors, with the x and y arguments of the other problems."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(3, 2, dtype=DTYPE))
        self.second = nn.Parameter(torch.randn(4, dtype=DTYPE))
        a = torch.randn(10, 10, dtype=DTYPE)
        self.register_buffer("a", a + a.T)

    def forward(self, x: Tensor) -> Tensor:
        theta = torch.cat([self.first.flatten(), self.second])
        return theta @ self.a @ theta / 2 - x @ theta


def perceptron(activation: str = "tanh") -> Problem:
    model = gn.models.perceptron([5, 4, 3, 3], activation=activation, dtype=DTYPE)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return Problem(model, torch.randn(12, 5, dtype=DTYPE), torch.randint(3, (12,)), F.cross_entropy)


def regression() -> Problem:
    problem = perceptron("softplus")
    return Problem(problem.model, problem.x, torch.randn(12, 3, dtype=DTYPE), F.mse_loss)


def convolution() -> Problem:
    layers = [nn.Conv2d(2, 3, 3), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 3)]
    model = nn.Sequential(*layers).to(DTYPE)
    return Problem(model, torch.randn(6, 2, 6, 6, dtype=DTYPE), torch.randint(3, (6,)), F.cross_entropy)


def quadratic() -> Problem:
    return Problem(Bowl(), torch.randn(10, dtype=DTYPE), torch.zeros(()), lambda out, y: out + y)


PROBLEMS = {
    "perceptron": perceptron,
    "elu": lambda: perceptron("elu"),
    "regression": regression,
    "convolution": convolution,
    "quadratic": quadratic,
}


def build(name: str, seed: int = 0) -> Problem:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return PROBLEMS[name]()


PARTITIONS: dict[str, Callable[[nn.Module], gn.Partition]] = {
    "by tensor": gn.Partition.by_tensor,
    "single": gn.Partition.single,
    "by layer": gn.Partition.by_layer,
    "by kind": gn.Partition.by_kind,
    "by row": gn.Partition.by_row,
}


@torch.no_grad()
def unmoved_by_a_character(model, at, length=32):
    """Where the scores of a model of characters, (1, 96, length), stay what they are when the one at a place changes: (length,)."""
    x = torch.zeros(1, length, dtype=torch.long)
    other = x.clone()
    other[0, at] = 5
    return (model(x) == model(other)).all(1)[0]
