"""Networks as other libraries ship them, of real size and tiny, and recurrent ones.

The weights are random. transformers has to be importable: beside a torchvision made for another torch it is not.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import gnewton as gn
from benchmarks.networks import Network

LENGTH = 64


@dataclass
class WithLoss(Network):
    """A network whose model returns its loss, or logits, from keywords."""

    keywords: dict[str, Tensor]

    def loss(self) -> Tensor:
        out = self.model(**self.keywords)
        return out.loss if "labels" in self.keywords else self.criterion(out.logits, self.batch[1])


class LanguageModel(nn.Module):
    """Tokens, a recurrent layer, logits."""

    def __init__(self, recurrent: nn.Module, vocabulary: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.recurrent = recurrent
        self.head = nn.Linear(width, vocabulary)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(self.embedding(x))[0]).flatten(0, 1)


def gpt2() -> Network:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False)
    return _language(GPT2LMHeadModel(config), config.vocab_size, batch=1, length=LENGTH)


def resnet50(in_place: bool = False) -> Network:
    from transformers import ResNetConfig, ResNetForImageClassification

    model = ResNetForImageClassification(ResNetConfig(num_labels=10))
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = in_place
    x, y = torch.randn(4, 3, 96, 96), torch.randint(10, (4,))
    return WithLoss("ResNet-50", model, (x, y), nn.CrossEntropyLoss(), {"pixel_values": x})


_SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


def llama() -> Network:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=29, num_key_value_heads=1, use_cache=False, **_SMALL)
    return _language(LlamaForCausalLM(config), 29, batch=2, length=7)


def bert() -> Network:
    from transformers import BertConfig, BertForMaskedLM

    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = BertForMaskedLM(BertConfig(vocab_size=29, max_position_embeddings=16, **_SMALL, **dropout))
    network = _language(model, 29, batch=2, length=7)
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[1, 5:] = 0
    network.keywords["attention_mask"] = mask
    return network


def whisper() -> Network:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config = WhisperConfig(
        vocab_size=29, num_mel_bins=8, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, max_source_positions=10, use_cache=False,
        max_target_positions=12, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    x, y = torch.randn(2, 8, 20), torch.randint(29, (2, 5))
    model = WhisperForConditionalGeneration(config)
    return WithLoss("Whisper", model, (x, y), nn.CrossEntropyLoss(), {"input_features": x, "labels": y})


def recurrent(kind: type[nn.Module], layers: int, vocabulary: int = 1000, width: int = 64) -> Network:
    model = LanguageModel(kind(width, width, layers, batch_first=True), vocabulary, width)
    x = torch.randint(vocabulary, (8, 21))
    return Network("recurrent", model, (x[:, :-1], x[:, 1:].flatten()), nn.CrossEntropyLoss())


def _language(model: nn.Module, vocabulary: int, *, batch: int, length: int) -> WithLoss:
    x = torch.randint(vocabulary, (batch, length))
    return WithLoss("language", model, (x, x), nn.CrossEntropyLoss(), {"input_ids": x, "labels": x})


REAL: dict[str, Callable[[], Network]] = {
    "GPT-2 small, 1 x 64 tokens": gpt2,
    "ResNet-50, 4 x 3 x 96 x 96": resnet50,
    "ResNet-50, activations in place": lambda: resnet50(in_place=True),
    "Llama, tiny": llama,
    "BERT with padding, tiny": bert,
    "Whisper, tiny": whisper,
    "LSTM, 2 layers": lambda: recurrent(nn.LSTM, 2),
    "GRU, 2 layers": lambda: recurrent(nn.GRU, 2),
}


def build_real(name: str, seed: int = 0) -> Network:
    """The network of that name, in evaluation mode for dropout, in training mode for batch norm."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return REAL[name]()


def by_block(module: nn.Module) -> gn.Partition:
    """One group for each block of a GPT-2, each embedding and the last norm; the head is the token embedding."""
    blocks = sorted({name.split(".")[2] for name, _ in module.named_parameters() if ".h." in name}, key=int)
    patterns = {f"h.{i}": f"transformer.h.{i}.*" for i in blocks}
    return gn.Partition.by_name(module, patterns | {n: f"transformer.{n}.*" for n in ("wte", "wpe", "ln_f")})
