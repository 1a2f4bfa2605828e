"""The tiny world's ground truth as a metric: vividness, damage, and which attributes are what the prompt says."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from vader.evaluation.metrics.base import Aside, Metric
from vader.nouns import Clip, Prompt, VideoSize
from vader.tinyworld.judge import judge_prompts, wanted


class Judge(Metric):
    """The tiny world's ground truth: vividness, damage, and shares of videos with the prompt's attributes."""

    def per_video(self, clip: Clip, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        return judge_prompts(clip.frames, prompts)

    def check(self, prompts: Sequence[Prompt], size: VideoSize) -> None:
        """Raises `Aside` if a prompt is not of the tiny world."""
        try:
            wanted(prompts)
        except ValueError as error:
            raise Aside(f"it knows the tiny world alone ({error})") from None
