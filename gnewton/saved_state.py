"""What a GroupedNewton saves, and reading it back; states of 0.1.0.dev0 are read too."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from gnewton.partition import Partition
from gnewton.policies import Outcome, Policy

_WORDS = {"proposer_kind": "proposer", "average": "average", "policy": "policy"}
_SIZES = {"sizes": "number of scalars in group", "shapes": "shape of parameter"}


def pack(optimizer: Any) -> dict[str, Any]:
    """What a GroupedNewton's state has beside torch's own parts: the proposer's state, the history, its kind, and whose rows it has."""
    proposer = _proposer_of(optimizer)
    state = None if proposer is None else copy.deepcopy(proposer.state_dict())
    whose = {"proposer": state, "history": pack_history(optimizer.history)}
    return _kind_of(optimizer) | _owner_of(optimizer.partition) | whose


def _proposer_of(optimizer: Any) -> torch.optim.Optimizer | None:
    return None if optimizer.proposer is None else optimizer.proposer.optimizer


def _owner_of(partition: Partition) -> dict[str, Any]:
    """Whose rows a state has; nothing where it has whole tensors."""
    return {} if partition.shards is None else {"shards": [partition.ranks.rank, partition.ranks.size]}


def _kind_of(optimizer: Any) -> dict[str, Any]:
    """What an optimizer must have in common with a state that it loads.

    Of the partition the groups, their sizes and the shapes of the parameters, not their names; of the proposer the kind, as its
    settings come with the state; the average; and the policy's kind and the settings that it was made with.
    """
    partition, policy, proposer = optimizer.partition, optimizer.policy, _proposer_of(optimizer)
    return {
        "groups": list(partition.names),
        "sizes": list(partition.sizes),
        "shapes": [list(p.shape) for p in partition.parameters.values()],
        "proposer_kind": "gradient" if proposer is None else type(proposer).__name__,
        "average": repr(optimizer.average),
        "policy": "None" if policy is None else _describe(policy),
    }


def _describe(policy: Policy) -> str:
    # A data class says all of its fields; object's own text is an address.
    if type(policy).__repr__ is not object.__repr__:
        return repr(policy)
    return f"{type(policy).__name__}({', '.join(f'{name}={value!r}' for name, value in policy.settings.items())})"


def pack_history(history: Iterable[Outcome]) -> list[dict[str, Any]]:
    """Plain dictionaries, for ``torch.load(..., weights_only=True)``."""
    return [{f.name: getattr(outcome, f.name) for f in fields(Outcome)} for outcome in history]


def read(state_dict: Mapping[str, Any], optimizer: Any, *, gathered: bool = False) -> dict[str, Any]:
    """A copy of a saved state, its tensors where they belong; ValueError where it does not fit the GroupedNewton.

    Args:
        state_dict: as ``GroupedNewton.state_dict`` returned it.
        optimizer: the GroupedNewton.
        gathered: whether the rows of all ranks come apart from it, as in a checkpoint.
    """
    if not gathered:
        _check_owner(state_dict, _owner_of(optimizer.partition))
    if "grouped_newton" not in (state_dict.get("state") or {}):
        raise ValueError(
            "expected the state of a GroupedNewton, got another optimizer's; load what its state_dict() returned"
        )
    with explained():
        state = _read(state_dict, optimizer)
        # A checkpoint's tensors come later.
        if not (gathered or optimizer.partition.shards):
            _check_moments(state["proposer"], _proposer_of(optimizer))
        return state


def _read(state_dict: Mapping[str, Any], optimizer: Any) -> dict[str, Any]:
    state = _translate(copy.deepcopy(dict(state_dict)))
    check_whole(state, [*_WORDS, "groups", "proposer", "history"])
    _check_kind(state, _kind_of(optimizer))
    _check_proposer(state, _proposer_of(optimizer))
    check_groups(state, optimizer.param_groups)
    # A setting that came with a later version has its own default.
    state["param_groups"] = [optimizer.defaults | group for group in state["param_groups"]]
    memory, host = state["state"]["grouped_newton"], torch.device("cpu")
    memory = {key: memory[key] for key in ("step", "average", "policy")}
    # What rates are computed from lies on the CPU; a policy may keep directions, too, which do not.
    policy = _to_device(memory["policy"], optimizer.partition.device) | {
        "eta": _to_device(memory["policy"].get("eta"), host)
    }
    state["state"]["grouped_newton"] = memory | {"policy": policy, "average": _to_device(memory["average"], host)}
    state["history"] = [Outcome(**_to_device(record, host)) for record in state["history"]]
    return state


@contextmanager
def explained() -> Iterator[None]:
    """A KeyError or TypeError inside is a ValueError that names what the state lacks, or has and should not."""
    try:
        yield
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"expected a whole state, got one where {error} is missing or wrong; load what its state_dict() returned"
        ) from error


def check_whole(state: Mapping[str, Any], keys: Iterable[str]) -> None:
    """Raises ValueError where a state lacks one of its parts, or has no group of parameters, or several.

    Args:
        state: as saved.
        keys: what it needs beside torch's own ``state`` and ``param_groups``.
    """
    groups = state.get("param_groups")
    whole = isinstance(groups, list) and len(groups) == 1 and {"params", "lr"} <= set(groups[0])
    missing = [key for key in keys if key not in state] + ([] if whole else ["one group in param_groups"])
    if missing:
        raise ValueError(f"expected a whole state, got one without {missing[0]}; load what its state_dict() returned")


def _check_owner(state: Mapping[str, Any], owner: Mapping[str, Any]) -> None:
    """Raises ValueError for another rank's rows of the proposer's moments, which would be taken for one's own."""
    if "shards" in state and state["shards"] != owner.get("shards"):
        saved, here = (
            "rank {} of {}".format(*one) if one else "whole parameters"
            for one in (state["shards"], owner.get("shards"))
        )
        raise ValueError(
            f"expected the state that {here} saved, got that of {saved}; load what each rank saved by itself, or write "
            "gn.save_checkpoint(folder, model, optimizer), and load_checkpoint at any number of ranks"
        )


def check_groups(state: Mapping[str, Any], groups: list[dict[str, Any]]) -> None:
    """Raises ValueError where the saved groups have other numbers of parameters than ``groups``."""
    saved, here = ([len(group["params"]) for group in some] for some in (state["param_groups"], groups))
    if saved != here:
        raise ValueError(
            f"expected parameter groups of {here} tensors, got a state of {saved}; build the model as it was"
        )


def _check_proposer(state: Mapping[str, Any], proposer: torch.optim.Optimizer | None) -> None:
    """Raises ValueError where the saved proposer had other parameter groups."""
    saved, here = (
        [len(group["params"]) for group in (one or {}).get("param_groups", []) if "params" in group]
        for one in (state["proposer"], proposer and proposer.state_dict())
    )
    if proposer is not None and "state" not in (state["proposer"] or {}):
        saved = []
    if saved != here:
        raise ValueError(
            f"expected a proposer with parameter groups of {here} tensors, got a state of {saved}; build the proposer as it was then"
        )


# What torch's optimizers keep of each parameter in its own shape.
_MOMENTS = (
    "exp_avg",
    "exp_avg_sq",
    "max_exp_avg_sq",
    "exp_inf",
    "momentum_buffer",
    "square_avg",
    "grad_avg",
    "acc_delta",
    "sum",
)


def _check_moments(state: Any, proposer: torch.optim.Optimizer | None) -> None:
    """Raises ValueError where the saved proposer had its parameters in another order, as far as their shapes tell."""
    if proposer is None:
        return
    saved = [index for group in state["param_groups"] for index in group["params"]]
    held = [p for group in proposer.param_groups for p in group["params"]]
    for place, (index, p) in enumerate(zip(saved, held, strict=True)):
        for name, value in state["state"].get(index, {}).items():
            if name in _MOMENTS and isinstance(value, Tensor) and value.shape != p.shape:
                raise ValueError(
                    f"expected a proposer whose parameter {place} has the shape {list(value.shape)}, as when the state was saved, got "
                    f"{list(p.shape)}; build it on model.parameters(), in the same order"
                )


def _check_kind(state: Mapping[str, Any], kind: Mapping[str, Any]) -> None:
    for key, word in _WORDS.items():
        if state[key] != kind[key]:
            raise ValueError(
                f"expected a state whose {word} is {kind[key]}, got {state[key]}; build the optimizer as it was then"
            )
    if state["groups"] != kind["groups"]:
        raise ValueError(
            f"expected a state of the {len(kind['groups'])} groups of this partition, got {len(state['groups'])} groups"
            + (" of other names" if len(state["groups"]) == len(kind["groups"]) else "")
            + "; build the partition as it was then"
        )
    for key, word in _SIZES.items():
        # States saved before these were kept say nothing of them.
        for where, saved, here in _differing(state.get(key, kind[key]), kind[key]):
            raise ValueError(
                f"expected a state whose {word} {where} is {here}, got {saved}; build model and partition as they were then"
            )


def _differing(saved: list[Any], here: list[Any]) -> list[tuple[int, Any, Any]]:
    """The places where two lists differ, and what each has there."""
    pairs = zip_longest(saved, here, fillvalue="nothing")
    return [(i, a, b) for i, (a, b) in enumerate(pairs) if a != b]


def _translate(state: dict[str, Any]) -> dict[str, Any]:
    """The words of now for those of 0.1.0.dev0, whose memory was one dictionary for optimizer and policy."""
    memory = state["state"]["grouped_newton"]
    if "policy" in memory:
        return state
    policy = {"eta": memory["eta"], "age": memory["age"], "cubic": memory["cubic"], "cached_curvature": memory["kept"]}
    now = {"step": memory["step"], "average": memory["average"], "policy": policy}
    state["state"] = state["state"] | {"grouped_newton": now}
    return state | {"proposer": state["direction"], "proposer_kind": state["direction_kind"], "policy": "None"}


def _to_device(value: Any, device: torch.device) -> Any:
    if isinstance(value, dict):
        return {name: _to_device(one, device) for name, one in value.items()}
    return value.to(device) if isinstance(value, Tensor) else value
