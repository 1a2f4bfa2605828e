"""Scores held-out prompts under fixed noise, so that evaluations of one run differ by the adapter alone.

In go a run's setup and the prompts, out come one record a video, the same on every process, and the summary
that the metrics file holds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from vader.algorithms.base import Setup
from vader.files.atomic import atomic_folder
from vader.files.video import write_mp4
from vader.rewards.base import RewardMix
from vader.sampling.walk import sample_videos
from vader.tinyworld.judge import judge_prompts


@dataclass
class VideoScore:
    """One held-out video: its rewards, its monitors, the judge's findings, and its pixels `[F, 3, H, W]` if shown."""

    index: int
    prompt: str
    reward: float
    parts: dict[str, float]
    monitors: dict[str, float]
    judge: dict[str, float]
    pixels: Tensor | None


@torch.no_grad()
def evaluate(setup: Setup, prompts: Sequence[str], count: int, monitors: RewardMix) -> list[VideoScore]:
    """Samples and scores `count` videos of the prompts, round and round, shared by all processes.

    Monitors are rewards that nothing is trained on: a monitor that falls while the reward rises tells of hacking.
    """
    accelerator, batch = setup.accelerator, setup.recipe.evaluation.batch
    mine = list(range(count))[accelerator.process_index :: accelerator.num_processes]
    batches = [mine[i : i + batch] for i in range(0, len(mine), batch)]
    scores = [score for indices in batches for score in _score(setup, prompts, indices, monitors)]
    gathered = gather_object(scores) if accelerator.num_processes > 1 else scores
    return sorted(gathered, key=lambda score: score.index)


def _score(setup: Setup, prompts: Sequence[str], indices: list[int], monitors: RewardMix) -> list[VideoScore]:
    texts = [prompts[index % len(prompts)] for index in indices]
    recipe = setup.recipe
    videos = sample_videos(
        setup.model,
        texts,
        setup.size,
        recipe.sampling.steps,
        setup.guidance,
        recipe.train.seed,
        batch=len(texts),
        indices=indices,
    )
    pixels = videos.to(setup.model.device)
    parts, monitored = setup.reward.parts(pixels, texts), monitors.parts(pixels, texts)
    total = setup.reward.total(parts).tolist()
    judged = judge_prompts(videos, texts) if recipe.evaluation.judge else {}
    return [
        VideoScore(
            index=index,
            prompt=texts[i],
            reward=total[i],
            parts=_of_video(parts, i),
            monitors=_of_video(monitored, i),
            judge=_of_video(judged, i),
            pixels=videos[i] if index < recipe.evaluation.shown else None,
        )
        for i, index in enumerate(indices)
    ]


def _of_video(found: Mapping[str, Tensor], i: int) -> dict[str, float]:
    return {name: values[i].item() for name, values in found.items()}


def summary(scores: list[VideoScore]) -> dict[str, Any]:
    """Mean reward with its spread over videos, mean parts; mean monitors and judgements where there are any."""
    rewards = [score.reward for score in scores]
    spread = torch.tensor(rewards, dtype=torch.float64).std().item() if len(rewards) > 1 else 0.0
    found: dict[str, Any] = {
        "reward": fmean(rewards),
        "std": spread,
        "stderr": spread / math.sqrt(len(rewards)),
        "videos": len(scores),
        "parts": _means([score.parts for score in scores]),
    }
    beside = {
        "monitors": _means([score.monitors for score in scores]),
        "judge": _means([score.judge for score in scores]),
    }
    return found | {name: means for name, means in beside.items() if means}


def _means(records: list[dict[str, float]]) -> dict[str, float]:
    return {name: fmean(record[name] for record in records) for name in records[0]}


def write_samples(folder: Path, scores: list[VideoScore], fps: int) -> None:
    """Writes the shown videos and the list of their prompts to `folder`, whole or not at all."""
    listed = []
    with atomic_folder(folder) as temporary:
        for score in scores:
            if score.pixels is not None:
                name = f"{score.index:03d}.mp4"
                write_mp4(temporary / name, score.pixels, fps)
                listed.append({"file": name, "prompt": score.prompt, "reward": score.reward})
        (temporary / "prompts.json").write_text(json.dumps(listed, indent=1), encoding="utf-8")
