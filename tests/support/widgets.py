"""Every widget of the course as the tests make it, small and quick, from the state of its controls."""

import importlib
import itertools
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
    return teaching.TaylorSlice(loss, partition, u, summary, gn.newton_step(summary).learning_rates, **state)


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


Make = Callable[..., FigureWidget]
MAKERS: dict[type[FigureWidget], Make] = {
    teaching.QuadraticBowl: teaching.QuadraticBowl,
    teaching.TaylorSlice: taylor,
    teaching.StepExplorer: lambda **state: teaching.StepExplorer(summarized()[-1], **state),
    teaching.CurvatureTimeline: timeline,
    # So that the length of the first step matters.
    teaching.SaddleExplorer: lambda **state: teaching.SaddleExplorer(**({"remedy": "trust region"} | state)),
    teaching.SecularExplorer: teaching.SecularExplorer,
    teaching.CubicBound: lambda **state: teaching.CubicBound(*summarized(samples=50)[1:], **state),
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
}


def every_widget() -> set[type[FigureWidget]]:
    """The widgets that the modules of the course define, found by looking."""
    modules = [importlib.import_module(f"{widgets.__name__}.{one.name}") for one in iter_modules(widgets.__path__)]
    found = {one for module in modules for one in vars(module).values() if isinstance(one, type)}
    return {one for one in found if issubclass(one, FigureWidget) and one is not FigureWidget}


def controls(widget: FigureWidget) -> dict[str, Any]:
    """The controls by the names of their attributes, in the order in which they are shown."""
    by_control = {id(one): name for name, one in vars(widget).items() if hasattr(one, "_options_full")}
    return {by_control[id(one)]: one for one in widget.children if id(one) in by_control}


def drawn(widget: FigureWidget) -> list[Any]:
    """All that the picture is made of: lines, bars, images, filled areas, marks, words and limits."""
    found: list[Any] = []
    for ax in widget.figure.axes:
        found += [line.get_xydata() for line in ax.get_lines()]
        found += [patch.get_path().vertices @ patch.get_patch_transform().get_matrix()[:2, :2] for patch in ax.patches]
        found += [image.get_array() for image in ax.get_images()]
        found += [path.vertices for area in ax.collections for path in area.get_paths()]
        found += [text.get_text() for text in (*ax.texts, ax.title)]
        found += [ax.get_xlim(), ax.get_ylim()]
    return [one if isinstance(one, str) else np.asarray(one, float).tobytes() for one in found]


def options(control: Any) -> list[Any]:
    """What a control can be set to."""
    return [value for _, value in control._options_full]
