"""Guards that score: rewards that nobody trains on, how much of the trained reward's gain is left of coarser pixels,
and whether videos still fit their own prompts best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from vader.evaluation.guards.base import Finding, Guard, Pairs
from vader.evaluation.metrics.base import Aside
from vader.evaluation.metrics.reward import RewardMetric
from vader.nouns import Clip, Prompt, VideoSize
from vader.scoring.scorer import Scorer

LARGE = 256  # pixels: videos whose shorter side is this or more are made coarser by less
KEPT = 0.5  # of a gain, less than which is left is an objection


class HeldOutReward(Guard):
    """A reward that nobody trains on: falls when the trained one is bought with what others dislike."""

    wrong = "a reward that nobody trains on falls"

    def __init__(self, metric: RewardMetric) -> None:
        self.metric, self.audio = metric, metric.audio

    def prepare(self, device: torch.device, dtype: torch.dtype) -> None:
        self.metric.prepare(device, dtype)

    def rest(self) -> None:
        self.metric.rest()

    def check(self, prompts: Sequence[Prompt], size: VideoSize) -> None:
        self.metric.check(prompts, size)

    def per_video(self, clip: Clip, prompts: Sequence[Prompt]) -> Tensor:
        return self.metric.per_video(clip, prompts)


class Margin(HeldOutReward):
    """A held-out reward by a video's own prompt, less that by the next prompt of the set: falls when all look alike."""

    wrong = "videos fit their own prompts less well than others'"

    def check(self, prompts: Sequence[Prompt], size: VideoSize) -> None:
        """Raises `Aside` where there is but one prompt."""
        super().check(prompts, size)
        distinct = list(dict.fromkeys(prompts))
        if len(distinct) < 2:
            raise Aside("there is no other prompt")
        self.next = dict(zip(distinct, [*distinct[1:], distinct[0]], strict=True))

    def per_video(self, clip: Clip, prompts: Sequence[Prompt]) -> Tensor:
        others = [self.next[prompt] for prompt in prompts]
        return self.metric.per_video(clip, prompts) - self.metric.per_video(clip, others)


class Retention(Guard):
    """How much of the trained reward's gain is left when videos are halved and restored: little, of adversarial pixels.

    Each video is scored by itself, so that a gain that is a batch's and no video's is not left either.
    """

    wrong = "coarser pixels take the gain away"

    def use_reward(self, scorer: Scorer) -> None:
        self.scorer = scorer

    def per_video(self, clip: Clip, prompts: Sequence[Prompt]) -> Tensor:
        """The trained reward of each coarser video, `[B]`."""
        coarse = replace(clip, frames=torch.stack([coarser(video) for video in clip.frames]))
        alone = (self.scorer.score_clip(coarse[i : i + 1], [prompt]) for i, prompt in enumerate(prompts))
        return torch.cat([scored.total.cpu() for scored in alone])

    def find(self, pairs: Pairs, error: float) -> Finding:
        """The ratio of sums of gains; it is not asked of a gain that is within its own standard error."""
        gain, left = pairs.reward - pairs.base_reward, pairs.now - pairs.base
        certain = len(gain) > 1 and gain.mean() > gain.std() / math.sqrt(len(gain))
        if not certain:
            return Finding(math.nan, math.nan, False, False, "there is no gain to speak of")
        share = (left.sum() / gain.sum()).item()
        lost = dict(zip(pairs.keys, (left - gain).tolist(), strict=True))
        return Finding(share - 1, math.nan, share < KEPT, False, f"{share:.2f} of the gain is left", lost)


def coarser(video: Tensor) -> Tensor:
    """A video `[F, 3, H, W]` reduced to half its size (large ones to three quarters), smoothed, and enlarged again."""
    height, width = video.shape[-2:]
    scale = 0.75 if min(height, width) >= LARGE else 0.5
    size = (max(1, round(scale * height)), max(1, round(scale * width)))
    small = F.interpolate(video, size=size, mode="bilinear", antialias=True)
    return F.interpolate(small, size=(height, width), mode="bilinear")
