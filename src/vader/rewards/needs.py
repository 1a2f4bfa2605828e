"""What a reward needs to see of a video: which frames, how many together, how many a second, whether sound.

In goes the size of a video (and, in training, a random generator), out come the frames to decode: ascending indices.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from vader.errors import UserError
from vader.nouns import VideoSize

Sees = int | Literal["all", "first_middle_last", "every_second"] | tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Needs(ABC):
    """Asked for `least` frames or more, a multiple of `multiple`, and the video's sound if `audio`."""

    least: int = 1
    multiple: int = 1
    audio: bool = False

    @abstractmethod
    def choose(self, size: VideoSize, generator: torch.Generator | None = None) -> Tensor:
        """Ascending indices `[n]` of the frames to see; with a generator, in training, perhaps a random choice."""

    def check(self, name: str, size: VideoSize) -> None:
        """Raises `UserError` if the frames of a video of this size are too few for the reward `name`, or uneven."""
        for seen in {len(self.choose(size, torch.Generator())), len(self.choose(size))}:
            if seen < self.least:
                raise UserError(
                    f"reward {name!r} needs at least {self.least} frames together, got {seen}: "
                    "raise video.frames, or let it see more by its key sees"
                )
            if seen % self.multiple:
                raise UserError(
                    f"reward {name!r} needs a multiple of {self.multiple} frames, got {seen}: {self._even(size, seen)}"
                )

    def _even(self, size: VideoSize, seen: int) -> str:
        """What to do where frames are no multiple: segments share pictures, so their frames do not just add up."""
        less = seen - seen % self.multiple
        if size.segments == 1:
            return f"set video.frames or the reward's key sees to one, as {less}"
        return (
            f"{size.segments} segments of {size.segment.frames} frames are {size.frames} together, so choose others "
            f"(video.segments, video.frames), or let it see {less} by its key sees"
        )


@dataclass(frozen=True)
class Frames(Needs):
    """`count` random frames in training, drawn without replacement, and every frame in evaluation.

    For a mean over frames the expected gradient is then that of all frames (VADER, arXiv 2407.08737, section 4.2).
    """

    count: int

    def choose(self, size: VideoSize, generator: torch.Generator | None = None) -> Tensor:
        if generator is None:
            return torch.arange(size.frames)
        return torch.randperm(size.frames, generator=generator)[: self.count].sort().values


@dataclass(frozen=True)
class AllFrames(Needs):
    """The whole video."""

    def choose(self, size: VideoSize, generator: torch.Generator | None = None) -> Tensor:
        return torch.arange(size.frames)


@dataclass(frozen=True)
class FixedFrames(Needs):
    """The same frames of every video, in training and in evaluation: by rule, or named one by one."""

    which: Literal["first_middle_last", "every_second"] | tuple[int, ...]

    def choose(self, size: VideoSize, generator: torch.Generator | None = None) -> Tensor:
        if self.which == "first_middle_last":
            return torch.tensor(sorted({0, size.frames // 2, size.frames - 1}))
        if self.which == "every_second":
            return torch.arange(0, size.frames, 2)
        return torch.tensor(sorted(self.which))


@dataclass(frozen=True)
class Evenly(Needs):
    """`count` frames, evenly spread from the first frame to the last, however long the video is."""

    count: int

    def choose(self, size: VideoSize, generator: torch.Generator | None = None) -> Tensor:
        return torch.linspace(0, size.frames - 1, min(self.count, size.frames)).round().long()


@dataclass(frozen=True)
class PerSecond(Needs):
    """`fps` frames of every second, evenly spread from the first frame to the last; at least `least` in all."""

    fps: float

    def choose(self, size: VideoSize, generator: torch.Generator | None = None) -> Tensor:
        wanted = max(self.least, self.multiple * round(size.frames / size.fps * self.fps / self.multiple))
        count = min(wanted, size.frames - size.frames % self.multiple)
        return torch.linspace(0, size.frames - 1, count).round().long()


def check_rate(name: str, times: Tensor, needs: PerSecond) -> None:
    """Raises `UserError` if frames shown at `times` `[B, n]` are not the reward's `needs.fps` a second.

    By its rule n frames stand for (n - multiple / 2) / fps to (n + multiple / 2) / fps seconds, a video's last frame
    included; short videos have `least` frames all the same.
    """
    if times.is_meta:  # a plan's, which have no values
        return
    count, slack = times.shape[1], needs.multiple / 2
    span = (times[:, -1] - times[:, 0]).tolist()
    steps = times.diff(dim=1)
    if not (bool(torch.isfinite(times).all()) and bool((steps > 0).all())):
        raise UserError(f"reward {name!r} needs to know when each frame is shown: give the videos' frames a second")
    least = (count - 1) / count * (count - slack) / needs.fps if count > max(needs.least, needs.multiple) else 0.0
    most = (count + slack) / needs.fps
    if wrong := [length for length in span if not 0.99 * least <= length <= 1.01 * most]:
        raise UserError(
            f"reward {name!r} sees {needs.fps:g} frames a second, got {count} frames of {wrong[0]:.3g} seconds: "
            "leave out the key sees, and set video.fps to what the videos have"
        )


def seeing(needs: Needs, sees: Sees | Sequence[int] | None) -> Needs:
    """A reward's needs where a recipe says what it sees; how many it must see stays. None: the reward's own."""
    if sees is None:
        return needs
    terms: dict[str, Any] = {"least": needs.least, "multiple": needs.multiple, "audio": needs.audio}
    if isinstance(sees, int):
        return Frames(sees, **terms)
    if sees == "all":
        return AllFrames(**terms)
    return FixedFrames(sees if isinstance(sees, str) else tuple(sees), **terms)
