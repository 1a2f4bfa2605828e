"""Image VAEs that decode a video frame by frame: what the families that have one share.

Latents `[B, C, F, h, w]` of unit variance come in, pixels `[B, n, 3, H, W]` of the chosen frames come out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def space_factor(vae: Any) -> int:
    """How many pixels a latent is wide."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


def decode_frames(vae: Any, latents: Tensor, frames: Tensor | None = None) -> Tensor:
    """Pixels, unclamped, about [0, 1]. Frames are decoded one by one, so only the chosen ones cost anything.

    Args:
        vae: diffusers' `AutoencoderKL`.
        frames: indices `[B, n]`, each video its own; None for all.
    """
    chosen = latents.movedim(2, 1)  # [B, F, C, h, w]
    if frames is not None:
        rows = torch.arange(len(latents), device=latents.device)[:, None]
        chosen = chosen[rows, frames.to(latents.device)]
    images = chosen.flatten(0, 1) / vae.config.scaling_factor
    pixels = vae.decode(images.to(vae.dtype), return_dict=False)[0].to(latents.dtype)
    return pixels.unflatten(0, chosen.shape[:2]) / 2 + 0.5
