"""Functions whose gradient in torch is right for some arguments alone are refused for the others; everything else is let through.

The oracle is a central difference of the values themselves, entry by entry: step 1e-6, whose error in float64 is some 1e-9 of the
largest entry. A gradient that counts the other triangle is off by a fifth of it or more.
"""

import warnings

import pytest
import torch
from torch.distributions import MultivariateNormal

import gnewton as gn
from gnewton.assumptions import assumption, check_argument

N, DTYPE = 4, torch.float64
GENERATOR = torch.Generator().manual_seed(0)
GENERIC = 6 * torch.eye(N, dtype=DTYPE) + torch.randn(N, N, generator=GENERATOR, dtype=DTYPE)
COLUMNS = torch.randn(N, 2, generator=GENERATOR, dtype=DTYPE)
IN_TORCH = (
    "cholesky",
    "cholesky_inverse",
    "det",
    "logdet",
    "slogdet",
    "inverse",
    "pinverse",
    "matrix_exp",
    "qr",
    "svd",
)
OF_TWO = {
    "cholesky_solve": lambda a: torch.cholesky_solve(COLUMNS, a),
    "cholesky_solve, upper": lambda a: torch.cholesky_solve(COLUMNS, a, upper=True),
    "cholesky_inverse, upper": lambda a: torch.cholesky_inverse(a, upper=True),
    "cholesky, upper": lambda a: torch.linalg.cholesky(a, upper=True),
    "eigvalsh, upper": lambda a: torch.linalg.eigvalsh(a, UPLO="U"),
    "pinv, hermitian": lambda a: torch.linalg.pinv(a, hermitian=True),
    "pinv, hermitian by its place": lambda a: torch.linalg.pinv(a, 1e-15, True),
    "pinv": torch.linalg.pinv,
    "solve_triangular": lambda a: torch.linalg.solve_triangular(a, COLUMNS, upper=False),
    "solve": lambda a: torch.linalg.solve(a, COLUMNS),
    "lu_solve": lambda a: torch.linalg.lu_solve(a, torch.arange(1, N + 1, dtype=torch.int32), COLUMNS),
    "ormqr": lambda a: torch.ormqr(a, torch.ones(N, dtype=DTYPE) / 2, COLUMNS),
    "method": torch.Tensor.cholesky_inverse,
    "library": torch.ops.aten.linalg_eigvalsh,
    "normal": lambda a: MultivariateNormal(COLUMNS[:, 0], a, validate_args=False).log_prob(COLUMNS[:, 1]),
    "normal of a factor": lambda a: MultivariateNormal(COLUMNS[:, 0], scale_tril=a, validate_args=False).log_prob(
        COLUMNS[:, 1]
    ),
}


def numbers(out):
    """One scalar of all results; squares of absolute values, as signs and phases of vectors are free."""
    parts = [out] if isinstance(out, torch.Tensor) else list(out)
    sizes = [t.abs().square().flatten() for t in parts if t.is_floating_point() or t.is_complex()]
    return torch.cat([s * torch.arange(1.0, len(s) + 1, dtype=DTYPE).cos() for s in sizes]).sum()


def gradient(function, a):
    leaf = a.clone().requires_grad_()
    (g,) = torch.autograd.grad(numbers(function(leaf)), leaf)
    return g


def differences(function, a, along=None):
    """d numbers / d a_ij, or along each matrix of a list."""
    h, moves = 1e-6, along if along is not None else torch.eye(N * N, dtype=DTYPE).reshape(-1, N, N)
    return torch.stack([(numbers(function(a + h * e)) - numbers(function(a - h * e))) / (2 * h) for e in moves])


def discovered():
    """Every function of torch.linalg, and older ones of torch, that takes one square matrix and can be differentiated."""
    named = {f"linalg.{name}": getattr(torch.linalg, name) for name in dir(torch.linalg) if name[0] != "_"}
    cases = {}
    for name, function in (named | {name: getattr(torch, name) for name in IN_TORCH}).items():
        try:
            if callable(function) and gradient(function, GENERIC).isfinite().all():
                cases[name] = function
        except (RuntimeError, TypeError, AttributeError, ValueError):
            continue  # takes something else, or has no gradient that is defined
    return cases


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch.cholesky, torch.qr and torch.svd are deprecated
    CASES = discovered() | OF_TWO
# Of a matrix that a view is taken of first, so that it has places of the memory which the view has not.
STRIDED = {
    "all of it": lambda a: (a * 1).as_strided((N, N), (1, N)),
    "the transpose": lambda a: (a * 1).mT.as_strided((N * N,), (1,)),
    "rows, within": lambda a: (a * 1)[1:3].as_strided((2, 2), (1, 3), N + 1),
    "rows, windows within": lambda a: torch.as_strided((a * 1)[1:3], size=(3, 2), stride=(2, 1), storage_offset=N),
    "rows, after": lambda a: (a * 1)[:2].as_strided((3, N), (N, 1)),
    "rows, before": lambda a: torch.as_strided((a * 1)[2:], (2,), (1,), 0),
    "columns, between": lambda a: torch.as_strided((a * 1)[:, :2], size=(3,), stride=(1,)),
    "a diagonal, between": lambda a: (a * 1).diagonal().as_strided((N, 2), (N, 1)),
    "expanded": lambda a: (a * 1)[:1].expand(N, N).as_strided((2, N), (0, 1)),
}
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def is_right(function):
    g, d = gradient(function, GENERIC).flatten(), differences(function, GENERIC)
    gap = float((g - d).abs().max() / d.abs().max())
    assert gap < 1e-6 or gap > 0.05  # nothing in between
    return gap < 1e-6


def test_enough_is_tried():
    assert {"linalg.cholesky", "linalg.eigh", "linalg.inv", "linalg.svdvals", "cholesky_inverse"} <= set(CASES)
    assert 4 <= sum(not is_right(f) for f in STRIDED.values()) <= len(STRIDED) - 4
    assert 8 <= sum(not is_right(f) for f in CASES.values()) <= len(CASES) - 12


@pytest.mark.parametrize("function", [*CASES.values(), *STRIDED.values()], ids=[*CASES, *STRIDED])
def test_refused_where_torch_s_gradient_is_not_the_derivative_and_nowhere_else(function):
    w = GENERIC.clone().requires_grad_()
    partition, loss = gn.Partition.from_groups({"w": {"w": w}}), lambda: numbers(function(w))
    u = {"w": torch.ones(N, N, dtype=DTYPE)}
    calls = [
        lambda: gn.direction.gradient(loss, partition),
        *(
            lambda e=engine: gn.summarize(loss, partition, u, order=2, engine=e)
            for engine in ("auto", "nested", "differences")
        ),
    ]
    for call in calls:
        if is_right(function):
            call()
        else:
            with pytest.raises(ValueError, match="torch's gradient is not the derivative"):
                call()


@pytest.mark.parametrize("name", [name for name, function in CASES.items() if not is_right(function)])
def test_where_the_matrix_is_what_it_is_meant_to_be_the_gradient_is_right(name):
    upper, factor = (
        "upper" in name and "cholesky," not in name,
        any(part in name for part in ("solve", "inverse", "method")),
    )
    shape = (lambda a: a.triu() if upper else a.tril()) if factor else lambda a: (a + a.mT) / 2
    a = shape(GENERIC)
    moves = [shape(e) for e in torch.eye(N * N, dtype=DTYPE).reshape(-1, N, N)]
    g = gradient(CASES[name], a)
    along = torch.stack([(g * e).sum() for e in moves])
    torch.testing.assert_close(along, differences(CASES[name], a, moves), rtol=1e-6, atol=1e-7)
    w = a.clone().requires_grad_()
    partition = gn.Partition.from_groups({"w": {"w": w}})
    gn.summarize(lambda: numbers(CASES[name](w)), partition, {"w": moves[1]}, order=2)


def test_rounding_is_no_asymmetry_and_constants_are_nobody_s_concern():
    w = torch.randn(N, N, generator=GENERATOR).requires_grad_()
    a = w @ w.T + 4 * torch.eye(N)
    check_argument(torch.linalg.cholesky, (a + 1e-5 * torch.randn(N, N, generator=GENERATOR),), {})
    check_argument(torch.linalg.cholesky, (GENERIC,), {})
    with torch.no_grad():
        check_argument(torch.linalg.cholesky, (GENERIC.clone().requires_grad_(),), {})
    assert assumption(torch.linalg.inv) is None


def ctc(log_probs):
    targets, lengths = torch.tensor([[1, 2, 1], [3, 3, 2]]), torch.tensor([3, 3])
    return torch.nn.functional.ctc_loss(log_probs, targets, torch.tensor([8, 8]), lengths)


def test_ctc_of_what_is_not_normalized_is_refused_and_its_gradient_is_wrong():
    w = torch.randn(8, 2, 5, generator=GENERATOR, dtype=DTYPE).requires_grad_()
    partition, u = gn.Partition.from_groups({"w": {"w": w}}), {"w": torch.ones(8, 2, 5, dtype=DTYPE).cumsum(0).cos()}
    right = gn.summarize(lambda: ctc(w.log_softmax(-1)), partition, u, order=2, engine="differences")
    for loss, gap in ((lambda v: ctc(v.log_softmax(-1)), 0.0), (ctc, 0.1)):
        (g,) = torch.autograd.grad(loss(w), w)
        with torch.no_grad():
            slope = (loss(w + 1e-6 * u["w"]) - loss(w - 1e-6 * u["w"])) / 2e-6
        assert abs(float((g * u["w"]).sum() - slope)) >= gap
        if gap == 0:
            torch.testing.assert_close(right.gradient[0], slope, rtol=1e-6, atol=1e-8)
    for call in (
        lambda: gn.direction.gradient(lambda: ctc(w), partition),
        lambda: gn.summarize(lambda: ctc(w), partition, u, order=2, engine="differences"),
        lambda: gn.summarize(lambda: ctc(w), partition, u, order=2),
    ):
        with pytest.raises(ValueError, match="normalized log_probs"):
            call()
