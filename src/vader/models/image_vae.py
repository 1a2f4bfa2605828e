"""Image VAEs that decode and encode a video frame by frame: what the families that have one share.

Latents are `[B, C, F, h, w]` of unit variance, pixels `[B, F, 3, H, W]`; `vae` is diffusers' `AutoencoderKL`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vader.networks.measure import weight_dtype


def space_factor(vae: Any) -> int:
    """How many pixels a latent is wide."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


def decode_frames(vae: Any, latents: Tensor, frames: Tensor | None = None) -> Tensor:
    """Pixels `[B, n, 3, H, W]`, unclamped, about [0, 1]; only the chosen frames cost anything.

    Args:
        frames: indices `[B, n]`, each video its own; None for all.
    """
    chosen = latents.movedim(2, 1)  # [B, F, C, h, w]
    if frames is not None:
        rows = torch.arange(len(latents), device=latents.device)[:, None]
        chosen = chosen[rows, frames.to(latents.device)]
    images = chosen.flatten(0, 1) / vae.config.scaling_factor
    pixels = vae.decode(images.to(weight_dtype(vae)), return_dict=False)[0].to(latents.dtype)
    return pixels.unflatten(0, chosen.shape[:2]) / 2 + 0.5


@torch.no_grad()
def encode_frames(vae: Any, pixels: Tensor) -> Tensor:
    """Latents of pixels in [0, 1], without gradient: the mode of the VAE's posterior."""
    images = (pixels.flatten(0, 1) * 2 - 1).to(weight_dtype(vae))
    latents = vae.encode(images).latent_dist.mode().to(pixels.dtype) * vae.config.scaling_factor
    return latents.unflatten(0, pixels.shape[:2]).movedim(1, 2)
