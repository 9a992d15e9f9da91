"""python with_lightning.py"""

import lightning
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

import gnewton as gn


class Digits(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.model = gn.models.perceptron([64, 32, 10], generator=torch.Generator().manual_seed(0))

    def configure_optimizers(self):
        partition = gn.Partition.by_tensor(self.model)
        if dist.is_initialized():
            # Lightning wraps the module around the model; the model itself does not say its ranks.
            partition = partition.over(dist.group.WORLD)
        return gn.GroupedNewton(partition, torch.optim.RMSprop(self.model.parameters(), lr=1.0, momentum=0.9))

    def training_step(self, batch, index):
        x, y = batch
        optimizer = self.optimizers().optimizer
        self.last = optimizer.step(lambda: F.cross_entropy(self.model(x), y), samples=len(x))


if __name__ == "__main__":
    data, module = gn.datasets.digits(), Digits()
    loader = DataLoader(TensorDataset(data.train_x, data.train_y), batch_size=50)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", devices=2, strategy="ddp", **quiet)
    trainer.fit(module, loader)
    print(f"rank {trainer.global_rank} of {trainer.world_size}: loss {float(module.last):.12f}")
