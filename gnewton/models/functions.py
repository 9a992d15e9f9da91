"""Two test functions whose landscape is known: a quadratic bowl of any spectrum, and Rosenbrock's valley.

They are modules whose ``forward()`` is the loss itself, so that the module serves as its own closure.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gnewton.models.device import default_device


class Quadratic(nn.Module):
    """The bowl L(theta) = 1/2 theta^T A theta - b^T theta + c, with A of a given spectrum and min L = 0.

    A = Q diag(spectrum) Q^T (d, d), b = A minimiser (d,), c = 1/2 minimiser^T A minimiser. The basis Q is the axes unless
    one of ``angle``, ``basis`` and ``generator`` is given.

    Args:
        spectrum: the eigenvalues of A, (d,). A negative one makes a saddle, without a minimum.
        angle: turns the axes counter-clockwise, in radians (d = 2).
        basis: orthogonal, (d, d), its columns the eigenvectors.
        generator: a random basis is drawn from it (Haar measure).
        start: where the parameter ``theta`` begins, (d,); 1 everywhere by default.
        minimiser: the stationary point, (d,); 0 by default.
        dtype, device: of theta; None for torch's defaults.

    ``A``, ``b`` and ``minimiser`` are buffers. Raises ValueError for an empty or non-finite spectrum, a misshaped
    vector, a basis that is not orthogonal, or two ways of giving the basis.

    >>> bowl = Quadratic([1.0, 10.0], start=[1.0, 1.0])
    >>> bowl()
    tensor(5.5000, grad_fn=<DivBackward0>)
    >>> bowl.A
    tensor([[ 1.,  0.],
            [ 0., 10.]])
    """

    A: Tensor
    b: Tensor
    minimiser: Tensor

    def __init__(
        self,
        spectrum: Sequence[float] | Tensor,
        angle: float | None = None,
        *,
        basis: Tensor | None = None,
        generator: torch.Generator | None = None,
        start: Sequence[float] | Tensor | None = None,
        minimiser: Sequence[float] | Tensor | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        values = _vector("spectrum", spectrum, None)
        d = len(values)
        q = _basis(d, angle, basis, generator)
        matrix = q @ torch.diag(values) @ q.T
        lowest = _vector("minimiser", [0.0] * d if minimiser is None else minimiser, d)
        first = _vector("start", [1.0] * d if start is None else start, d)
        dtype, device = dtype or torch.get_default_dtype(), device or default_device()
        # Symmetric to the last bit, whatever the products above rounded.
        self.register_buffer("A", ((matrix + matrix.T) / 2).to(device, dtype))
        self.register_buffer("minimiser", lowest.to(device, dtype))
        self.register_buffer("b", self.A @ self.minimiser)
        self.theta = nn.Parameter(first.to(device, dtype))

    def forward(self, theta: Tensor | None = None) -> Tensor:
        """L at the parameter, (); or at the points ``theta`` (..., d), as (...)."""
        # Around the minimiser, not as three terms of opposite signs: nothing cancels near the minimum.
        r = (self.theta if theta is None else theta) - self.minimiser
        return (r * (r @ self.A)).sum(-1) / 2


class Rosenbrock(nn.Module):
    """Rosenbrock's valley in d dimensions: sum over i < d of 100 (x_{i+1} - x_i^2)^2 + (1 - x_i)^2.

    Args:
        d: the number of coordinates of the parameter ``theta``.
        start: where theta begins, (d,); (-1.2, 1, -1.2, 1, ...) by default.
        coupled: False lets the sum run over odd i alone: d / 2 valleys in the plane beside each other.
        dtype, device: of theta; None for torch's defaults.

    The minimum, 0, lies at (1, ..., 1). From the default start, for d > 3, the way down may end in a second minimum near
    (-1, 1, ..., 1). Raises ValueError for
    d < 2, an odd d that is not coupled, or a misshaped or non-finite start. (H. H. Rosenbrock, 1960.)

    >>> valley = Rosenbrock(2, dtype=torch.float64)
    >>> valley.theta.tolist(), round(valley().item(), 12)
    ([-1.2, 1.0], 24.2)
    >>> valley(torch.ones(5, 2, dtype=torch.float64))
    tensor([0., 0., 0., 0., 0.], dtype=torch.float64)
    """

    def __init__(
        self,
        d: int = 2,
        start: Sequence[float] | Tensor | None = None,
        *,
        coupled: bool = True,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if d < 2 or (d % 2 and not coupled):
            kind = "an even d >= 2 for valleys in the plane" if not coupled else "d >= 2 coordinates"
            raise ValueError(f"expected {kind}, got {d}; Rosenbrock's function couples neighbours")
        classic = [-1.2 if i % 2 == 0 else 1.0 for i in range(d)]
        first = _vector("start", classic if start is None else start, d)
        self.coupled = coupled
        self.theta = nn.Parameter(first.to(device or default_device(), dtype or torch.get_default_dtype()))

    def forward(self, theta: Tensor | None = None) -> Tensor:
        """L at the parameter, (); or at the points ``theta`` (..., d), as (...)."""
        x = self.theta if theta is None else theta
        here, following = (x[..., :-1], x[..., 1:]) if self.coupled else (x[..., ::2], x[..., 1::2])
        return (100 * (following - here**2) ** 2 + (1 - here) ** 2).sum(-1)

    def layout(self, name: str) -> dict[str, dict[str, tuple[Tensor, Tensor]]]:
        """Two groups for ``Partition.from_groups``: "interleaved" (even and odd places) or "halves" (first and second).

        Raises ValueError for another name.

        >>> {group: mask["theta"][1].tolist() for group, mask in Rosenbrock(4).layout("halves").items()}
        {'first': [True, True, False, False], 'second': [False, False, True, True]}
        """
        place = torch.arange(len(self.theta), device=self.theta.device)
        layouts = {
            "interleaved": (("even", "odd"), place % 2 == 0),
            "halves": (("first", "second"), place < len(self.theta) // 2),
        }
        if name not in layouts:
            raise ValueError(f"expected a layout among {', '.join(layouts)}, got {name!r}; choose one of them")
        (one, other), mask = layouts[name]
        return {one: {"theta": (self.theta, mask)}, other: {"theta": (self.theta, ~mask)}}


def _basis(d: int, angle: float | None, basis: Tensor | None, generator: torch.Generator | None) -> Tensor:
    ways = {"angle": angle, "basis": basis, "generator": generator}
    given = [name for name, value in ways.items() if value is not None]
    if len(given) > 1:
        raise ValueError(f"expected one way of giving the basis, got {' and '.join(given)}; keep one of them")
    if angle is not None:
        return _rotation(d, angle)
    if basis is not None:
        return _orthogonal(d, basis)
    return torch.eye(d, dtype=torch.float64, device="cpu") if generator is None else _random_basis(d, generator)


def _rotation(d: int, angle: float) -> Tensor:
    if d != 2:
        raise ValueError(f"expected 2 eigenvalues with an angle, got {d}; give basis= or generator= instead")
    c, s = math.cos(angle), math.sin(angle)
    return torch.tensor([[c, -s], [s, c]], dtype=torch.float64, device="cpu")


def _orthogonal(d: int, basis: Tensor) -> Tensor:
    q = torch.as_tensor(basis, dtype=torch.float64, device="cpu").detach()
    if q.shape != (d, d):
        raise ValueError(f"expected a basis of shape ({d}, {d}), got {tuple(q.shape)}; give one column per eigenvalue")
    error = (q.T @ q - torch.eye(d, dtype=torch.float64, device="cpu")).abs().max().item()
    # A basis computed in float32 is orthogonal to about 1e-6: what was meant to be orthogonal passes.
    if not error < 1e-4:
        raise ValueError(f"expected an orthogonal basis, got Q^T Q - I of {error:.1g}; use torch.linalg.qr(q).Q")
    return q


def _random_basis(d: int, generator: torch.Generator) -> Tensor:
    q, r = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64, device="cpu"))
    # QR fixes the columns' signs by a convention; with the signs of R's diagonal undone the basis is Haar distributed.
    basis: Tensor = q * r.diagonal().sign()
    return basis


def _vector(name: str, values: Sequence[float] | Tensor, d: int | None) -> Tensor:
    vector = torch.as_tensor(values, dtype=torch.float64, device="cpu").detach()
    if vector.ndim != 1 or len(vector) != (d or len(vector)) or not len(vector):
        shape = "(d,)" if d is None else f"({d},)"
        raise ValueError(f"expected {name} of shape {shape}, got {tuple(vector.shape)}; give one number per coordinate")
    if not torch.isfinite(vector).all():
        raise ValueError(f"expected finite numbers in {name}, got {vector.tolist()}; replace NaN and infinity")
    return vector
