"""Random programs: values are read again, in any order, however the operations that share memory come to lie.

Each step applies one operation to values of earlier steps, drawn at random, so that sums pass a tangent on, products and
activations work in its memory, and both happen to a value that someone still reads.
"""

from collections.abc import Callable
from random import Random

import pytest
import torch
from support.problems import DTYPE
from torch import Tensor, nn

import gnewton as gn
from gnewton.derivatives.record import record

N = 3
UNARY: list[Callable[[Tensor], Tensor]] = [
    torch.tanh,
    torch.sigmoid,
    torch.sin,
    torch.relu,
    nn.functional.elu,
    nn.functional.gelu,
    nn.functional.silu,
    lambda a: a.softmax(-1),
    lambda a: a.log_softmax(0),
    lambda a: nn.functional.layer_norm(a, (N,)),
    lambda a: a * 0.7,
    lambda a: a / 3,
    lambda a: a - 0.1,
    lambda a: a.reshape(-1).view(N, N),
    lambda a: a.mT,
    lambda a: a.flip(0),
    lambda a: a.clone().mul_(a),
    lambda a: a.clone().tanh_(),
    lambda a: a.cumsum(1),
    lambda a: nn.functional.avg_pool2d(a[None, None], 3, 1, 1)[0, 0],
    lambda a: a.mean(0, keepdim=True) + torch.zeros_like(a),
    lambda a: torch.cat([a[1:], a[:1]]),
]
BINARY: list[Callable[[Tensor, Tensor], Tensor]] = [
    torch.add,
    torch.sub,
    torch.mul,
    torch.matmul,
    nn.functional.linear,
    lambda a, b: a.add(b, alpha=-2),
    lambda a, b: a + b[0],
    lambda a, b: a * b[:, :1],
    lambda a, b: torch.stack([a, b]).prod(0),
    lambda a, b: (a[None] @ torch.stack([b, a]))[0],
    lambda a, b: nn.functional.conv1d(a[None], b[:, :, None], b[:, 0])[0],
]


class Program(nn.Module):
    def __init__(self, seed: int, steps: int = 9) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.weights = nn.ParameterList(torch.randn(N, N, dtype=DTYPE) for _ in range(3))
        draw = Random(seed)
        self.steps = [
            (draw.choice(draw.choice((UNARY, BINARY))), draw.randrange(10**6), draw.randrange(10**6))
            for _ in range(steps)
        ]

    def forward(self) -> Tensor:
        values = list(self.weights)
        for operation, i, j in self.steps:
            # Half of the time the newest value: else most programs would be shallow.
            a, b = values[-1 if i % 2 else i // 2 % len(values)], values[j % len(values)]
            values.append(operation(a, b) if operation in BINARY else operation(a))
        return sum(v.tanh().mul(torch.arange(N * N).view(N, N) + i).mean() for i, v in enumerate(values))


@pytest.mark.parametrize("seed", range(100))
def test_tape_and_oracle_agree_on_random_programs(seed):
    program = Program(seed)
    for partition in (gn.Partition.single(program), gn.Partition.by_tensor(program)):
        u = {name: torch.randn_like(p) for name, p in partition.parameters.items()}
        expected = gn.summarize(program, partition, u, engine="nested", full_third=True)
        assert record(program, partition).missing is None
        for options in ({}, {"full_third": True}, {"max_memory": 1.0}):
            found = gn.summarize(program, partition, u, engine="tape", **options)
            for name in ("gradient", "hessian", "third", "third_full"):
                got, want = getattr(found, name), getattr(expected, name)
                # Roundings of a few hundred terms, relative to the largest: a program may be badly conditioned.
                assert got is None or (got - want).abs().max() <= 1e-9 * want.abs().max() + 1e-12, (name, options)
