"""What the exact direction of one sample's loss costs: CPU seconds of a network n-n-...-10, for B samples at once.

Every way starts from inputs and targets and ends with the mean direction over the batch, so that the gradient is its unit;
"sweep alone", "solves" and "shortcut alone" start from the same passes and leave the mean away.
"""

import gc
import math
import statistics
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

import gnewton as gn
from benchmarks.measure import EXPECTED, alarm, timed, why
from gnewton import exact
from gnewton.exact.riccati import backward, solve
from gnewton.exact.sample_directions import dampings

OUTPUTS = 10
DAMPING = 30.0
Way = Callable[["Case"], Any]


class Case:
    """A tanh perceptron with ``hidden`` layers of ``width`` units, cross-entropy, and B random samples."""

    def __init__(self, width: int, hidden: int, batch: int, dtype: torch.dtype) -> None:
        g = torch.Generator().manual_seed(0)
        self.model = gn.models.perceptron([width] * (hidden + 1) + [OUTPUTS], generator=g, dtype=dtype)
        self.x = torch.randn(batch, width, generator=g, dtype=torch.float64).to(dtype)
        self.y = torch.randint(OUTPUTS, (batch,), generator=g)
        self.passes = self.record()
        self.pivots = [
            (p.A, torch.randn_like(p.solution)) for p in backward(self.passes, dampings(self.passes, DAMPING), [])
        ]

    def record(self) -> exact.Passes:
        return exact.forward_backward(self.model, self.x, self.y)

    @cached_property
    def alone(self) -> list[exact.Passes]:
        """The samples, each on a Passes of its own."""
        return [exact.forward_backward(self.model, x[None], y[None]) for x, y in zip(self.x, self.y, strict=True)]


def gradient(case: Case) -> None:
    loss = torch.nn.functional.cross_entropy(case.model(case.x), case.y)
    torch.autograd.grad(loss, list(case.model.parameters()))


def dense(case: Case) -> Tensor:
    passes = case.record()
    H = exact.hessian.dense(passes)
    H.diagonal(dim1=1, dim2=2).add_(DAMPING)
    g = torch.cat([g.flatten(1) for g in passes.gradient().values()], dim=1)
    return torch.linalg.solve(H, -g).mean(0)


WAYS: dict[str, Way] = {
    "gradient": gradient,
    "sweep": lambda case: exact.newton_direction(case.record(), DAMPING, solver="riccati").mean(),
    "shortcut": lambda case: exact.newton_direction(case.record(), DAMPING, solver="shortcut").mean(),
    "|H|": lambda case: exact.saddle_free_direction(case.record(), DAMPING).mean(),
    "dense": dense,
    "sweep alone": lambda case: exact.newton_direction(case.passes, DAMPING, solver="riccati"),
    "shortcut alone": lambda case: exact.newton_direction(case.passes, DAMPING, solver="shortcut"),
    "one by one": lambda case: [exact.newton_direction(one, DAMPING, solver="riccati") for one in case.alone],
    # In the layout in which the sweep hands them over, which is the solver's own.
    "solves": lambda case: [solve(A.mT, rhs.mT) for A, rhs in case.pivots],
}


def time(
    width: int, hidden: int, batch: int, dtype: str, ways: Sequence[str], seconds: float = 1.0, patience: float = 60.0
) -> dict[str, Any]:
    """CPU seconds of each way, the median of runs taken in turns; or why there are none."""
    # glibc hands freed memory back to the system, and counts the pages anew, until a large block was freed once, as in
    # every program that ever let go of a data set.
    torch.ones(2**25 - 4096, dtype=torch.uint8)
    case = Case(width, hidden, batch, getattr(torch, dtype))
    timings: dict[str, Any] = {}
    runs: dict[str, _Runs] = {}
    for way in ways:
        try:
            with alarm(patience):
                runs[way] = _Runs(partial(WAYS[way], case))
        except EXPECTED as error:
            timings[way] = {"seconds": None, "why": why(error)}
    # Else every collection walks through all that torch has loaded, and leaves the caches cold.
    gc.freeze()
    # In turns, so that a slow minute of the machine strikes all ways.
    for _ in range(min(30, max(3, round(seconds / max(one.cost for one in runs.values()))))):
        for one in runs.values():
            one.another()
    timings |= {way: {"seconds": statistics.median(one.seconds), "why": None} for way, one in runs.items()}
    parameters = sum(p.numel() for p in case.model.parameters())
    facts = {"width": width, "hidden": hidden, "batch": batch, "dtype": dtype, "parameters": parameters}
    return facts | {"ways": timings}


class _Runs:
    """A function, run often enough at a time for the clock, after two runs that do not count."""

    def __init__(self, function: Callable[[], Any]) -> None:
        timed(function)
        took = timed(function)[0]
        # Repeated until they take 50 ms: the clock and what the others left in the caches weigh little then.
        self._function, self._times = function, max(1, math.ceil(0.05 / max(took, 1e-6)))
        self.cost, self.seconds = took * self._times, list[float]()

    def another(self) -> None:
        self.seconds.append(timed(self._function, self._times)[0])


def disagreement(width: int, hidden: int, batch: int) -> float:
    """How far the ways that solve the same system are apart, relative, in float64."""
    case = Case(width, hidden, batch, torch.float64)
    directions = [dense(case)]
    directions += [_flat(WAYS[way](case)) for way in ("sweep", *(["shortcut"] if hidden == 1 else []))]
    return max(float((d - directions[0]).norm() / directions[0].norm()) for d in directions)


def _flat(direction: dict[str, Tensor]) -> Tensor:
    return torch.cat([d.flatten() for d in direction.values()])
