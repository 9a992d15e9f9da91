"""Where the host waits for the device: every call that needs a number of a tensor before it can go on.

Such calls are seen on the CPU too, where they cost nothing: so their number can be tested without an accelerator. With CUDA
torch's own sync debug mode sees the same and what happens inside torch.
"""

import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

WAITING = {
    Tensor.item,
    Tensor.tolist,
    Tensor.cpu,
    Tensor.__bool__,
    Tensor.__float__,
    Tensor.__int__,
    Tensor.__index__,
    Tensor.nonzero,
    torch.nonzero,
    torch.equal,
    torch.unique,
}
PACKAGE = "gnewton"


class Waits(TorchFunctionMode):
    """Records (file, line of the source) of each waiting call made by the package while it is on.

    >>> with Waits() as seen:
    ...     value = float(torch.ones(2).sum())
    >>> len(seen.places)
    1
    """

    def __init__(self) -> None:
        super().__init__()
        self.places: list[tuple[str, str]] = []

    def __torch_function__(
        self, function: Callable[..., Any], _types: object, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if function in WAITING:
            self.places.append(_caller())
        return function(*args, **(kwargs or {}))


def _caller() -> tuple[str, str]:
    frames = traceback.extract_stack()[:-2]
    ours = [frame for frame in frames if f"/{PACKAGE}/" in Path(frame.filename).as_posix()]
    frame = ours[-1] if ours else frames[-1]
    return Path(frame.filename).name, (frame.line or "").strip()
