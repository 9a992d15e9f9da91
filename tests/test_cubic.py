"""The cubic step. `cubic_problems` argues why its judge (weak duality, 60 digits) is independent of the solver."""

import math
import pickle
from types import SimpleNamespace

import mpmath as mp
import numpy as np
import pytest
import torch
from support.cubic_problems import (
    FAMILIES,
    Problem,
    definite,
    factor,
    gap,
    hard,
    indefinite,
    kernel,
    large,
    model,
    singular,
    solve,
    spectrum,
)

import gnewton as gn
from gnewton import Status
from gnewton.cubic import CubicModel


def summary(gradient, hessian, third=None, names=None):
    return gn.Summary.from_tensors(
        gradient=torch.tensor(np.array(gradient, dtype=float)),
        hessian=torch.tensor(np.array(hessian, dtype=float)),
        third=None if third is None else torch.tensor(np.array(third, dtype=float)),
        names=names,
    )


def step(problem, **options):
    return gn.newton_step(summary(*problem[:3]), **{"cubic": problem.cubic, **options})


def generator(*seed):
    return np.random.default_rng([sum(map(ord, str(part))) for part in seed])


def close(a, b, tolerance=1e-9):
    """Well-conditioned problems: eta is good to EPS times a condition number below 1e6."""
    a, b = np.asarray(a), np.asarray(b)
    return np.allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(b).max())


# ---------------------------------------------------------------------------------- the promise


@pytest.mark.parametrize("batch", range(3))
@pytest.mark.parametrize("family", FAMILIES)
def test_every_problem_is_solved_or_reported_unbounded(family, batch):
    for seed in range(32):
        problem = FAMILIES[family](np.random.default_rng([seed, batch, *map(ord, family)]))
        got = step(problem, on_failure="report")
        if not problem.bounded:
            assert got.status is Status.UNBOUNDED, (seed, got)
            continue
        assert got.status.ok, (seed, got.message)
        excess = gap(problem, got.learning_rates, got.radius)
        assert excess <= 1e-8, f"seed {seed}: m - m* is {excess:.1e} of |m*|; {got}\n{problem}"
        if 1e-290 < got.predicted_decrease < 1e290:
            assert got.predicted_decrease == pytest.approx(-float(model(problem, got.learning_rates)), rel=1e-9), seed


@pytest.mark.parametrize("seed", range(8))
def test_large_problems_are_solved(seed):
    problem = large(np.random.default_rng(seed))
    got = step(problem)
    assert gap(problem, got.learning_rates, got.radius) <= 1e-8


def test_a_hundred_groups():
    rng = np.random.default_rng(1)
    H = rng.normal(size=(100, 100))
    problem = Problem(rng.normal(size=100), H + H.T, rng.normal(size=100), 1.0)
    got = step(problem)
    assert gap(problem, got.learning_rates, got.radius) <= 1e-8


@pytest.mark.parametrize("family", ["definite", "indefinite", "kernel", "near_hard", "wide_spectrum", "wide_metric"])
def test_the_judge_refuses_a_step_that_is_not_optimal(family):
    for seed in range(5):
        problem = FAMILIES[family](np.random.default_rng(seed))
        got = step(problem)
        wrong = 1.01 * got.learning_rates  # costs about 1e-4 of m*, along the step itself
        assert gap(problem, wrong, got.radius) > 1e-8


def test_the_judge_refuses_a_local_minimum():
    problem = Problem(np.array([0.01]), np.array([[-1.0]]), np.ones(1), 1.0)
    assert gap(problem, step(problem).learning_rates, 2.0) <= 1e-8
    local = -(1 + math.sqrt(1 - 0.02))  # -g - eta - eta^2 / 2 = 0 on the other side of zero
    assert gap(problem, [local], abs(local)) > 1e-3


def test_the_predicted_decrease_and_the_radius_are_those_of_the_rates():
    for seed in range(20):
        problem = indefinite(np.random.default_rng(seed))
        got = step(problem)
        # the rates are rounded, and m is flat at its minimum: only rounding of the sum remains
        assert got.predicted_decrease == pytest.approx(-float(model(problem, got.learning_rates)), rel=1e-12)
        assert got.radius == pytest.approx(
            np.linalg.norm(np.cbrt(problem.third) * got.learning_rates.numpy()), rel=1e-12
        )


# ---------------------------------------------------------------------------------- laws


@pytest.mark.parametrize("make", [definite, indefinite, kernel])
@pytest.mark.parametrize("seed", range(10))
def test_rescaling_a_layer_rescales_its_rate_and_nothing_else(make, seed):
    rng = generator(make.__name__, seed)
    p = make(rng)
    a = 10.0 ** rng.uniform(-3, 3, len(p.gradient))
    scaled = Problem(a**2 * p.gradient, np.outer(a**2, a**2) * p.hessian, a**6 * p.third, p.cubic)
    plain, other = step(p), step(scaled)
    assert close(other.learning_rates.numpy() * a**2, plain.learning_rates)
    assert other.radius == pytest.approx(plain.radius, rel=1e-9)
    assert other.predicted_decrease == pytest.approx(plain.predicted_decrease, rel=1e-9)


@pytest.mark.parametrize("cubic", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(10))
def test_a_singular_hessian_does_not_break_the_scale_law(seed, cubic):
    rng = generator("singular", seed)
    B = rng.integers(-3, 4, size=(5, 3)).astype(float)
    H, g = B @ B.T, B @ rng.normal(size=3)
    a = 2.0 ** rng.integers(-20, 20, 5)
    plain = gn.newton_step(summary(g, H, np.zeros(5)), cubic=cubic)
    other = gn.newton_step(summary(a * g, np.outer(a, a) * H, np.zeros(5)), cubic=cubic)
    assert plain.status is other.status is Status.CONVERGED
    assert close(other.learning_rates.numpy() * a, plain.learning_rates)
    assert close(H @ plain.learning_rates.numpy(), g)


@pytest.mark.parametrize("seed", range(10))
def test_permuting_the_groups_permutes_the_rates(seed):
    rng = generator("permute", seed)
    p = kernel(rng)
    order = rng.permutation(len(p.gradient))
    shuffled = Problem(p.gradient[order], p.hessian[np.ix_(order, order)], p.third[order], p.cubic)
    assert close(step(shuffled).learning_rates, step(p).learning_rates[torch.from_numpy(order)])


@pytest.mark.parametrize("cubic", [0.0, 1.0])
def test_frozen_groups_get_zero_and_change_nothing(cubic):
    for seed in range(10):
        rng = generator("frozen", seed)
        p = definite(rng)._replace(cubic=cubic)
        S, at = len(p.gradient), [0, len(p.gradient)]
        H = np.insert(np.insert(p.hessian, at, 0, 0), at, 0, 1)
        got = step(Problem(np.insert(p.gradient, at, 0), H, np.insert(p.third, at, 0), cubic))
        assert got.status is Status.CONVERGED
        assert got.learning_rates[[0, -1]].tolist() == [0, 0]
        assert torch.equal(got.learning_rates[1 : S + 1], step(p).learning_rates)


@pytest.mark.parametrize("seed", range(10))
def test_groups_that_do_not_interact_with_a_kernel_keep_their_rates(seed):
    """A group pair without coupling and without third derivative is solved by itself: H_kk^+ g_k, the rest is unchanged."""
    rng = generator("block", seed)
    p, H2 = indefinite(rng), np.array([[1.0, 1.0], [1.0, 1.0]])
    S = len(p.gradient)
    H = np.block([[p.hessian, np.zeros((S, 2))], [np.zeros((2, S)), H2]])
    got = step(Problem(np.append(p.gradient, [3, 3]), H, np.append(p.third, [0, 0]), p.cubic))
    assert close(got.learning_rates[:S], step(p).learning_rates)
    assert close(got.learning_rates[S:], [1.5, 1.5])


@pytest.mark.parametrize("c", [1e-6, 0.3, 1e5])
def test_homogeneity(c):
    for seed in range(10):
        p = indefinite(generator("homogeneous", seed))
        plain = step(p)
        units = step(Problem(c * p.gradient, c * p.hessian, p.third, c * p.cubic))  # the loss in other units
        assert close(units.learning_rates, plain.learning_rates)
        assert units.predicted_decrease == pytest.approx(c * plain.predicted_decrease, rel=1e-9)
        longer = step(Problem(c * p.gradient, c**2 * p.hessian, c**3 * p.third, p.cubic))  # u -> c u
        assert close(c * longer.learning_rates, plain.learning_rates)
        assert longer.radius == pytest.approx(plain.radius, rel=1e-9)


@pytest.mark.parametrize("h", [-3.0, 0.0, 1e-9, 2.0])
@pytest.mark.parametrize("g", [-2.0, 1e-8, 0.7])
def test_one_group_has_a_closed_form(g, h):
    third, cubic = -0.4, 1.7
    d3 = abs(third) * cubic  # |g| = h x + d3 x^2 / 2 for x = |eta|
    root = math.sqrt(h * h + 2 * d3 * abs(g))
    x = 2 * abs(g) / (h + root) if h >= 0 else (root - h) / d3
    got = gn.newton_step(summary([g], [[h]], [third]), cubic=cubic)
    assert got.learning_rates.item() == pytest.approx(math.copysign(x, g), rel=1e-12)
    assert got.status is Status.CONVERGED


@pytest.mark.parametrize("seed", range(10))
def test_without_a_cubic_term_the_step_solves_the_linear_system(seed):
    p = indefinite(generator("newton", seed))
    got = step(p, cubic=0.0)
    assert close(p.hessian @ got.learning_rates.numpy(), p.gradient)
    assert got.status is (Status.SADDLE if np.linalg.eigvalsh(p.hessian)[0] < 0 else Status.CONVERGED)


@pytest.mark.parametrize("seed", range(10))
def test_an_ill_conditioned_system_is_solved_to_every_digit(seed):
    rng = generator("wide", seed)
    H, _ = spectrum(rng, 10.0 ** rng.uniform(-12, 0, 8))
    g = rng.normal(size=8)
    with mp.workdps(50):  # refinement with exact residuals converges while the condition number is below 1/EPS
        exact = solve(factor(mp.matrix(H).tolist()), [mp.mpf(x) for x in g.tolist()])
        assert close(gn.newton_step(summary(g, H), cubic=0.0).learning_rates, [float(x) for x in exact], 1e-14)


@pytest.mark.parametrize("seed", range(10))
def test_a_vanishing_cubic_term_leaves_newtons_step(seed):
    p = definite(generator("limit", seed))
    # the cubic term moves eta by its own size relative to H: cubic |D|^3 |g| / H^2 < 1e-12 * 1e3
    assert close(step(p, cubic=1e-12).learning_rates, step(p, cubic=0.0).learning_rates, 1e-7)


def test_ridge_and_diagonal_are_what_they_say():
    for seed in range(10):
        p = indefinite(generator("ridge", seed))
        shifted = p._replace(hessian=p.hessian + 0.7 * np.eye(len(p.gradient)))
        assert torch.equal(step(p, ridge=0.7).learning_rates, step(shifted).learning_rates)
        alone = p._replace(hessian=np.diag(np.diag(p.hessian)))
        assert torch.equal(step(p, diagonal=True).learning_rates, step(alone).learning_rates)


def test_the_step_is_never_worse_than_no_step():
    for seed in range(50):
        p = singular(generator("descent", seed))
        assert step(p).predicted_decrease > 0


# ---------------------------------------------------------------------------------- statuses


def test_the_papers_example():
    H, g = [[1, 6], [6, 16]], [1, 4]
    full = gn.newton_step(summary(g, H), cubic=0.0)
    assert full.status is Status.SADDLE
    assert full.status.ok
    assert close(full.learning_rates, [0.4, 0.1], 1e-15)
    assert math.isnan(full.radius)
    diagonal = gn.newton_step(summary(g, H), cubic=0.0, diagonal=True)
    assert diagonal.status is Status.CONVERGED
    assert close(diagonal.learning_rates, [1, 0.25], 1e-15)
    affine = gn.newton_step(summary(g, H, [0, 0]), on_failure="report")
    assert affine.status is Status.UNBOUNDED


@pytest.mark.parametrize(
    ("gradient", "hessian", "third", "blamed", "reason"),
    [
        ([0, 0, 0], [[1, 1, 0], [1, 0, 0], [0, 0, 1]], [1, 0, 1], "bias", "coupled"),
        ([1, 0, 0], [[1, 0, 0], [0, -2, 0], [0, 0, 1]], [1, 0, 1], "bias", "negative curvature"),
        ([1, 1, 0], [[1, 0, 0], [0, 0, 0], [0, 0, 1]], [1, 0, 1], "bias", "a gradient, but neither"),
        ([1, 1, 0], [[1, 0, 0], [0, 1, 1], [0, 1, 1]], [1, 0, 0], "bias, head", "a gradient, but neither"),
        ([0, 1, 0], [[0, 0, 0], [0, -2, 0], [0, 0, 1]], [0, 0, 1], "bias", "negative curvature"),
        ([0, 0, 0], [[1, 0, 0], [0, 1, 2], [0, 2, 1]], [1, 0, 0], "bias, head", "negative curvature"),
    ],
)
def test_unbounded_names_the_groups_and_the_reason(gradient, hessian, third, blamed, reason):
    bad = summary(gradient, hessian, third, names=("weight", "bias", "head"))
    with pytest.raises(gn.NewtonStepError, match=f"^{blamed}: {reason}.*tanh") as error:
        gn.newton_step(bad)
    reported = gn.newton_step(bad, on_failure="report")
    for failed in (error.value.step, reported):
        assert failed.status is Status.UNBOUNDED
        assert not failed.status.ok
        assert failed.learning_rates.tolist() == [0, 0, 0]
        assert (failed.radius, failed.predicted_decrease) == (0, 0)


def test_a_singular_hessian_without_cubic_term():
    H = [[1.0, 2.0], [2.0, 4.0]]
    inside = gn.newton_step(summary([1, 2], H), cubic=0.0)
    assert inside.status is Status.CONVERGED
    assert close(inside.learning_rates, [0.5, 0.25])  # least eta_0^2 + 4 eta_1^2 on eta_0 + 2 eta_1 = 1
    outside = gn.newton_step(summary([1, 0], H, names=("a", "b")), cubic=0.0, on_failure="report")
    assert outside.status is Status.UNBOUNDED
    assert outside.message.startswith("a, b: a gradient out of the range")
    assert gn.newton_step(summary([1, 0], H), cubic=0.0, ridge=0.1).status is Status.CONVERGED


@pytest.mark.parametrize("third", [[1, 1], [0, 0], [0, 1]])
@pytest.mark.parametrize("cubic", [0.0, 1.0])
@pytest.mark.parametrize("hessian", [[[2, 1], [1, 2]], [[1, 1], [1, 1]], [[0, 0], [0, 0]]])
def test_a_zero_gradient_without_negative_curvature_is_stationary(hessian, cubic, third):
    got = gn.newton_step(summary([0, 0], hessian, third), cubic=cubic)
    assert got.status is Status.STATIONARY
    assert got.learning_rates.tolist() == [0, 0]


def test_a_zero_gradient_with_negative_curvature_is_the_hard_case_with_a_fixed_sign():
    got = gn.newton_step(summary([0, 0, 0], np.diag([1.0, -2.0, -1.0]), [1, 1, 1]))
    assert got.status is Status.HARD_CASE
    assert close(got.learning_rates, [0, 4, 0])  # lambda r / 2 = 2
    for seed in range(20):
        p = indefinite(generator("sign", seed))
        p.hessian[0, 0] = -1
        rates = step(p._replace(gradient=0 * p.gradient)).learning_rates
        assert rates[rates.abs() > 1e-7 * rates.abs().max()][0] > 0


def test_the_hard_case_is_recognised_and_its_mirror_image_is_as_good():
    for seed in range(20):
        p = hard(generator("mirror", seed))
        got = step(p)
        if got.status is Status.HARD_CASE:
            low = p.gradient == 0
            assert (got.learning_rates[low] != 0).any()
            mirror = torch.where(torch.from_numpy(low), -got.learning_rates, got.learning_rates)
            assert float(model(p, mirror)) == pytest.approx(-got.predicted_decrease, rel=1e-12)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["gradient", "hessian", "third"])
def test_what_is_not_finite_is_named(where, value):
    parts = {"gradient": np.ones(3), "hessian": np.eye(3), "third": np.ones(3)}
    parts[where][(1,) * parts[where].ndim] = value
    bad = summary(**parts, names=("a", "b", "c"))
    with pytest.raises(gn.NewtonStepError, match=r"^b: a derivative that is not finite"):
        gn.newton_step(bad)
    got = gn.newton_step(bad, on_failure="report")
    assert got.status is Status.NOT_FINITE
    assert got.learning_rates.tolist() == [0, 0, 0]


def test_a_step_beyond_float64_is_not_finite():
    got = gn.newton_step(summary([1e200], [[1e-200]]), cubic=0.0, on_failure="report")
    assert got.status is Status.NOT_FINITE
    assert got.learning_rates.tolist() == [0]


def test_statuses_are_help_texts():
    assert len({status.value for status in Status}) == len(Status) == 6
    assert {status for status in Status if not status.ok} == {Status.UNBOUNDED, Status.NOT_FINITE}
    assert all(len(status.value) > 30 for status in Status)
    for word in ("ReLU", "tanh", "cross-entropy", "ridge"):
        assert word in Status.UNBOUNDED.value


# ---------------------------------------------------------------------------------- the door


def parts(**changes):
    fine = {"gradient": torch.ones(2), "hessian": torch.eye(2), "third": torch.ones(2), "names": ("a", "b")}
    return SimpleNamespace(**{**fine, **changes})


@pytest.mark.parametrize("name", ["cubic", "ridge"])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_cubic_and_ridge_must_be_finite_and_not_negative(name, value):
    with pytest.raises(ValueError, match=f"{name} must be a finite number >= 0"):
        gn.newton_step(parts(), **{name: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hessian": None}, "order=2"),
        ({"third": None}, "order=3"),
        ({"gradient": torch.ones(3)}, r"\(3,\)"),
        ({"gradient": torch.ones(2, 1)}, r"\(2, 1\)"),
        ({"hessian": torch.eye(3)}, r"\(3, 3\)"),
        ({"third": torch.ones(1)}, r"\(1,\)"),
        ({"gradient": torch.ones(0), "hessian": torch.ones(0, 0), "third": torch.ones(0)}, "S >= 1"),
        ({"names": ("a",)}, "one name for each of 2 groups"),
        ({"hessian": torch.tensor([[1.0, 0.5], [0.1, 1.0]])}, r"symmetric hessian, got 0.5 for \(a, b\) but 0.1"),
        ({"hessian": torch.eye(2, device="meta")}, "meta"),
        ({"gradient": torch.ones(2, dtype=torch.complex64)}, "complex64"),
    ],
)
def test_a_wrong_summary_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        gn.newton_step(parts(**changes))


def test_a_wrong_on_failure_is_refused():
    with pytest.raises(ValueError, match="on_failure"):
        gn.newton_step(parts(), on_failure="ignore")


def test_rounding_asymmetry_is_averaged_away():
    H = torch.tensor([[2.0, 1.0 + 1e-5], [1.0 - 1e-5, 2.0]], dtype=torch.float64)
    symmetric = gn.newton_step(parts(hessian=(H + H.T) / 2)).learning_rates
    assert torch.equal(gn.newton_step(parts(hessian=H)).learning_rates, symmetric)


def test_the_result_is_float64_and_the_summary_is_left_alone():
    given = parts(gradient=torch.tensor([1.0, 2.0], requires_grad=True))
    before = given.gradient.clone()
    got = gn.newton_step(given)
    assert (got.learning_rates.dtype, got.learning_rates.device.type) == (torch.float64, "cpu")
    assert not got.learning_rates.requires_grad
    assert torch.equal(given.gradient, before)
    assert torch.equal(given.hessian, torch.eye(2))


def test_the_repr_is_short():
    S = 100
    text = repr(gn.newton_step(summary(np.ones(S), np.eye(S), np.ones(S))))
    assert text.startswith("Step(CONVERGED, learning_rates=[")
    assert len(text) < 150


def test_the_model_does_not_leave_out_a_cubic_term_that_it_cannot_know():
    summary = gn.Summary.from_tensors(gradient=[1.0], hessian=[[1.0]])
    with pytest.raises(ValueError, match="expected a summary of order 3"):
        CubicModel(summary, 1.0).decrease(torch.ones(1))
    assert CubicModel(summary, 0.0).decrease(torch.ones(1)) == 0.5


def test_a_step_is_of_a_summary():
    with pytest.raises(TypeError, match="expected a Summary, got dict"):
        gn.newton_step({"gradient": torch.ones(1)})


def test_the_error_comes_whole_from_another_process():
    with pytest.raises(gn.NewtonStepError) as caught:
        gn.newton_step(gn.Summary.from_tensors(gradient=[1.0], hessian=[[-1.0]], third=[0.0]))
    error = pickle.loads(pickle.dumps(caught.value))
    assert str(error) == str(caught.value)
    assert error.step.status is Status.UNBOUNDED
