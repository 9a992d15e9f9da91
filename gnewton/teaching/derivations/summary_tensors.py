"""The derivation of the summary tensors from phi(eta), checked on a small network.

Every right side is computed by plain automatic differentiation of the whole parameter vector; every left side by what
the line defines. (Wolinski, arXiv 2312.03885, section 3.)
"""

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jacrev

from gnewton.teaching.derivations.derivation import Derivation, Line


@dataclass
class Network:
    """A 3-4-2 tanh network, flattened: theta (P,), direction u (P,), groups as a matrix I (S, P) of zeros and ones.

    hidden: the units in the middle; S: 4 tensors, 2 layers or 1 group of everything.
    """

    seed: int
    hidden: int = 4
    S: int = 4

    def __post_init__(self) -> None:
        draw = torch.Generator().manual_seed(self.seed)
        self.x = torch.randn(6, 3, generator=draw, dtype=torch.float64)
        self.y = torch.randint(2, (6,), generator=draw)
        self.sizes = [3 * self.hidden, self.hidden, 2 * self.hidden, 2]
        self.theta, self.u = (torch.randn(sum(self.sizes), generator=draw, dtype=torch.float64) for _ in range(2))
        grouped = torch.eye(self.S, dtype=torch.float64).repeat_interleave(4 // self.S, dim=1)
        self.groups = grouped.repeat_interleave(torch.tensor(self.sizes), dim=1)
        self.parts = self.groups * self.u  # row s is u_s
        self.eta = torch.randn(self.S, generator=draw, dtype=torch.float64) / 10

    def loss(self, theta: Tensor) -> Tensor:
        """L(theta)."""
        w, b, v, c = torch.split(theta, self.sizes)
        hidden = torch.tanh(self.x @ w.reshape(-1, 3).T + b)
        return F.cross_entropy(hidden @ v.reshape(2, -1).T + c, self.y)

    def phi(self, eta: Tensor) -> Tensor:
        """phi(eta) = L(theta - sum_s eta_s u_s)."""
        return self.loss(self.theta - eta @ self.parts)

    @cached_property
    def zero(self) -> Tensor:
        return torch.zeros(self.S, dtype=torch.float64)

    @cached_property
    def gradient(self) -> Tensor:
        return torch.as_tensor(grad(self.loss)(self.theta))

    @cached_property
    def hessian(self) -> Tensor:
        return torch.as_tensor(hessian(self.loss)(self.theta))

    @cached_property
    def third(self) -> Tensor:
        return torch.as_tensor(jacfwd(hessian(self.loss))(self.theta))

    @cached_property
    def g_bar(self) -> Tensor:
        return self.parts @ self.gradient

    @cached_property
    def h_bar(self) -> Tensor:
        return self.parts @ self.hessian @ self.parts.T

    @cached_property
    def d3(self) -> Tensor:
        return torch.einsum("pqk,rp,sq,tk->rst", self.third, self.parts, self.parts, self.parts)


def contract(network: Network) -> Tensor:
    """H-bar by contraction: the sum over T_t of (d g-bar_s / d theta_p) u_p, for each s."""
    rows = jacrev(lambda theta: network.parts @ grad(network.loss)(theta))(network.theta)
    return torch.as_tensor(rows @ network.parts.T)


def second_difference(n: Network) -> tuple[Tensor, Tensor]:
    """The curvature of phi along eta from five values of the loss, against eta^T H-bar eta."""
    h = 1e-2
    far, near = (n.phi(k * h * n.eta) + n.phi(-k * h * n.eta) for k in (2, 1))
    return (16 * near - far - 30 * n.phi(n.zero)) / (12 * h**2), n.eta @ n.h_bar @ n.eta


def merge(n: Network) -> tuple[Tensor, Tensor]:
    """The first group as it is and all others as one, against sums of blocks of the finer H-bar."""
    first = torch.eye(n.S, dtype=torch.float64)[0]
    m = torch.stack([first, 1 - first])
    coarse = m @ n.parts
    return coarse @ n.hessian @ coarse.T, m @ n.h_bar @ m.T


def rescale(n: Network) -> tuple[Tensor, Tensor]:
    """The derivatives of phi for the direction c u, signs fixed, against c^d times the tensors of u, for all orders d."""
    c = -1.5

    def phi(eta: Tensor) -> Tensor:
        return n.loss(n.theta - eta @ (c * n.parts))

    left = -grad(phi)(n.zero), hessian(phi)(n.zero), -jacfwd(hessian(phi))(n.zero)
    right = c * n.g_bar, c**2 * n.h_bar, c**3 * n.d3
    return torch.cat([t.flatten() for t in left]), torch.cat([t.flatten() for t in right])


def summary_tensors() -> Derivation:
    """From phi(eta) to g-bar, H-bar and D3, in nine lines.

    >>> all(summary_tensors().holds(seed=1))
    True
    """
    return Derivation(
        "The summary tensors",
        Network,
        [
            Line(
                r"\theta - \sum_s \eta_s u_s = \theta - U I_{P:S}\, \eta",
                r"\(u_s\) is \(u\) inside group \(s\) and zero elsewhere; \(U = \mathrm{Diag}(u)\), and \(I\) has a one where parameter \(p\) is in group \(s\).",
                lambda n: (n.theta - n.eta @ n.parts, n.theta - torch.diag(n.u) @ n.groups.T @ n.eta),
            ),
            Line(
                r"\frac{\partial \varphi}{\partial \eta_s}(\eta) = -\nabla L\Big(\theta - \sum_t \eta_t u_t\Big) \cdot u_s",
                r"The chain rule: the argument moves by \(-u_s\) per unit of \(\eta_s\).",
                lambda n: (grad(n.phi)(n.eta), -n.parts @ grad(n.loss)(n.theta - n.eta @ n.parts)),
            ),
            Line(
                r"\bar g_s := -\frac{\partial \varphi}{\partial \eta_s}(0) = \sum_{p \in T_s} \frac{\partial L}{\partial \theta_p} u_p = D L[u_s]",
                r"Set \(\eta = 0\). The sum runs over the group alone, since \(u_s\) vanishes elsewhere.",
                lambda n: (-grad(n.phi)(n.zero), n.groups @ (n.gradient * n.u)),
            ),
            Line(
                r"\bar H_{st} := \frac{\partial^2 \varphi}{\partial \eta_s \partial \eta_t}(0) = u_s^\top H u_t = D^2 L[u_s, u_t]",
                r"Differentiate once more: another factor \(-u_t\), and the two signs cancel.",
                lambda n: (hessian(n.phi)(n.zero), n.h_bar),
            ),
            Line(
                r"\bar H_{st} = \sum_{p \in T_t} \frac{\partial \bar g_s}{\partial \theta_p}\, u_p",
                r"The same sum, applied to \(\bar g_s\) instead of the loss: contraction. The direction \(u\) is held constant.",
                lambda n: (contract(n), n.h_bar),
            ),
            Line(
                r"D^3_{rst} := -\frac{\partial^3 \varphi}{\partial \eta_r \partial \eta_s \partial \eta_t}(0) = D^3 L[u_r, u_s, u_t]",
                r"A third factor \(-u_t\): the sign returns.",
                lambda n: (-jacfwd(hessian(n.phi))(n.zero), n.d3),
            ),
            Line(
                r"D^2 \varphi(0)[\eta, \eta] = \eta^\top \bar H \eta",
                r"Twice the second-order Taylor term of \(\varphi\), seen by differences of the loss alone, without any derivative.",
                second_difference,
                tolerance=1e-6,  # a difference quotient errs by eps L / h^2, about 1e-11, and by h^4
            ),
            Line(
                r"\bar H_{AB} = \sum_{s \in A} \sum_{t \in B} \bar H_{st}",
                r"Merged groups: \(u_A\) is the sum of its \(u_s\), and \(D^2 L\) is linear in each argument. Coarsening adds entries.",
                merge,
            ),
            Line(
                r"D^d L[c\,u_{s_1}, \dots, c\,u_{s_d}] = c^d\, D^d L[u_{s_1}, \dots, u_{s_d}], \qquad d = 1, 2, 3",
                r"Linear in each of its \(d\) arguments: one factor \(c\) from each. So the best \(\eta\) shrinks by \(c\), and the step stays.",
                rescale,
            ),
        ],
        sliders={"S": (4, 1, 2), "hidden": (4, 2, 8)},
    )
