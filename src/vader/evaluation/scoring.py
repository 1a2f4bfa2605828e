"""Scores video files by rewards: paths and prompts in, one `FileScore` a file out.

A file that cannot be read, or that a reward refuses, is recorded with its error, and the others are
still scored. Frame rewards see a video a few frames at a time, so that a long one fits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

import torch
from torch import Tensor

from vader.errors import UserError
from vader.evaluation.video_io import stream_frames
from vader.rewards.base import FrameReward, RewardMix

CHUNK = 16  # frames on the device at once


@dataclass(frozen=True)
class PartScore:
    """One reward of one video; `std` is its spread over the video's frames, None for a clip reward."""

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
        UserError: paths and prompts differ in number. Errors of single files are in their `FileScore`.
    """
    if len(paths) != len(prompts):
        raise UserError(f"{len(paths)} videos need as many prompts, got {len(prompts)}: give one prompt for each")
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
        return FileScore(path, error=str(error))


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
        clip = torch.cat(kept)[None].to(device)
        parts |= {name: PartScore(reward(clip, [prompt]).item(), None) for name, reward in by_clip.items()}
    total = sum(mix.weights[name] * part.mean for name, part in parts.items())
    return FileScore(path, count, total, {name: parts[name] for name in mix.rewards})


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
