"""The tape, taken apart: adjoints come up it, tangents go down it, and each operation adds its share to H-bar."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor
from torch.func import hessian, jacrev

from gnewton.derivatives.operation import Operation, Variable
from gnewton.derivatives.record import record
from gnewton.derivatives.tape import Tape
from gnewton.loss import Loss
from gnewton.partition import Partition
from gnewton.plots import COLOURS, new_figure
from gnewton.teaching.widgets.figure_widget import FigureWidget, choice, slider

UNKNOWN, VALUE, ADJOINT, TANGENT = "white", "#e8e8e8", "#cfe3f2", "#f7dcc6"


@dataclass(frozen=True)
class Part:
    """One operation y = o(x): its output's value and adjoint lambda (both of y's shape), tangents y_s (S, *shape) along the
    groups, and what it adds to H-bar, share (S, S): lambda . D^2 o [x_s, x_t]."""

    name: str
    value: Tensor
    adjoint: Tensor
    tangents: Tensor
    share: Tensor


def dissected(loss: Loss, partition: Partition, direction: Mapping[str, Tensor]) -> list[Part]:
    """The operations of a loss with one output each, in the order of their evaluation; their shares add up to H-bar.

    Each operation is differentiated alone, by ``torch.func``, with no rule in closed form: slow, and independent of the
    sweep that the library uses. Raises ValueError where the record is not complete or an operation has several outputs.

    >>> import gnewton as gn
    >>> model = gn.models.Rosenbrock(2, dtype=torch.float64)
    >>> u = {"theta": torch.ones(2, dtype=torch.float64)}
    >>> sum(part.share for part in dissected(model, gn.Partition.by_scalar(model), u))
    tensor([[1330.,  480.],
            [ 480.,  200.]], dtype=torch.float64)
    """
    tape = _checked(record(loss, partition))
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

    ``stage``: 0 is the recorded list with its values; then the adjoints come up from the loss, then the tangents go down,
    one operation at a time. ``entry`` is the one of H-bar whose shares are shown, by its two groups. In a cell stands the
    Euclidean norm, a dash where a group does not reach.

    >>> import gnewton as gn
    >>> model = gn.models.Rosenbrock(2, dtype=torch.float64)
    >>> u = {"theta": torch.ones(2, dtype=torch.float64)}
    >>> viewer = TapeViewer(model, gn.Partition.by_scalar(model), u)
    >>> viewer.stage.value = viewer.last
    >>> viewer
    TapeViewer: Tangents down to operation 9 (sum): H-bar[theta[0], theta[0]] = 1.33e+03, complete.
    """

    def __init__(
        self,
        loss: Loss,
        partition: Partition,
        direction: Mapping[str, Tensor],
        stage: int = 0,
        entry: tuple[int, int] = (0, 0),
    ) -> None:
        self.parts, self._names = dissected(loss, partition, direction), list(partition.names)
        n, pairs = len(self.parts), [(s, t) for s in range(len(partition)) for t in range(s, len(partition))]
        self.last = 2 * n
        self.stage = slider("stage", range(self.last + 1), stage, lambda k: self._said(k)[0])
        self.entry = choice("entry of H-bar", [(" and ".join(self._pair(st)), st) for st in pairs], entry)
        figure = new_figure(columns=2, width=9.6, height=1.5 + 0.34 * n)
        table, bars = figure.axes
        self._cells = self._prepare_table(table, columns=2 + len(partition))
        self._bars = self._prepare_bars(bars)
        super().__init__(figure, {"stage": self.stage, "entry": self.entry})

    def draw(self) -> str:
        k, n, (s, t) = self.stage.value, len(self.parts), self.entry.value
        for row, part in enumerate(self.parts):
            self._fill(row, 0, VALUE, part.value)
            self._fill(row, 1, ADJOINT, part.adjoint if k >= n - row else None)
            for group, tangent in enumerate(part.tangents):
                self._fill(row, 2 + group, TANGENT, tangent if k > n + row else None)
            self._bars[row].set_width(float(part.share[s, t]) if k > n + row else 0.0)
        reach = 1.1 * max(float(part.share[s, t].abs()) for part in self.parts) or 1.0
        axes = self.figure.axes[1]
        axes.set(xlim=(-reach, reach), xlabel=f"share of H-bar[{', '.join(self._pair((s, t)))}]")
        sum_so_far = float(sum(part.share[s, t] for part in self.parts[: max(0, k - n)]))
        told, complete = self._said(k)[1], ", complete" if k == self.last else " so far"
        return told + (
            f": H-bar[{', '.join(self._pair((s, t)))}] = {sum_so_far:.3g}{complete}."
            if k > n
            else "; no entry of H-bar yet."
        )

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

    def _fill(self, row: int, column: int, colour: str, values: Tensor | None) -> None:
        cell, text = self._cells[row][column]
        norm = 0.0 if values is None else float(values.norm())
        cell.set_facecolor(UNKNOWN if values is None or norm == 0 else colour)
        text.set_text("" if values is None else "-" if norm == 0 else f"{norm:.1e}" if norm >= 1e3 else f"{norm:.2g}")

    def _prepare_table(self, axes: Axes, columns: int) -> list[list[tuple[Any, Any]]]:
        rows = [f"{i} {part.name}" for i, part in enumerate(self.parts)]
        axes.set(xlim=(0, columns), ylim=(len(rows), 0))
        axes.set_yticks([i + 0.5 for i in range(len(rows))], rows, fontsize=9)
        heads = ["value", "adjoint λ", *(f"along {name}" for name in self._names)]
        axes.set_xticks(
            [i + 0.5 for i in range(columns)], heads, rotation=30, ha="left", rotation_mode="anchor", fontsize=8
        )
        axes.tick_params(length=0, top=False, labeltop=True, labelbottom=False)
        return [[_cell(axes, row, column) for column in range(columns)] for row in range(len(rows))]

    def _prepare_bars(self, axes: Axes) -> list[Any]:
        bars = axes.barh([i + 0.5 for i in range(len(self.parts))], 0.0, height=0.7, color=COLOURS[1])
        axes.axvline(0.0, color="black", linewidth=0.8)
        axes.set(ylim=(len(self.parts), 0), yticks=[])
        axes.locator_params(axis="x", nbins=5)
        return list(bars)


def _cell(axes: Axes, row: int, column: int) -> tuple[Any, Any]:
    cell = axes.add_patch(Rectangle((column, row), 1, 1, edgecolor="#999999", linewidth=0.6))
    return cell, axes.text(column + 0.5, row + 0.5, "", ha="center", va="center", fontsize=8)


def _checked(tape: Tape) -> Tape:
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
