"""Pretrains the tiny world's CLIP (transformers' `CLIPModel`) on single frames, and the aesthetic head on its features.

As with LAION's predictor the head is an affine stack on the frozen, normalised image feature; its ratings
come from the renderer: the vividness of a scene on a scale from 1 to 10. Half of the captions say how vivid
a frame is, as captions of the internet do, so that the feature holds it. Frames are shown clean, noisy and
decoded from disturbed latents, because that is what a reward will see.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from vader.rewards.preprocess import CLIP_MEAN, CLIP_STD, normalize
from vader.tinyworld.judge import aesthetic_rating
from vader.tinyworld.pretrain.loop import Schedule, fit, generator_for
from vader.tinyworld.pretrain.text import clip_text_config, tokenize, write_tokenizer
from vader.tinyworld.scenes import BACKGROUNDS, COLORS, MOTIONS, SHAPES, Scenes, render, sample_scenes

SEED = 14
CLIP_SCHEDULE = Schedule(steps=1200, lr=1e-3)
HEAD_SCHEDULE = Schedule(steps=500, lr=3e-3, ema=0.99, weight_decay=0.0)
BATCH = 128
PROJECTION = 64
STYLES = ("dull", "faded", "plain", "bright", "vivid")
HEAD_WIDTHS = (PROJECTION, 128, 64, 32, 16, 1)
HEAD_LAYERS = (0, 2, 4, 6, 7)  # positions of the linear layers in the released head: dropouts lie between


def new_clip(tokenizer_folder: Path) -> CLIPModel:
    text = clip_text_config(write_tokenizer(tokenizer_folder), width=64, layers=2, projection=PROJECTION)
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


def frame_captions(scenes: Scenes, styled: Tensor, generator: torch.Generator) -> list[str]:
    """Captions of frames; where `styled`, with a word for how vivid; half name the motion, which no frame shows."""
    style = (scenes.vividness * len(STYLES)).long().clamp(max=len(STYLES) - 1).tolist()
    moving = (torch.rand(len(scenes), generator=generator) < 0.5).tolist()
    texts = []
    for i, item in enumerate(scenes.attributes()):
        word = f"{STYLES[style[i]]} " if styled[i] else ""
        motion = f"moving {list(MOTIONS)[item.motion]} " if moving[i] else ""
        noun = f"{list(COLORS)[item.color]} {SHAPES[item.shape]}"
        texts.append(f"a {word}{noun} {motion}over {list(BACKGROUNDS)[item.background]}")
    return texts


def matches(scenes: Scenes, styled: Tensor) -> Tensor:
    """Which caption (row) is true of which frame (column): `[N, N]` booleans."""
    style = (scenes.vividness * len(STYLES)).long().clamp(max=len(STYLES) - 1)
    look = torch.stack([scenes.color, scenes.shape, scenes.background], dim=1)
    same_look = (look[:, None] == look[None]).all(dim=-1)
    return same_look & ((style[:, None] == style[None]) | ~styled[:, None])


@torch.no_grad()
def as_seen_by_rewards(frames: Tensor, vae: AutoencoderKL, generator: torch.Generator) -> Tensor:
    """A third of `[N, 3, H, W]` frames in [0, 1] clean, a third noisy, a third decoded from disturbed latents."""
    clean, noisy, coded = frames.tensor_split(3)
    amount = 0.1 * torch.rand(len(noisy), 1, 1, 1, generator=generator)
    noisy = noisy + amount * torch.randn(noisy.shape, generator=generator)
    latents = vae.encode(coded * 2 - 1).latent_dist.mean
    strength = 0.4 / vae.config.scaling_factor * torch.rand(len(latents), 1, 1, 1, generator=generator)
    decoded = vae.decode(latents + strength * torch.randn(latents.shape, generator=generator)).sample / 2 + 0.5
    return torch.cat([clean, noisy, decoded.float()]).clamp(0, 1)


def multi_positive_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """InfoNCE in both directions with every true pair as a positive (SupCon, arXiv 2004.11362, `L_out`)."""

    def one_way(scores: Tensor, positive: Tensor) -> Tensor:
        logp = scores.log_softmax(dim=1)
        return -((logp * positive).sum(dim=1) / positive.sum(dim=1)).mean()

    positive = truth.to(logits.dtype)
    return (one_way(logits, positive) + one_way(logits.T, positive.T)) / 2


def new_head() -> nn.Module:
    layers = [nn.Linear(a, b) for a, b in pairwise(HEAD_WIDTHS)]
    return nn.Sequential(*layers)


def build(out: Path, work: Path, vae_folder: Path) -> dict[str, float]:
    """Writes `out/clip` and `out/aesthetic_head.safetensors`; returns held-out retrieval and rating quality."""
    torch.manual_seed(SEED)
    vae = AutoencoderKL.from_pretrained(vae_folder, torch_dtype=torch.float32).eval()
    clip = new_clip(out / "clip")
    tokenizer = CLIPTokenizer.from_pretrained(out / "clip")

    def batch(generator: torch.Generator, count: int) -> tuple[Tensor, Tensor]:
        scenes = sample_scenes(count, generator)
        styled = torch.rand(count, generator=generator) < 0.5
        frames = as_seen_by_rewards(render(scenes, frames=1)[:, 0], vae, generator)
        tokens = tokenize(tokenizer, frame_captions(scenes, styled, generator))
        output = clip(input_ids=tokens, pixel_values=normalize(frames, CLIP_MEAN, CLIP_STD))
        return output.logits_per_text.float(), matches(scenes, styled)

    clip = fit(clip, lambda g: multi_positive_loss(*batch(g, BATCH)), CLIP_SCHEDULE, SEED, checkpoint=work / "clip.pt")
    clip.half().save_pretrained(out / "clip")
    clip.float()

    head = new_head()

    def rated(generator: torch.Generator, count: int) -> tuple[Tensor, Tensor]:
        scenes = sample_scenes(count, generator)
        scenes = scenes.with_vividness(1.2 * torch.rand(count, generator=generator))
        frames = as_seen_by_rewards(render(scenes, frames=1)[:, 0].clamp(0, 1), vae, generator)
        with torch.no_grad():
            hidden = clip.vision_model(pixel_values=normalize(frames, CLIP_MEAN, CLIP_STD)).pooler_output
            feature = F.normalize(clip.visual_projection(hidden).float(), dim=-1)
        return head(feature).squeeze(-1).float(), aesthetic_rating(scenes.vividness)

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
