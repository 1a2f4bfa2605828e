"""What the tiny world's Wan and LTX share: one network for texts, and for texts with a first frame, by flow matching.

Clips are 9 frames of 32x32 pixels, 3 latent ones. The text encoder is the T5 of the tiny Open-Sora. A denoiser
learns first from first latent frames alone, then from whole clips; in some batches of these the first latent is given,
and told to be at time 0. Nothing tells how vivid a scene is: that is what alignment will change.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vader.errors import UserError
from vader.models.base import VideoModel
from vader.nouns import Prompt, VideoSize
from vader.pretrain.loop import fit
from vader.pretrain.naming import NamingHead, silhouettes
from vader.pretrain.video_vae import FRAMES, Codec, Stage, draw_clips
from vader.sampling.videos import sample_videos
from vader.tinyworld.judge import judge_prompts
from vader.tinyworld.pictures import test_pictures
from vader.tinyworld.scenes import ALL_ATTRIBUTES, CAPTIONS, caption
from vader.tinyworld.split import test_prompts

SIZE = VideoSize(frames=FRAMES, height=32, width=32, fps=8)
SHIFT = 2.0  # of the noise levels, in training and sampling
CAPTION_DROPOUT = 0.1
GIVEN = 0.25  # share of the batches whose first latent is given
SAMPLING_STEPS, GUIDANCE = 10, 4.0  # of the videos that are judged, as in the recipes
SHAPE_OF = torch.tensor([item.shape for item in ALL_ATTRIBUTES])
CAPTIONS_AND_NONE = [*(caption(item, template) for item in ALL_ATTRIBUTES for template in range(len(CAPTIONS))), ""]


@dataclass(frozen=True)
class Plan:
    """How the VAE is trained, and the denoiser, whose frames are latent ones, on how many clips."""

    vae: tuple[Stage, ...]
    denoiser: tuple[Stage, ...]
    pool: int
    judged: int


class Batch(NamedTuple):
    """Clips that a denoiser learns from.

    Attributes:
        clean: latents `[B, C, T, h, w]`.
        texts: `[B]`, numbers of their texts in `CAPTIONS_AND_NONE`.
        given: whether the first latent is given.
        shapes, silhouettes: what they show, see `NamingHead.loss`.
    """

    clean: Tensor
    texts: Tensor
    given: bool
    shapes: Tensor
    silhouettes: Tensor


@dataclass(frozen=True)
class Pool:
    """Latents `[N, C, T, h, w]` of random clips, their attributes' numbers `[N]`, and their objects' `silhouettes`."""

    latents: Tensor
    attributes: Tensor
    silhouettes: Tensor

    @classmethod
    @torch.no_grad()
    def encode(cls, codec: Codec, count: int, seed: int) -> Pool:
        generator = torch.Generator().manual_seed(seed)
        parts = [draw_clips(64, generator) for _ in range(0, count, 64)]
        latents = [codec.encode(codec.vae, pixels) for pixels, _ in parts]
        indices = [ALL_ATTRIBUTES.index(item) for _, scenes in parts for item in scenes.attributes()]
        return cls(torch.cat(latents), torch.tensor(indices), torch.cat([silhouettes(scenes) for _, scenes in parts]))

    @classmethod
    def cached(cls, codec: Codec, count: int, seed: int, path: Path) -> Pool:
        """As `encode`, or from a file of a training that was stopped."""
        if not path.exists():
            pool = cls.encode(codec, count, seed)
            torch.save((pool.latents, pool.attributes, pool.silhouettes), path)
        return cls(*torch.load(path, weights_only=True))

    def draw(self, stage: Stage, generator: torch.Generator) -> Batch:
        picks = torch.randint(len(self.latents), (stage.batch,), generator=generator)
        templates = torch.randint(len(CAPTIONS), (stage.batch,), generator=generator)
        dropped, chance = torch.rand(stage.batch, generator=generator), torch.rand((), generator=generator)
        texts = self.attributes[picks] * len(CAPTIONS) + templates
        texts = texts.where(dropped >= CAPTION_DROPOUT, torch.tensor(len(CAPTIONS_AND_NONE) - 1))
        clean, shown = self.latents[picks, :, : stage.frames], self.silhouettes[picks, : stage.frames]
        return Batch(clean, texts, stage.frames > 1 and chance.item() < GIVEN, SHAPE_OF[self.attributes[picks]], shown)


def shifted(level: Tensor, shift: float = SHIFT) -> Tensor:
    """Shares of noise, shifted as the scheduler shifts them."""
    return shift * level / (1 + (shift - 1) * level)


def flow_loss(
    velocity: Callable[[Tensor, Tensor], Tensor], clean: Tensor, given: bool, generator: torch.Generator
) -> Tensor:
    """Mean squared error of the velocity, noise minus data (flow matching, arXiv 2210.02747).

    Args:
        velocity: of noisy latents and times `[B, T]`, one for each latent frame.
        clean: latents `[B, C, T, h, w]`.
        given: whether the first latent is not noisy, and told so: then it does not count.
    """
    level = shifted(torch.rand(len(clean), generator=generator)).view(-1, 1, 1, 1, 1)
    noise = torch.randn(clean.shape, generator=generator)
    noisy, times, first = torch.lerp(clean, noise, level), 1000 * level.flatten(1).repeat(1, clean.shape[2]), int(given)
    noisy[:, :, :first], times[:, :first] = clean[:, :, :first], 0
    return (velocity(noisy, times) - (noise - clean))[:, :, first:].square().mean()


def train(
    network: nn.Module,
    velocity: Callable[[Tensor, Tensor, Batch], Tensor],
    named: NamingHead,
    pool: Pool,
    stages: tuple[Stage, ...],
    seed: int,
    unfinished: Path,
) -> None:
    """Trains a fresh denoiser in place, each stage with a seed of its own.

    Args:
        velocity: of noisy latents and times `[B, T]`, for what a batch says of them.
        named: looks at one of the denoiser's layers, and learns beside it.
        unfinished: of stages that are not done; the number of frames is added to its name.
    """
    both = nn.ModuleDict({"network": network, "named": named})
    matrices = [layer.weight for layer in _block_layers(network)]
    for count, stage in enumerate(stages):

        def loss(generator: torch.Generator, stage: Stage = stage) -> Tensor:
            batch = pool.draw(stage, generator)
            error = flow_loss(lambda z, times: velocity(z, times, batch), batch.clean, batch.given, generator)
            return error + named.loss(batch.silhouettes, batch.shapes)

        path = unfinished.with_name(f"{unfinished.name}-{stage.frames}.pt")
        average = fit(both, loss, stage.schedule, seed + count, path, matrices=matrices)
        both.load_state_dict(average.state_dict())
    named.leave()


def _block_layers(network: nn.Module) -> list[nn.Linear]:
    named = network.named_modules()
    return [layer for name, layer in named if "blocks." in name and isinstance(layer, nn.Linear)]


def begin(out: Path, seed: int) -> None:
    """Before all else of a build: its seed and its folder.

    Raises:
        UserError: torch has no Muon yet, which the denoiser is trained by after the VAE's long training.
    """
    if not hasattr(torch.optim, "Muon"):
        raise UserError(
            f"the tiny Wan and LTX are trained by Muon, which torch has from 2.9 on: this is {torch.__version__}"
        )
    torch.manual_seed(seed)
    out.mkdir(parents=True, exist_ok=True)


def write(out: Path, vae: Any, denoiser: Any, scheduler: Any, index: dict[str, Any]) -> None:
    """The parts of a pipeline folder of diffusers that are not text: the VAE in half precision, and the denoiser.

    The matrices of the denoiser's blocks are in float8, as large ones come for small cards, and all else of it in half
    precision. That is half the bytes, and the judge tells no difference; diffusers casts them to what is asked for.
    """
    vae.half().save_pretrained(out / "vae")
    denoiser.half()
    for layer in _block_layers(denoiser):
        layer.weight.data = layer.weight.data.to(torch.float8_e4m3fn)
    denoiser.save_pretrained(out / "transformer")
    scheduler.save_pretrained(out / "scheduler")
    (out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def judged(texts: VideoModel, pictures: VideoModel, count: int, seed: int) -> dict[str, float]:
    """What the judge finds right in videos of `count` held-out prompts, as shares, and their mean vividness; with
    `_pictures`, of held-out prompts that start from pictures."""
    found = _judged(texts, [Prompt(text) for text in test_prompts()[:count]], seed)
    shown = _judged(pictures, test_pictures()[:count], seed)
    return found | {f"{name}_pictures": value for name, value in shown.items()}


def _judged(model: VideoModel, prompts: list[Prompt], seed: int) -> dict[str, float]:
    videos = sample_videos(model, prompts, SIZE, SAMPLING_STEPS, GUIDANCE, seed=seed, batch=16)
    return {name: found.mean().item() for name, found in judge_prompts(videos, prompts).items()}
