"""Scores held-out prompts under fixed noise, so that evaluations of one run differ by the adapter alone.

In go the engine and the prompts, out come one record a video, the same on every process, and the summary
that the metrics file holds.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from accelerate.utils import gather_object
from torch import Tensor

from vader.algorithms.base import Engine
from vader.evaluation.video_io import write_mp4
from vader.sampling import sample_videos
from vader.tinyworld.judge import judge_prompts


@dataclass
class VideoScore:
    """One held-out video: its rewards, the judge's findings, and its pixels `[F, 3, H, W]` if it is shown."""

    index: int
    prompt: str
    reward: float
    parts: dict[str, float]
    judge: dict[str, float]
    pixels: Tensor | None


@torch.no_grad()
def evaluate(engine: Engine, prompts: Sequence[str], count: int) -> list[VideoScore]:
    """Samples and scores `count` videos of the prompts, round and round, shared by all processes."""
    accelerator, batch = engine.accelerator, engine.recipe.evaluation.batch
    mine = list(range(count))[accelerator.process_index :: accelerator.num_processes]
    scores = [score for i in range(0, len(mine), batch) for score in _score(engine, prompts, mine[i : i + batch])]
    gathered = gather_object(scores) if accelerator.num_processes > 1 else scores
    return sorted(gathered, key=lambda score: score.index)


def _score(engine: Engine, prompts: Sequence[str], indices: list[int]) -> list[VideoScore]:
    texts = [prompts[index % len(prompts)] for index in indices]
    recipe = engine.recipe
    videos = sample_videos(
        engine.model,
        texts,
        engine.size,
        recipe.sampling.steps,
        engine.guidance,
        recipe.train.seed,
        batch=len(texts),
        indices=indices,
    )
    parts = engine.reward.parts(videos.to(engine.model.device), texts)
    total = engine.reward.total(parts).tolist()
    judged = judge_prompts(videos, texts) if recipe.evaluation.judge else {}
    return [
        VideoScore(
            index=index,
            prompt=texts[i],
            reward=total[i],
            parts={name: part[i].item() for name, part in parts.items()},
            judge={name: found[i].item() for name, found in judged.items()},
            pixels=videos[i] if index < recipe.evaluation.shown else None,
        )
        for i, index in enumerate(indices)
    ]


def summary(scores: list[VideoScore]) -> dict[str, object]:
    """Mean reward with its spread over videos, mean parts, mean judgements."""
    rewards = [score.reward for score in scores]
    spread = torch.tensor(rewards, dtype=torch.float64).std().item() if len(rewards) > 1 else 0.0
    found: dict[str, object] = {
        "reward": fmean(rewards),
        "std": spread,
        "stderr": spread / math.sqrt(len(rewards)),
        "videos": len(scores),
        "parts": _means([score.parts for score in scores]),
    }
    return found | ({"judge": _means([score.judge for score in scores])} if scores[0].judge else {})


def _means(records: list[dict[str, float]]) -> dict[str, float]:
    return {name: fmean(record[name] for record in records) for name in records[0]}


def write_samples(folder: Path, scores: list[VideoScore], fps: int) -> None:
    """Writes the shown videos and the list of their prompts to `folder`, whole or not at all."""
    aside = folder.with_name(f".{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    listed = []
    for score in scores:
        if score.pixels is not None:
            name = f"{score.index:03d}.mp4"
            write_mp4(aside / name, score.pixels, fps)
            listed.append({"file": name, "prompt": score.prompt, "reward": score.reward})
    (aside / "prompts.json").write_text(json.dumps(listed, indent=1), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)
