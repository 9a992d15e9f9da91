"""Losses of margins, written out: torch has their first derivatives alone."""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.nn._reduction import legacy_get_string


def multi_margin_loss(
    input: Tensor,
    target: Tensor,
    p: int = 1,
    margin: float = 1.0,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """``F.multi_margin_loss``: the mean over the classes of w_y max(0, margin - x_y + x_i)^p, i not the target y.

    >>> import torch
    >>> multi_margin_loss(torch.tensor([[2.0, 1.5, 0.0]]), torch.tensor([0]))
    tensor(0.1667)
    """
    own = F.multi_margin_loss(input.detach(), target, p, margin, weight, size_average, reduce, reduction)
    if not input.numel():
        return own
    rows, index = input.reshape(-1, input.shape[-1]), target.reshape(-1, 1)
    gaps = (margin - rows.gather(1, index) + rows).relu().pow(p)  # at 0 the slope of each is 0, as torch's is
    if weight is not None:
        gaps = gaps * weight.detach()[index]
    others = rows.new_ones(rows.shape, requires_grad=False).scatter(1, index, 0.0)
    return _reduced((gaps * others).sum(1) / rows.shape[1], own, size_average, reduce, reduction)


def multilabel_margin_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """``F.multilabel_margin_loss``: the sum of max(0, 1 - x_j + x_i) over the labels j and all i that are none, over the classes.

    >>> import torch
    >>> multilabel_margin_loss(torch.tensor([[2.0, 1.5, 0.0]]), torch.tensor([[0, -1, 0]]))
    tensor(0.1667)
    """
    own = F.multilabel_margin_loss(input.detach(), target, size_average, reduce, reduction)
    if not input.numel():
        return own
    rows, labels = (t.reshape(-1, input.shape[-1]) for t in (input, target))
    counts = (labels >= 0).cumprod(1)  # they end at the first -1
    index = labels * counts
    is_label = counts.new_zeros(rows.shape).scatter_add(1, index, counts) > 0
    gaps = (1 - rows.gather(1, index)[:, :, None] + rows[:, None, :]).relu()
    pairs = counts[:, :, None] * ~is_label[:, None, :]
    return _reduced((gaps * pairs).sum((1, 2)) / rows.shape[1], own, size_average, reduce, reduction)


def _reduced(losses: Tensor, own: Tensor, size_average: Any, reduce: Any, reduction: str) -> Tensor:
    if size_average is not None or reduce is not None:
        reduction = legacy_get_string(size_average, reduce, emit_warning=False)
    whole = losses.mean() if reduction == "mean" else losses.sum() if reduction == "sum" else losses
    return whole.reshape(own.shape)


WRITTEN_OUT: dict[Any, Callable[..., Tensor]] = {
    F.multi_margin_loss: multi_margin_loss,
    F.multilabel_margin_loss: multilabel_margin_loss,
}
