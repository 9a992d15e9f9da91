"""The summary: the S-dimensional shadow of the loss's derivatives along a direction.

With phi(eta) = L(theta - sum_s eta_s u_s), where u_s is the direction u inside group s and zero elsewhere,

    g-bar_s = D L[u_s],   H-bar_st = D^2 L[u_s, u_t],   D3_rst = D^3 L[u_r, u_s, u_t]

are the derivatives of phi at 0, up to the sign (-1)^order (Wolinski, arXiv 2312.03885, section 3).
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from numbers import Real
from typing import Any, Self

import torch
from torch import Tensor

from gnewton.derivatives import differences, graph, nested, price, proof, sweep
from gnewton.derivatives.gauss_newton import TwoParts, two_parts
from gnewton.derivatives.opened import functions_opened, record_opened
from gnewton.derivatives.record import record_in_mode, warn_of_missing
from gnewton.derivatives.recorder import HOOKED
from gnewton.derivatives.tape import Tape
from gnewton.direction import Direction, check_direction, gradient, lengths
from gnewton.loss import Loss, Tally, Weight, batches, check_partition, differentiable_mode, evaluate
from gnewton.partition import Groups, Partition, accumulator_dtype, check_names, merged_groups
from gnewton.ranks import Part
from gnewton.repeated import WatchedCalls
from gnewton.undo import Start

_TENSORS = ("value", "gradient", "hessian", "third", "third_full")
_ORDERS = {"hessian": 2, "third": 3}
_ENGINES = ("auto", "tape", "nested", "differences")


@dataclass(frozen=True, eq=False)
class Summary:
    """Value and derivatives of the loss along one direction, per group; sums and multiples of it are summaries too.

    value () the loss; gradient (S,) g-bar; hessian (S, S) H-bar; third (S,) the diagonal of D3; third_full (S, S, S) all
    of D3. What was not computed is None. float64, on the parameters' device, in units of the loss. ``names`` are the
    group names. ``engine`` is how it was computed ("tape", "nested", "differences"; None for given numbers) and ``errors``
    the estimated error of the largest entry of "hessian" and "third", where it is not exact. ``curvature`` is "hessian", or
    "gauss-newton" where ``hessian`` holds that matrix. Derivatives are those of L along +u, while the step goes to theta - U I eta.

    >>> import gnewton as gn
    >>> s = gn.Summary.from_tensors(gradient=[1.0, 4.0], hessian=[[1.0, 6.0], [6.0, 16.0]])
    >>> (s + s * 2).gradient
    tensor([ 3., 12.], dtype=torch.float64)
    >>> print(s)
    Summary(S=2, value=0, gradient, hessian)
      group    g_s  H_ss
      group 0    1     1
      group 1    4    16
    """

    value: Tensor
    gradient: Tensor
    hessian: Tensor | None = None
    third: Tensor | None = None
    third_full: Tensor | None = None
    names: tuple[str, ...] | None = None
    engine: str | None = None
    errors: Mapping[str, float] = field(default_factory=dict)
    curvature: str = "hessian"

    @property
    def exact(self) -> bool:
        """Whether no difference quotient was taken; False for ``engine="differences"``."""
        return self.engine != "differences"

    @classmethod
    def from_tensors(
        cls,
        gradient: Any,
        hessian: Any = None,
        third: Any = None,
        *,
        value: Any = 0.0,
        third_full: Any = None,
        names: Sequence[str] | None = None,
    ) -> Self:
        """A summary from numbers; lists will do.

        Args:
            gradient: g-bar, (S,).
            hessian: H-bar, (S, S).
            third: the diagonal of D3, (S,); taken from ``third_full`` where that is given.
            value: the loss, ().
            third_full: all of D3, (S, S, S).
            names: the S group names.

        Raises ValueError for shapes that do not fit.

        >>> import gnewton as gn
        >>> gn.Summary.from_tensors(gradient=[1.0], hessian=[[2.0]], third=[3.0]).taylor([0.5], order=2)
        tensor(-0.2500, dtype=torch.float64)
        """
        g = _float64(gradient)
        full = None if third_full is None else _float64(third_full)
        if full is not None and full.dim() == 3:
            third = full.diagonal().diagonal()
        out = cls(
            _float64(value),
            g,
            None if hessian is None else _float64(hessian),
            None if third is None else _float64(third),
            full,
            None if names is None else tuple(names),
        )
        _check_shapes(out)
        return out

    def __len__(self) -> int:
        return len(self.gradient)

    def __repr__(self) -> str:
        known = [name for name in _TENSORS[1:] if getattr(self, name) is not None]
        note = "" if self.curvature == "hessian" else "; curvature: Gauss-Newton"
        return f"Summary(S={len(self)}, value={_number(self.value)}, {', '.join(known)}{self._caveat()}{note})"

    def _caveat(self) -> str:
        if self.exact:
            return ""
        errors = ", ".join(f"{name} {size:.1g}" for name, size in self.errors.items())
        return "; by differences, not exact" + (f": estimated errors {errors}" if errors else "")

    def __str__(self) -> str:
        wide = [max(map(len, column)) for column in zip(*self._rows(), strict=True)]
        lines = [
            "  ".join([row[0].ljust(wide[0]), *map(str.rjust, row[1:], wide[1:])]).rstrip() for row in self._rows()
        ]
        return "\n  ".join([repr(self), *lines])

    def _repr_html_(self) -> str:
        from html import escape

        head, *body = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in self._rows()]
        rows = "".join(f"<tr>{row}</tr>" for row in body)
        return f"<table><caption>{escape(repr(self))}</caption><tr>{head.replace('td>', 'th>')}</tr>{rows}</table>"

    def _rows(self, most: int = 20) -> list[tuple[str, ...]]:
        """The header and, for each group, its name, slope, own curvature and own third derivative, as far as they are known."""
        own = {
            "g_s": self.gradient,
            "H_ss": None if self.hessian is None else self.hessian.diagonal(),
            "D3_sss": self.third,
        }
        columns = [(name, *map(_number, tensor[:most])) for name, tensor in own.items() if tensor is not None]
        names = self.names or tuple(f"group {i}" for i in range(len(self)))
        rows = list(zip(("group", *names[:most]), *columns, strict=True))
        left = len(self) - most
        return [*rows, (f"... ({left:,} more)", *[""] * len(columns))] if left > 0 else rows

    def __add__(self, other: "Summary") -> "Summary":
        if not isinstance(other, Summary):
            return NotImplemented
        differing = [n for n in _TENSORS if _shape(getattr(self, n)) != _shape(getattr(other, n))]
        if self.curvature != other.curvature:
            raise ValueError(
                f"expected summaries of one curvature, got {self.curvature} and {other.curvature}; compute both with the same"
            )
        if differing or self.names != other.names:
            raise ValueError(
                f"expected summaries of the same groups and orders, got a difference in {', '.join(differing) or 'names'}; "
                "compute both with the same partition, order and full_third"
            )
        errors = {
            name: self.errors.get(name, 0.0) + other.errors.get(name, 0.0) for name in {**self.errors, **other.errors}
        }
        both = self._map(lambda name, t: t + getattr(other, name))
        return replace(both, engine=_join_engines(self.engine, other.engine), errors=errors)

    def __radd__(self, other: object) -> "Summary":
        return self if other == 0 else NotImplemented  # sum() begins with 0

    def __mul__(self, weight: float) -> "Summary":
        if not isinstance(weight, int | float):
            return NotImplemented
        errors = {name: abs(weight) * size for name, size in self.errors.items()}
        return replace(self._map(lambda name, t: t * weight), errors=errors)

    __rmul__ = __mul__

    def taylor(self, eta: Any, order: int = 2) -> Tensor:
        """The Taylor model of phi at the learning rates eta (..., S): the predicted loss (...), float64.

        phi(eta) ~ L - g-bar . eta + 1/2 eta . H-bar eta - 1/6 D3[eta, eta, eta]. Order 3 needs ``third_full`` unless
        S = 1. Raises ValueError for an order that the summary does not hold.

        >>> import gnewton as gn
        >>> s = gn.Summary.from_tensors(value=0.5, gradient=[1.0, 4.0], hessian=[[1.0, 6.0], [6.0, 16.0]])
        >>> s.taylor([0.4, 0.1])
        tensor(0.1000, dtype=torch.float64)
        """
        if not isinstance(order, int) or order not in (0, 1, 2, 3):
            raise ValueError(f"expected an order from 0 to 3, got {order!r}")
        eta = torch.as_tensor(eta, dtype=self.gradient.dtype, device=self.gradient.device)
        if eta.shape[-1:] != self.gradient.shape:
            raise ValueError(
                f"expected eta of shape (..., {len(self)}), got {tuple(eta.shape)}; give one rate per group"
            )
        terms = [self.value.expand(eta.shape[:-1]), -(eta @ self.gradient)]
        if order >= 2:
            terms.append(torch.einsum("...s,st,...t->...", eta, self._require("hessian", order), eta) / 2)
        if order >= 3:
            third = self.third if len(self) == 1 and self.third is not None else self._require("third_full", order)
            third = third.reshape((len(self),) * 3)
            matrix = torch.einsum("rst,...t->...rs", third, eta)
            terms.append(-torch.einsum("...r,...rs,...s->...", eta, matrix, eta) / 6)
        return torch.stack(terms[: order + 1]).sum(0)

    def coarsen(self, groups: Groups) -> "Summary":
        """The summary of the partition with groups merged: entries of merged groups add up (the coarsening law).

        ``groups`` lists names or indices, each exactly once. Raises ValueError where the order-3 diagonal of a merged
        group is wanted and ``third_full`` was not computed.

        >>> import gnewton as gn
        >>> s = gn.Summary.from_tensors(gradient=[1.0, 4.0], hessian=[[1.0, 6.0], [6.0, 16.0]])
        >>> s.coarsen([[0, 1]]).hessian
        tensor([[29.]], dtype=torch.float64)
        """
        merged = merged_groups(groups, self.names or [str(i) for i in range(len(self))])
        m = torch.zeros(len(merged), len(self), dtype=self.gradient.dtype, device=self.gradient.device)
        for new, old in enumerate(merged.values()):
            m[new, old] = 1.0
        full = third = None
        if self.third_full is not None:
            full = self.third_full
            for _ in range(3):
                # One axis at a time, the first one to the end: all at once would hold S^3 numbers for each merged triple.
                full = torch.tensordot(full, m, dims=([0], [1]))
            third = full.diagonal().diagonal().clone()
        elif self.third is not None:
            if any(len(old) > 1 for old in merged.values()):
                raise ValueError(
                    "expected the full order-3 tensor to merge groups, got its diagonal only; "
                    "compute summarize(..., full_third=True), or order=2 if the cubic term is not needed"
                )
            third = m @ self.third
        hessian = None if self.hessian is None else m @ self.hessian @ m.T
        names = tuple(merged) if self.names or isinstance(groups, Mapping) else None
        # Errors add up at worst: each entry of order d sums as many as the d-th power of the largest merged group.
        most = max(map(len, merged.values()))
        errors = {name: error * most ** _ORDERS[name] for name, error in self.errors.items()}
        return Summary(self.value, m @ self.gradient, hessian, third, full, names, self.engine, errors, self.curvature)

    def rescaled(self, factors: Tensor) -> "Summary":
        """The summary along u with the part in group s times factors[s], (S,): order d scales with the product of d of them.

        >>> import gnewton as gn
        >>> s = gn.Summary.from_tensors(gradient=[1.0, 2.0], hessian=[[2.0, 1.0], [1.0, 2.0]], third=[8.0, 1.0])
        >>> s.rescaled(torch.tensor([10.0, 1.0])).hessian.tolist()
        [[200.0, 10.0], [10.0, 2.0]]
        """
        f = torch.as_tensor(factors).to(self.gradient)
        if f.shape != self.gradient.shape:
            raise ValueError(
                f"expected factors of shape ({len(self)},), got {tuple(f.shape)}; give one factor per group"
            )
        # The largest entry grows by the largest factor at worst.
        most = float(f.abs().max()) if self.errors else 1.0
        return replace(
            self,
            errors={name: error * most ** _ORDERS[name] for name, error in self.errors.items()},
            gradient=self.gradient * f,
            hessian=None if self.hessian is None else self.hessian * f * f[:, None],
            third=None if self.third is None else self.third * f**3,
            third_full=None if self.third_full is None else self.third_full * f * f[:, None] * f[:, None, None],
        )

    def tensors(self) -> list[Tensor]:
        """What was computed: value, gradient and, where they are there, hessian, third and third_full."""
        return [t for name in _TENSORS if (t := getattr(self, name)) is not None]

    def with_tensors(self, tensors: Iterable[Tensor]) -> "Summary":
        """The same summary of other numbers, in the order of ``tensors()``."""
        numbers = iter(tensors)
        return self._map(lambda name, t: next(numbers))

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors, lists and None: loads under ``torch.load(..., weights_only=True)``."""
        return {name: getattr(self, name) for name in _TENSORS} | {
            "names": None if self.names is None else list(self.names),
            "engine": self.engine,
            "errors": dict(self.errors),
            "curvature": self.curvature,
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Self:
        """The inverse of ``state_dict``.

        >>> import gnewton as gn
        >>> s = gn.Summary.from_tensors(gradient=[1.0, 4.0])
        >>> gn.Summary.from_state_dict(s.state_dict()).gradient
        tensor([1., 4.], dtype=torch.float64)
        """
        names = state["names"]
        tensors = {name: state[name] for name in _TENSORS}
        # States of earlier versions say nothing of the engine: it was an exact one.
        engine, errors = state.get("engine"), dict(state.get("errors", {}))
        out = cls(
            **tensors,
            names=None if names is None else tuple(names),
            engine=engine,
            errors=errors,
            curvature=state.get("curvature", "hessian"),
        )
        _check_shapes(out)
        return out

    def _map(self, function: Any) -> "Summary":
        tensors = {name: getattr(self, name) for name in _TENSORS}
        changes: dict[str, Any] = {n: function(n, t) for n, t in tensors.items() if t is not None}
        return replace(self, **changes)

    def _require(self, name: str, order: int) -> Tensor:
        tensor = getattr(self, name)
        if not isinstance(tensor, Tensor):
            raise ValueError(
                f"expected {name} for order {order}, got a summary without it; "
                + (
                    "compute summarize(..., full_third=True)"
                    if name == "third_full"
                    else f"compute summarize(..., order={order})"
                )
            )
        return tensor


def summarize(
    loss: Loss | tuple[Callable[..., Any], Callable[..., Tensor]],
    partition: Partition,
    direction: Mapping[str, Tensor] | None = None,
    *,
    order: int | None = None,
    data: Iterable[Any] | None = None,
    weight: Weight | None = None,
    full_third: bool = False,
    engine: str = "auto",
    max_memory: float | None = None,
    curvature: str = "hessian",
    samples: float = 1.0,
) -> Summary:
    """The summary of the loss along ``direction``: g-bar (S,), H-bar (S, S), the diagonal of D3 (S,), float64.

    Exact unless ``engine="differences"``: no finite difference, no sampling (Wolinski, arXiv 2312.03885, section 3). Parameters, ``.grad`` and buffers (batch
    norm) are left as they were. Attention runs on its math back end meanwhile.

    Args:
        loss: ``loss()`` returns the loss with its graph, a scalar, and does not call backward. With ``data``,
            ``loss(*batch)`` is the mean over a batch. Or a pair: ``outputs(*batch)``, and ``criterion(z, *batch)`` of them.
        partition: the S groups.
        direction: u, a dictionary with one tensor per parameter of the partition, a DTensor sharded alike where that is sharded.
            None is the gradient of the loss.
        order: 1, 2 or 3, the highest derivative; None is 3, and 2 for "gauss-newton", which has no third.
        data: batches; the result is the mean over all samples.
        weight: ``weight(*batch)`` counts a batch's samples. By default they are ``len(batch[0])``.
        full_third: add all of D3, (S, S, S).
        engine: "tape" records the loss and sweeps S tangents through the record, for the price of a few gradients. "nested"
            takes 2S + 1 backward passes. "auto" is the tape, or nested for a long list of tiny operations and hardly any groups
            (a small recurrent network with S = 1), where that is cheaper and no ``max_memory`` is given; where the record is not
            complete (a scripted module, a function in NumPy) it is nested, with one IncompleteRecordWarning that names the operation. A custom
            autograd function is opened: its forward pass is recorded, if it has the gradient that its backward pass says. Where torch does
            not vouch for a backward pass (a custom operator, a hook), it is first compared with differences of the
            gradient. "differences" takes 4S + 1 gradients of any loss that has one; its summary is not exact, says so,
            and estimates its ``errors``.
        max_memory: bounds the tape's tangents, in bytes; a smaller one takes longer. None is half of the memory that is free.
        curvature: "hessian", or "gauss-newton" for a loss in two parts: G_st = (J u_s)^T H_l (J u_t) in the place of H-bar, with
            J the derivative of the outputs and H_l the Hessian of the criterion in them (Schraudolph, Neural Computation
            14(7), 2002). It is positive semi-definite where the criterion is convex.
        samples: the number of samples of ``loss()`` on this rank. Where the partition is over several, the result is the mean
            over all of theirs, and they all raise where one does.

    Raises TypeError or ValueError for an unfit loss, direction, order or engine, FloatingPointError for a loss that is not
    finite, NotImplementedError for one that torch cannot differentiate to this order, or only wrongly. Warns with
    RandomLossWarning when the loss draws random numbers.

    >>> import torch, gnewton as gn
    >>> model = gn.models.Rosenbrock(2, dtype=torch.float64)
    >>> partition = gn.Partition.by_scalar(model)
    >>> summarize(model, partition, {"theta": torch.ones(2)}, order=2).hessian
    tensor([[1330.,  480.],
            [ 480.,  200.]], dtype=torch.float64)

    Gauss-Newton, for residuals z with the loss |z|^2 / 2:

    >>> a = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    >>> parts = (lambda: a**2 - 1, lambda z: z.square().sum() / 2)
    >>> partition = gn.Partition.from_groups({"a": {"a": a}})
    >>> summarize(parts, partition, {"a": torch.ones(2)}, curvature="gauss-newton").hessian
    tensor([[20.]], dtype=torch.float64)
    """
    order = order if order is not None else 3 if curvature == "hessian" else 2
    _check_request(order, full_third, engine, max_memory)
    _check_curvature(curvature, order, engine)
    if engine == "differences" and isinstance(partition, Partition) and partition.shards is not None:
        raise ValueError(
            'expected engine "auto", "tape" or "nested" for sharded parameters, got "differences", which moves them'
        )
    if curvature == "gauss-newton" or isinstance(loss, tuple):
        parts = two_parts(loss)
        loss = parts if curvature == "gauss-newton" else lambda *batch: parts(*batch)
    if direction is None:
        direction = gradient(loss, partition, data, weight=weight, samples=samples)

    def compute(tally: Tally) -> Summary:
        u = check_direction(direction, partition)
        # Differences need a gradient alone, which torch's own kernels get right.
        watched = WatchedCalls() if engine == "differences" else nullcontext()
        with partition.gathered() as whole, differentiable_mode(whole, higher=engine != "differences"), watched:
            u, factors = (u, None) if engine == "differences" else within_range(u, whole)
            along = whole.whole(u)
            question = partial(
                _Question, loss, whole, u=along, order=order, full_third=full_third, max_memory=max_memory
            )
            along_it = _mean_over_batches(lambda batch: _summarize_batch(question(batch), engine), data, tally)
        return along_it if factors is None else along_it.rescaled(factors)

    mean = mean_summary(partition, compute, Tally(weight, samples if data is None else 0.0))
    return replace(mean, curvature=curvature)


def _mean_over_batches(
    summary_of: Callable[[Sequence[Any]], Summary], data: Iterable[Any] | None, weight: Weight | None
) -> Summary:
    total: Summary | None = None
    samples = 0.0
    for batch, n in batches(data, weight):
        one = summary_of(batch)
        if data is None:
            return one
        one = one * n
        total, samples = one if total is None else total + one, samples + n
    assert total is not None  # batches() refuses an empty data set
    return total * (1 / samples)


def mean_summary(partition: Partition, compute: Callable[[Tally], Summary], tally: Tally) -> Summary:
    """The mean over the samples of all ranks.

    Args:
        partition: whose ranks.
        compute: returns this rank's summary; ``compute(tally)`` counts its samples.
        tally: the count.
    """
    check_partition(partition)
    if partition.ranks.size == 1:
        return compute(tally)
    local: list[Summary] = []

    def part() -> Part:
        local.append(compute(tally))
        return Part(float(local[0].value), local[0].tensors(), tally.total)

    mean = partition.ranks.mean("summary", part)
    return local[0].with_tensors(mean.tensors)


def summarize_tape(tape: Tape, partition: Partition, direction: Direction, order: int) -> Summary | None:
    """The summary of a loss that was recorded before, along its own direction; None where the tape cannot give it.

    Past a singularity that torch's own backward formulas mask it may be not finite: ``is_finite`` tells.
    """
    if tape.missing is not None or tape.value is None:
        return None
    reached = graph.nodes(tape.value)
    if graph.unproven(reached) or graph.wrong_kernels(reached, partition, order):
        return None
    # In the mode of the recording: single operations must find the kernels that ran then.
    direction, factors = within_range(direction, partition)
    with differentiable_mode(partition, restore_buffers=False):
        summary = _sweep(tape, partition, direction, order)
    return summary if summary is None or factors is None else summary.rescaled(factors)


def within_range(u: Direction, partition: Partition) -> tuple[Direction, Tensor | None]:
    """u, and None; for parameters in float16, in which squares of numbers below 1e-4 vanish and those above 256 overflow: u with
    parts of a length between 1 and 2, and the factors (S,) that undo it. They are powers of 2, by which no digit changes.

    >>> import torch, gnewton as gn
    >>> partition = gn.Partition.single(gn.models.Rosenbrock(2, dtype=torch.float16))
    >>> u, factors = within_range({"theta": torch.tensor([1.0, 2.0], dtype=torch.float16) / 1024}, partition)
    >>> u["theta"].tolist(), factors.tolist()
    ([0.5, 1.0], [0.001953125])
    """
    with torch._C.DisableTorchFunction():
        if partition.weights is not None or all(p.dtype != torch.float16 for p in partition.parameters.values()):
            return u, None
    length = lengths(u, partition)
    exponents = torch.where(length > 0, -length.log2().floor(), 0)
    return partition.scale(u, 2**exponents), 0.5**exponents


@dataclass(frozen=True)
class _Question:
    """What is asked of one batch: the loss, along which direction, and how far."""

    loss: Loss
    partition: Partition
    batch: Sequence[Any]
    u: Mapping[str, Tensor]
    order: int
    full_third: bool
    max_memory: float | None

    def answer(self, value: Tensor, tensors: Iterable[Any], engine: str) -> Summary:
        """The summary of these numbers."""
        gradient, hessian, third, full = tensors
        return Summary(_plain(value, self.partition), gradient, hessian, third, full, self.partition.names, engine)

    def prove(self, names: Sequence[str], before: Start) -> None:
        """Raises NotImplementedError where a backward pass that torch did not write is no derivative."""
        if names and self.partition.weights is not None:
            raise NotImplementedError(
                f"expected a loss whose backward passes torch wrote, got one through {', '.join(names)}: to prove them the parameters "
                "are moved, which shards are not; write it in torch operations, or leave the sharding out"
            )
        if names:
            with before.replay():
                proof.prove(partial(self.loss, *self.batch), self.partition, self.u, self.order, names)


def _summarize_batch(asked: _Question, engine: str) -> Summary:
    """The summary of one batch, by the engine asked for."""
    if engine == "differences":
        return _by_differences(asked)
    if engine == "nested" or asked.order == 1:
        return _nested(asked)
    partition, with_open = asked.partition, None
    with torch._C.DisableTorchFunction():
        before = Start(partition)
    tape = record_in_mode(asked.loss, partition, asked.batch, start=before)
    assert tape.value is not None
    reached = graph.nodes(tape.value)
    doubtful = graph.unproven(reached)
    if doubtful and tape.missing != HOOKED:
        with_open = record_opened(asked.loss, partition, asked.batch, before, tape.value)
    # What checkpoints compute again in the backward pass is computed as it was recorded.
    with functions_opened() if with_open else nullcontext():
        if with_open:
            assert with_open.value is not None
            reached = graph.nodes(with_open.value)
        elif tape.missing is None:
            asked.prove(doubtful, before)
        on_tape = _by_tape(asked, with_open or tape, reached, engine)
    if not partition.on_any_rank(on_tape is None or not is_finite(on_tape)):
        assert on_tape is not None
        return on_tape
    if on_tape is None and engine == "tape":
        raise ValueError(f'expected a loss that can be recorded whole, got one where {tape.missing}; use engine="auto"')
    with before.replay():
        summary = _nested(asked)
    if on_tape is None:
        warn_of_missing(tape.missing, partition, asked.order)
    return summary


def _by_tape(asked: _Question, tape: Tape, reached: set[Any], engine: str) -> Summary | None:
    """From a tape, or through the graph of its value where that is cheaper; None where the tape is not complete."""
    if tape.missing is not None:
        return None
    assert tape.value is not None
    loss, partition = asked.loss, asked.partition
    proof.check_kernels(reached, partition, asked.order)
    partition.check_held(tape.unused)
    if engine == "auto" and _is_cheaper_nested(tape, asked):
        # Through the graph of the recorded loss, which is proven.
        tensors = nested.summary(tape.value, partition, asked.u, order=asked.order)
        return asked.answer(tape.value, tensors, "nested")
    if isinstance(loss, TwoParts):
        loss.drop_outer_adjoints(tape, partition)
    options = {"full_third": asked.full_third, "max_memory": asked.max_memory}
    return _sweep(tape, partition, asked.u, asked.order, **options)


def _sweep(tape: Tape, partition: Partition, u: Mapping[str, Tensor], order: int, **options: Any) -> Summary | None:
    """The summary from a tape; None, and a reason in ``tape.missing``, where torch cannot repeat an operation alone."""
    assert tape.value is not None
    value = _plain(tape.value, partition)
    try:
        return Summary(value, *sweep.summary(tape, partition, u, order=order, **options), partition.names, "tape")
    except sweep.NoRule as error:
        tape.missing = str(error)
        return None


def _nested(asked: _Question) -> Summary:
    """By nested backward passes; where torch does not vouch for them, they are proven first."""
    loss, partition, order = asked.loss, asked.partition, asked.order
    loss = loss.on_copies() if isinstance(loss, TwoParts) else loss
    before, hooks = Start(partition), graph.hooks_so_far()
    value = evaluate(loss, partition, asked.batch)
    partition.check_held(graph.unused(graph.nodes(value), partition))
    outputs = loss.latest if isinstance(loss, TwoParts) else None
    names: list[str] = []
    if order > 1:
        names = proof.doubts(value, partition, hooks)
        asked.prove(names, before)
        proof.check_kernels(graph.nodes(value), partition, order)
    if isinstance(loss, TwoParts) and order > 1:
        return asked.answer(value, loss.nested(value, outputs, partition, asked.u, asked.batch), "nested")
    tensors = nested.summary(value, partition, asked.u, order=order, full_third=asked.full_third, doubtful=names)
    return asked.answer(value, tensors, "nested")


def _is_cheaper_nested(tape: Tape, asked: _Question) -> bool:
    # Nested passes keep no bound on the memory, and gather weights once in each pass.
    on_tape = (
        asked.partition.weights is not None
        or asked.full_third
        or asked.max_memory is not None
        or isinstance(asked.loss, TwoParts)
    )
    return not on_tape and price.favours_nested(tape, len(asked.partition), asked.order)


def _by_differences(asked: _Question) -> Summary:
    d = differences.summary(asked.loss, asked.partition, asked.u, asked.order, asked.batch)
    engine = "differences" if asked.order > 1 else "nested"
    return replace(asked.answer(d.value, (d.gradient, d.hessian, d.third, None), engine), errors=d.errors)


def is_finite(summary: Summary) -> bool:
    """Whether every number of it is, for which the host waits once; on the meta device it is taken to be.

    >>> is_finite(Summary.from_tensors(gradient=[1.0])), is_finite(Summary.from_tensors(gradient=[float("nan")]))
    (True, False)
    """
    # torch masks singularities in its backward formulas, past which the tape may differentiate: 0 times infinity.
    value, *others = summary.tensors()
    number = sum((t.sum() for t in others), value.to(summary.gradient.device))
    # A sum of finite numbers may overflow: then they are looked at one by one.
    return number.is_meta or math.isfinite(number) or all(bool(t.isfinite().all()) for t in (value, *others))


def _join_engines(one: str | None, other: str | None) -> str | None:
    """The engine of a sum: the least exact of both."""
    ranks = (None, "tape", "nested", "differences")
    return max(one, other, key=ranks.index)


def _plain(value: Tensor, partition: Partition) -> Tensor:
    with torch._C.DisableTorchFunction():
        return value.detach().to(accumulator_dtype(partition.device))


def check_engine(engine: str) -> None:
    """Raises ValueError for a name that is no engine.

    >>> check_engine("tape")
    """
    if engine not in _ENGINES:
        raise ValueError(f"expected an engine among {', '.join(_ENGINES)}, got {engine!r}")


def _check_request(order: int, full_third: bool, engine: str, max_memory: float | None) -> None:
    if order not in (1, 2, 3):
        raise ValueError(f"expected order 1, 2 or 3, got {order!r}; derivatives.nested.summary_tensor goes higher")
    if full_third and engine == "differences":
        raise ValueError(
            'expected full_third=False with engine="differences", got True; it gives the diagonal of D3 alone'
        )
    if full_third and order < 3:
        raise ValueError(f"expected order=3 with full_third=True, got order={order}")
    check_engine(engine)
    if not isinstance(max_memory, Real | None):
        raise TypeError(f"expected max_memory in bytes, a number, got {max_memory!r}; 1e9 is a gigabyte")
    if max_memory is not None and not max_memory > 0:
        raise ValueError(
            f"expected a positive max_memory in bytes, got {max_memory!r}; leave it out for half of what is free"
        )


def _check_curvature(curvature: str, order: int, engine: str) -> None:
    if curvature not in ("hessian", "gauss-newton"):
        raise ValueError(f'expected curvature "hessian" or "gauss-newton", got {curvature!r}')
    if curvature == "gauss-newton" and order == 3:
        raise ValueError('expected order=2 with curvature="gauss-newton", got 3: it has no third order')
    if curvature == "gauss-newton" and engine == "differences":
        raise ValueError('expected engine "auto", "tape" or "nested" with curvature="gauss-newton", got "differences"')


def _check_shapes(summary: Summary) -> None:
    s = summary.gradient.numel()
    for name, dim in (("value", 0), ("gradient", 1), ("hessian", 2), ("third", 1), ("third_full", 3)):
        tensor = getattr(summary, name)
        if tensor is not None and tensor.shape != (s,) * dim:
            raise ValueError(
                f"expected {name} of shape {(s,) * dim}, got {tuple(tensor.shape)}; S is the length of gradient"
            )
    if s == 0:
        raise ValueError("expected at least one group, got an empty gradient")
    if summary.names is not None:
        if len(summary.names) != s:
            raise ValueError(f"expected {s} names, got {len(summary.names)}; give one per group")
        check_names(summary.names)


def _float64(values: Any) -> Tensor:
    # Python numbers go to float64 at once; through the default dtype they would lose half of their digits.
    tensor = values if isinstance(values, Tensor) else torch.as_tensor(values, dtype=torch.float64, device="cpu")
    # A copy: a summary does not follow the numbers that it was made of.
    return tensor.detach().to(accumulator_dtype(tensor.device), copy=True)


def _shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)


def _number(value: Tensor) -> str:
    return "meta" if value.device.type == "meta" else f"{float(value):.4g}"
