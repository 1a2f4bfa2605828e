"""Clips that begin as one scene and go on as what is no longer it: by what they cost, a judge of clips is judged.

In go scenes and the function that draws them, out come their clips, spoiled from a frame on in one way each.
Shapes: N scenes, F frames, S pixels a side; clips are `[N, F, 3, S, S]` in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from vader.tinyworld.scenes import BACKGROUNDS, COLORS, SHAPES, Scenes

JUMP = 0.18  # of the frame's side
GRAIN = 0.08  # standard deviation of the noise
SOFT = 1.2  # pixels, standard deviation of the blur

Draw = Callable[[Scenes], Tensor]


def spoiled(scenes: Scenes, draw: Draw, seam: int, generator: torch.Generator) -> dict[str, Tensor]:
    """The clips by what changes at frame `seam`: colour, shape, background, place, vividness, sharpness or grain."""
    clips = draw(scenes)
    later = {
        "color": draw(replace(scenes, color=another(scenes.color, len(COLORS), generator))),
        "shape": draw(replace(scenes, shape=another(scenes.shape, len(SHAPES), generator))),
        "background": draw(replace(scenes, background=another(scenes.background, len(BACKGROUNDS), generator))),
        "place": draw(replace(scenes, center=moved(scenes.center, generator))),
        "dull": draw(scenes.with_vividness(0.0)),
        "blurred": blurred(clips),
        "noisy": (clips + GRAIN * torch.randn(clips.shape, generator=generator)).clamp(0, 1),
    }
    return {name: torch.cat([clips[:, :seam], changed[:, seam:]], dim=1) for name, changed in later.items()}


def another(values: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """For each of `[N]` indices below `count` another one."""
    return (values + torch.randint(1, count, values.shape, generator=generator)) % count


def moved(centers: Tensor, generator: torch.Generator) -> Tensor:
    """Centers `[N, 2]`, each moved by `JUMP` in a random direction of the quadrant that the frame's middle lies in."""
    towards = torch.where(centers < 0.5, 1.0, -1.0) * torch.rand(centers.shape, generator=generator)
    return centers + JUMP * F.normalize(towards, dim=1)


def blurred(clips: Tensor) -> Tensor:
    """The clips, each frame under a Gaussian of `SOFT` pixels."""
    taps = torch.exp(-(torch.arange(-3.0, 4.0) ** 2) / (2 * SOFT**2))
    kernel = (taps[:, None] * taps / taps.sum() ** 2).expand(3, 1, -1, -1)
    padded = F.pad(clips.flatten(0, 1), (3, 3, 3, 3), mode="replicate")
    return F.conv2d(padded, kernel, groups=3).view_as(clips)
