"""Training loops of other libraries: what works as it is, and what says which line to write instead."""

import pytest
import torch
import torch.nn.functional as F

import gnewton as gn

pytestmark = [pytest.mark.zoo, pytest.mark.filterwarnings("default")]


def problem() -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.nn.Linear(4, 2), torch.randn(8, 4), torch.randint(0, 2, (8,))


def fitted(automatic: bool) -> gn.GroupedNewton:
    lightning = pytest.importorskip("lightning")
    model, x, y = problem()
    optimizer = gn.GroupedNewton(gn.Partition.by_tensor(model))

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.automatic_optimization = model, automatic

        def training_step(self, batch, index):
            def loss() -> torch.Tensor:
                return F.cross_entropy(self.model(batch[0]), batch[1])

            return loss() if automatic else self.optimizers().step(loss)

        def configure_optimizers(self):
            return optimizer

    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=4)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    lightning.Trainer(max_epochs=1, accelerator="cpu", **quiet).fit(Module(), data)
    return optimizer


def test_lightning_with_manual_optimization() -> None:
    assert len(fitted(automatic=False).history) == 2


def test_lightning_with_automatic_optimization_is_told_what_to_set() -> None:
    with pytest.raises(ValueError, match="automatic_optimization = False"):
        fitted(automatic=True)


def test_accelerate_steps_in_one_process() -> None:
    accelerate = pytest.importorskip("accelerate")
    model, x, y = problem()
    twin, *_ = problem()
    optimizer = gn.GroupedNewton(gn.Partition.by_tensor(model))
    prepared, wrapped = accelerate.Accelerator(cpu=True).prepare(model, optimizer)
    wrapped.step(lambda: F.cross_entropy(prepared(x), y))
    # curvature= belongs to the optimizer, which the wrapper holds.
    wrapped.optimizer.step(
        lambda: F.cross_entropy(prepared(x), y), curvature=lambda: F.cross_entropy(prepared(x[:4]), y[:4])
    )
    plain = gn.GroupedNewton(gn.Partition.by_tensor(twin))
    plain.step(lambda: F.cross_entropy(twin(x), y))
    plain.step(lambda: F.cross_entropy(twin(x), y), curvature=lambda: F.cross_entropy(twin(x[:4]), y[:4]))
    assert torch.equal(model.weight, twin.weight)


def test_skorch_hands_over_parameters_and_is_told_what_to_write() -> None:
    skorch = pytest.importorskip("skorch")
    model, x, y = problem()
    net = skorch.NeuralNetClassifier(model, criterion=torch.nn.CrossEntropyLoss, optimizer=gn.GroupedNewton)
    with pytest.raises(TypeError, match=r"Partition\.by_tensor\(model\)"):
        net.fit(x.numpy(), y.numpy())
