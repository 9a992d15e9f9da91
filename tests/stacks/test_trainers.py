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


def classifier(transformers):
    """A Trainer's parts: a model that returns its loss, its data, its arguments."""
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, num_labels=2,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(config)
    data = [{"input_ids": torch.randint(0, 20, (5,)), "labels": i % 2} for i in range(8)]
    return model, data


def test_the_trainer_of_transformers_calls_step_without_a_closure_and_is_told_so(tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    model, data = classifier(transformers)
    options = transformers.TrainingArguments(tmp_path, max_steps=1, report_to=[], use_cpu=True, disable_tqdm=True)
    optimizer = gn.GroupedNewton(gn.Partition.by_layer(model))
    trainer = transformers.Trainer(model, options, train_dataset=data, optimizers=(optimizer, None))
    with pytest.raises((TypeError, ValueError), match=r"step\(lambda"):
        trainer.train()


def test_the_trainer_of_transformers_with_a_training_step_of_ones_own(tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    model, data = classifier(transformers)

    class Trainer(transformers.Trainer):
        def create_optimizer(self, *arguments):
            # What the trainer itself steps with has nothing to do; the model's own optimizer takes the closure.
            self.newton = gn.GroupedNewton(gn.Partition.by_layer(model))
            self.optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
            return self.optimizer

        def training_step(self, model, inputs, num_items_in_batch=None):
            inputs = self._prepare_inputs(inputs)
            return self.newton.step(lambda: self.compute_loss(model, inputs)).detach()

    options = transformers.TrainingArguments(
        tmp_path, max_steps=3, report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no", max_grad_norm=0.0
    )
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    trainer = Trainer(model, options, train_dataset=data)
    trainer.train()
    assert len(trainer.newton.history) >= 1
    assert any(not torch.equal(before[n], p) for n, p in model.named_parameters())
