"""Qwen-VL's image and video processors in differentiable tensors, without PIL and without rounding to bytes.

Frames `[n, 3, H, W]` in [0, 1] come in, rows of patches go out in the order that the vision network wants them: blocks
of merge x merge patches, which become one token of the language model each (Qwen2-VL, arXiv 2409.12191, section 2.1).

Shapes: n frames, t = n / temporal frame groups, h x w patches of a frame, m merged patches a side of a token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vader.rewards.preprocess import normalize, resize


@dataclass(frozen=True)
class PatchLayout:
    """How a vision network cuts frames.

    Attributes:
        patch: pixels of a patch's side.
        merge: patches of a token's side.
        temporal: frames of a patch.
        mean, std: of the colours.
    """

    patch: int
    merge: int
    temporal: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def tokens(self, grid: Tensor) -> int:
        """How many tokens of the language model a grid (t, h, w) makes."""
        return math.prod(grid.tolist()) // self.merge**2


@dataclass(frozen=True)
class Limits:
    """How many pixels a frame has after resizing, at least and at most."""

    low: int
    high: int


def fit(height: int, width: int, factor: int, limits: Limits) -> tuple[int, int]:
    """The size to which a frame is resized: sides are multiples of `factor` near its own, pixels within the limits.

    Where rounding up from too few pixels passes the upper limit, that is kept, as the releases do.
    """
    rows, columns = (max(factor, round(side / factor) * factor) for side in (height, width))
    if rows * columns > limits.high:
        shrink = math.sqrt(height * width / limits.high)
        rows, columns = (max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width))
    elif rows * columns < limits.low:
        grow = math.sqrt(limits.low / (height * width))
        rows, columns = (math.ceil(side * grow / factor) * factor for side in (height, width))
    return rows, columns


def patches(frames: Tensor, layout: PatchLayout, limits: Limits) -> tuple[Tensor, Tensor]:
    """Frames of one video, or one picture, as the vision network takes them.

    An uneven last group of frames is filled with the last one, so that a picture is a video of one group.

    Returns:
        Rows `[t * h * w, 3 * temporal * patch * patch]` and the grid (t, h, w) on the CPU.
    """
    size = fit(frames.shape[-2], frames.shape[-1], layout.patch * layout.merge, limits)
    frames = normalize(resize(frames, *size, "bicubic"), layout.mean, layout.std)
    if missing := -len(frames) % layout.temporal:
        frames = torch.cat([frames, frames[-1:].expand(missing, -1, -1, -1)])
    (rows, columns), blocks = (side // layout.patch for side in size), (layout.merge, layout.patch)
    groups = frames.unflatten(0, (-1, layout.temporal))  # [t, temporal, 3, H, W]
    cut = groups.unflatten(-1, (-1, *blocks)).unflatten(3, (-1, *blocks))
    # [t, temporal, 3, h/m, m, p, w/m, m, p] -> [t, h/m, w/m, m, m, 3, temporal, p, p]
    ordered = cut.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return ordered.reshape(len(groups) * rows * columns, -1), torch.tensor([len(groups), rows, columns], device="cpu")
