"""Scores held-out prompts under fixed noise, so that evaluations of one run differ by the adapter alone.

In go a run's setup, prompts and metrics; out come one record a video, the same on every process, and the figures of the
whole set. All processes make the same number of network passes. Pixels go to the main process alone, and only where
they are shown or a metric measures the set: elsewhere a video is forgotten once it is scored.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from vader.engine.collectives import even_shares
from vader.engine.engine import Setup
from vader.evaluation.guards.base import Guards
from vader.evaluation.metrics.base import HeldOutMetrics
from vader.files.atomic import atomic_folder
from vader.files.video import write_mp4
from vader.nouns import Clip, Prompt, VideoSize
from vader.runs.log import write_lines

UNGUARDED = Guards({})


@dataclass(frozen=True)
class VideoScore:
    """One held-out video: its reward and the mix's parts, the figures of metrics and of guards, and, where kept, the
    video itself."""

    index: int
    prompt: Prompt
    reward: float
    parts: dict[str, float]
    figures: dict[str, float]
    clip: Clip | None  # of one video, on the CPU
    curves: dict[str, list[float]] = field(default_factory=dict)  # over its frames
    guards: dict[str, Any] = field(default_factory=dict)  # a number each, or a list of them

    def record(self) -> dict[str, Any]:
        """The video as a line of a run's `evaluations/step-*.jsonl`."""
        beside = {"negative": self.prompt.negative, "label": self.prompt.label}
        return {
            "index": self.index,
            "prompt": str(self.prompt),
            **{name: text for name, text in beside.items() if text},
            "reward": self.reward,
            "parts": self.parts,
            "figures": self.figures,
            **({"curves": self.curves} if self.curves else {}),
            **({"guards": self.guards} if self.guards else {}),
        }


@dataclass(frozen=True)
class HeldOut:
    """An evaluation: its videos by index, and the figures of all together."""

    videos: list[VideoScore]
    over_set: dict[str, float]

    def summary(self) -> dict[str, Any]:
        """Mean reward with its spread over videos, mean parts, figures and curves where there are any."""
        rewards = [video.reward for video in self.videos]
        spread = torch.tensor(rewards, dtype=torch.float64).std().item() if len(rewards) > 1 else 0.0
        figures = mean_of([video.figures for video in self.videos]) | self.over_set
        curves = mean_curves([video.curves for video in self.videos])
        return {
            "reward": fmean(rewards),
            "std": spread,
            "stderr": spread / math.sqrt(len(rewards)),
            "videos": len(rewards),
            "parts": mean_of([video.parts for video in self.videos]),
            **({"figures": figures} if figures else {}),
            **({"curves": curves} if curves else {}),
        }


def mean_of(records: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each number by name; all records have the same names."""
    return {name: fmean(record[name] for record in records) for name in records[0]}


def mean_curves(records: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, list[float]]:
    """The mean of each curve by name, point by point; all records have the same names."""
    return {
        name: [fmean(points) for points in zip(*(one[name] for one in records), strict=True)] for name in records[0]
    }


# ---- measuring ----


def evaluate(
    setup: Setup, prompts: Sequence[Prompt], count: int, *, seed: int, metrics: HeldOutMetrics, shown: int, batch: int,
    guards: Guards = UNGUARDED, on_scored: Callable[[int], object] = lambda done: None,
) -> HeldOut:  # fmt: skip
    """Samples and scores `count` videos of the prompts, round and round, shared by all processes.

    Args:
        seed: of the noise; a video's own depends on it and on the video's index alone.
        shown: how many videos the main process keeps, from the first; all, if a metric measures the set.
        batch: how many are sampled at once.
        guards: what measures each video beside, for verdicts on what has been gained.
        on_scored: hears how many are done by now, batch by batch.
    """
    videos = score_videos(
        setup, prompts, count, seed=seed, metrics=metrics, shown=shown, batch=batch, guards=guards, on_scored=on_scored
    )
    return HeldOut(videos, set_figures(setup.accelerator, metrics, videos))


@torch.no_grad()
def score_videos(
    setup: Setup, prompts: Sequence[Prompt], count: int, *, seed: int, metrics: HeldOutMetrics, shown: int, batch: int,
    guards: Guards = UNGUARDED, on_scored: Callable[[int], object] = lambda done: None,
) -> list[VideoScore]:  # fmt: skip
    """The videos of `evaluate` by index, without what measures them together."""
    accelerator, kept = setup.accelerator, count if metrics.of_sets else shown
    found: dict[int, VideoScore] = {}
    for indices in even_shares(count, accelerator.process_index, accelerator.num_processes, batch):
        texts = [prompts[index % len(prompts)] for index in indices]
        scored = _score(setup, texts, indices, seed, metrics, guards, kept)
        found |= {video.index: video for video in _gathered(accelerator, scored)}  # what came twice is the same
        on_scored(len(found))
    return [found[index] for index in sorted(found)]


@torch.no_grad()
def set_figures(accelerator: Accelerator, metrics: HeldOutMetrics, videos: Sequence[VideoScore]) -> dict[str, float]:
    """Figures of all videos together: measured by the main process, which has the pixels, and told to all."""
    if not metrics.of_sets:
        return {}
    found: list[dict[str, float]] = [{}]
    if accelerator.is_main_process:
        clips = [video.clip for video in videos if video.clip is not None]
        found = [metrics.over_set(clips, [video.prompt for video in videos])]
    return broadcast_object_list(found)[0] if accelerator.num_processes > 1 else found[0]


def _score(
    setup: Setup, prompts: Sequence[Prompt], indices: Sequence[int], seed: int, metrics: HeldOutMetrics,
    guards: Guards, kept: int,
) -> list[VideoScore]:  # fmt: skip
    """One batch on this process; the clips of the first `kept` videos stay."""
    latents = setup.chain(prompts, seed, "sample", 0, indices).final()
    clip = setup.scorer.decode(latents, metrics.audio or guards.audio)
    scored, figures = setup.scorer.score_clip(clip, prompts, latents), metrics.per_video(clip, prompts)
    curves, guarded = metrics.over_frames(clip, prompts), guards.per_video(clip, prompts)
    return [
        VideoScore(
            index=index,
            prompt=prompts[i],
            reward=scored.total[i].item(),
            parts=_of_video(scored.parts, i),
            figures=_of_video(figures, i),
            clip=_alone(clip, i) if index < kept else None,
            curves={name: values[i].tolist() for name, values in curves.items()},
            guards={name: values[i].tolist() for name, values in guarded.items()},
        )
        for i, index in enumerate(indices)
    ]


def _of_video(found: Mapping[str, Tensor], i: int) -> dict[str, float]:
    return {name: values[i].item() for name, values in found.items()}


def _alone(clip: Clip, i: int) -> Clip:
    """One video with memory of its own, so that it does not keep its batch."""
    one = clip[i : i + 1]
    return replace(one, frames=one.frames.clone())


def _gathered(accelerator: Accelerator, scored: list[VideoScore]) -> list[VideoScore]:
    """A batch of every process; clips reach the main process alone, batch by batch, so that no other holds more."""
    if accelerator.num_processes == 1:
        return scored
    everyone = gather_object([replace(video, clip=None) for video in scored])
    clips: list[Any] = [None] * accelerator.num_processes
    own = {video.index: video.clip for video in scored if video.clip is not None}
    torch.distributed.gather_object(own, clips if accelerator.is_main_process else None)
    if not accelerator.is_main_process:
        return everyone
    by_index = {index: clip for some in clips for index, clip in some.items()}
    return [replace(video, clip=by_index.get(video.index)) for video in everyone]


# ---- what is left of it on disk ----


def write_scores(path: Path, videos: Iterable[VideoScore]) -> None:
    """Writes one JSON line a video, whole or not at all."""
    write_lines(path, (video.record() for video in videos))


def sample_name(video: VideoScore) -> str:
    """The file of a video in the folder of samples."""
    return f"{video.index:03d}.mp4"


def write_samples(folder: Path, videos: Iterable[VideoScore], size: VideoSize) -> None:
    """Writes videos and the list of their prompts to `folder`, whole or not at all."""
    listed = []
    with atomic_folder(folder) as temporary:
        for video in videos:
            if video.clip is not None:
                name = sample_name(video)
                write_mp4(temporary / name, video.clip.frames[0], size.fps, seams=size.seams)
                listed.append({"file": name, "prompt": str(video.prompt), "reward": video.reward})
        (temporary / "prompts.json").write_text(json.dumps(listed, indent=1), encoding="utf-8")
