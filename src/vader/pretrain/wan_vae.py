"""Pretrains the causal VAE of the tiny Wan: diffusers' `AutoencoderKLWan`, 9 frames of 32x32 to 3 latent ones of 4x4.

As in TI2V-5B the pixels come in patches of 2x2, so that most of the work is done at 16x16. First frames, which are
latents of their own, are learned first; then whole clips.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders import autoencoder_kl_wan as networks
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from vader.models.wan_vae import decode_chunk, empty_caches
from vader.pretrain.loop import Schedule, fit, generator_for
from vader.pretrain.vae import KL_WEIGHT
from vader.tinyworld.scenes import Scenes, object_masks, render, sample_scenes

FRAMES = 9
CHANNELS = 16
LOG_VARIANCE = -6.0  # of the posterior, at first
OBJECT_WEIGHT = 5.0  # beside 1
SIZES: dict[str, Any] = {
    "base_dim": 16, "dim_mult": [1, 2, 3], "num_res_blocks": 1, "temperal_downsample": [True, True],
    "patch_size": 2, "in_channels": 12, "out_channels": 12, "scale_factor_spatial": 8,
}  # fmt: skip


def new_vae() -> AutoencoderKLWan:
    """A fresh VAE through which pictures come; its latents are not normalised yet."""
    vae = AutoencoderKLWan(z_dim=CHANNELS, latents_mean=[0.0] * CHANNELS, latents_std=[1.0] * CHANNELS, **SIZES)
    initialise(vae)
    return vae


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


def draw_clips(count: int, generator: torch.Generator, frames: int = FRAMES) -> tuple[Tensor, Scenes]:
    """The first frames `[N, F, 3, 32, 32]` in [0, 1] of random clips, and what they show."""
    scenes = sample_scenes(count, generator)
    return render(scenes, FRAMES)[:, :frames], scenes


def decode_clips(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Pixels `[B, F, 3, H, W]`, unclamped, about [0, 1], with gradient to all latents `[B, C, T, h, w]`."""
    first, caches = decode_chunk(vae, latents[:, :, :1], empty_caches(vae), first=True)
    if latents.shape[2] == 1:
        return first.movedim(2, 1)
    rest, _ = decode_chunk(vae, latents[:, :, 1:], caches, first=False)
    return torch.cat([first, rest], dim=2).movedim(2, 1)


def object_weights(scenes: Scenes, frames: int) -> Tensor:
    """How much each pixel `[N, F, 1, 32, 32]` counts: more at and near the objects, which are learned last.

    With even weights they are two decibels worse after 120 steps, and the whole picture one.
    """
    near = max_pool2d(object_masks(scenes, FRAMES, 32)[:, :frames], 5, 1, 2)
    return 1 + OBJECT_WEIGHT * near[:, :, None]


def reconstruction_loss(vae: AutoencoderKLWan, pixels: Tensor, weights: Tensor, generator: torch.Generator) -> Tensor:
    """Error of pixels `[B, F, 3, H, W]` after the VAE, and a little KL."""
    posterior = vae.encode(pixels.movedim(2, 1) * 2 - 1).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=generator)
    error = 2 * (decode_clips(vae, posterior.mean.float() + posterior.std.float() * noise) - pixels)
    kl = posterior.kl().float().mean() / posterior.mean[0].numel()
    return ((error.abs() + 2 * error.square()) * weights).mean() / weights.mean() + KL_WEIGHT * kl


@torch.no_grad()
def set_normalisation(vae: AutoencoderKLWan, pixels: Tensor) -> None:
    """Normalised latents have zero mean and unit variance in each channel, as diffusion expects."""
    latents = vae.encode(pixels.movedim(2, 1) * 2 - 1).latent_dist.mode().movedim(1, 0).flatten(1)
    vae.register_to_config(latents_mean=latents.mean(dim=1).tolist(), latents_std=latents.std(dim=1).tolist())


@torch.no_grad()
def psnr(vae: AutoencoderKLWan, pixels: Tensor) -> float:
    """Reconstruction quality in dB over clips `[N, F, 3, H, W]` in [0, 1]."""
    latents = vae.encode(pixels.movedim(2, 1) * 2 - 1).latent_dist.mode()
    mean, std = (torch.tensor(vae.config[name]).view(-1, 1, 1, 1) for name in ("latents_mean", "latents_std"))
    return -10 * math.log10(F.mse_loss(decode_clips(vae, (latents - mean) / std).clamp(0, 1), pixels).item())


def build_vae(work: Path, seed: int, stages: dict[int, tuple[int, Schedule]]) -> AutoencoderKLWan:
    """A trained VAE, frozen.

    Args:
        stages: for how many frames of each clip: how many clips at once, and how long.
    """
    vae = new_vae()
    for frames, (batch, schedule) in stages.items():

        def loss(generator: torch.Generator, count: int = batch, frames: int = frames) -> Tensor:
            pixels, scenes = draw_clips(count, generator, frames)
            return reconstruction_loss(vae, pixels, object_weights(scenes, frames), generator)

        average = fit(vae, loss, schedule, seed, work / f"wan-vae-{frames}.pt")
        vae.load_state_dict(average.state_dict())
    set_normalisation(vae, draw_clips(128, generator_for(seed, -1))[0])
    return vae.eval().requires_grad_(False)
