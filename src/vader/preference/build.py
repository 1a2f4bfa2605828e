"""Makes a study: every pair of systems on every scene, blind, in blocks that have an attention check each.

In go systems and scenes, out comes the study's folder. Every video is decoded and written anew, so that no file tells
by its name, its comments or its coding where it comes from.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from vader.files.video import frame_rate, read_video, write_mp4
from vader.preference.page import write_page
from vader.preference.study import VIDEOS, Item, Study, Video, write_study
from vader.preference.systems import Advance, Scene, System
from vader.randomness import generator

BLOCK = 8  # pairs to an attention check, at most
FEWEST_CHECKS = 3
NOISE, GRAIN = 0.8, 32  # share of noise in a destroyed video, and how many squares of it on the longer side


@dataclass(frozen=True)
class Made:
    """The videos of a study as they are written: their ids, by system and scene."""

    ids: dict[tuple[str, int], str]
    videos: dict[str, Video]


def build_study(
    systems: Sequence[System], scenes: Sequence[Scene], folder: Path, advance: Advance = lambda number: None
) -> Study:
    """Writes the videos, the key and the page into an empty folder; `advance` as `System.videos` has it.

    Raises:
        UserError: a model or video cannot be loaded, or the folder not be written.
    """
    chance = random.SystemRandom()  # no seed: who knows the program must not know the key
    made = _write_videos(systems, scenes, folder / VIDEOS, chance, advance)
    pairs = _pairs(systems, scenes, made, chance)
    blocks = _blocks(pairs, chance)
    checked = chance.sample(sorted(made.ids), min(len(blocks), len(made.ids)))
    checks = [_check(made, key, scenes[key[1]], folder / VIDEOS, chance) for key in checked]
    mixed = tuple(
        _shuffled([*block, *some], chance) for block, some in zip(blocks, _dealt(checks, blocks), strict=True)
    )
    study = Study(id=_new_id(chance), systems=tuple(s.name for s in systems), videos=made.videos, blocks=mixed)
    write_study(study, folder)
    write_page(study, folder)
    return study


def _dealt(checks: Sequence[Item], blocks: Sequence[object]) -> list[list[Item]]:
    """One check a block, as far as they go."""
    return [list(checks[i : i + 1]) for i in range(len(blocks))]


def _new_id(chance: random.Random) -> str:
    return f"{chance.getrandbits(48):012x}"


def _write_videos(
    systems: Sequence[System], scenes: Sequence[Scene], folder: Path, chance: random.Random, advance: Advance
) -> Made:
    made = Made({}, {})
    for system in systems:
        for place, (frames, fps) in enumerate(system.videos(scenes, advance)):
            video = _new_id(chance)
            write_mp4(folder / f"{video}.mp4", frames, fps)
            made.ids[system.name, place] = video
            made.videos[video] = Video(system=system.name, source=scenes[place].source)
    return made


def _pairs(systems: Sequence[System], scenes: Sequence[Scene], made: Made, chance: random.Random) -> list[Item]:
    """Each two systems on each scene; which of two videos comes first tells nothing."""
    found = []
    for one, other in combinations(systems, 2):
        for place, scene in enumerate(scenes):
            ids = [made.ids[one.name, place], made.ids[other.name, place]]
            found.append(Item(id=_new_id(chance), prompt=scene.prompt.caption, videos=_shuffled(ids, chance)))
    return found


def _blocks(pairs: Sequence[Item], chance: random.Random) -> list[list[Item]]:
    """The pairs in blocks of about the same size, at random."""
    count = min(len(pairs), max(FEWEST_CHECKS, math.ceil(len(pairs) / BLOCK)))
    mixed = _shuffled(pairs, chance)
    return [list(mixed[i::count]) for i in range(count)]


def _shuffled(items: Sequence, chance: random.Random) -> tuple:
    return tuple(chance.sample(items, len(items)))


# ---- attention checks ----


def _check(made: Made, key: tuple[str, int], scene: Scene, folder: Path, chance: random.Random) -> Item:
    """A pair of a video of the study and the same video destroyed, which nobody who looks takes for the better one."""
    video, broken = made.ids[key], _new_id(chance)
    path = folder / f"{video}.mp4"
    write_mp4(folder / f"{broken}.mp4", destroyed(read_video(path), chance.getrandbits(31)), frame_rate(path) or 8)
    made.videos[broken] = Video(system=None, source=f"{scene.source}, destroyed")
    return Item(id=_new_id(chance), prompt=scene.prompt.caption, videos=_shuffled([video, broken], chance), right=video)


def destroyed(frames: Tensor, seed: int) -> Tensor:
    """The first frame of `[F, 3, H, W]` under coarse coloured noise, frozen for the video's length."""
    height, width = frames.shape[-2:]
    grain = max(1, max(height, width) // GRAIN)
    size = (math.ceil(height / grain), math.ceil(width / grain))
    noise = torch.rand(1, 3, *size, generator=generator(seed, "attention check"))
    coarse = F.interpolate(noise, scale_factor=grain, mode="nearest")[..., :height, :width]
    return ((1 - NOISE) * frames[:1] + NOISE * coarse).expand_as(frames)
