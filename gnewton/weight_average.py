r"""The average of the parameters over the last steps: a large learning rate without its noise.

    x_n  <-  x_{n-1} + min(1, 9 / (n + 9)) (theta_n - x_{n-1}),        n = 0, 1, ...

It remembers about the last tenth of the run, whatever its length (polynomial averaging of order 8: Shamir and Zhang, Stochastic
gradient descent for non-smooth optimization, ICML 2013). The training itself is not changed.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

_ORDER = 8


def average_weights(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> AveragedModel:
    """torch's ``AveragedModel`` of the model, brought up to date after every step of the optimizer.

    Args:
        model: the one that is trained; it stays as it is, and its average is a model of its own.
        optimizer: any of torch's, or GroupedNewton. None leaves it to you to call ``averaged.update_parameters(model)``.

    Evaluate at the average, after one pass that gives batch norm the statistics of the averaged network:

        averaged = gn.average_weights(model, optimizer)
        ...                                                     # train as ever
        torch.optim.swa_utils.update_bn(loader, averaged)       # where there is batch norm
        averaged.eval()(x)

    ``averaged.state_dict()`` and ``load_state_dict`` save and resume it.

    >>> import torch, gnewton as gn
    >>> model = gn.models.perceptron([2, 1])
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> averaged = average_weights(model, optimizer)
    >>> for _ in range(20):
    ...     optimizer.zero_grad()
    ...     model(torch.ones(4, 2)).square().mean().backward()
    ...     optimizer.step()
    >>> averaged.n_averaged.item(), averaged(torch.ones(1, 2)).shape
    (20, torch.Size([1, 1]))
    """
    averaged = AveragedModel(model, multi_avg_fn=_follow)
    if optimizer is not None:
        optimizer.register_step_post_hook(lambda *_: averaged.update_parameters(model))
    return averaged


@torch.no_grad()
def _follow(averages: Any, values: Any, count: Tensor | int) -> None:
    """One step of the average, in place; torch copies the values by itself where ``count`` is 0, and gives those of one dtype."""
    if not (averages[0].is_floating_point() or averages[0].is_complex()):
        torch._foreach_copy_(_plain(averages), _plain(values))  # whole numbers are frozen codes, which have no mean
        return
    torch._foreach_lerp_(_plain(averages), _plain(values), follow_weight(int(count)))


def _plain(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t.detach() for t in tensors]


def follow_weight(count: int) -> float:
    """The weight of the newest parameters after ``count`` others.

    >>> [follow_weight(count) for count in (0, 1, 9, 81)]
    [1.0, 0.9, 0.5, 0.1]
    """
    return min(1.0, (_ORDER + 1) / (count + _ORDER + 1))
