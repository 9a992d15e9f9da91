"""What a GroupedNewton saves, and reading it back; states of 0.1.0.dev0 are read too."""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import fields
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from gnewton.average import Average
from gnewton.partition import Partition
from gnewton.policies import Outcome, Policy

_WORDS = {"proposer_kind": "proposer", "average": "average", "policy": "policy"}
_SIZES = {"sizes": "number of scalars in group", "shapes": "shape of parameter"}


def kind_of(
    partition: Partition, proposer: torch.optim.Optimizer | None, average: Average | None, policy: Policy | None
) -> dict[str, Any]:
    """What an optimizer must have in common with a state that it loads.

    Args:
        partition: its groups, their sizes and the shapes of the parameters are compared; the parameters' names are not.
        proposer: the optimizer that proposes directions; its kind is compared, as its settings come with the state.
        average: of the summaries.
        policy: its kind and the settings that it was made with.
    """
    return {
        "groups": list(partition.names),
        "sizes": list(partition.sizes),
        "shapes": [list(p.shape) for p in partition.parameters.values()],
        "proposer_kind": "gradient" if proposer is None else type(proposer).__name__,
        "average": repr(average),
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


def read(state_dict: Mapping[str, Any], kind: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """A copy of the saved state, its tensors where they belong; ValueError where it is not of this ``kind`` of optimizer."""
    if "grouped_newton" not in state_dict.get("state", {}):
        raise ValueError(
            "expected the state of a GroupedNewton, got another optimizer's; load what its state_dict() returned"
        )
    state = _translate(copy.deepcopy(dict(state_dict)))
    check_whole(state, [*_WORDS, "groups", "proposer", "history"])
    _check_kind(state, kind)
    memory, host = state["state"]["grouped_newton"], torch.device("cpu")
    # What rates are computed from lies on the CPU; a policy may keep directions, too, which do not.
    policy = _to_device(memory["policy"], device) | {"eta": _to_device(memory["policy"].get("eta"), host)}
    state["state"]["grouped_newton"] = memory | {"policy": policy, "average": _to_device(memory["average"], host)}
    state["history"] = [Outcome(**_to_device(record, host)) for record in state["history"]]
    return state


def check_whole(state: Mapping[str, Any], keys: Iterable[str]) -> None:
    """Raises ValueError where a state lacks one of its parts, or its one group of parameters has lost its settings.

    Args:
        state: as saved.
        keys: what it needs beside torch's own ``state`` and ``param_groups``.
    """
    groups = state.get("param_groups")
    whole = isinstance(groups, list) and len(groups) == 1 and {"params", "lr"} <= set(groups[0])
    missing = [key for key in keys if key not in state] + ([] if whole else ["one group in param_groups"])
    if missing:
        raise ValueError(f"expected a whole state, got one without {missing[0]}; load what its state_dict() returned")


def check_owner(state: Mapping[str, Any], owner: Mapping[str, Any]) -> None:
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


def check_proposer(state: Mapping[str, Any], proposer: torch.optim.Optimizer | None) -> None:
    """Raises ValueError where the saved proposer had other parameter groups."""
    saved, here = (
        [len(group["params"]) for group in (one or {}).get("param_groups", []) if "params" in group]
        for one in (state["proposer"], proposer and proposer.state_dict())
    )
    if saved != here:
        raise ValueError(
            f"expected a proposer with parameter groups of {here} tensors, got a state of {saved}; build the proposer as it was then"
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
