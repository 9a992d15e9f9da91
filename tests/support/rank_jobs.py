"""What the processes of a ``Pool`` are asked to do: plain functions of the rank, so that one process can do the same."""

import copy
import io
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

import gnewton as gn
from gnewton.replicas import hash_of

SAMPLES = 61  # ragged: no number of ranks divides it


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 12), nn.LayerNorm(12), nn.GELU(), nn.Linear(12, 4)
    ).double()


def samples(order: int = 0) -> tuple[Tensor, Tensor]:
    """The whole batch; another ``order`` is another order of the same samples."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(SAMPLES, 8, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 4, (SAMPLES,), generator=generator)
    mixed = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(order)) if order else slice(None)
    return x[mixed], y[mixed]


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def mine(rank: int, order: int = 0) -> tuple[Tensor, Tensor]:
    """This rank's samples."""
    x, y = samples(order)
    return x[rank :: world()], y[rank :: world()]


def wrapped(model: nn.Module, how: str) -> nn.Module:
    """The model as its closure calls it; one process has no wrapper."""
    return nn.parallel.DistributedDataParallel(model) if how == "ddp" and world() > 1 else model


def partition_of(model: nn.Module, how: str) -> gn.Partition:
    partition = gn.Partition.by_tensor(model)
    return partition.over(dist.group.WORLD) if how == "plain" and world() > 1 else partition


PROPOSERS: dict[str, Callable[..., Any]] = {
    "gradient": lambda parameters: None,
    "adam": lambda parameters: torch.optim.Adam(parameters),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, momentum=0.9),
}


def optimizer_for(partition: gn.Partition, proposer: str, settings: dict[str, Any]) -> gn.GroupedNewton:
    return gn.GroupedNewton(partition, PROPOSERS[proposer](partition.parameters.values()), **settings)


def train(
    rank: int,
    how: str,
    proposer: str,
    settings: dict[str, Any],
    steps: int = 20,
    kind: str = "batch",
    order: int = 0,
    saved: bytes = b"",
) -> dict[str, Any]:
    """Some steps, from the start or from a saved state: parameters, rates, losses, what was sent and the state at the end."""
    model = network()
    called = wrapped(model, how)
    partition = partition_of(called, how)
    optimizer = optimizer_for(partition, proposer, settings)
    if saved:
        state = torch.load(io.BytesIO(saved), weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    x, y = mine(rank, order)
    for _ in range(steps):
        value = take(optimizer, called, x, y, kind)
    buffer = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
    return {
        "parameters": flat(model),
        "rates": torch.stack([outcome.learning_rates for outcome in optimizer.history]),
        "records": [(o.value, o.lr, o.cubic, o.rho, o.evaluations, o.age) for o in optimizer.history],
        "loss": float(value),
        "sent": partition.ranks.sent,
        "collectives": partition.ranks.collectives,
        "saved": buffer.getvalue(),
    }


def take(optimizer: gn.GroupedNewton, model: nn.Module, x: Tensor, y: Tensor, kind: str) -> Tensor:
    """One step of a kind: of the batch, with other samples for the curvature, or of all batches of the data."""

    def loss(a: Tensor, b: Tensor) -> Tensor:
        return F.cross_entropy(model(a), b)

    if kind == "data":
        return optimizer.step(loss, data=[(x[:9], y[:9]), (x[9:], y[9:])])
    other = (lambda: loss(1.01 * x.flip(0), y.flip(0))) if kind == "curvature" else None
    return optimizer.step(lambda: loss(x, y), curvature=other, samples=1 if kind == "unweighted" else len(x))


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# -- failures -----------------------------------------------------------------------------------------------------------


class Fault:
    """Goes wrong at one call of a loss, on one rank."""

    def __init__(self, kind: str, at: int) -> None:
        self.kind, self.at, self.calls = kind, at, 0

    def __call__(self, value: Tensor) -> Tensor:
        self.calls += 1
        if self.calls != self.at:
            return value
        if self.kind == "exception":
            raise OSError("the disk is gone")
        if self.kind == "memory":
            raise torch.OutOfMemoryError("tried to allocate 2 GiB")
        if self.kind == "interrupt":
            raise KeyboardInterrupt
        if self.kind == "signal":
            signal.raise_signal(signal.SIGINT)
        # The slope of a square root at 0 is infinite, and infinity times 0 is no number.
        return value * float("nan") if self.kind == "nan" else value + (0 * value).sqrt()


@contextmanager
def going_wrong(place: str, optimizer: gn.GroupedNewton) -> Iterator[None]:
    """Something outside the loss goes wrong once: the proposer, the solver, what moves the parameters, or a layer's backward pass."""
    if " in backward of " in place:
        kind, layer = place.split(" in backward of ")
        hook = Fault(kind, 1)
        handle = optimizer.partition.module[0][int(layer)].register_forward_hook(
            lambda *z: z[-1].register_hook(hook) and None
        )
        yield
        handle.remove()
        return
    owner, name = {
        "proposer": (optimizer.proposer.optimizer, "step"),
        "solver": (gn.cubic.CubicModel, "minimize"),
        "move": (gn.undo.Parameters, "move"),
        "move of old rates": (gn.line.Line, "move"),
        "commit": (gn.line.Objective, "commit"),
    }[place]
    before = getattr(owner, name)

    def fail(*arguments: Any, **named: Any) -> None:
        setattr(owner, name, before)
        raise torch.OutOfMemoryError("tried to allocate 2 GiB")

    setattr(owner, name, fail)
    try:
        yield
    finally:
        setattr(owner, name, before)


def interrupted(seconds: float) -> None:
    """SIGINT to this process in a while, whatever it is doing then."""
    threading.Timer(seconds, lambda: os.kill(os.getpid(), signal.SIGINT)).start()


def fail(rank: int, who: int, fault: str, at: int, step: int, settings: dict[str, Any]) -> dict[str, Any]:
    """A step in which one rank fails, after ``step`` good ones; what was raised, how soon, what had changed, and a good step."""
    model = nn.Sequential(network(), nn.BatchNorm1d(4)).double()
    called = wrapped(model, "ddp")
    optimizer = optimizer_for(gn.Partition.by_tensor(called), "adam", settings)
    x, y = mine(rank)
    for _ in range(step):
        take(optimizer, called, x, y, "batch")
    here = Fault(fault, at) if rank == who and at else lambda value: value
    before, state, draws = everything(model), hash_of(optimizer.state_dict()), torch.get_rng_state()

    def loss() -> Tensor:
        if fault == "signal while waiting" and rank != who:
            time.sleep(0.4)
        return here(F.cross_entropy(called(x), y))

    start, raised = time.monotonic(), ""
    try:
        waits = fault == "signal while waiting"
        with going_wrong(fault, optimizer) if rank == who and not at and not waits else nullcontext():
            if waits and rank == who:
                interrupted(0.2)
            optimizer.step(loss, samples=len(x))
    except BaseException as error:
        raised = f"{type(error).__name__}: {error}"
    seconds = time.monotonic() - start
    unchanged = all(map(torch.equal, before, everything(model))) and hash_of(optimizer.state_dict()) == state
    unchanged = unchanged and torch.equal(draws, torch.get_rng_state())
    value = take(optimizer, called, x, y, "batch")
    return {
        "raised": raised,
        "seconds": seconds,
        "unchanged": unchanged,
        "after": float(value),
        "model": everything(model),
    }


def fit(rank: int, who: int, fault: str, at: int) -> dict[str, Any]:
    """A training loop in which one rank fails at its step ``at``; how it ended, what it changed, and a good step afterwards."""
    model = network()
    optimizer = optimizer_for(gn.Partition.by_tensor(wrapped(model, "ddp")), "adam", {"cubic": 1e3, "period": 1})
    batch = mine(rank)
    odd: dict[str, Any] = {"no pair": batch[0], "no tensors": (1, 2), "nan": (batch[0] * float("nan"), batch[1])}
    seen: list[list[Tensor]] = []

    def batches() -> Iterator[Any]:
        for step in range(3):
            seen.append([p.detach().clone() for p in model.parameters()])
            if rank == who and step == at and fault in ("exception", "interrupt"):
                raise {"exception": OSError("no such file"), "interrupt": KeyboardInterrupt()}[fault]
            yield odd.get(fault, batch) if rank == who and step == at else batch

    def loaded() -> Iterator[Any]:
        return iter(()) if rank == who and fault == "no batches" else batches()

    curvature = [] if rank == who and fault == "no curvature" else [batch]
    start, raised, diverged = time.monotonic(), "", False
    try:
        history = gn.training.fit(
            optimizer.partition.module, optimizer, Loader(loaded), curvature=curvature, progress=False
        )
        diverged = history.diverged
    except BaseException as error:
        raised = f"{type(error).__name__}: {error}"
    seconds, last = time.monotonic() - start, seen[-1] if seen else list(model.parameters())
    unchanged = all(map(torch.equal, last, model.parameters()))
    value = optimizer.step(lambda: F.cross_entropy(model(batch[0]), batch[1]), samples=len(batch[0]))
    after = float(value)
    return {"raised": raised, "diverged": diverged, "seconds": seconds, "unchanged": unchanged, "after": after}


class Loader:
    """Batches that are made anew in each pass."""

    def __init__(self, make: Callable[[], Iterator[Any]]) -> None:
        self.make = make

    def __iter__(self) -> Iterator[Any]:
        return self.make()


def everything(model: nn.Module) -> list[Tensor]:
    return [t.detach().clone() for t in (*model.parameters(), *model.buffers())]


# -- what is refused -----------------------------------------------------------------------------------------------------


def refused(rank: int, what: str) -> str:
    """What is said to this rank."""
    torch.manual_seed(0)
    x, y = mine(rank)
    model, everyone = network(), dist.group.WORLD

    def loss_of(called: nn.Module) -> Callable[[], Tensor]:
        return lambda: F.cross_entropy(called(x), y)

    def other_seed() -> None:
        with torch.no_grad():
            model[0].weight[0, 0] += 1e-15 * rank
        gn.GroupedNewton(gn.Partition.by_tensor(model).over(everyone)).step(loss_of(model))

    def other_settings() -> None:
        gn.GroupedNewton(gn.Partition.by_tensor(model).over(everyone), period=1 + rank).step(loss_of(model))

    def other_settings_later() -> None:
        optimizer = gn.GroupedNewton(gn.Partition.by_tensor(model).over(everyone), period=2)
        optimizer.step(loss_of(model))
        optimizer.param_groups[0]["period"] = 1 + 5 * rank
        optimizer.step(loss_of(model))

    def other_groups() -> None:
        partition = gn.Partition.by_tensor(model) if rank else gn.Partition.by_layer(model)
        gn.GroupedNewton(partition.over(everyone)).step(loss_of(model))

    def not_said() -> None:
        gn.GroupedNewton(gn.Partition.by_tensor(model)).step(loss_of(model))

    def not_said_exactly() -> None:
        gn.ExactNewton(gn.models.perceptron([8, 4])).step(x.float(), y)

    def wrapper_inside() -> None:
        gn.Partition.by_tensor(nn.Sequential(nn.parallel.DistributedDataParallel(model)))

    def wrapper_of_another() -> None:
        another = nn.parallel.DistributedDataParallel(network())
        gn.GroupedNewton(gn.Partition.by_tensor(nn.parallel.DistributedDataParallel(model))).step(loss_of(another))

    def synchronized() -> None:
        synchronized = nn.Sequential(model, nn.SyncBatchNorm(4).double())
        gn.summarize(loss_of(synchronized), gn.Partition.by_tensor(synchronized).over(everyone))

    def fewer_batches_then_another_call() -> None:
        partition = gn.Partition.by_tensor(model).over(everyone)
        optimizer = gn.GroupedNewton(partition)
        for _ in range(2 - rank):
            optimizer.step(loss_of(model))
        if rank:
            gn.summarize(loss_of(model), partition, order=2)

    def fewer_batches() -> None:
        short = dist.new_group(timeout=timedelta(seconds=1))
        optimizer = gn.GroupedNewton(gn.Partition.by_tensor(model).over(short))
        for _ in range(2 - rank):
            optimizer.step(loss_of(model))

    def no_samples() -> None:
        gn.summarize(loss_of(model), gn.Partition.by_tensor(model).over(everyone), samples=0)

    def negative_samples() -> None:
        gn.summarize(loss_of(model), gn.Partition.by_tensor(model).over(everyone), samples=-rank)

    def joint() -> None:
        net = nn.parallel.DistributedDataParallel(gn.models.perceptron([8, 4], dtype=torch.float64))
        gn.ExactNewton(net, method="joint").step(x, y)

    def another_object() -> None:
        gn.Partition.by_tensor(model).over("gloo")

    def a_group_of_others() -> None:
        gn.Partition.by_tensor(model).over(dist.new_group([0]))

    try:
        locals()[what.replace(" ", "_")]()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


# -- other doors ---------------------------------------------------------------------------------------------------------


def answers(rank: int, what: str) -> dict[str, Tensor]:
    """What a public function returns, as tensors."""
    model = (
        network()
        if what != "exact"
        else gn.models.perceptron([8, 6, 4], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    )
    called = wrapped(model, "ddp")
    partition = gn.Partition.by_tensor(called)
    x, y = mine(rank)

    def loss(a: Tensor = x, b: Tensor = y) -> Tensor:
        return F.cross_entropy(called(a), b)

    batches = [(x[:9], y[:9]), (x[9:], y[9:])]
    if what.startswith("summary"):
        options: dict[str, Any] = {
            "summary": {"samples": len(x), "full_third": True},
            "summary nested": {"samples": len(x), "engine": "nested"},
            "summary differences": {"samples": len(x), "engine": "differences"},
            "summary of data": {"data": batches},
            "summary gauss-newton": {"samples": len(x), "curvature": "gauss-newton"},
        }[what]
        parts = (lambda: called(x), lambda z: F.cross_entropy(z, y))
        s = gn.summarize(parts if "gauss" in what else loss, partition, **options)
        return dict(enumerate(s.tensors()))
    if what == "gradient":
        return gn.direction.gradient(loss, partition, batches)
    if what == "suggestion":
        # As many batches on every rank; the whole batches of one process are theirs together.
        suggested = gn.suggest_learning_rates(
            loss, partition, [(x[:9], y[:9]), (x[9:], y[9:])] if world() > 1 else whole_batches()
        )
        return {"rates": suggested.learning_rates, "low": suggested.low, "high": suggested.high}
    if what == "stochastic":
        optimizer = gn.StochasticNewton(partition, lr=0.05, lr_direction=0.05)
        values = [float(optimizer.step(loss, samples=len(x))) for _ in range(5)]
        return {"parameters": flat(model), "values": torch.tensor(values)}
    exact = gn.ExactNewton(called)
    values = [float(exact.step(x, y)) for _ in range(5)]
    return {"parameters": flat(model), "values": torch.tensor(values)}


def whole_batches() -> list[tuple[Tensor, Tensor]]:
    """The batches of one process that are those of two ranks together."""
    x, y = samples()
    halves = [(x[rank::2], y[rank::2]) for rank in (0, 1)]
    first = tuple(torch.cat([half[i][:9] for half in halves]) for i in (0, 1))
    second = tuple(torch.cat([half[i][9:] for half in halves]) for i in (0, 1))
    return [first, second]  # type: ignore[list-item]


def batch_norm(rank: int) -> dict[str, Any]:
    """Gradients and buffers of a network with batch norm: this rank's own, those of the mean, and after a step."""
    model = nn.Sequential(network(), nn.BatchNorm1d(4)).double()
    x, y = mine(rank)
    alone = gn.Partition.by_tensor(model).over(None)
    own = gn.direction.gradient(lambda: F.cross_entropy(model(x), y), alone)
    twin = copy.deepcopy(model)
    twin(x)
    called = wrapped(model, "ddp")
    partition = gn.Partition.by_tensor(called)
    mean = gn.direction.gradient(lambda: F.cross_entropy(called(x), y), partition, samples=len(x))
    gn.GroupedNewton(partition).step(lambda: F.cross_entropy(called(x), y), samples=len(x))
    return {
        "gradient": flattened(own.values()),
        "mean gradient": flattened(mean.values()),
        "samples": len(x),
        "own buffers": flattened(twin.buffers()),
        "buffers": flattened(model.buffers()),
    }


def without_samples(rank: int) -> Tensor:
    """Parameters after three steps in which the last rank has nothing to say, and a loss that is no number."""
    model = network()
    partition = partition_of(model, "plain")
    optimizer = gn.GroupedNewton(partition, torch.optim.Adam(model.parameters()))
    x, y = samples()
    silent = world() > 1 and rank == world() - 1
    share = slice(rank, None, max(world() - 1, 1))
    for _ in range(3):
        if silent:
            optimizer.step(lambda: F.cross_entropy(model(x[:1]), y[:1]), samples=0)
        else:
            optimizer.step(lambda: F.cross_entropy(model(x[share]), y[share]), samples=len(x[share]))
    return flat(model)


def traffic(rank: int) -> dict[str, tuple[int, int]]:
    """Collectives and bytes of a gradient and of a summary."""
    model = network()
    partition = gn.Partition.by_tensor(wrapped(model, "ddp"))
    ranks, (x, y) = partition.ranks, mine(rank)

    def loss() -> Tensor:
        return F.cross_entropy(model(x), y)

    u = gn.direction.gradient(loss, partition)
    counts = {"gradient": (ranks.collectives, ranks.sent)}
    gn.summarize(loss, partition, u)
    before = counts["gradient"]
    return counts | {"summary": (ranks.collectives - before[0], ranks.sent - before[1])}


def save_together(rank: int, folder: str) -> None:
    """After a few steps."""
    gn.save_checkpoint(folder, *started(rank, 4))


def load_together(rank: int, folder: str) -> Tensor:
    """Parameters, rates and moments as they were loaded into an optimizer that has taken one step."""
    model, optimizer = started(rank, 1)
    gn.load_checkpoint(folder, model, optimizer)
    assert len(optimizer.history) > 1
    moments = [one["exp_avg"] for one in optimizer.proposer.optimizer.state.values()]
    return flattened([*model.parameters(), optimizer.learning_rates, *moments])


def started(rank: int, steps: int) -> tuple[nn.Module, gn.GroupedNewton]:
    model = network()
    optimizer = optimizer_for(partition_of(model, "plain"), "adam", {"period": 2})
    x, y = mine(rank)
    for _ in range(steps):
        take(optimizer, model, x, y, "batch")
    return model, optimizer


def flattened(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([t.detach().flatten().double() for t in tensors])


# -- gradients in buckets --------------------------------------------------------------------------------------------------


@contextmanager
def bucket_bytes(most: int) -> Iterator[None]:
    before, gn.buckets.BUCKET_BYTES = gn.buckets.BUCKET_BYTES, most
    try:
        yield
    finally:
        gn.buckets.BUCKET_BYTES = before


def in_buckets(rank: int, job: Callable[..., Any], *arguments: Any) -> Any:
    """A job whose gradients are sent in several buckets, each closed after 25 numbers."""
    with bucket_bytes(200):
        return job(rank, *arguments)


class _Peculiar(nn.Module):
    """A model or a loss that a backward pass does not simply go through from the last parameter to the first."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.net = kind, network()
        self.words = nn.Embedding(5, 4, sparse=kind == "sparse").double()
        self.last = nn.Linear(4, 4) if kind == "two dtypes" else nn.Identity()
        if kind == "frozen":
            self.net[2].weight.requires_grad_(False)

    def forward(self, x: Tensor, rank: int) -> Tensor:
        z = x
        for i, layer in enumerate(self.net):
            if self.kind == "reentrant" and i == 2:
                for _ in range(2):  # each of which completes a part of the layer's gradient
                    z = torch.utils.checkpoint.checkpoint(layer, z, use_reentrant=True)
            elif not (self.kind == "unused on one" and i == 2 and rank):
                z = layer(z)
        if self.kind == "tied":
            z = z @ self.net[5].weight @ self.net[0].weight[:, :4]
        z = z + self.words(torch.arange(len(x)) % (5 if self.kind != "no gradient" else 1))
        return self.last(z.float()).double() if self.kind == "two dtypes" else z


def gradient_in_buckets(rank: int, kind: str) -> dict[str, Any]:
    """The mean gradient of all samples, once in buckets and once in one piece, and the all-reduces of each."""
    torch.manual_seed(0)
    model, (x, y) = _Peculiar(kind), mine(rank)
    x = x.requires_grad_(kind == "reentrant")
    partition = partition_of(model, "plain")
    weight = 0 if kind == "no samples on one" and rank else len(x)
    answers, sent = [], []
    for most in (200, 10**9):
        before = partition.ranks.collectives
        with bucket_bytes(most):
            gradient = gn.direction.gradient(lambda: F.cross_entropy(model(x, rank), y), partition, samples=weight)
        answers.append(flattened(gradient.values()))
        sent.append(partition.ranks.collectives - before)
    return {"buckets": answers[0], "whole": answers[1], "sent": sent}


def sent_too_soon(rank: int) -> str:
    """What a gradient says that is sent although parts of it are completed one after the other."""
    before, gn.direction.has_custom_functions = gn.direction.has_custom_functions, lambda value: False
    try:
        gradient_in_buckets(rank, "reentrant")
    except KeyError as error:
        return str(error)
    finally:
        gn.direction.has_custom_functions = before
    return ""


def sent_on_the_way(rank: int, streams: bool) -> tuple[int, list[int]]:
    """All-reduces of a gradient in buckets, and how many of them had begun when each layer's gradient was there."""
    model, (x, y) = network(), mine(rank)
    partition, begun, stream = partition_of(model, "plain"), [], gn.buckets._stream
    weights = [model[i].weight for i in (0, 2, 5)]
    handles = [w.register_hook(lambda g: begun.append(partition.ranks.collectives)) for w in weights]
    if streams:
        gn.buckets._stream = lambda parameters: object()
    try:
        with bucket_bytes(200):
            gn.direction.gradient(lambda: F.cross_entropy(model(x), y), partition)
    finally:
        gn.buckets._stream = stream
        for handle in handles:
            handle.remove()
    return partition.ranks.collectives, begun
