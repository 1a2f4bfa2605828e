"""A reward as a metric: it scores held-out videos and is never trained on.

One that falls while the trained reward rises tells of reward hacking. Clips stay where they are; a few images at a time
go to the reward's device, and it is shown what it needs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vader.errors import UserError
from vader.evaluation.metrics.base import Aside, Metric
from vader.nouns import Clip, Prompt, VideoSize
from vader.rewards.base import Reward, as_mix
from vader.scoring.clips import score_clip


class RewardMetric(Metric):
    """A frozen reward, or a mix's weighted sum, which is shown `chunk` images at once."""

    def __init__(self, name: str, reward: Reward, chunk: int = 1) -> None:
        self.mix = as_mix(reward, name)
        self.chunk, self.audio = chunk, self.mix.listens
        self.device, self.fps = torch.device("cpu"), 8

    def prepare(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        self.mix.to_precision(dtype).to(device)

    def rest(self) -> None:
        self.mix.to("cpu")

    def check(self, prompts: Sequence[Prompt], size: VideoSize) -> None:
        """Raises `UserError` if the reward lacks frames, and `Aside` if it lacks something of the prompts."""
        self.fps = size.fps
        for reward in self.mix.latent.values():
            reward.refuse_pixels()
        self.mix.check_size(size)
        try:
            self.mix.check_prompts(prompts)
        except UserError as error:
            raise Aside(str(error)) from error

    def per_video(self, clip: Clip, prompts: Sequence[Prompt]) -> Tensor:
        """Scores `[B]`, on the CPU."""
        _, frames, _, height, width = clip.frames.shape
        size = VideoSize(frames, height, width, self.fps)
        return score_clip(self.mix, clip, prompts, size, self.chunk, self.device).total.cpu()
