"""A reward as a metric: it scores held-out videos and is never trained on.

One that falls while the trained reward rises tells of reward hacking. Clips stay where they are; a few images at a time
go to the reward's device.

Shapes: B videos, F frames, N images.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vader.evaluation.metrics.base import Metric
from vader.nouns import Clip, Prompt, VideoSize
from vader.recipe import FramesSection
from vader.rewards.base import Reward, RewardMix
from vader.scoring.frames import check_frames


class RewardMetric(Metric):
    """A frozen reward, `chunk` images at a time; one that sees frames together, at least one whole video."""

    def __init__(self, name: str, reward: Reward, chunk: int = 1) -> None:
        self.name, self.reward, self.chunk = name, reward.freeze(), chunk
        self.device = torch.device("cpu")

    def prepare(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        self.reward.to(device).to_precision(dtype)

    def check(self, prompts: Sequence[Prompt], size: VideoSize) -> None:
        """Raises `UserError` if the reward lacks something of the prompts, or frames."""
        check_frames(FramesSection(sample="all"), size.frames, RewardMix({self.name: self.reward}, {self.name: 1.0}))
        self.reward.check_prompts(prompts)

    def per_video(self, clip: Clip, prompts: Sequence[Prompt]) -> Tensor:
        """Scores `[B]`; of a mean over frames, image by image."""
        if not self.reward.framewise:
            return self._scored(clip.frames, prompts, max(1, self.chunk // clip.frames.shape[1]))
        frames = clip.frames.shape[1]
        images = clip.frames.flatten(0, 1)[:, None]  # [N, 1, 3, H, W]
        scores = self._scored(images, [prompt for prompt in prompts for _ in range(frames)], self.chunk)
        return scores.unflatten(0, (-1, frames)).mean(dim=1)

    def _scored(self, frames: Tensor, prompts: Sequence[Prompt], chunk: int) -> Tensor:
        """Scores of videos `[B, F, 3, H, W]`, so many at a time, on the CPU."""
        some = [slice(start, start + chunk) for start in range(0, len(prompts), chunk)]
        scores = [self.reward(frames[rows].to(self.device), prompts[rows]) for rows in some]
        return torch.cat(scores).float().cpu()
