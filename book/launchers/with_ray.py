"""python with_ray.py"""

import ray.train
import torch
import torch.distributed as dist
import torch.nn.functional as F
from ray.train.torch import TorchTrainer, prepare_data_loader, prepare_model
from torch.utils.data import DataLoader, TensorDataset

import gnewton as gn


def train():
    data = gn.datasets.digits()
    # prepare_model wraps it in DistributedDataParallel.
    model = prepare_model(gn.models.perceptron([64, 32, 10], generator=torch.Generator().manual_seed(0)))
    loader = prepare_data_loader(DataLoader(TensorDataset(data.train_x, data.train_y), batch_size=50))
    proposer = torch.optim.RMSprop(model.parameters(), lr=1.0, momentum=0.9)
    optimizer = gn.GroupedNewton(gn.Partition.by_tensor(model), proposer)
    for x, y in loader:
        value = optimizer.step(lambda x=x, y=y: F.cross_entropy(model(x), y), samples=len(x))
    print(f"rank {dist.get_rank()} of {dist.get_world_size()}: loss {float(value):.12f}")


if __name__ == "__main__":
    TorchTrainer(train, scaling_config=ray.train.ScalingConfig(num_workers=2)).fit()
