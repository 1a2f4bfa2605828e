"""Damage as models leave it, planted into clean clips: eight kinds, each as strong as a person would just call damaged.

Shapes: N clips, F frames, S pixels a side. A kind takes one clean clip with what it was drawn from, and a source of
randomness, and gives the clip `[F, 3, S, S]` in [0, 1] with the damage.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from vader.tinyworld.scenes import COLORS, Scenes, object_masks, painted, render, render_grounds, sample_scenes

PAINTS = torch.tensor(list(COLORS.values()))


@dataclass
class Clean:
    """A rendered clip: pixels and background `[F, 3, S, S]`, the object's coverage `[F, S, S]` and paint."""

    pixels: Tensor
    ground: Tensor
    mask: Tensor
    paint: Tensor


def clean_clips(count: int, seed: int, contrast: float = 0.0) -> tuple[list[Clean], Tensor]:
    """Clips whose object differs from the background by `contrast` in RGB distance, and their pixels together."""
    scenes = sample_scenes(3 * count, torch.Generator().manual_seed(seed))
    ground, paint = render_grounds(scenes), painted(PAINTS[scenes.color], scenes.vividness[:, None])
    apart = (ground.mean(dim=(1, 3, 4)) - paint).norm(dim=1)
    scenes = scenes[torch.nonzero(apart >= contrast)[:count, 0]]
    assert len(scenes) == count
    return _drawn(scenes), render(scenes)


def _drawn(scenes: Scenes) -> list[Clean]:
    paint = painted(PAINTS[scenes.color], scenes.vividness[:, None])[..., None, None]
    parts = zip(render(scenes), render_grounds(scenes), object_masks(scenes, 8, 32), paint, strict=True)
    return [Clean(*part) for part in parts]


def uniform(low: float, high: float, source: torch.Generator) -> float:
    return low + (high - low) * torch.rand((), generator=source).item()


def toward(clip: Tensor, target: Tensor, where: Tensor, distance: float) -> Tensor:
    """The clip with its pixels at `where` `[F, S, S]` moved by an RGB distance, on average, towards the target's."""
    apart = ((target - clip).norm(dim=1) * where).sum() / where.sum()
    return torch.lerp(clip, target.expand_as(clip), where[:, None] * (distance / apart).clamp(max=1))


def other_paint(colour: Tensor, source: torch.Generator) -> Tensor:
    """One of the paints `[3, 1, 1]` that differ much from a colour."""
    far = PAINTS[(PAINTS - colour.flatten()).norm(dim=1) > 0.5]
    return far[torch.randint(len(far), (), generator=source)][:, None, None]


def discs(centers: Tensor, radius: float) -> Tensor:
    """Discs `[F, 32, 32]` around points `[F, 2]`, (x, y) in pixels."""
    axis = torch.arange(32) + 0.5
    across, along = axis - centers[:, 0, None, None], axis[:, None] - centers[:, 1, None, None]
    return (radius + 0.5 - torch.hypot(across, along)).clamp(0, 1)


def points(mask: Tensor, source: torch.Generator) -> Tensor:
    """A pixel of the object, at about the same place of it in each frame: `[F, 2]`, (x, y)."""
    which = uniform(0, 1, source)
    inside = [torch.nonzero(frame > 0.9) for frame in mask]
    return torch.stack([pixels[int(which * len(pixels))].flip(0) + 0.5 for pixels in inside])


def edge_points(mask: Tensor, source: torch.Generator) -> Tensor:
    """A pixel on the object's outline in each frame, anywhere: `[F, 2]`, (x, y)."""
    angles = 2 * math.pi * torch.rand(len(mask), generator=source)
    inside = [torch.nonzero(frame > 0.9).flip(1) + 0.5 for frame in mask]
    directions = torch.stack([angles.cos(), angles.sin()], dim=1)
    return torch.stack([some[(some @ way).argmax()] for some, way in zip(inside, directions, strict=True)])


def patches(clean: Clean, source: torch.Generator) -> Tensor:
    """A patch of another colour on the object, in half of the frames or more."""
    where = discs(points(clean.mask, source), uniform(2.2, 3.2, source)) * clean.mask
    shown = torch.rand(8, generator=source) < uniform(0.3, 1.0, source)
    shown[::2] = True
    return toward(clean.pixels, other_paint(clean.paint, source), where * shown[:, None, None], 0.35)


def flicker(clean: Clean, source: torch.Generator) -> Tensor:
    """The object, or all of the frame, becomes lighter and darker."""
    where = clean.mask[:, None] if uniform(0, 1, source) < 0.5 else torch.ones(8, 1, 32, 32)
    signs = torch.tensor([1, 0, -1, 0, 1, -1, 0, 0])[torch.randperm(8, generator=source)]
    return (clean.pixels + uniform(0.06, 0.10, source) * signs[:, None, None, None] * where).clamp(0, 1)


def outline(clean: Clean, source: torch.Generator) -> Tensor:
    """Two bites out of the object's outline and a bump on it, elsewhere in each frame."""
    bump, *bites = (discs(edge_points(clean.mask, source), uniform(2.4, 3.0, source))[:, None] for _ in range(3))
    bumpy = torch.lerp(clean.pixels, clean.paint.expand_as(clean.pixels), bump)
    return torch.lerp(bumpy, clean.ground, torch.maximum(*bites))


def halo(clean: Clean, source: torch.Generator) -> Tensor:
    """A rim of another colour around the object."""
    wide = max_pool2d(clean.mask, 5, 1, 2)
    return toward(clean.pixels, other_paint(clean.paint, source), wide * (1 - clean.mask), uniform(0.18, 0.25, source))


def speckle(clean: Clean, source: torch.Generator) -> Tensor:
    """Single pixels of any colour."""
    where = (torch.rand(8, 32, 32, generator=source) < uniform(0.02, 0.04, source)).float()
    return toward(clean.pixels, torch.rand(8, 3, 32, 32, generator=source), where, 0.35)


def ghost(clean: Clean, source: torch.Generator) -> Tensor:
    """A paler copy of the object beside it."""
    shift = [int(uniform(4, 8, source)) * (1 if uniform(0, 1, source) < 0.5 else -1) for _ in range(2)]
    where = clean.mask.roll(shift, dims=(1, 2)) * (1 - clean.mask)
    return toward(clean.pixels, clean.paint, where, uniform(0.15, 0.25, source))


def blotch(clean: Clean, source: torch.Generator) -> Tensor:
    """A large soft spot of another colour on the background."""
    bare = torch.nonzero(clean.mask.mean(dim=0)[5:27, 5:27] < 0.2) + 5.5
    center = bare[int(uniform(0, len(bare), source))].flip(0)
    where = discs(center[None], uniform(4, 6, source)) * (1 - clean.mask)
    other = other_paint(clean.ground.mean(dim=(0, 2, 3)), source)
    return toward(clean.pixels, other, where, uniform(0.15, 0.25, source))


def banding(clean: Clean, source: torch.Generator) -> Tensor:
    """Four or five levels a channel."""
    levels = 3 + int(uniform(0, 2, source))
    return (clean.pixels * levels).round() / levels


KINDS = (patches, flicker, outline, halo, speckle, ghost, blotch, banding)


def planted_clips(count: int, seed: int) -> dict[str, Tensor]:
    """So many clips of each kind: `[count, 8, 3, 32, 32]` by its name."""
    source, found = torch.Generator().manual_seed(seed), {}
    for number, kind in enumerate(KINDS):
        clips, _ = clean_clips(count, seed + number, contrast=0.3)
        found[kind.__name__] = torch.stack([kind(clip, source) for clip in clips])
    return found
