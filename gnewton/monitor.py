r"""What Newton's model says of the learning rates of any torch optimizer, while it trains and without a change to the training.

After a step d the next batch gives the exact summary along d where the step ended: g-bar (S,) and H-bar (S, S). Group s would have
gone lower by going t_s times as far, the others as they went; all groups together, t* times as far:

    t_s = 1 + g-bar_s / H-bar_ss,        t* = 1 + sum_s g-bar_s / sum_st H-bar_st

The sums are over the last looks, each with 0.8 of the weight of the next, and as if every step had been taken at the rates of the
last one: a schedule that changes the rate leaves no step of another length behind. Early in a training t* tells how many times too small the
rate is. Later the curvature follows the rate, and t* lies between 1/2 and 1 for almost every rate: see ``policies.calibrated``.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gnewton.direction import Direction
from gnewton.line import Line, Objective
from gnewton.partition import Partition
from gnewton.proposer import Proposal
from gnewton.undo import Buffers, Parameters, RandomState

_MEMORY = 0.8
_FITS = (0.5, 1.5)


@dataclass(frozen=True)
class RateLook:
    """One look: the step it followed, t*, t_s (S,), and noise (S,), the deviation of t_s between batches; infinite without curvature.

    t_s is NaN where the last step had no effect: the group did not move, or the loss does not depend on it. So is t* where none had.
    """

    step: int
    newton_ratio: float
    group_ratios: tuple[float, ...]
    noise: tuple[float, ...]


class RateMonitor:
    """Looks at the last step of an optimizer from the next batch.

    Args:
        optimizer: any of torch's; it is followed by its hooks.
        partition: the S groups that are told apart.
        period: steps between two looks.

    Raises TypeError or ValueError for unfit arguments, and for an optimizer of other parameters.

    Call ``look(loss)`` before every step, with the loss of the batch that the step will use: most calls do nothing, and a look
    costs one summary. Parameters, ``.grad``, buffers and random state are left as they are. ``history`` holds the looks.

    >>> import torch, gnewton as gn
    >>> model = gn.models.Quadratic([1.0, 1.0], dtype=torch.float64)
    >>> sgd = torch.optim.SGD(model.parameters(), lr=0.25)
    >>> monitor = RateMonitor(sgd, gn.Partition.single(model), period=1)
    >>> for _ in range(3):
    ...     monitor.look(model)
    ...     sgd.zero_grad(); model().backward(); _ = sgd.step()
    >>> round(monitor.history[-1].newton_ratio, 6)
    4.0
    >>> monitor.words()
    ['all: the rate is 4.0 times too small']
    """

    def __init__(self, optimizer: torch.optim.Optimizer, partition: Partition, *, period: int = 10) -> None:
        if not (isinstance(period, int) and period >= 1):
            raise ValueError(f"expected a period of at least 1 step, got {period!r}; 10 costs little")
        _check_moves(optimizer, partition)
        self.partition, self.period, self.history = partition, period, list[RateLook]()
        self._steps = 0
        self._previous: Direction | None = None
        self._optimizer = optimizer
        self._rates: dict[str, float] = {}
        self._sum: _Step | None = None
        self._seen: list[_Step] = []
        optimizer.register_step_pre_hook(self._before_step)

    def look(self, loss: Callable[[], Tensor]) -> None:
        """Judge the last step by this batch, if it is time; ``loss()`` returns the loss with its graph."""
        previous, self._previous = self._previous, None
        if previous is None:
            return
        last: Direction = {n: previous[n] - p.detach() for n, p in self.partition.parameters.items()}
        buffers, random = Buffers(self.partition.module), RandomState(self.partition)
        try:
            line = Line(Objective(self.partition, loss), Proposal(last))
            summary = line.summary(order=2)
        finally:
            buffers.restore()
            random.restore()
        assert summary is not None
        assert summary.hessian is not None
        self._record(_Step(summary.gradient, summary.hessian))

    def words(self) -> list[str]:
        """For each group, what the last look says of its rate; nothing before the first look."""
        if not self.history:
            return []
        return [
            f"{name}: {_say(t)}" for name, t in zip(self.partition.names, self.history[-1].group_ratios, strict=True)
        ]

    def _before_step(self, *_: Any) -> None:
        self._steps += 1
        if self._steps % self.period == 0:
            self._previous = Parameters(self.partition).values
            self._follow_rates()

    def _follow_rates(self) -> None:
        """See what is remembered as it would be at the rates of the step that comes; forget it where nobody can tell."""
        held = {id(p): float(group.get("lr", 1.0)) for group in self._optimizer.param_groups for p in group["params"]}
        now = {name: held.get(id(p), 1.0) for name, p in self.partition.parameters.items()}
        before, self._rates = self._rates, now
        if self._sum is None or before == now:
            return
        members = map(self.partition.members, range(len(self.partition)))
        factors = [_common_factor([(before[n], now[n]) for n in names]) for names in members]
        if None in factors:
            self._sum, self._seen = None, []
        else:
            c = self._sum.slope.new_tensor(factors)
            self._sum, self._seen = self._sum.times(c), [one.times(c) for one in self._seen]

    def _record(self, last: "_Step") -> None:
        self._sum = last if self._sum is None else last.plus(self._sum, _MEMORY)
        self._seen = [*self._seen, last][-10:]
        # What is remembered of a group that stands still says nothing of the rate that it has now.
        own = torch.where(last.ratios().isnan(), math.nan, self._sum.ratios())
        seen = torch.stack([one.ratios() for one in self._seen])
        spread = seen.std(0).nan_to_num(nan=math.inf) if len(seen) > 1 else torch.full_like(own, math.inf)
        common = math.nan if own.isnan().all() else float(self._sum.ratio())
        self.history.append(RateLook(self._steps, common, tuple(own.tolist()), tuple(spread.tolist())))


class _Step(NamedTuple):
    """A step as the next batch saw it: g-bar (S,) where it ended, and H-bar (S, S); of several steps, their sums."""

    slope: Tensor
    hessian: Tensor

    def ratios(self) -> Tensor:
        """t_s (S,)."""
        return _ratios(self.slope, self.hessian.diagonal())

    def ratio(self) -> Tensor:
        """t*."""
        return _ratios(self.slope.sum(), self.hessian.sum())

    def plus(self, other: "_Step", weight: float) -> "_Step":
        """The sum with another one."""
        return _Step(self.slope + weight * other.slope, self.hessian + weight * other.hessian)

    def times(self, factors: Tensor) -> "_Step":
        """The same step, each group's part so many times as long, from the same start and by the same model."""
        start, hessian = self.slope + self.hessian.sum(1), factors[:, None] * self.hessian * factors
        return _Step(factors * start - hessian.sum(1), hessian)


def _common_factor(rates: list[tuple[float, float]]) -> float | None:
    """By what a group's rates were multiplied, before and now of each; None where they differ in it, or from or to 0.

    >>> _common_factor([(0.5, 0.25), (4.0, 2.0)]), _common_factor([(0.5, 0.25), (4.0, 4.0)]), _common_factor([(0.0, 1.0)])
    (0.5, None, None)
    """
    if not all(0 < rate < math.inf for pair in rates for rate in pair):
        return None
    factors = [now / before for before, now in rates]
    return factors[0] if all(math.isclose(one, factors[0], rel_tol=1e-9) for one in factors) else None


def _check_moves(optimizer: torch.optim.Optimizer, partition: Partition) -> None:
    if not isinstance(partition, Partition):
        raise TypeError(f"expected a Partition, got {type(partition).__name__}; write Partition.by_layer(model)")
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"expected a torch.optim optimizer, got {type(optimizer).__name__}; give the one that trains")
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if held.isdisjoint(map(id, partition.parameters.values())):
        raise ValueError(
            "expected an optimizer of the partition's parameters, got one that moves none of them, so that every rate would "
            "seem to fit; build both on the same model"
        )


def _ratios(slope: Tensor, curvature: Tensor) -> Tensor:
    """1 + slope / curvature; without curvature infinite where it falls, 0 where it rises, NaN where nothing happens."""
    flat = torch.where(slope > 0, math.inf, 0.0).masked_fill((slope == 0) & (curvature == 0), math.nan).to(slope)
    return torch.where(curvature > 0, 1 + slope / curvature, flat)


def _say(ratio: float) -> str:
    if math.isnan(ratio):
        return "no effect: it did not move, or the loss does not depend on it"
    if ratio == math.inf:
        return "the loss falls without curvature: no rate is too large here"
    if ratio <= 0:
        return "the last steps went uphill"
    if ratio > _FITS[1]:
        return f"the rate is {ratio:.1f} times too small"
    if ratio < _FITS[0]:
        return f"the rate is {1 / ratio:.1f} times too large"
    return "the rate fits"
