r"""The average of the parameters over the last steps: a large learning rate without its noise.

    x_n  <-  x_{n-1} + min(1, 9 / (n + 9)) (theta_n - x_{n-1}),        n = 0, 1, ...

It remembers about the last tenth of the run, whatever its length (polynomial averaging of order 8: Shamir and Zhang, Stochastic
gradient descent for non-smooth optimization, ICML 2013). The training itself is not changed.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from gnewton.undo import modules_in

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

    ``averaged.state_dict()`` and ``load_state_dict`` save and resume it. A copy or a pickle of the optimizer has no hooks, as torch leaves
    them out: hang the copy's average on it anew.

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
    averaged = _Average(model)
    if optimizer is not None:
        optimizer.register_step_post_hook(lambda *_: averaged.update_parameters(model))
    return averaged


class _Average(AveragedModel):
    """torch's, with an update in half the time, which beside a small network is felt."""

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Bring the average up to date with the parameters; buffers become the model's. ValueError for another kind of model."""
        weight = follow_weight(int(self.n_averaged))
        averages, values = _tensors_in(self.module), _tensors_in(model)
        _check_alike(averages, values)
        copied: list[tuple[Tensor, Tensor]] = [*zip(averages.buffers, values.buffers, strict=True)]
        followed: dict[torch.dtype, list[tuple[Tensor, Tensor]]] = {}
        for pair in zip(averages.parameters, values.parameters, strict=True):
            dtype = pair[0].dtype
            # Whole numbers are frozen codes, which have no mean.
            whole = not (dtype.is_floating_point or dtype.is_complex)
            (copied if weight == 1 or whole else followed.setdefault(dtype, [])).append(pair)
        for average, value in copied:
            average.copy_(value)
        for pairs in followed.values():
            torch._foreach_lerp_([x for x, _ in pairs], [v.to(x) for x, v in pairs], weight)
        self.n_averaged += 1


class _Tensors(NamedTuple):
    parameters: list[Tensor]
    buffers: list[Tensor]


def _tensors_in(module: nn.Module) -> _Tensors:
    """Each parameter and each buffer once, detached, in an order that a copy of the module has too."""
    modules = modules_in(module)
    parameters = {id(p): p for m in modules for p in m._parameters.values() if p is not None}
    buffers = {id(b): b for m in modules for b in m._buffers.values() if b is not None}
    return _Tensors([p.detach() for p in parameters.values()], [b.detach() for b in buffers.values()])


def _check_alike(averages: _Tensors, values: _Tensors) -> None:
    ours, theirs = ([[t.shape for t in some] for some in tensors] for tensors in (averages, values))
    if ours != theirs:
        counts = " and ".join(str(sum(map(len, shapes))) for shapes in (ours, theirs))
        raise ValueError(
            f"expected the model that is averaged, got one with other parameters or buffers ({counts} tensors, or other shapes); write "
            "averaged = gn.average_weights(model) for each model"
        )


def follow_weight(count: int) -> float:
    """The weight of the newest parameters after ``count`` others.

    >>> [follow_weight(count) for count in (0, 1, 9, 81)]
    [1.0, 0.9, 0.5, 0.1]
    """
    return min(1.0, (_ORDER + 1) / (count + _ORDER + 1))
