"""What a GroupedNewton saves, and reading it back; states of 0.1.0.dev0 are read too."""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from gnewton.average import Average
from gnewton.policies import Outcome, Policy

_WORDS = {"proposer_kind": "proposer", "average": "average", "policy": "policy"}


def kind_of(
    groups: list[str], proposer: torch.optim.Optimizer | None, average: Average | None, policy: Policy | None
) -> dict[str, Any]:
    """What an optimizer must have in common with a state that it loads.

    Args:
        groups: the names of the groups.
        proposer: the optimizer that proposes directions; its kind is compared, as its settings come with the state.
        average: of the summaries.
        policy: its kind and the settings that it was made with.
    """
    return {
        "groups": groups,
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
    _check_kind(state, kind)
    memory, host = state["state"]["grouped_newton"], torch.device("cpu")
    # What rates are computed from lies on the CPU; a policy may keep directions, too, which do not.
    policy = _to_device(memory["policy"], device) | {"eta": _to_device(memory["policy"].get("eta"), host)}
    state["state"]["grouped_newton"] = memory | {"policy": policy, "average": _to_device(memory["average"], host)}
    state["history"] = [Outcome(**_to_device(record, host)) for record in state["history"]]
    return state


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
