r"""The minimum of m(η) = -g·η + ηᵀ H η / 2 + λ ‖D η‖³ / 6 on float64 arrays, with a certificate.

η minimizes m iff, with σ = λ ‖D η‖ / 2, (H + σ D²) η = g and H + σ D² is positive semi-definite (Nesterov and Polyak
2006). In eigenvectors this is one *secular* equation for σ. The eigenvalues κ of K = D⁻¹ H D⁻¹ enter as
μ = 1 / (κ + centre), those of D² against a positive definite H + centre D²: then ker(D) is simply μ = 0, and where D spans
many decades it is the huge κ that lose digits, not the small ones that decide the step.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
EPS = float(np.finfo(np.float64).eps)


class NoMinimum(Exception):
    """m goes down for ever along `directions` (S, n), in which `.groups` (S,) bool take part."""

    def __init__(self, directions: Array, reason: str) -> None:
        U = np.abs(directions)
        self.groups, self.reason = (0.1 * U.max(0) < U).any(1), reason


class Problem(NamedTuple):
    """g (S,), H (S, S) symmetric, the diagonal d (S,) >= 0 of D, and λ >= 0."""

    g: Array
    H: Array
    d: Array
    cubic: float

    def bug(self, what: str) -> ArithmeticError:
        return ArithmeticError(f"newton_step found no certified step ({what}); please report this: {self._asdict()}")


class Minimum(NamedTuple):
    eta: Array
    decrease: float
    hard: bool


def in_units(p: Problem) -> tuple[Problem, int, int, int]:
    """The problem with its largest numbers near 1, and log2 of the units of step and curvature.

    g and cubic may remain as small as 2^-400, safe to square; the last number is what cubic lost in being raised to that.
    """
    a, h, b = (int(np.frexp(np.abs(x).max())[1]) for x in (p.g, p.H, p.d))
    mantissa, c = math.frexp(p.cubic)
    if not (p.cubic and p.d.any()):
        return p._replace(g=np.ldexp(p.g, -a), H=np.ldexp(p.H, -h)), a - h, h, 0
    c += 3 * b
    alone = (c + a + 1) // 2  # the curvature that the cubic term has by itself
    h = alone if not p.H.any() else max(h, alone) if p.g.any() else h
    unit = min(max(a - h, h - c - 400), a - h + 400) if p.g.any() else h - c
    lost = max(0, h - c - unit - 400)
    cubic = math.ldexp(mantissa, c + unit - h + lost)
    g, H, d = np.ldexp(p.g, -h - unit), np.ldexp(p.H, -h), np.ldexp(p.d, -b)
    return Problem(g, H, d, cubic), unit, h, lost


def stationary_point(p: Problem) -> tuple[Array, bool]:
    """η = H⁻¹ g, of least norm where H is singular, and whether H has negative curvature; raises `NoMinimum`."""
    e, kappa, V, null = _spectrum(p.H)
    _refuse(p.g, e[:, None] * V[:, null], kappa[~null], "a gradient out of the range of the singular Hessian")
    X, kappa, eta = e[:, None] * V[:, ~null], kappa[~null], np.zeros_like(p.g)
    for _ in range(4):  # each exact residual gains the digits that the condition number left
        eta = eta + X @ ((X.T @ _residual(p.g, p.H, eta)) / kappa)
    return eta, bool((kappa < 0).any())


def _spectrum(H: Array) -> tuple[Array, Array, Array, NDArray[np.bool_]]:
    """e, eigenvalues and eigenvectors of e H e, whose rows are all of size 1, and which eigenvalues are rounding."""
    A = np.abs(H)
    size = np.where(np.diagonal(A) > 0, np.diagonal(A), A.max(1))
    e = np.where(size > 0, size, 1.0) ** -0.5
    for _ in range(60):
        rows = (A * np.outer(e, e)).max(1)
        if ((rows < 2) & (rows > 0.5) | (rows == 0)).all():
            break
        e = e / np.sqrt(np.where(rows > 0, rows, 1.0))
    kappa, V = np.linalg.eigh(H * np.outer(e, e))
    return e, kappa, V, np.abs(kappa) <= 8 * len(H) * EPS * np.abs(kappa).max()


def _refuse(rows: Array, U: Array, kappa: Array, reason: str) -> None:
    """Raise where rows (S,) or (n, S) do not vanish along a null vector, known to EPS over the gap of the spectrum."""
    gap = np.abs(kappa).min() / np.abs(kappa).max() if len(kappa) else 1.0
    tolerance = min(64 * len(U) * EPS / gap, 1e-6)
    leaves = np.atleast_2d(np.abs(rows @ U) > tolerance * (np.abs(rows) @ np.abs(U))).any(0)
    if leaves.any():
        raise NoMinimum(U[:, leaves], reason)


def _residual(g: Array, H: Array, eta: Array) -> Array:
    """g - H eta as if in twofold precision: products are split without error (Dekker 1971), and summed exactly."""
    product = H * eta
    (a, b), (c, d) = _halves(H), _halves(eta)
    error = ((a * c - product) + a * d + b * c) + b * d
    return np.array(
        [math.fsum(row) for row in np.hstack([g[:, None], -product, -error.sum(1, keepdims=True)]).tolist()]
    )


def _halves(x: Array) -> tuple[Array, Array]:
    high = 134217729.0 * x
    high = high - (high - x)
    return high, x - high


def cubic_minimum(p: Problem) -> Minimum:
    """The global minimizer of m; raises `NoMinimum` where there is none.

    H must not have a row of zeros where d is zero, and all numbers must be near 1 or negligible (`in_units`).
    """
    closed = p._replace(H=_close_kernel(p))
    if not p.g.any() and _is_psd(p.H, np.zeros_like(p.g)):
        return Minimum(np.zeros_like(p.g), 0.0, False)
    basis: _Basis | None = _first_basis(closed)
    # A centre far from sigma, or close to the pole, costs digits; each round gains ten decades of distance.
    for _ in range(40):
        if basis is None:
            break
        best, point = basis, _secular(p, basis)
        if basis.centre <= 16 * point.sigma <= 256 * basis.centre and basis.centre * basis.mu[-1] <= 16:
            break
        basis = _basis(closed, max(1.5 * point.sigma, 1e-10 * basis.centre))
    return _polish(p, best, point)


def _close_kernel(p: Problem) -> Array:
    """H with curvature added along the null vectors of its ker(D) block; raises where m is unbounded.

    Legal because nothing couples to these vectors, so that the minimizer has no component along them.
    """
    k = p.d == 0
    if not k.any():
        return p.H
    e, kappa, V, null = _spectrum(p.H[k][:, k])
    U, W = np.zeros((2, len(k), len(e)))
    U[k], W[k] = V * e[:, None], V / e[:, None]
    if (kappa[~null] < 0).any():
        raise NoMinimum(W[:, ~null & (kappa < 0)], "negative curvature and no third derivative")
    _refuse(p.g, U[:, null], kappa[~null], "a gradient, but neither curvature nor third derivative")
    _refuse(p.H[~k], U[:, null], kappa[~null], "coupled to other groups, but neither curvature nor third derivative")
    return p.H + W[:, null] @ W[:, null].T


def _is_psd(H: Array, shift: Array) -> bool:
    """H + Diag(shift), shift >= 0, is positive semi-definite to within the rounding of its diagonal."""
    size = np.abs(np.diagonal(H)) + shift
    e = np.where(size > 0, size, 1.0) ** -0.5
    A = H + np.diag(shift + 32 * len(H) * EPS * size + (size == 0))
    return not H[size == 0].any() and _cholesky(A * np.outer(e, e)) is not None


def _cholesky(A: Array) -> Array | None:
    try:
        return np.asarray(np.linalg.cholesky(A), dtype=np.float64)
    except np.linalg.LinAlgError:
        return None


class _Basis(NamedTuple):
    """X with Xᵀ (H + centre D²) X = I and Xᵀ D² X = Diag(mu), mu ascending; scale (S,) is the size of a group's rate."""

    centre: float
    X: Array
    mu: Array
    scale: Array


def _basis(p: Problem, centre: float) -> _Basis | None:
    """The basis, or None where H + centre D² is not positive definite."""
    P = p.H + np.diag(centre * p.d**2)
    e = np.diagonal(P) ** -0.5
    if not np.isfinite(e).all() or (L := _cholesky(P * np.outer(e, e))) is None:
        return None
    Y = np.linalg.inv(L) * e
    mu, V = np.linalg.eigh((Y * p.d) @ (Y * p.d).T)
    return _Basis(centre, Y.T @ V, np.maximum(mu, 0.0), e)


def _first_basis(p: Problem) -> _Basis:
    """Centred near the sigma of diag(H), which is exact where groups do not interact, else above all of |K|."""
    r = p.d > 0
    k, q = np.diagonal(p.H)[r] / p.d[r] ** 2, 2 * p.cubic * np.abs(p.g[r]) / p.d[r]
    t = np.sqrt(k * k + q) + np.abs(k)
    alone = 1.5 * np.where(k > 0, q / t / 2, t / 2).max(initial=0.0)
    if (basis := _basis(p, float(alone))) is not None:
        return basis
    bound = len(r) * (np.abs(p.H[r][:, r]) / np.outer(p.d[r], p.d[r])).max(initial=0.0) or 1.0
    for n in range(60):
        if (basis := _basis(p, float(bound * 1e3**n))) is not None:
            return basis
    raise p.bug("no positive definite H + centre D²")


class _Point(NamedTuple):
    """In a basis: sigma, the diagonal a of H + sigma D², the step y."""

    sigma: float
    a: Array
    y: Array
    hard: bool


def _secular(p: Problem, basis: _Basis) -> _Point:
    """Solve λ ‖D η(sigma)‖ = 2 sigma in theta = sigma - base >= 0, base = max(0, -kappa_min).

    All terms of a = A + mu theta are positive: nothing cancels near the pole, where sigma itself would lose ten digits.
    """
    mu, top, c = basis.mu, basis.mu[-1], basis.X.T @ p.g
    base = max(0.0, basis.centre - 1 / top) if top else 0.0
    A = 1 - mu / top if base else 1 - basis.centre * mu
    noise = 64 * len(mu) * EPS
    low = noise - A >= 0
    c[low & (np.abs(c) <= noise * (np.abs(basis.X.T) @ np.abs(p.g)))] = 0
    n = c != 0
    theta = _root(A[n], mu[n], p.cubic / 2 * np.abs(c[n]) * np.sqrt(mu[n]), base)
    a, y = A + mu * theta, np.zeros_like(c)
    y[n] = c[n] / a[n]
    missing = (2 * base / p.cubic) ** 2 - float(mu @ (y * y))
    hard = theta == 0 < base and missing > 0
    if hard:
        v = basis.X[:, -1] / basis.scale
        y[-1] = math.copysign(math.sqrt(missing / top), v[np.abs(v) > 1e-8 * np.abs(v).max()][0])
    return _Point(base + theta, a, y, hard)


def _root(A: Array, mu: Array, q: Array, base: float) -> float:
    """The theta >= 0 where ‖q / (A + mu theta)‖ = base + theta, or 0.

    The largest root of a single term is a lower bound in closed form; 1/‖·‖ - 1/(base + theta) is concave and increasing,
    so that Newton's method needs no safeguard from there.
    """
    spread = np.sqrt((A - mu * base) ** 2 + 4 * mu * q)
    theta = float((2 * (q - A * base) / (A + mu * base + spread)).max(initial=0.0))
    for _ in range(200):
        z = q / (A + mu * theta)
        psi, sigma = math.hypot(*z), base + theta
        if psi == 0 or sigma == 0:
            break
        ratio, z = sigma / psi, z / psi
        new = theta + sigma * (1 - ratio) / (1 + ratio * sigma * float(z * z @ (mu / (A + mu * theta))))
        if not new > theta * (1 + 4 * EPS):
            break
        theta = new
    return theta


def _polish(p: Problem, basis: _Basis, point: _Point) -> Minimum:
    """Newton's method on m with exact residuals until nothing is left to gain; accepted where H + sigma D² is psd.

    What is left to gain is residualᵀ N⁻¹ residual / 2, N = the second derivative of m in the basis. Where rounding could
    be seen in N, it is projected exactly.
    """
    X, metric, eta, best = basis.X, p.d**2, basis.X @ point.y, (math.inf, point.y, 0.0, 0.0)
    unsure = point.a < 1e6 * EPS * ((X / basis.scale[:, None]) ** 2).sum(0)
    for _ in range(100):
        r = math.hypot(*(p.d * eta))
        sigma = p.cubic * r / 2
        residual = _residual(p.g, p.H, eta) - sigma * metric * eta
        decrease = math.fsum((p.g + residual) * eta) / 2 + sigma * r**2 / 6
        f = X.T @ residual
        y, V = _ratio(f, point.a), np.eye(len(f))
        if unsure.any() or not f @ y <= 1e-16 * decrease:
            nu, V = np.linalg.eigh(_second_derivative(p, X, point.a, unsure, eta))
            # Rounding of sigma D² is all that is left in the flat directions of a repeated lowest curvature.
            f = V.T @ f
            y = _ratio(f, np.maximum(nu, EPS * nu[-1] * min(1.0, sigma / basis.centre if basis.centre else 1.0)))
        gain = float(f @ y) / 2 / decrease if decrease > 0 else math.inf
        if gain < best[0]:
            best = (gain, eta, sigma, decrease)
        if gain < 1e-14:
            break
        eta = eta + X @ (V @ y)
    gain, eta, sigma, decrease = best
    if not (gain <= 1e-10 and _is_psd(p.H, sigma * metric)):
        raise p.bug(f"{gain:.1e} of the decrease may be missing")
    return Minimum(eta, decrease, point.hard)


def _second_derivative(p: Problem, X: Array, a: Array, unsure: Array, eta: Array) -> Array:
    """Xᵀ (H + sigma D² + (λ / 2r) D² eta etaᵀ D²) X: a is the diagonal of its first part, exact rows replace the unsure ones."""
    metric, r = p.d**2, math.hypot(*(p.d * eta))
    sigma, z, N = p.cubic * r / 2, X.T @ (metric * eta), np.diag(a)
    for j in np.flatnonzero(unsure):
        N[j] = N[:, j] = X.T @ (sigma * metric * X[:, j] - _residual(0 * p.g, p.H, X[:, j]))
    second: Array = N + np.outer(z, z) * (p.cubic / (2 * r) if r else 0.0)
    return second


def _ratio(f: Array, a: Array) -> Array:
    """f / a, and 0 where f is 0."""
    return np.divide(f, a, out=np.zeros_like(f), where=f != 0)
