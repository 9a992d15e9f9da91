"""Any setting of an optimizer as the learning rate of one, so that torch's schedulers drive it.

``torch.optim.lr_scheduler`` knows ``param_groups[i]["lr"]`` alone. lambda_1 of a GroupedNewton is that number; lambda_int
(``cubic``) and the ridge are others, and get the same plateau rule, or any other schedule, through this view.
"""

from collections import UserDict
from typing import Any

import torch


class AsRate(torch.optim.Optimizer):
    """A view of ``optimizer`` for schedulers, in which "lr" is another of its settings; it takes no steps itself.

    Raises ValueError for a setting that is not a number of the optimizer's parameter groups.

    >>> import gnewton as gn
    >>> model = gn.models.Rosenbrock(2)
    >>> optimizer = gn.GroupedNewton(gn.Partition.single(model), cubic=8.0)
    >>> plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(AsRate(optimizer, "cubic"), factor=0.5, patience=0)
    >>> for loss in (2.0, 1.0, 1.0, 1.0):
    ...     plateau.step(loss)
    >>> optimizer.param_groups[0]["cubic"], optimizer.param_groups[0]["lr"]
    (2.0, 1.0)
    """

    def __init__(self, optimizer: torch.optim.Optimizer, setting: str) -> None:
        known = {
            name
            for name, value in optimizer.param_groups[0].items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        if setting not in known:
            raise ValueError(
                f"expected a setting among {', '.join(sorted(known))}, got {setting!r}; choose one of them"
            )
        self._optimizer, self._setting = optimizer, setting
        self.defaults, self.state = {}, optimizer.state

    @property
    def param_groups(self) -> list[Any]:  # type: ignore[override]
        """The optimizer's groups as they are now: loading a state replaces them."""
        return [_Renamed(group, self._setting) for group in self._optimizer.param_groups]

    @property
    def _opt_called(self) -> bool:
        # Schedulers warn when they are stepped before the optimizer; it is the real one that counts.
        return True

    def __getstate__(self) -> dict[str, Any]:
        # torch copies its own attributes alone, of which a view has hardly any.
        return dict(vars(self))

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)

    def step(self, closure: Any = None) -> Any:
        """Refused: the optimizer itself steps."""
        raise RuntimeError("expected a scheduler to read this view, got a call of step(); step the optimizer itself")


class _Renamed(UserDict[str, Any]):
    def __init__(self, group: dict[str, Any], setting: str) -> None:
        # Not a copy: what is written here is written there.
        self.data = group
        self._names = {"lr": setting, "initial_lr": f"initial_{setting}"}

    def __getitem__(self, key: str) -> Any:
        return self.data[self._names.get(key, key)]

    def __setitem__(self, key: str, value: Any) -> None:
        self.data[self._names.get(key, key)] = value

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._names.get(key, key) in self.data
