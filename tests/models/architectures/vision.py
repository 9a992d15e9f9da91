"""Networks for images, of random weights: a few pixels, few channels; batch norm in training mode where it is there."""

from typing import Any

import torch
import torch.nn.functional as F
from models.architectures.built import Built, labelled, normal
from torch import nn

_TRANSFORMER = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
_IMAGES = {"image_size": 8, "patch_size": 4}


def _classified(model: nn.Module, size: int, channels: int = 3) -> Built:
    return labelled(model, pixel_values=normal(4, channels, size, size), labels=torch.tensor([0, 1, 2, 1]))


def _scored(model: nn.Module, *size: int) -> Built:
    x, y = normal(4, *size), torch.tensor([0, 1, 2, 1])
    return Built(model, lambda: F.cross_entropy(model(x), y))


def _regressed(model: nn.Module, *size: int) -> Built:
    x = normal(*size)
    y = torch.randn_like(_tensor(model(x)))
    return Built(model, lambda: F.mse_loss(_tensor(model(x)), y))


def _tensor(out: Any) -> torch.Tensor:
    while not isinstance(out, torch.Tensor):
        out = out[0]
    return out


def vit() -> Built:
    from transformers import ViTConfig, ViTForImageClassification

    return _classified(ViTForImageClassification(ViTConfig(num_labels=3, **_IMAGES, **_TRANSFORMER)), 8)


def clip() -> Built:
    from transformers import CLIPConfig, CLIPModel

    model = CLIPModel(CLIPConfig(
        text_config={"vocab_size": 29, "max_position_embeddings": 8, "eos_token_id": 28, **_TRANSFORMER},
        vision_config={**_IMAGES, **_TRANSFORMER}, projection_dim=8,
    ))  # fmt: skip
    x = torch.randint(0, 28, (3, 6))
    x[:, -1] = 28
    images = normal(3, 3, 8, 8)
    return Built(model, lambda: model(input_ids=x, pixel_values=images, return_loss=True).loss)


def dinov2() -> Built:
    from transformers import Dinov2Config, Dinov2ForImageClassification

    config = Dinov2Config(
        num_labels=3, mlp_ratio=2, **_IMAGES, **{k: v for k, v in _TRANSFORMER.items() if "inter" not in k}
    )
    return _classified(Dinov2ForImageClassification(config), 8)


def swin() -> Built:
    from transformers import SwinConfig, SwinForImageClassification

    config = SwinConfig(
        image_size=16, patch_size=2, embed_dim=8, depths=[2, 2], num_heads=[1, 2], window_size=2, num_labels=3,
        drop_path_rate=0.0,
    )  # fmt: skip
    return _classified(SwinForImageClassification(config), 16)


def segformer() -> Built:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    config = SegformerConfig(
        depths=[1, 1], num_encoder_blocks=2, sr_ratios=[2, 1], hidden_sizes=[8, 12], patch_sizes=[3, 3], strides=[2, 2],
        num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=8, num_labels=3, drop_path_rate=0.0,
        classifier_dropout_prob=0.0,
    )  # fmt: skip
    labels = torch.randint(0, 3, (2, 16, 16))
    return labelled(SegformerForSemanticSegmentation(config), pixel_values=normal(2, 3, 16, 16), labels=labels)


def resnet() -> Built:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 12],
        depths=[1, 1],
        layer_type="basic",
        num_labels=3,
        downsample_in_first_stage=True,
    )
    return _classified(ResNetForImageClassification(config), 16)


def convnext() -> Built:
    from transformers import ConvNextConfig, ConvNextForImageClassification

    config = ConvNextConfig(hidden_sizes=[8, 12], depths=[1, 1], num_stages=2, patch_size=2, num_labels=3)
    return _classified(ConvNextForImageClassification(config), 16)


def mobilenetv2() -> Built:
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    # Small enough that hardly a corner of its ReLU6 lies within the steps of the differences.
    config = MobileNetV2Config(
        image_size=8, depth_multiplier=0.05, depth_divisible_by=2, min_depth=2, expand_ratio=2, finegrained_output=False,
        num_labels=3, classifier_dropout_prob=0.0,
    )  # fmt: skip
    return _classified(MobileNetV2ForImageClassification(config), 8)


def _efficientnet() -> nn.Module:
    from efficientnet_pytorch import EfficientNet

    return EfficientNet.from_name(
        "efficientnet-b0", image_size=32, num_classes=3, width_coefficient=0.1, depth_coefficient=0.2,
        dropout_rate=0.0, drop_connect_rate=0.0,
    )  # fmt: skip


def efficientnet() -> Built:
    return _scored(_efficientnet(), 3, 32, 32)


def efficientnet_set_swish_memory_efficient_false() -> Built:
    model = _efficientnet()
    model.set_swish(memory_efficient=False)
    return _scored(model, 3, 32, 32)


def unetr() -> Built:
    from monai.networks.nets import UNETR

    model = UNETR(
        in_channels=1, out_channels=2, img_size=16, feature_size=4, hidden_size=12, mlp_dim=16, num_heads=2, spatial_dims=2,
        norm_name="instance",
    )  # fmt: skip
    return _regressed(model, 2, 1, 16, 16)


def residual_u_net() -> Built:
    from monai.networks.nets import UNet

    return _regressed(UNet(2, 1, 2, channels=(4, 6, 8), strides=(2, 2), num_res_units=1), 2, 1, 16, 16)


def segresnet() -> Built:
    from monai.networks.nets import SegResNet

    return _regressed(
        SegResNet(2, init_filters=8, in_channels=1, out_channels=2, blocks_down=(1, 1), blocks_up=(1,)), 2, 1, 8, 8
    )


def densenet() -> Built:
    from monai.networks.nets import DenseNet

    model = DenseNet(2, in_channels=3, out_channels=3, init_features=8, growth_rate=4, block_config=(2, 2), bn_size=2)
    return _scored(model, 3, 16, 16)


def attention_u_net_dice_loss() -> Built:
    from monai.losses import DiceCELoss
    from monai.networks.nets import AttentionUnet

    model = AttentionUnet(2, 1, 3, channels=(4, 6), strides=(2,))
    x, y, loss = normal(2, 1, 8, 8), torch.randint(0, 3, (2, 1, 8, 8)), DiceCELoss(softmax=True, to_onehot_y=True)
    return Built(model, lambda: loss(model(x), y))


def conditional_u_net() -> Built:
    from diffusers import DDPMScheduler, UNet2DConditionModel

    model = UNet2DConditionModel(
        sample_size=8, in_channels=2, out_channels=2, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=8, attention_head_dim=4,
    )  # fmt: skip
    x, noise, text, t = normal(2, 2, 8, 8), normal(2, 2, 8, 8), normal(2, 3, 8), torch.tensor([3, 500])
    noisy = DDPMScheduler().add_noise(x, noise, t)
    return Built(model, lambda: F.mse_loss(model(noisy, t, text).sample, noise))


def variational_autoencoder() -> Built:
    from diffusers import AutoencoderKL

    model = AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4, latent_channels=2,
    )  # fmt: skip
    x, noise = normal(2, 3, 8, 8), normal(2, 2, 4, 4)

    def loss() -> torch.Tensor:
        latent = model.encode(x).latent_dist
        return F.mse_loss(model.decode(latent.mean + latent.std * noise).sample, x) + 0.01 * latent.kl().mean()

    return Built(model, loss)


def diffusion_transformer() -> Built:
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=2, num_layers=1, sample_size=8, patch_size=2,
        num_embeds_ada_norm=10, norm_num_groups=4,
    )  # fmt: skip
    x, noise, t, label = normal(2, 2, 8, 8), normal(2, 2, 8, 8), torch.tensor([3, 500]), torch.tensor([1, 4])
    return Built(model, lambda: F.mse_loss(model(x, timestep=t, class_labels=label).sample, noise))
