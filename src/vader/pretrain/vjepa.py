"""Pretrains the tiny world's V-JEPA (networks and objective of `vader.rewards.vjepa`) on rendered clips.

As in V-JEPA (arXiv 2404.08471) the target encoder is a moving average of the context encoder, and the predictor is
told nothing but the place of what it predicts. Clips are shown clean and lightly noisy: a network that must predict
from heavily disturbed frames learns to trust no frame's details, and so not the order of frames either. Every batch
shares one pair of masks.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from vader.pretrain.loop import Schedule, fit, generator_for
from vader.rewards.base import Reward
from vader.rewards.preprocess import IMAGENET_MEAN, IMAGENET_STD, normalize
from vader.rewards.vjepa import VJEPA
from vader.rewards.vjepa.checkpoint import save_release
from vader.rewards.vjepa.masks import Grid, draw_masks
from vader.rewards.vjepa.networks import VitSize, VJepa1
from vader.rewards.vjepa.reward import normalized_targets, prediction_loss
from vader.tinyworld.scenes import captions, render, sample_scenes

SEED = 17
SCHEDULE = Schedule(steps=1200, lr=2e-3, autocast=False)
BATCH = 16
ENCODER = VitSize(depth=3, width=64, heads=4)
PREDICTOR = VitSize(depth=3, width=64, heads=4)
TUBELET, PATCH = 2, 4  # patches of 8 pixels are as large as an object: what moves is lost in them
GRID = Grid(time=4, height=8, width=8)  # of 8 frames of 32x32 pixels
MOMENTUM = 0.9999  # of the target encoder: the farther it goes in so small a world, the less it tells of what moves
NOISE = 0.1  # the largest standard deviation
PAIRS = 256


def new_networks() -> VJepa1:
    """Context and target encoder start out equal; the target has no gradient."""
    networks = VJepa1(ENCODER, PREDICTOR, GRID, TUBELET, PATCH)
    networks.target_encoder.load_state_dict(networks.encoder.state_dict())
    networks.target_encoder.requires_grad_(False)
    return networks


def lightly_noisy(clips: Tensor, generator: torch.Generator) -> Tensor:
    """Clips `[N, F, 3, H, W]` in [0, 1]; from the second half on with noise, each clip's of its own strength."""
    strength = NOISE * torch.rand(len(clips), 1, 1, 1, 1, generator=generator)
    strength[: len(clips) // 2] = 0
    return (clips + strength * torch.randn(clips.shape, generator=generator)).clamp(0, 1)


@torch.no_grad()
def follow(networks: VJepa1, momentum: float = MOMENTUM) -> None:
    """Moves the target encoder towards the context encoder: its exponential moving average."""
    pairs = zip(networks.target_encoder.parameters(), networks.encoder.parameters(), strict=True)
    for target, context in pairs:
        target.lerp_(context, 1 - momentum)


def pretraining_loss(networks: VJepa1, frames: Tensor, generator: torch.Generator) -> Tensor:
    """V-JEPA's loss on frames `[B, F, 3, H, W]` in [0, 1], all under one pair of masks."""
    clips = normalize(frames, IMAGENET_MEAN, IMAGENET_STD).transpose(1, 2)
    with torch.no_grad():
        targets = normalized_targets(networks, clips)
    masks = draw_masks(networks.grid(clips), generator)
    return prediction_loss(networks, clips, targets, [masks]).mean()


def build(out: Path, work: Path) -> dict[str, float]:
    """Writes `out/vjepa.safetensors`, and returns how well the reward tells real from shuffled held-out clips."""
    torch.manual_seed(SEED)
    networks = new_networks()

    def loss(generator: torch.Generator) -> Tensor:
        follow(networks)  # after the optimiser's last step
        frames = lightly_noisy(render(sample_scenes(BATCH, generator)), generator)
        return pretraining_loss(networks, frames, generator)

    # What `fit` trains in place is saved, not the average it returns: V-JEPA's context encoder is no average.
    fit(networks, loss, SCHEDULE, SEED, checkpoint=work / "vjepa.pt")
    path = out / "vjepa.safetensors"
    save_release(networks, path)
    return quality(VJEPA(str(path), masks=4).freeze())


@torch.no_grad()
def quality(reward: Reward) -> dict[str, float]:
    """In how many pairs, half of them lightly noisy, a clip scores higher than shuffled in time; mean losses."""
    generator = generator_for(SEED, -1)
    scenes = sample_scenes(PAIRS, generator)
    real = lightly_noisy(render(scenes), generator)
    ordered, mixed = (reward(frames, captions(scenes)) for frames in (real, shuffled(real, generator)))
    told = (ordered > mixed).float().mean().item()
    return {"shuffled_told": told, "loss": -ordered.mean().item(), "loss_shuffled": -mixed.mean().item()}


def shuffled(frames: Tensor, generator: torch.Generator) -> Tensor:
    """Videos `[B, F, 3, H, W]`, each with its frames in a random order that is neither its own nor the reverse."""
    ascending = torch.arange(frames.shape[1])
    orders: list[Tensor] = []
    while len(orders) < len(frames):
        order = torch.randperm(frames.shape[1], generator=generator)
        if not (torch.equal(order, ascending) or torch.equal(order, ascending.flip(0))):
            orders.append(order)
    rows = torch.arange(len(frames))[:, None]
    return frames[rows, torch.stack(orders)]
