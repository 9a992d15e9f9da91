"""Random programs: values are read again, in any order, however the operations that share memory come to lie.

Each step applies one operation to values of earlier steps, drawn at random, so that sums pass a tangent on, products and
activations work in its memory, and both happen to a value that someone still reads.
"""

import os
from collections.abc import Callable
from random import Random

import pytest
import torch
from support.calls import NAMES, calls, scalars
from support.problems import DTYPE
from torch import Tensor, nn

import gnewton as gn
from gnewton.derivatives.record import record
from gnewton.derivatives.rules.generic import Generic

# PROGRAMS=10000 pytest tests/derivatives/test_programs.py: as many as there is time for.
PROGRAMS = int(os.environ.get("PROGRAMS", "60"))

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


@pytest.mark.parametrize("seed", range(PROGRAMS))
def test_tape_and_oracle_agree_on_random_programs(seed):
    program = Program(seed)
    for partition in (gn.Partition.single(program), gn.Partition.by_tensor(program)):
        u = {name: torch.randn_like(p) for name, p in partition.parameters.items()}
        expected = gn.summarize(program, partition, u, engine="nested", full_third=True)
        assert record(program, partition).missing is None
        for options in ({}, {"full_third": True}, {"max_memory": 1.0}):
            summary = gn.summarize(program, partition, u, engine="tape", **options)
            for name in ("gradient", "hessian", "third", "third_full"):
                got, want = getattr(summary, name), getattr(expected, name)
                # Roundings of a few hundred terms, relative to the largest: a program may be badly conditioned.
                assert got is None or (got - want).abs().max() <= 1e-9 * want.abs().max() + 1e-12, (name, options)


# Operators and conversions, which the zoo writes; names that functions of torch call inside, or that gnewton gives to its own.
NOT_DRAWN = {
    *(
        "__add__",
        "__matmul__",
        "__mul__",
        "__radd__",
        "__rmul__",
        "__rsub__",
        "__sub__",
        "__truediv__",
        "to",
        "type_as",
    ),
    *("double", "float", "alias", "fold", "tanhshrink", "assign", "standardize"),
}
DRAWN = [name for name in NAMES if name not in NOT_DRAWN]


class Drawn(nn.Module):
    """Functions drawn from the table of rules, each called in a way drawn from those that fit it."""

    def __init__(self, seed: int, steps: int = 3) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.weights = nn.ParameterList(torch.randn(shape, dtype=DTYPE) for shape in ((3, 6), (4, 6), (6,)))
        self.inputs = torch.randn(4, 3, dtype=DTYPE)
        self.steps: list = []
        draw = Random(seed)
        for name in draw.choices(DRAWN, k=steps):
            ways = list(calls(name))
            for function, way in draw.sample(ways, len(ways)):
                if self._fits(step := (name, function, way)):
                    self.steps.append(step)
                    break

    def _fits(self, step) -> bool:
        """Whether torch computes it, and its first and second derivatives at all."""
        weights = list(self.weights)
        try:
            value = self.run([*self.steps, step])
            slopes = torch.autograd.grad(value, weights, create_graph=True, materialize_grads=True)
            torch.autograd.grad(sum(g.sum() for g in slopes), weights, materialize_grads=True)
            return bool(torch.isfinite(value))
        except Exception:
            return False

    def forward(self):
        return self.run(self.steps)

    def run(self, steps):
        a, b, c = self.weights
        values = [(self.inputs @ a).sigmoid() * 0.8 + 0.1]
        values.append((b * values[0] + c).sigmoid() * 0.7 + 0.2)
        for name, function, way in steps:
            row = scalars(way(function, values[-1], values[-2]))
            if row is None:
                raise ValueError(name)
            # All of them, spread over a value of the usual shape.
            places = torch.arange(max(24, len(row)))
            spread = torch.zeros(24, dtype=DTYPE).index_add(
                0, places % 24, row[places % len(row)] * (places % 7 + 1) / 7
            )
            values.append((spread.reshape(4, 6) - 0.5).sigmoid() * 0.8 + 0.1)
        return sum((v.flatten() * torch.linspace(0.5, 1.5, 24, dtype=DTYPE)).sin().sum() for v in values)


@pytest.mark.parametrize("seed", range(PROGRAMS))
@pytest.mark.filterwarnings("ignore")  # deprecated ways to call, which are ways nevertheless
def test_tape_and_oracle_agree_on_programs_drawn_from_the_table_of_rules(seed):
    program = Drawn(seed)
    partition = gn.Partition.by_tensor(program)
    u = {name: torch.randn_like(p) for name, p in partition.parameters.items()}
    expected = gn.summarize(program, partition, u, engine="nested", full_third=True)
    names = [name for name, _, _ in program.steps]
    for full_third in (False, True):
        summary = gn.summarize(program, partition, u, full_third=full_third)
        for order in ("gradient", "hessian", "third", "third_full"):
            got, want = getattr(summary, order), getattr(expected, order)
            # Where torch's own third derivative is nan (logcumsumexp) there is nothing to compare with.
            if got is not None and torch.isfinite(want).all():
                scale = want.abs().max() + expected.gradient.abs().max()
                assert (got - want).abs().max() <= 1e-9 * scale, (names, order, full_third, got, want)


@pytest.mark.filterwarnings("ignore")
def test_every_function_of_the_table_has_a_call_that_its_rule_serves():
    unserved = [name for name in DRAWN if not any(_served(name, *call) for call in calls(name))]
    assert [name for name in unserved if not _is_removed(name)] == []


def _is_removed(name) -> bool:
    """Whether torch says that it has the name no more: torch.cholesky from 2.14 on."""
    try:
        getattr(torch, name)(torch.eye(2))
    except RuntimeError as error:
        return "is now removed" in str(error)
    return False


def _served(name, function, way) -> bool:
    program = Drawn(0, steps=0)
    program.steps = [(name, function, way)]
    try:
        tape = record(program, gn.Partition.single(program))
    except Exception:
        return False
    return any(o.name == name and not isinstance(o.rule, Generic) for o in tape.operations)
