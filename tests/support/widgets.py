"""Every widget of the course as the tests make it, small and quick, from the state of its controls."""

import copy
import importlib
import itertools
import json
from collections.abc import Callable
from functools import cache
from pkgutil import iter_modules
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import gnewton as gn
from gnewton import teaching
from gnewton.experiments import load
from gnewton.teaching import FigureWidget, widgets
from gnewton.teaching.scene import round_numbers
from gnewton.teaching.widgets import invariance, sample_spectrum
from gnewton.teaching.widgets.figure_widget import Handle

TRAININGS: dict[Any, Any] = {}


def once(train: Callable[..., Any]) -> Callable[..., Any]:
    """The training, made once of the same data: it takes seconds, and dozens of tests build these widgets."""

    def remember(*arguments):
        key = (train, *map(_content, arguments))
        if key not in TRAININGS:
            TRAININGS[key] = train(*arguments)
        return copy.deepcopy(TRAININGS[key])

    return remember


def _content(argument):
    if isinstance(argument, torch.Tensor):
        return argument.shape, argument.dtype, argument.numpy().tobytes()
    return argument


invariance.losses, sample_spectrum.train = once(invariance.losses), once(sample_spectrum.train)


def network(*hidden, samples=50):
    """A perceptron on the 8 x 8 digits, and its loss."""
    data = gn.datasets.digits(dtype=torch.float64)
    x, y = data.train_x[:samples], data.train_y[:samples]
    generator = torch.Generator().manual_seed(0)
    model = gn.models.perceptron([64, *hidden, 10], generator=generator, dtype=torch.float64)
    return model, lambda: F.cross_entropy(model(x), y)


def summarized(full_third=True, samples=100):
    """model, loss, partition, direction and summary of a perceptron 64-8-10."""
    model, loss = network(8, samples=samples)
    partition = gn.Partition.by_tensor(model)
    u = gn.direction.gradient(loss, partition)
    return model, loss, partition, u, gn.summarize(loss, partition, u, full_third=full_third)


def drawn_data(rows=12, inputs=5):
    """Normal inputs and ten classes."""
    draw = torch.Generator().manual_seed(1)
    return torch.randn(rows, inputs, generator=draw, dtype=torch.float64), torch.randint(10, (rows,), generator=draw)


def random_direction():
    """A loss, its groups, and a direction that is not its gradient."""
    draw = torch.Generator().manual_seed(0)
    model = gn.models.perceptron([3, 4, 2], generator=draw, dtype=torch.float64)
    x, y = torch.randn(6, 3, generator=draw, dtype=torch.float64), torch.randint(2, (6,), generator=draw)
    groups = gn.Partition.by_tensor(model)
    u = {n: torch.randn(p.shape, generator=draw, dtype=torch.float64) for n, p in groups.parameters.items()}
    return lambda: F.cross_entropy(model(x), y), groups, u


@cache
def noisy():
    """Summaries of forty parts of six samples, and the partition, direction and loss that they are of."""
    draw = torch.Generator().manual_seed(0)
    model = gn.models.perceptron([4, 5, 3], generator=draw, dtype=torch.float64)
    x, y = torch.randn(240, 4, generator=draw, dtype=torch.float64), torch.randint(3, (240,), generator=draw)
    partition = gn.Partition.by_tensor(model)

    def loss(rows=slice(None)):
        return F.cross_entropy(model(x[rows]), y[rows])

    u = gn.direction.gradient(loss, partition)
    parts = [gn.summarize(lambda r=r: loss(r), partition, u) for r in torch.arange(240).split(6)]
    return parts, partition, u, loss


def geometric(rate):
    """A run whose loss is multiplied by 1 - rate at every step."""
    losses = itertools.accumulate(itertools.repeat(1 - rate), lambda loss, factor: loss * factor)
    return lambda: next(losses)


def taylor(**state):
    _, loss, partition, u, summary = summarized()
    return teaching.TaylorSlice(
        loss, partition, u, summary=summary, eta=gn.newton_step(summary).learning_rates, **state
    )


def bound(**state):
    _, loss, partition, u, summary = summarized(samples=50)
    return teaching.CubicBound(loss, partition, u, summary=summary, **state)


def timeline(**state):
    model, loss = network(8, samples=100)
    optimizer = gn.GroupedNewton(gn.Partition.by_tensor(model))
    for _ in range(4):
        optimizer.step(loss)
    return teaching.CurvatureTimeline(optimizer.history, optimizer.partition.names, **state)


def live(**state):
    values = {name.removeprefix("set_"): value for name, value in state.items()}
    return teaching.LiveTraining(geometric, {"rate": (0.5, 0.9, 0.1)}, values=values, name="the table of widgets")


def deep_rates(**state):
    data = gn.datasets.digits(dtype=torch.float64)
    return teaching.DeepRates(data, width=6, samples=40, epochs=1, **state)


def races(**state):
    return teaching.RaceExplorer({name: load(name) for name in ("mlp", "autoencoder")}, **state)


def four_rates(**state):
    model = gn.models.Rosenbrock(2, dtype=torch.float64)
    parts = tuple(state.get(f"rate_{i}", 0.5) for i in range(2))
    return teaching.FourRates(model, gn.Partition.by_scalar(model), parts=parts)


Make = Callable[..., FigureWidget]
MAKERS: dict[type[FigureWidget], Make] = {
    teaching.QuadraticBowl: teaching.QuadraticBowl,
    teaching.TaylorSlice: taylor,
    teaching.StepExplorer: lambda **state: teaching.StepExplorer(summarized()[-1], **state),
    teaching.CurvatureTimeline: timeline,
    # So that the length of the first step matters.
    teaching.SaddleExplorer: lambda **state: teaching.SaddleExplorer(**({"remedy": "trust region"} | state)),
    teaching.SecularExplorer: teaching.SecularExplorer,
    teaching.CubicBound: bound,
    teaching.PartitionExplorer: lambda **state: teaching.PartitionExplorer(*network(6, 5), **state),
    teaching.InvarianceTwins: lambda **state: teaching.InvarianceTwins(*drawn_data(), **state),
    teaching.TapeViewer: lambda **state: teaching.TapeViewer(*random_direction(), **({"stage": 10} | state)),
    teaching.NoiseExplorer: lambda **state: teaching.NoiseExplorer(
        noisy()[0], noisy()[1].names, part=6, **({"batch": 60} | state)
    ),
    teaching.DeepRates: deep_rates,
    teaching.SampleSpectrum: lambda **state: teaching.SampleSpectrum(gn.datasets.digits(), **state),
    teaching.RaceExplorer: races,
    teaching.LiveTraining: live,
    teaching.FourRates: four_rates,
}


def every_widget() -> set[type[FigureWidget]]:
    """The widgets that the modules of the course define, found by looking."""
    modules = [importlib.import_module(f"{widgets.__name__}.{one.name}") for one in iter_modules(widgets.__path__)]
    kinds = {one for module in modules for one in vars(module).values() if isinstance(one, type)}
    return {one for one in kinds if issubclass(one, FigureWidget) and one is not FigureWidget}


def controls(widget: FigureWidget) -> dict[str, Handle]:
    """The controls by the names of their attributes, in the order in which they are shown."""
    return {control.name: getattr(widget, control.name) for control in widget.scene.controls}


def marked(widget: FigureWidget) -> dict[str, Any]:
    """What is shown now by each mark's label, or its kind where it has none; the first one of several."""
    pairs = list(zip(widget.scene.marks, widget.now.numbers, strict=True))
    return {mark.label or mark.kind: numbers for mark, numbers in reversed(pairs)}


PLACES = np.array([[-1.3, 0.2, 2.1], [0.4, 1.7, -0.6]])


def drawn(widget: FigureWidget) -> str:
    """All that the picture is made of: the numbers of every mark, level sets at three places, what moved of the panels."""
    numbers = [{"f": n["f"](*PLACES)} if "f" in n else n for n in widget.now.numbers]
    return json.dumps(round_numbers([numbers, widget.now.panels], 15))
