"""The checks at GroupedNewton's door: settings, arguments, data."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from gnewton.average import Exponential, Windows
from gnewton.partition import Partition
from gnewton.policies import Policy

_NUMBERS = (int, float, Tensor)  # built once: it is asked at every step


def check_arguments(partition: Any, average: Any, renamed: Mapping[str, Any]) -> None:
    """What is no setting: TypeError for another kind of object, and for an argument of another name."""
    for name in renamed:
        if name == "direction":
            raise TypeError(
                "expected proposer=, got direction=, its name before; write GroupedNewton(partition, proposer)"
            )
        raise TypeError(
            f"expected the arguments that help(GroupedNewton) lists, got {name}=; leave it out or mend its name"
        )
    if not isinstance(partition, Partition):
        raise TypeError(
            f"expected a Partition, got {type(partition).__name__}; write GroupedNewton(Partition.by_tensor(model))"
        )
    if not isinstance(average, Exponential | Windows | None):
        raise TypeError(
            f"expected an average of summaries, got {average!r}; write gn.average.Exponential(0.9) or gn.average.Windows(5, 3)"
        )


def with_policy(settings: dict[str, Any], policy: Policy | None) -> dict[str, Any]:
    """The optimizer's settings and the policy's own; ValueError where both have one of the same name, TypeError for no policy."""
    if isinstance(policy, type) or not (policy is None or hasattr(policy, "settings")):
        raise TypeError(f"expected a policy, an object, got {policy!r}; write policy=gn.policies.Calibrated()")
    own = {} if policy is None else dict(policy.settings)
    for name in own:
        if name in settings or name == "params":
            kind = type(policy).__name__
            raise ValueError(
                f"expected other names for {kind}'s settings than GroupedNewton's, got {name!r}; leave it out of "
                f"{kind}.settings and write GroupedNewton(partition, policy=..., {name}={own[name]!r})"
            )
    return settings | own


def check_settings(settings: Mapping[str, Any]) -> None:
    """Numbers in their ranges: they may have been changed in ``param_groups`` since the last step."""
    for name in ("lr", "cubic", "ridge", "eta_momentum"):
        if name == "cubic" and settings[name] == "adaptive":
            continue
        if not isinstance(settings[name], _NUMBERS):
            raise TypeError(f"expected a number for {name}, got {settings[name]!r}")
        if not 0 <= settings[name] < float("inf"):
            raise ValueError(f"expected {name} >= 0 and finite, got {settings[name]}")
    if not 0 <= settings["eta_momentum"] < 1:
        raise ValueError(f"expected 0 <= eta_momentum < 1, got {settings['eta_momentum']}")
    if not (isinstance(settings["period"], int) and settings["period"] >= 1):
        raise ValueError(f"expected a period of at least 1 step, got {settings['period']!r}")
    if settings["on_failure"] not in ("report", "raise"):
        raise ValueError(f'expected on_failure="report" or "raise", got {settings["on_failure"]!r}')


def check_data(closure: Callable[..., Tensor] | None, curvature: Any, data: Any) -> Callable[..., Tensor]:
    """The closure, where it and the data fit together."""
    if closure is None:
        raise TypeError(
            "expected a closure that returns the loss, got none: gnewton differentiates it itself; "
            "write optimizer.step(lambda: F.cross_entropy(model(x), y)), without backward()"
        )
    if data is not None and curvature is not None:
        raise ValueError(
            "expected curvature= or data=, got both; a full-batch step has its summaries from the same data"
        )
    if hasattr(data, "__iter__") and iter(data) is data:
        raise ValueError(
            f"expected data that can be read several times, got a {type(data).__name__}, which is used up after one pass; "
            "pass a list, a DataLoader or Dataset.batches(...)"
        )
    return closure
