"""Values that meet at one place are refused by name, in every engine; distinct places, sums and constants are not.

The oracle of what is taken is a product with the matrix of zeros and ones that the write stands for, to 1e-12 of the
largest entry: the same sums in another order. The negative control is torch's own gradient, which takes both values.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gnewton as gn
from gnewton.repeated import may_overlap

DTYPE = torch.float64
SQUARE = torch.ones(3, 3, dtype=DTYPE)


def rows(index):
    return torch.tensor(index)[:, None].expand(-1, 3)


def assigned(target, index, value):
    target[index] = value
    return target


def unpooled(x):
    y, places = F.max_pool2d(x.reshape(1, 1, 3, 3), 2, 1, return_indices=True)
    return F.max_unpool2d(y, places, 2, 1, output_size=(3, 3)).reshape(3, 3)


# x (3, 3) and w (2, 3) depend on parameters; i holds two rows of x.
WRITES = {
    "index_copy": lambda x, i, w: x.index_copy(0, torch.tensor(i), w),
    "index_copy, axis from the end": lambda x, i, w: x.index_copy(-2, torch.tensor(i), w),
    "index_copy_": lambda x, i, w: x.clone().index_copy_(0, torch.tensor(i), w),
    "index_copy_ into a view": lambda x, i, w: torch.cat([x, x])[:3].index_copy_(0, torch.tensor(i), w),
    "index_copy_ by name": lambda x, i, w: torch.cat([x, x])[:3].index_copy_(dim=0, index=torch.tensor(i), source=w),
    "aten.index_copy": lambda x, i, w: torch.ops.aten.index_copy.default(x, 0, torch.tensor(i), w),
    "scatter": lambda x, i, w: x.scatter(0, rows(i), w),
    "scatter along the last axis": lambda x, i, w: x.T.scatter(-1, rows(i).T, w.T).T,
    "scatter_": lambda x, i, w: x.clone().scatter_(0, rows(i), w),
    "scatter_ into a view": lambda x, i, w: torch.cat([x, x])[:3].scatter_(0, rows(i), w),
    "index_put": lambda x, i, w: x.index_put((torch.tensor(i),), w),
    "index_put, counted from the end": lambda x, i, w: x.index_put((torch.tensor([i[0] - 3, i[1]]),), w),
    "index_put_": lambda x, i, w: x.clone().index_put_((torch.tensor(i),), w),
    "index_put of columns": lambda x, i, w: x.T.index_put((torch.arange(3)[:, None], torch.tensor(i)), w.T).T,
    "put": lambda x, i, w: x.put(torch.arange(9).reshape(3, 3)[i], w),
    "put_": lambda x, i, w: x.clone().put_(torch.arange(9).reshape(3, 3)[i], w),
    "item assignment": lambda x, i, w: assigned(x.clone(), i, w),
    "item assignment of columns": lambda x, i, w: assigned(x.T.clone(), (slice(None), i), w.T).T,
    "item assignment into a view": lambda x, i, w: assigned(torch.cat([x, x])[:3], torch.tensor(i), w),
    "item assignment of one value": lambda x, i, w: assigned(x.clone(), i, w[0]),
    "item assignment, mixed": lambda x, i, w: assigned(x.clone()[None], (0, i), w)[0],
    "index_fill": lambda x, i, w: x.index_fill(0, torch.tensor(i), w[0, 0]),
    "vmap": lambda x, i, w: torch.func.vmap(lambda a, b: a.index_copy(0, torch.tensor(i), b), 1, 1)(x, w),
}
DISTINCT, TWICE = [2, 0], [2, 2]


def problem(write, index):
    torch.manual_seed(0)
    model, data = nn.Linear(3, 3, dtype=DTYPE), torch.randn(3, 3, dtype=DTYPE)
    weights = torch.linspace(-1, 1, 9, dtype=DTYPE).reshape(3, 3)
    partition = gn.Partition.by_tensor(model)
    u = {n: torch.randn_like(p) for n, p in partition.parameters.items()}

    def loss():
        x = model(data)
        return (write(x, index, (2 * x[:2]).tanh()).sin() * weights).sum()

    return loss, partition, u


def as_product(name):
    """The same write as a sum of products with zeros and ones."""
    spread = torch.eye(3, dtype=DTYPE)[:, DISTINCT]
    single = {"item assignment of one value": lambda w: w[0].expand(2, 3), "index_fill": lambda w: w[0, 0].expand(2, 3)}
    keep = torch.tensor([[0.0], [1.0], [0.0]], dtype=DTYPE)
    return lambda x, i, w: keep * x + spread @ single.get(name, lambda w: w)(w)


@pytest.mark.parametrize("engine", ["auto", "nested"])
@pytest.mark.parametrize("name", WRITES)
def test_distinct_places_are_taken(name, engine):
    summary = gn.summarize(*problem(WRITES[name], DISTINCT), engine=engine)
    expected = gn.summarize(*problem(as_product(name), DISTINCT), engine="nested")
    for ours, theirs in zip(summary.tensors(), expected.tensors(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12 * theirs.abs().max().item())


@pytest.mark.parametrize("engine", ["auto", "tape", "nested", "differences"])
@pytest.mark.parametrize("name", WRITES)
def test_a_place_that_occurs_twice_is_refused(name, engine):
    loss, partition, u = problem(WRITES[name], TWICE)
    with pytest.raises(ValueError, match=r"distinct places, got .* with a place that occurs twice.*index_add"):
        gn.summarize(loss, partition, u, engine=engine)


@pytest.mark.parametrize("name", WRITES)
def test_the_gradient_alone_is_refused_as_well(name):
    loss, partition, u = problem(WRITES[name], TWICE)
    with pytest.raises(ValueError, match="with a place that occurs twice"):
        gn.summarize(loss, partition, u, order=1)
    with pytest.raises(ValueError, match="with a place that occurs twice"):
        gn.direction.gradient(loss, partition)
    loss, partition, u = problem(WRITES[name], DISTINCT)
    slopes, summary = gn.direction.gradient(loss, partition), gn.summarize(loss, partition, u, order=1)
    sums = torch.stack([(slopes[n] * u[n]).sum() for n in u])
    # Roundings of a dozen terms.
    torch.testing.assert_close(sums, summary.gradient, rtol=1e-12, atol=1e-13)


def index_put_in_a_view(x: torch.Tensor, i: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    y = torch.cat([x, x])[:3]
    y[i] = w
    return y


def index_copy_in_a_view(x: torch.Tensor, i: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    y = torch.cat([x, x])
    y[:3].index_copy_(-2, i, w)
    return y[:3]


def scatter_in_a_view(x: torch.Tensor, i: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    y = torch.cat([x, x])
    y[:3].scatter_(0, i[:, None].expand(2, 3), w)
    return y[:3]


def put_in_a_view(x: torch.Tensor, i: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    y = torch.cat([x, x])
    y[:3].put_(torch.arange(9, device=x.device).view(3, 3)[i], w)
    return y[:3]


def accumulated_in_a_view(x: torch.Tensor, i: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    y = torch.cat([x, x])
    y[:3].index_put_([i], w, accumulate=True)
    return y[:3]


SCRIPTED = (index_put_in_a_view, index_copy_in_a_view, scatter_in_a_view, put_in_a_view)


@pytest.mark.filterwarnings("ignore::gnewton.derivatives.record.IncompleteRecordWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(
    "how", [torch.jit.script, lambda f: torch.jit.trace(f, (SQUARE, torch.tensor([2, 0]), SQUARE[:2]))]
)
@pytest.mark.parametrize("function", SCRIPTED, ids=lambda f: f.__name__)
def test_a_write_inside_a_scripted_function_is_seen(function, how):
    scripted = how(function)
    write = lambda x, i, w: scripted(x, torch.tensor(i), w)  # noqa: E731
    with pytest.raises(ValueError, match=r"distinct places, got .* with a place that occurs twice"):
        gn.summarize(*problem(write, TWICE))
    summary = gn.summarize(*problem(write, DISTINCT))
    expected = gn.summarize(*problem(as_product("index_copy"), DISTINCT), engine="nested")
    torch.testing.assert_close(summary.third, expected.third, rtol=1e-10, atol=1e-10)


@pytest.mark.filterwarnings("ignore::gnewton.derivatives.record.IncompleteRecordWarning")
def test_what_a_scripted_function_accumulates_is_taken():
    scripted = torch.jit.script(accumulated_in_a_view)
    summaries = [
        gn.summarize(*problem(lambda x, i, w, f=f: f(x, torch.tensor(i), w), TWICE))
        for f in (scripted, lambda x, i, w: x.index_add(0, i, w))
    ]
    torch.testing.assert_close(summaries[0].third, summaries[1].third, rtol=1e-10, atol=1e-10)


def test_the_control_torch_takes_both_values():
    w = torch.tensor([1.0, 2.0], dtype=DTYPE, requires_grad=True)
    written = torch.zeros(3, dtype=DTYPE).index_copy(0, torch.tensor([1, 1]), w)
    (slope,) = torch.autograd.grad(written.sum(), w)
    # One entry of w is lost, so that the true gradient has one entry 1 and one 0.
    assert slope.tolist() == [1.0, 1.0]


TAKEN = {
    "index_add": lambda x, w: x.index_add(0, torch.tensor(TWICE), w),
    "scatter_add": lambda x, w: x.scatter_add(0, rows(TWICE), w),
    "accumulated": lambda x, w: x.index_put((torch.tensor(TWICE),), w, accumulate=True),
    "put, accumulated": lambda x, w: x.put(torch.tensor([1, 1]), w[0, :2], accumulate=True),
    "constants": lambda x, w: x.index_copy(0, torch.tensor(TWICE), torch.ones(2, 3, dtype=DTYPE)),
    "a number": lambda x, w: assigned(x.clone(), TWICE, 0.5),
    "scattered number": lambda x, w: x.scatter(0, rows(TWICE), 0.5),
    "a mask": lambda x, w: assigned(x.clone(), x > 0, w[0, 0]),
    "masked_scatter": lambda x, w: x.masked_scatter(torch.eye(3) > 0, w),
    "without gradients": lambda x, w: x + assigned(x.detach().clone(), TWICE, w.detach()),
    "slices": lambda x, w: assigned(x.clone(), (slice(0, 2), ...), w),
}


@pytest.mark.parametrize("name", TAKEN)
def test_sums_constants_and_masks_are_taken(name):
    loss, partition, u = problem(lambda x, i, w: TAKEN[name](x, w), None)
    tape, nested = (gn.summarize(loss, partition, u, engine=engine) for engine in ("tape", "nested"))
    torch.testing.assert_close(tape.third, nested.third, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("engine", ["auto", "nested", "differences"])
def test_pools_that_overlap_are_not_unpooled(engine):
    loss, partition, u = problem(lambda x, i, w: unpooled(x - 9 * torch.eye(3, dtype=DTYPE).roll(1)), None)
    with pytest.raises(ValueError, match="max_unpool2d with a place that occurs twice"):
        gn.summarize(loss, partition, u, engine=engine)


OVERLAPPING = {
    "mul_": lambda windows, w: windows.mul_(2),
    "copy_": lambda windows, w: windows.copy_(w[0, 0].expand_as(windows)),
    "*=": lambda windows, w: windows.__imul__(w[0, 0]),
}


@pytest.mark.parametrize("engine", ["auto", "nested", "differences"])
@pytest.mark.parametrize("name", OVERLAPPING)
def test_writes_into_windows_that_overlap_are_refused(name, engine):
    def write(x, width, w):
        y = x.clone()
        OVERLAPPING[name](y.view(-1).unfold(0, 2, width), w)
        return y

    with pytest.raises(ValueError, match="view that overlaps itself"):
        gn.summarize(*problem(write, 1), engine=engine)
    if engine != "differences":
        assert gn.summarize(*problem(write, 2), engine=engine).exact


@pytest.mark.parametrize("shape", [(4,), (3, 2), (2, 3, 2)])
def test_overlap_is_seen_from_the_strides(shape):
    numbers = torch.arange(64)
    for stride in torch.cartesian_prod(*[torch.arange(1, 8)] * len(shape)).reshape(-1, len(shape)).tolist():
        places = numbers.as_strided(shape, stride).flatten()
        # It may say yes without need, never no where two places are one.
        assert may_overlap(numbers.as_strided(shape, stride)) or len(places.unique()) == len(places)
    assert not may_overlap(torch.zeros(shape).transpose(0, -1))
