"""torch's wrapper around the step of an optimizer, put on where somebody profiles or needs it."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import optimizer as module


def wrap_on_demand(step: Callable[..., Any]) -> Callable[..., Any]:
    """``Optimizer.profile_hook_step`` of a step, but that nothing is written for a profiler that does not run.

    Writing is a tenth of a step of a small network. Hooks are called as ever: those after the step here, all others by torch.
    """
    wrapped = torch.optim.Optimizer.profile_hook_step(step)

    @functools.wraps(step)
    def run(*args: Any, **kwargs: Any) -> Any:
        self = args[0]
        if self._optimizer_step_pre_hooks or is_watched():
            return wrapped(*args, **kwargs)
        value = step(*args, **kwargs)
        for hook in self._optimizer_step_post_hooks.values():
            hook(self, args, kwargs)
        return value

    return run


def is_watched() -> bool:
    """Whether a profiler runs, or a hook is for every optimizer.

    >>> is_watched()
    False
    """
    return bool(
        torch.autograd._profiler_enabled() or module._global_optimizer_pre_hooks or module._global_optimizer_post_hooks
    )
