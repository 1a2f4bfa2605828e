"""Pretrains the tiny world's image VAE: diffusers' `AutoencoderKL`, 32x32 pixels to 8x8 latents of 4 channels."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from vader.pretrain.loop import Schedule, fit, generator_for
from vader.tinyworld.scenes import render, sample_scenes

SEED = 11
SCHEDULE = Schedule(steps=5000, lr=2e-3, ema=0.995)
BATCH = 48
KL_WEIGHT = 1e-4


def new_vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=32,
    )


def random_frames(count: int, generator: torch.Generator) -> Tensor:
    """Single frames of random scenes, as the VAE sees them: `[N, 3, 32, 32]` in [-1, 1]."""
    return render(sample_scenes(count, generator), frames=1)[:, 0] * 2 - 1


def reconstruction_loss(vae: AutoencoderKL, pixels: Tensor, generator: torch.Generator) -> Tensor:
    posterior = vae.encode(pixels).latent_dist
    latents = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=generator)
    error = vae.decode(latents).sample.float() - pixels
    kl = posterior.kl().float().mean() / latents[0].numel()
    return error.abs().mean() + 2 * error.square().mean() + KL_WEIGHT * kl


@torch.no_grad()
def psnr(vae: AutoencoderKL, pixels: Tensor) -> float:
    """Mean reconstruction quality in dB over frames `[N, 3, H, W]` in [-1, 1]."""
    restored = vae.decode(vae.encode(pixels).latent_dist.mode()).sample
    errors = F.mse_loss(restored, pixels, reduction="none").mean(dim=(1, 2, 3)) / 4
    return (-10 * errors.log10()).mean().item()


@torch.no_grad()
def set_scaling_factor(vae: AutoencoderKL, pixels: Tensor) -> None:
    """Latents times `scaling_factor` have unit variance, as diffusion expects."""
    vae.register_to_config(scaling_factor=1.0 / vae.encode(pixels).latent_dist.mode().std().item())


def build(out: Path, work: Path) -> dict[str, float]:
    """Trains the VAE, writes it to `out` in diffusers' format, and returns its held-out quality."""
    torch.manual_seed(SEED)
    vae = new_vae().to(memory_format=torch.channels_last)
    trained = fit(
        vae, lambda g: reconstruction_loss(vae, random_frames(BATCH, g), g), SCHEDULE, SEED, checkpoint=work / "vae.pt"
    )
    held_out = random_frames(512, generator_for(SEED, -1))
    set_scaling_factor(trained, held_out)
    quality = psnr(trained, held_out)
    trained.to(memory_format=torch.contiguous_format).half().save_pretrained(out)
    return {"psnr_db": quality}
