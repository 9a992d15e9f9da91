"""One name for each argument of a torch function: torch takes NumPy's names for some, and ``torch.ops`` calls the first one self.

``torch.sum(x=t, axis=0)`` runs as ``torch.sum(input=t, dim=0)`` does. Whoever reads the arguments of a call should not have to
know both.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from types import FunctionType
from typing import Any

import torch

_NUMPY = {"axis": "dim", "keepdims": "keepdim", "x": "input", "a": "input", "x1": "input", "x2": "other"}
_OPERATORS = (torch._ops.OpOverload, torch._ops.OpOverloadPacket)


def with_torch_names(
    function: Any, args: Sequence[Any], kwargs: Mapping[str, Any] | None
) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """The same call with torch's own names.

    >>> with_torch_names(torch.sum, (), {"x": 1, "axis": 0})
    ((), {'input': 1, 'dim': 0})
    >>> with_torch_names(torch.cosine_similarity, (), {"x1": 1, "x2": 2})
    ((), {'x1': 1, 'x2': 2})
    """
    if not kwargs:
        return args, {}
    if isinstance(function, _OPERATORS):
        # The name of the first argument, which no function of Python's torch has.
        given = dict(kwargs)
        return ((given.pop("self"), *args) if "self" in given else args), given
    if kwargs.keys().isdisjoint(_NUMPY) or isinstance(function, FunctionType):
        return args, kwargs
    own = _names(getattr(function, "__name__", ""))
    return args, {_NUMPY[key] if key in _NUMPY and key not in own else key: value for key, value in kwargs.items()}


@cache
def _names(name: str) -> frozenset[str]:
    """The names of all arguments of torch's operator, in any of its overloads."""
    operator = getattr(torch.ops.aten, name, None)
    overloads = [getattr(operator, overload) for overload in operator.overloads()] if operator else []
    return frozenset(argument.name for one in overloads for argument in one._schema.arguments)
