"""Scores video files by rewards: paths and prompts in, one `FileScore` a file out.

A file that cannot be read, that a reward refuses, or whose score is not finite, is recorded with its error, and
the others are still scored. Framewise rewards see a video a few frames at a time, so that a long one fits.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from statistics import fmean, pstdev

import torch
from torch import Tensor

from vader.errors import UserError
from vader.files.video import FRAME_SUFFIXES, VIDEO_SUFFIXES, frame_rate, stream_frames
from vader.nouns import Clip, Prompt, VideoSize, as_prompts
from vader.rewards.base import FrameReward, Reward, RewardMix, as_mix
from vader.rewards.contract import scored_frames, scored_parts
from vader.rewards.needs import PerSecond

CHUNK = 16  # frames on the device at once
PROMPTS = "prompts.json"


@dataclass(frozen=True)
class PartScore:
    """One reward of one video; `std` is its spread over the video's frames, None for what sees them together."""

    mean: float
    std: float | None


@dataclass(frozen=True)
class FileScore:
    """One file: the weighted total and each reward by name, or why there is none."""

    path: Path
    frames: int = 0  # how many were scored
    total: float | None = None
    parts: dict[str, PartScore] = field(default_factory=dict)
    error: str | None = None


def find_videos(paths: Sequence[Path]) -> list[Path]:
    """A folder stands for the videos in it, by name; files and folders of frames stand for themselves.

    A folder's videos are the video files in it or, where there is none and no frame either, those of its folders.

    Raises:
        UserError: none of the paths is there.
    """
    if paths and not any(path.exists() for path in paths):
        raise UserError(f"no video at {paths[0]}: give video files, folders of them, or folders of frames")
    return [video for path in paths for video in _videos_in(path) or [path]]


def _videos_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    shown = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    if files := [path for path in shown if path.suffix.lower() in VIDEO_SUFFIXES]:
        return files
    if any(path.suffix.lower() in FRAME_SUFFIXES for path in shown):
        return [folder]
    return [video for below in shown if not below.is_symlink() for video in _videos_in(below)]


def prompts_beside(videos: Sequence[Path]) -> list[Prompt]:
    """The prompt of each video by the `prompts.json` beside it, as runs leave one; empty where there is none.

    Raises:
        UserError: such a file is damaged.
    """
    listed = {folder: _listed_prompts(folder / PROMPTS) for folder in {video.parent for video in videos}}
    return as_prompts([listed[video.parent].get(video.name, "") for video in videos])


def _listed_prompts(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    try:
        return {str(item["file"]): str(item["prompt"]) for item in json.loads(path.read_text(encoding="utf-8"))}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no list of files and their prompts: remove it, or give --prompts") from error


def score_files(
    paths: str | Path | Sequence[str | Path],
    reward: Reward,
    prompts: str | Prompt | Sequence[str | Prompt],
    max_frames: int | None = None,
    on_score: Callable[[FileScore], None] | None = None,
    chunk: int = CHUNK,
) -> list[FileScore]:
    """Scores each file against its prompt, without gradient, on the device where the rewards are.

    Args:
        paths: video files or folders of frames, or a single one.
        reward: one, or a mix of several.
        prompts: one for each path.
        max_frames: score at most so many frames a video, spread evenly; None for all.
        on_score: called after each file, to show progress.
        chunk: images that a framewise reward is shown at once.

    Raises:
        UserError: paths and prompts differ in number, or a reward needs more of the prompts than there is, or more
            frames than `max_frames`. Errors of single files are in their `FileScore`.
    """
    videos, told, mix = [paths] if isinstance(paths, str | Path) else paths, as_prompts(prompts), as_mix(reward)
    if len(videos) != len(told):
        raise UserError(f"{len(videos)} videos need as many prompts, got {len(told)}: give one prompt for each")
    mix.check_prompts(told)
    if max_frames is not None:
        _check_most(mix, max_frames)
    scores = []
    for path, prompt in zip(videos, told, strict=True):
        scores.append(_score_file(Path(path), mix, prompt, max_frames, chunk))
        if on_score is not None:
            on_score(scores[-1])
    return scores


def _score_file(path: Path, mix: RewardMix, prompt: Prompt, max_frames: int | None, chunk: int) -> FileScore:
    try:
        frames = stream_frames(path, max_frames)
        return score_video(path, frames, mix, prompt, frame_rate(path, max_frames), chunk)
    except UserError as error:
        named = str(path) in str(error)
        return FileScore(path, error=str(error) if named else f"{path}: {error}")


@torch.inference_mode()
def score_video(
    path: Path, frames: Iterable[Tensor], mix: RewardMix, prompt: Prompt, fps: float | None = None, chunk: int = CHUNK
) -> FileScore:
    """Scores frames `[3, H, W]` as they come; they are kept only if a reward needs them together.

    Args:
        fps: frames a second; None where the file does not tell, as a folder of frames.
    """
    device = _device(mix)
    single = {name: reward for name, reward in mix.items() if isinstance(reward, FrameReward)}
    whole = {name: reward for name, reward in mix.items() if name not in single}
    scores: dict[str, list[Tensor]] = {name: [] for name in single}
    kept, count = [], 0
    for some in _chunks(frames, chunk):
        count += len(some)
        for name, reward in single.items():
            scores[name].append(scored_frames(name, reward, some.to(device), [prompt] * len(some)))
        if whole:
            kept.append(some)
    parts = {name: _over_frames(torch.cat(score)) for name, score in scores.items()}
    if whole:
        parts |= _score_whole(whole, mix, torch.cat(kept), prompt, fps)
    if wild := [name for name, part in parts.items() if not math.isfinite(part.mean)]:
        raise UserError(f"the score by reward {wild[0]!r} is not finite")
    total = sum(weight * parts[name].mean for name, weight in mix.weights.items())
    return FileScore(path, count, total, {name: parts[name] for name in mix.part_names})


def _score_whole(
    rewards: Mapping[str, Reward], mix: RewardMix, frames: Tensor, prompt: Prompt, fps: float | None
) -> dict[str, PartScore]:
    """Rewards that need a video's frames `[F, 3, H, W]` together, each of those that it needs."""
    found: dict[str, PartScore] = {}
    count, _, height, width = frames.shape
    size = VideoSize(count, height, width, max(1, round(fps or 8)))
    for name, reward in rewards.items():
        if fps is None and (isinstance(mix.shown[name], PerSecond) or isinstance(reward.needs, PerSecond)):
            raise UserError(
                f"reward {name!r} needs frames by the second, and nothing tells how fast these are: give a video file"
            )
        chosen = mix.shown[name].choose(size)
        _check_count(name, reward, len(chosen))
        clip = Clip.whole(frames[None], fps or 8.0).at(chosen[None])
        device = _device(reward)
        shown = Clip(clip.frames.to(device), clip.times.to(device))
        parts = scored_parts(name, reward, shown, [prompt])
        found |= {part: PartScore(score.item(), None) for part, score in parts.items()}
    return found


def over_files(scores: Sequence[FileScore]) -> dict[str, PartScore]:
    """Mean and spread over the files that have scores, of each reward and of the total; empty without any."""
    good = [score for score in scores if score.total is not None]
    values = {name: [score.parts[name].mean for score in good] for name in (good[0].parts if good else ())}
    values |= {"total": [score.total for score in good if score.total is not None]} if good else {}
    return {name: PartScore(fmean(found), pstdev(found)) for name, found in values.items()}


def _check_most(mix: RewardMix, most: int) -> None:
    """Raises `UserError` if so many frames are too few for a reward, of however long a video."""
    for name, reward in mix.items():
        if len(mix.shown[name].choose(VideoSize(most, 1, 1))) < reward.needs.least:
            raise UserError(
                f"reward {name!r} needs at least {reward.needs.least} frames together, and of {most} "
                "(vader score: --max-frames) it sees too few: score more of them"
            )


def _check_count(name: str, reward: Reward, count: int) -> None:
    """Raises `UserError` if a reward cannot take so many frames."""
    if count < reward.needs.least:
        raise UserError(f"reward {name!r} needs at least {reward.needs.least} frames together, got {count}")
    if count % reward.needs.multiple:
        usable = count - count % reward.needs.multiple
        raise UserError(
            f"reward {name!r} needs a multiple of {reward.needs.multiple} frames, got {count}: "
            f"score at most {usable} of them (vader score: --max-frames {usable})"
        )


def _over_frames(scores: Tensor) -> PartScore:
    return PartScore(scores.mean().item(), scores.std(correction=0).item())


def _chunks(frames: Iterable[Tensor], chunk: int) -> Iterator[Tensor]:
    """Stacks frames into `[n, 3, H, W]`, n <= chunk."""
    waiting = iter(frames)
    while some := list(islice(waiting, chunk)):
        yield torch.stack(some)


def _device(mix: Reward) -> torch.device:
    """Where the rewards' weights are; the CPU if they have none."""
    return next((tensor.device for tensor in chain(mix.parameters(), mix.buffers())), torch.device("cpu"))
