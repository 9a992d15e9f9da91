"""Arguments that a function of torch leaves out when it asks a torch function mode: they are read from its own frame.

torch's ``l1_loss`` does not tell a mode of its weights, so that the same loss has another value inside than outside.
"""

import sys
from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F

_FORGOTTEN: dict[Any, tuple[str, ...]] = {F.l1_loss: ("weight",)}


def with_forgotten(function: Any, kwargs: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The keywords that the function was called with, for a mode that was asked with these.

    >>> with_forgotten(F.mse_loss, {"reduction": "sum"})
    {'reduction': 'sum'}
    """
    if function not in _FORGOTTEN:
        return kwargs or {}
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_code is not function.__code__:
        frame = frame.f_back
    given = frame.f_locals if frame else {}
    missing = {name: given[name] for name in _FORGOTTEN[function] if name in given}
    return missing | dict(kwargs or {})
