"""Frame subsampling: which frames of a video the reward sees in training (paper, section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vader import randomness
from vader.errors import UserError
from vader.recipe import FramesSection
from vader.rewards.base import ClipReward, RewardMix


def choose_frames(section: FramesSection, frames: int, seed: int, step: int, indices: Sequence[int]) -> Tensor:
    """The frames that the reward sees of the videos `indices`: ascending `[B, n]`.

    n random frames are drawn without replacement, for each video its own, so that for a frame reward the
    expected gradient is that of all frames.
    """
    if isinstance(section.sample, int):
        return torch.stack([_random(section.sample, frames, seed, step, index) for index in indices])
    return torch.tensor(fixed_frames(section.sample, frames)).expand(len(indices), -1)


def fixed_frames(sample: str | tuple[int, ...], frames: int) -> list[int]:
    """The frames that a fixed choice names, ascending."""
    if isinstance(sample, tuple):
        return sorted(sample)
    if sample == "all":
        return list(range(frames))
    if sample == "first_middle_last":
        return sorted({0, frames // 2, frames - 1})
    return list(range(0, frames, 2))  # every_second


def check_frames(section: FramesSection, frames: int, mix: RewardMix) -> None:
    """Raises `UserError` if a clip reward of the mix would see too few frames, or an odd one where it needs pairs."""
    seen = section.sample if isinstance(section.sample, int) else len(fixed_frames(section.sample, frames))
    for name, reward in mix.rewards.items():
        if not isinstance(reward, ClipReward):
            continue
        if seen < reward.min_frames:
            raise UserError(
                f"reward {name!r} needs at least {reward.min_frames} frames together, got {seen}: "
                "raise algorithm.frames.sample or video.frames"
            )
        for count in (seen, frames):  # in training, and in evaluation
            if count % reward.frame_multiple:
                raise UserError(
                    f"reward {name!r} needs a multiple of {reward.frame_multiple} frames, got {count}: "
                    "set algorithm.frames.sample or video.frames"
                )


def _random(count: int, frames: int, seed: int, step: int, index: int) -> Tensor:
    order = torch.randperm(frames, generator=randomness.generator(seed, "frames", step, index))
    return order[:count].sort().values
