"""Evaluating the user's loss: the one door through which every closure passes, with all its checks.

A loss is a callable that returns a scalar tensor with its graph; gnewton evaluates it and differentiates it itself.
"""

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeGuard
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.nn.attention import SDPBackend, sdpa_kernel

from gnewton.caller import warn
from gnewton.elementary import Elementary, open_up
from gnewton.partition import Partition
from gnewton.ranks import check_batch_norm
from gnewton.repeated import check_graph
from gnewton.undo import Buffers, RandomState, modules_in, version

Loss = Callable[..., Tensor]
Weight = Callable[..., float]


class RandomLossWarning(UserWarning):
    """The loss draws random numbers, so that two evaluations are two different functions."""


def evaluate(
    loss: Loss,
    partition: Partition,
    batch: Sequence[Any] = (),
    *,
    finite: bool = True,
    random: RandomState | None = None,
) -> Tensor:
    """The value of ``loss(*batch)`` with its graph: a finite scalar that depends on a parameter of the partition.

    Args:
        loss: the user's callable.
        partition: whose parameters it is to depend on.
        batch: its arguments.
        finite: see to it here that it is finite, for which the host waits; False leaves that to the caller.
        random: the state of the random numbers now, from a caller that has it.

    Raises TypeError (not a callable, not a tensor), ValueError (not a scalar, detached, computed outside the closure)
    and FloatingPointError (NaN or infinite). Warns with RandomLossWarning when the random state moved.

    >>> import torch, gnewton as gn
    >>> model = gn.models.Rosenbrock(2, dtype=torch.float64)
    >>> evaluate(model, gn.Partition.single(model))
    tensor(24.2000, dtype=torch.float64, grad_fn=<ViewBackward0>)
    """
    if not callable(loss):
        raise TypeError(
            f"expected a callable that returns the loss, got {type(loss).__name__}; write lambda: F.cross_entropy(model(x), y)"
        )
    # The checks are no part of the loss: no torch function mode needs to see them.
    with torch._C.DisableTorchFunction():
        check_surroundings(partition)
        before, newest, written = random or RandomState(partition), _newest_node(), _Written(partition)
    with evaluation(partition):
        value = _call(loss, batch)
    with torch._C.DisableTorchFunction():
        written.check()
        scalar = _check_result(value, loss, partition, batch, before, newest)
    if finite:
        check_value(scalar)
    return scalar


def evaluation(partition: Partition) -> AbstractContextManager[Any]:
    """Inside, a loss is evaluated: weights that are gathered for it come from no other evaluation."""
    return nullcontext() if partition.weights is None else partition.weights.evaluation()


def differentiate(value: Tensor, inputs: Sequence[Tensor], **options: Any) -> list[Tensor | None]:
    """``torch.autograd.grad`` with unused inputs allowed and a used-up graph named; one entry per input.

    >>> x = torch.tensor(3.0, requires_grad=True)
    >>> differentiate(x**2, [x])
    [tensor(6.)]
    """
    if not inputs or not value.requires_grad:
        return [None] * len(inputs)
    leaves = [x for x in inputs if isinstance(x, Tensor)]
    plain = not options and len(leaves) == len(inputs)
    if plain and _may_hide(_reachable([value.grad_fn]), leaves):
        return gradient_by_backward(value, leaves)
    try:
        # Opened: as one function to a mode, it would run what it recomputes (checkpoints) outside the mode. The backward
        # of a custom function may write into .grad.
        with _grads_kept(leaves):
            return list(open_up(torch.autograd.grad)(value, inputs, allow_unused=True, **options))
    except TypeError as error:
        # Its backward is traced by the compiler, which does not run here.
        if any("CondAutogradOp" in node.name() for node in _reachable([value.grad_fn])):
            raise NotImplementedError(_BRANCHES) from error
        raise
    except RuntimeError as error:
        if plain and _REENTRANT in str(error):
            return gradient_by_backward(value, leaves)
        explained = _explain(str(error))
        if explained is None:
            raise
        raise explained from error


_BRANCHES = (
    "expected branches that run without the compiler, got torch.cond; write true_fn(x) if pred else false_fn(x), which is the same "
    "number and has all derivatives"
)
_REENTRANT = "torch.utils.checkpoint is incompatible"


def _explain(error: str) -> Exception | None:
    """What to raise in the place of torch's error; None where that says enough."""
    if "backward through the graph a second time" in error:
        return ValueError(
            "expected a loss whose graph is whole, got one that backward() has used up; "
            "return the loss from the closure without calling backward(): gnewton differentiates it itself"
        )
    if "modified by an inplace operation" in error:
        return ValueError(
            "expected values that stay as they are until they were differentiated, got one that the loss overwrites where autograd "
            f"does not look (under no_grad, or by detach): {error}. Write y = y * 2 in the place of y.mul_(2)"
        )
    if _REENTRANT in error:
        return NotImplementedError(
            "expected a loss that torch can differentiate twice, got a reentrant checkpoint, which it cannot; "
            'write checkpoint(..., use_reentrant=False), or use engine="differences"'
        )
    if any(
        text in error
        for text in ("not implemented", "donated buffer", "support double backward", "output_padding is not supported")
    ):
        return NotImplementedError(
            "expected a loss that torch can differentiate to the order asked for, got an operation that it cannot: "
            f"{error}. Replace that operation (or leave out torch.compile), lower the order, or use "
            'engine="differences"'
        )
    return None


def _has_reentrant_checkpoint(graph: Iterable[Any]) -> bool:
    return any(node.name() == "CheckpointFunctionBackward" for node in graph)


def has_custom_functions(value: Tensor) -> bool:
    """Whether a custom autograd function has a part in a loss: what it differentiates inside, nobody sees.

    >>> has_custom_functions(torch.ones(2, requires_grad=True).sum())
    False
    """
    return any(isinstance(node, BackwardCFunction) for node in _reachable([value.grad_fn]))


def _may_hide(graph: Iterable[Any], inputs: Sequence[Tensor]) -> bool:
    """Whether an input that looks unused may be used inside a custom function: a reentrant checkpoint, a reversible block."""
    if not any(isinstance(node, BackwardCFunction) for node in graph):
        return False
    leaves = {id(getattr(node, "variable", None)) for node in graph}
    return any(x.is_leaf and id(x) not in leaves for x in inputs)


def gradient_by_backward(value: Tensor, inputs: Sequence[Tensor]) -> list[Tensor | None]:
    """The gradient by ``backward()``, for a loss that takes no other way (a reentrant checkpoint); every ``.grad`` stays.

    >>> x = torch.tensor(3.0, requires_grad=True)
    >>> gradient_by_backward(x**2, [x]), x.grad
    ([tensor(6.)], None)
    """
    others = [node.variable for node in _reachable([value.grad_fn]) if hasattr(node, "variable")]
    with _grads_kept([*inputs, *others]):
        value.backward()  # type: ignore[no-untyped-call]
        return [leaf.grad for leaf in inputs]


@contextmanager
def _grads_kept(leaves: Sequence[Tensor]) -> Iterator[None]:
    """Inside, ``.grad`` is None at first; afterwards it is what it was."""
    kept = [(leaf, leaf.grad) for leaf in {id(leaf): leaf for leaf in leaves if leaf.is_leaf}.values()]
    for leaf, _ in kept:
        leaf.grad = None
    try:
        yield
    finally:
        for leaf, grad in kept:
            leaf.grad = grad


@contextmanager
def differentiable_mode(partition: Partition, restore_buffers: bool = True, higher: bool = True) -> Iterator[None]:
    """Gradients on, every operation in a form whose derivatives are right to every order, buffers restored after.

    Attention runs by its math back end, as the fused one has no second derivative; norm layers are written out, as torch's
    kernels have a wrong third one; compiled modules run as they were before, as compiled code has no second derivative, and
    scripted ones without their optimizer.
    Without ``higher`` the first order is enough, which torch's own kernels get right, and faster.
    """
    check_partition(partition)
    check_gathered(partition)
    partition.ranks.check_said()
    check_batch_norm(partition.module)
    buffers = Buffers(partition.module if restore_buffers else None)
    try:
        with (
            partition.ranks.silence_wrapper(),
            torch.inference_mode(False),
            torch.enable_grad(),
            sdpa_kernel(SDPBackend.MATH) if higher else nullcontext(),
            _uncompiled(),
            _unscripted() if higher else nullcontext(),
            Elementary() if higher else nullcontext(),
        ):
            yield
    finally:
        buffers.restore()


def check_gathered(partition: Partition) -> None:
    """Raises TypeError for a partition of shards, which is differentiated as whole inside ``gathered`` alone."""
    if partition.shards is not None:
        raise TypeError(
            "expected whole parameters, got shards (fully_shard), which gradients, summaries and GroupedNewton take alone; leave "
            "the sharding out, and share the samples among replicas in DistributedDataParallel"
        )


def check_partition(partition: Any) -> None:
    """Raises TypeError for what is no partition."""
    if not isinstance(partition, Partition):
        raise TypeError(f"expected a Partition, got {type(partition).__name__}; write Partition.by_tensor(model)")


def _uncompiled() -> AbstractContextManager[Any]:
    # Whoever compiled a module has loaded the compiler; nobody else should wait for it.
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


@contextmanager
def _unscripted() -> Iterator[None]:
    # Optimized scripts hide their operations in one node, of which autograd's graph says nothing.
    before = torch._C._get_graph_executor_optimize()
    torch._C._set_graph_executor_optimize(False)
    try:
        yield
    finally:
        torch._C._set_graph_executor_optimize(before)


def batches(data: Iterable[Any] | None, weight: Weight | None) -> Iterator[tuple[Sequence[Any], float]]:
    """Pairs (arguments of the loss, weight of the batch); the weight is the number of samples unless told otherwise.

    >>> [(len(batch), n) for batch, n in batches([(torch.zeros(3, 2), torch.zeros(3)), torch.zeros(1, 2)], None)]
    [(2, 3.0), (1, 1.0)]
    """
    if data is None:
        yield (), 1.0
        return
    if not (hasattr(data, "__iter__") or hasattr(data, "__getitem__")):
        raise TypeError(f"expected data as batches, got {type(data).__name__}; a Dataset gives them by .batches(100)")
    empty = True
    for batch in data:
        arguments = tuple(batch) if isinstance(batch, tuple | list) else (batch,)
        size = float(samples_in(arguments) if weight is None else weight(*arguments))
        if not 0 < size < float("inf"):
            raise ValueError(f"expected a positive batch weight, got {size}; drop empty batches or mend weight=")
        empty = False
        yield arguments, size
    if empty:
        raise ValueError("expected at least one batch, got none; a generator that was used up must be made anew")


def samples_in(arguments: Sequence[Any]) -> int:
    """How many samples a batch has: the rows of its first element. ValueError where that cannot be told.

    >>> samples_in((torch.zeros(3, 2), torch.zeros(3)))
    3
    """
    first = arguments[0] if arguments else None
    if not has_rows(first):
        raise ValueError(
            f"expected batches whose first element has one row per sample, got {type(first).__name__}; put a tensor of "
            "that many rows first, or give weight= where a function takes it, which returns a batch's number of samples"
        )
    return len(first)


def has_rows(first: Any) -> TypeGuard[Sized]:
    """Whether its length is a number of samples: that of a tensor or array, and of a list in which each sample has an entry.

    That of a dictionary or of a graph's data is the number of its fields, and that of several tensors theirs.
    """
    if hasattr(first, "shape"):
        return len(first.shape) > 0
    return isinstance(first, tuple | list) and not any(hasattr(entry, "shape") for entry in first)


class Tally:
    """A weight of batches that remembers its sum: how many samples one pass over the data had.

    >>> tally = Tally()
    >>> [n for _, n in batches([torch.zeros(3, 2), torch.zeros(1, 2)], tally)], tally.total
    ([3.0, 1.0], 4.0)
    """

    def __init__(self, weight: Weight | None = None, total: float = 0.0) -> None:
        self._weight = weight
        self.total = total

    def __call__(self, *arguments: Any) -> float:
        size = float(samples_in(arguments) if self._weight is None else self._weight(*arguments))
        self.total += size
        return size


class _Written:
    """The parameters before the loss is called: it must not write into them, or it is not a function of them."""

    def __init__(self, partition: Partition) -> None:
        self._versions = [(name, p, version(p)) for name, p in partition.parameters.items()]
        limited = [
            m.weight
            for m in modules_in(partition.module)
            if isinstance(m, nn.Embedding | nn.EmbeddingBag) and m.max_norm is not None
        ]
        self._held = {id(p): p.detach().clone() for p in limited}

    def check(self) -> None:
        for name, p, before in self._versions:
            if version(p) == before:
                continue
            held = self._held.get(id(p))
            if held is not None and torch.equal(held, p):
                continue
            if held is not None:
                with torch.no_grad():
                    p.copy_(held)
            raise ValueError(
                f"expected a loss that leaves the parameters as they are, got one that wrote into {name}; an embedding with "
                "max_norm does so: renormalize its rows between the steps (torch.embedding_renorm_) and leave max_norm out, "
                "or divide by the norms in the forward pass"
            )


def check_surroundings(partition: Partition) -> None:
    """Raises ValueError inside autocast, whose cached casts outlive an evaluation of the loss."""
    kind = partition.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        raise ValueError(
            "expected no active autocast, got one around the call, whose casts outlive the closure; "
            "enter torch.autocast inside the closure, or leave it away"
        )


def _check_result(
    value: Any, loss: Loss, partition: Partition, batch: Sequence[Any], before: RandomState, newest: int
) -> Tensor:
    if RandomState(partition) != before:
        _warn_of_randomness(partition)
    _check_scalar(value)
    graph = _reachable([value.grad_fn])
    if partition.weights is not None:
        partition.weights.check(graph)
    if not _reaches_ours(value, graph, partition):
        raise ValueError(
            "expected a loss that depends on the partition's parameters, got one that reaches none of them; "
            "build the Partition anew from the very model that the closure calls"
        )
    if any(_age(node) <= newest for node in graph) and _is_stored(value, newest, partition):
        # Another evaluation settles it: only a stored graph comes back as the very same nodes.
        buffers = Buffers(partition.module)
        with before.replay():
            again = _call(loss, batch)
        buffers.restore()
        if isinstance(again, Tensor) and _old_nodes(value.grad_fn, newest) & _old_nodes(again.grad_fn, newest):
            raise ValueError(
                "expected a closure that computes the loss, got a result computed outside the closure; "
                "move the forward pass into it: lambda: F.cross_entropy(model(x), y)"
            )
    check_graph(graph)
    scalar: Tensor = value.reshape(())
    return scalar


def _call(loss: Loss, batch: Sequence[Any]) -> Any:
    # To a mode, the switch is a function like others, and takes as long.
    with nullcontext() if torch.is_grad_enabled() else torch.enable_grad():
        try:
            return loss(*batch)
        except RuntimeError as error:
            # Of torch's compiler, which is not loaded for the sake of its name.
            if type(error).__name__ == "UncapturedHigherOrderOpError":
                raise NotImplementedError(_BRANCHES) from error
            raise


def _check_scalar(value: Any) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(
            f"expected the closure to return the loss as a tensor, got {type(value).__name__}; return the loss"
        )
    if value.numel() != 1:
        raise ValueError(f"expected a scalar loss, got shape {tuple(value.shape)}; take its mean or sum")
    if value.is_complex():
        raise TypeError(
            f"expected a loss that is a real number, got one of {value.dtype}; take its .real, or .abs().square() for its size"
        )
    if not value.requires_grad:
        raise ValueError(
            "expected a loss with a graph, got a detached one (no_grad, detach, .item(), or every parameter frozen; or its closure "
            "called backward, as Lightning's automatic optimization does: set self.automatic_optimization = False and, in "
            "training_step, call self.optimizers().step(closure)); "
            "compute it from the model's parameters with gradients enabled"
        )


def check_value(value: Tensor) -> None:
    """Raises FloatingPointError for a loss () that is not finite.

    >>> check_value(torch.tensor(1.0))
    """
    with torch._C.DisableTorchFunction():
        number, is_there = value.detach(), not value.is_meta
    # Outside, as what waits for a device is to be seen by a mode.
    if is_there and not math.isfinite(number):
        raise FloatingPointError(
            f"expected a finite loss, got {value.item()}; check the inputs, lower the learning rate or rescale the model"
        )


# Training calls the loss thousands of times: one warning for a partition says it.
_WARNED: WeakSet[Partition] = WeakSet()


def _warn_of_randomness(partition: Partition) -> None:
    if partition in _WARNED:
        return
    modules = partition.module.named_modules() if partition.module else []
    drops = [f"{name} ({type(m).__name__})" for name, m in modules if _draws(m)]
    where = f"; in training mode: {', '.join(drops)}" if drops else ""
    warn(
        f"the loss is not deterministic: it drew random numbers{where}. Its derivatives hold for this one draw. "
        "Call model.eval(), set the dropout probability to 0, or draw outside the closure",
        RandomLossWarning,
    )
    _WARNED.add(partition)


def _draws(module: nn.Module) -> bool:
    # Attention and recurrent modules keep their dropout probability as a number.
    rate = module.p if isinstance(module, nn.modules.dropout._DropoutNd) else getattr(module, "dropout", 0)
    return module.training and isinstance(rate, float) and rate > 0


# Autograd numbers its nodes in the order of their creation, per thread; a node that is older than the call of the
# closure was stored by the user (or made by another thread, which the second evaluation clears up).


def _newest_node() -> int:
    with torch.inference_mode(False), torch.enable_grad():
        return int(torch.empty(0, requires_grad=True).clone().grad_fn._sequence_nr())  # type: ignore[union-attr]


def _reaches_ours(value: Tensor, graph: Iterable[Any], partition: Partition) -> bool:
    ours = {id(p) for p in partition.parameters.values()}
    # A reentrant checkpoint hides the parameters inside it.
    return (
        id(value) in ours
        or any(id(getattr(node, "variable", None)) in ours for node in graph)
        or _has_reentrant_checkpoint(graph)
    )


def _is_stored(value: Tensor, newest: int, partition: Partition) -> bool:
    """Whether a path from the loss to a parameter runs through a node that is older than the closure's call."""
    ours = {id(p) for p in partition.parameters.values()}
    old = _old_nodes(value.grad_fn, newest)
    return any(id(getattr(node, "variable", None)) in ours for node in _reachable(old))


def _old_nodes(root: Any, newest: int) -> set[Any]:
    return {node for node in _reachable([root], lambda n: _age(n) > newest) if _age(node) <= newest}


def _age(node: Any) -> int:
    # Leaves are numbered by the engine (2^64 - 1), not by time.
    return int(node._sequence_nr())


def _reachable(roots: Iterable[Any], descend: Callable[[Any], bool] = lambda node: True) -> set[Any]:
    reached: set[Any] = set()
    todo = [node for node in roots if node is not None]
    while todo:
        node = todo.pop()
        if node not in reached:
            reached.add(node)
            if descend(node):
                todo += [child for child, _ in node.next_functions if child is not None]
    return reached
