"""Memory that gnewton may not move or differentiate is refused by name: parts of parameters, and memory that two of them share."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gnewton as gn


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))


class DTensor(nn.Parameter):
    """A stand-in by name: the real one wants a process group."""


def test_sharded_parameters_are_refused_by_name():
    net = network()
    net[0].weight = DTensor(net[0].weight.data)
    with pytest.raises(TypeError, match=r"DTensor for 0.weight .*fully_shard"):
        gn.Partition.by_tensor(net)


# torch 2.6 warns that it draws no random numbers on such a mesh.
@pytest.mark.filterwarnings("ignore:DTensor random operators may not have complete support:UserWarning")
def test_a_real_dtensor_is_refused(tmp_path):
    if not torch.distributed.is_available():
        pytest.skip("this torch has no torch.distributed")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_module

    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=store)
    try:
        net = distribute_module(network(), init_device_mesh("cpu", (1,)))
        with pytest.raises(TypeError, match=r"DTensor for 0\.weight"):
            gn.Partition.by_tensor(net)
        # One rank is one process.
        gn.summarize(
            lambda: F.mse_loss(net2(torch.ones(2, 4)), torch.ones(2, 2)), gn.Partition.single(net2 := network())
        )
    finally:
        torch.distributed.destroy_process_group()


def shared(kind):
    flat = torch.arange(6.0)
    makers = {
        "the same": (flat, flat.view(6)),
        "a view": (flat, flat.view(2, 3)),
        "a part": (flat, flat[2:4]),
        "overlapping parts": (flat[:4], flat[3:]),
        "a transposed view": (flat.view(2, 3), flat.view(2, 3).T),
        "two columns and a row": (flat.view(2, 3)[:, :2], flat.view(2, 3)[1]),
        "halves": (flat[:3], flat[3:]),
        "interleaved": (flat[::2], flat[1::2]),
        "columns": (flat.view(2, 3)[:, :1], flat.view(2, 3)[:, 1:]),
        "clones": (flat, flat.clone()),
        "empty": (flat, flat[:0]),
    }
    return {name: nn.Parameter(t) for name, t in zip("ab", makers[kind], strict=True)}


@pytest.mark.parametrize(
    "kind", ["the same", "a view", "a part", "overlapping parts", "a transposed view", "two columns and a row"]
)
def test_two_parameters_on_the_same_memory_are_refused(kind):
    with pytest.raises(ValueError, match=r"memory of their own, got . and . on the same"):
        gn.Partition.single(nn.ParameterDict(shared(kind)))


@pytest.mark.parametrize("kind", ["halves", "interleaved", "columns", "clones", "empty"])
def test_two_parts_of_one_memory_are_taken(kind):
    partition = gn.Partition.single(nn.ParameterDict(shared(kind)))
    a, b = partition.parameters.values()
    s = gn.summarize(lambda: a.exp().sum() * b.sin().sum() + a.exp().sum(), partition)
    torch.testing.assert_close(
        s.hessian,
        gn.summarize(lambda: a.exp().sum() * b.sin().sum() + a.exp().sum(), partition, engine="nested").hessian,
    )


def test_a_parameter_whose_entries_share_memory_is_refused():
    with pytest.raises(ValueError, match=r"share memory .*clone"):
        gn.Partition.from_groups({"a": {"a": nn.Parameter(torch.zeros(1).expand(3))}})


@pytest.mark.parametrize("factory", ["single", "by_layer", "by_kind"])
@pytest.mark.parametrize("engine", ["tape", "nested", "differences"])
def test_a_parameter_without_entries_beside_others(factory, engine):
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    net[0].empty_weight = nn.Parameter(torch.zeros(0, 3, dtype=torch.float64))
    partition = getattr(gn.Partition, factory)(net)
    x = torch.ones(2, 4, dtype=torch.float64)

    def loss():
        return net(x).exp().sum() + (net[0].empty_weight @ torch.ones(3, dtype=torch.float64)).sum()

    plain = gn.summarize(lambda: net(x).exp().sum(), partition, order=2).hessian
    torch.testing.assert_close(
        gn.summarize(loss, partition, order=2, engine=engine).hessian, plain, rtol=1e-6, atol=1e-6
    )


def test_a_group_without_entries_is_refused():
    net = nn.Sequential(nn.Linear(4, 3))
    net[0].empty = nn.Parameter(torch.zeros(0))
    with pytest.raises(ValueError, match="at least one scalar in every group"):
        gn.Partition.from_groups({"layer": {"w": net[0].weight}, "none": {"e": net[0].empty}})
