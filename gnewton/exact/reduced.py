r"""The Hessian of one sample on its range: an m x m matrix, m = n_L + 2N, that has all its eigenvalues but zeros.

An orthonormal basis of the directions that H can see: in the first layer U = y ahat^T, in the others U = axis v^T + N u ahat^T,
where ahat = abar / |abar| and [axis, N] is a Householder matrix whose first column lies along delta_l. The coordinates are
(y; v_2, u_2; v_3, u_3; ...), v_l of length n_{l-1} + 1 (n_{l-1} without a bias). The derivation is ours.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from gnewton.exact.hessian import times
from gnewton.exact.passes import Passes
from gnewton.exact.sample_directions import Parts, SampleDirections


@dataclass(frozen=True, eq=False)
class Basis:
    """The basis of B samples: axes (B, n_l) and normals (B, n_l, n_l - 1) of the layers after the first."""

    passes: Passes
    axes: list[Tensor]
    normals: list[Tensor]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """How many coordinates v and u each layer has; the first has its y as u."""
        first = (0, len(self.passes.weights[0]))
        rest = [
            (W.shape[1] + (b is not None), len(W) - 1)
            for W, b in zip(self.passes.weights[1:], self.passes.biases[1:], strict=True)
        ]
        return [first, *rest]

    def gradient(self) -> Tensor:
        """The coordinates of g, which lies in the range, (B, m)."""
        passes = self.passes
        parts = [passes.lengths[0].sqrt() * passes.deltas[0]]
        for i in range(1, len(passes)):
            v = self._on_axis(i) * passes.extended_input(i)
            parts += [v, v.new_zeros(len(v), self.sizes[i][1])]
        return torch.cat(parts, 1)

    def coordinates(self, V: Parts) -> Tensor:
        """The coordinates of shared matrices [W | b], projected on the range, (B, m)."""
        passes, parts = self.passes, []
        for i, (W, b) in enumerate(V):
            ahat = (passes.inputs[i] @ W.mT if b is None else passes.inputs[i] @ W.mT + b) * _inverse(passes.lengths[i])
            if i == 0:
                parts.append(ahat)
                continue
            axis, N = self.axes[i - 1], self.normals[i - 1]
            v = axis @ W if b is None else torch.cat([axis @ W, (axis @ b)[:, None]], 1)
            parts += [v, times(N.mT, ahat)]
        return torch.cat(parts, 1)

    def direction(self, coordinates: Tensor) -> SampleDirections:
        """The direction in parameter space of coordinates (B, m)."""
        passes = self.passes
        pieces = torch.split(coordinates, [size for pair in self.sizes for size in pair], 1)
        left = [pieces[1] * _inverse(passes.lengths[0])]
        right: list[Tensor | None] = [None]
        for i in range(1, len(passes)):
            v, u, a = pieces[2 * i], pieces[2 * i + 1], passes.inputs[i]
            n = a.shape[1]
            bias = v[:, n:]  # (B, 1), or (B, 0) without a bias
            # axis [v_W; v_b]^T = axis v_b abar^T + axis [v_W - v_b a; 0]^T
            left.append(
                times(self.normals[i - 1], u) * _inverse(passes.lengths[i])
                + self.axes[i - 1] * bias.sum(1, keepdim=True)
            )
            right.append(v[:, :n] - bias.sum(1, keepdim=True) * a)
        return SampleDirections(passes, left, [passes.deltas[0], *self.axes], right)

    def hessian(self) -> Tensor:
        """H in these coordinates, (B, m, m)."""
        passes, sizes = self.passes, self.sizes
        ends = torch.tensor(sizes).sum(1).cumsum(0).tolist()
        H = passes.values.new_zeros(passes.samples, ends[-1], ends[-1])
        # Column j of Z is the change of z_l along basis vector j; only those of this layer and before change it.
        Z = torch.diag_embed(passes.lengths[0].sqrt().expand_as(passes.z[0]))
        for i in range(len(passes)):
            if i:
                start, width = ends[i - 1], passes.inputs[i].shape[1]
                activations = passes.slopes[i - 1][:, :, None] * Z
                cross = self._on_axis(i)[:, :, None] * activations
                H[:, start : start + width, :start] += cross
                H[:, :start, start : start + width] += cross.mT
                Z = torch.cat([passes.weights[i] @ activations, self._own_changes(i)], 2)
            if i < len(passes) - 1:
                H[:, : ends[i], : ends[i]] += Z.mT @ (passes.curvatures[i][:, :, None] * Z)
        H += Z.mT @ passes.loss.hessian() @ Z
        return (H + H.mT) / 2

    def _on_axis(self, i: int) -> Tensor:
        """delta . axis = +-|delta|, (B, 1)."""
        return (self.passes.deltas[i] * self.axes[i - 1]).sum(1, keepdim=True)

    def _own_changes(self, i: int) -> Tensor:
        """U_l abar_{l-1} for this layer's basis vectors, (B, n_l, v and u)."""
        along = self.axes[i - 1][:, :, None] * self.passes.extended_input(i)[:, None, :]
        return torch.cat([along, self.passes.lengths[i].sqrt()[:, :, None] * self.normals[i - 1]], 2)


@torch.no_grad()
def basis(passes: Passes) -> Basis:
    """The basis of every sample."""
    frames = [_householder(delta) for delta in passes.deltas[1:]]
    return Basis(passes, [frame[:, :, 0] for frame in frames], [frame[:, :, 1:] for frame in frames])


def _householder(delta: Tensor) -> Tensor:
    """Orthogonal matrices (B, n, n) whose first columns lie along delta (B, n); along e_1 where delta is 0."""
    w = delta * _inverse(delta.square().sum(1, keepdim=True))
    # Away from zero: adding numbers of one sign does not cancel, and delta = 0 leaves w = e_1.
    w[:, 0] += torch.where(w[:, 0] < 0, -1.0, 1.0).to(w.dtype)
    scaled = w * (2 / w.square().sum(1, keepdim=True))
    return torch.eye(w.shape[1], dtype=w.dtype, device=w.device) - scaled[:, :, None] * w[:, None, :]


def _inverse(squares: Tensor) -> Tensor:
    """1 / sqrt, and 0 for 0."""
    return torch.where(squares > 0, squares.rsqrt(), 0.0)
