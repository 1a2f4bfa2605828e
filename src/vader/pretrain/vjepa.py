"""Pretrains the tiny world's V-JEPA (networks and objective of `vader.rewards.vjepa`) on rendered clips.

As in V-JEPA (arXiv 2404.08471) the target encoder is a moving average of the context encoder, and the predictor is
told nothing but the place of what it predicts. Clips are shown clean and lightly noisy: a network that must predict
from heavily disturbed frames learns to trust no frame's details, and so not the order of frames either. Every batch
shares its masks. Most batches hide all that comes after the clip's beginning: V-JEPA's own masks, whose blocks span the
whole time, ask little of the object that moves.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from vader.pretrain.loop import Schedule, fit, generator_for
from vader.pretrain.spoiled import spoiled
from vader.rewards.base import Reward
from vader.rewards.preprocess import IMAGENET_MEAN, IMAGENET_STD, normalize
from vader.rewards.vjepa import VJEPA
from vader.rewards.vjepa.checkpoint import save_release
from vader.rewards.vjepa.masks import Grid, Masks, draw_masks, future_masks
from vader.rewards.vjepa.networks import Attention, VitSize, VJepa1
from vader.rewards.vjepa.reward import normalized_targets, prediction_loss
from vader.tinyworld.scenes import captions, render, sample_scenes

SEED = 17
SCHEDULE = Schedule(steps=4400, lr=2e-3, cooldown=2400, autocast=False)
BATCH = 16  # short clips; of long ones a quarter of that
ENCODER = VitSize(depth=3, width=64, heads=4)
PREDICTOR = VitSize(depth=3, width=64, heads=4)
TUBELET, PATCH = 2, 8
SHORT, LONG = 8, 22  # frames; a long clip is three short ones, each of which goes on from the last frame before it
LONG_SHARE = 0.25  # of the batches
FUTURE_SHARE = 0.8  # of the batches
GRID = Grid(time=LONG // TUBELET, height=4, width=4)  # of frames of 32x32 pixels
CONTRAST = 2.0  # of the first patches, beside their places: what is to be predicted is what the tokens show
MOMENTUM = 0.9999  # of the target encoder: the farther it goes in so small a world, the less it tells of what moves
NOISE = 0.1  # the largest standard deviation
PAIRS = 256


def new_networks() -> VJepa1:
    """Context and target encoder start out equal; the target has no gradient."""
    networks = VJepa1(ENCODER, PREDICTOR, GRID, TUBELET, PATCH)
    networks.encoder.patch_embed.proj.weight.data *= CONTRAST
    for module in (*networks.encoder.modules(), *networks.predictor.modules()):
        if isinstance(module, Attention):
            look_near(module)
    networks.target_encoder.load_state_dict(networks.encoder.state_dict())
    networks.target_encoder.requires_grad_(False)
    return networks


def look_near(attention: Attention) -> None:
    """Equal queries and keys, so that tokens first attend to those that are like them, in place above all.

    (Trockman and Kolter, 2023, arXiv 2305.09828: so that small transformers need not find it out on their own.)
    """
    width = attention.proj.in_features
    weight, bias = attention.qkv.weight.data, attention.qkv.bias.data
    weight[:width] = torch.randn(width, width) / width**0.5
    weight[width : 2 * width] = weight[:width]
    bias[: 2 * width] = 0


def draw_clips(generator: torch.Generator) -> Tensor:
    """A batch of clips `[N, F, 3, S, S]` in [0, 1]: many short or a few long ones, of which half move slowly."""
    if torch.rand((), generator=generator) >= LONG_SHARE:
        return render(sample_scenes(BATCH, generator), SHORT)
    scenes = sample_scenes(max(2, BATCH // 4), generator)
    half = len(scenes) // 2
    clips = torch.cat([render(scenes[:half], LONG), there_and_back(render(scenes[half:], SHORT), LONG)])
    return clips[torch.randperm(len(clips), generator=generator)]


def there_and_back(clips: Tensor, frames: int) -> Tensor:
    """Clips `[N, F, 3, S, S]` continued to a number of frames, backwards from the last, then forwards again."""
    last = clips.shape[1] - 1
    return clips[:, last - (torch.arange(frames) % (2 * last) - last).abs()]


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


def draw_hidden(grid: Grid, generator: torch.Generator) -> list[Masks]:
    """V-JEPA's own pair of masks, or one that hides all that follows on a beginning of random length."""
    if torch.rand((), generator=generator) >= FUTURE_SHARE:
        return draw_masks(grid, generator)
    return [future_masks(grid, 0.2 + 0.6 * torch.rand((), generator=generator).item())]


def pretraining_loss(networks: VJepa1, frames: Tensor, generator: torch.Generator) -> Tensor:
    """V-JEPA's loss on frames `[B, F, 3, H, W]` in [0, 1], all under the same masks."""
    clips = normalize(frames, IMAGENET_MEAN, IMAGENET_STD).transpose(1, 2)
    with torch.no_grad():
        targets = normalized_targets(networks, clips)
    masks = draw_hidden(networks.grid(clips), generator)
    return prediction_loss(networks, clips, targets, [masks]).mean()


def build(out: Path, work: Path) -> dict[str, float]:
    """Writes `out/vjepa.safetensors`, and returns how well the reward tells held-out clips from spoiled ones."""
    torch.manual_seed(SEED)
    networks = new_networks()

    def loss(generator: torch.Generator) -> Tensor:
        follow(networks)  # after the optimiser's last step
        frames = lightly_noisy(draw_clips(generator), generator)
        return pretraining_loss(networks, frames, generator)

    # What `fit` trains in place is saved, not the average it returns: V-JEPA's context encoder is no average.
    fit(networks, loss, SCHEDULE, SEED, checkpoint=work / "vjepa.pt")
    path = out / "vjepa.safetensors"
    save_release(networks, path)
    return quality(VJEPA(str(path), masks=4).freeze()) | told(VJEPA(str(path), context=0.5).freeze())


@torch.no_grad()
def quality(reward: Reward) -> dict[str, float]:
    """In how many pairs, half of them lightly noisy, a clip scores higher than shuffled in time; mean losses."""
    generator = generator_for(SEED, -1)
    scenes = sample_scenes(PAIRS, generator)
    real = lightly_noisy(render(scenes), generator)
    ordered, mixed = (reward(frames, captions(scenes)) for frames in (real, shuffled(real, generator)))
    told = (ordered > mixed).float().mean().item()
    return {"shuffled_told": told, "loss": -ordered.mean().item(), "loss_shuffled": -mixed.mean().item()}


@torch.no_grad()
def told(reward: Reward) -> dict[str, float]:
    """In how many pairs a clip scores higher than if it is spoiled from its middle on, by what is spoiled."""
    generator = generator_for(SEED, -2)
    scenes = sample_scenes(PAIRS, generator)
    right = reward(render(scenes), captions(scenes))
    wrong = spoiled(scenes, render, SHORT // 2, generator)
    shares = {name: (right > reward(clips, captions(scenes))).float().mean().item() for name, clips in wrong.items()}
    return {f"{name}_told": share for name, share in shares.items()}


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
