"""The partition explorer: H-bar under many partitions, all of them from one fine summary, and what each step is worth."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gnewton.cubic import newton_step
from gnewton.direction import gradient
from gnewton.loss import Loss
from gnewton.partition import Partition
from gnewton.plots import array
from gnewton.summary import Summary, summarize
from gnewton.teaching.scene import Axis, Mark, Panel, Scene, Shown, choice, slider
from gnewton.teaching.widgets.bound import losses_along
from gnewton.teaching.widgets.figure_widget import FigureWidget

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
READABLE = 12  # groups


class PartitionExplorer(FigureWidget):
    """H-bar of one partition as a heat map, and beside it the decrease that each partition's step promises and brings.

    There is one summary, along the gradient, of the finest partition that all of these coarsen, row by row with biases
    apart; the rest is the coarsening law. The parameters are moved to measure each step, and put back.

    Args:
        module: two layers or more.
        loss: its loss, computed where the parameters are now.
        partition: a key of PARTITIONS.
        merged: so many neighbouring groups become one.
        view: "H-bar", or "interactions", its entries scaled so that the diagonal is 1.
        strength: lambda_int.

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
        *,
        partition: str = "by tensor",
        merged: int = 1,
        view: str = "H-bar",
        strength: float = 1.0,
    ) -> None:
        self._loss, self._units = loss, by_unit(module)
        self._u = gradient(loss, self._units)
        self._fine = summarize(loss, self._units, self._u, order=3, full_third=True)
        self._groups = {name: unit_groups(self._units, make(module)) for name, make in PARTITIONS.items()}
        self._measured: dict[tuple[str, int, float], tuple[float, float, str]] = {}
        controls = (
            choice("partition", "partition", tuple(PARTITIONS), partition),
            slider("merged", "groups merged", MERGES, merged),
            choice("view", "shown", VIEWS, view, {"H-bar": "H̄", "interactions": "interactions"}.__getitem__),
            slider("strength", "cubic strength λ_int", STRENGTHS, strength, "{:g}".format),
        )
        # The loss cannot fall further than to zero; a promise beyond that leaves the picture.
        falls = Panel(Axis("decrease of the loss", (0.0, float(self._fine.value))), Axis(names=tuple(PARTITIONS)))
        marks = (
            Mark("heat"),
            Mark("bars", 1, "muted", "promised", {"shift": -0.2, "thick": 0.34, "digits": 0}),
            Mark("bars", 1, 0, "fall of the loss", {"shift": 0.2, "thick": 0.34}),
        )
        super().__init__(Scene(controls, (Panel(Axis(), Axis(), height=240), falls), marks))

    def summary(self) -> Summary:
        """The summary of the partition shown."""
        return self._fine.coarsen(self._merge(self.partition.value, self.merged.value))

    def numbers(self, *, partition: str, merged: int, view: str, strength: float) -> Shown:
        shown = self._fine.coarsen(self._merge(partition, merged))
        assert shown.hessian is not None
        steps = {key: self._decrease(key, merged if key == partition else 1, strength) for key in PARTITIONS}
        told, actual, status = steps[partition]
        parts = f", {merged} merged into one" * (merged > 1)
        fate = "falls" if actual > 0 else "rises"
        said = (
            f"{partition}{parts}, S = {len(shown)}, strength {strength:g}: promised {told:.3g}, "
            f"the loss {fate} by {abs(actual):.3g}; {status}."
            + " The map shows interactions."
            * (view == "interactions")
        )
        heat = heat_of(array(shown.hessian), view)
        promised, actual_falls = ([max(row[i], 0.0) for row in steps.values()] for i in (0, 1))
        texts = ["rises" if row[1] <= 0 else f"{row[1]:.2g}" for row in steps.values()]
        numbers = [heat, {"values": promised}, {"values": actual_falls, "text": texts}]
        return Shown(numbers, said, {0: self._names(shown, view), 1: {"y": {"names": self._rows(partition, merged)}}})

    def _names(self, shown: Summary, view: str) -> dict[str, Any]:
        names = shown.names if shown.names and len(shown) <= READABLE else ("",) * len(shown)
        title = "H̄" if view == "H-bar" else "H̄ with a diagonal of 1"
        return {"title": f"{title}: red above zero, blue below", "x": {"names": names}, "y": {"names": names}}

    def _rows(self, partition: str, merged: int) -> list[str]:
        sizes = {key: len(self._merge(key, merged if key == partition else 1)) for key in PARTITIONS}
        return [f"{'▸ ' if key == partition else ''}{key}, S = {size}" for key, size in sizes.items()]

    def _merge(self, name: str, width: int) -> dict[str, list[int]]:
        """Unit indices by group, ``width`` neighbouring groups as one."""
        groups = list(self._groups[name].items())
        runs = [groups[i : i + width] for i in range(0, len(groups), width)]
        return {_span([n for n, _ in run]): [i for _, members in run for i in members] for run in runs}

    def _decrease(self, name: str, width: int, strength: float) -> tuple[float, float, str]:
        """Promised and actual decrease, and the status, of one partition's step; computed once."""
        key = name, width, strength
        if key not in self._measured:
            groups = self._merge(name, width)
            step = newton_step(self._fine.coarsen(groups), strength, on_failure="report")
            rates = torch.zeros(len(self._units), dtype=torch.float64)
            for rate, members in zip(step.learning_rates, groups.values(), strict=True):
                rates[members] = rate
            after = losses_along(self._loss, self._units, self._units.scale(self._u, rates), np.ones(1))[0]
            self._measured[key] = step.predicted_decrease, float(self._fine.value) - after, step.status.name
        return self._measured[key]


def heat_of(hessian: Any, view: str) -> dict[str, Any]:
    """H-bar (S, S) as a heat map, or scaled so that its diagonal is 1: full colour is the largest entry, 1 or beyond."""
    if view == "H-bar":
        peak = float(np.abs(hessian).max()) or 1.0
        return {"z": hessian, "scale": {"linear": peak / 1000, "high": peak}}
    root = np.sqrt(np.abs(hessian.diagonal()))
    root[root == 0] = np.nan
    scaled = hessian / root / root[:, None]
    high = float(np.max(np.abs(scaled), initial=1.0, where=np.isfinite(scaled)))
    return {"z": scaled, "scale": {"linear": 0.1, "high": high}}


def by_unit(module: nn.Module) -> Partition:
    """Every row of every tensor a group of its own, biases apart: finer than by row, by tensor and what these coarsen to.

    >>> import gnewton as gn
    >>> by_unit(gn.models.perceptron([3, 2])).names
    ('0.weight[0]', '0.weight[1]', '0.bias[0]', '0.bias[1]')
    """
    groups: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}
    for name, p in module.named_parameters():
        count = len(p) if p.dim() else 1
        rows = torch.arange(count).reshape(p.shape[:1] + (1,) * (p.dim() - 1)).expand(p.shape)
        groups |= {f"{name}[{i}]": {name: (p, rows == i)} for i in range(count)}
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
