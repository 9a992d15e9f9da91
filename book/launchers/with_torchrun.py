"""torchrun --nproc-per-node 2 with_torchrun.py"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import gnewton as gn


def train():
    data = gn.datasets.digits()
    model = DistributedDataParallel(gn.models.perceptron([64, 32, 10], generator=torch.Generator().manual_seed(0)))
    proposer = torch.optim.RMSprop(model.parameters(), lr=1.0, momentum=0.9)
    optimizer = gn.GroupedNewton(gn.Partition.by_tensor(model), proposer)

    batches = TensorDataset(data.train_x, data.train_y)
    loader = DataLoader(batches, batch_size=50, sampler=DistributedSampler(batches, shuffle=False))
    for x, y in loader:
        value = optimizer.step(lambda x=x, y=y: F.cross_entropy(model(x), y), samples=len(x))
    print(f"rank {dist.get_rank()} of {dist.get_world_size()}: loss {float(value):.12f}")


dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
train()  # a function of its own: the group can end only when no DistributedDataParallel holds it any more
dist.destroy_process_group()
