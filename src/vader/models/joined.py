"""The segments of long videos as one video, as a scorer asks for it: latents by segment in, pixels of the whole out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from vader.errors import UserError
from vader.models.base import VideoModel
from vader.models.tiny_decoder import TinyVideos
from vader.nouns import Audio, VideoSize, map_latents

Decodes = VideoModel | TinyVideos
Model = TypeVar("Model", VideoModel, TinyVideos)


def decoder_of(model: Model, size: VideoSize) -> Model | Joined:
    """What decodes videos of this size from the latents of all their segments."""
    return model if size.segments == 1 else Joined(model, size)


@dataclass(frozen=True)
class Joined:
    """Decodes videos of several segments: latents `{"0": [B, ...], "1": ...}`, frames counted over the whole.

    Attributes:
        size: of the whole videos.
    """

    model: Decodes
    size: VideoSize

    @property
    def device(self) -> torch.device:
        return self.model.device

    def windows(self, size: VideoSize) -> Sequence[range]:
        """See `VideoModel.windows`: every segment's own, but for the picture that a segment only starts from."""
        starts = [self.size.frames_of(number).start for number in range(size.segments)]
        first, each = starts[0], self.model.windows(size.segment)
        found = (range(start + max(one.start, start > first), start + one.stop) for start in starts for one in each)
        return [window for window in found if window]

    def decode_unclamped(self, latents: Any, frames: Tensor | None = None) -> Tensor:
        """See `VideoModel.decode_unclamped`. Videos are decoded one by one: each may have other segments to decode."""
        videos = len(next(iter(latents.values())))
        if frames is None:
            frames = torch.arange(self.size.frames, device=self.device).expand(videos, -1)
        alone = (map_latents(lambda x, row=row: x[row : row + 1], latents) for row in range(videos))
        return torch.cat([self._decoded(one, chosen) for one, chosen in zip(alone, frames, strict=True)])

    def _decoded(self, latents: dict[str, Any], frames: Tensor) -> Tensor:
        """Pixels `[1, n, 3, H, W]` of one video's frames `[n]`."""
        segments, places = self.size.located(frames)
        parts, rows = [], []
        for number in segments.unique().tolist():
            rows.append((segments == number).nonzero()[:, 0])
            parts.append(self.model.decode_unclamped(latents[str(number)], places[rows[-1]][None]))
        return torch.cat(parts, dim=1)[:, torch.cat(rows).argsort()]

    def decode(self, latents: Any, frames: Tensor | None = None) -> Tensor:
        """See `VideoModel.decode`."""
        return self.decode_unclamped(latents, frames).clamp(0, 1)

    def noise_shape(self, size: VideoSize) -> dict[str, Any]:
        """See `VideoModel.noise_shape`: of every segment."""
        return {str(number): self.model.noise_shape(size.segment) for number in range(size.segments)}

    def decode_audio(self, latents: Any) -> Audio:
        """Raises `UserError`: sound is not continued from segment to segment."""
        raise UserError("videos of several segments have no sound: leave out what listens, or set video.segments to 1")
