"""Pretrains the tiny world's action classifier: transformers' `VideoMAEForVideoClassification` of 8 frames at 32x32.

Its classes are the renderer's motions, by their names, and "still". Clips are shown clean and disturbed, as a reward
will see them, each as a whole.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor
from transformers import VideoMAEConfig, VideoMAEForVideoClassification

from vader.pretrain.clip import as_seen_by_rewards
from vader.pretrain.loop import Schedule, fit, generator_for
from vader.rewards.preprocess import IMAGENET_MEAN, IMAGENET_STD, normalize
from vader.tinyworld.scenes import MOTIONS, render, sample_scenes

SEED = 16
SCHEDULE = Schedule(steps=1200, lr=1e-3, cooldown=400)
BATCH = 48
SIZE = 32
HELD_OUT = 512
STILL = "still"
STILL_SHARE = 0.15
CLASSES = (*MOTIONS, STILL)


def new_classifier() -> VideoMAEForVideoClassification:
    config = VideoMAEConfig(
        image_size=SIZE,
        patch_size=8,
        num_frames=8,
        tubelet_size=2,
        hidden_size=96,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        id2label=dict(enumerate(CLASSES)),
        label2id={name: index for index, name in enumerate(CLASSES)},
    )
    return VideoMAEForVideoClassification(config)


def labelled_clips(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Clips `[N, 8, 3, 32, 32]` in [0, 1] and their classes `[N]`; in some the object stands still."""
    scenes = sample_scenes(count, generator)
    still = torch.rand(count, generator=generator) < STILL_SHARE
    clips = render(replace(scenes, travel=scenes.travel * ~still), size=SIZE)
    return clips, torch.where(still, CLASSES.index(STILL), scenes.motion)


def seen_clips(count: int, vae: AutoencoderKL, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Labelled clips as a reward sees them, normalised for the classifier."""
    clips, classes = labelled_clips(count, generator)
    seen = as_seen_by_rewards(clips, vae, generator)
    return normalize(seen.flatten(0, 1), IMAGENET_MEAN, IMAGENET_STD).view_as(seen), classes


@torch.no_grad()
def accuracy(model: VideoMAEForVideoClassification, clips: Tensor, classes: Tensor) -> float:
    """How often the likeliest class is the true one."""
    return (model(pixel_values=clips).logits.argmax(dim=1) == classes).float().mean().item()


def build(out: Path, work: Path, vae_folder: Path) -> dict[str, float]:
    """Trains the classifier, writes it to `out` in transformers' format, and returns its held-out quality."""
    torch.manual_seed(SEED)
    vae = AutoencoderKL.from_pretrained(vae_folder, torch_dtype=torch.float32).eval()
    model = new_classifier()

    def loss(generator: torch.Generator) -> Tensor:
        clips, classes = seen_clips(BATCH, vae, generator)
        return F.cross_entropy(model(pixel_values=clips).logits.float(), classes)

    trained = fit(model, loss, SCHEDULE, SEED, checkpoint=work / "actions.pt")
    found = {"motion_accuracy": accuracy(trained, *seen_clips(HELD_OUT, vae, generator_for(SEED, -1)))}
    trained.half().save_pretrained(out)
    return found
