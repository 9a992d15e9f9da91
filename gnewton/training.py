"""A training loop with a progress bar and a history, for ``GroupedNewton`` and every ``torch.optim`` optimizer alike."""

import cmath
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from numbers import Integral
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnewton.datasets import Dataset
from gnewton.direction import check_finite, total
from gnewton.loss import check_value, has_rows
from gnewton.partition import stack_numbers

try:
    from tqdm import tqdm
except ImportError as error:
    raise ImportError("expected tqdm, got no such package; install it: pip install 'gnewton[lab]'") from error

LossFunction = Callable[[Any, Tensor], Tensor]
Evaluation = Dataset | tuple[Tensor, Tensor]


@dataclass(repr=False)
class History:
    """What a training run recorded: plain lists, so that ``json.dumps(history.to_dict())`` works.

    Per step: losses, the batch's loss before the step; seconds, the time since the start when the step was done, without
    the evaluations. Per epoch: epoch_steps, the number of steps done when it ended; train_losses, the mean of its losses
    weighted by batch size; test_losses and test_accuracies (0 to 1, without targets that are the ``ignore_index`` of the loss;
    empty unless targets are classes, one for each column of scores in the output's second axis). Per update of a
    ``GroupedNewton``: learning_rate_steps, its step; learning_rates, eta (S,) without lambda_1; group_names are the S
    groups. diverged: whether a loss stopped being finite; reason: then what happened, else "". Only finite losses of
    completed steps are kept, so that ``losses`` may end before its epoch does.
    """

    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    epoch_steps: list[int] = field(default_factory=list)
    train_losses: list[float] = field(default_factory=list)
    test_losses: list[float] = field(default_factory=list)
    test_accuracies: list[float] = field(default_factory=list)
    learning_rate_steps: list[int] = field(default_factory=list)
    learning_rates: list[list[float]] = field(default_factory=list)
    group_names: list[str] = field(default_factory=list)
    diverged: bool = False
    reason: str = ""

    @property
    def epoch_seconds(self) -> list[float]:
        """The time at the end of each epoch: the horizontal axis for what is recorded per epoch."""
        return [self.seconds[steps - 1] for steps in self.epoch_steps]

    def to_dict(self) -> dict[str, Any]:
        """The fields as a dictionary of plain Python lists, numbers and strings; ``History(**d)`` reads it back."""
        return asdict(self)

    def __repr__(self) -> str:
        # No seconds and two digits: the same line on every machine, so that a saved notebook can be compared.
        epochs = len(self.epoch_steps)
        parts = [f"{name} {values[-1]:.2g}" for name, values in self._last().items() if values]
        parts += [f"diverged: {self.reason}"] if self.diverged else []
        return f"{epochs} epoch{'s' * (epochs != 1)}: {', '.join(parts)}"

    def _last(self) -> dict[str, list[float]]:
        test = {"test accuracy": self.test_accuracies} if self.test_accuracies else {"test loss": self.test_losses}
        return {"training loss": self.train_losses} | test


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: Iterable[Any],
    *,
    loss_fn: LossFunction = F.cross_entropy,
    epochs: int = 1,
    evaluate: Evaluation | None = None,
    curvature: Iterable[Any] | None = None,
    scheduler: Any = None,
    full_batch: bool = False,
    progress: bool = True,
) -> History:
    """Train ``model`` for a number of epochs and return what happened.

    Args:
        model: the module to train; its training and evaluation modes are restored.
        optimizer: of gnewton or of ``torch.optim``. One with a method ``training_step(loss, batch)`` is asked for its steps.
        loader: gives batches (x, y), once per epoch; they move to the model's device.
        loss_fn: ``loss_fn(output, y)`` is a mean over the batch. An ``ExactNewton`` must have been built with the same.
        epochs: how often the loader is gone through.
        evaluate: a ``Dataset``, of which the test part is used, or a pair (x, y). It is measured after each epoch, with
            ``model.eval()``, in one forward pass.
        curvature: another loader, for the summaries of a ``GroupedNewton``; one batch is drawn per step, over and over.
        scheduler: any of ``torch.optim.lr_scheduler``, or a list of them, stepped after each epoch. ``ReduceLROnPlateau``
            sees the epoch's training loss.
        full_batch: an epoch is one step of a ``GroupedNewton``, along the mean over the whole loader.
        progress: a bar while it runs, in a terminal or a notebook, then one line that says how it ended.

    A loss or gradient that is not finite ends the run before the step: ``history.diverged`` is set and the parameters stay as
    they are then, on all ranks of a ``GroupedNewton``. Raises TypeError or ValueError for unfit arguments and loaders without
    batches, RankError for those of another rank.

    >>> import gnewton as gn
    >>> data = gn.datasets.teacher_student((3, 4, 1))
    >>> model = gn.models.perceptron([3, 4, 1], generator=torch.Generator().manual_seed(1))
    >>> optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    >>> history = fit(model, optimizer, data.batches(64), loss_fn=F.mse_loss, epochs=5, evaluate=data, progress=False)
    >>> len(history.losses), len(history.test_losses), history.train_losses[-1] < history.train_losses[0]
    (40, 5, True)
    """
    _check(optimizer, epochs, evaluate, curvature, full_batch)
    _check_moves(optimizer, model)
    _check_callables(loss_fn, scheduler)
    _check_batches(loader, "a loader")
    _check_batches(() if curvature is None else curvature, "a curvature loader")
    if hasattr(optimizer, "check_loss"):
        optimizer.check_loss(loss_fn)
    history, step = History(), _stepper(model, optimizer, loss_fn, curvature, loader if full_batch else None)
    history.group_names = getattr(optimizer, "group_names", [])
    steps = [(None, None)] if full_batch else loader
    with _modes_kept(model), closing(_Progress(epochs, steps, progress)) as bar:
        for epoch in range(epochs):
            bar.epoch(epoch + 1)
            model.train()
            _train(step, steps, optimizer, history, bar)
            if history.diverged:
                break
            _measure(model, loss_fn, evaluate, history)
            _schedule(scheduler, history)
        bar.finish(repr(history))
    return history


def _train(
    step: Callable[[Any, Any], float],
    loader: Iterable[Any],
    optimizer: torch.optim.Optimizer,
    history: History,
    bar: "_Progress",
) -> None:
    """One epoch; a step that meets a non-finite number ends it and sets ``history.diverged``."""
    start = time.perf_counter() - (history.seconds[-1] if history.seconds else 0.0)
    weighted, samples = 0.0, 0
    for x, y in _pairs(loader, optimizer):
        before = _last_rates(optimizer)
        try:
            loss = step(x, y)
        except FloatingPointError as error:
            history.diverged, history.reason = True, f"step {len(history.losses)}: {error}"
            return
        # The optimizer counts over its whole life and forgets its oldest updates: the run keeps its own record.
        if (update := _last_rates(optimizer)) is not None and update is not before:
            history.learning_rate_steps.append(len(history.losses))
            history.learning_rates.append(update.learning_rates.tolist())
        history.losses.append(loss)
        history.seconds.append(time.perf_counter() - start)
        n = _samples(x, y)
        weighted, samples = weighted + loss * n, samples + n
        bar.advance(loss)
    history.train_losses.append(weighted / samples)
    history.epoch_steps.append(len(history.losses))


def _pairs(loader: Iterable[Any], optimizer: torch.optim.Optimizer) -> Iterator[tuple[Any, Any]]:
    """The batches of one epoch; what goes wrong with one is told to the ranks that wait for its step."""
    batches, empty = None, True
    while True:
        with _preparing(optimizer):
            batches = iter(loader) if batches is None else batches
            try:
                pair = _pair(next(batches))
            except StopIteration:
                break
        empty = False
        yield pair
    if empty:
        with _preparing(optimizer):
            raise ValueError(
                "expected a loader with batches for every epoch, got none; a generator is used up after one pass: "
                "pass a list, a DataLoader or Dataset.batches(...)"
            )


def _preparing(optimizer: torch.optim.Optimizer) -> AbstractContextManager[None]:
    partition = getattr(optimizer, "partition", None)
    return nullcontext() if partition is None else partition.ranks.preparing()


def _stepper(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_fn: LossFunction,
    curvature: Iterable[Any] | None,
    data: Iterable[Any] | None,
) -> Callable[[Any, Any], float]:
    """(x, y) -> the loss before the step: one step of any kind of optimizer, on a batch or on all of ``data``."""
    device = _device(model)

    def loss(*batch: Any) -> Tensor:
        x, y = on_device(batch)
        return loss_fn(model(x), y)

    def on_device(batch: Any) -> tuple[Any, Any]:
        x, y = _pair(batch)
        _check_movable(x, y)
        return x.to(device), y.to(device)

    batches = None if curvature is None else _endless(curvature)

    def drawn(x: Any, y: Any) -> tuple[Any, dict[str, Any]]:
        # Drawn here and not inside the loss, which must be the same function at each of its calls.
        with _preparing(optimizer):
            return on_device((x, y)), {} if batches is None else {"curvature": on_device(next(batches))}

    if not hasattr(optimizer, "training_step"):
        return lambda x, y: _torch_step(model, optimizer, loss, on_device((x, y)))
    if data is not None:
        return lambda x, y: float(optimizer.training_step(loss, (), data=data))
    training_step = optimizer.training_step

    def step(x: Any, y: Any) -> float:
        batch, curvature_batch = drawn(x, y)
        return float(training_step(loss, batch, **curvature_batch))

    return step


def _torch_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, loss: LossFunction, batch: tuple[Tensor, Tensor]
) -> float:
    calls = 0

    def closure() -> float:
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        value = loss(*batch)
        _check_scalar(value)
        value.backward()  # type: ignore[no-untyped-call]
        # Here, before the step: afterwards NaN is in the parameters. A search along a line may try such a point: it comes back.
        return _checked(value.detach().reshape(()), model, optimizer, calls > 1 and _searches(optimizer))

    return float(optimizer.step(closure))


def _checked(value: Tensor, model: nn.Module, optimizer: torch.optim.Optimizer, anything: bool) -> float:
    """The loss () as a number; FloatingPointError where it or a gradient is not finite, unless ``anything`` will do.

    The host waits once; looks again where finite entries may have overflowed in their sum.
    """
    held = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    gradients = {str(i): _entries(p.grad) for i, p in enumerate(held)}
    number, whole = stack_numbers([value, total(gradients, value)]).tolist()
    if not (anything or cmath.isfinite(whole)):
        check_value(value)
        names = {id(p): name for name, p in model.named_parameters()}
        check_finite({names.get(id(p), f"parameter {i}"): gradients[str(i)] for i, p in enumerate(held)}, "gradient")
    return float(number.real)


def _entries(gradient: Tensor) -> Tensor:
    """All that a gradient holds: one of an embedding may be sparse."""
    return gradient.coalesce().values() if gradient.is_sparse else gradient


def _searches(optimizer: torch.optim.Optimizer) -> bool:
    """Whether it looks at the loss along a line before it goes there, as LBFGS can."""
    return any(group.get("line_search_fn") for group in optimizer.param_groups)


def _endless(loader: Iterable[Any]) -> Iterator[Any]:
    empty = False
    while not empty:
        empty = True
        for batch in loader:
            empty = False
            yield batch
    raise ValueError(
        "expected a curvature loader with batches, got none; pass a list, a DataLoader or Dataset.batches()"
    )


def _last_rates(optimizer: torch.optim.Optimizer) -> Any:
    """The newest record of learning rates per group, of an optimizer that has groups."""
    history = getattr(optimizer, "history", None) if hasattr(optimizer, "group_names") else None
    return history[-1] if history else None


def _measure(model: nn.Module, loss_fn: LossFunction, evaluate: Evaluation | None, history: History) -> None:
    if evaluate is None:
        return
    x, y = _parts(evaluate)
    x, y = x.to(_device(model)), y.to(_device(model))
    model.eval()
    with torch.no_grad():
        output = model(x)
        history.test_losses.append(float(loss_fn(output, y)))
    if _are_classes(y, output):
        # A label that the loss leaves out (padding) is no class; no whole number is NaN.
        counted = y != getattr(loss_fn, "ignore_index", torch.nan)
        history.test_accuracies.append(float((output.argmax(1) == y)[counted].double().mean()))


def _are_classes(y: Tensor, output: Any) -> bool:
    """Whether y are classes whose scores stand in the output's second axis, (N, C) or (N, C, ...)."""
    if y.is_floating_point() or not isinstance(output, Tensor) or output.dim() != y.dim() + 1 or output.dim() < 2:
        return False
    # Compared entry by entry: other shapes would be broadcast against each other. One column is no choice.
    return output.shape[1] > 1 and output.shape[:1] + output.shape[2:] == y.shape


def _parts(evaluate: Evaluation) -> tuple[Any, Any]:
    return (evaluate.test_x, evaluate.test_y) if isinstance(evaluate, Dataset) else evaluate


def _schedule(scheduler: Any, history: History) -> None:
    for one in _listed(scheduler):
        _schedule_one(one, history)


def _listed(scheduler: Any) -> list[Any]:
    return [*scheduler] if isinstance(scheduler, list | tuple) else [scheduler]


def _schedule_one(scheduler: Any, history: History) -> None:
    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        scheduler.step(history.train_losses[-1])
    elif scheduler is not None:
        scheduler.step()


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


@contextmanager
def _modes_kept(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _check(
    optimizer: torch.optim.Optimizer,
    epochs: int,
    evaluate: Evaluation | None,
    curvature: Iterable[Any] | None,
    full_batch: bool,
) -> None:
    if not isinstance(optimizer, torch.optim.Optimizer):
        kind = type(optimizer).__name__
        raise TypeError(f"expected a torch.optim optimizer or GroupedNewton, got {kind}; build one from the model")
    if not (isinstance(epochs, Integral) and epochs >= 1):
        raise ValueError(f"expected at least one epoch, got {epochs!r}; ask for a whole number of them")
    grouped = hasattr(optimizer, "group_names")
    if curvature is not None and not grouped:
        kind = type(optimizer).__name__
        raise TypeError(
            f"expected no curvature loader with {kind}, got one; only GroupedNewton takes summaries: drop it"
        )
    if full_batch and (curvature is not None or not grouped):
        kind = type(optimizer).__name__ if curvature is None else "a curvature loader"
        raise TypeError(f"expected a GroupedNewton alone for full_batch=True, got {kind}; leave one of them out")
    if not (evaluate is None or isinstance(evaluate, Dataset) or _is_pair(evaluate)):
        got = f"{len(evaluate)} entries" if isinstance(evaluate, list | tuple) else type(evaluate).__name__
        raise ValueError(f"expected evaluate as a Dataset or (x, y), got {got}; pass evaluate=(x, y)")
    if evaluate is not None:
        _check_movable(*_parts(evaluate))


def _check_moves(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a torch.nn.Module to train, got {type(model).__name__}; write the model as one")
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if held.isdisjoint(map(id, model.parameters())):
        raise ValueError(
            "expected an optimizer of the model's parameters, got one that moves none of them; build it on model.parameters() "
            "each time that the model is built"
        )


def _check_callables(loss_fn: Any, scheduler: Any) -> None:
    if not callable(loss_fn):
        raise TypeError(f"expected loss_fn(output, y), got {type(loss_fn).__name__}; F.cross_entropy is one")
    for one in _listed(scheduler):
        if isinstance(one, type):
            raise TypeError(f"expected a scheduler, got the class {one.__name__}; write {one.__name__}(optimizer, ...)")
        if one is not None and not callable(getattr(one, "step", None)):
            raise TypeError(f"expected a scheduler of torch.optim.lr_scheduler, got {type(one).__name__}; drop it")


def _samples(x: Any, y: Any) -> int:
    """The rows of x, or of y where the length of x, such as packed sequences or a dictionary, is that of its fields; else 1."""
    rows = next((one for one in (x, y) if has_rows(one)), None)
    return 1 if rows is None else len(rows)


def _check_movable(x: Any, y: Any) -> None:
    if not (hasattr(x, "to") and hasattr(y, "to")):
        raise TypeError(
            f"expected tensors x and y, got {type(x).__name__} and {type(y).__name__}; write torch.as_tensor, or the loop yourself"
        )


def _check_scalar(value: Any) -> None:
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"expected a loss_fn that returns the mean over the batch, a tensor (), got {got}; take its mean"
        )


def _is_pair(evaluate: Any) -> bool:
    return isinstance(evaluate, list | tuple) and len(evaluate) == 2


def _check_batches(loader: Any, word: str) -> None:
    if not isinstance(loader, Iterable):
        raise TypeError(
            f"expected {word} as batches, got {type(loader).__name__}; a Dataset gives them by .batches(100), tensors by [(x, y)]"
        )


def _pair(batch: Any) -> tuple[Any, Any]:
    """Inputs and targets of one batch. A tensor is none: its two rows would be taken for them."""
    if isinstance(batch, Iterable) and not isinstance(batch, Tensor | Mapping | str):
        entries = tuple(batch)
        if len(entries) == 2:
            return entries
    count = f" of {len(batch)} entries" if isinstance(batch, Sized) and not isinstance(batch, Tensor) else ""
    raise TypeError(
        f"expected batches (x, y), got a {type(batch).__name__}{count}; for others write the loop: for batch in loader: "
        "optimizer.step(lambda: loss(batch)), with a function that returns their loss"
    )


def _length(loader: Iterable[Any]) -> int | None:
    """The number of batches, or None where nobody knows: a DataLoader of an IterableDataset has a len() that raises."""
    try:
        return len(loader) if isinstance(loader, Sized) else None
    except TypeError:
        return None


class _Progress:
    """The moving bar for whoever watches, and at the end the one line that stays."""

    def __init__(self, epochs: int, loader: Iterable[Any], shown: bool) -> None:
        self._epochs, self._shown, self._cell = epochs, shown, _Cell.here()
        # Without a cell, None leaves it to tqdm: a bar in a terminal, nothing in a file or a pipe.
        hidden = (None if self._cell is None else not self._cell.watched) if shown else True
        length = _length(loader)
        self._bar = tqdm(total=length and epochs * length, file=self._cell, disable=hidden, leave=False, ncols=80)

    def epoch(self, number: int) -> None:
        self._bar.set_description(f"epoch {number}/{self._epochs}", refresh=False)

    def advance(self, loss: float) -> None:
        self._bar.set_postfix_str(f"loss {loss:.2g}", refresh=False)
        self._bar.update()

    def close(self) -> None:
        self._bar.close()

    def finish(self, line: str) -> None:
        self.close()
        if self._shown:
            tqdm.write(line, file=self._cell)


class _Cell:
    """A stream that shows in one output of a notebook cell the last line written to it.

    tqdm's own notebook bar is a widget, which a saved notebook cannot show; its text bar leaves every state it went
    through in the saved output. Here the line at the end takes the bar's place.
    """

    encoding = "utf-8"

    def __init__(self, shell: Any) -> None:
        # JupyterLab, Notebook and VS Code name the cell that they run. Programs that run notebooks do not: nobody
        # watches there, and nbval compares the first state of an output, so that the first must be the last.
        self.watched = "cellId" in (shell.get_parent().get("metadata") or {})
        self._handle: Any = None

    @classmethod
    def here(cls) -> "_Cell | None":
        """The cell that is running, or None outside a notebook."""
        # Inside a notebook IPython is loaded; elsewhere importing it would take longer than many a run.
        ipython = sys.modules.get("IPython")
        shell = ipython.get_ipython() if ipython else None
        return cls(shell) if hasattr(shell, "kernel") and hasattr(shell, "get_parent") else None

    def write(self, text: str) -> None:
        from IPython.display import display

        line = text.strip()
        if line and self._handle is None:
            self._handle = display({"text/plain": line}, raw=True, display_id=True)
        elif line:
            self._handle.update({"text/plain": line}, raw=True)

    def flush(self) -> None:
        """Every line is shown at once."""
