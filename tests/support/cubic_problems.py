"""Random and adversarial problems for the cubic step, and a judge that shares nothing with the solver.

The judge is weak duality, evaluated with 60 digits. For every sigma = lambda r / 2 >= 0 with A = H + sigma D^2 psd,

    m(eta) >= -g.eta + eta.A eta / 2 - lambda r^3 / 12  for all eta,  so  m* >= -g.A^-1 g / 2 - lambda r^3 / 12,

because lambda s^3 / 6 >= lambda (r s^2 / 4 - r^3 / 12) for s, r >= 0. So one sigma for which the right side comes within
1e-8 of m(eta) proves eta optimal, wherever that sigma was guessed.
"""

from typing import NamedTuple

import mpmath as mp
import numpy as np

DIGITS = 60


class Problem(NamedTuple):
    gradient: np.ndarray
    hessian: np.ndarray
    third: np.ndarray
    cubic: float
    bounded: bool = True


def model(problem: Problem, eta) -> mp.mpf:
    """m(eta), with 60 digits."""
    g, H, d, cubic = exact(problem)
    eta = [mp.mpf(float(x)) for x in eta]
    linear = mp.fdot(g, eta)
    quadratic = mp.fdot(eta, [mp.fdot(row, eta) for row in H])
    radius = mp.sqrt(mp.fsum((di * x) ** 2 for di, x in zip(d, eta, strict=True)))
    return -linear + quadratic / 2 + cubic * radius**3 / 6


def exact(problem: Problem):
    g = [mp.mpf(float(x)) for x in problem.gradient]
    H = [[mp.mpf(float(x)) for x in row] for row in problem.hessian]
    d = [mp.cbrt(abs(mp.mpf(float(x)))) for x in problem.third]
    return g, H, d, mp.mpf(problem.cubic)


def factor(A):
    """A = L diag(pivots) L^T without pivoting, or None where A is not psd; a zero pivot needs a zero column."""
    n, A = len(A), [row[:] for row in A]
    start = [A[i][i] for i in range(n)]
    for k in range(n):
        if abs(A[k][k]) <= mp.mpf(10) ** (15 - DIGITS) * start[k]:
            if any(abs(A[i][k]) > mp.mpf(10) ** (15 - DIGITS) * mp.sqrt(start[i] * start[k]) for i in range(k, n)):
                return None
            A[k][k] = mp.mpf(0)
            for i in range(k + 1, n):
                A[i][k] = mp.mpf(0)
            continue
        if A[k][k] < 0:
            return None
        for i in range(k + 1, n):
            if A[i][k]:
                ratio = A[i][k] / A[k][k]
                for j in range(k + 1, i + 1):
                    A[i][j] -= ratio * A[j][k]
        for i in range(k + 1, n):
            A[i][k] /= A[k][k]
    return A


def solve(LD, rhs):
    """The solution with zeros where the pivot is zero."""
    n, x = len(LD), list(rhs)
    for i in range(n):
        x[i] -= mp.fdot(LD[i][:i], x[:i])
    x = [x[i] / LD[i][i] if LD[i][i] else mp.mpf(0) for i in range(n)]
    for i in reversed(range(n)):
        x[i] -= mp.fdot([LD[j][i] for j in range(i + 1, n)], x[i + 1 :])
    return x


def gap(problem: Problem, eta, radius: float) -> float:
    """A proven bound on (m(eta) - m*) / |m*|; the search for its sigma starts at the radius that the solver claims.

    The dual is concave in sigma: Newton's method on the secular equation, kept inside a bracket [not psd or too small, psd
    and too large], finds its maximum. inf where no bound was found.
    """
    with mp.workdps(DIGITS):
        g, H, d, cubic = exact(problem)
        value = model(problem, eta)
        best, low, high = mp.mpf("inf"), mp.mpf(0), None
        sigma, push = cubic * mp.mpf(radius) / 2, mp.mpf("1e-16")
        for _ in range(120):
            A = [[x + (sigma * d[i] ** 2 if i == j else 0) for j, x in enumerate(row)] for i, row in enumerate(H)]
            LD = factor(A)
            if LD is None:
                low, newton, push = sigma, None, 16 * push
            else:
                step, r = solve(LD, g), 2 * sigma / cubic
                dual = -mp.fdot(g, step) / 2 - cubic * r**3 / 12
                best = min(best, (value - dual) / abs(dual) if dual else mp.mpf(0 if value == 0 else "inf"))
                if best <= mp.mpf("1e-12"):
                    break
                z = [di**2 * x for di, x in zip(d, step, strict=True)]
                norm, newton = mp.sqrt(mp.fdot(z, step)), None
                low, high = (sigma, high) if norm > r else (low, sigma)
                if norm and sigma:
                    slope = mp.fdot(z, solve(LD, z)) / norm**3 + cubic / (2 * sigma**2)
                    newton = sigma + (cubic / (2 * sigma) - 1 / norm) / slope
            if newton is not None and newton > low and (high is None or newton < high):
                sigma = newton
            elif high is None:
                sigma = low * (1 + push) if low else mp.mpf("1e-40")
            else:
                sigma = (low + high) / 2
            if high is not None and high - low <= high * mp.mpf("1e-40"):
                break
        return float(best)


def spectrum(rng, values):
    Q, _ = np.linalg.qr(rng.normal(size=(len(values), len(values))))
    H = (Q * values) @ Q.T
    return (H + H.T) / 2, Q


def size(rng):
    return int(rng.choice([1, 2, 3, 4, 5, 6, 8, 10, 12], p=[0.06, 0.14, 0.15, 0.15, 0.15, 0.1, 0.1, 0.1, 0.05]))


def base(rng, S=None, cubic=None):
    S = S or size(rng)
    H = rng.normal(size=(S, S))
    return Problem(rng.normal(size=S), (H + H.T) / 2, rng.normal(size=S), cubic or float(10 ** rng.uniform(-2, 2)))


def definite_like(rng, S):
    return spectrum(rng, rng.uniform(0.1, 3, S))[0]


def definite(rng):
    p = base(rng)
    return p._replace(hessian=definite_like(rng, len(p.gradient)))


def indefinite(rng):
    return base(rng)


def small_metric(rng):
    p = base(rng)
    p.third[rng.integers(len(p.third))] = 2e-5**3
    return p


def kernel(rng, zeros=1):
    p = base(rng)
    S = len(p.gradient)
    k = rng.permutation(S)[: min(zeros, S)]
    p.third[k] = 0
    block = rng.normal(size=(len(k), len(k) + 1))
    p.hessian[np.ix_(k, k)] = block @ block.T + 0.01 * np.eye(len(k))
    return p


def several_kernels(rng):
    return kernel(rng, int(rng.integers(2, 6)))


def harmless_null(rng):
    """Group a and its copy b, both without third derivative: rows, columns and gradient of b repeat those of a."""
    p = kernel(rng)
    a = int(np.flatnonzero(p.third == 0)[0])
    index = [*range(len(p.gradient)), a]
    keep = rng.permutation(len(index))
    index = np.array(index)[keep]
    p = p._replace(gradient=p.gradient[index], hessian=p.hessian[np.ix_(index, index)], third=p.third[index])
    return frozen(rng, p)


def frozen(rng, p=None):
    p = p or base(rng)
    S = len(p.gradient)
    at = int(rng.integers(S + 1))
    H = np.insert(np.insert(p.hessian, at, 0, 0), at, 0, 1)
    return p._replace(gradient=np.insert(p.gradient, at, 0), hessian=H, third=np.insert(p.third, at, 0))


def unbounded(rng):
    p = kernel(rng, int(rng.integers(1, 4)))
    k = np.flatnonzero(p.third == 0)
    case = rng.integers(4)
    if case == 0 or len(p.gradient) == 1:
        p.hessian[k[0], k[0]] *= -1
    elif case == 1 and len(k) > 1:
        a, b = k[:2]
        p.hessian[a, b] = p.hessian[b, a] = 1.01 * np.sqrt(p.hessian[a, a] * p.hessian[b, b])
    elif case == 2 and len(k) > 1:
        a, b = k[:2]
        H = p.hessian
        H[b] = H[a]
        H[:, b] = H[:, a]
        H[b, b] = H[a, a]
        p.gradient[a] += 1
    else:
        p.hessian[k[0], k] = p.hessian[k, k[0]] = 0
    return p._replace(bounded=False)


def wide_spectrum(rng):
    p = base(rng)
    S = len(p.gradient)
    values = 10.0 ** rng.uniform(-12, 0, S) * rng.choice([1, -1], S, p=[0.7, 0.3])
    return p._replace(hessian=spectrum(rng, values)[0], gradient=p.gradient * 10 ** rng.uniform(-6, 3))


def wide_metric(rng):
    p = base(rng)
    d = 10.0 ** rng.uniform(-9, 0, len(p.third))
    H = p.hessian if rng.random() < 0.5 else definite_like(rng, len(d))
    return p._replace(third=d**3 * np.sign(p.third), hessian=H)


def wide_both(rng):
    p = wide_spectrum(rng)
    d = 10.0 ** rng.uniform(-9, 0, len(p.third))
    d *= rng.random(len(d)) > 0.1
    k = d == 0
    if k.any():
        p.hessian[np.ix_(k, k)] = definite_like(rng, int(k.sum()))
    return p._replace(third=d**3)


def hard(rng):
    """Exactly hard: H diagonal, no gradient along the (perhaps repeated) lowest curvature."""
    p = base(rng, size(rng) + 1)
    S = len(p.gradient)
    h = rng.integers(1, 9, S).astype(float)
    low = rng.permutation(S)[: int(rng.integers(1, S))]
    d = 2.0 ** rng.integers(-3, 3, S)
    h[low] = -2.0
    p.gradient[low] = 0
    g = p.gradient * 10 ** rng.uniform(-3, 1.0)
    return p._replace(hessian=np.diag(h * d * d), third=d**3, gradient=g)


def near_hard(rng):
    """The gradient has a component of 1e-1 to 1e-30 along a lowest curvature that may be repeated."""
    S = size(rng) + 1
    values = np.sort(rng.uniform(-3, 3, S))
    values[0] = -3
    if S > 2 and rng.random() < 0.4:
        values[1] = -3 + rng.choice([0, 1e-14, 1e-8])
    H, Q = spectrum(rng, values)
    c = rng.normal(size=S) * 10 ** rng.uniform(-3, 1)
    c[values < -2.99] *= 10 ** rng.uniform(-30, -1)
    d = 10 ** rng.uniform(-2, 2, S) if rng.random() < 0.5 else np.ones(S)
    H = H * np.outer(d, d)
    return Problem(d * (Q @ c), (H + H.T) / 2, d**3, float(10 ** rng.uniform(-2, 2)))


def zero_gradient(rng):
    p = [base, definite, several_kernels, wide_metric][rng.integers(4)](rng)
    return p._replace(gradient=0 * p.gradient)


def layer_scales(rng):
    """The same network with layers rescaled by a_s: g a^2, H a^2 a^2, third a^6."""
    p = [definite, indefinite, kernel, near_hard][rng.integers(4)](rng)
    a = 10.0 ** rng.uniform(-4, 4, len(p.third))
    H = p.hessian * np.outer(a**2, a**2)
    return p._replace(gradient=p.gradient * a**2, hessian=(H + H.T) / 2, third=p.third * a**6)


def units(rng):
    """Gradient, Hessian, third derivative and cubic in units of 1e-150 to 1e150."""
    p = [definite, indefinite, kernel, near_hard, hard][rng.integers(5)](rng)
    a, b, c, e = 10.0 ** (rng.uniform(-150, 150, 4) * (rng.random(4) < 0.4))
    return p._replace(gradient=a * p.gradient, hessian=b * p.hessian, third=c * p.third, cubic=e * p.cubic)


def strength(rng):
    p = [definite, indefinite, kernel, near_hard, wide_spectrum][rng.integers(5)](rng)
    return p._replace(cubic=float(10 ** rng.uniform(-12, 12)))


def singular(rng):
    """H psd of low rank, the gradient anywhere, or a group and its copy with different third derivatives."""
    p = base(rng)
    S = len(p.gradient)
    if rng.random() < 0.5:
        B = rng.integers(-4, 5, size=(S, max(1, S // 2))).astype(float)
        return p._replace(hessian=B @ B.T)
    index = [*range(S), 0]
    return p._replace(gradient=p.gradient[index], hessian=p.hessian[np.ix_(index, index)], third=rng.normal(size=S + 1))


def weak(rng):
    """H psd of low rank or with a pair of like groups, and a cubic term down to 1e-32, below the rounding of H."""
    return singular(rng)._replace(cubic=float(10 ** rng.uniform(-32, -10)))


def graded_hard(rng):
    """Near-hard in K, with D over nine decades."""
    p = near_hard(rng)
    scale = 10.0 ** rng.uniform(-9, 0, len(p.third)) / np.cbrt(p.third)
    H = p.hessian * np.outer(scale, scale)
    return p._replace(gradient=p.gradient * scale, hessian=(H + H.T) / 2, third=p.third * scale**3)


def hard_wide(rng):
    """One negative curvature, a spectrum over twelve decades, a gradient that may hardly see the lowest curvature."""
    S = size(rng) + 1
    values = 10.0 ** rng.uniform(-12, 0, S)
    values[0] *= -1
    H, Q = spectrum(rng, values)
    c = rng.normal(size=S) * 10 ** rng.uniform(-9, 0)
    c[0] *= 10 ** rng.uniform(-30, 0)
    return Problem(Q @ c, H, rng.choice([1.0, 8.0, 1e-9], S), float(10 ** rng.uniform(-3, 3)))


def zero_diagonal(rng):
    p = base(rng)
    np.fill_diagonal(p.hessian, 0)
    return p._replace(gradient=p.gradient * rng.choice([0, 1]))


def large(rng):
    """S = 40, well scaled, or D over seven decades, or a spectrum over twelve, or hard with a double lowest curvature."""
    S, case = 40, rng.integers(4)
    p = base(rng, S)
    if case == 1:
        return p._replace(third=10.0 ** rng.uniform(-21, 0, S))
    if case == 2:
        return p._replace(hessian=spectrum(rng, 10.0 ** rng.uniform(-12, 0, S))[0])
    if case == 3:
        values = np.append([-3.0, -3.0], rng.uniform(-2, 3, S - 2))
        H, Q = spectrum(rng, values)
        return Problem(Q[:, 2:] @ rng.normal(size=S - 2), H, np.ones(S), 1.0)
    return p


FAMILIES = {
    make.__name__: make
    for make in (
        definite, indefinite, small_metric, kernel, several_kernels, harmless_null, frozen, unbounded, wide_spectrum,
        wide_metric, wide_both, hard, near_hard, graded_hard, hard_wide, zero_gradient, zero_diagonal, layer_scales, units,
        strength, singular, weak,
    )
}  # fmt: skip
