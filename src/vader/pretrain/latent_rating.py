"""Trains the tiny world's reward before the decoder: it rates videos from their latents at any noise level.

The ratings are those of the aesthetic head: a scene's vividness on a scale from 1 to 10, less what the clip is damaged.
Latents of a fixed pool of scenes are encoded once, most of them then disturbed: each number by itself, a pattern that
stays, light that flickers, a tint. What a disturbance costs, the decoder tells. Noise and times are drawn afresh in
every batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor

from vader.pretrain.clip import DAMAGE_COST
from vader.pretrain.loop import Schedule, fit, generator_for
from vader.pretrain.modelscope import new_scheduler
from vader.rewards.latent_aesthetic import LatentRater
from vader.tinyworld.judge import aesthetic_rating
from vader.tinyworld.scenes import render, sample_scenes

SEED = 23
SCHEDULE = Schedule(steps=4000, lr=2e-3, cooldown=2000)
BATCH = 64
POOL = 8192
CHUNK = 64  # clips encoded at once
HELD_OUT = 512
HELD_OUT_TIMES = (0, 250, 500, 750)
WIDTH, DEPTH, CHANNELS = 48, 3, 4
VIVIDEST = 1.2  # somewhat beyond the world's own, so that the rating does not end where alignment is to lead
STRENGTH = 0.6  # the largest standard deviation of a disturbance; latents have about 1
KINDS = ((4, 8, 8, 8), (4, 1, 8, 8), (4, 8, 1, 1), (4, 1, 1, 1))  # of disturbances, by what they share


@dataclass(frozen=True)
class Rated:
    """Latents `[N, 4, 8, 8, 8]` of clips and their ratings `[N]`."""

    latents: Tensor
    ratings: Tensor


@torch.no_grad()
def rated_clips(count: int, vae: AutoencoderKL, generator: torch.Generator) -> Rated:
    """Clips of the world, four in five of them disturbed, each by a strength of its own."""
    parts = []
    for _ in range(0, count, CHUNK):
        with torch.autocast(vae.device.type, torch.bfloat16):
            parts.append(_rated(CHUNK, vae, generator))
    return Rated(torch.cat([part.latents for part in parts]), torch.cat([part.ratings for part in parts]))


def cached_pool(vae: AutoencoderKL, path: Path) -> Rated:
    """The clips that are trained on, made at the first call."""
    if not path.exists():
        pool = rated_clips(POOL, vae, generator_for(SEED, -1))
        torch.save({"latents": pool.latents, "ratings": pool.ratings}, path)
    return Rated(**torch.load(path, weights_only=True))


def _rated(count: int, vae: AutoencoderKL, generator: torch.Generator) -> Rated:
    scenes = sample_scenes(count, generator)
    scenes = scenes.with_vividness(VIVIDEST * torch.rand(count, generator=generator))
    clean = render(scenes).clamp(0, 1)
    code = vae.encode(clean.flatten(0, 1) * 2 - 1).latent_dist.mean.float() * vae.config.scaling_factor
    latents = code.unflatten(0, clean.shape[:2]).transpose(1, 2)
    latents = latents + disturbance(count, generator)
    codes = latents.transpose(1, 2).flatten(0, 1) / vae.config.scaling_factor
    decoded = (vae.decode(codes).sample.float() / 2 + 0.5).clamp(0, 1).view_as(clean)
    damage = (decoded - clean).square().mean(dim=(1, 2, 3, 4)).sqrt()
    return Rated(latents, aesthetic_rating(scenes.vividness) - DAMAGE_COST * damage)


def disturbance(count: int, generator: torch.Generator) -> Tensor:
    """What is added to latents: `[N, 4, 8, 8, 8]`, nothing in the first fifth, then a fifth of each of `KINDS`."""
    nothing, *parts = torch.zeros(count, *KINDS[0]).tensor_split(len(KINDS) + 1)
    for part, kind in zip(parts, KINDS, strict=True):
        strength = STRENGTH * torch.rand(len(part), 1, 1, 1, 1, generator=generator)
        part += strength * torch.randn(len(part), *kind, generator=generator)
    return torch.cat([nothing, *parts])


def noised(latents: Tensor, times: Tensor, generator: torch.Generator) -> Tensor:
    """Latents `[N, ...]` at the noise levels that the base model calls by these times `[N]`."""
    signal = new_scheduler().alphas_cumprod[times].view(-1, 1, 1, 1, 1)
    return signal.sqrt() * latents + (1 - signal).sqrt() * torch.randn(latents.shape, generator=generator)


def build(out: Path, work: Path, vae_folder: Path) -> dict[str, float]:
    """Writes `out/latent_rating.safetensors`; returns its correlation with held-out ratings, by time."""
    torch.manual_seed(SEED)
    vae = AutoencoderKL.from_pretrained(vae_folder, torch_dtype=torch.float32).eval()
    vae.to(memory_format=torch.channels_last)
    pool = cached_pool(vae, work / "latent_rating_pool.pt")
    rater = LatentRater(CHANNELS, WIDTH, DEPTH)
    rater.leave.bias.data.fill_(pool.ratings.mean())

    def loss(generator: torch.Generator) -> Tensor:
        picks = torch.randint(len(pool.latents), (BATCH,), generator=generator)
        times = torch.randint(1000, (BATCH,), generator=generator)
        ratings = rater(noised(pool.latents[picks], times, generator), times)
        return F.mse_loss(ratings.float(), pool.ratings[picks])

    rater = fit(rater, loss, SCHEDULE, SEED, checkpoint=work / "latent_rating.pt")
    weights = {name: weight.detach().half().contiguous() for name, weight in rater.state_dict().items()}
    save_file(weights, out / "latent_rating.safetensors")
    return quality(rater, rated_clips(HELD_OUT, vae, generator_for(SEED, -2)))


@torch.no_grad()
def quality(rater: LatentRater, held_out: Rated) -> dict[str, float]:
    """The correlation of its ratings with the true ones, by the time of the noise level."""
    found = {}
    for time in HELD_OUT_TIMES:
        times = torch.full((len(held_out.latents),), time)
        ratings = rater(noised(held_out.latents, times, generator_for(SEED, -3 - time)), times)
        found[f"correlation_{time}"] = torch.corrcoef(torch.stack([ratings, held_out.ratings]))[0, 1].item()
    return found
