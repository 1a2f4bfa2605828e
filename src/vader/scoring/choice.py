"""Which frames each reward of a mix is shown, and in which pieces they are decoded.

In go needs and the size of the videos; out come indices `[B, n]`, and pieces of them that fit the memory a recipe
grants: `chunk` images at once, but no window that the model decodes as a whole is split over two pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from vader import randomness
from vader.nouns import VideoSize
from vader.rewards.base import Reward, RewardMix


@dataclass(frozen=True)
class Group:
    """Rewards that are shown the same frames `[B, n]`, each video its own."""

    frames: Tensor
    rewards: dict[str, Reward]

    @property
    def framewise(self) -> dict[str, Reward]:
        return {name: reward for name, reward in self.rewards.items() if reward.framewise}

    @property
    def whole(self) -> dict[str, Reward]:
        """Those that need the frames together."""
        return {name: reward for name, reward in self.rewards.items() if not reward.framewise}


def training_groups(mix: RewardMix, size: VideoSize, seed: int, step: int, indices: Sequence[int]) -> list[Group]:
    """What is shown of the videos `indices` in a training step.

    Random frames are each video's own, and the same for all rewards as far as they see as many, so that rewards of
    single frames share what is decoded.
    """

    def chosen(name: str) -> Tensor:
        draws = [randomness.generator(seed, "frames", step, index) for index in indices]
        return torch.stack([mix.shown[name].choose(size, draw) for draw in draws])

    return _grouped(mix, chosen)


def evaluation_groups(mix: RewardMix, size: VideoSize, count: int) -> list[Group]:
    """What is shown of `count` videos wherever nothing is trained: nothing is random."""
    return _grouped(mix, lambda name: mix.shown[name].choose(size).expand(count, -1))


def _grouped(mix: RewardMix, chosen: Callable[[str], Tensor]) -> list[Group]:
    groups: list[Group] = []
    for name, reward in mix.items():
        frames = chosen(name)
        same = next((group for group in groups if torch.equal(group.frames, frames)), None)
        if same is None:
            groups.append(same := Group(frames, {}))
        same.rewards[name] = reward
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
