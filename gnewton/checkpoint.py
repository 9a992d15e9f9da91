"""A model and its GroupedNewton in one folder of ``torch.distributed.checkpoint``, saved by some ranks and loaded by others.

Tensors that lie as the parameters do (the proposer's moments, a policy's directions) are entries of their own, as the parameters are: each
rank writes its rows, and reads the rows that are its own now. Everything else is the same on all ranks, and one entry of bytes.
"""

import inspect
import io
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gnewton import saved_state
from gnewton.optimizer import GroupedNewton
from gnewton.ranks import unwrap, world_size
from gnewton.storage import is_dtensor

Folder = str | os.PathLike[str]
AS_SAVED = "build both as they were when it was saved, on a disk that all ranks see"
WRITABLE = "name a new one on a disk that all ranks see, with room and the right to write"


def save_checkpoint(folder: Folder, model: nn.Module, optimizer: GroupedNewton) -> None:
    """Write a model and its optimizer into a folder; all ranks of the optimizer's partition call it.

    Args:
        folder: on a disk that all ranks see, a new one for each checkpoint.
        model: plain, in DistributedDataParallel or in ``fully_shard``.
        optimizer: of its parameters.

    Raises TypeError for another optimizer, and for shards in its state that do not lie as the parameters do; OSError where
    the folder cannot be written.

    >>> import tempfile, torch, gnewton as gn
    >>> def started():
    ...     model = gn.models.Quadratic([1.0, 4.0], dtype=torch.float64)
    ...     return model, gn.GroupedNewton(gn.Partition.single(model), torch.optim.Adam(model.parameters()))
    >>> model, optimizer = started()
    >>> loss = optimizer.step(model)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_checkpoint(folder, model, optimizer)
    ...     other, resumed = started()
    ...     load_checkpoint(folder, other, resumed)
    >>> resumed.step(other) == optimizer.step(model)
    tensor(True)
    """
    from torch.distributed import checkpoint

    _check_optimizer(optimizer)
    state = optimizer.state_dict()
    state.pop("shards", None)
    rows = {}
    for place in _places(state, optimizer):
        tensor = place.read()
        if isinstance(tensor, Tensor) and tensor.shape == place.parameter.shape:
            rows[place.name] = tensor
            place.write(torch.empty(0, dtype=tensor.dtype))  # says that there is one
    _check_whole(state)
    rest = io.BytesIO()
    torch.save({"state": state, "rows": list(rows)}, rest)
    entries = {"model": unwrap(model).state_dict(), "rows": rows, "optimizer": rest.getvalue()}
    with _unwarned(), _explained(f"a folder to save a checkpoint in, {os.fspath(folder)}", WRITABLE):
        checkpoint.save(entries, checkpoint_id=folder, **_processes(checkpoint.save, optimizer))


def load_checkpoint(folder: Folder, model: nn.Module, optimizer: GroupedNewton) -> None:
    """Read what ``save_checkpoint`` wrote, on as many ranks as there are now, whole or in shards.

    Args:
        folder: where it lies.
        model: of the same parameters.
        optimizer: as it was built then: the same groups, policy and kind of proposer.

    Raises ValueError, and changes nothing, where the state is another optimizer's or the model has other parameters; ValueError or
    OSError where there is no checkpoint.
    """
    from torch.distributed import checkpoint

    _check_optimizer(optimizer)

    def load(entries: dict[str, Any]) -> dict[str, Any]:
        with _unwarned(), _explained(f"a checkpoint of this model and optimizer in {os.fspath(folder)}", AS_SAVED):
            checkpoint.load(entries, checkpoint_id=folder, **_processes(checkpoint.load, optimizer))
        return entries

    saved = torch.load(io.BytesIO(load({"optimizer": b""})["optimizer"]), weights_only=True)
    state = saved["state"]
    # torch's own checks come when the model is loaded already.
    saved_state.read(state, optimizer, gathered=True)
    places = [place for place in _places(state, optimizer) if place.name in saved["rows"]]
    rows = {place.name: torch.zeros_like(place.parameter.detach(), dtype=place.read().dtype) for place in places}
    entries = load({"model": unwrap(model).state_dict(), "rows": rows})
    unwrap(model).load_state_dict(entries["model"])
    for place in places:
        place.write(entries["rows"][place.name])
    optimizer.load_state_dict(state)


class _Place(NamedTuple):
    """Where a saved state may hold a tensor that lies as a parameter does."""

    name: str
    inside: dict[Any, Any]
    key: Any
    parameter: Tensor

    def read(self) -> Any:
        return self.inside[self.key]

    def write(self, value: Tensor) -> None:
        self.inside[self.key] = value


def _places(state: Mapping[str, Any], optimizer: GroupedNewton) -> Iterator[_Place]:
    """The entries of the proposer's state for each parameter, and directions in the policy's."""
    yield from _directions("policy", state["state"]["grouped_newton"]["policy"], optimizer.partition.parameters)
    if optimizer.proposer is not None:
        held = [p for group in optimizer.proposer.optimizer.param_groups for p in group["params"]]
        for i, moments in state["proposer"]["state"].items():
            yield from (_Place(f"proposer.{i}.{word}", moments, word, held[i]) for word in moments)


def _directions(name: str, value: Any, parameters: Mapping[str, Tensor]) -> Iterator[_Place]:
    if not isinstance(value, dict):
        return
    for key, one in value.items():
        if value.keys() == parameters.keys():
            yield _Place(f"{name}.{key}", value, key, parameters[key])
        else:
            yield from _directions(f"{name}.{key}", one, parameters)


def _check_whole(value: Any, name: str = "state") -> None:
    """Raises TypeError for shards that no parameter has: their rows would be one rank's."""
    if is_dtensor(value):
        raise TypeError(
            f"expected shards of the parameters' shapes in the optimizer's state, got others in {name}; save each rank's "
            "optimizer.state_dict() by torch.save, and load it at the same number of ranks"
        )
    entries = (
        value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    )
    for key, one in entries:
        _check_whole(one, f"{name}.{key}")


def _processes(call: Callable[..., Any], optimizer: GroupedNewton) -> dict[str, Any]:
    """The options that say which processes save or load together."""
    ranks = optimizer.partition.ranks
    if ranks.size > 1:
        return {"process_group": ranks.group}
    if world_size() == 1:
        return {}
    if "no_dist" not in inspect.signature(call).parameters:
        raise NotImplementedError(
            "expected a torch whose checkpoints one of many processes can use alone, got "
            f"{torch.__version__}; update torch, or do it in a process of its own"
        )
    return {"no_dist": True}


def _check_optimizer(optimizer: Any) -> None:
    if not isinstance(optimizer, GroupedNewton):
        raise TypeError(
            f"expected (folder, model, optimizer) with a GroupedNewton, got {type(optimizer).__name__}; save other optimizers by "
            "torch.save(optimizer.state_dict(), file)"
        )


@contextmanager
def _explained(expected: str, advice: str) -> Iterator[None]:
    """What torch met, as an error of its kind: its CheckpointException is no Exception and ends a program past every handler."""
    from torch.distributed.checkpoint import CheckpointException

    try:
        yield
    except CheckpointException as error:
        cause = next(iter(error.failures.values()))[0]
        if not isinstance(cause, Exception):
            raise cause from error  # an interrupt
        kind = OSError if isinstance(cause, OSError) else ValueError
        raise kind(f"expected {expected}, got: {cause}; {advice}") from error


@contextmanager
def _unwarned() -> Iterator[None]:
    """Without torch's remarks: that one process is alone; of torch 2.6, that its own code is old."""
    with warnings.catch_warnings():
        for remark in ("torch.distributed is", "TypedStorage is deprecated"):
            warnings.filterwarnings("ignore", remark)
        yield
