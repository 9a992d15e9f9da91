"""What the processes of a ``Pool`` are asked to do with models in ``fully_shard``; one process does the same with whole ones."""

import gc
import signal
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from support.rank_jobs import interrupted, world
from torch import Tensor, nn

import gnewton as gn
from gnewton import sharded
from gnewton.derivatives.rules.matmul import Linear

warnings.filterwarnings(
    "ignore", "FSDP2-wrapped module"
)  # that views must not be written into, of its own forward passes

warnings.filterwarnings("ignore", "DTensor random operators may not have complete support")  # torch 2.6

Loss = Callable[[Tensor, Tensor], Tensor]
SAMPLES = 13  # ragged: no number of ranks divides it


class Tied(nn.Module):
    """The embedding is read again at the end, outside the module that owns it; one weight goes through functions of itself."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 6)
        self.mix = nn.Linear(6, 6)
        self.gate = nn.Parameter(torch.randn(6, 6))
        self.last = nn.Linear(6, 11, bias=False)
        self.last.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        first, second = F.softplus(self.gate).chunk(2)
        h = self.words(x).tanh()
        h = h + self.mix(h).sigmoid() @ torch.cat([first, second], 0).T
        return self.last(h)


class Attention(nn.Module):
    """A transformer layer; its first matrix is frozen, and a part of it is computed twice (checkpoints)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 10, dropout=0.0, batch_first=True)
        self.layer.linear1.weight.requires_grad_(False)
        self.first = nn.Linear(5, 8)
        self.head = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.utils.checkpoint.checkpoint(self.first, x, use_reentrant=False)
        return self.head(self.layer(h)).squeeze(-1)


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3), nn.LayerNorm(3), nn.GELU(), nn.Linear(3, 1))


class Forces(nn.Module):
    """Its output is a slope, which a backward pass inside computes: the tape does not see it."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = perceptron()

    def forward(self, x: Tensor) -> Tensor:
        x = x.requires_grad_()
        (slope,) = torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)
        return slope.sum(-1)


class Vectorized(nn.Module):
    """One sample at a time, by torch.func.vmap."""

    def __init__(self) -> None:
        super().__init__()
        self.one = perceptron()

    def forward(self, x: Tensor) -> Tensor:
        return torch.func.vmap(self.one)(x).squeeze(-1)


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(5, 3, 2), nn.BatchNorm1d(3), nn.SiLU(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(3, 2)
    ).eval()


MODELS: dict[str, Callable[[], nn.Module]] = {
    "tied": Tied,
    "attention": Attention,
    "convolutions": convolutions,
    "forces": Forces,
    "vectorized": Vectorized,
}


def problem(name: str) -> tuple[nn.Module, Loss, Tensor, Tensor]:
    """A whole model, its loss and the whole batch, the same ones everywhere."""
    torch.manual_seed(0)
    model = MODELS.get(name, perceptron)().double()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(SAMPLES, 4, 5, generator=generator, dtype=torch.float64)
    y = torch.randn(SAMPLES, 4, generator=generator, dtype=torch.float64)
    if name == "tied":
        words = torch.randint(11, (SAMPLES, 5), generator=generator)
        return (
            model,
            lambda a, b: _penalty(model) + F.cross_entropy(model(a).flatten(0, 1), b.flatten()),
            words,
            10 - words,
        )
    if name == "convolutions":
        return model, lambda a, b: F.mse_loss(model(a.mT), b[:, :2]), x, y
    return model, lambda a, b: F.mse_loss(model(a).reshape(b.shape), b), x, y


def _penalty(model: nn.Module) -> Tensor:
    """Over each parameter once, the tied one too."""
    return 0.1 * torch.stack([p.pow(3).sum() for p in model.parameters()]).sum()


def shard(model: nn.Module, **options: Any) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = options.pop("mesh", None) or init_device_mesh("cpu", (world(),))
    for one in model.children():
        # What is read outside the module that owns it belongs to the root.
        if any(True for _ in one.parameters()) and not isinstance(model, Tied):
            fully_shard(one, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def mine(rank: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return x[rank :: world()], y[rank :: world()]


def started(rank: int, name: str) -> tuple[nn.Module, Callable[[], Tensor], int]:
    """The model, sharded among several processes, the loss of this rank's samples, and their number."""
    model, loss, x, y = problem(name)
    a, b = mine(rank, x, y)
    if world() > 1:
        shard(model)
    return model, lambda: loss(a, b), len(a)


def whole(tensors: dict[str, Any]) -> dict[str, Tensor]:
    return {name: t.full_tensor() if hasattr(t, "full_tensor") else t for name, t in tensors.items()}


def direction(partition: gn.Partition) -> dict[str, Tensor]:
    """An irregular direction, the same on one process and on several."""
    out = {}
    for i, (name, p) in enumerate(partition.parameters.items()):
        u = torch.randn(p.shape, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
        if world() > 1:
            from torch.distributed.tensor import distribute_tensor

            u = distribute_tensor(u, p.device_mesh, p.placements)
        out[name] = u
    return out


# -- several processes are one -----------------------------------------------------------------------------------------


def summary(rank: int, name: str, factory: str, options: dict[str, Any], weighed: bool = True) -> dict[str, Any]:
    """The gradient, whole, and the summary along an irregular direction."""
    model, loss, samples = started(rank, name)
    if factory == "by_name":
        partition = gn.Partition.by_name(model, {"ends": ["0.*", "5.*"], "norm": "3.weight"}, rest="ignore")
    else:
        partition = getattr(gn.Partition, factory)(model)
    samples = samples if weighed else 1
    gradient = gn.direction.gradient(loss, partition, samples=samples)
    s = gn.summarize(loss, partition, direction(partition), samples=samples, **options)
    return {"gradient": whole(gradient), "summary": s.tensors(), "names": s.names, "engine": s.engine}


def of_batches(rank: int) -> dict[str, Any]:
    """Gradient and summary of the mean over two batches, along the gradient."""
    model, loss, x, y = problem("perceptron")
    a, b = mine(rank, x, y)
    if world() > 1:
        shard(model)
    partition, data = gn.Partition.by_tensor(model), [(a[:2], b[:2]), (a[2:], b[2:])]
    gradient = gn.direction.gradient(loss, partition, data)
    s = gn.summarize(loss, partition, data=data, order=2)
    return {"gradient": whole(gradient), "summary": s.tensors()}


def gauss_newton(rank: int) -> list[Tensor]:
    model, _, x, y = problem("perceptron")
    a, b = mine(rank, x, y)
    if world() > 1:
        shard(model)
    partition = gn.Partition.by_layer(model)
    parts = (lambda: model(a).reshape(b.shape), lambda z: F.mse_loss(z, b))
    options = {"curvature": "gauss-newton", "samples": len(a)}
    return [
        t
        for engine in ("tape", "nested")
        for t in gn.summarize(parts, partition, direction(partition), engine=engine, **options).tensors()
    ]


PROPOSERS: dict[str, Callable[..., Any]] = {
    "gradient": lambda parameters: None,
    "adam": torch.optim.Adam,
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01),
}


def stepped(
    rank: int, name: str, factory: str, proposer: str, settings: dict[str, Any], kind: str = "batch", order: int = 0
) -> dict[str, Any]:
    """Whole parameters and rates after some steps of a GroupedNewton; another ``order`` is that of the same samples."""
    model, loss, x, y = problem(name)
    mixed = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(order)) if order else slice(None)
    a, b = mine(rank, x[mixed], y[mixed])
    if world() > 1:
        shard(model)
    partition = getattr(gn.Partition, factory)(model)
    optimizer = gn.GroupedNewton(partition, PROPOSERS[proposer](model.parameters()), **settings)
    before = whole({n: p.detach().clone() for n, p in partition.parameters.items()})
    for _ in range(8):
        if kind == "data":
            optimizer.step(loss, data=[(a[:2], b[:2]), (a[2:], b[2:])])
        else:
            optimizer.step(lambda: loss(a, b), samples=len(a) if kind == "batch" else 1)
    return {
        "before": flat(before),
        "parameters": flat(whole({n: p.detach() for n, p in partition.parameters.items()})),
        "rates": torch.stack([o.learning_rates for o in optimizer.history]),
        "records": repr([(o.value, o.lr, o.cubic, o.rho, o.evaluations, o.age) for o in optimizer.history]),
    }


def resumed(rank: int, settings: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The parameters after six steps, and after three, a saved state, and three of another optimizer on another model."""
    import io

    ends = []
    for loaded in (False, True):
        model, loss, samples = started(rank, "perceptron")
        optimizer = gn.GroupedNewton(gn.Partition.by_layer(model), torch.optim.Adam(model.parameters()), **settings)
        for step in range(6):
            if loaded and step == 3:
                buffer = io.BytesIO()
                torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
                buffer.seek(0)
                state = torch.load(buffer, weights_only=True)
                model, loss, samples = started(rank, "perceptron")
                model.load_state_dict(state["model"])
                optimizer = gn.GroupedNewton(
                    gn.Partition.by_layer(model), torch.optim.Adam(model.parameters()), **settings
                )
                optimizer.load_state_dict(state["optimizer"])
            optimizer.step(loss, samples=samples)
        ends.append(flat(whole({n: p.detach() for n, p in model.named_parameters()})))
    return ends[0], ends[1]


def by_some(rank: int, how: str, size: int, settings: dict[str, Any]) -> tuple[Any, Any, Callable[[], Tensor]] | None:
    """A model, its optimizer and its step, of the first ``size`` ranks, in shards or replicas; None on the others."""
    from torch.distributed.device_mesh import DeviceMesh

    group = dist.new_group(list(range(size))) if size > 1 else None
    if rank >= size:
        return None
    model, loss, x, y = problem("perceptron")
    if how == "shards" and group is not None:
        shard(model, mesh=DeviceMesh.from_group(group, "cpu"))
    partition = gn.Partition.by_layer(model)
    if partition.shards is None:
        partition = partition.over(group)
    optimizer = gn.GroupedNewton(partition, torch.optim.Adam(model.parameters()), **settings)
    a, b = x[rank::size], y[rank::size]
    return model, optimizer, lambda: optimizer.step(lambda: loss(a, b), samples=len(a))


def through_checkpoint(
    rank: int, folder: str, settings: dict[str, Any], saves: tuple[str, int], loads: tuple[str, int]
) -> Tensor | None:
    """Three steps of some ranks, and after a checkpoint three of others: parameters and moments at the end."""
    first = by_some(rank, *saves, settings)
    if first is not None:
        model, optimizer, step = first
        for _ in range(3):
            step()
        gn.save_checkpoint(folder, model, optimizer)
    if world() > 1:
        dist.barrier()
    second = by_some(rank, *loads, settings)
    if second is None:
        return None
    model, optimizer, step = second
    step()  # what was there before is not mixed with what is loaded
    gn.load_checkpoint(folder, model, optimizer)
    for _ in range(3):
        step()
    return state_of(model, optimizer)


def six_steps(settings: dict[str, Any], order: int) -> Tensor:
    """The same of one process that was never stopped, with its samples in some order."""
    model, loss, x, y = problem("perceptron")
    mixed = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(order)) if order else slice(None)
    optimizer = gn.GroupedNewton(gn.Partition.by_layer(model), torch.optim.Adam(model.parameters()), **settings)
    for _ in range(6):
        optimizer.step(lambda: loss(x[mixed], y[mixed]))
    return state_of(model, optimizer)


def state_of(model: nn.Module, optimizer: gn.GroupedNewton) -> Tensor:
    """Parameters, and what Adam remembers."""
    assert optimizer.proposer is not None
    states = optimizer.proposer.optimizer.state.values()
    moments = {f"{i}.{word}": one[word] for i, one in enumerate(states) for word in ("exp_avg", "exp_avg_sq")}
    return flat(whole({n: p.detach() for n, p in model.named_parameters()} | moments))


def misloaded(rank: int, folder: str, what: str) -> tuple[str, bool]:
    """What is said to a state that is not this optimizer's, and whether everything is as it was."""
    model, loss, samples = started(rank, "perceptron")

    def built(**settings: Any) -> gn.GroupedNewton:
        return gn.GroupedNewton(gn.Partition.by_layer(model), torch.optim.Adam(model.parameters()), **settings)

    optimizer = built()
    optimizer.step(loss, samples=samples)
    if what == "another policy":
        gn.save_checkpoint(folder, model, optimizer)
        optimizer = built(policy=gn.policies.Calibrated())
    optimizer.step(loss, samples=samples)
    state = optimizer.state_dict()
    if what == "shards of no parameter":
        optimizer.state["grouped_newton"]["policy"]["mine"] = next(model.parameters()).detach()
    before = state_of(model, optimizer)
    try:
        if what == "another policy":
            gn.load_checkpoint(folder, model, optimizer)
        elif what == "shards of no parameter":
            gn.save_checkpoint(folder, model, optimizer)
        else:
            optimizer.load_state_dict(state | {"shards": [1 - rank, world()]})
    except (TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}", torch.equal(before, state_of(model, optimizer))
    return "", False


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors.values()])


def suggested(rank: int) -> dict[str, Tensor]:
    """Suggested rates of Adam: as many samples in each batch on every rank, and in those of one process all of theirs."""
    model, loss, x, y = problem("perceptron")
    batches = [tuple(t[:12][start::2][rank :: world()] for t in (x, y)) for start in (0, 1)]
    if world() > 1:
        shard(model)
    partition = gn.Partition.by_layer(model)
    s = gn.suggest_learning_rates(loss, partition, batches, proposer=torch.optim.Adam(model.parameters()), cubic=1.0)
    return {"rates": s.learning_rates, "low": s.low, "high": s.high}


def monitored(rank: int) -> list[Any]:
    """What a monitor says of an ordinary training, by FSDP2 where there are several processes."""
    model, loss, x, y = problem("perceptron")
    a, b = mine(rank, x[:12], y[:12])
    if world() > 1:
        shard(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    monitor = gn.RateMonitor(optimizer, gn.Partition.by_layer(model), period=1)
    for _ in range(4):
        monitor.look(lambda: loss(a, b))
        optimizer.zero_grad()
        loss(a, b).backward()
        optimizer.step()
    return [(look.newton_ratio, *look.group_ratios) for look in monitor.history]


# -- memory -------------------------------------------------------------------------------------------------------------


def living(rank: int, recent: int) -> dict[str, Any]:
    """The most bytes of gathered tensors that were alive at once, beside those of the whole model."""
    torch.manual_seed(0)
    model = nn.Sequential(*[one for _ in range(24) for one in (nn.Linear(24, 24), nn.Tanh())]).double()
    size = sum(8 * p.numel() for p in model.parameters())
    partition = gn.Partition.by_layer(shard(model))
    x, now, most = torch.randn(2, 24, dtype=torch.float64), [0], [0]
    gather, before = gn.ranks.Ranks.gather, sharded._RECENT

    def die(n: int) -> None:
        now[0] -= n

    def counted(self: Any, call: str, part: Tensor, out: Tensor) -> None:
        storage = out.untyped_storage()
        now[0] += storage.nbytes()
        most[0] = max(most[0], now[0])
        weakref.finalize(storage, die, storage.nbytes())
        gather(self, call, part, out)

    gn.ranks.Ranks.gather, sharded._RECENT = counted, recent  # type: ignore[method-assign]
    peaks = {}
    try:
        for what, options in (("order 2", {"order": 2}), ("order 3", {}), ("all of order 3", {"full_third": True})):
            most[0] = 0
            s = gn.summarize(lambda: model(x).square().mean(), partition, direction(partition), **options)
            assert s.engine == "tape"
            peaks[what] = most[0] / size
        most[0] = 0
        gn.direction.gradient(lambda: model(x).square().mean(), partition)
        peaks["gradient"] = most[0] / size
    finally:
        gn.ranks.Ranks.gather, sharded._RECENT = gather, before  # type: ignore[method-assign]
    gc.collect()
    return {"peaks": peaks, "left": now[0]}


def freed(rank: int, name: str, what: str, kept: bool = False) -> bool:
    """Whether a model is gone after its last use. ``kept``: autograd's graph keeps it, in a circle that Python does not see."""
    model, loss, n = started(rank, name)
    partition = gn.Partition.by_layer(model)
    if kept:
        circle = torch.ones(2, requires_grad=True).exp()
        circle.grad_fn.metadata.update(circle=circle, model=model)
    if what == "gradient":
        gn.direction.gradient(loss, partition, samples=n)
    elif what == "step":
        proposer = torch.optim.RMSprop(model.parameters(), lr=0.01)
        gn.GroupedNewton(partition, proposer).step(loss, samples=n)
    else:
        gn.summarize(loss, partition, direction(partition), samples=n, engine=what)
    gone = weakref.ref(model)
    del model, loss, partition
    # Where gloo's thread still holds a tensor of the garbage, Python leaves what that leads to for the next pass.
    for _ in range(20):
        gc.collect()
        if gone() is None:
            return True
        time.sleep(0.1)
    return False


def fsdp_trains(rank: int) -> bool:
    """Whether this torch's FSDP2 trains on processors: that of torch 2.6 does not."""
    model = shard(perceptron())
    try:
        model(torch.ones(2, 5)).sum().backward()
    except (AttributeError, RuntimeError):
        return False
    return True


# -- what stays as it was -----------------------------------------------------------------------------------------------


def trained(rank: int, name: str, between: bool) -> dict[str, Tensor]:
    """The parameters after a few ordinary steps of FSDP2, with summaries between forward passes and steps or without."""
    model, loss, samples = started(rank, name)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    partition = gn.Partition.by_layer(model)

    def ask() -> None:
        if between:
            gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
            gn.summarize(loss, partition, direction(partition) | gradients, samples=samples, order=2)
            gn.direction.gradient(loss, partition, samples=samples)

    for _ in range(3):
        ask()
        with torch.no_grad():
            loss()  # FSDP2 leaves the root's weights whole
        ask()
        optimizer.zero_grad()
        value = loss()
        ask()
        value.backward()
        ask()
        optimizer.step()
    return whole({n: p.detach() for n, p in model.named_parameters()})


class Broken(RuntimeError):
    pass


def fail(rank: int, who: int, where: str, trains: bool) -> dict[str, Any]:
    """Something goes wrong on one rank; what is raised on each, how soon, and whether everything is as it was, and works."""
    model, loss, samples = started(rank, "perceptron")
    partition = gn.Partition.by_layer(model)
    u, kind = direction(partition), where.split(" in ")[0]
    optimizer = gn.GroupedNewton(partition, torch.optim.Adam(model.parameters()), period=1)
    optimizer.step(loss, samples=samples)
    before = {n: p.detach().full_tensor() for n, p in model.named_parameters()}
    state = whole_state(optimizer)
    known = [(m.__dict__["_parameters"], m._forward_pre_hooks, m._forward_hooks) for m in model.modules()]

    def ask() -> Any:
        if kind == "gradient":
            return gn.direction.gradient(loss_here, partition, samples=samples)
        if kind == "step":
            return optimizer.step(loss_here, samples=samples)
        return gn.summarize(loss_here, partition, u, samples=samples, full_third=True)

    loss_here, raised, start = loss, "", time.monotonic()
    with going_wrong(where.split(" in ")[-1], model, optimizer) if rank == who else _nothing() as spoil:
        if spoil is not None:
            loss_here = lambda: spoil(loss())  # noqa: E731
        elif kind == "interrupt" and rank != who:
            loss_here = lambda: (time.sleep(0.4), loss())[1]  # noqa: E731
        try:
            ask()
        except BaseException as error:
            raised = f"{type(error).__name__}: {error}"
    seconds, loss_here = time.monotonic() - start, loss
    after = {n: p.detach().full_tensor() for n, p in model.named_parameters()}
    now = [(m.__dict__["_parameters"], m._forward_pre_hooks, m._forward_hooks) for m in model.modules()]
    restored = all(a is b for old, new in zip(known, now, strict=True) for a, b in zip(old, new, strict=True))
    unchanged = restored and all(torch.equal(after[n], p) for n, p in before.items())
    unchanged = unchanged and all(map(torch.equal, state, whole_state(optimizer)))
    works = True
    if trains:
        loss().backward()
        # FSDP2's is the mean over the ranks, each of which weighs the same.
        theirs = whole({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
        unweighed = whole(gn.direction.gradient(loss, partition))
        works = all(torch.allclose(theirs[n], unweighed[n], rtol=1e-10, atol=1e-12) for n in theirs)
    return {
        "raised": raised,
        "seconds": seconds,
        "unchanged": unchanged,
        "works": works,
        "summary": gn.summarize(loss, partition, u, samples=samples).tensors(),
        "loss": float(optimizer.step(loss, samples=samples)),
    }


def whole_state(optimizer: gn.GroupedNewton) -> list[Tensor]:
    """Rates, and what the proposer remembers."""
    assert optimizer.proposer is not None
    states = [whole(state) for state in optimizer.proposer.optimizer.state.values()]
    return [t.clone() for state in states for t in state.values()] + [optimizer.learning_rates]


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def going_wrong(
    where: str, model: nn.Module, optimizer: gn.GroupedNewton
) -> Iterator[Callable[[Tensor], Tensor] | None]:
    """Between two gathered weights, in the value of the loss, its gradient, the backward pass, the sweep or the step."""
    if where == "forward":
        handle = model[2].register_forward_pre_hook(lambda *_: _raise(Broken("the disk is gone")))
        yield None
        handle.remove()
    elif where == "value":
        yield lambda value: value * float("nan")
    elif where == "slope":
        yield lambda value: value + (0 * value).sqrt()
    elif where == "waiting":
        interrupted(0.2)  # while the others sleep, and this rank waits for their rows
        yield None
    elif where == "signal":
        yield lambda value: (signal.raise_signal(signal.SIGINT), value)[1]
    elif where == "backward":
        yield lambda value: _FailingBackward.apply(value)
    else:
        owner, name = {
            "sweep": (Linear, "forward"),
            "proposer": (optimizer.proposer.optimizer, "step"),
            "solver": (gn.cubic.CubicModel, "minimize"),
            "commit": (gn.line.Objective, "commit"),
        }[where]
        before = getattr(owner, name)
        setattr(owner, name, lambda *_: _raise(torch.OutOfMemoryError("tried to allocate 2 GiB")))
        try:
            yield None
        finally:
            setattr(owner, name, before)


def _raise(error: BaseException) -> None:
    raise error


class _FailingBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        raise Broken("the disk is gone")


# -- what is refused -----------------------------------------------------------------------------------------------------


def refused(rank: int, what: str) -> str:
    """What is said to this rank."""
    from torch.distributed import fsdp
    from torch.distributed.device_mesh import init_device_mesh

    model, loss, x, y = problem("perceptron")
    a, b = mine(rank, x, y)

    def sharded() -> gn.Partition:
        return gn.Partition.by_layer(shard(model))

    def mixed_precision() -> None:
        policy = fsdp.MixedPrecisionPolicy(param_dtype=torch.bfloat16)
        gn.Partition.by_layer(shard(model, mp_policy=policy))

    def two_dimensions() -> None:
        mesh = init_device_mesh("cpu", (1, world()), mesh_dim_names=("replicas", "shards"))
        gn.Partition.by_layer(shard(model, mesh=mesh))

    def tensor_parallel() -> None:
        from torch.distributed.tensor import parallel

        mesh = init_device_mesh("cpu", (world(),))
        gn.Partition.by_layer(parallel.parallelize_module(model, mesh, {"0": parallel.ColwiseParallel()}))

    def root_left_out() -> None:
        fsdp.fully_shard(model[0], mesh=init_device_mesh("cpu", (world(),)))
        gn.Partition.by_layer(model)

    def recurrent() -> None:
        gn.Partition.by_layer(shard(nn.Sequential(nn.LSTM(3, 4))))

    def loose() -> None:
        p = next(iter(sharded().parameters.values()))
        gn.Partition.from_groups([{"w": p}])

    def another_group() -> None:
        sharded().over(dist.new_group([rank], use_local_synchronization=True))

    def alone() -> None:
        sharded().over(None)

    def plain_direction() -> None:
        partition = sharded()
        gn.summarize(lambda: loss(a, b), partition, {n: torch.ones(p.shape) for n, p in partition.parameters.items()})

    def differences() -> None:
        gn.summarize(lambda: loss(a, b), sharded(), engine="differences")

    def custom_function() -> None:
        class Double(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, z: Tensor) -> Tensor:
                return 2 * z

            @staticmethod
            def backward(ctx: Any, g: Tensor) -> Tensor:
                return 2 * g

        gn.summarize(lambda: Double.apply(loss(a, b)), sharded())

    def fetched_outside() -> None:
        partition = sharded()
        gn.summarize(lambda: loss(a, b) + partition.parameters["0.weight"].full_tensor().square().sum(), partition)

    def written_into() -> None:
        partition = sharded()
        gn.summarize(lambda: (model[0].weight.mul_(2), loss(a, b))[1], partition)

    def written_into_aside() -> None:
        partition = sharded()

        def closure() -> Tensor:
            with torch.no_grad():
                model[5].bias.mul_(2)
            return loss(a, b)

        gn.direction.gradient(closure, partition)

    def replaced() -> None:
        partition = sharded()
        gn.summarize(lambda: (setattr(model[0], "weight", nn.Parameter(torch.ones(7, 5))), loss(a, b))[1], partition)

    def functional_call() -> None:
        partition = sharded()
        gn.summarize(lambda: torch.func.functional_call(model, dict(model.named_parameters()), (a,)).sum(), partition)

    def functional_derivative(derivative: Callable[[], Tensor]) -> None:
        gn.direction.gradient(lambda: derivative().square().mean(), sharded())

    def func_grad() -> None:
        functional_derivative(lambda: torch.func.grad(lambda z: model(z).sum())(a))

    def func_vjp() -> None:
        functional_derivative(lambda: torch.func.vjp(lambda z: model(z).sum(), a)[1](torch.ones((), dtype=a.dtype))[0])

    def func_jvp() -> None:
        functional_derivative(lambda: torch.func.jvp(model, (a,), (torch.ones_like(a),))[1])

    def func_jacrev() -> None:
        functional_derivative(lambda: torch.func.jacrev(lambda z: model(z).sum(0))(a[0]))

    def func_hessian() -> None:
        functional_derivative(lambda: torch.func.hessian(lambda z: model(z).sum())(a[0, 0]))

    def other_model() -> None:
        partition = sharded()
        model[0]._parameters["weight"] = nn.Parameter(model[0].weight.detach().clone())
        gn.direction.gradient(lambda: loss(a, b), partition)

    def other_paths() -> None:
        partition = sharded()
        gn.direction.gradient(lambda: model(a).sum() if rank else model[0](a).sum(), partition)

    def fewer_batches() -> None:
        gn.direction.gradient(loss, sharded(), [(a, b)] * (2 - (rank > 0)))

    def stochastic() -> None:
        gn.StochasticNewton(sharded(), lr=0.1, lr_direction=0.1).step(lambda: loss(a, b))

    try:
        locals()[what.replace(" ", "_")]()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""
