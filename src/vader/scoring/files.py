"""Scores video files by rewards: paths and prompts in, one `FileScore` a file out.

A file that cannot be read, that a reward refuses, or whose score is not finite, is recorded with its error, and
the others are still scored. Frame rewards see a video a few frames at a time, so that a long one fits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from statistics import fmean, pstdev

import torch
from torch import Tensor, nn

from vader.errors import UserError
from vader.files.video import VIDEO_SUFFIXES, stream_frames
from vader.rewards.base import ClipReward, FrameReward, RewardMix

CHUNK = 16  # frames on the device at once


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
    """A folder that holds video files stands for these, by name; files and folders of frames stand for themselves."""
    return [video for path in paths for video in _videos_in(path) or [path]]


def _videos_in(path: Path) -> list[Path]:
    found = path.iterdir() if path.is_dir() else ()
    return sorted(p for p in found if p.suffix.lower() in VIDEO_SUFFIXES and not p.name.startswith("."))


def score_files(
    paths: Sequence[str | Path],
    mix: RewardMix,
    prompts: Sequence[str],
    max_frames: int | None = None,
    on_score: Callable[[FileScore], None] | None = None,
) -> list[FileScore]:
    """Scores each file against its prompt, without gradient, on the device where the rewards are.

    Args:
        paths: video files or folders of frames.
        mix: the rewards.
        prompts: one for each path.
        max_frames: score at most so many frames a video, spread evenly; None for all.
        on_score: called after each file, to show progress.

    Raises:
        UserError: paths and prompts differ in number, or a reward needs more of the prompts than there is. Errors of
            single files are in their `FileScore`.
    """
    if len(paths) != len(prompts):
        raise UserError(f"{len(paths)} videos need as many prompts, got {len(prompts)}: give one prompt for each")
    mix.check_prompts(prompts)
    scores = []
    for path, prompt in zip(paths, prompts, strict=True):
        scores.append(_score_file(Path(path), mix, prompt, max_frames))
        if on_score is not None:
            on_score(scores[-1])
    return scores


def _score_file(path: Path, mix: RewardMix, prompt: str, max_frames: int | None) -> FileScore:
    try:
        return score_video(path, stream_frames(path, max_frames), mix, prompt)
    except UserError as error:
        named = str(path) in str(error)
        return FileScore(path, error=str(error) if named else f"{path}: {error}")


@torch.inference_mode()
def score_video(path: Path, frames: Iterable[Tensor], mix: RewardMix, prompt: str) -> FileScore:
    """Scores frames `[3, H, W]` as they come; they are kept only if a clip reward needs them together."""
    device = _device(mix)
    by_frame = {name: reward for name, reward in mix.rewards.items() if isinstance(reward, FrameReward)}
    by_clip = {name: reward for name, reward in mix.rewards.items() if name not in by_frame}
    scores: dict[str, list[Tensor]] = {name: [] for name in by_frame}
    kept, count = [], 0
    for chunk in _chunks(frames):
        count += len(chunk)
        for name, reward in by_frame.items():
            scores[name].append(reward.score_frames(chunk.to(device), [prompt] * len(chunk)))
        if by_clip:
            kept.append(chunk)
    parts = {name: _over_frames(torch.cat(score)) for name, score in scores.items()}
    if by_clip:
        _check_count(by_clip, count)
        clip = torch.cat(kept)[None].to(device)
        parts |= {name: PartScore(reward(clip, [prompt]).item(), None) for name, reward in by_clip.items()}
    if wild := [name for name, part in parts.items() if not math.isfinite(part.mean)]:
        raise UserError(f"the score by reward {wild[0]!r} is not finite")
    total = sum(mix.weights[name] * part.mean for name, part in parts.items())
    return FileScore(path, count, total, {name: parts[name] for name in mix.rewards})


def over_files(scores: Sequence[FileScore]) -> dict[str, PartScore]:
    """Mean and spread over the files that have scores, of each reward and of the total; empty without any."""
    good = [score for score in scores if score.total is not None]
    values = {name: [score.parts[name].mean for score in good] for name in (good[0].parts if good else ())}
    values |= {"total": [score.total for score in good if score.total is not None]} if good else {}
    return {name: PartScore(fmean(found), pstdev(found)) for name, found in values.items()}


def _check_count(rewards: Mapping[str, nn.Module], count: int) -> None:
    """Raises `UserError` if a clip reward cannot take so many frames."""
    for name, reward in rewards.items():
        if isinstance(reward, ClipReward) and count < reward.min_frames:
            raise UserError(f"reward {name!r} needs at least {reward.min_frames} frames together, got {count}")
        if isinstance(reward, ClipReward) and count % reward.frame_multiple:
            usable = count - count % reward.frame_multiple
            raise UserError(
                f"reward {name!r} needs a multiple of {reward.frame_multiple} frames, got {count}: "
                f"score at most {usable} of them (vader score: --max-frames {usable})"
            )


def _over_frames(scores: Tensor) -> PartScore:
    return PartScore(scores.mean().item(), scores.std(correction=0).item())


def _chunks(frames: Iterable[Tensor]) -> Iterator[Tensor]:
    """Stacks frames into `[n, 3, H, W]`, n <= CHUNK."""
    waiting = iter(frames)
    while chunk := list(islice(waiting, CHUNK)):
        yield torch.stack(chunk)


def _device(mix: RewardMix) -> torch.device:
    """Where the rewards' weights are; the CPU if they have none."""
    return next((tensor.device for tensor in chain(mix.parameters(), mix.buffers())), torch.device("cpu"))
