"""Which frames each reward of a mix is shown, and in which pieces they are decoded.

In go needs and the size of the videos; out come indices `[B, n]`, and pieces of them that fit the memory a recipe
grants: `chunk` images at once, but no window that the model decodes as a whole is split over two pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from vader import randomness
from vader.nouns import VideoSize
from vader.rewards.base import Reward, RewardMix
from vader.rewards.needs import Needs
from vader.scoring.shaped import FrameNoise


@dataclass(frozen=True)
class Group:
    """Rewards that are shown the same frames.

    Attributes:
        frames: indices `[B, n]`, each video its own; `times` are theirs in seconds.
        framewise: rewards that are means over frames, by name.
        whole: those that need the frames together.
        noise: of its pixels, if one of the rewards is to be robust against some.
    """

    frames: Tensor
    times: Tensor
    framewise: dict[str, Reward]
    whole: dict[str, Reward]
    noise: FrameNoise | None = None

    def only(self, name: str) -> Group:
        """The same frames for one of the rewards."""
        framewise, whole = ({one: r for one, r in some.items() if one == name} for some in (self.framewise, self.whole))
        return replace(self, framewise=framewise, whole=whole)

    def noise_on(self, pixels: Tensor, rows: slice = slice(None), places: slice = slice(None)) -> Tensor | None:
        """The noise of these pixels, of a piece or of all, if there is any."""
        return None if self.noise is None else self.noise.like(pixels, rows, places)

    @property
    def heard(self) -> bool:
        """Whether one of the rewards listens to the video's sound."""
        return any(reward.needs.audio for reward in self.whole.values())


def training_groups(
    mix: RewardMix, size: VideoSize, seed: int, step: int, indices: Sequence[int], device: torch.device | str = "cpu"
) -> list[Group]:
    """What is shown of the videos `indices` in a training step.

    Random frames are each video's own, and the same for all rewards as far as they see as many, so that rewards of
    single frames share what is decoded.
    """

    def chosen(needs: Needs) -> Tensor:
        draws = [randomness.generator(seed, "frames", step, index) for index in indices]
        return torch.stack([needs.choose(size, draw) for draw in draws])

    groups = _grouped(mix, chosen, size, device)
    robust = {name for name, shaping in mix.shaping.items() if shaping.robust}
    return [
        replace(group, noise=FrameNoise(seed, step, indices, group.frames))
        if robust & {*group.framewise, *group.whole} else group
        for group in groups
    ]  # fmt: skip


def evaluation_groups(mix: RewardMix, size: VideoSize, count: int, device: torch.device | str = "cpu") -> list[Group]:
    """What is shown of `count` videos wherever nothing is trained: nothing is random."""
    return _grouped(mix, lambda needs: needs.choose(size).expand(count, -1), size, device)


def _grouped(
    mix: RewardMix, chosen: Callable[[Needs], Tensor], size: VideoSize, device: torch.device | str
) -> list[Group]:
    groups: list[Group] = []
    for name, reward in mix.items():
        if name in mix.latent:
            continue
        frames = chosen(mix.shown[name]).to(device)
        same = next((group for group in groups if torch.equal(group.frames, frames)), None)
        if same is None:
            groups.append(same := Group(frames, frames / size.fps, {}, {}))
        (same.framewise if reward.framewise else same.whole)[name] = reward
    return groups


class Piece(NamedTuple):
    """Some of the chosen frames of some of the videos."""

    rows: slice
    places: slice


def blocks(videos: int, frames: int, chunk: int) -> Iterator[Piece]:
    """All frames of all videos, at most `chunk` images at once: the same frames of every video, where that fits."""
    places, rows = max(1, chunk // videos), min(chunk, videos)
    for place in range(0, frames, places):
        for row in range(0, videos, rows):
            yield Piece(slice(row, min(row + rows, videos)), slice(place, min(place + places, frames)))


def pieces(frames: Tensor, windows: Sequence[range], chunk: int) -> list[Piece]:
    """Chosen frames `[B, n]` in pieces to decode.

    Where the model decodes frame by frame, a piece holds at most `chunk` images. Else it is the chosen frames of one
    video in one window, which has to be decoded whole anyway.
    """
    if max(map(len, windows)) == 1:
        return list(blocks(frames.shape[0], frames.shape[1], chunk))
    window_of = {frame: number for number, window in enumerate(windows) for frame in window}
    return [
        Piece(slice(row, row + 1), slice(places[0], places[-1] + 1))
        for row, video in enumerate(frames.tolist())
        for places in _runs([window_of[frame] for frame in video])
    ]


def _runs(keys: Sequence[int]) -> Iterator[list[int]]:
    """The places of equal neighbours."""
    for _, run in groupby(range(len(keys)), key=lambda place: keys[place]):
        yield list(run)
