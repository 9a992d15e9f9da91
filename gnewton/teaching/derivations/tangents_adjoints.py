r"""The derivation of H-bar from tangents and adjoints, checked on a small network.

The network is its list of operations,  v = x W^T + b,  h = tanh v,  z = h C^T + c,  L = cross-entropy(z) . Left sides are made
of tangents, adjoints and single operations; right sides of plain automatic differentiation of the whole loss.
"""

from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, hessian, jacfwd

from gnewton.teaching.derivations.derivation import Derivation, Line
from gnewton.teaching.derivations.summary_tensors import Network


class Tape(Network):
    """The network of ``summary_tensors`` with its values v, h (6, 4), z (6, 2), their tangents (4, 6, ...), one along each u_s,
    and their adjoints."""

    def values(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(v, h, z) at theta (P,)."""
        w, b, weight, bias = self.split(theta)
        v = self.x @ w.T + b
        h = torch.tanh(v)
        return v, h, h @ weight.T + bias

    def split(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """W (4, 3), b (4,), C (2, 4), c (2,); stacked where theta (..., P) is."""
        w, b, weight, bias = torch.split(theta, self.sizes, dim=-1)
        return w.reshape(*w.shape[:-1], 4, 3), b, weight.reshape(*weight.shape[:-1], 2, 4), bias

    def last(self, z: Tensor) -> Tensor:
        """The last operation, the loss of the outputs z."""
        return F.cross_entropy(z, self.y)

    @cached_property
    def tangents(self) -> tuple[Tensor, Tensor, Tensor]:
        """v_s, h_s, z_s by the chain rule, operation by operation."""
        w, b, weight, bias = self.split(self.parts)
        _, h, _ = self.values(self.theta)
        v_s = self.x @ w.mT + b[:, None]
        h_s = (1 - h**2) * v_s
        return v_s, h_s, h_s @ self.split(self.theta)[2].T + h @ weight.mT + bias[:, None]

    @cached_property
    def adjoints(self) -> tuple[Tensor, Tensor, Tensor]:
        """lambda_v, lambda_h, lambda_z, from the last to the first."""
        _, h, z = self.values(self.theta)
        lambda_z = (F.softmax(z, 1) - F.one_hot(self.y, 2)) / len(z)
        lambda_h = lambda_z @ self.split(self.theta)[2]
        return lambda_h * (1 - h**2), lambda_h, lambda_z

    @cached_property
    def shares(self) -> tuple[Tensor, Tensor, Tensor]:
        """What tanh, the second product and the loss add to H-bar, (4, 4) each."""
        v_s, h_s, z_s = self.tangents
        _, lambda_h, lambda_z = self.adjoints
        _, h, z = self.values(self.theta)
        bend = lambda_h * -2 * h * (1 - h**2)
        cross = torch.einsum("ni,tij,snj->st", lambda_z, self.split(self.parts)[2], h_s)
        p = F.softmax(z, 1)
        centred = z_s - (p * z_s).sum(-1, keepdim=True)
        return (
            torch.einsum("ni,sni,tni->st", bend, v_s, v_s),
            cross + cross.T,
            torch.einsum("ni,sni,tni->st", p / len(z), centred, centred),
        )


def along(tape: Tape, eta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The values on the path theta + sum_s eta_s u_s."""
    return tape.values(tape.theta + eta @ tape.parts)


def all_of(tensors: tuple[Tensor, ...]) -> Tensor:
    """Several tensors as one list of numbers."""
    return torch.cat([t.flatten() for t in tensors])


def tangents(tape: Tape) -> tuple[Tensor, Tensor]:
    """The chain rule, against derivatives of the values along the path."""
    whole = jacfwd(lambda eta: along(tape, eta))(tape.zero)
    return all_of(tape.tangents), all_of(tuple(t.movedim(-1, 0) for t in whole))


def adjoints(tape: Tape) -> tuple[Tensor, Tensor]:
    """The chain rule backwards, against derivatives of the rest of the loss with respect to each value."""
    v, h, z = tape.values(tape.theta)
    _, _, weight, bias = tape.split(tape.theta)

    def rest(h: Tensor) -> Tensor:
        return tape.last(h @ weight.T + bias)

    return all_of(tape.adjoints), all_of((grad(lambda v: rest(torch.tanh(v)))(v), grad(rest)(h), grad(tape.last)(z)))


def first_order(tape: Tape) -> tuple[Tensor, Tensor]:
    """lambda_z . z_s, against g-bar."""
    return torch.einsum("ni,sni->s", tape.adjoints[2], tape.tangents[2]), tape.g_bar


def one_operation(tape: Tape) -> tuple[Tensor, Tensor]:
    """The second-order tangent of h by the chain rule, D o [v_st] + D^2 o [v_s, v_t], against the path's; here v_st = 0."""
    _, h, _ = tape.values(tape.theta)
    v_s = tape.tangents[0]
    second = -2 * h * (1 - h**2) * v_s[:, None] * v_s
    whole = jacfwd(jacfwd(lambda eta: along(tape, eta)[1]))(tape.zero)
    return second, whole.permute(2, 3, 0, 1)


def second_tangents(tape: Tape) -> tuple[Tensor, Tensor]:
    """h_st and z_st on the path, (4, 4, 6, ...)."""
    h, z = (jacfwd(jacfwd(lambda eta, i=i: along(tape, eta)[i]))(tape.zero).permute(2, 3, 0, 1) for i in (1, 2))
    return h, z


def telescope(tape: Tape) -> tuple[Tensor, Tensor]:
    """lambda_z . z_st, against lambda_h . h_st and the share of the second product."""
    h_st, z_st = second_tangents(tape)
    _, lambda_h, lambda_z = tape.adjoints
    left = torch.einsum("ni,stni->st", lambda_z, z_st)
    return left, torch.einsum("ni,stni->st", lambda_h, h_st) + tape.shares[1]


def activation(tape: Tape) -> tuple[Tensor, Tensor]:
    """X diag(lambda sigma'') X^T, against lambda_h . D^2 tanh [v_s, v_t] by automatic differentiation of tanh alone."""
    v, v_s, lambda_h = tape.values(tape.theta)[0], tape.tangents[0], tape.adjoints[1]
    alone = hessian(lambda eta: (lambda_h * torch.tanh(v + torch.tensordot(eta, v_s, 1))).sum())
    return tape.shares[0], alone(tape.zero)


def product(tape: Tape) -> tuple[Tensor, Tensor]:
    """lambda_z . (h_s C_t^T + h_t C_s^T), against the product alone."""
    h, h_s, lambda_z = tape.values(tape.theta)[1], tape.tangents[1], tape.adjoints[2]
    weight, weights = tape.split(tape.theta)[2], tape.split(tape.parts)[2]

    def path(eta: Tensor) -> Tensor:
        moved = (h + torch.tensordot(eta, h_s, 1)) @ (weight + torch.tensordot(eta, weights, 1)).T
        return torch.sum(lambda_z * moved)

    return tape.shares[1], hessian(path)(tape.zero)


def outputs(tape: Tape) -> tuple[Tensor, Tensor]:
    """The covariance of the tangents under the probabilities, against the loss of the outputs alone."""
    z, z_s = tape.values(tape.theta)[2], tape.tangents[2]
    return tape.shares[2], hessian(lambda eta: tape.last(z + torch.tensordot(eta, z_s, 1)))(tape.zero)


def tangents_adjoints() -> Derivation:
    """From the chain rule to H-bar without a nested backward pass, in nine lines.

    >>> all(tangents_adjoints().holds(seed=1))
    True
    """
    return Derivation(
        "H-bar from tangents and adjoints",
        Tape,
        [
            Line(
                r"y = o(x) \;\Rightarrow\; y_s = D o\,[x_s], \qquad v_s = x W_s^\top + b_s, \qquad h_s = \sigma'(v)\, v_s, \qquad z_s = h_s C^\top + h\, C_s^\top + c_s",
                r"Tangents: \(x_s\) is the derivative of \(x\) along \(u_s\). The chain rule, from the parameters (where \(\theta_s = u_s\)) to the loss.",
                tangents,
            ),
            Line(
                r"\lambda_x = D o^\top \lambda_y, \qquad \lambda_z = \nabla \ell(z),\;\; \lambda_h = \lambda_z C,\;\; \lambda_v = \lambda_h\, \sigma'(v)",
                r"Adjoints: \(\lambda_x\) is the derivative of the loss with respect to the value \(x\). The chain rule again, from the loss to the parameters: one backward pass.",
                adjoints,
            ),
            Line(
                r"\bar g_s = \lambda_z \cdot z_s",
                r"The tangent of the loss itself is its derivative along \(u_s\): order one is there already.",
                first_order,
            ),
            Line(
                r"y_{st} = D o\,[x_{st}] + D^2 o\,[x_s, x_t]",
                r"Differentiate \(y_s = D o\,[x_s]\) along \(u_t\): the argument moves, and so does the point where \(D o\) is taken. Checked for \(h = \tanh v\), where \(v_{st} = 0\).",
                one_operation,
            ),
            Line(
                r"\lambda_y \cdot y_{st} = \lambda_x \cdot x_{st} + \lambda_y \cdot D^2 o\,[x_s, x_t]",
                r"Pair with the adjoint: \(\lambda_y \cdot D o\,[x_{st}] = (D o^\top \lambda_y) \cdot x_{st}\). The same pairing stands on both sides, one operation apart, so that in the sum over all operations only the ends are left. Checked for \(z = h C^\top + c\).",
                telescope,
            ),
            Line(
                r"\bar H_{st} = \sum_o \lambda_o \cdot D^2 o\,[x_s, x_t]",
                r"At the loss end \(\lambda = 1\) and \(y_{st} = \bar H_{st}\); at the other end parameters move on straight lines, \(\theta_{st} = 0\). No second-order tangent remains. (For an operation with several inputs, \(x\) is all of them.)",
                lambda tape: (sum(tape.shares, torch.zeros_like(tape.h_bar)), tape.h_bar),
            ),
            Line(
                r"\lambda \cdot D^2 \sigma\,[v_s, v_t] = \sum_i \lambda_i\, \sigma''(v_i)\, v_{s,i}\, v_{t,i}",
                r"An activation acts number by number: with the tangents as rows of \(X\) it is one product, \(X\, \mathrm{Diag}(\lambda \sigma'')\, X^\top\). A linear operation has \(D^2 o = 0\) and adds nothing.",
                activation,
            ),
            Line(
                r"\lambda \cdot D^2 B\,[(h, C)_s, (h, C)_t] = \lambda \cdot \big( h_s C_t^\top + h_t C_s^\top \big)",
                r"A product of two values that both move: linear in each, so only the mixed terms are left. Here the group of \(C\) meets all groups upstream.",
                product,
            ),
            Line(
                r"\lambda \cdot D^2 \ell\,[z_s, z_t] = \tfrac1N \sum_n \mathrm{Cov}_{p_n}(z_{s,n}, z_{t,n}), \qquad p_n = \mathrm{softmax}(z_n)",
                r"Cross-entropy has the covariance of the softmax probabilities as its Hessian: a few numbers per sample, and positive semi-definite. Negative curvature comes from inside the network.",
                outputs,
            ),
        ],
    )
