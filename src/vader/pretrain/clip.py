"""Pretrains the tiny world's CLIP (transformers' `CLIPModel`) on single frames, and the aesthetic head on its features.

As with LAION's predictor the head is an affine stack on the frozen, normalised image feature; its ratings
come from the renderer: the vividness of a scene on a scale from 1 to 10, less what a frame is damaged. Frames are
shown clean, noisy, tinted and decoded from disturbed latents, because that is what a reward will see; without
them, and without the price on damage, a tint scores like vividness. Half of the captions say how vivid a frame is,
and half how clean, as captions of the internet do, so that the feature holds both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from vader.pretrain.loop import Schedule, fit, generator_for
from vader.pretrain.text import clip_text_config, tokenize, write_tokenizer
from vader.rewards.preprocess import CLIP_MEAN, CLIP_STD, normalize
from vader.tinyworld.judge import aesthetic_rating
from vader.tinyworld.scenes import BACKGROUNDS, COLORS, MOTIONS, SHAPES, Scenes, render, sample_scenes

SEED = 14
CLIP_SCHEDULE = Schedule(steps=1500, lr=1e-3)
HEAD_SCHEDULE = Schedule(steps=500, lr=3e-3, ema=0.99, weight_decay=0.0)
BATCH = 128
PROJECTION = 64
STYLES = ("dull", "faded", "plain", "bright", "vivid")
QUALITIES = ("clean", "rough", "spoiled")  # by damage, the root mean square of the error in pixels, beyond each of:
QUALITY_LIMITS = (0.02, 0.06)
DAMAGE_COST = 20.0  # points of the rating
HEAD_WIDTHS = (PROJECTION, 128, 64, 32, 16, 1)
HEAD_LAYERS = (0, 2, 4, 6, 7)  # positions of the linear layers in the released head: dropouts lie between


def new_clip(tokenizer_folder: Path) -> CLIPModel:
    text = clip_text_config(write_tokenizer(tokenizer_folder, QUALITIES), width=64, layers=2, projection=PROJECTION)
    vision = {
        "image_size": 32,
        "patch_size": 4,
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "projection_dim": PROJECTION,
        "hidden_act": "gelu",
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=PROJECTION))


@dataclass(frozen=True)
class Described:
    """Frames as rewards see them `[N, 3, H, W]`, of which scenes, and what beside the look their captions tell."""

    frames: Tensor
    scenes: Scenes
    damage: Tensor  # [N]
    words: tuple[tuple[Tensor, Tensor], ...]  # style and quality: index of the word, and whether it is told

    def captions(self, generator: torch.Generator) -> list[str]:
        """Half of them name the motion, which no frame shows."""
        moving = (torch.rand(len(self.scenes), generator=generator) < 0.5).tolist()
        told = [
            [f"{names[i]} " if tell else "" for i, tell in zip(index.tolist(), telling.tolist(), strict=True)]
            for names, (index, telling) in zip((STYLES, QUALITIES), self.words, strict=True)
        ]
        texts = []
        for style, quality, move, item in zip(*told, moving, self.scenes.attributes(), strict=True):
            motion = f"moving {list(MOTIONS)[item.motion]} " if move else ""
            noun = f"{list(COLORS)[item.color]} {SHAPES[item.shape]}"
            texts.append(f"a {style}{quality}{noun} {motion}over {list(BACKGROUNDS)[item.background]}")
        return texts

    def matches(self) -> Tensor:
        """Which caption (row) is true of which frame (column): `[N, N]` booleans."""
        look = torch.stack([self.scenes.color, self.scenes.shape, self.scenes.background], dim=1)
        true = (look[:, None] == look[None]).all(dim=-1)
        for index, told in self.words:
            true = true & ((index[:, None] == index[None]) | ~told[:, None])
        return true


def describe(scenes: Scenes, vae: AutoencoderKL, generator: torch.Generator) -> Described:
    """One frame of each scene, disturbed; each caption tells style and quality or not, by a coin each."""
    clean = render(scenes, frames=1)[:, 0].clamp(0, 1)
    frames = as_seen_by_rewards(clean, vae, generator)
    damage = (frames - clean).square().mean(dim=(1, 2, 3)).sqrt()
    style = (scenes.vividness * len(STYLES)).long().clamp(max=len(STYLES) - 1)
    quality = torch.bucketize(damage, torch.tensor(QUALITY_LIMITS))
    told = torch.rand(2, len(scenes), generator=generator) < 0.5
    return Described(frames, scenes, damage, ((style, told[0]), (quality, told[1])))


@torch.no_grad()
def as_seen_by_rewards(pixels: Tensor, vae: AutoencoderKL, generator: torch.Generator) -> Tensor:
    """A quarter of the pixels in [0, 1] clean, one noisy, one tinted, one decoded from disturbed latents.

    Pixels are frames `[N, 3, H, W]` or clips `[N, F, 3, H, W]`, each disturbed by a strength of its own.
    """
    clean, noisy, tinted, coded = pixels.tensor_split(4)
    noisy = noisy + 0.1 * _disturbance(noisy.shape, generator)
    tinted = tinted + 0.2 * _disturbance((len(tinted), *[1] * (tinted.dim() - 4), 3, 1, 1), generator)
    latents = vae.encode(coded.reshape(-1, *coded.shape[-3:]) * 2 - 1).latent_dist.mean.unflatten(0, coded.shape[:-3])
    latents = latents + 0.4 / vae.config.scaling_factor * _disturbance(latents.shape, generator)
    decoded = vae.decode(latents.flatten(0, -4)).sample.reshape(coded.shape) / 2 + 0.5
    return torch.cat([clean, noisy, tinted, decoded.float()]).clamp(0, 1)


def _disturbance(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Normal noise, for each item of the batch of its own standard deviation in [0, 1]."""
    strength = torch.rand(shape[0], *[1] * (len(shape) - 1), generator=generator)
    return strength * torch.randn(tuple(shape), generator=generator)


def multi_positive_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """InfoNCE in both directions with every true pair as a positive (SupCon, arXiv 2004.11362, `L_out`)."""

    def one_way(scores: Tensor, positive: Tensor) -> Tensor:
        logp = scores.log_softmax(dim=1)
        return -((logp * positive).sum(dim=1) / positive.sum(dim=1)).mean()

    positive = truth.to(logits.dtype)
    return (one_way(logits, positive) + one_way(logits.T, positive.T)) / 2


def new_head() -> nn.Sequential:
    layers = [nn.Linear(a, b) for a, b in pairwise(HEAD_WIDTHS)]
    return nn.Sequential(*layers)


def build(out: Path, work: Path, vae_folder: Path) -> dict[str, float]:
    """Writes `out/clip` and `out/aesthetic_head.safetensors`; returns held-out retrieval and rating quality."""
    torch.manual_seed(SEED)
    vae = AutoencoderKL.from_pretrained(vae_folder, torch_dtype=torch.float32).eval()
    clip = new_clip(out / "clip")
    tokenizer = CLIPTokenizer.from_pretrained(out / "clip")

    def batch(generator: torch.Generator, count: int) -> tuple[Tensor, Tensor]:
        shown = describe(sample_scenes(count, generator), vae, generator)
        tokens = tokenize(tokenizer, shown.captions(generator))
        output = clip(input_ids=tokens, pixel_values=normalize(shown.frames, CLIP_MEAN, CLIP_STD))
        return output.logits_per_text.float(), shown.matches()

    clip = fit(clip, lambda g: multi_positive_loss(*batch(g, BATCH)), CLIP_SCHEDULE, SEED, checkpoint=work / "clip.pt")
    clip.half().save_pretrained(out / "clip")
    clip.float()

    head = new_head()

    def rated(generator: torch.Generator, count: int) -> tuple[Tensor, Tensor]:
        scenes = sample_scenes(count, generator)
        scenes = scenes.with_vividness(1.2 * torch.rand(count, generator=generator))
        shown = describe(scenes, vae, generator)
        with torch.no_grad():
            hidden = clip.vision_model(pixel_values=normalize(shown.frames, CLIP_MEAN, CLIP_STD)).pooler_output
            feature = F.normalize(clip.visual_projection(hidden).float(), dim=-1)
        return head(feature).squeeze(-1).float(), aesthetic_rating(scenes.vividness) - DAMAGE_COST * shown.damage

    head = fit(head, lambda g: F.mse_loss(*rated(g, BATCH)), HEAD_SCHEDULE, SEED + 1, checkpoint=work / "head.pt")
    weights = {
        f"layers.{position}.{kind}": getattr(layer, kind).detach().half().contiguous()
        for position, layer in zip(HEAD_LAYERS, head, strict=True)
        for kind in ("weight", "bias")
    }
    save_file(weights, out / "aesthetic_head.safetensors")
    return quality(batch, rated)


@torch.no_grad()
def quality(batch, rated) -> dict[str, float]:
    logits, truth = batch(generator_for(SEED, -1), 300)
    found = truth.gather(1, logits.argmax(dim=1, keepdim=True)).float().mean().item()
    score, rating = rated(generator_for(SEED, -2), 600)
    correlation = torch.corrcoef(torch.stack([score, rating]))[0, 1].item()
    return {"retrieval": found, "rating_correlation": correlation, "rating_error": (score - rating).abs().mean().item()}
