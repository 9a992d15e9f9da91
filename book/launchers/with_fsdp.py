"""torchrun --nproc-per-node 2 with_fsdp.py"""

import gc

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import gnewton as gn


def train():
    data = gn.datasets.digits()
    model = gn.models.perceptron([64, 32, 10], generator=torch.Generator().manual_seed(0))
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)

    partition = gn.Partition.by_layer(model)  # names and sizes as in one process
    optimizer = gn.GroupedNewton(partition, torch.optim.RMSprop(model.parameters(), lr=1.0, momentum=0.9))
    batches = TensorDataset(data.train_x, data.train_y)
    loader = DataLoader(batches, batch_size=50, sampler=DistributedSampler(batches, shuffle=False))
    for x, y in loader:
        value = optimizer.step(lambda x=x, y=y: F.cross_entropy(model(x), y), samples=len(x))

    u = gn.direction.gradient(lambda: F.cross_entropy(model(x), y), partition, samples=len(x))
    summary = gn.summarize(lambda: F.cross_entropy(model(x), y), partition, u, samples=len(x))
    assert summary.hessian.shape == (2, 2)
    print(f"rank {dist.get_rank()} of {dist.get_world_size()}: loss {float(value):.12f}")


dist.init_process_group("gloo")
train()
gc.collect()  # FSDP's modules refer to each other, and to the group
dist.destroy_process_group()
