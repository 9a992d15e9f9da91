"""Twins: one function in two systems of units, trained side by side."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from gnewton.models import perceptron
from gnewton.optimizer import GroupedNewton
from gnewton.partition import Partition
from gnewton.teaching.scene import Axis, Mark, Panel, Scene, Shown, choice, slider
from gnewton.teaching.widgets.figure_widget import FigureWidget

STEPS = 25
FACTORS = (
    0.1,
    0.3,
    1.0,
    3.0,
    10.0,
)  # no powers of two but 1: those rescale floating-point numbers without any rounding
PLACES = {
    "the first layer": lambda shape: torch.ones(shape, dtype=torch.float64),
    "every second row of it": lambda shape: (torch.arange(shape[0]) % 2).double().reshape(-1, *[1] * (len(shape) - 1)),
}
ROUNDING = 1e-16

Make = Callable[[nn.Module], torch.optim.Optimizer]
METHODS: dict[str, Make] = {
    "GroupedNewton": lambda model: GroupedNewton(Partition.by_tensor(model), lr=1.0, cubic=1.0, period=1),
    "one group": lambda model: GroupedNewton(Partition.single(model), lr=1.0, cubic=1.0, period=1),
    "SGD": lambda model: torch.optim.SGD(model.parameters(), lr=0.5),
    "Adam": lambda model: torch.optim.Adam(model.parameters(), lr=0.02),
}


class Rescaled(nn.Module):
    """The same function of its input in other units: theta = a theta~, and theta~ is what an optimizer moves.

    factors: parameter name -> a, a number or a tensor that broadcasts to the parameter, nowhere zero; 1 where a name is
    missing. The parameters are named as in ``model``, with "_" for "."; ``theta`` are the model's, a theta~, by their names.
    Raises ValueError for a name that the model does not have.

    >>> model = perceptron([3, 2], dtype=torch.float64)
    >>> twin = Rescaled(model, {"0.weight": 10.0})
    >>> x = torch.ones(5, 3, dtype=torch.float64)
    >>> torch.allclose(twin(x), model(x)), torch.allclose(10 * twin.get_parameter("0_weight"), model[0].weight)
    (True, True)
    """

    def __init__(self, model: nn.Module, factors: Mapping[str, float | Tensor]) -> None:
        super().__init__()
        theta = {name: p.detach() for name, p in model.named_parameters()}
        if unknown := set(factors) - set(theta):
            raise ValueError(f"expected names among {list(theta)}, got {sorted(unknown)}; take them from the model")
        self._call: Callable[..., Any] = lambda values, x: functional_call(model, values, (x,))
        self._factors = {name: torch.as_tensor(factors.get(name, 1.0)).to(p) for name, p in theta.items()}
        for name, p in theta.items():
            self.register_parameter(name.replace(".", "_"), nn.Parameter(p / self._factors[name]))

    @property
    def theta(self) -> dict[str, Tensor]:
        """The parameters in the model's own units."""
        return {name: a * self.get_parameter(name.replace(".", "_")) for name, a in self._factors.items()}

    def forward(self, x: Tensor) -> Any:
        """What the model would return for these parameters."""
        return self._call(self.theta, x)


class InvarianceTwins(FigureWidget):
    """The loss of a network and of its rescaled twin under one method, and how far apart the two are.

    Full batches, float64; every run is made once, at construction.

    Args:
        inputs, targets: (n, d) and classes (n,), what a perceptron d-8-10 is trained on.
        method: "GroupedNewton" (one group per tensor), the same with "one group" in all, "SGD" or "Adam".
        factor: a in theta = a theta~.
        scaled: the part of the network in other units: the weights of the first layer, or every second row of them, two
            scales inside one group.

    >>> import gnewton as gn
    >>> data = gn.datasets.digits(dtype=torch.float64)
    >>> twins = InvarianceTwins(data.train_x[:20], data.train_y[:20], factor=3.0)
    >>> twins
    InvarianceTwins: GroupedNewton, the first layer in units of 3: after 25 steps the same loss, to rounding.
    >>> twins.method.value = "SGD"; twins
    InvarianceTwins: SGD, the first layer in units of 3: after 25 steps loss ..., and ... for the twin.
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        *,
        method: str = "GroupedNewton",
        factor: float = 3.0,
        scaled: str = "the first layer",
    ) -> None:
        x = inputs.double()
        self._plain = {name: losses(x, targets, make, 1.0, "the first layer") for name, make in METHODS.items()}
        self._twins = {
            (name, a, place): losses(x, targets, make, a, place) if a != 1 else self._plain[name]
            for name, make in METHODS.items()
            for place in PLACES
            for a in FACTORS
        }
        controls = (
            choice("method", "method", tuple(METHODS), method),
            slider("factor", "factor a", FACTORS, factor, "{:g}".format),
            choice("scaled", "in other units", tuple(PLACES), scaled),
        )
        steps = Axis("step", (0, STEPS))
        apart = Axis("relative difference", (ROUNDING / 3, 1e3), "log")
        marks = (
            Mark("line", 0, 0, "network", {"width": 5, "faint": 0.5, "dash": ""}),
            Mark("line", 0, 1, "rescaled twin", {"every": 5}),
            Mark("span", 1, "muted", "rounding", {"axis": "y", "low": ROUNDING / 3, "high": 1e-11}),
            Mark("line", 1, "ink", "", {"every": 1, "shape": "circle"}),
        )
        panels = (Panel(steps, Axis("loss", (1e-2, 1e1), "log")), Panel(steps, apart))
        super().__init__(Scene(controls, panels, marks))

    def numbers(self, method: str, factor: float, scaled: str) -> Shown:
        one, two = self._plain[method], self._twins[method, factor, scaled]
        apart, steps = np.abs(two - one) / one, range(STEPS + 1)
        # A rounding grows along the run; a different path does not begin as one.
        same = apart[1:].max() < 1e-6
        end = "the same loss, to rounding" if same else f"loss {one[-1]:.2g}, and {two[-1]:.2g} for the twin"
        said = f"{method}, {scaled} in units of {factor:g}: after {STEPS} steps {end}."
        curves = [{"x": steps, "y": y} for y in (one, two)]
        return Shown([*curves, {}, {"x": steps, "y": np.maximum(apart, ROUNDING)}], said)


def losses(x: Tensor, y: Tensor, make: Make, factor: float, place: str) -> np.ndarray:
    """The losses (STEPS + 1,) of a perceptron of which a part is in units of ``factor``."""
    model = perceptron([x.shape[1], 8, 10], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    where = PLACES[place](model[0].weight.shape)
    twin = Rescaled(model, {"0.weight": 1 + (factor - 1) * where})
    optimizer = make(twin)

    def loss() -> Tensor:
        return F.cross_entropy(twin(x), y)

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()  # type: ignore[no-untyped-call]
        return value.detach()

    step: Any = loss if isinstance(optimizer, GroupedNewton) else closure
    values = [float(optimizer.step(step)) for _ in range(STEPS)]
    return np.array([*values, float(loss().detach())])
