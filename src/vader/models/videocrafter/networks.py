"""VideoCrafter2's three networks as diffusers' and transformers' own classes, from the release's tensors and back.

What a tensor's shape tells is read from it, so that a tiny checkpoint loads by the same code as the released one.
What no shape tells is in `Settings`. Each network comes in two steps: `empty_...` builds it on the meta device and
checks every name and shape; `load_...` fills it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.unets.unet_3d_condition import UNet3DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from vader.errors import UserError
from vader.files.foreign import reading
from vader.files.open_clip import rename_open_clip, to_open_clip
from vader.files.weights import check_weights, fill
from vader.models.videocrafter.names import POINTWISE, Pairs, to_diffusers, to_release, unet_names, vae_names

VAE_SCALE = 0.18215  # of the released latents
INPUT_HEADS = 8  # of the temporal transformer before the first block, whatever the widths
TEXT_HEAD_WIDTH = 64  # of open_clip's text towers

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Settings:
    """What shapes do not tell; the defaults are the release's. `text_heads` None: as many as 64 goes into the width."""

    unet_groups: int = 32
    vae_groups: int = 32
    text_heads: int | None = None


@contextmanager
def _reading_shapes(label: str) -> Iterator[None]:
    """Within, an architecture is read from shapes: what does not fit any is the checkpoint's fault."""
    with reading(f"{label} is of another architecture"):
        try:
            yield
        except KeyError as error:
            raise UserError(f"{label} is not whole: it lacks {error.args[0]}") from error


# ---- UNet ----


class TimeFpsEmbedding(TimestepEmbedding):
    """Embedding of the time plus that of the frames per second: two networks of one form on one kind of sinusoid."""

    def __init__(self, width: int, out_width: int) -> None:
        super().__init__(width, out_width)
        self.fps_proj = Timesteps(width, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.fps_embedding = TimestepEmbedding(width, out_width)

    def forward(self, sample: Tensor, condition: Tensor) -> Tensor:
        """The time's sinusoid `[N, width]` and frames per second `[N]` -> `[N, out_width]`."""
        return super().forward(sample) + self.fps_embedding(self.fps_proj(condition).to(sample.dtype))


def build_unet(config: Mapping[str, Any]) -> UNet3DConditionModel:
    """diffusers' UNet3D, told the frames per second as its `timestep_cond`."""
    unet = UNet3DConditionModel(**config)
    width = config["block_out_channels"][0]
    unet.time_embedding = TimeFpsEmbedding(width, 4 * width)
    return unet


def unet_config(weights: Weights, groups: int = 32) -> dict[str, Any]:
    """What `build_unet` takes, read from the release's names and shapes."""
    numbers = {int(name.split(".")[1]) for name in weights if name.startswith("input_blocks.")}
    levels = 1 + sum(f"input_blocks.{number}.0.op.weight" in weights for number in numbers)
    layers = len(numbers) // levels - 1
    first = [1 + level * (layers + 1) for level in range(levels)]  # block of each level
    attention = [f"input_blocks.{block}.1.norm.weight" in weights for block in first]
    return {
        "in_channels": weights["input_blocks.0.0.weight"].shape[1],
        "out_channels": weights["out.2.weight"].shape[0],
        "block_out_channels": tuple(len(weights[f"input_blocks.{block}.0.out_layers.3.weight"]) for block in first),
        "layers_per_block": layers,
        "down_block_types": tuple("CrossAttnDownBlock3D" if attends else "DownBlock3D" for attends in attention),
        "up_block_types": tuple("CrossAttnUpBlock3D" if attends else "UpBlock3D" for attends in reversed(attention)),
        "attention_head_dim": len(weights["init_attn.0.proj_in.weight"]) // INPUT_HEADS,
        "cross_attention_dim": weights["middle_block.1.transformer_blocks.0.attn2.to_k.weight"].shape[1],
        "norm_num_groups": groups,
    }


def names_of_unet(unet: Any) -> Pairs:
    attention = [kind.startswith("CrossAttn") for kind in unet.config.down_block_types]
    return unet_names(attention, unet.config.layers_per_block)


def empty_unet(weights: Weights, settings: Settings, label: str) -> UNet3DConditionModel:
    """The UNet on the meta device.

    Raises:
        UserError: a weight is missing, unknown, or of a shape that does not go with the others.
    """
    with _reading_shapes(label), torch.device("meta"):
        unet = build_unet(unet_config(weights, settings.unet_groups))
    check_weights(weights, unet_to_release(unet), label)
    return unet


def load_unet(unet: UNet3DConditionModel, weights: Weights, dtype: torch.dtype, label: str) -> UNet3DConditionModel:
    return fill(unet, from_release(weights, names_of_unet(unet)), dtype, label)


def unet_to_release(unet: UNet3DConditionModel) -> dict[str, Tensor]:
    """The UNet's weights as the release has them, without prefix."""
    return _to_release(unet.state_dict(), names_of_unet(unet))


# ---- VAE ----


def vae_config(weights: Weights, groups: int = 32) -> dict[str, Any]:
    """What diffusers' `AutoencoderKL` takes, read from the release's names and shapes."""
    blocks = [name.split(".") for name in weights if name.startswith("encoder.down.") and ".conv2.weight" in name]
    levels, layers = (1 + max((int(parts[at]) for parts in blocks), default=0) for at in (2, 4))
    widths = tuple(len(weights[f"encoder.down.{level}.block.0.conv2.weight"]) for level in range(levels))
    return {
        "in_channels": weights["encoder.conv_in.weight"].shape[1],
        "out_channels": len(weights["decoder.conv_out.weight"]),
        "latent_channels": len(weights["post_quant_conv.weight"]),
        "block_out_channels": widths,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "layers_per_block": layers,
        "norm_num_groups": groups,
        "scaling_factor": VAE_SCALE,
    }


def empty_vae(weights: Weights, settings: Settings, label: str) -> AutoencoderKL:
    """The VAE on the meta device. Raises `UserError` as `empty_unet`."""
    with _reading_shapes(label), torch.device("meta"):
        vae = AutoencoderKL(**vae_config(weights, settings.vae_groups))
    check_weights(weights, vae_to_release(vae), label)
    return vae


def load_vae(vae: AutoencoderKL, weights: Weights, dtype: torch.dtype, label: str) -> AutoencoderKL:
    return fill(vae, from_release(weights, _names_of_vae(vae)), dtype, label)


def vae_to_release(vae: AutoencoderKL) -> dict[str, Tensor]:
    """The VAE's weights as the release has them, without prefix.

    The release's latents are 0.18215 times the encoder's; another factor goes into the two 1x1 convolutions at the
    latents, which leaves latents of unit variance, and pixels, as they are.
    """
    weights = _to_release(vae.state_dict(), _names_of_vae(vae))
    ratio, channels = vae.config.scaling_factor / VAE_SCALE, vae.config.latent_channels
    mean, log_variance = weights["quant_conv.weight"].split(channels)
    mean_bias, log_variance_bias = weights["quant_conv.bias"].split(channels)
    return weights | {
        "quant_conv.weight": torch.cat([mean * ratio, log_variance]),
        "quant_conv.bias": torch.cat([mean_bias * ratio, log_variance_bias + 2 * math.log(ratio)]),
        "post_quant_conv.weight": weights["post_quant_conv.weight"] / ratio,
    }


def _names_of_vae(vae: Any) -> Pairs:
    return vae_names(len(vae.config.block_out_channels), vae.config.layers_per_block)


# ---- text encoder ----


def text_config(weights: Weights, heads: int | None = None) -> CLIPTextConfig:
    """The tower less its last block, which VideoCrafter2 leaves out ("penultimate"), read from open_clip's shapes."""
    vocabulary, width = weights["token_embedding.weight"].shape
    blocks = sum(name.endswith(".ln_1.weight") for name in weights)
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=len(weights["transformer.resblocks.0.mlp.c_fc.bias"]),
        num_hidden_layers=blocks - 1,
        num_attention_heads=heads or max(1, width // TEXT_HEAD_WIDTH),
        max_position_embeddings=len(weights["positional_embedding"]),
        hidden_act="gelu",  # open_clip's exact one
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=0,
    )


def empty_text(weights: Weights, settings: Settings, label: str) -> CLIPTextModel:
    """The text encoder on the meta device. Raises `UserError` as `empty_unet`."""
    with _reading_shapes(label), init_empty_weights():  # its buffers are in no file, and so are real
        text_encoder = CLIPTextModel(text_config(weights, settings.text_heads))
        any_width = {"text_projection": weights["text_projection"]}
    check_weights(weights, text_to_release(text_encoder) | any_width, label)
    return text_encoder


def load_text(text_encoder: CLIPTextModel, weights: Weights, dtype: torch.dtype, label: str) -> CLIPTextModel:
    """The text encoder: its output is the penultimate block's, under the tower's final norm.

    Unused stay the last block, the projection and the logit scale.
    """
    unused = ("text_projection", "logit_scale", f"transformer.resblocks.{text_encoder.config.num_hidden_layers}.")
    used = {name: weight for name, weight in weights.items() if not name.startswith(unused)}
    prefix = _text_prefix(text_encoder)
    named = {prefix + name.removeprefix("text_model."): weight for name, weight in rename_open_clip(used).items()}
    return fill(text_encoder, named, dtype, label)


def text_to_release(text_encoder: CLIPTextModel) -> dict[str, Tensor]:
    """The text encoder's weights as the release has them, without prefix.

    What the release has beyond them and never uses is made up: the last block again, no projection, CLIP's first scale.
    """
    prefix = _text_prefix(text_encoder)
    state = {f"text_model.{name.removeprefix(prefix)}": weight for name, weight in text_encoder.state_dict().items()}
    weights = to_open_clip(state)
    blocks, width = text_encoder.config.num_hidden_layers, text_encoder.config.hidden_size
    last, spare = (f"transformer.resblocks.{number}." for number in (blocks - 1, blocks))
    return (
        weights
        | {name.replace(last, spare): weight for name, weight in weights.items() if name.startswith(last)}
        | {"text_projection": torch.eye(width), "logit_scale": torch.tensor(math.log(1 / 0.07))}
    )


def _text_prefix(text_encoder: CLIPTextModel) -> str:
    """Of all its weights: `text_model.` until transformers 4, none since."""
    return "text_model." if any(name.startswith("text_model.") for name in text_encoder.state_dict()) else ""


# ---- both ways ----


def from_release(weights: Weights, pairs: Pairs) -> dict[str, Tensor]:
    """The release's tensors under diffusers' names, pointwise convolutions as linear layers."""
    return {
        to_diffusers(name, pairs): weight.flatten(1) if name in POINTWISE else weight
        for name, weight in weights.items()
    }


def _to_release(state: Weights, pairs: Pairs) -> dict[str, Tensor]:
    named = {to_release(name, pairs): weight for name, weight in state.items()}
    return {name: weight[(..., *[None] * POINTWISE.get(name, 0))] for name, weight in named.items()}
