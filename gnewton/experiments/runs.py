"""One training run: from a seed to a dictionary of plain numbers, kept in a small file of its own."""

import copy
import hashlib
import json
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from gnewton.datasets import Dataset
from gnewton.experiments.methods import Method, Settings
from gnewton.experiments.networks import Problem
from gnewton.experiments.report import circumstances
from gnewton.optimizer import GroupedNewton, StepWarning
from gnewton.training import History, fit
from gnewton.whole_file import write

Run = dict[str, Any]


def network(problem: Problem, seed: int) -> nn.Module:
    """The initial network of a seed: the same one for every method."""
    return problem.network(torch.Generator().manual_seed(seed))


def train(
    problem: Problem,
    data: Dataset,
    method: Method,
    settings: Settings,
    seed: int,
    epochs: int,
    thorough: bool = True,
    model: nn.Module | None = None,
    parts: int = 1,
) -> Run:
    """Train ``method`` from ``seed`` on the training part of ``data``, measured on its test part.

    Per step: losses (the mini-batch's, before the step), seconds. Per epoch: epoch_steps, cpu_seconds and, of both whole
    parts, train_losses, train_accuracies, test_losses, test_accuracies (after the last epoch alone unless ``thorough``;
    None where a loss is not finite); with batch norm renewed_losses, too, train_losses with renewed statistics. With
    ``parts`` an epoch is looked at so many times, and counts as so many. A run ends as diverged where a loss or gradient is
    not finite, or an epoch's training loss is more than 100 times the first. Then diverged, reason and notes, what
    GroupedNewton warned of.
    """
    model = network(problem, seed) if model is None else model
    run: Run = {name: [] for name in ("losses", "seconds", "epoch_steps", "cpu_seconds", *_MEASURES)}
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        _warm_up(problem, data, method, settings, seed)
        step_through = _epochs(model, problem, data, method, settings, seed, parts)
        for epoch in range(epochs * parts):
            history, cpu = next(step_through)
            _append(run, history, cpu)
            reason = _divergence(history, run["losses"])
            if reason:
                break
            if thorough or epoch == epochs * parts - 1:
                _measure(model, problem, data, run)
    return run | {
        "diverged": bool(reason),
        "reason": f"epoch {epoch + 1}, {reason}" if reason else "",
        "notes": sorted({str(note.message) for note in notes if issubclass(note.category, StepWarning)}),
    }


# A network this far away has saturated: no run came back from there, and a step may then cost many times as much.
_EXPLODED = 100.0

_MEASURES = ("train_losses", "train_accuracies", "test_losses", "test_accuracies")


def _epochs(
    model: nn.Module, problem: Problem, data: Dataset, method: Method, settings: Settings, seed: int, parts: int = 1
) -> Iterator[tuple[History, float]]:
    """The history of one epoch, or part of an epoch, after another, with its processor seconds."""
    order, own = (torch.Generator().manual_seed(start + seed) for start in (1000, 2000))
    loader = _Parts(data.batches(problem.batch, order), parts)
    curvature = data.batches(min(problem.curvature, len(data.train_x)), own, drop_last=True)
    optimizer = method.build(model, problem, endless(curvature), settings)
    plateau = None
    if problem.plateau:
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=2, threshold=1e-4)
    grouped = isinstance(optimizer, GroupedNewton)
    summaries = endless(curvature, optimizer.param_groups[0]["period"]) if grouped else None
    while True:
        start = time.process_time()
        history = fit(
            model,
            optimizer,
            loader,
            loss_fn=problem.loss,
            epochs=1,
            evaluate=None,
            curvature=summaries,
            scheduler=plateau,
            progress=False,
        )
        yield history, time.process_time() - start


class _Parts:
    """A loader of which each pass is the next part of an epoch."""

    def __init__(self, loader: Any, parts: int) -> None:
        if len(loader) % parts:
            raise ValueError(f"expected parts that divide the {len(loader)} batches, got {parts}; take another number")
        self._batches, self._length = endless(loader), len(loader) // parts

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return islice(self._batches, self._length)


def endless(batches: Any, times: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
    """Batch after batch without end, each several times: a batch that will not be looked at costs nothing.

    >>> draws = endless(["a", "b"], 2)
    >>> [next(draws) for _ in range(6)]
    ['a', 'a', 'b', 'b', 'a', 'a']
    """
    while True:
        for batch in batches:
            for _ in range(times):
                yield batch


def _warm_up(problem: Problem, data: Dataset, method: Method, settings: Settings, seed: int) -> None:
    # What torch and curvlinops import and plan at their first step is not the method's time.
    few = replace(data, train_x=data.train_x[: problem.batch], train_y=data.train_y[: problem.batch])
    next(_epochs(network(problem, seed), problem, few, method, settings, seed))


def _append(run: Run, history: History, cpu: float) -> None:
    before, cpu_before = (run["seconds"] or [0.0])[-1], (run["cpu_seconds"] or [0.0])[-1]
    run["losses"] += history.losses
    run["seconds"] += [before + seconds for seconds in history.seconds]
    run["cpu_seconds"].append(cpu_before + cpu)
    run["epoch_steps"].append(len(run["losses"]))


@torch.no_grad()
def _measure(model: nn.Module, problem: Problem, data: Dataset, run: Run) -> None:
    model.eval()
    for part, x, y in (("train", data.train_x, data.train_y), ("test", data.test_x, data.test_y)):
        output = model(x)
        run[f"{part}_losses"].append(finite(float(problem.loss(output, y))))
        if not y.is_floating_point():
            run[f"{part}_accuracies"].append(float((output.argmax(1) == y).double().mean()))
    model.train()
    if any(isinstance(module, BATCH_NORM) for module in model.modules()):
        twin = renew_statistics(model, data.train_x.chunk(len(data.train_x) // problem.batch))
        loss = finite(float(problem.loss(twin(data.train_x), data.train_y)))
        run.setdefault("renewed_losses", []).append(loss)


BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def renew_statistics(model: nn.Module, inputs: Iterable[Tensor]) -> nn.Module:
    """A copy in evaluation mode whose batch norm knows the inputs as they are now: means over them in place of running ones.

    Running statistics remember some ten batches, and with them the networks of as many steps ago.

    >>> model = nn.Sequential(nn.BatchNorm1d(3))
    >>> renew_statistics(model, [torch.full((4, 3), 5.0)])[0].running_mean, model[0].running_mean
    (tensor([5., 5., 5.]), tensor([0., 0., 0.]))
    """
    twin = copy.deepcopy(model)
    update_bn(inputs, twin)
    return twin.eval()


def _divergence(history: History, losses: list[float]) -> str:
    """Why the run is over, or an empty string."""
    if history.diverged:
        return history.reason
    exploded = history.train_losses[-1] > _EXPLODED * losses[0]
    return f"the training loss rose to {history.train_losses[-1]:.2g}, from {losses[0]:.2g}" if exploded else ""


def finite(value: float) -> float | None:
    """JSON has no infinity: None says that a number was not finite."""
    return value if math.isfinite(value) else None


def load_or_compute(folder: Path, key: dict[str, Any], compute: Callable[[], Run]) -> Run:
    """The run that ``key``, the machine, its threads and the versions determine: read from its file, else computed and written.

    So the facts that a report states are those of its runs. The file is complete or absent, whatever interrupts; one that is
    damaged is made anew.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     [load_or_compute(Path(folder), {"method": "sgd", "seed": 0}, lambda: {"loss": loss})["loss"] for loss in (0.5, 0.7)]
    [0.5, 0.5]
    """
    whole = key | circumstances()
    digest = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:12]
    file = folder / f"{key['method']}-seed-{key['seed']}-{digest}.json"
    if (kept := _kept(file)) is not None:
        return kept
    run = compute()
    write(file, json.dumps({"key": whole, "run": run}, allow_nan=False))
    return run


def _kept(file: Path) -> Run | None:
    """The run of a file, or None: what is kept to save time can be made again."""
    with suppress(FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        run = json.loads(file.read_text(encoding="utf-8"))["run"]
        return run if isinstance(run, dict) else None
    return None
