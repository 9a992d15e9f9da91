"""Every scalar is in the group that the factory's sentence says, once; bad groups are refused by name."""

import numpy as np
import pytest
import torch
from support.problems import PARTITIONS, build
from torch import nn

import gnewton as gn

MODEL = gn.models.perceptron([5, 4, 3, 2])


def indicator_total(partition):
    ones = {n: torch.ones_like(p) for n, p in partition.parameters.items()}
    return [partition.restrict(ones, s) for s in range(len(partition))], ones


FACTORIES = PARTITIONS | {
    "by scalar": gn.Partition.by_scalar,
    "blocks": lambda m: gn.Partition.blocks(m, 2),
    "alternate": lambda m: gn.Partition.alternate(m, 2),
}


@pytest.mark.parametrize("factory", FACTORIES)
def test_every_scalar_is_in_exactly_one_group(factory):
    partition = FACTORIES[factory](MODEL)
    parts, ones = indicator_total(partition)
    for name, one in ones.items():
        assert torch.equal(sum(part[name] for part in parts), one)
    counted = tuple(int(sum(t.sum() for t in part.values())) for part in parts)
    assert counted == partition.sizes
    assert sum(partition.sizes) == sum(p.numel() for p in MODEL.parameters())


@pytest.mark.parametrize("factory", FACTORIES)
def test_sums_and_scale_are_the_partition_matrix_and_its_transpose(factory):
    # <I v, eta> = <v, I^T eta> for random v and eta: the two maps are adjoint.
    partition = FACTORIES[factory](MODEL)
    v = {n: torch.randn(p.shape, dtype=torch.float64) for n, p in partition.parameters.items()}
    w = {n: torch.randn(p.shape, dtype=torch.float64) for n, p in partition.parameters.items()}
    eta = torch.randn(len(partition), dtype=torch.float64)
    left = partition.sums({n: v[n] * w[n] for n in v}) @ eta
    right = sum((v[n] * scaled).sum() for n, scaled in partition.scale(w, eta).items())
    torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


def test_factories_group_what_they_say():
    assert gn.Partition.by_tensor(MODEL).names == tuple(n for n, _ in MODEL.named_parameters())
    assert gn.Partition.single(MODEL).names == ("all",)
    assert gn.Partition.by_layer(MODEL).members(1) == ["2.weight", "2.bias"]
    assert gn.Partition.by_kind(MODEL).members(1) == ["0.bias", "2.bias", "4.bias"]
    assert gn.Partition.alternate(MODEL, 2).members(0) == ["0.weight", "4.weight"]
    assert gn.Partition.blocks(MODEL, 2).members(0) == ["0.weight", "2.weight"]
    assert len(gn.Partition.by_scalar(MODEL)) == 47


def test_a_row_is_a_neuron_with_its_bias():
    partition = gn.Partition.by_row(MODEL)
    parts, _ = indicator_total(partition)
    neuron = parts[partition.names.index("2[1]")]
    assert torch.equal(neuron["2.weight"], torch.eye(3)[1][:, None].expand(3, 4))
    assert torch.equal(neuron["2.bias"], torch.eye(3)[1])
    assert not neuron["0.weight"].any()


def test_kinds_of_a_network_with_parameters_of_its_own():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))
            self.inner = nn.Linear(2, 2)

    model = Scaled()
    assert gn.Partition.by_kind(model).names == ("rest", "weights", "biases")
    assert gn.Partition.by_layer(model).names == ("model", "inner")
    assert gn.Partition.by_row(model).names == ("model", "inner[0]", "inner[1]")


def test_a_tied_parameter_goes_by_its_first_name():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    assert gn.Partition.by_tensor(model).names == ("0.weight", "0.bias", "1.bias")


def test_names_and_globs():
    partition = gn.Partition.by_name(MODEL, {"head": "4.*", "weights below": ["0.weight", "2.weight"]}, rest="ignore")
    assert partition.sizes == (8, 32)
    assert set(partition.parameters) == {"4.weight", "4.bias", "0.weight", "2.weight"}


def test_scalars_in_no_group_never_count_and_never_move():
    w = torch.randn(2, 3, requires_grad=True)
    mask = torch.tensor([[True, False, False], [False, False, True]])
    partition = gn.Partition.from_groups({"two": {"w": (w, mask)}}, rest="ignore")
    u = {"w": torch.randn(2, 3)}
    assert partition.sizes == (2,)
    torch.testing.assert_close(partition.sums(u), u["w"][mask].sum().double().reshape(1))
    assert torch.equal(partition.scale(u, torch.tensor([3.0]))["w"], torch.where(mask, 3 * u["w"], 0.0))


def test_coarsening_merges_groups():
    fine = gn.Partition.by_row(MODEL)
    layers = {f"layer {k}": [n for n in fine.names if n.startswith(k)] for k in "024"}
    coarse, by_layer = fine.coarsen(layers), gn.Partition.by_layer(MODEL)
    assert coarse.names == ("layer 0", "layer 2", "layer 4")
    assert coarse.sizes == by_layer.sizes
    assert all(coarse.label(n) == by_layer.label(n) for n in coarse.parameters)


def test_it_prints_as_a_table():
    partition = gn.Partition.by_scalar(MODEL)
    assert "47 groups" in repr(partition)
    assert "and 27 more groups" in repr(partition)
    assert "<td>0.weight[0,0]</td>" in partition._repr_html_()
    assert "0.weight" in repr(gn.Partition.by_tensor(MODEL))


def test_it_follows_the_model_to_another_dtype():
    problem = build("perceptron")
    partition = gn.Partition.by_row(problem.model)
    problem.model.to(torch.float32)
    u = problem.direction(partition)
    assert all(t.dtype == torch.float32 for t in partition.scale(u, torch.ones(len(partition))).values())


def test_a_layer_called_model_is_not_the_root():
    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2))
            self.model = nn.Linear(2, 2)

    assert gn.Partition.by_layer(Root()).sizes == (2, 6)
    assert len(gn.Partition.by_row(Root())) == 4


@pytest.mark.parametrize("factory", FACTORIES)
def test_a_default_device_does_not_matter(factory):
    with torch.device("meta"):
        assert FACTORIES[factory](MODEL).sizes == FACTORIES[factory](MODEL).sizes


W = torch.zeros(2, 2, requires_grad=True)
TOP = torch.tensor([[True, True], [False, False]])


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: gn.Partition.by_tensor([W]), TypeError, "got list; for loose tensors use Partition.from_groups"),
        (lambda: gn.Partition.by_tensor(nn.Tanh()), ValueError, "at least one parameter, got none"),
        (lambda: gn.Partition.by_tensor(nn.Sequential(nn.LazyLinear(3))), ValueError, "run one batch through it first"),
        (
            lambda: gn.Partition.by_name(MODEL, {"a": "4.*", "b": "nothing*"}, "ignore"),
            ValueError,
            "'nothing\\*' of group 'b'",
        ),
        (lambda: gn.Partition.by_name(MODEL, {"a": "4.*"}), ValueError, "got none for 0.weight, 0.bias"),
        (
            lambda: gn.Partition.by_name(MODEL, {"a": "*", "b": "4.bias"}),
            ValueError,
            "2 scalars of 4.bias in both 'a' and 'b'",
        ),
        (
            lambda: gn.Partition.by_name(MODEL, {"a": "*"}, rest="drop"),
            ValueError,
            'rest="error" or rest="ignore", got',
        ),
        (lambda: gn.Partition.blocks(MODEL, 4), ValueError, "1 <= n <= 3 .* got n = 4"),
        (lambda: gn.Partition.alternate(MODEL, 0), ValueError, "got n = 0"),
        (lambda: gn.Partition.from_groups([]), ValueError, "at least one parameter"),
        (lambda: gn.Partition.from_groups([{"w": W}, {}]), ValueError, "at least one scalar .* none in 'group 1'"),
        (lambda: gn.Partition.from_groups([{"w": (W, TOP)}]), ValueError, "got none for 2 scalars of w"),
        (lambda: gn.Partition.from_groups([{"w": (W, TOP)}, {"w": W}]), ValueError, "2 scalars of w in both 'group 0'"),
        (
            lambda: gn.Partition.from_groups([{"w": (W, TOP[0])}]),
            ValueError,
            r"shape \(2, 2\) for w .* got torch.bool of shape \(2,\)",
        ),
        (lambda: gn.Partition.from_groups([{"w": W}, {"w": W.clone()}]), ValueError, "one tensor for the name w"),
        (lambda: gn.Partition.from_groups([{"w": W}, {"v": W}]), ValueError, "one name for a tensor, got w and v"),
        (lambda: gn.Partition.from_groups([{"w": W * 1}]), ValueError, "leaf tensors"),
        (
            lambda: gn.Partition.from_groups([{"w": torch.zeros(2, dtype=torch.int64)}]),
            TypeError,
            "floating-point tensors, got torch.int64 for w",
        ),
        (lambda: gn.Partition.by_layer(MODEL).coarsen([[0], [1]]), ValueError, "none or several of 4"),
        (lambda: gn.Partition.by_layer(MODEL).coarsen([[0, 1], [1, 2]]), ValueError, "none or several of 2"),
        (lambda: gn.Partition.by_layer(MODEL).coarsen([[0, 1, 3]]), ValueError, "index below 3, got 3"),
        (lambda: gn.Partition.by_name(MODEL, ["0.*"]), TypeError, "expected patterns as"),
        (lambda: gn.Partition.from_groups([{"w": 3}]), TypeError, "a parameter for w in group 'group 0', got int"),
        (lambda: gn.Partition.from_groups([W]), TypeError, "group 'group 0' as .* got Tensor"),
        (lambda: gn.Partition.from_groups([{"w": (W, [True])}]), ValueError, "boolean mask .* got list"),
        (lambda: gn.Partition.by_layer(MODEL).coarsen(["0", "2", "4"]), TypeError, "a list of lists"),
        (lambda: gn.Partition.by_layer(MODEL).scale({}, torch.ones(4)), ValueError, r"shape \(3,\), got \(4,\)"),
        (lambda: gn.Partition.by_layer(MODEL).restrict({}, 3), ValueError, "below 3, got 3"),
        (lambda: gn.Partition.by_layer(MODEL).coarsen([["head"]]), ValueError, "got 'head'; the groups are 0, 2, 4"),
    ],
)
def test_bad_groups_are_refused_by_name(make, error, text):
    with pytest.raises(error, match=text):
        make()


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")
@pytest.mark.parametrize("factory", FACTORIES)
def test_a_parameter_without_scalars_makes_no_group_and_changes_no_number(factory):
    torch.manual_seed(0)
    full = nn.Sequential(nn.Linear(0, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    full.register_parameter("none", nn.Parameter(torch.zeros(0, 2, dtype=torch.float64)))
    partition = FACTORIES[factory](full)
    assert min(partition.sizes) > 0
    assert sum(partition.sizes) == sum(p.numel() for p in full.parameters()) == 11
    # The same function of the parameters that hold scalars, in the same groups by name.
    held = {name: p for name, p in full.named_parameters() if p.numel()}
    same = gn.Partition.from_groups(
        {
            group: {n: (held[n], torch.as_tensor(partition.label(n) == s).expand(held[n].shape)) for n in held}
            for s, group in enumerate(partition.names)
        }
    )

    def loss():
        return full(torch.ones(4, 0, dtype=torch.float64)).exp().sum()

    for engine in ("tape", "nested"):
        one, other = (gn.summarize(loss, p, engine=engine) for p in (partition, same))
        torch.testing.assert_close(one.hessian, other.hessian, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(one.third, other.third, rtol=1e-12, atol=1e-12)
    before = loss().item()
    gn.GroupedNewton(partition).step(loss)
    assert loss().item() < before


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")
def test_a_model_of_empty_parameters_has_no_group():
    with pytest.raises(ValueError, match="at least one group"):
        gn.Partition.by_tensor(nn.Linear(0, 0))


def replace_weight(model):
    model[0].weight = nn.Parameter(model[0].weight.detach().clone())


CHANGES = {
    "replaced": replace_weight,
    "parametrized": lambda model: nn.utils.parametrizations.weight_norm(model[0]),
    "removed": lambda model: model.__setitem__(0, nn.Linear(model[0].in_features, model[0].out_features).double()),
}
USES = {
    "gradient": lambda loss, partition, u: gn.direction.gradient(loss, partition),
    "order 1": lambda loss, partition, u: gn.summarize(loss, partition, u, order=1),
    **{
        engine: lambda loss, partition, u, engine=engine: gn.summarize(loss, partition, u, engine=engine)
        for engine in ("auto", "tape", "nested", "differences")
    },
    "a step": lambda loss, partition, u: gn.GroupedNewton(partition, cubic=1.0).step(loss),
}


def changed(change):
    """A loss and the partition that was built before its model was changed."""
    case = build("perceptron")
    partition = gn.Partition.by_tensor(case.model)
    change(case.model)
    return case.loss, partition, case.direction(partition)


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("change", CHANGES)
def test_parameters_that_the_module_has_no_more_are_refused(change, use):
    with pytest.raises(ValueError, match=r"expected the parameters that the module has now, got 0\.\S+"):
        USES[use](*changed(CHANGES[change]))


@pytest.mark.parametrize("use", USES)
def test_parameters_that_are_unused_and_were_never_the_modules_are_taken(use):
    case, loose = build("perceptron"), torch.ones(3, dtype=torch.float64, requires_grad=True)
    partition = gn.Partition.from_groups([dict(case.model.named_parameters()), {"loose": loose}], module=case.model)
    case.model[0].unused = nn.Linear(2, 2, dtype=torch.float64)
    USES[use](case.loss, partition, case.direction(partition))
    USES[use](case.loss, gn.Partition.single(case.model), case.direction(gn.Partition.single(case.model)))


def test_the_control_a_parameter_that_is_gone_has_a_derivative_of_zero(monkeypatch):
    monkeypatch.setattr(gn.Partition, "check_held", lambda self, unused: None)
    loss, partition, u = changed(replace_weight)
    assert gn.summarize(loss, partition, u).gradient[0] == 0


@pytest.mark.parametrize(
    "build_on",
    [
        gn.Partition.by_row,
        gn.Partition.by_scalar,
        gn.Partition.by_tensor,
        lambda module: gn.Partition.by_name(module, {"all": "*"}),
        lambda module: gn.Partition.from_groups([dict(module.named_parameters())]),
    ],
)
def test_every_factory_asks_for_a_batch_through_a_lazy_module_first(build_on):
    module = nn.LazyLinear(3)
    with pytest.raises(ValueError, match="run one batch through it first"):
        build_on(module)
    module(torch.ones(1, 2))
    assert sum(build_on(module).sizes) == 9


def test_a_number_of_blocks_is_whole():
    for factory in (gn.Partition.blocks, gn.Partition.alternate):
        with pytest.raises(ValueError, match="expected a whole number"):
            factory(gn.models.perceptron([2, 3, 2]), 1.5)


def test_truth_values_are_no_group_indices():
    # torch would take them for a mask.
    partition = gn.Partition.by_tensor(gn.models.perceptron([2, 3]))
    summary = gn.Summary.from_tensors(gradient=[1.0, 2.0], hessian=[[1.0, 0.0], [0.0, 1.0]])
    for whole in (partition, summary):
        with pytest.raises(ValueError, match="expected a group name or an index below 2, got True"):
            whole.coarsen([[True, False]])
        assert len(whole.coarsen([[1, 0]])) == 1


def test_a_whole_number_of_numpy_is_one():
    model = gn.models.perceptron([4, 3, 2])
    assert gn.Partition.blocks(model, np.int64(2)).names == gn.Partition.blocks(model, 2).names


@pytest.mark.parametrize(
    "label",
    [-2, 3, torch.tensor([0, 1]), torch.zeros(3, 4), torch.full((3, 4), 3), torch.full((3, 4), -1), None, "0"],
    ids=[
        "negative",
        "too large",
        "another shape",
        "another dtype",
        "too large inside",
        "negative inside",
        "none",
        "text",
    ],
)
def test_labels_that_are_no_groups_are_refused(label):
    w = torch.zeros(3, 4, requires_grad=True)
    with pytest.raises((ValueError, TypeError), match="expected as the label of w a number from 0 to 2"):
        gn.Partition(["a", "b"], {"w": w}, {} if label is None else {"w": label})


def test_names_of_groups_are_strings():
    model = gn.models.perceptron([3, 2, 1])
    groups = {0: dict(model[0].named_parameters()), 1: {f"2.{n}": p for n, p in model[2].named_parameters()}}
    for make in (
        lambda: gn.Partition.by_name(model, {0: "0.*", 1: "2.*"}),
        lambda: gn.Partition.from_groups(groups),
        lambda: gn.Partition.by_tensor(model).coarsen({0: [0, 1], 1: [2, 3]}),
        lambda: gn.Summary.from_tensors([1.0, 4.0], names=[0, 1]),
    ):
        with pytest.raises(TypeError, match="expected group names as strings, got 0; write '0'"):
            make()
