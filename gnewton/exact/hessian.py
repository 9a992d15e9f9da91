r"""The Hessian of one sample's loss, block by block: an exact stochastic Newton method after Mehouachi and Kasmi; derivation ours.

With Phi_{l<-k} = dz_l / dz_k and the pre-activation Hessians C_l = S_l W_{l+1}^T C_{l+1} W_{l+1} S_l + K_l, K = Diag(k),
the block of the layers k <= l is, at the entries (p, q) of V_l and (i, j) of V_k,

    abar_{k-1,j} [ (C_l Phi_{l<-k})_{pi} abar_{l-1,q} + [k < l] [q <= n_{l-1}] delta_{l,p} (S_{l-1} Phi_{l-1<-k})_{qi} ].

It depends on a direction U only through U_l abar_{l-1} and U_l^T delta_l, hence its rank: at most n_L + 2N with N hidden
units, whatever the number P of parameters. Parameters are in torch's order: a layer's weight row by row, then its bias.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from gnewton.exact.passes import Passes, check_finite
from gnewton.exact.sample_directions import Extra, SampleDirections, by_layer, output_changes


class Inertia(NamedTuple):
    """How many eigenvalues are negative, zero and positive: of B samples, three tensors (B,) int64."""

    negative: Tensor
    zero: Tensor
    positive: Tensor


@torch.no_grad()
def dense(passes: Passes) -> Tensor:
    """All of it, (B, P, P), for small networks and as the oracle of what follows.

    >>> import gnewton as gn
    >>> model = gn.models.perceptron([3, 4, 2], dtype=torch.float64)
    >>> passes = gn.exact.forward_backward(model, torch.randn(1, 3, dtype=torch.float64), torch.tensor([1]))
    >>> H = gn.exact.hessian.dense(passes)
    >>> H.shape, torch.allclose(H.diagonal(dim1=1, dim2=2).sum(1), gn.exact.hessian.trace(passes))
    (torch.Size([1, 26, 26]), True)
    """
    C, L = layer_hessians(passes), len(passes)
    rows = [[_block(passes, C, i, k) for k in range(i + 1)] for i in range(L)]
    full = [[rows[i][k] if k <= i else rows[k][i].mT for k in range(L)] for i in range(L)]
    return torch.cat([torch.cat(row, 2) for row in full], 1)


@torch.no_grad()
def block(passes: Passes, i: int, k: int) -> Tensor:
    """The block of the layers with indices i and k from 0, (B, P_i, P_k). Raises IndexError for an index out of range."""
    if not (0 <= i < len(passes) and 0 <= k < len(passes)):
        raise IndexError(
            f"expected layers from 0 to {len(passes) - 1}, got {i} and {k}; count the linear layers from 0"
        )
    C = layer_hessians(passes)
    return _block(passes, C, i, k) if k <= i else _block(passes, C, k, i).mT


@torch.no_grad()
def product(passes: Passes, u: Mapping[str, Tensor]) -> SampleDirections:
    """H u for a direction u: parameter name -> tensor, shared or (B, ...); one forward and one backward pass.

    The result is a ``SampleDirections``; its ``per_sample()`` is name -> (B, ...). Raises ValueError for misfits.
    """
    extra = Extra(by_layer(passes, u))
    changes = output_changes(passes, [extra.on_input(passes, i) for i in range(len(passes))])
    right = [None, *(s * z for s, z in zip(passes.slopes, changes, strict=False))]
    left = [times(passes.loss.hessian(), changes[-1])]
    for i in range(len(passes) - 1, 0, -1):
        back = left[0] @ passes.weights[i] + extra.on_delta(passes, i)
        left.insert(0, passes.slopes[i - 1] * back + passes.curvatures[i - 1] * changes[i - 1])
    return SampleDirections(passes, left, passes.deltas, right)


@torch.no_grad()
def trace(passes: Passes) -> Tensor:
    """tr H = sum_l |abar_{l-1}|^2 tr C_l, (B,)."""
    traces = [C.diagonal(dim1=1, dim2=2).sum(1) for C in layer_hessians(passes)]
    return torch.stack([a[:, 0] * t for a, t in zip(passes.lengths, traces, strict=True)]).sum(0)


def rank(passes: Passes) -> Tensor:
    """rank H = 2N + rank C_L, (B,) int64, by the theorem of ``inertia``, with its conditions and errors."""
    counts = inertia(passes)
    return counts.negative + counts.positive


@torch.no_grad()
def inertia(passes: Passes) -> Inertia:
    """Exactly N + ``n_-(C_L)`` eigenvalues are negative, N + ``n_+(C_L)`` positive, N being the number of hidden units.

    Why: H = J^T M J, where J: U -> (U_l abar_{l-1}, U_l^T delta_l) is onto, and M is congruent to the 2 x 2 blocks
    [[k_i, s_i], [s_i, 0]] of the hidden units, of determinant -s_i^2 < 0, beside C_L. So one sample's Hessian is a strict
    saddle wherever there is a hidden unit (derivation ours).

    It holds where no sigma'(z) is 0 (hence not for a ReLU unit that is off), no delta_l is 0, the layers after the first
    have biases, and the first has inputs: ValueError otherwise. ``spectrum.count_below`` counts without conditions.

    >>> import gnewton as gn
    >>> model = gn.models.perceptron([3, 4, 2], dtype=torch.float64)
    >>> passes = gn.exact.forward_backward(model, torch.randn(1, 3, dtype=torch.float64), torch.tensor([1]))
    >>> gn.exact.hessian.inertia(passes)
    Inertia(negative=tensor([4]), zero=tensor([17]), positive=tensor([5]))
    """
    _check_theorem(passes)
    c = torch.linalg.eigvalsh(passes.loss.hessian())
    # The terms of C cancel where a class is almost certain: rounding is relative to them.
    rounding = 8 * c.shape[1] * torch.finfo(c.dtype).eps * passes.loss.diagonal.abs().amax(1, keepdim=True)
    N, P = passes.network.hidden, sum(p.numel() for p in passes.network.parameters.values())
    negative, positive = N + (c < -rounding).sum(1), N + (c > rounding).sum(1)
    return Inertia(negative, P - negative - positive, positive)


def layer_hessians(passes: Passes) -> list[Tensor]:
    """C_l = d^2 loss / dz_l^2 for every layer, (B, n_l, n_l)."""
    C = [passes.loss.hessian()]
    for i in range(len(passes) - 1, 0, -1):
        J = passes.weights[i] * passes.slopes[i - 1][:, None, :]
        C.insert(0, J.mT @ C[0] @ J + torch.diag_embed(passes.curvatures[i - 1]))
    return C


def times(matrices: Tensor, vectors: Tensor) -> Tensor:
    """(B, n, m) times (B, m)."""
    return torch.bmm(matrices, vectors[:, :, None])[:, :, 0]


def transposed_times(matrices: Tensor, vectors: Tensor) -> Tensor:
    """The transposes of (B, n, m) times (B, n)."""
    return torch.bmm(vectors[:, None, :], matrices)[:, 0]


def _block(passes: Passes, C: list[Tensor], i: int, k: int) -> Tensor:
    """The block for k <= l, (B, P_l, P_k)."""
    phi = torch.eye(len(passes.weights[k]), dtype=C[0].dtype, device=C[0].device).expand_as(C[k])
    before = phi
    for j in range(k + 1, i + 1):
        before = passes.slopes[j - 1][:, :, None] * phi
        phi = passes.weights[j] @ before
    left, right = passes.extended_input(i), passes.extended_input(k)
    inner = torch.einsum("bpi,bq->bpqi", C[i] @ phi, left)
    if k < i:
        n = passes.inputs[i].shape[1]
        inner[:, :, :n] += torch.einsum("bp,bqi->bpqi", passes.deltas[i], before)
    full = torch.einsum("bpqi,bj->bpqij", inner, right).flatten(3).flatten(1, 2)
    return full[:, _torch_order(passes, i)][:, :, _torch_order(passes, k)]


def _torch_order(passes: Passes, i: int) -> Tensor:
    """Where the weight's entries, row by row, and then the bias's stand in V = [W | b], row by row."""
    n, width, bias = passes.network.layers[i].shape
    V = torch.arange(n * (width + bias), device=passes.values.device).reshape(n, width + bias)
    return torch.cat([V[:, :width].flatten(), V[:, width:].flatten()])


def _check_theorem(passes: Passes) -> None:
    check_finite(passes)
    hint = "count eigenvalues with spectrum.count_below and count_above instead"
    for i, layer in enumerate(passes.network.layers):
        if i and layer.bias_name is None:
            raise ValueError(
                f"expected biases for the theorem of rank and inertia, got none in layer {layer.name[:-1]}; {hint}"
            )
        if i and bool((passes.slopes[i - 1] == 0).any()):
            name = passes.network.layers[i - 1].name[:-1]
            raise ValueError(f"expected sigma' to vanish nowhere, got a unit behind layer {name} where it is 0; {hint}")
        if i and not bool((passes.deltas[i] != 0).any(1).all()):
            raise ValueError(f"expected a gradient in layer {layer.name[:-1]}, got a sample without; {hint}")
    if bool((passes.lengths[0] == 0).any()):
        raise ValueError(f"expected inputs or a bias in the first layer, got a sample of zeros; {hint}")
