"""Embeddings with max_norm: torch shortens the rows that they look up, in place, so that the loss is no function of them.

Rows that are within the limit stay as they are, and the loss is what it would be without one. Others are refused before torch
writes into them: whoever asked gets the parameters back as they were.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

# Where the arguments stand, in both: input, weight, padding_idx or offsets, max_norm, norm_type.
_NAMES = ("embedding", "embedding_bag")
_PLACES = {"input": 0, "weight": 1, "max_norm": 3, "norm_type": 4}


@cache
def shortens(function: Any) -> bool:
    """Whether a torch function may shorten the rows that it looks up.

    >>> shortens(torch.nn.functional.embedding), shortens(torch.embedding)
    (True, False)
    """
    return getattr(function, "__name__", "") in _NAMES and function.__module__ == "torch.nn.functional"


def without_limit(
    function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Sequence[Any], dict[str, Any]]:
    """The same call of a function that ``shortens`` rows without a limit, where all rows are within it; ValueError where they are not.

    Torch counts a write into the parameter even where it leaves every row as it is.

    >>> words, table = torch.tensor([0]), torch.tensor([[3.0, 4.0]])
    >>> without_limit(torch.nn.functional.embedding, (words, table), {"max_norm": 6.0})[1]
    {'max_norm': None}
    >>> without_limit(torch.nn.functional.embedding, (words, table), {"max_norm": 1.0})
    Traceback (most recent call last):
    ...
    ValueError: expected a loss that leaves the parameters as they are, got an embedding with max_norm ...
    """
    rows, weight, max_norm, norm_type = (_argument(name, place, args, kwargs) for name, place in _PLACES.items())
    if max_norm is None or not isinstance(weight, Tensor):
        return args, dict(kwargs)
    if not weight.is_meta and not _within(weight, rows, max_norm, 2.0 if norm_type is None else norm_type):
        raise ValueError(
            "expected a loss that leaves the parameters as they are, got an embedding with max_norm that would shorten its "
            "rows; renormalize them between the steps (torch.embedding_renorm_) and leave max_norm out"
        )
    place = _PLACES["max_norm"]
    if len(args) > place:
        return (*args[:place], None, *args[place + 1 :]), dict(kwargs)
    return args, {**kwargs, "max_norm": None}


def is_limited(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call has a limit.

    >>> is_limited(torch.nn.functional.embedding, (), {"max_norm": 6.0})
    True
    """
    return shortens(function) and _argument("max_norm", _PLACES["max_norm"], args, kwargs) is not None


def _argument(name: str, place: int, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    return args[place] if len(args) > place else kwargs.get(name)


@torch.no_grad()
def _within(weight: Tensor, rows: Tensor, max_norm: float, norm_type: float) -> bool:
    return bool((weight[rows].norm(p=norm_type, dim=-1) <= max_norm).all())
