"""Fine-tunes the tiny world's CLIP on choices between two frames, as HPSv2 and PickScore were made from OpenCLIP.

The choices come from the renderer: of two frames shown for a prompt, the one is preferred that has more of the prompt's
attributes, is more vivid and less damaged. The two rewards differ, as their originals do, by whose taste they follow.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from vader.pretrain.clip import as_seen_by_rewards
from vader.pretrain.loop import Schedule, fit, generator_for
from vader.pretrain.text import tokenize
from vader.rewards.preprocess import CLIP_MEAN, CLIP_STD, normalize
from vader.tinyworld.scenes import BACKGROUNDS, CAPTIONS, COLORS, SHAPES, Scenes, captions, render, sample_scenes

BATCH = 64
SWAP = 0.25  # chance of each attribute to be another than the prompt's
DAMAGE_COST = 5.0  # in attributes, for a root mean square error of 1
MARGIN = 0.2  # closer pairs than this have no clear winner, and are not asked about


@dataclass(frozen=True)
class Taste:
    """Whose choices: an attribute of the prompt counts 1, the step from dull to full colour `vividness`."""

    seed: int
    vividness: float
    schedule: Schedule


TASTES = {
    "hps": Taste(21, vividness=1.0, schedule=Schedule(steps=400, lr=4e-4, warmup=50, cooldown=200)),
    "pickscore": Taste(22, vividness=2.0, schedule=Schedule(steps=800, lr=4e-4, warmup=50, cooldown=200)),
}


@dataclass(frozen=True)
class Pairs:
    """N prompts, two frames `[N, 3, H, W]` for each, and by how much the first is preferred `[N]`."""

    prompts: list[str]
    first: Tensor
    second: Tensor
    preference: Tensor


def draw_pairs(taste: Taste, count: int, vae: AutoencoderKL, generator: torch.Generator) -> Pairs:
    """About `count` pairs that have a clear winner."""
    asked = sample_scenes(2 * count, generator)
    # Kinds of disturbance lie in a fixed order along the batch: mixed, so that a pair can have any two of them.
    first, worth = _shown(asked, taste, vae, generator)
    mixed = torch.randperm(len(asked), generator=generator)
    second, other_worth = (part[mixed.argsort()] for part in _shown(asked[mixed], taste, vae, generator))
    preference = worth - other_worth
    clear = (preference.abs() > MARGIN).nonzero()[:, 0]
    clear = clear[torch.randperm(len(clear), generator=generator)[:count]]
    texts = captions(asked, torch.randint(len(CAPTIONS), (len(asked),), generator=generator))
    return Pairs([texts[i] for i in clear.tolist()], first[clear], second[clear], preference[clear])


def _shown(asked: Scenes, taste: Taste, vae: AutoencoderKL, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """One frame for each prompt, some attributes not as asked, and what the frame is worth to this taste."""
    scenes = _swapped(asked, generator)
    clean = render(scenes, frames=1)[:, 0].clamp(0, 1)
    frames = as_seen_by_rewards(clean, vae, generator)
    damage = (frames - clean).square().mean(dim=(1, 2, 3)).sqrt()
    right = [(getattr(scenes, name) == getattr(asked, name)).float() for name in ("color", "shape", "background")]
    return frames, torch.stack(right).sum(dim=0) + taste.vividness * scenes.vividness - DAMAGE_COST * damage


def _swapped(asked: Scenes, generator: torch.Generator) -> Scenes:
    """Other scenes, with each of the asked attributes kept unless a coin says otherwise."""
    fresh = sample_scenes(len(asked), generator)
    kept = {}
    for name, kind in (("color", COLORS), ("shape", SHAPES), ("background", BACKGROUNDS)):
        wanted = getattr(asked, name)
        other = (wanted + torch.randint(1, len(kind), wanted.shape, generator=generator)) % len(kind)
        swap = torch.rand(wanted.shape, generator=generator) < SWAP
        kept[name] = torch.where(swap, other, wanted)
    return replace(fresh, **kept)


def preference_logits(clip: CLIPModel, tokenizer: CLIPTokenizer, pairs: Pairs) -> Tensor:
    """Log-odds `[N]` that the first frame is chosen: the difference of the scaled cosines (HPSv2, arXiv 2306.09341)."""
    tokens = tokenize(tokenizer, pairs.prompts)
    pixels = normalize(torch.cat([pairs.first, pairs.second]), CLIP_MEAN, CLIP_STD)
    text = F.normalize(clip.text_projection(clip.text_model(input_ids=tokens).pooler_output).float(), dim=-1)
    image = F.normalize(clip.visual_projection(clip.vision_model(pixel_values=pixels).pooler_output).float(), dim=-1)
    first, second = image.chunk(2)
    return clip.logit_scale.exp().float() * (text * (first - second)).sum(dim=-1)


def build(name: str, out: Path, work: Path) -> dict[str, float]:
    """Fine-tunes `out/clip` to `out/<name>`, whose tokenizer it shares; returns its agreement with held-out choices."""
    taste = TASTES[name]
    torch.manual_seed(taste.seed)
    vae = AutoencoderKL.from_pretrained(out / "modelscope" / "vae", torch_dtype=torch.float32).eval()
    tokenizer = CLIPTokenizer.from_pretrained(out / "clip")
    clip = CLIPModel.from_pretrained(out / "clip").float()

    def loss(generator: torch.Generator) -> Tensor:
        pairs = draw_pairs(taste, BATCH, vae, generator)
        return -F.logsigmoid(pairs.preference.sign() * preference_logits(clip, tokenizer, pairs)).mean()

    clip = fit(clip, loss, taste.schedule, taste.seed, checkpoint=work / f"{name}.pt")
    accuracy = agreement(clip, tokenizer, draw_pairs(taste, 500, vae, generator_for(taste.seed, -1)))
    clip.half().save_pretrained(out / name)
    return {f"{name}_accuracy": accuracy}


@torch.no_grad()
def agreement(clip: CLIPModel, tokenizer: CLIPTokenizer, pairs: Pairs) -> float:
    return (preference_logits(clip, tokenizer, pairs).sign() == pairs.preference.sign()).float().mean().item()
