"""The tape, taken apart: adjoints come up it, tangents go down it, and each operation adds its share to H-bar."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import hessian, jacrev

from gnewton.derivatives.operation import Operation, Variable
from gnewton.derivatives.record import record
from gnewton.derivatives.rules.linear import load_forward_mode
from gnewton.derivatives.tape import Tape
from gnewton.loss import Loss
from gnewton.partition import Partition
from gnewton.teaching.scene import Axis, Mark, Panel, Scene, Shown, choice, slider
from gnewton.teaching.widgets.figure_widget import FigureWidget


@dataclass(frozen=True)
class Part:
    """One operation y = o(x): its output's value and adjoint lambda (both of y's shape), tangents y_s (S, *shape) along the
    groups, and what it adds to H-bar, share (S, S): lambda . D^2 o [x_s, x_t]."""

    name: str
    value: Tensor
    adjoint: Tensor
    tangents: Tensor
    share: Tensor


def dissect(loss: Loss, partition: Partition, direction: Mapping[str, Tensor]) -> list[Part]:
    """The operations of a loss with one output each, in the order of their evaluation; their shares add up to H-bar.

    Each operation is differentiated alone, by ``torch.func``, with no rule in closed form: slow, and independent of the
    sweep that the library uses. Raises ValueError where the record is not complete or an operation has several outputs.

    >>> import gnewton as gn
    >>> model = gn.models.Rosenbrock(2, dtype=torch.float64)
    >>> u = {"theta": torch.ones(2, dtype=torch.float64)}
    >>> sum(part.share for part in dissect(model, gn.Partition.by_scalar(model), u))
    tensor([[1330.,  480.],
            [ 480.,  200.]], dtype=torch.float64)
    """
    load_forward_mode()
    tape = _check(record(loss, partition))
    adjoints = _adjoints(tape)
    eta = torch.zeros(len(partition), dtype=next(iter(direction.values())).dtype)
    tangents = {v: _parts_of(partition, direction, v.name or "") for v in tape.parameters}
    parts = []
    for o in tape.operations:
        path = _path(o, [tangents[v] for v in o.inputs])
        (y,) = o.outputs
        tangents[y] = jacrev(path)(eta).movedim(-1, 0)
        share = hessian(lambda eta, path=path, y=y: (adjoints[y] * path(eta)).sum())(eta)
        parts.append(Part(o.name, y.value, adjoints[y], tangents[y], share))
    return parts


class TapeViewer(FigureWidget):
    """The list of a loss's operations, filled in step by step.

    In a cell stands the Euclidean norm, a dash where a group does not reach.

    Args:
        loss, partition, direction: as in ``summarize``.
        stage: 0 is the recorded list with its values; then the adjoints come up from the loss, then the tangents go down,
            one operation at a time.
        entry: the one of H-bar whose shares are shown, by its two groups.

    >>> import gnewton as gn
    >>> model = gn.models.Rosenbrock(2, dtype=torch.float64)
    >>> u = {"theta": torch.ones(2, dtype=torch.float64)}
    >>> viewer = TapeViewer(model, gn.Partition.by_scalar(model), u)
    >>> viewer.stage.value = viewer.last
    >>> viewer
    TapeViewer: Tangents down to operation 9 (sum): H̄[theta[0], theta[0]] = 1.33e+03, complete.
    """

    def __init__(
        self,
        loss: Loss,
        partition: Partition,
        direction: Mapping[str, Tensor],
        *,
        stage: int = 0,
        entry: tuple[int, int] = (0, 0),
    ) -> None:
        self.parts, self._names = dissect(loss, partition, direction), tuple(partition.names)
        n, groups = len(self.parts), range(len(partition))
        self.last = 2 * n
        pairs = tuple((s, t) for s in groups for t in groups if s <= t)
        controls = (
            slider("stage", "stage", range(self.last + 1), stage, lambda k: self._said(k)[0]),
            choice(
                "entry",
                "entry of H̄",
                pairs,
                tuple(entry) if isinstance(entry, list) else entry,
                lambda st: " and ".join(self._pair(st)),
            ),
        )
        rows = Axis(names=tuple(f"{i} {part.name}" for i, part in enumerate(self.parts)))
        heads = Axis(names=("value", "adjoint λ", *(f"along {name}" for name in self._names)))
        panels = (Panel(heads, rows, "sizes of values, adjoints, tangents"), Panel(Axis(), rows, "share of H̄"))
        fills = ("unknown", "value", "adjoint", "tangent")
        marks = (Mark("cells", 0, "ink", "", {"fills": fills}), Mark("bars", 1, 1))
        super().__init__(Scene(controls, panels, marks, stacked=True))

    def numbers(self, stage: int, entry: tuple[int, int]) -> Shown:
        n, (s, t) = len(self.parts), entry
        cells = [self._cells(row, part, stage) for row, part in enumerate(self.parts)]
        shares = [float(part.share[s, t]) for part in self.parts]
        reach = 1.6 * max(map(abs, shares)) or 1.0
        sum_so_far = sum(shares[: max(0, stage - n)])
        told, complete = self._said(stage)[1], ", complete" if stage == self.last else " so far"
        of = ", ".join(self._pair(entry))
        said = told + (
            f": H̄[{of}] = {sum_so_far:.3g}{complete}." if stage > n else "; no entry of H̄ yet."
        )  # fmt: skip
        table = {
            "text": [[text for text, _ in row] for row in cells],
            "fill": [[fill for _, fill in row] for row in cells],
        }
        bars = {"values": [share if stage > n + row else None for row, share in enumerate(shares)]}
        return Shown([table, bars], said, {1: {"x": {"limits": (-reach, reach), "label": f"share of H̄[{of}]"}}})

    def _cells(self, row: int, part: Part, stage: int) -> list[tuple[str, int]]:
        """The texts of a row and the kinds of its cells: value, adjoint and one tangent for each group."""
        n = len(self.parts)
        tangents = [_cell(tangent if stage > n + row else None, 3) for tangent in part.tangents]
        return [_cell(part.value, 1), _cell(part.adjoint if stage >= n - row else None, 2), *tangents]

    def _said(self, k: int) -> tuple[str, str]:
        """A stage in a few words, and in a sentence."""
        n = len(self.parts)
        if k == 0:
            return "recorded", "The list as recorded, with its values"
        row = n - k if k <= n else k - n - 1
        which = f"{row} ({self.parts[row].name})"
        return (f"adjoint {row}", f"Adjoints up to operation {which}") if k <= n else (
            f"tangents {row}", f"Tangents down to operation {which}"
        )  # fmt: skip

    def _pair(self, entry: tuple[int, int]) -> list[str]:
        return [self._names[s] for s in entry]


def _cell(values: Tensor | None, kind: int) -> tuple[str, int]:
    """The Euclidean norm as text and the kind of cell; nothing where it is not known yet, a dash where it is 0."""
    if values is None:
        return "", 0
    norm = float(values.norm())
    return ("-", 0) if norm == 0 else (f"{norm:.1e}" if norm >= 1e3 else f"{norm:.2g}", kind)


def _check(tape: Tape) -> Tape:
    if tape.missing is not None:
        raise ValueError(f"expected a loss that can be recorded, got a gap: {tape.missing}; take a plainer loss")
    if several := [o.name for o in tape.operations if len(o.outputs) != 1]:
        raise ValueError(f"expected operations of one output each, got several from {several[0]}; take a plainer loss")
    return tape


def _adjoints(tape: Tape) -> dict[Variable, Tensor]:
    values = [v for o in tape.operations for v in o.outputs]
    assert tape.value is not None
    return dict(zip(values, torch.autograd.grad(tape.value, [v.edge for v in values]), strict=True))


def _parts_of(partition: Partition, direction: Mapping[str, Tensor], name: str) -> Tensor:
    """The tangents that a parameter starts with, u_s: (S, *shape)."""
    return torch.stack([partition.restrict(direction, s)[name] for s in range(len(partition))])


def _path(o: Operation, tangents: list[Tensor]) -> Any:
    """eta -> o(x + sum_s eta_s x_s)."""
    x = [v.value for v in o.inputs]
    return lambda eta: o.call(*(v + torch.tensordot(eta, xs, 1) for v, xs in zip(x, tangents, strict=True)))[0]
