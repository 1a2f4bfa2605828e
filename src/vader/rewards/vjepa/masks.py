"""V-JEPA's 3-D multiblock masks: which tokens of a clip are hidden and must be predicted from the others.

A mask is a union of blocks that span the whole clip in time, so that nothing hidden can be copied from another
frame. There are two kinds: many small blocks (short range) and few large ones (long range)
(Bardes et al., 2024, arXiv 2404.08471, section 3.2). Masks are functions of their generators alone. A third kind
hides whatever comes after the clip's beginning, so that the rest must be foretold.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Grid(NamedTuple):
    """The tokens of a clip along time, height and width; flattened, width runs fastest and time slowest."""

    time: int
    height: int
    width: int


class Blocks(NamedTuple):
    """A kind of mask: `number` blocks, each `scale` of a frame's area."""

    number: int
    scale: float


class Masks(NamedTuple):
    """Ascending token indices `[1, K]` of what is seen and `[1, M]` of what is predicted; together all N = K + M."""

    context: Tensor
    target: Tensor


SHORT_RANGE = Blocks(number=8, scale=0.15)
LONG_RANGE = Blocks(number=2, scale=0.7)
MASK_SETS = (SHORT_RANGE, LONG_RANGE)  # in the order of the released predictors' mask tokens
ASPECT_RATIOS = (0.75, 1.5)


def block_size(grid: Grid, blocks: Blocks, generator: torch.Generator) -> Grid:
    """The size of a mask's blocks: all of the time, an area of `scale` of the frame at a random aspect ratio.

    The released models draw temporal and spatial scale too, each from a range of one value: the first two
    draws are theirs.
    """
    _, _, draw = torch.rand(3, generator=generator).tolist()
    aspect = ASPECT_RATIOS[0] + draw * (ASPECT_RATIOS[1] - ASPECT_RATIOS[0])
    area = int(grid.height * grid.width * blocks.scale)
    height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    return Grid(grid.time, min(max(height, 1), grid.height), min(max(width, 1), grid.width))


def place_blocks(grid: Grid, size: Grid, count: int, generator: torch.Generator) -> Masks:
    """Hides the union of `count` blocks at random places; drawn again where nothing would be left to see.

    Raises:
        ValueError: one block covers the whole grid, so that nothing can ever be left.
    """
    if size == grid:
        raise ValueError(f"blocks as large as the whole grid of {grid} leave nothing to see")
    while True:
        seen = torch.ones(grid, dtype=torch.bool)
        for _ in range(count):
            top, left, start = (_offset(*sides, generator) for sides in zip(_rolled(grid), _rolled(size), strict=True))
            seen[start : start + size.time, top : top + size.height, left : left + size.width] = False
        if seen.any():
            return Masks(*(_indices(choice) for choice in (seen, ~seen)))


def draw_masks(grid: Grid, generator: torch.Generator) -> list[Masks]:
    """One mask of each of the `MASK_SETS`."""
    return [place_blocks(grid, block_size(grid, blocks, generator), blocks.number, generator) for blocks in MASK_SETS]


def future_masks(grid: Grid, seen: float) -> Masks:
    """Hides all that comes after the share `seen` of the clip, in (0, 1); at least one token of time is on either side.

    A single block as large as the frame, at the end: V-JEPA's code bounds its contexts in time alike
    (`max_temporal_keep`), but hides blocks of the beginning too.

    Raises:
        ValueError: the clip is a single token long, so that there is no future.
    """
    if grid.time < 2:
        raise ValueError(f"a clip of {grid.time} token in time has no future to foretell")
    first, frame = min(max(round(seen * grid.time), 1), grid.time - 1), grid.height * grid.width
    return Masks(*torch.arange(grid.time * frame)[None].tensor_split([first * frame], dim=1))


def _rolled(grid: Grid) -> tuple[int, int, int]:
    """Height, width, time: the order in which V-JEPA draws a block's place."""
    return grid.height, grid.width, grid.time


def _offset(side: int, length: int, generator: torch.Generator) -> int:
    return int(torch.randint(side - length + 1, (1,), generator=generator))


def _indices(choice: Tensor) -> Tensor:
    return choice.flatten().nonzero().T
