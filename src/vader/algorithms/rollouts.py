"""Videos of the present model and their rewards as mere numbers: what DDPO and Diffusion-DPO learn from.

In go final latents of this process's videos, out come the scores of the whole global batch, the same on every
process. No gradient flows through decoder or reward here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

import torch
from accelerate.utils import gather_object
from torch import Tensor

from vader.algorithms.base import Metrics
from vader.engine.batch import Batch
from vader.engine.engine import Engine
from vader.nouns import Prompt


class Update(NamedTuple):
    """One optimiser step, as `Engine.optimise` tells it."""

    norm: float
    taken: bool


@dataclass(frozen=True)
class Scores:
    """Of the videos of a global batch, each `[total]`: weighted sum of rewards, each part, share of clamped pixels."""

    rewards: Tensor
    parts: dict[str, Tensor]
    clamped: Tensor

    @property
    def finite(self) -> bool:
        return bool(self.rewards.isfinite().all())

    def metrics(self, updates: Sequence[Update], extra: dict[str, float]) -> Metrics:
        """What a step reports. Without an update a reward was not finite, or there was nothing to learn: gradient 0."""
        tried = [update.norm for update in updates] or [0.0 if self.finite else math.nan]
        return Metrics(
            reward=self.rewards.mean().item(),
            parts={name: part.mean().item() for name, part in self.parts.items()},
            queries=len(self.rewards),
            grad_norm=fmean(tried),
            clamped=self.clamped.mean().item(),
            skipped=not any(update.taken for update in updates),
            extra=extra,
        )


def score(engine: Engine, batch: Batch, latents: Any) -> Tensor:
    """Decodes and scores final latents `[B, ...]`: `[B, 2 + parts]`, a video's reward, clamped share and parts."""
    with engine.clock("decode_reward"):
        scored = engine.scorer.score(latents, batch.prompts, engine.shown(batch))
    return torch.stack([scored.total, scored.clamped.expand_as(scored.total), *scored.parts.values()], dim=1)


def gather_scores(engine: Engine, batch: Batch, indices: Sequence[int], rows: Tensor) -> Scores:
    """The scores of all processes' videos from the rows of this one's, which are the videos `indices`."""
    columns = engine.gather(rows, indices, batch.total).unbind(dim=1)
    return Scores(columns[0], dict(zip(engine.reward.part_names, columns[2:], strict=True)), columns[1])


def gather_prompts(batch: Batch) -> list[Prompt]:
    """The prompts of the whole global batch, in order."""
    return gather_object(list(batch.prompts))
