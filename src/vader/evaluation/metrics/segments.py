"""Any metric of single videos, or any reward, on each segment of long ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vader.errors import UserError
from vader.evaluation.metrics.base import HeldOutMetrics, Metric
from vader.evaluation.metrics.registry import build_metrics
from vader.nouns import Clip, Prompt, VideoSize
from vader.plugins import Part


class Segments(Metric):
    """What another metric finds in each segment of a video: `segments/gold/1`, `segments/gold/2` ...

    A segment goes from the picture that it starts from to the one at which it arrives. Over a video's frames, each
    segment's figure stands at all frames that it made.

    Args:
        of: that metric, or a reward: `{name: gold, task: consistency}`.
    """

    def __init__(self, of: Mapping[str, Any]) -> None:
        self.inner: HeldOutMetrics = build_metrics([Part.model_validate(dict(of))], 1)
        if self.inner.of_sets or self.inner.audio:
            raise UserError(
                f"metric 'segments' cannot ask {of['name']!r}, which measures sets of videos or sound: name a metric "
                "or reward of single videos, as of: {name: gold}"
            )
        self.size = VideoSize(0, 0, 0)

    def prepare(self, device: torch.device, dtype: torch.dtype) -> None:
        self.inner.prepare(device, dtype)

    def rest(self) -> None:
        self.inner.rest()

    def check(self, prompts: Sequence[Prompt], size: VideoSize) -> None:
        """See `Metric.check`: videos must have segments, each of which the other metric can measure."""
        if size.segments == 1:
            raise UserError(
                "metric 'segments' measures long videos segment by segment, and is given a single one: set "
                "video.segments, and do not put it within itself; or leave it out"
            )
        self.size = size
        for metric in self.inner.metrics.values():
            metric.check(prompts, size.segment)

    def per_video(self, clip: Clip, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        return {f"{name}/{number + 1}": values for number, name, values in self._found(clip, prompts)}

    def over_frames(self, clip: Clip, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        curves: dict[str, Tensor] = {}
        for number, name, values in self._found(clip, prompts):
            curve = curves.setdefault(name, torch.zeros(clip.frames.shape[:2]))
            made = self.size.frames_of(number)[min(number, 1) :]  # the picture that it starts from, another made
            curve[:, made] = values[:, None].float()
        return curves

    def _found(self, clip: Clip, prompts: Sequence[Prompt]) -> list[tuple[int, str, Tensor]]:
        """Every figure of every segment."""
        return [
            (number, name, values)
            for number in range(self.size.segments)
            for name, values in self.inner.per_video(self._segment(clip, number), prompts).items()
        ]

    def _segment(self, clip: Clip, number: int) -> Clip:
        """One segment as a video of its own, whose time begins at 0."""
        frames = self.size.frames_of(number)
        return Clip.whole(clip.frames[:, frames.start : frames.stop], self.size.fps)
