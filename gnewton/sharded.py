"""Parameters in shards (FSDP2's ``fully_shard``): a model as if it were whole, each weight gathered when it is read.

Rank r holds the rows w_r of a weight  W = sum_r E_r w_r . To gather is linear, so a tangent  U = sum_r E_r u_r  goes through the
same collective, and each rank computes the derivatives of its own loss L_r along whole tangents, as a replica would:

    H-bar  =  sum_r n_r H-bar_r / sum_r n_r ,        dL/dw_r  =  E_r^T sum_q n_q dL_q/dW / sum_q n_q .

Autograd and the tape know a stand-in for each parameter: a leaf of the whole shape, without memory, every entry NaN. A weight is
a clone of it, into whose memory the shards are gathered before anybody reads it. A clone is the identity to every order. What is
kept for later, by autograd or by the tape, is a recipe, by which the weight is gathered again; so a weight lives while
somebody holds it, and ``_RECENT`` reads longer. What went wrong would show: a stand-in that is read gives NaN.

FSDP2's own hooks are taken off meanwhile: they hang on outputs, free memory that a tape still reads, and know no second derivative.
"""

import weakref
from collections import OrderedDict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gnewton.ranks import Ranks, members
from gnewton.storage import is_dtensor

_OF_TRANSFORMS = ("yet support saved tensor hooks", "would mutate a captured Tensor")
_RECENT = 4  # weights that stay until others have been read: a module asks for the same one several times


class Recipe(NamedTuple):
    """How a tensor looks into a weight that may be gathered again."""

    name: str
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


class Shards:
    """The parameters of a module that FSDP2 has sharded; made by a partition.

    Args:
        module: the whole model.

    Raises TypeError for what cannot be gathered: tensor parallelism, a mesh of two dimensions, a policy for mixed precision
    or offloading, parameters that were left out.
    """

    def __init__(self, module: nn.Module) -> None:
        for one in _sharded_modules(module):
            one.reshard()
        self.module = module
        self.parameters: dict[str, Any] = dict(module.named_parameters())
        self.names = {id(p): name for name, p in self.parameters.items()}
        check_shards(module, self.parameters)
        first = next(iter(self.parameters.values()))
        self.ranks = Ranks(local_part(first), first.device_mesh.get_group())

    def check_group(self, group: Any) -> None:
        """Raises ValueError for a process group, or a mesh, that is not the one that holds the shards."""
        given = group.get_group() if hasattr(group, "get_group") else group
        if members(given) != members(self.ranks.group):
            raise ValueError(
                "expected the ranks that hold the shards, which all see samples of their own, got others; leave over() out"
            )

    def like(self, name: str, local: Tensor) -> Tensor:
        """A tensor that is sharded as the parameter is, from this rank's rows."""
        return with_local_part(self.parameters[name], local)

    def gather(self, name: str, local: Tensor, out: Tensor | None = None) -> Tensor:
        """The whole tensor, on every rank; in ``out`` where it is given."""
        p, (axis, most), ranks = self.parameters[name], self._cut(name), self.ranks
        whole = torch.empty(p.shape, dtype=local.dtype, device=local.device) if out is None else out
        rows = local.movedim(axis, 0)
        if axis == 0 and most * ranks.size == len(p):
            ranks.gather(f"gather {name}", rows.contiguous(), whole)
            return whole
        # The last ranks may have fewer rows than the first: what is filled up lies behind the last row.
        padded = rows.new_zeros(most, *rows.shape[1:])
        padded[: len(rows)] = rows
        filled = rows.new_empty(most * ranks.size, *rows.shape[1:])
        ranks.gather(f"gather {name}", padded, filled)
        return whole.copy_(filled[: p.shape[axis]].movedim(0, axis))

    def reduce(self, name: str, whole: Tensor) -> Tensor:
        """This rank's rows of the sum of all ranks' tensors, which is left in ``whole``."""
        return self.rows(name, self.ranks.sum(f"reduce {name}", whole)).clone()

    def rows(self, name: str, whole: Tensor) -> Tensor:
        """This rank's rows of a tensor of the parameter's shape."""
        axis, most = self._cut(name)
        start = min(most * self.ranks.rank, whole.shape[axis])
        return whole.narrow(axis, start, min(most, whole.shape[axis] - start))

    def _cut(self, name: str) -> tuple[int, int]:
        """The axis along which a parameter is cut, and the rows of the first rank."""
        p = self.parameters[name]
        axis = p.placements[0].dim
        return axis, -(-p.shape[axis] // self.ranks.size)


class Weights:
    """The whole weights of a sharded model, while its loss is differentiated.

    Args:
        shards: where their rows are.
        trainable: the names of the parameters that derivatives are asked for.

    ``stand_ins`` are the leaves, by name.
    """

    def __init__(self, shards: Shards, trainable: Container[str]) -> None:
        self.shards = shards
        self.stand_ins = {name: _stand_in(p, name in trainable) for name, p in shards.parameters.items()}
        self._told: Callable[[Tensor, str], None] | None = None
        self._recent: dict[str, tuple[Tensor, int]] = {}
        self._living: dict[str, weakref.ref[Tensor]] = {}
        self._memory: dict[int, tuple[weakref.ref[Tensor], str]] = {}
        self._in_use = False

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Inside, the module reads whole weights, without FSDP2; afterwards it is as it was."""
        if self._in_use:
            yield
            return
        with ExitStack() as undo:
            self._in_use = True
            undo.callback(self._end)
            for one in _sharded_modules(self.shards.module):
                one.reshard()
            for module in self.shards.module.modules():
                _put(undo, module, "_parameters", _Read(module._parameters, self._read))
                for hooks in ("_forward_pre_hooks", "_forward_hooks"):
                    _put(undo, module, hooks, _without_fsdp(getattr(module, hooks)))
            yield

    @contextmanager
    def telling(self, told: Callable[[Tensor, str], None]) -> Iterator[None]:
        """Inside, ``told`` is called with each new weight and its name."""
        self._told = told
        try:
            yield
        finally:
            self._told = None

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Inside, a loss is evaluated: none of its weights come from an earlier evaluation, and its graph keeps recipes."""
        self._forget()
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack):
                yield
        except RuntimeError as error:
            if not any(text in str(error) for text in _OF_TRANSFORMS):
                raise
            raise NotImplementedError(
                "expected a loss of sharded weights without derivatives by torch.func (grad, vjp, jvp, jacrev, hessian), inside of which "
                "no weight can be gathered; write torch.autograd.grad(..., create_graph=True) in the closure"
            ) from error

    def whole(self, name: str) -> Tensor:
        """The weight of this name, with its stand-in behind it."""
        # What has been read lately decides whether to gather, and not what is still alive: that may differ between the ranks.
        weight, written = self._recent.pop(name) if name in self._recent else self._gathered(name)
        self._recent[name] = weight, written
        if len(self._recent) > _RECENT:
            oldest = next(iter(self._recent))
            _check_not_written(oldest, *self._recent.pop(oldest))
        return weight

    def recipe(self, tensor: Tensor) -> Recipe | None:
        """How to make a tensor again that looks into a weight; None for any other memory."""
        weight, name = self._memory.get(tensor.untyped_storage()._cdata, (None, ""))
        alive = None if weight is None else weight()
        if alive is None or alive.dtype != tensor.dtype:
            return None
        return Recipe(name, tensor.size(), tensor.stride(), int(tensor.storage_offset()))

    def follow(self, recipe: Recipe) -> Tensor:
        """The tensor of a recipe, without graph."""
        return self.whole(recipe.name).detach().as_strided(recipe.size, recipe.stride, recipe.offset)

    def check(self, nodes: Iterable[Any]) -> None:
        """Raises ValueError for a loss with this graph that wrote into a weight, or depends on the shards themselves."""
        for name, (weight, written) in self._recent.items():
            _check_not_written(name, weight, written)
        names = self.shards.names
        beside = next((n for node in nodes if (n := names.get(id(getattr(node, "variable", None))))), None)
        if beside is not None:
            raise ValueError(
                f"expected a loss that reads its weights from the modules, got one that reads the shards of {beside} (full_tensor(), or "
                "a parameter that was fetched outside the closure); write model.layer.weight, or model.parameters(), inside it"
            )

    def gradients(
        self, value: Tensor, samples: float, check: Callable[[Mapping[str, Tensor]], None]
    ) -> dict[str, Tensor]:
        """This rank's rows of  sum_r n_r dL_r/dW , by name; each is sent as soon as its weight's gradient is complete."""
        rows: dict[str, Tensor] = {}

        def send(name: str, stand_in: Tensor) -> None:
            gradient, stand_in.grad = stand_in.grad, None
            assert gradient is not None
            if samples:
                check({name: gradient})
            # Without samples nothing is added, not even NaN.
            weighed = gradient.to_dense() * samples if samples else torch.zeros_like(gradient).to_dense()
            rows[name] = self.shards.reduce(name, weighed)

        leaves = {name: leaf for name, leaf in self.stand_ins.items() if leaf.requires_grad}
        with ExitStack() as undo:
            for name, leaf in leaves.items():
                undo.callback(setattr, leaf, "grad", None)
                hook = partial(send, name)
                undo.enter_context(leaf.register_post_accumulate_grad_hook(hook))  # type: ignore[no-untyped-call]
            value.backward(inputs=list(leaves.values()))  # type: ignore[no-untyped-call]
        return rows

    # -- one weight ------------------------------------------------------------------------------------------------

    def _gathered(self, name: str) -> tuple[Tensor, int]:
        with torch._C.DisableTorchFunction(), torch.enable_grad():
            weight = self.stand_ins[name].clone(memory_format=torch.contiguous_format)
            self.shards.gather(name, local_part(self.shards.parameters[name]), weight.detach())
            living = self._living[name]() if name in self._living else None
            if living is not None:
                return living, living._version  # a tied weight is one object, as model.parameters() takes for granted
            self._living[name] = weakref.ref(weight)
            memory = weight.untyped_storage()._cdata
            self._memory[memory] = weakref.ref(weight, lambda _: self._memory.pop(memory, None)), name
            if self._told is not None:
                self._told(weight, name)
        return weight, weight._version

    def _read(self, p: Any) -> Any:
        name = self.shards.names.get(id(p))
        if name is None and is_dtensor(p):
            raise ValueError(
                "expected the parameters of the partition, got others in the module; build the Partition anew"
            )
        return p if name is None else self.whole(name)

    def _pack(self, tensor: Tensor) -> Any:
        with torch._C.DisableTorchFunction():
            # Detached: an output that its own node kept with its graph would keep that node, and the model, for ever.
            return self.recipe(tensor) or tensor.detach()

    def _unpack(self, kept: Any) -> Any:
        with torch._C.DisableTorchFunction():
            return self.follow(kept) if isinstance(kept, Recipe) else kept

    def _end(self) -> None:
        self._in_use = False
        self._forget()

    def _forget(self) -> None:
        self._recent.clear()
        self._living.clear()


class WholeDirection(Mapping[str, Tensor]):
    """A sharded direction, each of whose parts is gathered when it is read.

    Args:
        shards: of the same parameters.
        direction: DTensors by parameter name.
    """

    def __init__(self, shards: Shards, direction: Mapping[str, Tensor]) -> None:
        self._shards, self._direction = shards, direction

    def __getitem__(self, name: str) -> Tensor:
        return self._shards.gather(name, local_part(self._direction[name]))

    def __iter__(self) -> Iterator[str]:
        return iter(self._direction)

    def __len__(self) -> int:
        return len(self._direction)


def shards_of(module: nn.Module | None) -> Shards | None:
    """The shards of a model in ``fully_shard``; None for any other.

    >>> shards_of(nn.Linear(2, 2))
    """
    return Shards(module) if module is not None and _sharded_modules(module) else None


def reshard(module: nn.Module) -> None:
    """Let FSDP2 put the shards back where it left whole weights after a forward pass.

    >>> reshard(nn.Linear(2, 2))
    """
    for one in _sharded_modules(module):
        one.reshard()


def local_part(tensor: Any) -> Tensor:
    """This rank's rows of a DTensor, without graph; any other tensor as it is.

    >>> local_part(torch.ones(2))
    tensor([1., 1.])
    """
    part: Tensor = tensor._local_tensor.detach() if is_dtensor(tensor) else tensor
    return part


def own_rows(parameter: Any) -> Tensor:
    """The memory that a parameter has here, to be given back by ``lend_rows``."""
    rows: Tensor = parameter._local_tensor if is_dtensor(parameter) else parameter.data
    return rows


def lend_rows(parameter: Any, rows: Tensor) -> None:
    """Let a parameter stand for other memory; a DTensor's ``data`` is no more than its name."""
    if is_dtensor(parameter):
        parameter._local_tensor = rows
    else:
        parameter.data = rows


def with_local_part(like: Any, local: Tensor) -> Tensor:
    """A DTensor that is sharded as another one, from this rank's rows."""
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(local, like.device_mesh, like.placements, shape=like.shape, stride=like.stride())


def check_shards(module: nn.Module, parameters: Mapping[str, Any]) -> None:
    """Raises TypeError, which says what to write, for shards that ``Weights`` cannot gather."""
    for name, p in parameters.items():
        wrong = _flaw(p)
        if wrong:
            raise TypeError(
                f"expected every parameter in fully_shard(model), on a mesh of one dimension, got {wrong} for {name}"
            )
    if len({p.device_mesh for p in parameters.values()}) > 1:
        raise TypeError("expected one mesh for all parameters, got several; give every fully_shard the same mesh=")
    for name, one in module.named_modules():
        policy = getattr(one._get_fsdp_state(), "_mp_policy", None) if one in _sharded_modules(module) else None
        if policy is not None and (policy.param_dtype or policy.reduce_dtype or policy.output_dtype):
            raise TypeError(
                f"expected fully_shard without mixed precision, got {policy} in {name or 'the model'}; leave mp_policy out, and enter "
                "torch.autocast inside the closure"
            )
        if isinstance(one, nn.RNNBase):
            raise TypeError(
                f"expected modules that read their weights as attributes, got a recurrent one in {name}, which keeps a list of them; "
                "leave sharding out, and share the samples among replicas in DistributedDataParallel"
            )


def _flaw(p: Any) -> str | None:
    """Why a parameter cannot be gathered."""
    if not is_dtensor(p):
        return "a whole tensor (a module outside fully_shard, or ignored_params); write fully_shard(model) for the root, too,"
    if p.device_mesh.ndim != 1:
        return f"a mesh of {p.device_mesh.ndim} dimensions (replicas of shards, or tensor parallelism); leave mesh= out"
    if not p.placements[0].is_shard():
        return f"the placement {p.placements[0]} (tensor parallelism); leave parallelize_module out"
    if p.device.type != p.device_mesh.device_type:
        return f"a shard on {p.device.type} (CPUOffloadPolicy); leave offload_policy out"
    return None


class _Read(dict[str, Any]):
    """A module's parameters, each of which is fetched when it is read."""

    def __init__(self, parameters: Mapping[str, Any], fetch: Callable[[Any], Any]) -> None:
        super().__init__(parameters)
        self._fetch = fetch

    def __getitem__(self, name: str) -> Any:
        return self._fetch(super().__getitem__(name))

    def get(self, name: str, default: Any = None) -> Any:
        return self._fetch(super().get(name, default))

    def items(self) -> Any:
        return ((name, self[name]) for name in self)

    def values(self) -> Any:
        return (self[name] for name in self)

    def __setitem__(self, name: str, value: Any) -> None:
        raise ValueError(
            f"expected a loss that leaves the parameters as they are, got one that replaces {name}; call the module itself, and not "
            "torch.func.functional_call"
        )


def _sharded_modules(module: nn.Module) -> list[Any]:
    # By name: whoever sharded a module has loaded what nobody else should wait for.
    return [one for one in module.modules() if any(kind.__name__ == "FSDPModule" for kind in type(one).__mro__)]


def _without_fsdp(hooks: Mapping[int, Any]) -> OrderedDict[int, Any]:
    fsdp = "torch.distributed.fsdp"
    return OrderedDict((i, h) for i, h in hooks.items() if not str(getattr(h, "__module__", "")).startswith(fsdp))


def _put(undo: ExitStack, module: nn.Module, name: str, value: Any) -> None:
    undo.callback(module.__dict__.__setitem__, name, module.__dict__[name])
    module.__dict__[name] = value


def _stand_in(p: Any, trainable: bool) -> Tensor:
    nothing = torch.full((), float("nan"), dtype=p.dtype, device=p.device)
    return nothing.expand(p.shape).requires_grad_(trainable and p.requires_grad)


def _check_not_written(name: str, weight: Tensor, written: int) -> None:
    if weight._version != written:
        raise ValueError(written_into(name))


def written_into(name: str) -> str:
    """What is said of a loss that writes into a weight."""
    return f"expected a loss that leaves the parameters as they are, got one that wrote into {name}; write into parameters between the steps"
