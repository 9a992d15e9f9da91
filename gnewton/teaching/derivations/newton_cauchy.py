"""The derivation of Cauchy's and Newton's steps on a bowl, and of what the partition has to do with them.

Left sides are made of the quadratic's A and theta*; right sides of the loss and its automatic derivatives, or of the step
itself. (A. Cauchy, 1847; Wolinski, arXiv 2312.03885, section 3.)
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad, hessian

from gnewton.teaching.derivations.derivation import Derivation, Line


@dataclass
class Bowl:
    """L = 1/2 (theta - theta*)^T A (theta - theta*): A (P, P) with eigenvalues 1 to ``condition``, a start theta (P,), a
    direction u (P,) that is not the gradient, and its parts (S, P), row s inside group s and zero elsewhere."""

    seed: int
    condition: float = 10
    P: int = 4
    S: int = 2

    def __post_init__(self) -> None:
        draw = torch.Generator().manual_seed(self.seed)
        root, (self.theta, self.minimum, self.u) = (
            torch.randn(rows, self.P, generator=draw, dtype=torch.float64) for rows in (self.P, 3)
        )
        self.axes: Tensor = torch.linalg.qr(root).Q
        self.spectrum = torch.logspace(0, 1, self.P, base=self.condition, dtype=torch.float64)
        self.A: Tensor = self.axes @ self.spectrum.diag() @ self.axes.T
        groups = torch.eye(self.S, dtype=torch.float64).repeat_interleave(self.P // self.S, dim=1)
        self.parts: Tensor = groups * self.u
        self.eta = torch.randn(self.S, generator=draw, dtype=torch.float64)
        self.g: Tensor = grad(self.loss)(self.theta)

    def loss(self, theta: Tensor) -> Tensor:
        """L(theta)."""
        error = theta - self.minimum
        return torch.dot(error, self.A @ error) / 2

    def phi(self, eta: Tensor) -> Tensor:
        """L(theta - sum_s eta_s u_s)."""
        return self.loss(self.theta - eta @ self.parts)

    @property
    def cauchy(self) -> Tensor:
        """The rate of S = 1 along u = grad L."""
        return torch.div(self.g @ self.g, self.g @ self.A @ self.g)

    @property
    def g_bar(self) -> Tensor:
        """V^T grad L (S,)."""
        return self.parts @ self.g

    @property
    def h_bar(self) -> Tensor:
        """V^T A V (S, S)."""
        return self.parts @ self.A @ self.parts.T

    @property
    def rates(self) -> Tensor:
        """H-bar^-1 g-bar (S,)."""
        return torch.as_tensor(torch.linalg.solve(self.h_bar, self.g_bar))


def one_step(b: Bowl) -> tuple[Tensor, Tensor]:
    """The error along each eigenvector after a step of gradient descent."""
    rate = 1.5 / b.spectrum[-1]
    after = b.theta - rate * b.g
    return b.axes.T @ (after - b.minimum), (1 - rate * b.spectrum) * (b.axes.T @ (b.theta - b.minimum))


def parabola(b: Bowl) -> tuple[Tensor, Tensor]:
    """The loss along the gradient, at three rates."""
    rates = torch.tensor([-0.3, 0.1, 0.7], dtype=torch.float64)
    loss = torch.stack([b.loss(b.theta - rate * b.g) for rate in rates])
    return loss, b.loss(b.theta) - rates * (b.g @ b.g) + rates**2 / 2 * (b.g @ b.A @ b.g)


def orthogonal(b: Bowl) -> tuple[Tensor, Tensor]:
    """Pythagoras for the gradients before and after the step."""
    after = grad(b.loss)(b.theta - b.cauchy * b.g)
    return (after - b.g).square().sum(), after.square().sum() + b.g.square().sum()


def every_scalar(b: Bowl) -> tuple[Tensor, Tensor]:
    """The step of S = P for the direction u, against Newton's."""
    u = b.u.diag()
    return u @ torch.linalg.solve(u @ b.A @ u, u @ b.g), torch.linalg.solve(b.A, b.g)


def merge(b: Bowl) -> tuple[Tensor, Tensor]:
    """The rate of one group from the sums of the entries, against the minimum of the loss along u."""
    along = torch.zeros((), dtype=torch.float64)
    path = lambda t: b.loss(b.theta - t * b.u)  # noqa: E731
    return b.g_bar.sum() / b.h_bar.sum(), -grad(path)(along) / hessian(path)(along)


def newton_cauchy() -> Derivation:
    """From the parabola along a line to Newton's method, in nine lines.

    >>> all(newton_cauchy().holds(seed=1))
    True
    """
    return Derivation(
        "Cauchy's and Newton's steps",
        Bowl,
        [
            Line(
                r"q_i \cdot (\theta - \eta \nabla L - \theta^*) = (1 - \eta \lambda_i)\; q_i \cdot (\theta - \theta^*)",
                r"Gradient descent, seen along an eigenvector \(q_i\) of \(A\): \(\nabla L = A(\theta - \theta^*)\). The error grows where \(|1 - \eta\lambda_i| > 1\), and \(\lambda_{\max}\) is the first to do so. Checked for \(\eta = 1.5 / \lambda_{\max}\).",
                one_step,
            ),
            Line(
                r"L(\theta - \eta u) = L(\theta) - \eta\; u \cdot \nabla L + \tfrac12 \eta^2\; u^\top A u",
                r"Along a line, a quadratic is a parabola: its Taylor expansion ends at order two. Here \(u = \nabla L\), at three rates.",
                parabola,
            ),
            Line(
                r"\eta^*\; u^\top A u = u \cdot \nabla L \qquad \Rightarrow \qquad \eta^* = \bar g / \bar H",
                r"The lowest point, where the derivative by \(\eta\) vanishes: Cauchy's step, the Newton step with one group.",
                lambda b: (
                    b.cauchy * hessian(lambda t: b.loss(b.theta - t * b.g))(torch.zeros((), dtype=torch.float64)),
                    b.g @ b.g,
                ),
            ),
            Line(
                r"\lVert \nabla L_+ - \nabla L \rVert^2 = \lVert \nabla L_+ \rVert^2 + \lVert \nabla L \rVert^2, \qquad \nabla L_+ = \nabla L(\theta - \eta^* \nabla L)",
                r"At the lowest point of a line the new gradient has no part along it: the two are orthogonal (Pythagoras), and the path has right angles.",
                orthogonal,
            ),
            Line(
                r"L\Big(\theta - \sum_s \eta_s u_s\Big) = L(\theta) - \bar g \cdot \eta + \tfrac12\, \eta^\top \bar H \eta, \qquad \bar g = V^\top \nabla L, \quad \bar H = V^\top A V",
                r"Several groups: the same expansion with \(V = [u_1, \dots, u_S]\). From here on \(u\) is any direction.",
                lambda b: (b.phi(b.eta), b.loss(b.theta) - b.g_bar @ b.eta + b.eta @ b.h_bar @ b.eta / 2),
            ),
            Line(
                r"\nabla \varphi(\eta) = \bar H\, (\eta - \eta^*), \qquad \bar H \eta^* = \bar g",
                r"So \(\varphi\) is a bowl in \(S\) dimensions, with its minimum at the solution of \(S\) equations.",
                lambda b: (grad(b.phi)(b.eta), b.h_bar @ (b.eta - b.rates)),
            ),
            Line(
                r"L(\theta) - L(\theta - V \eta^*) = \tfrac12\, \bar g \cdot \eta^*",
                r"What the step gains: half of what the slope alone would promise. Splitting a group can only raise it, since \(\eta^*\) is then chosen from more.",
                lambda b: (b.loss(b.theta) - b.phi(b.rates), b.g_bar @ b.rates / 2),
            ),
            Line(
                r"\sum_s \bar g_s \Big/ \sum_{s, t} \bar H_{st} = \frac{u \cdot \nabla L}{u^\top A u}",
                r"Merged into one group, entries add up, and Cauchy's step is back.",
                merge,
            ),
            Line(
                r"U\, (U A U)^{-1}\, U\, \nabla L = A^{-1} \nabla L = \theta - \theta^*",
                r"Every coordinate a group: \(V = U = \mathrm{Diag}(u)\), which can be inverted where no entry of \(u\) vanishes, and cancels. One step to the minimum, whatever \(u\) and the condition number: Newton's method.",
                lambda b: (torch.stack(every_scalar(b)), (b.theta - b.minimum).expand(2, -1)),
            ),
        ],
        sliders={"condition": (10, 1, 100, 1000), "P": (4, 2, 8), "S": (2, 1)},
    )
