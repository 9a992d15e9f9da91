"""Functions of eigenvalues and singular values: right, or refused where torch's formula has lost their digits in a gap.

The oracle is the same function of the matrix in products, in float64. The guard aims at the tolerance of the proof of custom
functions, 1e-6 in float64 and 5e-3 in float32, relative to the derivatives of their size, which is about 1 here. How many roundings
the eigenvectors carry is the solver's, and another processor's is another one (1.0e-6 with AVX2 in place of 1e-7): ten times that is allowed.
"""

import itertools
import re

import pytest
import torch
from torch import linalg, nn

import gnewton as gn
from gnewton.derivatives import nested

SIZE = 4


def symmetric(a):
    return (a + a.mT) / 2


def cube_by_eigh(a):
    values, vectors = linalg.eigh(symmetric(a))
    return (vectors * values**3) @ vectors.mT


def cube_by_eig(a):
    values, vectors = linalg.eig(symmetric(a))
    return ((vectors * values**3) @ linalg.inv(vectors)).real


def cube_by_svd(a):
    left, values, right = linalg.svd(a, full_matrices=False)
    return (left * values**3) @ right


def matrix_by_svd(a):
    left, values, right = linalg.svd(a, full_matrices=False)
    return (left * values) @ right


def gram_by_svd(a):
    _, values, right = linalg.svd(a, full_matrices=False)
    return (right.mT * values**2) @ right


def exponential_by_eigh(a):
    values, vectors = linalg.eigh(symmetric(a))
    return (vectors * values.exp()) @ vectors.mT


def cube(a):
    return symmetric(a) @ symmetric(a) @ symmetric(a)


# Each by a decomposition, and without one.
FUNCTIONS = {
    "eigh": (cube_by_eigh, cube),
    "eig": (cube_by_eig, cube),
    "svd": (cube_by_svd, lambda a: a @ a.mT @ a),
    "the matrix itself": (matrix_by_svd, lambda a: a),
    "right vectors": (gram_by_svd, lambda a: a.mT @ a),
    "exponential": (exponential_by_eigh, lambda a: linalg.matrix_exp(symmetric(a))),
    "eigvalsh": (lambda a: linalg.eigvalsh(symmetric(a)).pow(4).sum(), lambda a: cube(a).mul(symmetric(a)).sum()),
    "eigvals": (lambda a: linalg.eigvals(symmetric(a)).pow(4).sum().real, lambda a: cube(a).mul(symmetric(a)).sum()),
    "svdvals": (lambda a: linalg.svdvals(a).pow(4).sum(), lambda a: (a.mT @ a).square().sum()),
    "norm by svdvals": (lambda a: linalg.svdvals(a).square().sum(), lambda a: a.square().sum()),
}


def problem(function, values, dtype=torch.float64, columns=SIZE, seed=0):
    """A loss of a matrix with these singular values, for a square one eigenvalues too; and a direction."""
    g = torch.Generator().manual_seed(seed)
    basis = linalg.qr(torch.randn(SIZE, SIZE, generator=g, dtype=torch.float64))[0]
    right = basis if columns == SIZE else linalg.qr(torch.randn(columns, columns, generator=g, dtype=torch.float64))[0]
    matrix = nn.Parameter(((basis[:, :columns] * torch.tensor(values, dtype=torch.float64)) @ right.mT).to(dtype))
    weight = torch.randn(SIZE, columns, generator=g, dtype=torch.float64).to(dtype)
    u = torch.randn(SIZE, columns, generator=g, dtype=torch.float64).to(dtype)
    partition = gn.Partition.from_groups({"matrix": {"matrix": matrix}})
    return (lambda: (function(matrix) * weight).mean().sin()), partition, {"matrix": u}


def oracle(name, values, dtype, **options):
    """The derivatives in float64 where a matrix of the other type stands."""
    _, partition, u = problem(FUNCTIONS[name][1], values, dtype, **options)
    loss, wide, _ = problem(FUNCTIONS[name][1], values, torch.float64, **options)
    with torch.no_grad():
        wide.parameters["matrix"].copy_(partition.parameters["matrix"])
    return gn.summarize(loss, wide, {"matrix": u["matrix"].double()})


def largest_error(got, expected):
    pairs = zip(got.tensors(), expected.tensors(), strict=False)
    return max(float((a.double() - b.double()).abs().max() / (b.abs().max() + 0.1)) for a, b in pairs)


GAPS = (0.25, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-8, 1e-11)
ALLOWED = {torch.float64: 1e-5, torch.float32: 5e-2}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_close_values_are_right_or_refused(name, order, dtype):
    taken = []
    for gap, values in [(g, (1.0, 1.0 - g, 0.5, 0.3)) for g in GAPS] + [(g, (1.0, 0.6, 2 * g, g)) for g in GAPS]:
        summary = error = None
        try:
            summary = gn.summarize(*problem(FUNCTIONS[name][0], values, dtype), order=order)
        except NotImplementedError as raised:
            error = str(raised)
        if summary is None:
            assert re.search('close together.*engine="differences"', error)
            continue
        taken.append(gap)
        assert largest_error(summary, oracle(name, values, dtype)) < ALLOWED[dtype], values
    assert taken.count(0.25) == 2
    assert taken.count(1e-2) == 2 or order == 3
    assert 1e-11 not in taken


@pytest.mark.parametrize("name", ["svd", "svdvals"])
@pytest.mark.parametrize("order", [2, 3])
def test_small_singular_values_are_right_or_refused(name, order):
    """Where the matrix is not square torch divides by them."""
    by_svd, columns = FUNCTIONS[name][0], 3
    for smallest in (0.25, 1e-2, 1e-4, 1e-6, 1e-8, 1e-11):
        values = (1.0, 0.6, smallest)
        try:
            summary = gn.summarize(*problem(by_svd, values, columns=columns), order=order)
        except NotImplementedError:
            assert smallest < 1e-2
            continue
        assert largest_error(summary, oracle(name, values, torch.float64, columns=columns)) < 1e-6
        assert smallest > 1e-11


def test_the_control_the_derivatives_are_lost():
    values = (1.0, 1.0 - 1e-6, 0.5, 0.3)
    loss, partition, u = problem(cube_by_eigh, values)
    _, _, third, _ = nested.summary(loss(), partition, u)
    assert not torch.allclose(third, oracle("eigh", values, torch.float64).third, rtol=0.1)


@pytest.mark.parametrize("values", [(1.0, 1.0, 1.0, 1.0), (1.0, 0.5, 0.0, 0.0)])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_equal_values_are_refused_or_not_finite(name, values):
    try:
        summary = gn.summarize(*problem(FUNCTIONS[name][0], values))
    except NotImplementedError:
        return
    assert not summary.hessian.isfinite().all()


@pytest.mark.parametrize("count", [5, 10])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("function", [cube_by_eigh, cube_by_svd, linalg.svdvals])
def test_random_matrices_are_taken_at_order_two(function, dtype, count):
    for seed in range(4):
        torch.manual_seed(seed)
        layer = nn.Linear(count, count, bias=False).to(dtype)
        partition = gn.Partition.by_layer(layer)
        summary = gn.summarize(
            lambda layer=layer: function(layer.weight).square().sum(),
            partition,
            {"weight": layer.weight.detach()},
            order=2,
        )
        assert summary.exact


EXTREMES = {
    "matrix_norm": lambda a: linalg.matrix_norm(a, 2),
    "max": lambda a: linalg.svdvals(a).max(),
    "amax": lambda a: linalg.svdvals(a).amax(),
    "first": lambda a: linalg.svdvals(a)[0],
    "last of eigvalsh": lambda a: linalg.eigvalsh(a.mT @ a)[-1].sqrt(),
    "slice": lambda a: linalg.eigvalsh(a.mT @ a)[-1:].sqrt().sum(),
    # In torch 2.6 a slice of all rows stands before [:, -1], which is not looked through.
    "vector": lambda a: (a @ linalg.eigh(a.mT @ a)[1].select(1, -1)).norm(),
    "row": lambda a: (a @ linalg.svd(a)[2][0]).norm(),
    "pair of vectors": lambda a: (a @ linalg.svd(a)[2][:1].mT).norm(),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", EXTREMES)
def test_values_that_are_not_used_may_be_close(name, dtype):
    """The spectral norm: at order 2 it is right whatever the small values do. The oracle is the trace of a high power."""
    taken = []
    for gap, order in itertools.product(GAPS, (2, 3)):
        values = (1.0, 0.5, 0.3, 0.3 - gap)
        try:
            summary = gn.summarize(*problem(EXTREMES[name], values, dtype), order=order)
        except NotImplementedError:
            continue
        taken.append((gap, order))
        loss, wide, u = problem(by_powers, values)
        with torch.no_grad():
            wide.parameters["matrix"].copy_(problem(by_powers, values, dtype)[1].parameters["matrix"])
        # (1 / 2) ** 256 and less is left of the other values.
        assert largest_error(summary, gn.summarize(loss, wide, u)) < ALLOWED[dtype], (gap, order)
    assert (1e-3, 2) in taken
    assert (1e-11, 2) in taken or "vector" in name or name == "row"


def by_powers(a):
    squares = a.mT @ a
    for _ in range(7):
        squares = squares @ squares
    return squares.trace() ** (1 / 256)


# -- matrices that are not normal, and triangular factors ------------------------------------------------------------------------


def cube_by_eigenvectors(a):
    values, vectors = linalg.eig(a)
    return ((vectors * values**3) @ linalg.inv(vectors)).real


NOT_NORMAL = {
    "eig": (cube_by_eigenvectors, lambda a: a @ a @ a),
    "eigvals": (lambda a: linalg.eigvals(a).square().sum().real, lambda a: (a @ a).trace()),
}


def rotated(matrix, seed):
    """The matrix in another basis, and as it is with the seed 0."""
    g = torch.Generator().manual_seed(seed)
    basis = linalg.qr(torch.randn(3, 3, generator=g, dtype=torch.float64))[0] if seed else torch.eye(3)
    return basis.double() @ matrix @ basis.double().mT


def defective(small, seed):
    """Of two eigenvalues 1 +- small, whose vectors are parallel up to small."""
    return rotated(torch.tensor([[1, 1, 0], [small**2, 1, 0], [0, 0, 2]], dtype=torch.float64), seed)


def triangular(small, seed, gap=0.3):
    """Of eigenvalues that lie apart, and of entries 1 / small beside them."""
    upper = torch.tensor([[0.0, 0.9, -0.6], [0.0, 0.0, 0.7], [0.0, 0.0, 0.0]], dtype=torch.float64)
    return rotated(torch.diag(torch.tensor([1.0, 1.0 - gap, 0.4], dtype=torch.float64)) + upper / small, seed)


def of_matrix(function, matrix, seed):
    g = torch.Generator().manual_seed(seed + 10)
    parameter = nn.Parameter(matrix.clone())
    weight, u = (torch.randn(matrix.shape, generator=g, dtype=torch.float64) for _ in range(2))
    partition = gn.Partition.from_groups({"matrix": {"matrix": parameter}})
    return (lambda: (function(parameter) * weight).mean().sin()), partition, {"matrix": u}


def refused_or_right(pair, matrix, seed, order):
    """Whether it was taken; if so, it is right."""
    summary = error = None
    try:
        summary = gn.summarize(*of_matrix(pair[0], matrix, seed), order=order)
    except NotImplementedError as raised:
        error = str(raised)
    if summary is None:
        assert re.search('close together.*engine="differences"', error)
        return False
    assert largest_error(summary, gn.summarize(*of_matrix(pair[1], matrix, seed))) < ALLOWED[torch.float64]
    return True


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("family", [defective, triangular])
@pytest.mark.parametrize("name", NOT_NORMAL)
def test_eigenvectors_that_are_all_but_parallel_are_right_or_refused(name, family, order):
    for seed in range(4):
        taken = {s: refused_or_right(NOT_NORMAL[name], family(s, seed), seed, order) for s in (0.5, *GAPS)}
        assert taken[0.5]
        assert not taken[1e-8]


FACTORS = {
    "qr": (lambda a: torch.matmul(*linalg.qr(a)), lambda a: a),
    "r": (lambda a: linalg.qr(a).R.square().sum(), lambda a: a.square().sum()),
    "lu": (lambda a: torch.chain_matmul(*linalg.lu(a)), lambda a: a),
    "lu_factor": (lambda a: _multiplied(*linalg.lu_factor(a)), lambda a: a),
}


def _multiplied(lu, pivots):
    p, lower, upper = torch.lu_unpack(lu, pivots)
    return p @ lower @ upper


def all_but_singular(smallest, seed, shape=(3, 3)):
    g = torch.Generator().manual_seed(seed)
    left, right = (linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64))[0] for n in shape)
    size = min(shape)
    values = torch.linspace(1, 0.6, size, dtype=torch.float64)
    values[-1] = smallest
    return (left[:, :size] * values) @ right[:, :size].mT


@pytest.mark.filterwarnings("ignore:torch.chain_matmul")
@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("shape", [(3, 3), (5, 3), (3, 5)], ids=str)
@pytest.mark.parametrize("name", FACTORS)
def test_factors_of_an_all_but_singular_matrix_are_right_or_refused(name, shape, order):
    for seed in range(4):
        taken = {
            s: refused_or_right(FACTORS[name], all_but_singular(s, seed, shape), seed, order)
            for s in (0.25, 1e-2, *GAPS)
        }
        assert taken[0.25]
        assert taken[1e-2]
        # Beside other columns a small last singular value makes no triangle small.
        assert not taken[1e-11] or shape == (3, 5)


LOST = {
    "eigvals": (NOT_NORMAL["eigvals"], defective(1e-4, 0)),
    "qr": (FACTORS["qr"], all_but_singular(1e-9, 0)),
    "lu": (FACTORS["lu"], all_but_singular(1e-9, 0)),
}


@pytest.mark.filterwarnings("ignore:torch.chain_matmul")
@pytest.mark.parametrize("name", LOST)
def test_the_control_these_digits_are_lost(name):
    pair, matrix = LOST[name]
    third = [nested.summary(f(), partition, u)[2] for f, partition, u in (of_matrix(f, matrix, 0) for f in pair)]
    assert not torch.allclose(*third, rtol=1e-3)


@pytest.mark.parametrize(
    "function", [lambda a: linalg.qr(a).R, lambda a: linalg.lu(a).U, lambda a: linalg.eigvals(a).abs()]
)
@pytest.mark.parametrize("count", [5, 20])
def test_random_matrices_are_taken_at_both_orders(function, count):
    for seed in range(4):
        matrix = torch.randn(count, count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        parameter = nn.Parameter(matrix)
        partition = gn.Partition.from_groups({"matrix": {"matrix": parameter}})
        assert gn.summarize(lambda p=parameter: function(p).square().sum(), partition, {"matrix": matrix.cos()}).exact
