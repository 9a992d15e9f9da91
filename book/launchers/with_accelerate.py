"""accelerate launch --multi_gpu --num_processes 2 with_accelerate.py"""

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset

import gnewton as gn

accelerator = Accelerator()
data = gn.datasets.digits()
model = gn.models.perceptron([64, 32, 10], generator=torch.Generator().manual_seed(0))
loader = DataLoader(TensorDataset(data.train_x, data.train_y), batch_size=50)
model, loader = accelerator.prepare(model, loader)

# After prepare: it wraps the model in DistributedDataParallel, which tells the partition its ranks.
proposer = torch.optim.RMSprop(model.parameters(), lr=1.0, momentum=0.9)
optimizer = gn.GroupedNewton(gn.Partition.by_tensor(model), proposer)
for x, y in loader:
    value = optimizer.step(lambda x=x, y=y: F.cross_entropy(model(x), y), samples=len(x))

print(f"rank {accelerator.process_index} of {accelerator.num_processes}: loss {float(value):.12f}")
accelerator.end_training()
