r"""Learning rates for another optimizer: what the Newton step over the groups says about SGD's or Adam's rates here.

A step on mini-batch b goes along that batch's own direction u_b, but what counts is the mean loss L. The rates suggested
minimize, up to the cubic term, the mean over the batches of L(θ - U_b I η):

    ḡ = mean_b DL[u_b],     H̄ = mean_b D²L_b[u_b, u_b],     D3 = mean_b D³L_b[u_b, u_b, u_b],     η* = newton_step(ḡ, H̄, D3)

Two shortcuts mislead. A batch that judges its own direction, DL_b[u_b], counts its noise as descent; the average of the
directions has lost the noise that every step carries. Both suggest rates that are too large for mini-batches.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from numbers import Real
from textwrap import shorten
from typing import Any, Literal

import torch
from torch import Tensor

from gnewton.cubic import Step, check_strengths, newton_step
from gnewton.direction import Direction, gradient, slopes
from gnewton.loss import Loss, Weight
from gnewton.loss import batches as weighed
from gnewton.partition import Partition, accumulator_dtype
from gnewton.proposer import Proposer
from gnewton.ranks import Part
from gnewton.summary import Summary, summarize
from gnewton.undo import RandomState

_ROWS = 60


@dataclass(frozen=True, eq=False, repr=False)
class Suggestion:
    """What `suggest_learning_rates` found; prints as a table.

    learning_rates (S,): one rate per group, in units of the direction's: SGD's learning rates for the gradient, those of
    the optimizer that proposed otherwise. low, high (S,): the quartiles over the batches of the rates that each batch's
    direction would get alone; NaN where every one failed. All float64 on the CPU. A negative rate says that the direction
    of this group climbs once the other groups have moved, or that the model is concave along it. A rate of 0 belongs to a
    group that does not matter here: frozen, unused, without direction. batches: how many were looked at; failed: for how
    many of them there was no step; failures: then which batch (from 0), which groups and why. partition: the groups.
    """

    partition: Partition
    learning_rates: Tensor
    low: Tensor
    high: Tensor
    batches: int
    failures: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The S group names."""
        return self.partition.names

    @property
    def failed(self) -> int:
        """The number of batches whose own step failed."""
        return len(self.failures)

    def parameter_groups(self, scale: float = 1.0, negative: Literal["zero", "raise"] = "zero") -> list[dict[str, Any]]:
        """Groups for a torch optimizer, ``{"params": [...], "lr": scale * rate, "name": ...}``, in the partition's order.

        ``scale`` is the damping. torch takes no negative rate: with ``negative="zero"`` such a group stays where it is,
        and the other rates, found with it moving, may be too large: take a smaller scale or a coarser partition (by_layer).
        Raises ValueError where a tensor is split among groups, which torch has no way to say, for a scale that is not a
        finite number above 0, and, with ``negative="raise"``, for negative rates, by name.

        >>> import torch, gnewton as gn
        >>> model = gn.models.Quadratic([2.0, 8.0])
        >>> suggestion = suggest_learning_rates(model, gn.Partition.by_tensor(model), cubic=0.0)
        >>> optimizer = torch.optim.SGD(suggestion.parameter_groups(scale=0.5))
        >>> [(group["name"], round(group["lr"], 4)) for group in optimizer.param_groups]
        [('theta', 0.0654)]
        """
        _check_positive("scale", scale)
        if negative not in ("zero", "raise"):
            raise ValueError(f'expected negative="zero" or "raise", got {negative!r}; choose one of them')
        _check_whole(self.partition)
        below = [name for name, rate in zip(self.names, self.learning_rates.tolist(), strict=True) if rate < 0]
        if below and negative == "raise":
            raise ValueError(
                f"expected no negative learning rate, got one for {', '.join(below)}; "
                'pass negative="zero" to leave these groups where they are, or coarsen the partition'
            )
        rates = (scale * self.learning_rates.clamp(min=0.0)).tolist()
        held = [[self.partition.parameters[name] for name in self.partition.members(s)] for s in range(len(self.names))]
        return [{"params": p, "lr": rate, "name": name} for p, rate, name in zip(held, rates, self.names, strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and strings for ``json.dumps``; a quartile that there is none of is None."""
        numbers = {key: getattr(self, key).tolist() for key in ("learning_rates", "low", "high")}
        return {
            "names": list(self.names),
            **{key: [x if math.isfinite(x) else None for x in values] for key, values in numbers.items()},
            "batches": self.batches,
            "failed": self.failed,
            "failures": list(self.failures),
        }

    def __repr__(self) -> str:
        rows = self._rows()
        wide = max(len(row[0]) for row in rows)
        lines = [f"  {a:<{wide}}  {b:>13}  {c:>9}  {d:>9}  {e}".rstrip() for a, b, c, d, e in rows]
        return "\n".join(
            [f"Suggestion: {self._headline()}", *lines, *(f"  {shorten(line, 118)}" for line in self.failures[:3])]
        )

    def _repr_html_(self) -> str:
        from html import escape

        head, *body = [[escape(cell) for cell in row] for row in self._rows()]
        cells = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in body)
        top = "<tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr>"
        notes = "".join(f"<p>{escape(shorten(line, 118))}</p>" for line in self.failures[:3])
        return f"<table><caption>Suggestion: {self._headline()}</caption>{top}{cells}</table>{notes}"

    def _headline(self) -> str:
        rates = f"{len(self.names):,} learning rate{'s' * (len(self.names) != 1)}"
        return f"{rates} from {self.batches} batch{'es' * (self.batches != 1)}, {self.failed} failed"

    def _rows(self) -> list[tuple[str, ...]]:
        table = zip(self.names, *(x.tolist() for x in (self.learning_rates, self.low, self.high)), strict=True)
        rows = [(name, f"{eta:.3g}", f"{low:.3g}", f"{high:.3g}", _note(eta)) for name, eta, low, high in table]
        more = len(rows) - _ROWS
        shown = rows[:_ROWS] + ([("...", f"{more:,} more", "", "", "")] if more > 0 else [])
        return [("group", "learning rate", "low", "high", ""), *shown]


def suggest_learning_rates(
    loss: Loss,
    partition: Partition,
    data: Iterable[Any] | None = None,
    *,
    proposer: torch.optim.Optimizer | None = None,
    cubic: float = 1.0,
    ridge: float = 0.0,
    diagonal: bool = False,
    batches: int | None = 20,
    lr: float = 1.0,
    weight: Weight | None = None,
    engine: str = "auto",
) -> Suggestion:
    r"""One learning rate per group for a model where it stands, from the first ``batches`` mini-batches of ``data``.

    Args:
        loss: ``loss(*batch)``, a batch mean with its graph, or ``loss()`` without data; not ``.backward()``-ed.
        partition: the S groups.
        data: mini-batches of the size to be trained with, as the noise of a batch lowers the rates; the whole data set as
            one batch gives the rates of full-batch training.
        proposer: None for the gradient: SGD's learning rates. A torch optimizer: rates along the step that it proposes
            from its present state, as learning rates of that optimizer, whatever its own lr is now. Let it take some
            steps before: the first step of fresh momentum is the gradient, later ones are up to 1 / (1 - momentum) longer.
        cubic, ridge, diagonal: as in ``newton_step``; the metric and the model come from the averaged summary.
        batches: how many, from the front; None takes all.
        lr: λ₁ > 0, a factor on every rate and quartile.
        weight: ``weight(*batch)`` counts a batch's samples; by default they are ``len(batch[0])``.
        engine: of the summaries, as in ``summarize``.

    The rates minimize the mean of L(θ - U_b I η) over the batches b, L being the mean loss of them all (equation at the
    top of this module; S = 1 without noise is Cauchy's exact line search). Order 1 is exact. Orders 2 and 3 of L along
    u_b are taken on batch b itself, which saves a summary for each pair of batches and makes an error that vanishes as
    batches grow. ``low`` and ``high`` are quartiles over the batches of the step from that batch's part of the mean
    alone: wide where the directions differ much. The cost: two gradients and one summary a batch.

    Parameters, ``.grad``, buffers, the proposer's state and torch's random state are left as they were (a ``generator`` of
    one's own is not). Under θ_s = c θ̃_s a rate along the gradient becomes η / c².

    Raises TypeError or ValueError for unfit arguments, data or loss, FloatingPointError for a loss that is not finite, and
    NewtonStepError where the averaged summary has no step: its message names the groups.

    >>> import torch, gnewton as gn
    >>> model = gn.models.Quadratic([2.0, 8.0], dtype=torch.float64)
    >>> suggest_learning_rates(model, gn.Partition.by_scalar(model), cubic=0.0)
    Suggestion: 2 learning rates from 1 batch, 0 failed
      group     learning rate        low       high
      theta[0]            0.5        0.5        0.5
      theta[1]          0.125      0.125      0.125
    """
    _check(partition, data, batches, lr)
    check_strengths(cubic=cubic, ridge=ridge)
    proposes = None if proposer is None else Proposer(proposer, partition)
    summary_of = partial(summarize, order=3 if cubic > 0 else 2, engine=engine)
    random = RandomState(partition)
    try:
        with partition.ranks.session():
            # Kept: a loader that shuffles would come with other batches the second time.
            pairs = list(islice(weighed(data, weight), batches))
            sizes = _mean_sizes([n for _, n in pairs], partition)
            mean = gradient(loss, partition, None if data is None else [batch for batch, _ in pairs], weight=weight)
            parts = [
                _part(partial(loss, *batch), partition, proposes, mean, partial(summary_of, samples=n))
                for batch, n in pairs
            ]
    finally:
        random.restore()
    weighted = [part * n for part, n in zip(parts, sizes, strict=True)]
    whole = sum(weighted[1:], start=weighted[0]) * (1 / sum(sizes))
    rates = newton_step(whole, cubic, ridge=ridge, diagonal=diagonal).learning_rates
    steps = [newton_step(part, cubic, ridge=ridge, diagonal=diagonal, on_failure="report") for part in parts]
    low, high = _quartiles(steps, len(partition))
    failures = tuple(f"batch {i}: {step.message}" for i, step in enumerate(steps) if not step.status.ok)
    return Suggestion(partition, lr * rates, lr * low, lr * high, len(parts), failures)


def _mean_sizes(sizes: list[float], partition: Partition) -> list[float]:
    """The number of samples of each batch, the mean over the ranks, which all have as many batches."""
    tensor = torch.tensor(sizes, dtype=accumulator_dtype(partition.device), device=partition.device)
    return list(partition.ranks.mean("batch sizes", lambda: Part(tensors=[tensor])).tensors[0].tolist())


def _part(
    loss: Loss,
    partition: Partition,
    proposer: Proposer | None,
    mean_gradient: Direction,
    summary_of: "partial[Summary]",
) -> Summary:
    """One batch's part of the mean: its own orders 2 and 3 along its direction, the mean loss's order 1 along it."""
    u = gradient(loss, partition, samples=summary_of.keywords["samples"])
    if proposer is not None:
        u = _proposal(proposer, u)
    summary = summary_of(loss, partition, u)
    return replace(summary, gradient=slopes(mean_gradient, u, partition))


def _proposal(proposer: Proposer, gradients: Direction) -> Direction:
    """The proposer's step at lr = 1, so that the rates along it are learning rates; its state and its lr stay."""
    groups = proposer.optimizer.param_groups
    saved = [group["lr"] for group in groups]
    try:
        for group in groups:
            group["lr"] = 1.0
        u = proposer.propose(gradients)
        proposer.undo()
    finally:
        for group, value in zip(groups, saved, strict=True):
            group["lr"] = value
    return u


def _quartiles(steps: Sequence[Step], groups: int) -> tuple[Tensor, Tensor]:
    rates = [step.learning_rates for step in steps if step.status.ok]
    if not rates:
        nothing = torch.full((groups,), math.nan, dtype=torch.float64, device="cpu")
        return nothing, nothing
    low, high = (torch.quantile(torch.stack(rates), q, dim=0) for q in (0.25, 0.75))
    return low, high


def _note(rate: float) -> str:
    return "negative" if rate < 0 else "" if rate else "no effect here"


def _check(partition: Partition, data: Any, batches: int | None, lr: float) -> None:
    if not isinstance(partition, Partition):
        raise TypeError(f"expected a Partition, got {type(partition).__name__}; write Partition.by_tensor(model)")
    if data is not None and not isinstance(data, Iterable):
        raise TypeError(f"expected data as batches, got {type(data).__name__}; a Dataset gives them by .batches(100)")
    if batches is not None and (not isinstance(batches, int) or batches < 1):
        raise ValueError(f"expected at least one batch, got batches={batches!r}; None takes all")
    _check_positive("lr", lr)


def _check_positive(name: str, value: float) -> None:
    if not (isinstance(value, Real) and 0 < value < math.inf):
        raise ValueError(f"expected a finite {name} above 0, got {value!r}; 1 is the step as it was found")


def _check_whole(partition: Partition) -> None:
    split = [name for name in partition.parameters if not isinstance(partition.label(name), int)]
    if split:
        raise ValueError(
            f"expected groups of whole tensors, got {split[0]} split among groups"
            + (f" (and {len(split) - 1} more tensors)" if len(split) > 1 else "")
            + ": a torch optimizer has one learning rate a tensor. Coarsen the partition, or suggest for Partition.by_tensor"
        )
