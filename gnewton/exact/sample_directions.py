r"""A direction in parameter space, one a sample, in the form that every exact solution here has: rank two a layer.

    U_l = left_l abar_{l-1}^T + axis_l [right_l; 0]^T + a multiple of V_l and of any extra right-hand side

It takes O(n) numbers a layer instead of O(n^2), and the mean over a batch takes two matrix products.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gnewton.exact.passes import Passes

Parts = list[tuple[Tensor, Tensor | None]]


@dataclass(frozen=True, eq=False)
class Extra:
    """A term G of the right-hand side besides the gradient: ``factor`` times a matrix and a bias for each layer.

    parts: (n_l, n_{l-1}) and (n_l,) or None, or with a leading dimension B. The weight decay kappa is factor kappa and
    parts V, of which z = V abar stands in the passes.
    """

    parts: Parts
    factor: float = 1.0
    is_decay: bool = False

    def on_input(self, passes: Passes, i: int) -> Tensor:
        """G_l abar_{l-1}, (B, n_l)."""
        if self.is_decay:
            return self.factor * passes.z[i]
        W, b = self.parts[i]
        product = torch.einsum("...ij,...j->...i", W, passes.inputs[i])
        return self.factor * (product if b is None else product + b)

    def on_delta(self, passes: Passes, i: int) -> Tensor:
        """The weight part, G_l^T delta_l, (B, n_{l-1})."""
        return self.factor * torch.einsum("...ij,...i->...j", self.parts[i][0], passes.deltas[i])


def weight_decay(passes: Passes, kappa: float) -> list[Extra]:
    """kappa V, or nothing for kappa = 0."""
    parts = list(zip(passes.weights, passes.biases, strict=True))
    return [Extra(parts, kappa, is_decay=True)] if kappa else []


def by_layer(passes: Passes, tensors: Mapping[str, Tensor]) -> Parts:
    """Tensors by parameter name, shared or with a leading B, as one pair a layer; ValueError for misfits."""
    shapes = {name: p.shape for name, p in passes.network.parameters.items()}
    if tensors.keys() != shapes.keys():
        raise ValueError(f"expected tensors named {', '.join(shapes)}, got {', '.join(tensors)}; give one a parameter")
    for name, t in tensors.items():
        if t.shape not in (shapes[name], (passes.samples, *shapes[name])):
            raise ValueError(
                f"expected {name} of shape {tuple(shapes[name])}, or with {passes.samples} samples in front, got {tuple(t.shape)}"
            )
    return [
        (tensors[layer.weight_name], None if layer.bias_name is None else tensors[layer.bias_name])
        for layer in passes.network.layers
    ]


@dataclass(frozen=True, eq=False)
class SampleDirections:
    """One direction U for each sample, in the form of the module's first formula. Every list has one entry a layer.

    Args:
        passes: of the B samples.
        left: (B, n_l).
        axis: (B, n_l).
        right: (B, n_{l-1}), or None for zero.
        extras: pairs of a coefficient (B, 1) a layer and the term that it multiplies.
        known_output: ``output``, where it came with the solution.
    """

    passes: Passes
    left: list[Tensor]
    axis: list[Tensor]
    right: list[Tensor | None]
    extras: list[tuple[list[Tensor], Extra]] = field(default_factory=list)
    known_output: Tensor | None = None

    @property
    def output(self) -> Tensor:
        """What it changes the outputs z_L by, to first order, (B, n_L)."""
        if self.known_output is not None:
            return self.known_output
        return output_changes(self.passes, [self._on_input(i) for i in range(len(self.passes))])[-1]

    def _on_input(self, i: int) -> Tensor:
        """U_l abar_{l-1}, (B, n_l)."""
        passes = self.passes
        p = passes.lengths[i] * self.left[i]
        if (right := self.right[i]) is not None:
            p = p + self.axis[i] * (right * passes.inputs[i]).sum(1, keepdim=True)
        return p + sum(c[i] * extra.on_input(passes, i) for c, extra in self.extras)

    @torch.no_grad()
    def per_sample(self) -> dict[str, Tensor]:
        """U in full: parameter name -> (B, ...)."""
        tensors = {}
        for i, layer in enumerate(self.passes.network.layers):
            U = self.left[i][:, :, None] * self.passes.inputs[i][:, None, :]
            if (right := self.right[i]) is not None:
                U += self.axis[i][:, :, None] * right[:, None, :]
            bias = self.left[i]
            for coefficients, extra in self.extras:
                W, b = extra.parts[i]
                c = extra.factor * coefficients[i]
                U = U + c[:, :, None] * W
                bias = bias if b is None else bias + c * b
            tensors[layer.weight_name] = U
            if layer.bias_name is not None:
                tensors[layer.bias_name] = bias
        return tensors

    @torch.no_grad()
    def mean(self, weights: Tensor | None = None) -> dict[str, Tensor]:
        """The mean over the samples, each times its weight (B,): parameter name -> tensor; no U is formed."""
        B, passes = self.passes.samples, self.passes
        t = passes.values.new_full((B, 1), 1 / B) if weights is None else weights[:, None] / B
        tensors = {}
        for i, layer in enumerate(passes.network.layers):
            left = t * self.left[i]
            U = left.mT @ passes.inputs[i]
            if (right := self.right[i]) is not None:
                U.addmm_((t * self.axis[i]).mT, right)
            bias = left.sum(0)
            for coefficients, extra in self.extras:
                W, b = extra.parts[i]
                c = extra.factor * t * coefficients[i]
                U += c.sum() * W if W.ndim == 2 else torch.einsum("b,bij->ij", c[:, 0], W)
                if b is not None:
                    bias = bias + (c.sum() * b if b.ndim == 1 else (c * b).sum(0))
            tensors[layer.weight_name] = U
            if layer.bias_name is not None:
                tensors[layer.bias_name] = bias
        return tensors

    @torch.no_grad()
    def slope(self) -> Tensor:
        """g . U of each sample's own loss, (B,): below zero where the step descends."""
        # g_l = delta abar^T, so that the whole slope goes through the outputs: g . U = delta_L . z_L's change.
        return (self.passes.deltas[-1] * self.output).sum(1)


def output_changes(passes: Passes, own: list[Tensor]) -> list[Tensor]:
    """The first-order changes of z_l, given the part U_l abar_{l-1} that layer l makes itself: all (B, n_l)."""
    changes = [own[0]]
    for i in range(1, len(passes)):
        changes.append(own[i] + (passes.slopes[i - 1] * changes[-1]) @ passes.weights[i].mT)
    return changes


def check_damping(damping: float | Tensor, kappa: float) -> None:
    """ValueError for rho + kappa that is not above 0; tensors on a GPU are taken as they are: looking at one makes the host wait."""
    rho = damping if isinstance(damping, Tensor) else torch.as_tensor(damping, dtype=torch.float64)
    # NaN in a tensor comes from the passes, and is met with their results.
    if rho.device.type == "cpu" and bool((rho + kappa <= 0).any() if rho is damping else not (rho + kappa > 0).all()):
        raise ValueError(
            f"expected damping > 0, got {damping}; H alone is singular: write 10.0, or safe_damping(passes) + 1.0"
        )


def dampings(passes: Passes, damping: float | Tensor, kappa: float = 0.0) -> list[Tensor]:
    """rho_l + kappa as (B, 1) for each layer, from a number, (B,) or (B, L) (or (1, L)); ValueError for other shapes."""
    B, L = passes.samples, len(passes)
    rho = torch.as_tensor(damping, dtype=passes.values.dtype, device=passes.values.device)
    if rho.ndim == 0:
        rho = rho.expand(B, L)
    elif rho.shape == (B,):
        rho = rho[:, None].expand(B, L)
    elif rho.shape == (1, L):
        rho = rho.expand(B, L)
    elif rho.shape != (B, L):
        raise ValueError(
            f"expected a damping: a number, ({B},) for the samples or ({B}, {L}) for samples and layers, got shape {tuple(rho.shape)}"
        )
    rho = rho + kappa
    return [rho[:, i : i + 1] for i in range(L)]


def of_samples(passes: Passes, damping: float | Tensor) -> Tensor:
    """rho of each sample, (B, 1), from a number or (B,); ValueError for other shapes."""
    shape = tuple(torch.as_tensor(damping).shape)
    if shape not in ((), (passes.samples,)):
        raise ValueError(f"expected a damping for each of {passes.samples} samples, got shape {shape}")
    return dampings(passes, damping)[0]
