r"""The Newton step from a summary: η = H̄⁻¹ ḡ, or its cubic-regularized form.

With D = Diag(|D3_sss|^(1/3)) the cubic step is the global minimizer of

    m(η) = - ḡ·η + 1/2 ηᵀ H̄ η + λ/6 ‖D η‖³,        λ = ``cubic``,

which is characterised by σ = λ ‖D η‖ / 2,  (H̄ + σ D²) η = ḡ  and  H̄ + σ D² positive semi-definite
(Nesterov and Polyak 2006; the metric D is Wolinski's, arXiv 2312.03885, section 4).

With K = D⁻¹ H̄ D⁻¹ and its eigenvalues κ this is one *secular* equation in σ. Here the eigenvectors come from the
pencil (D², H̄ + σ₁ D²) of a positive definite member, whose eigenvalues are μ = 1 / (κ + σ₁): ker(D) is simply
μ = 0, and where D spans many decades it is the huge κ that lose digits, not the small ones that decide the step.
"""

import math
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from gnewton.summary import Summary

Array = NDArray[np.float64]
EPS = float(np.finfo(np.float64).eps)


class Status(Enum):
    """How a Newton step ended; the value is a sentence of help, `.ok` says whether the step can be used."""

    CONVERGED = "the global minimum of the model, with a certificate"
    HARD_CASE = (
        "the global minimum of the model; the gradient has no component along the lowest curvature, so a step and its "
        "mirror image are equally good, and the one whose first non-zero component is positive was taken"
    )
    SADDLE = (
        "the stationary point of the quadratic model, but not its minimum: the Hessian has negative curvature. "
        "Newton's method as defined; use cubic > 0 for a step that goes down"
    )
    STATIONARY = "the gradient is zero and the Hessian has no negative curvature: nothing to do, the step is zero"
    UNBOUNDED = (
        "the model has no minimum: it goes down for ever along some groups. Causes: (a) piecewise affine networks "
        "(ReLU with a squared error): the third derivative vanishes and with it the cubic term; use tanh, ELU or "
        "softplus, or a cross-entropy loss; (b) cubic = 0 with a singular Hessian; (c) a gradient along a direction "
        "without curvature. A ridge > 0 helps in all of them"
    )
    NOT_FINITE = (
        "a NaN or an infinity in the summary, or a step beyond the range of float64. Causes: a diverged training, "
        "float16 overflow, a derivative that does not exist at this point"
    )

    @property
    def ok(self) -> bool:
        """True where the step can be taken."""
        return self not in (Status.UNBOUNDED, Status.NOT_FINITE)


@dataclass(frozen=True, eq=False)
class Step:
    """What `newton_step` found: one learning rate per group, and what is known about it.

    learning_rates: η, (S,) float64 on the CPU; all zero where `status.ok` is False.
    status: a `Status`.
    radius: ‖D η‖, unchanged by a change of scale of a layer; NaN without the order-3 summary.
    predicted_decrease: -m(η), in units of the loss.
    message: the status' help and, where a group is to blame, its name.
    """

    learning_rates: torch.Tensor
    status: Status
    radius: float
    predicted_decrease: float
    message: str

    def __repr__(self) -> str:
        rates = ", ".join(f"{rate:.3g}" for rate in self.learning_rates[:8].tolist())
        more = ", ..." if len(self.learning_rates) > 8 else ""
        return f"Step({self.status.name}, learning_rates=[{rates}{more}], decrease={self.predicted_decrease:.3g})"


class NewtonStepError(RuntimeError):
    """The model has no minimum or the summary is not finite; `.step` is the `Step` with all rates zero."""

    def __init__(self, step: Step) -> None:
        super().__init__(step.message)
        self.step = step


def newton_step(
    summary: "Summary",
    cubic: float = 1.0,
    ridge: float = 0.0,
    diagonal: bool = False,
    on_failure: Literal["raise", "report"] = "raise",
) -> Step:
    """The learning rate of every group that minimizes the local model of the loss.

    summary: ḡ `.gradient` (S,), H̄ `.hessian` (S, S) symmetric, and for cubic > 0 `.third` (S,), the diagonal of D3;
        real tensors of any dtype and device. The solver works in float64 on the CPU.
    cubic: λ >= 0. 0 is Newton's step η = H̄⁻¹ ḡ; above it, the global minimizer of
        m(η) = -ḡ·η + ηᵀH̄η/2 + λ‖Dη‖³/6 with D = Diag(|third|^(1/3)) (arXiv 2312.03885, "Method 1").
    ridge: >= 0, added to the diagonal of H̄.
    diagonal: use only the diagonal of H̄.
    on_failure: "raise" a `NewtonStepError` for the statuses that are not ok, or "report" the `Step`, whose learning
        rates are then zero.

    Where H̄ is singular but m has a minimum, the solution with the least Σ_s H̄_ss η_s² is returned, so frozen,
    unused and zero-direction groups (rows of zeros) get 0. Every threshold is relative or exactly zero: rescaling a
    group rescales its learning rate and changes nothing else.

    Raises ValueError (TypeError for what is not a number) where an argument or a shape is wrong.

    >>> import torch, gnewton as gn
    >>> summary = gn.Summary.from_tensors(gradient=torch.tensor([1.0, 4.0]), third=torch.tensor([1.0, 8.0]),
    ...                                   hessian=torch.tensor([[1.0, 6.0], [6.0, 16.0]]))
    >>> gn.newton_step(summary, cubic=0.0)
    Step(SADDLE, learning_rates=[0.4, 0.1], decrease=0.4)
    >>> step = gn.newton_step(summary, cubic=1.0)
    >>> step.status, bool(step.predicted_decrease > 0.4)
    (<Status.CONVERGED: 'the global minimum of the model, with a certificate'>, True)
    """
    for name, value in (("cubic", cubic), ("ridge", ridge)):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be a finite number >= 0, got {value!r}")
    if on_failure not in ("raise", "report"):
        raise ValueError(f'on_failure must be "raise" or "report", got {on_failure!r}')
    g, H, third, names = _read(summary, third_needed=cubic > 0)
    if diagonal:
        H = np.diag(np.diagonal(H))
    d = None if third is None else np.cbrt(np.abs(third))
    bad = ~(np.isfinite(g) & np.isfinite(H).all(1) & (True if d is None or not cubic else np.isfinite(d)))
    if bad.any():
        outcome = _fail(Status.NOT_FINITE, bad, "a derivative that is not finite")
    else:
        H = (H + H.T) / 2 + ridge * np.eye(len(g))
        with np.errstate(over="ignore", under="ignore"):
            outcome = _solve(g, H, d, cubic)
    step = _report(outcome, d, names)
    if on_failure == "raise" and not step.status.ok:
        raise NewtonStepError(step)
    return step


def _read(summary: "Summary", third_needed: bool) -> tuple[Array, Array, Array | None, tuple[str, ...]]:
    """The checked entries of a summary as float64 arrays, and a name for every group."""
    g, H = _array(summary.gradient, "gradient", 1), _array(summary.hessian, "hessian", 2)
    third = None if summary.third is None else _array(summary.third, "third", 1)
    S = len(g)
    names = tuple(f"group {s}" for s in range(S)) if summary.names is None else tuple(summary.names)
    if third is None and third_needed:
        raise ValueError("cubic > 0 needs the order-3 summary, got third=None: summarize with order=3 or use cubic=0")
    for name, got, expected in (("hessian", H.shape, (S, S)), ("third", (S if third is None else len(third),), (S,))):
        if got != expected:
            raise ValueError(f"{name} must have shape {expected} as gradient has {S} groups, got {got}")
    if len(names) != S or S == 0:
        raise ValueError(f"expected at least one group and a name for each, got {S} groups and {len(names)} names")
    # Sums of float32 products err by up to 1e-4 of their terms; a Hessian of the wrong layout errs by all of them.
    # The scale of an entry is covariant with a change of scale of the groups.
    root = np.sqrt(np.abs(np.diagonal(H)))
    excess = np.abs(H - H.T) - 1e-3 * (np.outer(root, root) + np.abs(H) + np.abs(H.T))
    if np.any(excess > 0):
        s, t = np.argwhere(excess > 0)[0]
        raise ValueError(
            f"hessian must be symmetric, got {H[s, t]:.6g} for ({names[s]}, {names[t]}) but {H[t, s]:.6g} for its mirror"
        )
    return g, H, third, names


def _array(tensor: torch.Tensor, name: str, ndim: int) -> Array:
    if not isinstance(tensor, torch.Tensor) or tensor.is_complex():
        raise TypeError(f"summary.{name} must be a real tensor, got {getattr(tensor, 'dtype', type(tensor).__name__)}")
    if tensor.is_meta:
        raise ValueError(f"summary.{name} is on the meta device and has no values: summarize on a real device")
    if tensor.ndim != ndim:
        raise ValueError(f"summary.{name} must have {ndim} dimension(s), got shape {tuple(tensor.shape)}")
    return np.asarray(tensor.detach().to("cpu", torch.float64).numpy())


class _Outcome(NamedTuple):
    status: Status
    eta: Array
    decrease: float = 0.0
    blame: Array | None = None
    reason: str = ""


def _fail(status: Status, blame: Any, reason: str) -> _Outcome:
    return _Outcome(status, np.zeros(len(blame)), 0.0, blame, reason)


def _report(outcome: _Outcome, d: Array | None, names: tuple[str, ...]) -> Step:
    message = outcome.status.value
    if outcome.blame is not None:
        groups = ", ".join(name for name, blamed in zip(names, outcome.blame, strict=True) if blamed)
        message = f"{groups}: {outcome.reason}. {outcome.status.name}: {message}"
    radius = math.nan if d is None else math.hypot(*(d * outcome.eta))
    return Step(torch.from_numpy(outcome.eta), outcome.status, radius, outcome.decrease, message)


def _solve(g: Array, H: Array, d: Array | None, cubic: float) -> _Outcome:
    """Drop the dead groups, bring all units near 1 by exact powers of two, solve, and undo both."""
    d = np.zeros_like(g) if d is None or cubic == 0 else d
    dead = (d == 0) & ~H.any(1)
    if g[dead].any():
        return _fail(Status.UNBOUNDED, dead & (g != 0), "a gradient, but neither curvature nor third derivative")
    live = ~dead
    if not live.any():
        return _Outcome(Status.STATIONARY, np.zeros_like(g))
    problem, unit, curvature, lost = _in_units(g[live], H[np.ix_(live, live)], d[live], cubic)
    found = _quadratic(problem) if cubic == 0 else _cubic(problem)
    sigma = problem.cubic / 2 * np.linalg.norm(problem.d * found.eta)
    if lost and sigma > 2.0**-100:  # a pole: the gradient is as nothing beside the cubic term, and eta ~ 1 / cubic
        unit += lost
    elif lost and sigma > 2.0**-700:
        return _fail(Status.NOT_FINITE, d != 0, "the cubic term is beyond the range of float64")
    eta = np.zeros_like(g)
    eta[live] = np.ldexp(found.eta, unit)
    decrease = float(np.ldexp(found.decrease, curvature + 2 * unit))
    if not np.isfinite(eta).all():
        return _fail(Status.NOT_FINITE, ~np.isfinite(eta), "the step is beyond the range of float64")
    blame = None
    if found.blame is not None:
        blame = np.zeros_like(dead)
        blame[live] = found.blame
    return found._replace(eta=eta, decrease=decrease, blame=blame)


class _Problem(NamedTuple):
    g: Array
    H: Array
    d: Array
    cubic: float


def _in_units(g: Array, H: Array, d: Array, cubic: float) -> tuple[_Problem, int, int, int]:
    """The problem in units in which its numbers are near 1, and log2 of the units of the step and of the curvature.

    Beside 1, the gradient and the cubic coefficient may be as small as 2^-400, which is safe to square; what the cubic
    coefficient lost in being raised to that is the last number.
    """
    a, h, b = (int(np.frexp(np.abs(x).max())[1]) for x in (g, H, d))
    mantissa, c = math.frexp(cubic)
    c += 3 * b
    if not (cubic and d.any()):
        return _Problem(np.ldexp(g, -a), np.ldexp(H, -h), d, cubic), a - h, h, 0
    alone = (c + a + 1) // 2  # the curvature of the cubic term by itself
    h = alone if not H.any() else max(h, alone) if g.any() else h
    unit = min(max(a - h, h - c - 400), a - h + 400) if g.any() else h - c
    lost = max(0, h - c - unit - 400)
    scaled = math.ldexp(mantissa, c + unit - h + lost)
    return _Problem(np.ldexp(g, -h - unit), np.ldexp(H, -h), np.ldexp(d, -b), scaled), unit, h, lost


def _quadratic(p: _Problem) -> _Outcome:
    """H⁻¹ g; where H is singular, the solution of least norm in units in which the rows of H are of size 1."""
    e = _equilibrate(p.H)
    kappa, V = np.linalg.eigh(p.H * np.outer(e, e))
    null = _is_null(kappa)
    if (blame := _leaves(p.g, e[:, None] * V[:, null], kappa[~null])).any():
        return _fail(Status.UNBOUNDED, blame, "the Hessian is singular and the gradient is not in its range")
    X = e[:, None] * V[:, ~null]
    eta = np.zeros_like(p.g)
    for _ in range(4):  # refinement with exact residuals: each round gains the digits that the condition number left
        eta = eta + X @ ((X.T @ _residual(p, eta)) / kappa[~null])
    saddle = (kappa[~null] < 0).any()
    status = Status.SADDLE if saddle else Status.CONVERGED if p.g.any() else Status.STATIONARY
    return _Outcome(status, eta, math.fsum(p.g * eta) / 2)


def _equilibrate(H: Array) -> Array:
    """e such that every row of e H e has a largest entry near 1; 1/sqrt(H_ss) where H is psd."""
    A = np.abs(H)
    e = np.where(np.diagonal(A) > 0, np.diagonal(A), A.max(1)) ** -0.5
    for _ in range(60):
        rows = (A * np.outer(e, e)).max(1)
        if rows.max() < 2 and rows.min() > 0.5:
            break
        e = e / np.sqrt(rows)
    return e


def _is_null(kappa: Array) -> Array:
    """Which eigenvalues are zero to within the rounding of the eigenvalue solver."""
    return np.abs(kappa) <= 8 * len(kappa) * EPS * np.abs(kappa).max()


def _leaves(rows: Array, U: Array, kappa: Array) -> Array:
    """For vector or matrix `rows`: the groups of the null vectors U along which it is not zero.

    A null vector is known to EPS over the relative gap of the spectrum, and so is a product with it.
    """
    gap = np.abs(kappa).min() / np.abs(kappa).max() if len(kappa) else 1.0
    tolerance = min(64 * len(U) * EPS / gap, 1e-6)
    nonzero = np.abs(rows @ U) > tolerance * (np.abs(rows) @ np.abs(U))
    return _groups(U[:, np.atleast_2d(nonzero).any(0)])


def _groups(U: Array) -> Array:
    """The groups that take part in one of the directions U (S, n)."""
    return (np.abs(U) > 0.1 * np.abs(U).max(0, initial=0)).any(1)


def _residual(p: _Problem, eta: Array) -> Array:
    """g - H eta, rounded once: products are split without error (Dekker 1971), sums are exact."""
    product = p.H * eta
    (a, b), (c, d) = _halves(p.H), _halves(eta)
    error = ((a * c - product) + a * d + b * c) + b * d
    return np.array([math.fsum(row) for row in np.hstack([p.g[:, None], -product, -error]).tolist()])


def _halves(x: Array) -> tuple[Array, Array]:
    high = 134217729.0 * x
    high = high - (high - x)
    return high, x - high


def _cubic(p: _Problem) -> _Outcome:
    flat = _flatten_kernel(p)
    if isinstance(flat, _Outcome):
        return flat
    if not p.g.any() and _is_psd(p.H, np.zeros_like(p.g)):
        return _Outcome(Status.STATIONARY, np.zeros_like(p.g))
    basis, point = _centre(p._replace(H=flat))
    return _certify(p, basis, point)


def _flatten_kernel(p: _Problem) -> Array | _Outcome:
    """H with unit curvature added along the null vectors of its ker(D) block, or why m is unbounded there.

    Legal because nothing couples to these vectors: the minimizer then has no component along them.
    """
    k = p.d == 0
    diag = np.diagonal(p.H)
    if (diag[k] < 0).any():
        return _fail(Status.UNBOUNDED, k & (diag < 0), "negative curvature and no third derivative")
    if (diag[k] == 0).any():
        return _fail(Status.UNBOUNDED, k & (diag == 0), "neither curvature nor third derivative, but coupled to others")
    if not k.any():
        return p.H
    w = np.sqrt(diag[k])
    kappa, V = np.linalg.eigh(p.H[np.ix_(k, k)] / np.outer(w, w))
    null = np.abs(kappa) <= 8 * len(w) * EPS * max(1.0, kappa[-1])
    U = np.zeros((len(diag), len(w)))
    U[k] = V / w[:, None]
    if kappa[0] < 0 and not null[0]:
        return _fail(Status.UNBOUNDED, _groups(U[:, :1] * np.sqrt(np.abs(diag))[:, None]), "negative curvature and no third derivative")
    for rows, reason in ((p.H[~k], "no curvature, no third derivative, but coupled to others"), (p.g, "a gradient, but neither curvature nor third derivative")):
        if (blame := _leaves(rows, U[:, null], kappa[~null])).any():
            return _fail(Status.UNBOUNDED, blame, reason)
    W = np.zeros((len(diag), int(null.sum())))
    W[k] = V[:, null] * w[:, None]
    return p.H + W @ W.T


def _is_psd(H: Array, shift: Array) -> bool:
    """H + Diag(shift), shift >= 0, is positive semi-definite to within the rounding of its diagonal."""
    size = np.abs(np.diagonal(H)) + shift
    if H[size == 0].any():
        return False
    e = np.where(size > 0, size, 1.0) ** -0.5
    A = H + np.diag(shift + 32 * len(H) * EPS * size)
    return _cholesky(A * np.outer(e, e) + np.diag((size == 0) * 1.0)) is not None


def _cholesky(A: Array) -> Array | None:
    try:
        return np.linalg.cholesky(A)
    except np.linalg.LinAlgError:
        return None


class _Basis(NamedTuple):
    """X with Xᵀ (H + centre D²) X = I and Xᵀ D² X = Diag(mu), mu ascending."""

    centre: float
    X: Array
    mu: Array
    scale: Array


def _basis(p: _Problem, centre: float) -> _Basis | None:
    P = p.H + np.diag(centre * p.d**2)
    diag = np.diagonal(P)
    if not ((diag > 0) & np.isfinite(diag)).all():
        return None
    e = diag**-0.5
    if (L := _cholesky(P * np.outer(e, e))) is None:
        return None
    Y = np.linalg.inv(L) * e
    Z = Y * p.d
    mu, V = np.linalg.eigh(Z @ Z.T)
    return _Basis(centre, Y.T @ V, np.maximum(mu, 0.0), e)


class _Point(NamedTuple):
    sigma: float
    a: Array
    y: Array
    hard: bool


def _centre(p: _Problem) -> tuple[_Basis, _Point]:
    """The basis at a centre within a factor of the solution's sigma, and the solution in it.

    A centre far above the solution costs digits, so re-centre until none are lost: each round gains ten decades.
    """
    basis = _first_basis(p)
    for _ in range(40):
        point = _secular(p, basis)
        top = basis.mu[-1]
        low = 1 / top - basis.centre if top else math.inf  # the lowest kappa
        near = basis.centre <= 16 * point.sigma or low >= basis.centre / 16
        if near and (low > 0 or 16 / top >= basis.centre) and point.sigma <= basis.centre + 16 * (low + basis.centre):
            break
        target = min(max(1.5 * point.sigma, 1e-10 * basis.centre), 1e10 * max(basis.centre, 1e-300))
        closer = _basis(p, target)
        if closer is None:
            break
        basis = closer
    return basis, point


def _first_basis(p: _Problem) -> _Basis:
    r = p.d > 0
    d, g, h = p.d[r], np.abs(p.g[r]), np.diagonal(p.H)[r]
    centre = 0.0
    if r.any():
        # The exact solution for a diagonal H; else a bound on all of |K|, raised for what the kernel adds.
        k, q = h / d**2, 2 * p.cubic * g / d
        root = np.sqrt(k * k + q)
        centre = float(np.where(k > 0, q / (2 * (np.abs(k) + root)+1e-300), (root - k) / 2).max())
    if (basis := _basis(p, centre)) is not None:
        return basis
    centre = len(d) * float((np.abs(p.H[np.ix_(r, r)]) / np.outer(d, d)).max())
    for _ in range(60):
        if (basis := _basis(p, centre)) is not None:
            return basis
        centre *= 1e3
    raise _bug(p, "no positive definite member of the pencil")


def _secular(p: _Problem, basis: _Basis) -> _Point:
    """Solve lambda ‖D eta(sigma)‖ = 2 sigma in theta = sigma - base >= 0, base = max(0, -kappa_min).

    With a = A + mu theta all terms are positive, so nothing cancels near the pole. 1/‖D eta‖ and -1/sigma are concave and
    increasing: Newton's method from below converges without a safeguard.
    """
    mu, X = basis.mu, basis.X
    c = X.T @ p.g
    top = mu[-1]
    pole = basis.centre - 1 / top if top else -1.0
    base = max(0.0, pole)
    A = 1 - mu / top if pole >= 0 else 1 - basis.centre * mu
    half = p.cubic / 2
    if base > 0:
        low = A <= 64 * len(mu) * EPS
        noise = 64 * len(mu) * EPS * (np.abs(X.T) @ np.abs(p.g))
        rest = np.where(low, 0.0, c / np.where(low, 1.0, A))
        r2 = (base / half) ** 2 - float((mu * rest * rest).sum())
        if r2 > 0 and (np.abs(c[low]) <= noise[low]).all():
            v = X[:, -1] / basis.scale
            first = v[np.abs(v) > 1e-8 * np.abs(v).max()][0]
            rest[-1] = math.copysign(math.sqrt(r2 / top), first)
            return _Point(base, A, rest, True)
    n = c != 0
    q, m, An = half * np.abs(c[n]) * np.sqrt(mu[n]), mu[n], A[n]
    disc = np.sqrt((An - m * base) ** 2 + 4 * m * q)
    theta = max(0.0, float((2 * (q - An * base) / (An + m * base + disc)).max(initial=0.0)))
    for _ in range(200):
        z = q / (An + m * theta)
        psi, sigma = math.hypot(*z), base + theta
        if psi == 0 or sigma == 0:
            break
        ratio, z = sigma / psi, z / psi
        new = theta + sigma * (1 - ratio) / (1 + ratio * sigma * float(z * z @ (m / (An + m * theta))))
        if not new > theta * (1 + 4 * EPS):
            break
        theta = new
    a = A + mu * theta
    y = np.zeros_like(c)
    y[n] = c[n] / a[n]
    return _Point(base + theta, a, y, False)


def _certify(p: _Problem, basis: _Basis, point: _Point) -> _Outcome:
    """Newton's method on m with exact residuals until nothing is left to gain; then H + sigma D^2 must be psd.

    What is left to gain is half of (residual)ᵀ N⁻¹ (residual), N the second derivative of m in the basis; where N vanishes
    it counts as EPS, its own error.
    """
    X, eta = basis.X, basis.X @ point.y
    best = (math.inf, eta, 0.0, 0.0)
    for attempt in range(20):
        r = math.hypot(*(p.d * eta))
        sigma = p.cubic * r / 2
        residual = _residual(p, eta) - sigma * p.d**2 * eta
        decrease = math.fsum((p.g + residual) * eta) / 2 + sigma * r**2 / 6
        e, z = X.T @ residual, X.T @ (p.d**2 * eta)
        bound = float((e * e / np.maximum(point.a, EPS)).sum())
        if bound <= 1e-16 * decrease:
            best = (0.0, eta, sigma, decrease)
            break
        exact = attempt >= 10
        N = _exact(p, X, sigma) if exact else np.diag(point.a)
        nu, V = np.linalg.eigh(N + np.outer(z, z) * (p.cubic / (2 * r) if r else 0.0))
        f, nu = V.T @ e, np.maximum(nu, EPS**(1+exact) * nu[-1])
        gain = float((f * f / nu).sum() / 2) / decrease if decrease > 0 else math.inf
        if gain < best[0]:
            best = (gain, eta, sigma, decrease)
        if best[0] < (1e-10 if exact or attempt == 9 else 1e-16):
            break
        eta = eta + X @ (V @ (f / np.maximum(nu,0 if exact else 1e-10*nu[-1])))
    gain, eta, sigma, decrease = best
    psd = _is_psd(p.H, sigma * p.d**2)
    if not (psd and gain <= 1e-10):
        raise _bug(p, f"certificate {psd} {gain} {decrease}")
    return _Outcome(Status.HARD_CASE if point.hard else Status.CONVERGED, eta, decrease)


def _exact(p,X,sigma):
    q = p._replace(g=0*p.g)
    AX=np.column_stack([-_residual(q,x) for x in X.T])+(sigma*p.d**2)[:,None]*X
    N=X.T@AX
    return (N+N.T)/2


def _bug(p: _Problem, what: str) -> ArithmeticError:
    return ArithmeticError(f"newton_step could not certify its step ({what}); please report this problem: {p!r}")
