"""Frame subsampling: which frames of a video the reward sees in training (paper, section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vader import randomness
from vader.recipe import FramesSection


def choose_frames(section: FramesSection, frames: int, seed: int, step: int, indices: Sequence[int]) -> Tensor:
    """The frames that the reward sees of the videos `indices`: ascending `[B, n]`.

    n random frames are drawn without replacement, for each video its own, so that for a frame reward the
    expected gradient is that of all frames.
    """
    if isinstance(section.sample, int):
        return torch.stack([_random(section.sample, frames, seed, step, index) for index in indices])
    return torch.tensor(fixed_frames(section.sample, frames)).expand(len(indices), -1)


def fixed_frames(sample: str | tuple[int, ...], frames: int) -> list[int]:
    """The frames that a fixed choice names."""
    if sample == "all":
        return list(range(frames))
    if sample == "first_middle_last":
        return sorted({0, frames // 2, frames - 1})
    if sample == "every_second":
        return list(range(0, frames, 2))
    return list(sample)


def _random(count: int, frames: int, seed: int, step: int, index: int) -> Tensor:
    order = torch.randperm(frames, generator=randomness.generator(seed, "frames", step, index))
    return order[:count].sort().values
