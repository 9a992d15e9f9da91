"""Where the host waits for the device: every call that needs a number of a tensor before it can go on.

Such calls are seen on the CPU too, where they cost nothing: so their number can be tested without an accelerator. What has
been brought to the host, and what is computed from that alone, is followed: asking for its numbers is no wait, there or here.
With CUDA torch's own sync debug mode sees the same and what happens inside torch.
"""

import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten
from torch.utils.weak import WeakTensorKeyDictionary

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

    Args:
        device: where the package computes. On "cpu" every tensor stands for one on a device until it is brought to the host.

    >>> with Waits() as seen:
    ...     value = float(torch.ones(2).sum())
    >>> len(seen.places)
    1
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self._apart = torch.device(device).type != "cpu"
        self.places: list[tuple[str, str]] = []
        self._host = WeakTensorKeyDictionary()

    def __torch_function__(
        self, function: Callable[..., Any], _types: object, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
        brought = str(kwargs.get("device")) == "cpu" or (bool(tensors) and all(map(self._is_host, tensors)))
        if function in WAITING and not brought:
            self.places.append(_caller())
        result = function(*args, **kwargs)
        if function is Tensor.cpu:
            # On the CPU it is the same tensor, which stands for one on the device.
            result, brought = result.detach() if result is args[0] else result, True
        if brought:
            self._host.update((t, True) for t in tree_flatten(result)[0] if isinstance(t, Tensor))
        return result

    def _is_host(self, tensor: Tensor) -> bool:
        return tensor in self._host or (self._apart and tensor.device.type == "cpu")


def _caller() -> tuple[str, str]:
    frames = traceback.extract_stack()[:-2]
    ours = [frame for frame in frames if f"/{PACKAGE}/" in Path(frame.filename).as_posix()]
    frame = ours[-1] if ours else frames[-1]
    return Path(frame.filename).name, (frame.line or "").strip()
