"""The words that every room speaks: sizes, prompts, clips, conditions, latents. Imports torch alone.

Shapes: B videos, F frames, n chosen frames, C channels, H x W pixels. Pixels are float32 `[B, n, 3, H, W]` in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Latents = Tensor | dict[str, Tensor]  # one tensor, or several by name (video and audio)


@dataclass(frozen=True)
class VideoSize:
    """The size of a video in pixels and frames; fps is for models that are conditioned on it and for files.

    A video of several segments, each started from the picture at which the one before arrived, has this picture once:
    it ends one segment and begins the next.
    """

    frames: int
    height: int
    width: int
    fps: int = 8
    segments: int = 1

    @property
    def segment(self) -> VideoSize:
        """The size of one segment: what a model makes at once."""
        return replace(self, frames=(self.frames - 1) // self.segments + 1, segments=1)

    @property
    def seams(self) -> list[int]:
        """The frames that end one segment and begin the next."""
        return [number * (self.segment.frames - 1) for number in range(1, self.segments)]

    def frames_of(self, segment: int) -> range:
        """The frames of a segment, from the picture that it starts from to the one at which it arrives."""
        start = segment * (self.segment.frames - 1)
        return range(start, start + self.segment.frames)

    def located(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """In which segment each of these frames is made, and which one of its it is there."""
        each = max(1, self.segment.frames - 1)
        segments = (frames - 1).clamp(min=0) // each if self.segments > 1 else torch.zeros_like(frames)
        return segments, frames - segments * each


@dataclass(frozen=True)
class Prompt:
    """What one video is sampled from and judged by. Two prompts are the same if all of this is.

    Attributes:
        text: what the video is to show.
        negative: what guidance leads away from; empty: the unconditional branch is the empty text.
        label: the class that an action reward looks for ("playing piano").
        image: the picture that an image-to-video model starts from.
        last_image: the picture at which it is to arrive, for models that take one.
        text_is_name: the text is the picture's file name, for want of another; no part of what makes two the same.
    """

    text: str
    negative: str = ""
    label: str | None = None
    image: Path | None = None
    last_image: Path | None = None
    text_is_name: bool = field(default=False, compare=False, repr=False)

    @property
    def caption(self) -> str:
        """The text, where somebody has written one."""
        return "" if self.text_is_name else self.text

    def __str__(self) -> str:
        return self.text


def as_prompts(prompts: str | Prompt | Sequence[str | Prompt]) -> list[Prompt]:
    """Prompts, of which some may be plain texts; a single one is a list of one."""
    if isinstance(prompts, str | Prompt):
        prompts = [prompts]
    return [Prompt(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]


@dataclass(frozen=True)
class Audio:
    """Sound of B videos: samples `[B, C, N]` in [-1, 1], `rate` of them a second."""

    samples: Tensor
    rate: int


@dataclass(frozen=True)
class Clip:
    """What rewards and metrics see of B videos.

    Attributes:
        frames: pixels `[B, n, 3, H, W]` in [0, 1].
        times: when each is shown, `[B, n]` in seconds from the video's start: which frames these are, and how fast.
        audio: the whole video's sound, where the model makes any.
    """

    frames: Tensor
    times: Tensor
    audio: Audio | None = None

    @classmethod
    def whole(cls, frames: Tensor, fps: float, audio: Audio | None = None) -> Clip:
        """Every frame of B videos `[B, F, 3, H, W]`, `fps` of them a second."""
        times = torch.arange(frames.shape[1], dtype=torch.float32, device=frames.device) / fps
        return cls(frames, times.expand(len(frames), -1), audio)

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, rows: slice) -> Clip:
        """Some of the videos."""
        audio = self.audio and Audio(self.audio.samples[rows], self.audio.rate)
        return Clip(self.frames[rows], self.times[rows], audio)

    def at(self, places: Tensor) -> Clip:
        """Only the frames at these places `[B, m]` of those there are, each video its own."""
        rows = torch.arange(len(places), device=places.device)[:, None]
        return Clip(self.frames[rows, places], self.times[rows, places], self.audio)


# ---- latents ----


def map_latents(function: Callable[..., Tensor], first: Any, *others: Any) -> Any:
    """The function of each tensor of latents, and of its namesakes in the others; the result is of the same form."""
    if isinstance(first, Tensor):
        return function(first, *others)
    return {name: function(value, *(other[name] for other in others)) for name, value in first.items()}


def detached(latents: Any) -> Any:
    return map_latents(Tensor.detach, latents)


def flat(latents: Latents) -> Tensor:
    """All numbers of each video, `[B, D]`."""
    if isinstance(latents, Tensor):
        return latents.flatten(1)
    return torch.cat([value.flatten(1) for value in latents.values()], dim=1)


# ---- conditions ----


@dataclass(frozen=True)
class Known:
    """Latents that are given, not sampled: kept wherever `mask` is 1, or True, and 0 elsewhere.

    The mask has as many dimensions as the latents, and is broadcast to them; its first is B, or 1 for all videos.
    """

    latents: Latents
    mask: Latents

    def keep(self, latents: Latents) -> Latents:
        """The latents with what is known in its place; no gradient flows there."""
        return map_latents(
            lambda x, known, mask: torch.where(mask.bool(), known.detach().to(x), x), latents, self.latents, self.mask
        )

    def __getitem__(self, rows: slice | Sequence[int]) -> Known:
        """Of some of the videos."""
        mask = map_latents(lambda one: one if len(one) == 1 else one[rows], self.mask)
        return Known(map_latents(lambda x: x[rows], self.latents), mask)


@dataclass(frozen=True)
class Condition:
    """What the denoiser is conditioned on, encoded once: tensors `[B, ...]` by name, with their unconditional twins.

    `known` are latents that are kept: a walk puts them in place at every step, and before decoding.
    """

    cond: dict[str, Tensor]
    uncond: dict[str, Tensor]
    known: Known | None = None

    def __len__(self) -> int:
        return len(next(iter(self.cond.values())))

    def __getitem__(self, rows: slice | Sequence[int]) -> Condition:
        cond, uncond = ({name: value[rows] for name, value in branch.items()} for branch in (self.cond, self.uncond))
        return Condition(cond, uncond, self.known and self.known[rows])

    def both(self) -> dict[str, Tensor]:
        """Conditional rows first, then unconditional ones: `[2B, ...]`."""
        return {name: torch.cat([self.cond[name], self.uncond[name]]) for name in self.cond}
