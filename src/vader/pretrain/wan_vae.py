"""The causal VAE of the tiny Wan: diffusers' `AutoencoderKLWan`, with half of Wan 2.1's compression in space.

At 8x8 pixels a latent, as in the release, seven shapes in ten come through; at these 4x4 all do.
"""

from __future__ import annotations

import math
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders import autoencoder_kl_wan as networks
from torch import Tensor, nn

from vader.models.wan_vae import decode_chunk, empty_caches, encode
from vader.pretrain.video_vae import CHANNELS, LOG_VARIANCE, Codec

SIZES: dict[str, Any] = {
    "base_dim": 16, "dim_mult": [1, 2, 3], "num_res_blocks": 1, "temperal_downsample": [True, True],
    "scale_factor_spatial": 4,
}  # fmt: skip


def new_codec() -> Codec:
    """A fresh VAE through which pictures come; its latents are not normalised yet."""
    vae = AutoencoderKLWan(z_dim=CHANNELS, latents_mean=[0.0] * CHANNELS, latents_std=[1.0] * CHANNELS, **SIZES)
    initialise(vae)
    for layer in vae.modules():
        if isinstance(layer, networks.WanCausalConv3d):
            layer.forward = MethodType(convolve, layer)
        elif isinstance(layer, networks.WanRMS_norm):
            layer.forward = MethodType(scale_to_one, layer)
    return Codec(vae, encode, decode_clips, normalise)


def convolve(layer: networks.WanCausalConv3d, seen: Tensor, past: Tensor | None = None) -> Tensor:
    """What the layer makes of `seen` `[B, C, T, H, W]`; of single frames without a past by the present's taps alone.

    The same values at a third of the time: the past's taps would see zeros.
    """
    if seen.shape[2] > 1 or past is not None:
        return type(layer).forward(layer, seen, past)
    padding = layer.weight.shape[-1] // 2
    picture = seen[:, :, 0].contiguous(memory_format=torch.channels_last)
    return F.conv2d(picture, layer.weight[:, :, -1], layer.bias, layer.stride[1:], padding)[:, :, None]


def scale_to_one(layer: networks.WanRMS_norm, seen: Tensor) -> Tensor:
    """What the layer makes of `seen`, sooner: with the channels beside one another in memory."""
    beside = torch.channels_last_3d if seen.dim() == 5 else torch.channels_last
    seen = seen.contiguous(memory_format=beside)
    return seen * (seen.square().sum(dim=1, keepdim=True) + 1e-12).rsqrt() * layer.scale * layer.gamma


@torch.no_grad()
def initialise(vae: AutoencoderKLWan) -> None:
    """Convolutions keep the scale of what they see, mostly the present frame's, and branches begin small.

    By PyTorch's own weights, of whose taps the past's see zeros in first frames, nothing of the picture comes through:
    350 steps then learn no more than its mean colour, where 60 of these learn the background.
    """
    for layer in vae.modules():
        if isinstance(layer, (nn.Conv2d, nn.Conv3d)):
            nn.init.normal_(layer.weight, std=0.2 / math.sqrt(layer.weight[0].numel()))
            present = layer.weight[:, :, -1] if isinstance(layer, nn.Conv3d) else layer.weight
            nn.init.normal_(present, std=1 / math.sqrt(present[0].numel()))
    for name, parameter in vae.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
    for layer in vae.modules():
        if isinstance(layer, networks.WanResidualBlock):
            layer.conv2.weight.mul_(0.3)
        elif isinstance(layer, networks.WanAttentionBlock):
            layer.proj.weight.mul_(0.1)
        elif isinstance(layer, networks.WanResample) and layer.mode.endswith("3d"):
            same = torch.eye(layer.dim).repeat(layer.time_conv.out_channels // layer.dim, 1)
            layer.time_conv.weight[:, :, -1, 0, 0] = same
    vae.quant_conv.bias[CHANNELS:] = LOG_VARIANCE
    vae.quant_conv.weight[CHANNELS:] *= 0.1


def normalise(vae: AutoencoderKLWan, mean: Tensor, std: Tensor) -> None:
    vae.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())


def decode_clips(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Pixels `[B, F, 3, H, W]`, unclamped, about [0, 1], with gradient to all latents `[B, C, T, h, w]`."""
    first, caches = decode_chunk(vae, latents[:, :, :1], empty_caches(vae), first=True)
    if latents.shape[2] == 1:
        return first.movedim(2, 1)
    rest, _ = decode_chunk(vae, latents[:, :, 1:], caches, first=False)
    return torch.cat([first, rest], dim=2).movedim(2, 1)
