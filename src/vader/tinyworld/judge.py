"""The ground truth of any video of the tiny world, generated ones too: the renderer run backwards.

No network: backgrounds and colours are found by least squares against the renderer's palette, shapes by
overlap with its silhouettes, motion by the object's path, and vividness from the fact that a pixel is
linear in it. So the judge cannot be fooled as a learned reward can.

Shapes: N videos, F frames, S pixels a side; videos are `[N, F, 3, S, S]` in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from vader.nouns import Prompt, as_prompts
from vader.tinyworld.damage import DAMAGED, find_damage
from vader.tinyworld.scenes import (
    COLORS,
    MOTIONS,
    RADIUS,
    SHAPES,
    backgrounds,
    dulled,
    parse_caption,
    shape_masks,
)

VIVIDNESS_GRID = torch.linspace(0.0, 1.2, 9)
MIN_CONTRAST = 0.06  # colour distance below which a pixel is background
OBJECT_SHARE = (0.02, 0.40)  # of the frame's area; the largest shape covers 0.19
MIN_PATH = 0.10  # of the frame's side; less is no motion


@dataclass
class Verdict:
    """What the judge sees in N videos: indices into the renderer's tables (-1: not there), vividness (1: full)."""

    color: Tensor
    shape: Tensor
    background: Tensor
    motion: Tensor
    vividness: Tensor
    damage: Tensor  # 0: as if rendered, 1: nothing of the object is as it would be


def aesthetic_rating(vividness: Tensor) -> Tensor:
    """The tiny world's taste, from 1 (dull) to 10 (full colour)."""
    return 1.0 + 9.0 * vividness


@torch.no_grad()
def judge(videos: Tensor) -> Verdict:
    """Reads the attributes of videos off their pixels."""
    verdicts = [_judge_some(some.float().cpu()) for some in videos.split(16)]
    return Verdict(**{name: torch.cat([getattr(v, name) for v in verdicts]) for name in asdict(verdicts[0])})


def judge_prompts(videos: Tensor, prompts: Sequence[str | Prompt]) -> dict[str, Tensor]:
    """For each video: 1 where an attribute is what the prompt says and 0 where not, vividness and damage, all `[N]`.

    `damaged` is 1 where the damage is more than base models leave, and 0 elsewhere.

    Raises:
        ValueError: a prompt is not of the tiny world.
    """
    truths, seen = wanted(prompts).unbind(1), judge(videos)
    names = ("color", "shape", "background", "motion")
    right = {name: (getattr(seen, name) == truth).float() for name, truth in zip(names, truths, strict=True)}
    damaged = (seen.damage > DAMAGED).float()
    return {"vividness": seen.vividness, **right, "damage": seen.damage, "damaged": damaged}


def wanted(prompts: Sequence[str | Prompt]) -> Tensor:
    """Colour, shape, background and motion that each prompt asks for: `[N, 4]`.

    Raises:
        ValueError: a prompt is not of the tiny world.
    """
    return torch.tensor([parse_caption(_with_label(prompt)) for prompt in as_prompts(prompts)])


def _with_label(prompt: Prompt) -> str:
    """A prompt's text and label: what it leaves open, its label may ask for."""
    return f"{prompt.text} {prompt.label}" if prompt.label else prompt.text


def _judge_some(videos: Tensor) -> Verdict:
    size = videos.shape[-1]
    background, dull, vivid = _find_background(videos, backgrounds(size))
    ground, ground_vividness = _fit_ground(videos, dull, vivid)
    mask = _foreground(videos, ground)
    share = mask.mean(dim=(1, 2, 3))
    visible = (share > OBJECT_SHARE[0]) & (share < OBJECT_SHARE[1])
    color, paint_vividness = _find_color(videos, mask)
    centers = _centroids(mask)
    shape, radius, middles = _find_shape(mask, centers)
    motion = _find_motion(centers)
    vividness = torch.where(visible, torch.lerp(ground_vividness, paint_vividness, share), ground_vividness)
    absent = torch.full_like(color, -1)
    color, shape, motion = (torch.where(visible, found, absent) for found in (color, shape, motion))
    return Verdict(
        color=color,
        shape=shape,
        background=background,
        motion=motion,
        vividness=vividness.clamp(VIVIDNESS_GRID[0], VIVIDNESS_GRID[-1]),
        damage=find_damage(videos, background, color, shape, radius, middles, mask),
    )


def _find_background(videos: Tensor, vivid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The background `[N]` that at some vividness leaves the smallest median error, and its two extreme pictures."""
    dull = dulled(vivid)
    pictures = torch.lerp(dull[:, None], vivid[:, None], VIVIDNESS_GRID.view(1, -1, 1, 1, 1)).flatten(0, 1)
    middle = videos[:, :: max(1, videos.shape[1] // 4)]
    errors = torch.stack(
        [(middle - picture).square().sum(dim=2).sqrt().flatten(1).median(dim=1).values for picture in pictures], 1
    )
    best = errors.argmin(dim=1) // len(VIVIDNESS_GRID)
    return best, dull[best], vivid[best]


def _fit_ground(videos: Tensor, dull: Tensor, vivid: Tensor) -> tuple[Tensor, Tensor]:
    """The background's vividness `[N]` by least squares over the pixels most like it, and its picture."""
    axis = (vivid - dull)[:, None]
    vividness = torch.full((len(videos),), 0.5)
    for _ in range(4):
        picture = torch.lerp(dull, vivid, vividness.view(-1, 1, 1, 1))
        error = (videos - picture[:, None]).square().sum(dim=2, keepdim=True)
        close = (error <= error.flatten(1).median(dim=1).values.view(-1, 1, 1, 1, 1)).float()
        above = ((videos - dull[:, None]) * axis * close).sum(dim=(1, 2, 3, 4))
        vividness = above / (axis.square() * close).sum(dim=(1, 2, 3, 4))
    return torch.lerp(dull, vivid, vividness.view(-1, 1, 1, 1)), vividness


def _foreground(videos: Tensor, ground: Tensor) -> Tensor:
    """Object pixels `[N, F, S, S]` as 0 or 1: farther from the background than half of what the farthest ones are."""
    distance = (videos - ground[:, None]).square().sum(dim=2).sqrt()
    high = distance.flatten(2).quantile(0.97, dim=2)[..., None, None]
    return (distance > (0.5 * high).clamp(min=MIN_CONTRAST)).float()


def _find_color(videos: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The paint `[N]` whose dull-to-vivid line passes closest to the object's median colour, and where on it."""
    vivid = torch.tensor(list(COLORS.values()))
    dull = dulled(vivid)
    painted = [video.movedim(1, -1)[where > 0.5] for video, where in zip(videos, mask, strict=True)]
    median = torch.stack([p.median(dim=0).values if len(p) else torch.full((3,), 0.5) for p in painted])
    axis = vivid - dull
    along = ((median[:, None] - dull) * axis).sum(dim=-1) / axis.square().sum(dim=-1)
    nearest = dull + along.clamp(-0.1, 1.3)[..., None] * axis
    best = (median[:, None] - nearest).square().sum(dim=-1).argmin(dim=1)
    return best, along.gather(1, best[:, None])[:, 0]


def _centroids(mask: Tensor) -> Tensor:
    """Centre of each frame's object: `[N, F, 2]`, (x, y) in frame sides; the frame's middle where there is none."""
    size = mask.shape[-1]
    axis = (torch.arange(size) + 0.5) / size
    weight = mask.sum(dim=(2, 3)).clamp(min=1e-6)
    center = (
        torch.stack([(mask.sum(dim=2) * axis).sum(-1), (mask.sum(dim=3) * axis).sum(-1)], dim=-1) / weight[..., None]
    )
    return torch.where(weight[..., None] > 0.5, center, torch.full_like(center, 0.5))


def _find_shape(mask: Tensor, centers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The silhouette that overlaps the object most, over sizes and all frames: `[N]`, its radius, and its centres."""
    size = mask.shape[-1]
    radii = torch.linspace(0.85 * RADIUS[0], 1.15 * RADIUS[1], 9)
    scores = []
    for index in range(len(SHAPES)):
        shape = torch.full(centers.shape[:2], index)
        overlaps = []
        for radius in radii:
            silhouette = shape_masks(shape, radius.expand(shape.shape), centers - _DROPS[index] * radius, size)
            both = torch.minimum(silhouette, mask).sum(dim=(2, 3))
            overlaps.append((both / torch.maximum(silhouette, mask).sum(dim=(2, 3)).clamp(min=1e-6)).mean(dim=1))
        scores.append(torch.stack(overlaps))
    best = torch.stack(scores).flatten(0, 1).argmax(dim=0)
    shape, radius = best // len(radii), radii[best % len(radii)]
    return shape, radius, centers - (_DROPS[shape] * radius[:, None])[:, None]


def _find_motion(centers: Tensor) -> Tensor:
    """The direction `[N]` of the straight line fitted to the path; -1 where the path is too short to be a motion."""
    frames = centers.shape[1]
    time = torch.linspace(-0.5, 0.5, frames)
    path = (time[None, :, None] * (centers - centers.mean(dim=1, keepdim=True))).sum(dim=1) / time.square().sum()
    directions = torch.tensor(list(MOTIONS.values()))
    along = path @ directions.T
    best = along.max(dim=1)
    return torch.where(best.values >= MIN_PATH, best.indices, torch.full_like(best.indices, -1))


def _centroid_drops() -> Tensor:
    """How far each silhouette's centroid lies beside and below its centre, in radii (only the triangle is lopsided)."""
    one = torch.ones(1)
    middle = torch.full((1, 2), 0.5)
    masks = [shape_masks(torch.tensor([i]), 0.25 * one, middle, 64)[:, None] for i in range(len(SHAPES))]
    return torch.tensor([(0.0, (_centroids(mask)[0, 0, 1].item() - 0.5) / 0.25) for mask in masks])


_DROPS = _centroid_drops()
