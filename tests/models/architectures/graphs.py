"""Networks on graphs and point clouds, of random weights: a ring of a few nodes, a few atoms."""

import torch
import torch.nn.functional as F
from models.architectures.built import Built, normal
from torch import Tensor


def _ring(n: int = 8) -> Tensor:
    i = torch.arange(n)
    there = torch.stack([i, (i + 1) % n])
    return torch.cat([there, there.flip(0), torch.stack([i, (i + 3) % n])], dim=1)


def _classified(model: torch.nn.Module) -> Built:
    x, y, edges = normal(8, 4), torch.arange(8) % 3, _ring()
    return Built(model, lambda: F.cross_entropy(model(x, edges), y))


def gcn() -> Built:
    from torch_geometric.nn import GCN

    return _classified(GCN(4, 8, 2, 3, norm="batch", act="elu"))


def gat() -> Built:
    from torch_geometric.nn import GAT

    return _classified(GAT(4, 8, 2, 3, heads=2, v2=True, act="elu"))


def gin() -> Built:
    from torch_geometric.nn import GIN

    return _classified(GIN(4, 8, 2, 3, act="tanh"))


def principal_neighbourhood_aggregation() -> Built:
    from torch_geometric.nn import PNA

    degrees = torch.tensor([0, 0, 0, 8])
    return _classified(
        PNA(4, 8, 2, 3, aggregators=["mean", "max", "std"], scalers=["identity", "amplification"], deg=degrees)
    )


def graph_gps() -> Built:
    from torch_geometric.nn import GPSConv, SAGEConv, global_mean_pool

    model = torch.nn.ModuleDict({"gps": GPSConv(8, SAGEConv(8, 8), heads=2, act="gelu"), "head": torch.nn.Linear(8, 3)})
    x, edges, graph, y = normal(8, 8), _ring(), torch.arange(8) // 4, torch.tensor([0, 2])
    return Built(
        model, lambda: F.cross_entropy(model["head"](global_mean_pool(model["gps"](x, edges, graph), graph)), y)
    )


class Ring:
    """The neighbours of every atom, in the place of a search that needs another package."""

    def __call__(self, position: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        edges = _ring(len(position))
        return edges, (position[edges[0]] - position[edges[1]]).norm(dim=-1)


def _schnet() -> tuple[torch.nn.Module, Tensor, Tensor]:
    from torch_geometric.nn import SchNet

    model = SchNet(hidden_channels=8, num_filters=8, num_interactions=2, num_gaussians=6, interaction_graph=Ring())
    return model, torch.tensor([6, 1, 1, 8, 1, 6]), normal(6, 3)


def schnet() -> Built:
    model, z, position = _schnet()
    return Built(model, lambda: F.mse_loss(model(z, position), torch.ones(1, 1)))


def schnet_with_forces() -> Built:
    model, z, position = _schnet()
    force = normal(6, 3)

    def loss() -> Tensor:
        moved = position.clone().requires_grad_()
        energy = model(z, moved)
        (slope,) = torch.autograd.grad(energy.sum(), moved, create_graph=True)
        return F.mse_loss(energy, torch.ones(1, 1)) + F.mse_loss(-slope, force)

    return Built(model, loss)


def gated_tensor_product() -> Built:
    from e3nn import o3
    from e3nn.nn import Gate

    hidden = o3.Irreps("4x0e + 2x0e + 2x1o")
    gate = Gate("4x0e", [torch.tanh], "2x0e", [torch.sigmoid], "2x1o")
    inner = o3.FullyConnectedTensorProduct("2x0e + 1x1o", "1x0e + 1x1o", hidden)
    model = torch.nn.ModuleDict({"product": inner, "gate": gate, "out": o3.Linear("4x0e + 2x1o", "1x0e + 1x1o")})
    x, position, y = normal(6, 5), normal(6, 3), normal(6, 4)
    sphere = o3.spherical_harmonics("1x0e + 1x1o", position, normalize=True)
    return Built(model, lambda: F.mse_loss(model["out"](model["gate"](model["product"](x, sphere))), y))


def equivariant_message_passing() -> Built:
    from e3nn.nn.models.v2106.gate_points_message_passing import MessagePassing

    model = MessagePassing(["2x0e", "4x0e + 2x1o", "1x0e"], "1x0e", "1x0e + 1x1o", [4, 8], num_neighbors=3.0)
    from e3nn import o3

    x, position, edges = normal(8, 2), normal(8, 3), _ring()
    along = position[edges[0]] - position[edges[1]]
    harmonics = o3.spherical_harmonics("1x0e + 1x1o", along, normalize=True)
    radial = torch.stack([along.norm(dim=-1) * k for k in (0.3, 0.6, 0.9, 1.2)], dim=1).cos()
    node = torch.ones(8, 1)
    return Built(model, lambda: model(x, node, edges[0], edges[1], harmonics, radial).square().mean())
