"""The Gauss-Newton matrix between groups is J^T H_l J, with J and H_l from torch.func, by both engines.

Roundings of float64 sums of a few thousand terms: 1e-11 of the largest entry.
"""

from collections import OrderedDict, defaultdict, deque, namedtuple
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, hessian, jacrev

import gnewton as gn

CRITERIA = {
    "cross-entropy": lambda z, y: F.cross_entropy(z, y),
    "squared error": lambda z, y: F.mse_loss(z, F.one_hot(y, 3).to(z)),
    "logistic": lambda z, y: F.binary_cross_entropy_with_logits(z, F.one_hot(y, 3).to(z)),
}
ACTIVATIONS = {"tanh": nn.Tanh, "ReLU": nn.ReLU, "ELU": nn.ELU}


def build(activation="tanh"):
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Linear(4, 6), ACTIVATIONS[activation](), nn.Linear(6, 5), ACTIVATIONS[activation](), nn.Linear(5, 3)
    )
    model.double()
    x, y = torch.randn(12, 4, dtype=torch.float64), torch.arange(12) % 3
    partition = gn.Partition.by_tensor(model)
    u = {n: torch.randn_like(p, requires_grad=False) for n, p in partition.parameters.items()}
    return model, x, y, partition, u


def expected(model, x, y, partition, u, criterion):
    theta = {n: p.detach() for n, p in partition.parameters.items()}
    jacobian = jacrev(lambda t: functional_call(model, t, (x,)))(theta)
    columns = torch.stack([(jacobian[n] * u[n]).flatten(2).sum(2).flatten() for n in u])
    z = model(x).detach()
    curvature = hessian(lambda v: criterion(v.reshape(z.shape), y))(z.flatten())
    return columns @ curvature @ columns.T


def close(got, wanted):
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-11 * wanted.abs().max().item())


@pytest.mark.parametrize("engine", ["tape", "nested"])
@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_it_is_the_jacobian_times_the_curvature_in_the_outputs(activation, criterion, engine):
    model, x, y, partition, u = build(activation)
    pair = (lambda: model(x), lambda z: CRITERIA[criterion](z, y))
    got = gn.summarize(pair, partition, u, curvature="gauss-newton", engine=engine)
    wanted = expected(model, x, y, partition, u, CRITERIA[criterion])
    close(got.hessian, wanted)
    exact = gn.summarize(lambda: CRITERIA[criterion](model(x), y), partition, u, order=2)
    close(got.gradient, exact.gradient)
    # The negative control: the Hessian is another matrix, even of piecewise linear layers, two of which are multiplied.
    assert (exact.hessian - wanted).abs().max() > 1e-3 * wanted.abs().max()
    # Criteria that are convex in the outputs: no eigenvalue below the rounding of the largest.
    eigenvalues = torch.linalg.eigvalsh(got.hessian)
    assert eigenvalues.min() >= -1e-12 * eigenvalues.max()
    assert got.third is None
    assert got.curvature == "gauss-newton"
    assert "Gauss-Newton" in repr(got)


def test_a_linear_model_has_no_other_curvature():
    model, x, y, partition, u = build()
    pair = (lambda: F.linear(x, model[0].weight, model[0].bias), lambda z: F.cross_entropy(z, y))
    close(
        gn.summarize(pair, partition, u, curvature="gauss-newton").hessian,
        gn.summarize(pair, partition, u, order=2).hessian,
    )


def test_batches_small_memory_and_several_outputs():
    model, x, y, partition, u = build()
    pair = (
        lambda x, y: (model(x), {"w": model[0].weight}),
        lambda z, x, y: F.cross_entropy(z[0], y) + z[1]["w"].square().sum(),
    )
    one = gn.summarize(pair, partition, u, data=[(x, y)], curvature="gauss-newton")
    options = {"data": [(x[:5], y[:5]), (x[5:], y[5:])], "max_memory": 1.0}
    close(gn.summarize(pair, partition, u, curvature="gauss-newton", **options).hessian, one.hessian)
    close(gn.summarize(pair, partition, u, curvature="gauss-newton", engine="nested", **options).hessian, one.hessian)
    wanted = expected(model, x, y, partition, u, CRITERIA["cross-entropy"])
    wanted[0, 0] += 2 * u["0.weight"].square().sum()
    close(one.hessian, wanted)


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, g):
        return 2 * ctx.saved_tensors[0] * g


class SquareInNumpy(Square):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.from_numpy(x.detach().numpy() ** 2)


@pytest.mark.filterwarnings("ignore::gnewton.derivatives.record.IncompleteRecordWarning")
@pytest.mark.parametrize(("function", "engine"), [(Square, "tape"), (SquareInNumpy, "nested")])
def test_a_custom_function_is_opened_or_goes_by_backward_passes(function, engine):
    model, x, y, partition, u = build()
    pair = (lambda: function.apply(model(x)), lambda z: F.cross_entropy(z, y))
    same = (lambda: model(x) ** 2, lambda z: F.cross_entropy(z, y))
    got = gn.summarize(pair, partition, u, curvature="gauss-newton")
    assert got.engine == engine
    close(got.hessian, gn.summarize(same, partition, u, curvature="gauss-newton", engine="tape").hessian)


@pytest.mark.parametrize("engine", ["tape", "nested"])
def test_a_criterion_that_reads_parameters_is_refused(engine):
    model, x, y, partition, u = build()
    pair = (lambda: model(x), lambda z: F.cross_entropy(z, y) + model[0].weight.square().sum())
    with pytest.raises(ValueError, match="through the outputs alone"):
        gn.summarize(pair, partition, u, curvature="gauss-newton", engine=engine)


Pair = namedtuple("Pair", "z w")


@dataclass
class Both:
    z: Any
    w: Any
    name: str = "both"


@dataclass(frozen=True, slots=True)
class Frozen:
    z: Any
    w: Any
    made: int = field(default=0, init=False)


@dataclass
class Outputs(OrderedDict):
    """As transformers' ModelOutput: a dictionary of the fields that are not None, which are attributes, too."""

    z: Any = None
    w: Any = None
    loss: Any = None

    def __post_init__(self):
        for name in ("z", "w", "loss"):
            if getattr(self, name) is not None:
                super().__setitem__(name, getattr(self, name))

    def __setitem__(self, name, value):
        super().__setitem__(name, value)
        super().__setattr__(name, value)

    def __reduce__(self):
        return type(self), (self.z, self.w, self.loss)


class Record(dict):
    """A dictionary of a class of its own, with another constructor."""

    def __init__(self, size):
        super().__init__()
        self.size = size

    @classmethod
    def of(cls, z, w):
        made = cls(2)
        made.update(z=z, w=w)
        return made


class Stack(list):
    pass


# What the outputs return, and how the criterion reads it.
CONTAINERS = {
    "tuple": (lambda z, w: (z, w), lambda out: out),
    "list": (lambda z, w: [z, w], lambda out: out),
    "dictionary": (lambda z, w: {"z": z, "w": w}, lambda out: (out["z"], out["w"])),
    "named tuple": (Pair, lambda out: (out.z, out.w)),
    "dataclass": (Both, lambda out: (out.z, out.w)),
    "frozen dataclass": (Frozen, lambda out: (out.z, out.w)),
    "OrderedDict": (lambda z, w: OrderedDict(z=z, w=w), lambda out: (out["z"], out["w"])),
    "defaultdict": (lambda z, w: defaultdict(list, z=z, w=w), lambda out: (out["z"], out["w"])),
    "deque": (lambda z, w: deque([z, w]), tuple),
    "by attribute": (Outputs, lambda out: (out.z, out.w)),
    "by key": (Outputs, lambda out: (out["z"], out["w"])),
    "by number": (Outputs, lambda out: tuple(out.values())),
    "a class of dictionaries": (Record.of, lambda out: (out["z"], out["w"])),
    "a class of lists": (lambda z, w: Stack([z, w]), tuple),
    "one inside another": (lambda z, w: Both([Outputs(z)], Pair(w, None)), lambda out: (out.z[0].z, out.w.z)),
    "twice": (lambda z, w: (z, w, z), lambda out: (out[2] / 2 + out[0] / 2, out[1])),
}


def penalized(z, w, y):
    return F.cross_entropy(z, y) + w.square().sum()


@pytest.mark.parametrize("engine", ["auto", "tape", "nested"])
@pytest.mark.parametrize("container", CONTAINERS)
def test_outputs_in_any_container_are_seen(container, engine):
    model, x, y, partition, u = build()
    put, read = CONTAINERS[container]
    pair = (lambda: put(model(x), model[0].weight), lambda out: penalized(*read(out), y))
    got = gn.summarize(pair, partition, u, curvature="gauss-newton", engine=engine)
    wanted = expected(model, x, y, partition, u, CRITERIA["cross-entropy"])
    wanted[0, 0] += 2 * u["0.weight"].square().sum()
    close(got.hessian, wanted)


@pytest.mark.parametrize("engine", ["tape", "nested"])
def test_what_is_in_no_container_is_refused_with_its_name(engine):
    model, x, y, partition, u = build()
    pair = (lambda: SimpleNamespace(z=model(x)), lambda out: F.cross_entropy(out.z, y))
    with pytest.raises(ValueError, match="got a SimpleNamespace, whose tensors are not seen; return"):
        gn.summarize(pair, partition, u, curvature="gauss-newton", engine=engine)
    normal = (lambda: [torch.distributions.Normal(model(x), 1.0)], lambda out: -out[0].log_prob(x[:, :3]).sum())
    with pytest.raises(ValueError, match="got a Normal"):
        gn.summarize(normal, partition, u, curvature="gauss-newton", engine=engine)


@pytest.mark.parametrize("engine", ["tape", "nested"])
def test_a_criterion_may_write_into_the_outputs(engine):
    model, x, y, partition, u = build()

    def criterion(out):
        z, scale = out
        scale.mul_(2)
        z.mul_(scale).tanh_()
        return F.cross_entropy(z, y)

    def plain(z, y):
        return F.cross_entropy((2 * z).tanh(), y)

    pair = (lambda: (model(x), torch.ones(3, dtype=torch.float64)), criterion)
    got = gn.summarize(pair, partition, u, curvature="gauss-newton", engine=engine)
    close(got.hessian, expected(model, x, y, partition, u, plain))


def test_what_does_not_fit_is_refused():
    model, x, y, partition, u = build()
    pair = (lambda: model(x), lambda z: F.cross_entropy(z, y))
    for loss, options, error, message in (
        (pair[0], {}, TypeError, "loss in two parts"),
        (pair, {"order": 3}, ValueError, "no third order"),
        (pair, {"engine": "differences"}, ValueError, "engine"),
        (pair, {"curvature": "fisher"}, ValueError, "fisher"),
    ):
        with pytest.raises(error, match=message):
            gn.summarize(loss, partition, u, **({"curvature": "gauss-newton"} | options))
    with pytest.raises(ValueError, match="one curvature"):
        gn.summarize(pair, partition, u, order=2) + gn.summarize(pair, partition, u, curvature="gauss-newton")
    kept = gn.summarize(pair, partition, u, curvature="gauss-newton")
    assert gn.Summary.from_state_dict(kept.state_dict()).curvature == "gauss-newton"
    assert kept.coarsen([range(len(partition))]).curvature == "gauss-newton"
