r"""The Newton step from a summary: one learning rate per group, and what is known about it.

Without a cubic term it is η = H̄⁻¹ ḡ; with one, the global minimizer of

    m(η) = -ḡ·η + ηᵀ H̄ η / 2 + λ ‖D η‖³ / 6,        D = Diag(|D3_sss|^(1/3)),  λ = `cubic`.

`CubicModel` is m; this module checks, names and reports, and the numerics of its minimum are in `gnewton.secular`.
"""

import math
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from gnewton.secular import Array, NoMinimum, Problem, cubic_minimum, in_units, stationary_point
from gnewton.summary import Summary


class Status(Enum):
    """How a Newton step ended; `.value` is a sentence of help, `.ok` says whether the step can be taken."""

    CONVERGED = "the global minimum of the model"
    HARD_CASE = (
        "a global minimum of the model; the gradient has no component along the lowest curvature v, so that "
        "+v and -v are equally good: the one whose first non-zero component is positive was added"
    )
    SADDLE = (
        "the stationary point of the quadratic model, which is not a minimum as the Hessian has negative curvature; this is "
        "Newton's method as defined, cubic > 0 goes to a minimum"
    )
    STATIONARY = "the gradient is zero and no curvature is negative: nothing to do, the step is zero"
    UNBOUNDED = (
        "the model has no minimum. Causes: (a) a piecewise affine network (ReLU with squared error) has no third derivative "
        "and so no cubic term: use tanh, ELU or softplus, or cross-entropy; (b) cubic = 0 with a singular Hessian; "
        "(c) a gradient along a direction without curvature. A ridge above the most negative curvature helps"
    )
    NOT_FINITE = (
        "NaN, infinity or a number beyond float64. Causes: (a) a diverged training; (b) half precision; (c) a derivative "
        "that does not exist at this point"
    )

    @property
    def ok(self) -> bool:
        """True where the learning rates can be used."""
        return self not in (Status.UNBOUNDED, Status.NOT_FINITE)


@dataclass(frozen=True, eq=False)
class Step:
    """What `newton_step` found.

    learning_rates: η, (S,) float64 on the CPU, all zero unless `status.ok`. status: a `Status`. radius: ‖D η‖, invariant
    under rescaling a layer; NaN without order 3. predicted_decrease: -m(η), in units of the loss. message: the help of the
    status, with the groups that are to blame and why.
    """

    learning_rates: torch.Tensor
    status: Status
    radius: float
    predicted_decrease: float
    message: str

    def __repr__(self) -> str:
        rates = [f"{rate:.3g}" for rate in self.learning_rates[:8].tolist()] + ["..."] * (len(self.learning_rates) > 8)
        return f"Step({self.status.name}, learning_rates=[{', '.join(rates)}], decrease={self.predicted_decrease:.3g})"


class NewtonStepError(RuntimeError):
    """There is no step; `.step` is the `Step` that says why, with all learning rates zero."""

    def __init__(self, step: Step) -> None:
        super().__init__(step.message)
        self.step = step

    def __reduce__(self) -> tuple[type["NewtonStepError"], tuple[Step]]:
        # Python would rebuild it from its message, and a pool of processes waits for ever for what cannot be read.
        return type(self), (self.step,)


@dataclass(frozen=True, eq=False)
class CubicModel:
    """m(η), the local model of the loss that a step minimizes.

    Args:
        summary: ḡ ``.gradient`` (S,), symmetric H̄ ``.hessian`` (S, S) and, for cubic > 0, ``.third`` (S,), the diagonal of
            D3; real tensors of any dtype and device.
        cubic: λ_int >= 0, the strength of the cubic term.
        ridge: >= 0, added to the diagonal of H̄.
        diagonal: use the diagonal of H̄ only.

    Raises ValueError for numbers out of range.

    >>> from gnewton.summary import Summary
    >>> model = CubicModel(Summary.from_tensors(gradient=[2.0], hessian=[[1.0]], third=[-1.0]), cubic=2.0)
    >>> model.decrease(torch.tensor([1.0])), model.minimize()
    (tensor(1.1667, dtype=torch.float64), Step(CONVERGED, learning_rates=[1], decrease=1.17))
    """

    summary: Summary
    cubic: float
    ridge: float = 0.0
    diagonal: bool = False

    def __post_init__(self) -> None:
        if not hasattr(self.summary, "hessian"):
            kind = type(self.summary).__name__
            raise TypeError(f"expected a Summary, got {kind}; write gn.summarize(...) or gn.Summary.from_tensors(...)")
        check_strengths(cubic=self.cubic, ridge=self.ridge)

    @property
    def metric(self) -> torch.Tensor | None:
        """The diagonal of D, (S,): cube roots of |D3_sss|; None without order 3."""
        third = self.summary.third
        return None if third is None else third.abs().pow(1 / 3)

    def decrease(self, eta: torch.Tensor) -> torch.Tensor:
        """-m(η), what the loss loses by the model: () for η (S,), or (n,) for η (n, S)."""
        summary, metric, dot = self.summary, self.metric, torch.linalg.vecdot
        eta, hessian = eta.to(summary.gradient), summary.hessian
        if hessian is None:
            raise ValueError("expected a summary of order 2 or 3, got order 1: summarize with order=2")
        curvature = hessian.diagonal() * eta if self.diagonal else (hessian @ eta.transpose(0, -1)).transpose(0, -1)
        decrease: torch.Tensor = dot(summary.gradient.expand_as(eta), eta) - dot(eta, curvature + self.ridge * eta) / 2
        if self.cubic and metric is None:
            raise ValueError("expected a summary of order 3, got a lower one: summarize with order=3 (or cubic=0)")
        if metric is not None:
            decrease = decrease - self.cubic / 6 * torch.linalg.vector_norm(metric * eta, dim=-1) ** 3
        return decrease

    def minimize(self) -> Step:
        """The global minimizer of m, solved in float64 on the CPU; where there is none, a step of zeros that says why."""
        cubic, summary = float(self.cubic), self.summary
        with np.errstate(all="ignore"):
            g, H, d, names = _read(summary, cubic > 0)
            H = (np.diag(np.diagonal(H)) if self.diagonal else (H + H.T) / 2) + float(self.ridge) * np.eye(len(g))
            solution = _solve(Problem(g, H, d if cubic else 0 * g, cubic))
            radius = math.nan if summary.third is None else math.hypot(*(d * solution.eta))
        message = solution.status.value
        if solution.reason:
            groups = ", ".join(name for name, blamed in zip(names, solution.blamed, strict=True) if blamed)
            message = f"{groups}: {solution.reason}. {solution.status.name}: {message}"
        return Step(torch.as_tensor(solution.eta, device="cpu"), solution.status, radius, solution.decrease, message)


def check_strengths(**strengths: float | torch.Tensor) -> None:
    """ValueError, by name, for a strength of the cubic term or a ridge that is not a finite number >= 0."""
    for name, value in strengths.items():
        if not (isinstance(value, int | float | torch.Tensor) and math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be a finite number >= 0, got {value!r}")


def newton_step(
    summary: Summary,
    cubic: float = 1.0,
    *,
    ridge: float = 0.0,
    diagonal: bool = False,
    on_failure: Literal["raise", "report"] = "raise",
) -> Step:
    """The learning rate of every group that minimizes the local model m of the loss.

    Args:
        summary: ḡ, H̄ and, for cubic > 0, the diagonal of D3, as in ``CubicModel``.
        cubic: λ_int >= 0. At 0 the step is Newton's, η = H̄⁻¹ ḡ. Above 0 it is the global minimizer of
            m(η) = -ḡ·η + ηᵀH̄η/2 + λ‖Dη‖³/6, D the cube roots of the absolute ``third`` ("Method 1" of arXiv 2312.03885).
        ridge: >= 0, added to the diagonal of H̄.
        diagonal: use the diagonal of H̄ only.
        on_failure: where the status is not ok, "raise" NewtonStepError, or "report" a Step whose rates are zero.

    Raises:
        ValueError: an argument or a shape is wrong.
        NewtonStepError: there is no step, and ``on_failure`` is "raise".

    Where H̄ is singular and a minimum exists, the one of least Σ_s H̄_ss η_s² is returned. So frozen, unused and
    zero-direction groups (rows of zeros, or of roundings beside the rest) get 0. No threshold is absolute: rescaling a
    group rescales its rate.

    >>> import gnewton as gn
    >>> summary = gn.Summary.from_tensors(gradient=[1.0, 4.0], hessian=[[1.0, 6.0], [6.0, 16.0]], third=[1.0, 8.0])
    >>> gn.newton_step(summary, cubic=0.0)
    Step(SADDLE, learning_rates=[0.4, 0.1], decrease=0.4)
    >>> gn.newton_step(summary, cubic=1.0)
    Step(CONVERGED, learning_rates=[...], decrease=...)
    """
    if on_failure not in ("raise", "report"):
        raise ValueError(f'on_failure must be "raise" or "report", got {on_failure!r}')
    step = CubicModel(summary, cubic, ridge, diagonal).minimize()
    if on_failure == "raise" and not step.status.ok:
        raise NewtonStepError(step)
    return step


def _read(summary: Summary, cubic: bool) -> tuple[Array, Array, Array, tuple[str, ...]]:
    """The checked g, H, diagonal of D (zero without order 3) and group names."""
    if summary.hessian is None or (cubic and summary.third is None):
        order = 2 if summary.hessian is None else 3
        raise ValueError(
            f"expected a summary of order {order}, got a lower one: summarize with order={order}"
            + " (or cubic=0)" * (order == 3)
        )
    given = (summary.gradient, summary.hessian, 0 * summary.gradient if summary.third is None else summary.third)
    if any(t.is_meta or t.is_complex() for t in given):
        raise ValueError(f"expected real numbers, got {[f'{t.dtype} on {t.device}' for t in given]}: use a real device")
    S, shapes = given[0].numel(), [tuple(t.shape) for t in given]
    if S == 0 or shapes != [(S,), (S, S), (S,)]:
        raise ValueError(
            f"expected gradient (S,), hessian (S, S), third (S,) of one partition with S >= 1, got {shapes}"
        )
    names = tuple(f"group {s}" for s in range(S)) if summary.names is None else tuple(summary.names)
    if len(names) != S:
        raise ValueError(f"expected one name for each of {S} groups, got {len(names)}: {names}")
    g, H, third = (np.asarray(t.detach().cpu().to(torch.float64).numpy()) for t in given)
    # Sums of float32 products err by up to 1e-4 of their terms; a Hessian laid out wrongly errs by all of them.
    root = np.sqrt(np.abs(np.diagonal(H)))
    for s, t in np.argwhere(np.abs(H - H.T) > 1e-3 * (np.outer(root, root) + np.abs(H) + np.abs(H.T)))[:1]:
        got = f"{H[s, t]:.6g} for ({names[s]}, {names[t]}) but {H[t, s]:.6g} for ({names[t]}, {names[s]})"
        raise ValueError(f"expected a symmetric hessian, got {got}: check how it was put together")
    return g, H, np.cbrt(np.abs(third)), names


class _Solution(NamedTuple):
    status: Status
    eta: Array
    decrease: float = 0.0
    blamed: Any = ()
    reason: str = ""


def _fail(blamed: Any, reason: str, status: Status = Status.UNBOUNDED) -> _Solution:
    return _Solution(status, np.zeros(len(blamed)), 0.0, blamed, reason)


def _solve(p: Problem) -> _Solution:
    """Drop the groups of zeros, bring the units near 1 by exact powers of two, solve, and undo both."""
    broken = ~(np.isfinite(p.g) & np.isfinite(p.H).all(1) & np.isfinite(p.d))
    if broken.any():
        return _fail(broken, "a derivative that is not finite", Status.NOT_FINITE)
    live, eta = ((p.d > 0) | p.H.any(1)) & ~_is_rounding(p), np.zeros_like(p.g)
    # A bias before batch norm has no effect: its gradient is the rounding of a sum that cancels.
    falling = ~live & (np.abs(p.g) > 1e-10 * np.abs(p.g).max())
    if falling.any():
        return _fail(falling, "a gradient, but neither curvature nor third derivative")
    if not live.any():
        return _Solution(Status.STATIONARY, eta)
    small, unit, curvature, lost = in_units(Problem(p.g[live], p.H[live][:, live], p.d[live], p.cubic))
    try:
        status, eta[live], decrease = _step(small)
    except NoMinimum as failure:
        live[live] = failure.groups
        return _fail(live, failure.reason)
    sigma = small.cubic / 2 * math.hypot(*(small.d * eta[live]))
    if lost and sigma > 2.0**-100:  # at a pole: the gradient is nothing beside the cubic term, so that eta ~ 1 / cubic
        unit += lost
    elif lost and sigma > 2.0**-700:
        return _fail(p.d > 0, "a cubic term beyond float64", Status.NOT_FINITE)
    eta = np.ldexp(eta, unit)
    if not np.isfinite(eta).all():
        return _fail(~np.isfinite(eta), "a step beyond float64", Status.NOT_FINITE)
    return _Solution(status, eta, float(np.ldexp(decrease, curvature + 2 * unit)))


def _is_rounding(p: Problem) -> NDArray[np.bool_]:
    """The groups whose every number is below 1e-24 of the largest of its kind: what a sum that cancels leaves behind.

    The square of the rounding of float64 is 5e-32; a layer would have to be scaled by 1e-12 to look like that.
    """
    kinds = (np.abs(p.g), np.abs(p.H).max(1), p.d**3)
    return np.asarray(np.all([size <= 1e-24 * size.max() for size in kinds], axis=0))


def _step(p: Problem) -> tuple[Status, Array, float]:
    if p.cubic:
        eta, decrease, hard = cubic_minimum(p)
        return Status.HARD_CASE if hard else Status.CONVERGED if eta.any() else Status.STATIONARY, eta, decrease
    eta, saddle = stationary_point(p)
    status = Status.SADDLE if saddle else Status.CONVERGED if p.g.any() else Status.STATIONARY
    return status, eta, math.fsum(p.g * eta) / 2
