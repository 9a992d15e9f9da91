"""Networks for text and speech, of random weights: a few words, narrow layers, no dropout."""

import torch
import torch.nn.functional as F
from models.architectures.built import Built, labelled, normal, tokens

_SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def bert() -> Built:
    from transformers import BertConfig, BertForMaskedLM

    model = BertForMaskedLM(BertConfig(vocab_size=29, max_position_embeddings=16, **_SMALL, **_NO_DROPOUT))
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[1, 5:] = 0
    return labelled(model, input_ids=tokens(2, 7), attention_mask=mask, labels=tokens(2, 7))


def deberta() -> Built:
    from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

    config = DebertaV2Config(
        vocab_size=29, relative_attention=True, pos_att_type=["p2c", "c2p"], **_SMALL, **_NO_DROPOUT
    )
    return labelled(DebertaV2ForSequenceClassification(config), input_ids=tokens(2, 6), labels=torch.tensor([0, 1]))


def gpt_2() -> Built:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=29, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    x = tokens(2, 7)
    return labelled(GPT2LMHeadModel(config), input_ids=x, labels=x)


def llama() -> Built:
    from transformers import LlamaConfig, LlamaForCausalLM

    x = tokens(2, 7)
    return labelled(
        LlamaForCausalLM(LlamaConfig(vocab_size=29, num_key_value_heads=1, **_SMALL)), input_ids=x, labels=x
    )


def mixtral() -> Built:
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=29,
        num_key_value_heads=1,
        num_local_experts=3,
        output_router_logits=True,
        experts_implementation="eager",
        **_SMALL,
    )
    x = tokens(2, 7)
    return labelled(MixtralForCausalLM(config), input_ids=x, labels=x)


def mamba() -> Built:
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(vocab_size=29, hidden_size=16, state_size=4, num_hidden_layers=2, use_mambapy=False)
    x = tokens(2, 7)
    return labelled(MambaForCausalLM(config), input_ids=x, labels=x)


def rwkv() -> Built:
    from transformers import RwkvConfig, RwkvForCausalLM

    config = RwkvConfig(vocab_size=29, hidden_size=16, num_hidden_layers=2, context_length=16, attention_hidden_size=16)
    x = tokens(2, 6)
    # In evaluation mode it divides its own weights, in place, at each call.
    return labelled(RwkvForCausalLM(config), train=True, input_ids=x, labels=x, use_cache=False)


def t5_v1_1() -> Built:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=29, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, dropout_rate=0.0, decoder_start_token_id=0,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    return labelled(T5ForConditionalGeneration(config), input_ids=tokens(2, 6), labels=tokens(2, 5))


def whisper() -> Built:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config = WhisperConfig(
        vocab_size=29, num_mel_bins=8, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, max_source_positions=10,
        max_target_positions=12, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    return labelled(model, input_features=normal(2, 8, 20), labels=tokens(2, 5))


def wav2vec_2_0() -> Built:
    from transformers import Wav2Vec2Config, Wav2Vec2ForSequenceClassification

    config = Wav2Vec2Config(
        conv_dim=(8, 8), conv_stride=(3, 2), conv_kernel=(5, 3), num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
        classifier_proj_size=8, layerdrop=0.0, apply_spec_augment=False, num_labels=3, num_feat_extract_layers=2, **_SMALL,
    )  # fmt: skip
    model = Wav2Vec2ForSequenceClassification(config)
    return labelled(model, input_values=normal(2, 64), labels=torch.tensor([0, 2]))


def time_series_transformer() -> Built:
    from transformers import TimeSeriesTransformerConfig, TimeSeriesTransformerForPrediction

    config = TimeSeriesTransformerConfig(
        prediction_length=3, context_length=6, lags_sequence=[1, 2], num_time_features=1, d_model=8, encoder_layers=1,
        decoder_layers=1, encoder_ffn_dim=12, decoder_ffn_dim=12, dropout=0.0,
    )  # fmt: skip
    past = normal(2, 8)
    return labelled(
        TimeSeriesTransformerForPrediction(config),
        past_values=past,
        past_time_features=normal(2, 8, 1),
        past_observed_mask=torch.ones_like(past),
        future_values=normal(2, 3),
        future_time_features=normal(2, 3, 1),
    )


def patchtst() -> Built:
    from transformers import PatchTSTConfig, PatchTSTForPrediction

    config = PatchTSTConfig(
        num_input_channels=2, context_length=12, prediction_length=3, patch_length=4, patch_stride=4, d_model=8,
        num_hidden_layers=2, num_attention_heads=2, ffn_dim=12, loss="mse",
    )  # fmt: skip
    return labelled(PatchTSTForPrediction(config), past_values=normal(2, 12, 2), future_values=normal(2, 3, 2))


def lora_on_gpt_2() -> Built:
    from peft import LoraConfig, get_peft_model

    gpt = gpt_2()
    model = get_peft_model(gpt.model, LoraConfig(r=2, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True))
    x = tokens(2, 7)
    return labelled(model, input_ids=x, labels=x)


def dora_on_llama() -> Built:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], use_dora=True)
    x = tokens(2, 7)
    # DoRA holds the norm of the weight by detach(): so does H, as torch's own double backward does.
    return labelled(get_peft_model(llama().model, config), stops=True, input_ids=x, labels=x)


def ia3_on_llama() -> Built:
    from peft import IA3Config, get_peft_model

    config = IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"])
    x = tokens(2, 7)
    return labelled(get_peft_model(llama().model, config), input_ids=x, labels=x)


def decoder_with_rotary_embedding() -> Built:
    from x_transformers import AutoregressiveWrapper, Decoder, TransformerWrapper

    attention = Decoder(dim=16, depth=2, heads=2, rotary_pos_emb=True, ff_glu=True, use_rmsnorm=True, attn_dim_head=8)
    model = AutoregressiveWrapper(TransformerWrapper(num_tokens=29, max_seq_len=16, attn_layers=attention))
    x = tokens(2, 8)
    return Built(model, lambda: model(x))


def vit_of_x_transformers() -> Built:
    from x_transformers import Encoder, ViTransformerWrapper

    encoder = Encoder(dim=16, depth=2, heads=2, attn_dim_head=8)
    model = ViTransformerWrapper(image_size=8, patch_size=4, num_classes=5, attn_layers=encoder)
    x, y = normal(3, 3, 8, 8), torch.tensor([0, 3, 4])
    return Built(model, lambda: F.cross_entropy(model(x), y))


def conformer() -> Built:
    from conformer import Conformer

    model = Conformer(dim=16, depth=1, dim_head=8, heads=2, ff_mult=2, conv_expansion_factor=2, conv_kernel_size=5)
    x, y = normal(2, 9, 16), normal(2, 9, 16)
    return Built(model, lambda: F.mse_loss(model(x), y))


def lstm() -> Built:
    model = torch.nn.ModuleDict({"lstm": torch.nn.LSTM(4, 6, 2, batch_first=True), "head": torch.nn.Linear(6, 3)})
    x, y = normal(3, 5, 4), torch.tensor([0, 2, 1])
    return Built(model, lambda: F.cross_entropy(model["head"](model["lstm"](x)[0][:, -1]), y))
