"""What the tiny world's causal VAEs share, of Wan and of LTX: their clips, their loss, their training.

9 frames of 32x32 are 3 latent ones of 8x8. First frames, which are latents of their own, are learned first; then whole
clips.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.functional import max_pool2d

from vader.pretrain.loop import Schedule, fit, generator_for
from vader.pretrain.vae import KL_WEIGHT
from vader.tinyworld.scenes import Scenes, object_masks, render, sample_scenes

logger = logging.getLogger(__name__)

FRAMES, LATENTS, SIDE = 9, 3, 8
CHANNELS = 8
LOG_VARIANCE = -6.0  # of the posteriors, at first
OBJECT_WEIGHT = 5.0  # beside 1


class Stage(NamedTuple):
    """A part of a network's training: how many frames of each clip it sees, of how many clips at once."""

    frames: int
    batch: int
    schedule: Schedule


class Codec(NamedTuple):
    """A VAE of diffusers, and how its family uses it.

    Attributes:
        encode: pixels `[B, F, 3, H, W]` in [0, 1] -> normalised latents `[B, C, T, h, w]`.
        decode: normalised latents -> pixels, unclamped, about [0, 1], with gradient to all latents.
        normalise: from a mean and a standard deviation `[C]` on, latents are normalised by them.
    """

    vae: Any
    encode: Callable[[Any, Tensor], Tensor]
    decode: Callable[[Any, Tensor], Tensor]
    normalise: Callable[[Any, Tensor, Tensor], None]


def draw_clips(count: int, generator: torch.Generator, frames: int = FRAMES) -> tuple[Tensor, Scenes]:
    """The first frames `[N, F, 3, 32, 32]` in [0, 1] of random clips, and what they show."""
    scenes = sample_scenes(count, generator)
    return render(scenes, FRAMES)[:, :frames], scenes


def object_weights(scenes: Scenes, frames: int) -> Tensor:
    """How much each pixel `[N, F, 1, 32, 32]` counts: more at and near the objects, which are learned last.

    With even weights they are two decibels worse after 120 steps, and the whole picture one.
    """
    near = max_pool2d(object_masks(scenes, FRAMES, 32)[:, :frames], 5, 1, 2)
    return 1 + OBJECT_WEIGHT * near[:, :, None]


def reconstruction_loss(codec: Codec, pixels: Tensor, weights: Tensor, generator: torch.Generator) -> Tensor:
    """Error of pixels `[B, F, 3, H, W]` after a VAE that is not normalised yet, and a little KL."""
    posterior = codec.vae.encode(pixels.movedim(2, 1) * 2 - 1).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=generator)
    error = 2 * (codec.decode(codec.vae, posterior.mean.float() + posterior.std.float() * noise) - pixels)
    kl = posterior.kl().float().mean() / posterior.mean[0].numel()
    return ((error.abs() + 2 * error.square()) * weights).mean() / weights.mean() + KL_WEIGHT * kl


@torch.no_grad()
def set_normalisation(codec: Codec, pixels: Tensor) -> None:
    """Normalised latents have zero mean and unit variance in each channel, as diffusion expects."""
    latents = codec.vae.encode(pixels.movedim(2, 1) * 2 - 1).latent_dist.mode().movedim(1, 0).flatten(1)
    codec.normalise(codec.vae, latents.mean(dim=1), latents.std(dim=1))


@torch.no_grad()
def psnr(codec: Codec, pixels: Tensor) -> float:
    """Reconstruction quality in dB over clips `[N, F, 3, H, W]` in [0, 1]."""
    restored = codec.decode(codec.vae, codec.encode(codec.vae, pixels)).clamp(0, 1)
    return -10 * math.log10(F.mse_loss(restored, pixels).item())


def train(codec: Codec, stages: tuple[Stage, ...], seed: int, unfinished: Path) -> float:
    """Trains the codec's fresh VAE in place, normalises it, and freezes it; returns its `psnr` on held-out clips.

    Args:
        unfinished: of stages that are not done; the number of frames is added to its name.
    """
    for frames, batch, schedule in stages:

        def loss(generator: torch.Generator, count: int = batch, frames: int = frames) -> Tensor:
            pixels, scenes = draw_clips(count, generator, frames)
            return reconstruction_loss(codec, pixels, object_weights(scenes, frames), generator)

        average = fit(codec.vae, loss, schedule, seed, unfinished.with_name(f"{unfinished.name}-{frames}.pt"))
        codec.vae.load_state_dict(average.state_dict())
    set_normalisation(codec, draw_clips(128, generator_for(seed, -1))[0])
    codec.vae.eval().requires_grad_(False)
    quality = psnr(codec, draw_clips(64, generator_for(seed, -2))[0])
    logger.info("VAE: %.2f dB", quality)
    return quality
