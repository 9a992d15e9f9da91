r"""The derivation of one sample's exact Newton direction, checked on a small network.

Three layers,  z_l = W_l a_{l-1} + b_l,  a_l = tanh z_l,  L = cross-entropy(z_3)  of one sample. Left and right sides are made of the
layers' own quantities; wherever the whole Hessian is needed it is automatic differentiation's, and the Newton direction that
the lines are checked on is a dense solve with it. (The method after Mehouachi and Kasmi; the derivation is ours.)
"""

from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, hessian, jvp

from gnewton.teaching.derivations.derivation import Derivation, Line

LAYERS = 3


class OneSample:
    """x (4,), two hidden layers of ``hidden`` tanh units, 3 outputs; rho = ``damping``; U any direction, d the damped Newton one."""

    def __init__(self, seed: int, hidden: int = 3, damping: float = 5.0) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.widths, self.rho = (4, hidden, hidden, 3), damping
        self.shapes = [(n, m + 1) for m, n in zip(self.widths, self.widths[1:], strict=False)]
        sizes = [n * m for n, m in self.shapes]
        self.theta, self.U = torch.randn(2, sum(sizes), generator=draw, dtype=torch.float64)
        self.x, self.y = torch.randn(4, generator=draw, dtype=torch.float64), torch.tensor(seed % 3)

    def matrices(self, theta: Tensor) -> list[Tensor]:
        """[W_l | b_l] of every layer."""
        parts = torch.split(theta, [n * m for n, m in self.shapes])
        return [part.reshape(shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def states(self, theta: Tensor) -> list[Tensor]:
        """z_1, z_2, z_3."""
        z, a = [], self.x
        for V in self.matrices(theta):
            z.append(V[:, :-1] @ a + V[:, -1])
            a = torch.tanh(z[-1])
        return z

    def loss(self, theta: Tensor) -> Tensor:
        return F.cross_entropy(self.states(theta)[-1], self.y)

    @cached_property
    def z(self) -> list[Tensor]:
        return self.states(self.theta)

    @cached_property
    def a(self) -> list[Tensor]:
        """a_0 = x, a_1, a_2."""
        return [self.x, *(torch.tanh(z) for z in self.z[:-1])]

    @cached_property
    def W(self) -> list[Tensor]:
        return [V[:, :-1] for V in self.matrices(self.theta)]

    @cached_property
    def S(self) -> list[Tensor]:
        """tanh' of the hidden layers, as diagonal matrices."""
        return [torch.diag(1 - a**2) for a in self.a[1:]]

    @cached_property
    def C(self) -> Tensor:
        """The Hessian of the loss of the outputs, Diag(p) - p p^T."""
        p = F.softmax(self.z[-1], 0)
        return torch.diag(p) - torch.outer(p, p)

    @cached_property
    def delta(self) -> list[Tensor]:
        """The adjoints of z_1, z_2, z_3."""
        adjoints = [F.softmax(self.z[-1], 0) - F.one_hot(self.y, self.widths[-1])]
        for W, S in zip(self.W[:0:-1], self.S[::-1], strict=True):
            adjoints.insert(0, S @ W.T @ adjoints[0])
        return adjoints

    @cached_property
    def K(self) -> list[Tensor]:
        """tanh'' times the adjoints of a, of the hidden layers, as diagonal matrices."""
        backs = [W.T @ delta for W, delta in zip(self.W[1:], self.delta[1:], strict=True)]
        return [torch.diag(-2 * a * (1 - a**2) * back) for a, back in zip(self.a[1:], backs, strict=True)]

    @cached_property
    def alpha2(self) -> list[Tensor]:
        """|abar_{l-1}|^2."""
        return [a @ a + 1 for a in self.a]

    @cached_property
    def H(self) -> Tensor:
        dense: Tensor = hessian(self.loss)(self.theta)
        return dense

    @cached_property
    def g(self) -> Tensor:
        gradient: Tensor = grad(self.loss)(self.theta)
        return gradient

    @cached_property
    def d(self) -> Tensor:
        """-(H + rho)^{-1} g, by a dense solve."""
        direction: Tensor = torch.linalg.solve(self.H + self.rho * torch.eye(len(self.g), dtype=torch.float64), -self.g)
        return direction

    def changes(self, U: Tensor) -> list[Tensor]:
        """The first-order changes of z_1, z_2, z_3, by automatic differentiation."""
        return list(jvp(self.states, (self.theta,), (U,))[1])

    def input_changes(self, U: Tensor) -> list[Tensor]:
        """Those of a_0 (which is 0), a_1, a_2."""
        return [0 * self.x, *(S @ z for S, z in zip(self.S, self.changes(U), strict=False))]

    def costates(self, U: Tensor) -> list[Tensor]:
        """lambda_1, lambda_2, lambda_3 of a direction, from the last to the first."""
        moved, parts = self.changes(U), self.matrices(U)
        costates = [self.delta[-1] + self.C @ moved[-1]]
        for i in range(LAYERS - 1, 0, -1):
            pulled = self.W[i].T @ costates[0] + parts[i][:, :-1].T @ self.delta[i]
            costates.insert(0, self.K[i - 1] @ moved[i - 1] + self.S[i - 1] @ pulled)
        return costates

    def outer(self, U: Tensor, i: int) -> Tensor:
        """lambda abar^T + delta [adot; 0]^T of a layer."""
        abar = torch.cat([self.a[i], torch.ones_like(self.a[i][:1])])
        adot = torch.cat([self.input_changes(U)[i], torch.zeros_like(self.a[i][:1])])
        return torch.outer(self.costates(U)[i], abar) + torch.outer(self.delta[i], adot)

    # -- the sweep -----------------------------------------------------------------------------------------------

    @cached_property
    def backward(self) -> list[tuple[Tensor, ...]]:
        """(Q, h, A, F, M, m, P, h^a) of every layer, from the first to the last; F, M, P, h^a are of no use in the first."""
        layers: list[tuple[Tensor, ...]] = []
        Q, h = self.C, self.delta[-1]
        for i in range(LAYERS - 1, -1, -1):
            ratio = self.alpha2[i] / self.rho
            A = torch.eye(len(h), dtype=h.dtype) + ratio * Q
            F = self.W[i] - torch.outer(self.delta[i], self.a[i]) / self.rho
            M, m = torch.linalg.solve(A, F), torch.linalg.solve(A, -ratio * h)
            P = F.T @ Q @ M - self.delta[i] @ self.delta[i] / self.rho * torch.eye(len(F.T), dtype=h.dtype)
            pulled = F.T @ (Q @ m + h)
            layers.insert(0, (Q, h, A, F, M, m, P, pulled))
            if i:
                Q, h = self.S[i - 1] @ P @ self.S[i - 1] + self.K[i - 1], self.S[i - 1] @ pulled
        return layers

    @cached_property
    def sweep(self) -> Tensor:
        """The direction (P,) of the forward sweep."""
        parts, adot = [], torch.zeros_like(self.x)
        for i, (Q, h, _, _, M, m, _, _) in enumerate(self.backward):
            zdot = M @ adot + m if i else m
            bar = torch.cat([self.a[i], torch.ones_like(adot[:1])])
            U = torch.outer(Q @ zdot + h, bar) + torch.outer(self.delta[i], torch.cat([adot, 0 * adot[:1]]))
            parts.append(-U.flatten() / self.rho)
            adot = self.S[i] @ zdot if i < LAYERS - 1 else zdot
        return torch.cat(parts)


def tangents(one: OneSample) -> tuple[Tensor, Tensor]:
    """The chain rule, layer by layer, against automatic differentiation."""
    moved, zdot = [], torch.zeros_like(one.x)
    for i, U in enumerate(one.matrices(one.U)):
        before = one.S[i - 1] @ zdot if i else zdot
        zdot = U[:, :-1] @ one.a[i] + U[:, -1] + one.W[i] @ before
        moved.append(zdot)
    return torch.cat(moved), torch.cat(one.changes(one.U))


def slope(one: OneSample) -> tuple[Tensor, Tensor]:
    return one.delta[-1] @ one.changes(one.U)[-1], one.g @ one.U


def quadratic_form(one: OneSample) -> tuple[Tensor, Tensor]:
    """The layers' three kinds of terms, against U.HU of the dense Hessian."""
    moved, parts, inputs = one.changes(one.U), one.matrices(one.U), one.input_changes(one.U)
    own = sum(z @ K @ z for z, K in zip(moved, one.K, strict=False))
    mixed = sum(2 * one.delta[i] @ parts[i][:, :-1] @ inputs[i] for i in range(1, LAYERS))
    return moved[-1] @ one.C @ moved[-1] + own + mixed, one.U @ one.H @ one.U


def derivative_of_the_model(one: OneSample) -> tuple[Tensor, Tensor]:
    """lambda abar^T + delta [adot; 0]^T of every layer, against H U + g."""
    return torch.cat([one.outer(one.U, i).flatten() for i in range(LAYERS)]), one.H @ one.U + one.g


def rank_two(one: OneSample) -> tuple[Tensor, Tensor]:
    """The same at the Newton direction, where the damped model is stationary, against d."""
    return torch.cat([-one.outer(one.d, i).flatten() / one.rho for i in range(LAYERS)]), one.d


def last_costate(one: OneSample) -> tuple[Tensor, Tensor]:
    """What the last layer's part of d says of lambda_3, times abar, against Q zdot + h."""
    V, delta, a = one.matrices(one.d)[-1], one.delta[-1], one.a[-1]
    costate = -(one.rho * (V[:, :-1] @ a + V[:, -1]) + delta * (a @ one.input_changes(one.d)[-1])) / one.alpha2[-1]
    Q, h = one.backward[-1][:2]
    return costate, Q @ one.changes(one.d)[-1] + h


def pivots(one: OneSample) -> tuple[Tensor, Tensor]:
    """A zdot of the later layers, against F adot - alpha^2 / rho h, both at d."""
    left, right = [], []
    for i in range(1, LAYERS):
        _, h, A, F, *_ = one.backward[i]
        left.append(A @ one.changes(one.d)[i])
        right.append(F @ one.input_changes(one.d)[i] - one.alpha2[i] / one.rho * h)
    return torch.cat(left), torch.cat(right)


def eliminate(one: OneSample) -> tuple[Tensor, Tensor]:
    """What the later layers pull back onto a, against P adot + h^a, both at d."""
    left, right = [], []
    for i in range(1, LAYERS):
        *_, P, pulled = one.backward[i]
        back = one.W[i].T @ one.costates(one.d)[i] + one.matrices(one.d)[i][:, :-1].T @ one.delta[i]
        left.append(back)
        right.append(P @ one.input_changes(one.d)[i] + pulled)
    return torch.cat(left), torch.cat(right)


def earlier_costates(one: OneSample) -> tuple[Tensor, Tensor]:
    """lambda of the hidden layers, against Q zdot + h with the Q and h of the recursion, at d."""
    right = [one.backward[i][0] @ one.changes(one.d)[i] + one.backward[i][1] for i in range(LAYERS - 1)]
    return torch.cat(one.costates(one.d)[:-1]), torch.cat(right)


def first_layer(one: OneSample) -> tuple[Tensor, Tensor]:
    """A_1^{-1} (-alpha^2 / rho h_1), against zdot_1 at d."""
    return one.backward[0][5], one.changes(one.d)[0]


def determinant(one: OneSample) -> tuple[Tensor, Tensor]:
    """det(1 + H / rho) of the dense Hessian, against the product of the pivots' determinants."""
    whole = torch.linalg.det(torch.eye(len(one.g), dtype=torch.float64) + one.H / one.rho)
    return torch.stack([torch.linalg.det(pivot[2]) for pivot in one.backward]).prod(), whole


def one_sample_sweep() -> Derivation:
    """From the Lagrangian of the Newton model to a sweep through the layers, in twelve lines.

    >>> all(one_sample_sweep().holds(seed=1))
    True
    """
    return Derivation(
        "One sample's Newton direction by a sweep through the layers",
        OneSample,
        [
            Line(
                r"\dot z_l = U_l\, \bar a_{l-1} + W_l\, \dot a_{l-1}, \qquad \dot a_l = S_l\, \dot z_l, \quad \dot a_0 = 0",
                r"Move the weights along \(U\): the chain rule gives the changes of the states, layer by layer. \(\bar a\) is \(a\) with a 1 for the bias, \(S_l\) the slopes \(\sigma'(z_l)\) on a diagonal.",
                tangents,
            ),
            Line(
                r"DL[U] = \delta_L \cdot \dot z_L",
                r"The loss sees the weights through the outputs alone; \(\delta_L\) is its gradient there.",
                slope,
            ),
            Line(
                r"U \cdot H U = \dot z_L^\top C_L\, \dot z_L + \sum_{l<L} \dot z_l^\top K_l\, \dot z_l + 2 \sum_{l \ge 2} \delta_l^\top U_l\, [\dot a_{l-1}; 0]",
                r"Curvature has three sources: the loss (\(C_L\)), the activations (\(K_l = \mathrm{Diag}(\sigma''(z_l)\, \beta_l)\), \(\beta_l\) the adjoint of \(a_l\)), and the products of weights with states that both move.",
                quadratic_form,
            ),
            Line(
                r"(H U + g)_l = \lambda_l\, \bar a_{l-1}^\top + \delta_l\, [\dot a_{l-1}; 0]^\top, \qquad \lambda_L = C_L \dot z_L + \delta_L, \qquad \lambda_l = K_l \dot z_l + S_l (W_{l+1}^\top \lambda_{l+1} + U_{l+1}^\top \delta_{l+1})",
                r"Differentiate the model \(DL[U] + \tfrac12 U \cdot HU\) with line 1 as a constraint. Its multipliers \(\lambda_l\), the costates, obey the backward recursion: stationarity in \(\dot z_l\). (In \(U_{l+1}^\top \delta_{l+1}\) the bias column does not count.)",
                derivative_of_the_model,
            ),
            Line(
                r"d_l = -\tfrac1\rho \big( \lambda_l\, \bar a_{l-1}^\top + \delta_l\, [\dot a_{l-1}; 0]^\top \big)",
                r"Stationarity in \(U_l\) itself: \((H + \rho)\, d = -g\). So the Newton direction of one sample has rank two in every layer, however large the layer is. What is left to find is \(\lambda\) and \(\dot z\).",
                rank_two,
            ),
            Line(
                r"\lambda_L = Q_L\, \dot z_L + h_L, \qquad Q_L = C_L, \quad h_L = \delta_L",
                r"The costate is an affine function of the state: true at the end. Checked from the other side, by line 5 times \(\bar a_{L-1}\).",
                last_costate,
            ),
            Line(
                r"A_l\, \dot z_l = F_l\, \dot a_{l-1} - \tfrac{\alpha_l^2}{\rho} h_l, \qquad A_l = I + \tfrac{\alpha_l^2}{\rho} Q_l, \qquad F_l = W_l - \tfrac1\rho \delta_l\, a_{l-1}^\top",
                r"Put line 5 and \(\lambda_l = Q_l \dot z_l + h_l\) into line 1, with \(\alpha_l = |\bar a_{l-1}|\): a system of the size of one layer. So \(\dot z_l = M_l\, \dot a_{l-1} + m_l\), with \(M_l = A_l^{-1} F_l\) and \(m_l = -\tfrac{\alpha_l^2}{\rho} A_l^{-1} h_l\).",
                pivots,
            ),
            Line(
                r"W_l^\top \lambda_l + d_l^\top \delta_l = P_l\, \dot a_{l-1} + F_l^\top (Q_l m_l + h_l), \qquad P_l = F_l^\top Q_l M_l - \tfrac{|\delta_l|^2}{\rho} I",
                r"Everything behind \(a_{l-1}\) is eliminated: what it pulls back is affine in \(\dot a_{l-1}\) again. (In \(d_l^\top \delta_l\) the bias column does not count.)",
                eliminate,
            ),
            Line(
                r"\lambda_{l-1} = Q_{l-1}\, \dot z_{l-1} + h_{l-1}, \qquad Q_{l-1} = S_{l-1} P_l S_{l-1} + K_{l-1}, \qquad h_{l-1} = S_{l-1} F_l^\top (Q_l m_l + h_l)",
                r"Lines 4 and 8 together: the costate of the layer before is affine in its state, so the induction goes on. It is a Riccati recursion, as in optimal control.",
                earlier_costates,
            ),
            Line(
                r"\dot z_1 = -\tfrac{\alpha_1^2}{\rho} A_1^{-1} h_1",
                r"The input does not move, \(\dot a_0 = 0\): the first layer needs its own small system alone, however many inputs there are.",
                first_layer,
            ),
            Line(
                r"d = -(H + \rho)^{-1} g",
                r"Forward again with \(\dot z_l = M_l\, \dot a_{l-1} + m_l\) and line 5. Left: the sweep, \(O(\sum n_l^3)\). Right: a dense solve, \(O(P^3)\).",
                lambda one: (one.sweep, one.d),
            ),
            Line(
                r"\det\!\big(I + H / \rho\big) = \prod_l \det A_l",
                r"The sweep is an elimination, so the pivots \(A_l\) know the sign of every eigenvalue of \(H + \rho\): it is positive definite exactly where all of them are. Counting their negative eigenvalues counts those of \(H\) below \(-\rho\).",
                determinant,
                tolerance=1e-9,
            ),
        ],
        sliders={"hidden": (3, 2, 6), "damping": (5.0, 0.5, 50.0)},
    )
