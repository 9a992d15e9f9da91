"""The partition explorer: H-bar under many partitions, all of them from one fine summary, and what each step is worth."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor, nn

from gnewton.cubic import newton_step
from gnewton.direction import gradient
from gnewton.loss import Loss
from gnewton.partition import Partition
from gnewton.plots import COLOURS, heat_map, long_range, new_figure
from gnewton.summary import Summary, summarize
from gnewton.teaching.widgets.bound import losses_along
from gnewton.teaching.widgets.figure_widget import FigureWidget, choice, slider

PARTITIONS: dict[str, Callable[[nn.Module], Partition]] = {
    "by row": Partition.by_row,
    "by tensor": Partition.by_tensor,
    "by layer": Partition.by_layer,
    "two blocks": lambda module: Partition.blocks(module, 2),
    "by kind": Partition.by_kind,
    "one group": Partition.single,
}
MERGES = (1, 2, 3, 4, 8)
STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0)
VIEWS = ("H-bar", "interactions")
LEFT, BAR, RIGHT = (0.11, 0.26, 0.33, 0.7), (0.455, 0.26, 0.015, 0.7), (0.74, 0.14, 0.25, 0.82)  # of the figure
READABLE = 16  # groups


class PartitionExplorer(FigureWidget):
    """H-bar of one partition as a heat map, and beside it the decrease that each partition's step promises and brings.

    ``partition``: a key of PARTITIONS. ``merged``: so many neighbouring groups become one. ``view``: "H-bar" or its entries
    scaled so that the diagonal is 1. ``strength``: lambda_int. There is one summary, along the gradient, of the finest
    partition that all of these coarsen, row by row with biases apart; the rest is the coarsening law. module: two layers or
    more; loss: its loss, computed where the parameters are now, which are moved to measure each step, and put back.

    >>> import gnewton as gn
    >>> data = gn.datasets.digits(dtype=torch.float64)
    >>> model = gn.models.perceptron([64, 8, 10], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> loss = lambda: nn.functional.cross_entropy(model(data.train_x[:50]), data.train_y[:50])
    >>> widget = PartitionExplorer(model, loss, partition="by tensor")
    >>> widget.merged.value = 2; widget
    PartitionExplorer: by tensor, 2 merged into one, S = 2, strength 1: promised 0.373, the loss falls by 0.415; CONVERGED.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Loss,
        partition: str = "by tensor",
        merged: int = 1,
        view: str = "H-bar",
        strength: float = 1.0,
    ) -> None:
        self._loss, self._units = loss, by_unit(module)
        self._u = gradient(loss, self._units)
        self._fine = summarize(loss, self._units, self._u, order=3, full_third=True)
        self._groups = {name: unit_groups(self._units, make(module)) for name, make in PARTITIONS.items()}
        self._known: dict[tuple[str, int, float], tuple[float, float, str]] = {}
        self.partition = choice("partition", PARTITIONS, partition)
        self.merged = slider("groups merged", MERGES, merged)
        self.view = choice("shown", VIEWS, view)
        self.strength = slider("cubic strength λ_int", STRENGTHS, strength, lambda v: f"{v:g}")
        controls = {name: getattr(self, name) for name in ("partition", "merged", "view", "strength")}
        figure = new_figure(width=10.0, height=4.4)
        figure.set_layout_engine("none")  # fitting the panels would take longer than drawing them
        super().__init__(figure, controls)

    def summary(self) -> Summary:
        """The summary of the partition shown."""
        return self._fine.coarsen(self._merged(self.partition.value, self.merged.value))

    def draw(self) -> str:
        name, merged, strength = self.partition.value, self.merged.value, self.strength.value
        self.figure.clear()
        left, right = (self.figure.add_axes(place) for place in (LEFT, RIGHT))
        shown = self.summary()
        picture = heat_map if self.view.value == "H-bar" else long_range
        assert shown.hessian is not None
        picture(shown.hessian, shown.names, ax=left)
        if len(shown) > READABLE:  # signs too small to read, and names that the other axis has
            left.set_xticks([])
            for marks in left.get_lines():
                marks.remove()
        left.set(position=LEFT, xlabel="", ylabel="")
        self.figure.axes[-1].set_position(BAR)  # the colours' scale
        others = {key: self._decrease(key, merged if key == name else 1) for key in PARTITIONS}
        self._draw_decreases(right, others)
        told, actual, status = others[name]
        parts = f", {merged} merged into one" * (merged > 1)
        fate = "falls" if actual > 0 else "rises"
        return (
            f"{name}{parts}, S = {len(shown)}, strength {strength:g}: promised {told:.3g}, "
            f"the loss {fate} by {abs(actual):.3g}; {status}."
        )

    def _draw_decreases(self, axes: Axes, others: Mapping[str, tuple[float, float, str]]) -> None:
        rows = np.arange(len(others))
        promised, actual = ([max(row[i], 0.0) for row in others.values()] for i in (0, 1))
        axes.barh(rows - 0.2, promised, height=0.36, color=COLOURS[5], label="promised")
        axes.barh(rows + 0.2, actual, height=0.36, color=COLOURS[0], label="fall of the loss")
        for row, fall in zip(rows, (row[1] for row in others.values()), strict=True):
            if fall <= 0:
                axes.text(0.0, row + 0.2, " rises", va="center", fontsize=8)
        axes.set_yticks(rows, [f"{key}, S = {self._size(key)}" for key in others])
        axes.get_yticklabels()[list(others).index(self.partition.value)].set_fontweight("bold")
        # The loss cannot fall further than to zero; a promise beyond that leaves the picture.
        axes.set(xlim=(0.0, float(self._fine.value)), ylim=(len(rows) - 0.4, -0.6), xlabel="decrease of the loss")
        axes.legend(fontsize=8, loc="lower right", framealpha=0.9)

    def _size(self, name: str) -> int:
        return len(self._merged(name, self.merged.value if name == self.partition.value else 1))

    def _merged(self, name: str, width: int) -> dict[str, list[int]]:
        """Unit indices by group, ``width`` neighbouring groups as one."""
        groups = list(self._groups[name].items())
        runs = [groups[i : i + width] for i in range(0, len(groups), width)]
        return {_span([n for n, _ in run]): [i for _, members in run for i in members] for run in runs}

    def _decrease(self, name: str, width: int) -> tuple[float, float, str]:
        """Promised and actual decrease, and the status, of one partition's step; computed once."""
        key = name, width, self.strength.value
        if key not in self._known:
            groups = self._merged(name, width)
            step = newton_step(self._fine.coarsen(groups), self.strength.value, on_failure="report")
            rates = torch.zeros(len(self._units), dtype=torch.float64)
            for rate, members in zip(step.learning_rates, groups.values(), strict=True):
                rates[members] = rate
            after = losses_along(self._loss, self._units, self._units.scale(self._u, rates), np.ones(1))[0]
            self._known[key] = step.predicted_decrease, float(self._fine.value) - after, step.status.name
        return self._known[key]


def by_unit(module: nn.Module) -> Partition:
    """Every row of every tensor a group of its own, biases apart: finer than by row, by tensor and what these coarsen to.

    >>> import gnewton as gn
    >>> by_unit(gn.models.perceptron([3, 2])).names
    ('0.weight[0]', '0.weight[1]', '0.bias[0]', '0.bias[1]')
    """
    groups: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}
    for name, p in module.named_parameters():
        rows = torch.arange(len(p)).reshape(-1, *[1] * (p.dim() - 1)).expand(p.shape)
        groups |= {f"{name}[{i}]": {name: (p, rows == i)} for i in range(len(p))}
    return Partition.from_groups(groups, module=module)


def unit_groups(units: Partition, coarse: Partition) -> dict[str, list[int]]:
    """Which units each group of the coarser partition is made of: group name -> indices."""
    groups: dict[str, list[int]] = {name: [] for name in coarse.names}
    for i in range(len(units)):
        (name,) = units.members(i)
        label = coarse.label(name)
        inside = label if isinstance(label, int) else int(label[units.label(name) == i][0])
        groups[coarse.names[inside]].append(i)
    return groups


def _span(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
