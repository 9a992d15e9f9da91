"""The derivation of the cubic step and of its secular equation, checked on random models.

m(eta) = -g.eta + 1/2 eta^T H eta + lambda/6 |D eta|^3 (Nesterov and Polyak 2006, with the metric D of Wolinski, arXiv
2312.03885). The step is that of ``newton_step``; sigma is found here by bisection, another way.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.func import grad

from gnewton.cubic import newton_step
from gnewton.summary import Summary
from gnewton.teaching.derivations.derivation import Derivation, Line


@dataclass
class Model:
    """Four groups: g (4,), H (4, 4) indefinite, the diagonal d (4,) > 0 of D, lambda, and any other step eta (4,)."""

    seed: int

    def __post_init__(self) -> None:
        draw = torch.Generator().manual_seed(self.seed)
        self.g, self.eta, entries = torch.randn(3, 4, generator=draw, dtype=torch.float64).unbind()
        spectrum = torch.tensor([-1.0, -0.2, 0.5, 3.0], dtype=torch.float64)
        axes: Tensor = torch.linalg.qr(torch.randn(4, 4, generator=draw, dtype=torch.float64)).Q
        self.H: Tensor = axes @ spectrum.diag() @ axes.T
        self.d = 0.5 + entries.abs()
        self.strength = 1.5

    def quadratic(self, eta: Tensor) -> Tensor:
        """-g.eta + 1/2 eta^T H eta."""
        return -self.g @ eta + eta @ self.H @ eta / 2

    def cubic(self, eta: Tensor) -> Tensor:
        """m(eta)."""
        return self.quadratic(eta) + self.strength / 6 * self.length(eta) ** 3

    def length(self, eta: Tensor) -> Tensor:
        """|D eta|."""
        return torch.as_tensor(torch.linalg.vector_norm(self.d * eta))

    @cached_property
    def K(self) -> Tensor:
        return self.H / self.d / self.d[:, None]

    @cached_property
    def h(self) -> Tensor:
        return self.g / self.d

    @cached_property
    def spectrum(self) -> tuple[Tensor, Tensor, Tensor]:
        """kappa, Q and b = Q^T h."""
        kappa, Q = torch.linalg.eigh(self.K)
        return kappa, Q, Q.T @ self.h

    @cached_property
    def step(self) -> Tensor:
        """eta*, by the library."""
        summary = Summary.from_tensors(gradient=self.g, hessian=self.H, third=self.d**3)
        return newton_step(summary, self.strength).learning_rates

    @cached_property
    def sigma(self) -> Tensor:
        """lambda |D eta*| / 2."""
        return self.strength * self.length(self.step) / 2

    @cached_property
    def radius(self) -> Tensor:
        return self.length(self.step)

    @cached_property
    def P(self) -> Tensor:
        """H + sigma D^2."""
        return self.H + (self.sigma * self.d**2).diag()

    @cached_property
    def apart(self) -> Tensor:
        """1/2 (eta - eta*)^T (H + sigma D^2) (eta - eta*)."""
        away: Tensor = self.eta - self.step
        return torch.as_tensor(away @ self.P @ away / 2)


def bisect(m: Model) -> Tensor:
    """The sigma beyond the pole where |y(sigma)| = 2 sigma / lambda, by halving an interval."""
    kappa, _, b = m.spectrum
    low, high = -kappa[0], -kappa[0] + 100.0
    for _ in range(100):
        middle = (low + high) / 2
        longer = torch.linalg.vector_norm(b / (kappa + middle)) > 2 * middle / m.strength
        low, high = (middle, high) if longer else (low, middle)
    return torch.as_tensor(high)


def slope_of_the_length(m: Model) -> tuple[Tensor, Tensor]:
    """The derivative of |y(sigma)|^2 at three places beyond the pole, by autograd and by its formula."""
    kappa, _, b = m.spectrum
    places = (-kappa[0] + torch.tensor([0.5, 1.0, 5.0], dtype=torch.float64))[:, None]

    def squares(sigma: Tensor) -> Tensor:
        solved: Tensor = torch.linalg.solve(
            m.K + sigma[..., None] * torch.eye(4, dtype=torch.float64), m.h.expand(3, 4)
        )
        return solved.square().sum()

    return grad(squares)(places).flatten(), (-2 * b**2 / (kappa + places) ** 3).sum(dim=1)


def cubic_step() -> Derivation:
    """From the cubic model to the secular equation and the proof of its minimum, in ten lines.

    >>> all(cubic_step().holds(seed=1))
    True
    """
    return Derivation(
        "The cubic step and its secular equation",
        Model,
        [
            Line(
                r"\nabla m(\eta) = -\bar g + \bar H \eta + \tfrac{\lambda}{2} \lVert D\eta \rVert\, D^2 \eta",
                r"The gradient of \(\lVert D\eta \rVert\) is \(D^2 \eta / \lVert D\eta \rVert\); \(\tfrac{\lambda}{6} \cdot 3 = \tfrac{\lambda}{2}\).",
                lambda m: (
                    grad(m.cubic)(m.eta),
                    -m.g + m.H @ m.eta + m.strength / 2 * m.length(m.eta) * m.d**2 * m.eta,
                ),
            ),
            Line(
                r"(\bar H + \sigma D^2)\, \eta^* = \bar g, \qquad \sigma = \tfrac{\lambda}{2} \lVert D\eta^* \rVert",
                r"At a minimum the gradient vanishes. A linear system, but for \(\sigma\), which depends on the solution.",
                lambda m: (m.P @ m.step, m.g),
            ),
            Line(
                r"m(D^{-1} y) = -h \cdot y + \tfrac12 y^\top K y + \tfrac{\lambda}{6} \lVert y \rVert^3, \qquad K = D^{-1} \bar H D^{-1},\; h = D^{-1} \bar g",
                r"Measure each group in its own unit, \(y = D\eta\): the cubic term becomes round. (No entry of \(D\) may be 0.)",
                lambda m: (
                    m.cubic(m.eta / m.d),
                    -m.h @ m.eta + m.eta @ m.K @ m.eta / 2 + m.strength / 6 * torch.linalg.vector_norm(m.eta) ** 3,
                ),
            ),
            Line(
                r"y(\sigma) := (K + \sigma I)^{-1} h = \sum_i \frac{b_i}{\kappa_i + \sigma}\, q_i, \qquad K q_i = \kappa_i q_i,\; b_i = q_i \cdot h",
                r"One decomposition solves the system for every \(\sigma\): the eigenvectors of \(K + \sigma I\) are those of \(K\).",
                lambda m: (
                    torch.linalg.solve(m.K + 7.0 * torch.eye(4, dtype=torch.float64), m.h),
                    m.spectrum[1] @ (m.spectrum[2] / (m.spectrum[0] + 7.0)),
                ),
            ),
            Line(
                r"\frac{d}{d\sigma} \lVert y(\sigma) \rVert^2 = -2 \sum_i \frac{b_i^2}{(\kappa_i + \sigma)^3}",
                r"Beyond the pole, \(\sigma > -\kappa_{\min}\), every term is negative: the length falls, from infinity (where \(b_{\min} \neq 0\)) to 0.",
                slope_of_the_length,
            ),
            Line(
                r"\sum_i \frac{b_i^2}{(\kappa_i + \sigma)^2} = \Big( \frac{2\sigma}{\lambda} \Big)^2 \quad\text{at}\quad \sigma = \tfrac{\lambda}{2} \lVert D\eta^* \rVert",
                r"The secular equation: the length of \(y(\sigma)\) must be the one that \(\sigma\) stands for.",
                lambda m: ((m.spectrum[2] / (m.spectrum[0] + m.sigma)).square().sum(), (2 * m.sigma / m.strength) ** 2),
            ),
            Line(
                r"\text{the only root beyond the pole} = \tfrac{\lambda}{2} \lVert D\eta^* \rVert",
                r"A falling curve and a rising line meet once: halving an interval finds where. The right side is the library's.",
                lambda m: (bisect(m), m.sigma),
            ),
            Line(
                r"m(\eta) - m(\eta^*) = \tfrac12 (\eta - \eta^*)^\top (\bar H + \sigma D^2) (\eta - \eta^*) + \tfrac{\lambda}{12} (R - r)^2 (2R + r)",
                r"For any \(\eta\), with \(R = \lVert D\eta \rVert\) and \(r = \lVert D\eta^* \rVert\): multiply out, and use line 2. Beyond the pole \(\bar H + \sigma D^2\) is positive definite, so nothing here is negative: \(\eta^*\) is the global minimum.",
                lambda m: (
                    m.cubic(m.eta) - m.cubic(m.step),
                    m.apart + m.strength / 12 * (m.length(m.eta) - m.radius) ** 2 * (2 * m.length(m.eta) + m.radius),
                ),
            ),
            Line(
                r"q(\eta) - q(\eta^*) = \tfrac12 (\eta - \eta^*)^\top (\bar H + \sigma D^2) (\eta - \eta^*) + \tfrac{\sigma}{2} (r^2 - R^2)",
                r"\(q\) is the model without the cubic term. Inside \(R \le r\) nothing is negative: \(\eta^*\) is also the step of the trust region of radius \(r\).",
                lambda m: (
                    m.quadratic(m.eta) - m.quadratic(m.step),
                    m.apart + m.sigma / 2 * (m.radius**2 - m.length(m.eta) ** 2),
                ),
            ),
            Line(
                r"-m(\eta^*) = \tfrac12\, \bar g \cdot \eta^* + \tfrac{\lambda}{12} \lVert D\eta^* \rVert^3",
                r"The promised decrease. Take half of \(\eta^* \cdot\) line 2 off \(m\): half of the first term remains, and a part of the cubic one.",
                lambda m: (-m.cubic(m.step), m.g @ m.step / 2 + m.strength / 12 * m.radius**3),
            ),
        ],
    )
