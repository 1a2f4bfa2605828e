"""The VAE of the tiny LTX: diffusers' `AutoencoderKLLTXVideo` as of LTX-Video 0.9.0, whose decoder looks ahead too.

It has an eighth of the release's compression in space: no patches, and two halvings.
"""

from __future__ import annotations

import math
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLLTXVideo
from diffusers.models.autoencoders import autoencoder_kl_ltx as networks
from torch import Tensor, nn

from vader.models.ltx_vae import encode, scaled
from vader.pretrain.video_vae import CHANNELS, LOG_VARIANCE, Codec

SIZES: dict[str, Any] = {
    "patch_size": 1, "block_out_channels": (24, 48), "decoder_block_out_channels": (24, 48),
    "layers_per_block": (1, 1, 1), "decoder_layers_per_block": (1, 1, 1), "spatio_temporal_scaling": (True, True),
    "decoder_spatio_temporal_scaling": (True, True), "decoder_inject_noise": (False,) * 3,
    "down_block_types": ("LTXVideoDownBlock3D",) * 2, "downsample_type": ("conv",) * 2,
}  # fmt: skip


def new_codec() -> Codec:
    """A fresh VAE through which pictures come; its latents are not normalised yet."""
    vae = AutoencoderKLLTXVideo(latent_channels=CHANNELS, **SIZES)
    initialise(vae)
    for layer in vae.modules():
        if isinstance(layer, networks.LTXVideoCausalConv3d):
            layer.forward = MethodType(convolve, layer)
    return Codec(vae, encode, decode_clips, normalise)


def convolve(layer: networks.LTXVideoCausalConv3d, seen: Tensor) -> Tensor:
    """What the layer makes of `seen` `[B, C, T, H, W]`; of single frames, which it repeats, by the sum of its taps.

    The same values at a third of the time.
    """
    if seen.shape[2] > 1:
        return type(layer).forward(layer, seen)
    picture, convolution = seen[:, :, 0].contiguous(memory_format=torch.channels_last), layer.conv
    taps, padding = convolution.weight.sum(dim=2), convolution.padding[1:]
    return F.conv2d(picture, taps, convolution.bias, convolution.stride[1:], padding)[:, :, None]


@torch.no_grad()
def initialise(vae: AutoencoderKLLTXVideo) -> None:
    """Convolutions keep the scale of what they see, mostly the present frame's, and branches begin small.

    By PyTorch's own weights the first 200 steps learn next to nothing.
    """
    for layer in vae.modules():
        if isinstance(layer, networks.LTXVideoCausalConv3d):
            weight = layer.conv.weight
            present = weight[:, :, -1 if layer.is_causal else weight.shape[2] // 2]
            nn.init.normal_(weight, std=0.2 / math.sqrt(weight[0].numel()))
            nn.init.normal_(present, std=1 / math.sqrt(present[0].numel()))
            nn.init.zeros_(layer.conv.bias)
    for layer in vae.modules():
        if isinstance(layer, networks.LTXVideoResnetBlock3d):
            layer.conv2.conv.weight.mul_(0.3)
    last = vae.encoder.conv_out.conv  # its last channel is the variance of all
    last.weight[-1:] *= 0.1
    last.bias[-1:] = LOG_VARIANCE


@torch.no_grad()
def normalise(vae: AutoencoderKLLTXVideo, mean: Tensor, std: Tensor) -> None:
    vae.latents_mean.copy_(mean)
    vae.latents_std.copy_(std)


def decode_clips(vae: AutoencoderKLLTXVideo, latents: Tensor) -> Tensor:
    """Pixels `[B, F, 3, H, W]`, unclamped, about [0, 1], with gradient to all latents `[B, C, T, h, w]`."""
    return vae.decode(scaled(vae, latents), return_dict=False)[0].movedim(2, 1) / 2 + 0.5
