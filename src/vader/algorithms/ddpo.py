"""DDPO: denoising as a sequence of Gaussian actions, improved by policy gradient (arXiv 2305.13301, DDPO-IS).

A batch of videos is sampled with fresh noise in its steps, and the log-probability of every step is kept. Each
video's reward, normalised among those of its prompt, says by how much its steps should become more probable; PPO's
clipped ratio (arXiv 1707.06347, eq. 7) keeps them near the model that sampled them. The reward is used as a number:
it need not be differentiable.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Any

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from vader.algorithms.base import Algorithm, Count, Metrics, require_share
from vader.algorithms.rollouts import Update, gather_prompts, gather_scores, score
from vader.engine.batch import Batch
from vader.engine.engine import Engine
from vader.errors import UserError
from vader.nouns import Prompt, flat
from vader.recipe import Recipe
from vader.sampling.walk import Place, Walk

TINY = 1e-6  # added to standard deviations of rewards


@dataclass(frozen=True)
class DDPOSettings:
    """Settings of algorithm 'ddpo'."""

    videos_per_prompt: Count = 1
    minibatches: Count = 2  # optimiser steps in which a batch is gone through
    inner_epochs: Count = 1  # how often it is gone through
    clip_range: PositiveFloat = 1e-4  # of the ratio of probabilities, PPO's epsilon
    advantage_clip: PositiveFloat = 5.0
    min_std: NonNegativeFloat = 0.0  # of a step's fresh noise: steps with less are not trained
    prompt_buffer: Count = 32  # latest rewards of a prompt that make its mean and standard deviation
    prompt_min_count: Count = 16  # with fewer of them, those of the batch do


def log_probability(sample: Any, mean: Any, std: float) -> Tensor:
    """Log-density of samples `[B, ...]` under N(mean, std^2 I), averaged over their dimensions: `[B]`.

    The average, which DDPO's authors use in place of the sum, makes one clip range fit all sizes of latents.
    """
    squares = ((flat(sample) - flat(mean)) / std).square().mean(dim=1)
    return -squares / 2 - math.log(std) - math.log(2 * math.pi) / 2


def clipped_loss(log_probs: Tensor, old: Tensor, advantages: Tensor, clip_range: float) -> tuple[Tensor, Tensor]:
    """Minus PPO's clipped objective of B videos at one step (arXiv 1707.06347, eq. 7), and their ratios, each `[B]`."""
    ratio = (log_probs - old).exp()
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    return -torch.minimum(advantages * ratio, advantages * clipped), ratio


class PromptStatistics:
    """The latest rewards of each prompt, by which a new one is judged, as DDPO has it (arXiv 2305.13301)."""

    def __init__(self, size: int, min_count: int) -> None:
        self.size, self.min_count = size, min_count
        self.rewards: dict[str, deque[float]] = {}  # by all that a prompt is, as text, which checkpoints hold

    def advantages(self, prompts: Sequence[Prompt], rewards: Tensor) -> Tensor:
        """Remembers rewards `[B]`, and normalises each by mean and standard deviation of those of its prompt.

        While there are fewer than `min_count` of its prompt, the batch's mean and standard deviation do instead.
        """
        keys, values = [repr(prompt) for prompt in prompts], rewards.double().tolist()
        for key, value in zip(keys, values, strict=True):
            self.rewards.setdefault(key, deque(maxlen=self.size)).append(value)
        found = [self._normalised(key, value, values) for key, value in zip(keys, values, strict=True)]
        return rewards.new_tensor(found)

    def _normalised(self, key: str, value: float, batch: list[float]) -> float:
        known = self.rewards[key] if len(self.rewards[key]) >= self.min_count else batch
        return (value - fmean(known)) / (pstdev(known) + TINY)

    def state_dict(self) -> dict[str, Any]:
        return {key: list(rewards) for key, rewards in self.rewards.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rewards = {key: deque(rewards, maxlen=self.size) for key, rewards in state.items()}


@dataclass(frozen=True)
class Rollout:
    """Sampling chains of B videos of T steps, as they were walked.

    Attributes:
        places: T + 1 of them: before each step, and the final one.
        log_probs: `[B]` of each step to train, by its number. A step without noise has no density.
    """

    batch: Batch
    walk: Walk
    places: list[Place]
    log_probs: dict[int, Tensor]

    def log_probs_now(self, i: int) -> Tensor:
        """Log-probabilities `[B]` of what was done at step i, under the model as it is, with graph."""
        again = self.walk.step(self.places[i])
        return log_probability(self.places[i + 1].latents, again.mean, again.std)


def roll_out(engine: Engine, batch: Batch, min_std: float = 0.0) -> Rollout:
    """Samples a batch's videos and keeps the way; steps that add less noise than `min_std` are not to be trained."""
    walk = engine.training_walk(batch)
    places = walk.path()
    log_probs = {
        i: log_probability(place.latents, place.mean, place.std)
        for i, place in enumerate(places[1:])
        if place.std > 0 and place.std >= min_std
    }
    return Rollout(batch, walk, places, log_probs)


@dataclass
class Drift:
    """How far the model has moved from the one that sampled, summed over videos and steps: what PPO bounds."""

    count: float = 0.0
    clipped: float = 0.0
    divergence: float = 0.0

    def add(self, ratio: Tensor, counts: Tensor, clip_range: float) -> None:
        self.count += counts.sum().item()
        self.clipped += (((ratio - 1).abs() > clip_range) * counts).sum().item()
        self.divergence += (ratio.log().square() / 2 * counts).sum().item()  # of the averaged log-probabilities

    def means(self, engine: Engine) -> dict[str, float]:
        count, clipped, divergence = engine.sums([self.count, self.clipped, self.divergence])
        return {"clipped_ratios": clipped / count, "divergence": divergence / count}


class DDPO(Algorithm):
    """Sample and score a batch, then go over its steps: `inner_epochs` times, in `minibatches` optimiser steps each.

    Each process holds the chains of its own videos; a graph is kept of one micro-batch at one denoising step at a
    time. A micro-batch is trained on as it was sampled, so its ratio is exactly 1 until the first update.
    """

    Settings = DDPOSettings

    def __init__(self, settings: DDPOSettings, recipe: Recipe) -> None:
        super().__init__(settings, recipe)
        if recipe.sampling.eta == 0:
            raise UserError(
                "algorithm 'ddpo' learns from the noise in sampling steps, but sampling.eta is 0: set it above 0, to 1"
            )
        if settings.prompt_min_count > settings.prompt_buffer:
            raise UserError(
                f"algorithm.prompt_min_count is {settings.prompt_min_count} but algorithm.prompt_buffer is "
                f"{settings.prompt_buffer}: no prompt will ever have so many rewards"
            )
        for key in ("minibatches", "videos_per_prompt"):
            require_share(key, getattr(settings, key), recipe.train.batch)
        self.videos_per_prompt = settings.videos_per_prompt
        self.statistics = PromptStatistics(settings.prompt_buffer, settings.prompt_min_count)

    def check(self, engine: Engine) -> None:
        """See `Algorithm.check`: a deterministic chain has no probabilities, and some step must be left to train."""
        sampler = engine.sampler
        if not sampler.solver.stochastic:
            raise UserError(
                "algorithm 'ddpo' learns from the noise in sampling steps, and this solver adds none: "
                "set sampling.eta above 0 and sampling.solver to another than dpm and unipc"
            )
        intervals = zip(sampler.schedule.starts, sampler.schedule.ends, strict=True)
        most = max(sampler.solver.std(here, there) for here, there in intervals)
        if most < self.settings.min_std:
            raise UserError(
                f"algorithm.min_std is {self.settings.min_std:g}, but no sampling step adds more than {most:.2g}: "
                "lower it"
            )

    def without_gradient(self, metrics: Metrics) -> str:
        """See `Algorithm.without_gradient`."""
        return "all videos have the same reward, and it learns from differences: choose a reward that differs"

    def state_dict(self) -> dict[str, Any]:
        return self.statistics.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.statistics.load_state_dict(state)

    def step(self, engine: Engine, batch: Batch) -> Metrics:
        least = self.settings.min_std
        minibatches = [self._roll_out(engine, parts, least) for parts in self._split(engine, batch)]
        rollouts = [rollout for minibatch in minibatches for rollout in minibatch]
        rows = torch.cat([score(engine, rollout.batch, rollout.places[-1].latents) for rollout in rollouts])
        scores = gather_scores(engine, batch, [i for rollout in rollouts for i in rollout.batch.indices], rows)
        prompts = gather_prompts(batch)
        if not scores.finite:
            return scores.metrics([], {})
        bound = self.settings.advantage_clip
        advantages = self.statistics.advantages(prompts, scores.rewards).clamp(-bound, bound)
        drift = Drift()
        rounds = minibatches * self.settings.inner_epochs
        updates: list[Update] = []
        for minibatch in rounds:
            engine.tell(f"step {batch.step}: update {len(updates) + 1} of {len(rounds)}")
            updates.append(self._update(engine, minibatch, advantages, drift))
        return scores.metrics(updates, drift.means(engine))

    def _roll_out(self, engine: Engine, parts: Sequence[Batch], least: float) -> list[Rollout]:
        rollouts = []
        for number, part in enumerate(parts, start=1):
            engine.tell(f"step {part.step}: sampling, part {number} of {len(parts)} of a minibatch")
            rollouts.append(roll_out(engine, part, least))
        return rollouts

    def _split(self, engine: Engine, batch: Batch) -> list[list[Batch]]:
        """This process's micro-batches of each minibatch; which videos are in one does not depend on processes.

        Shares that are short by a video are filled up, so that all processes make as many network passes.
        """
        count, share = self.settings.minibatches, len(batch.prompts)
        starts = range(0, batch.total, share)  # of each process's videos
        most = [max(len(_of_minibatch(start, share, count, number)) for start in starts) for number in range(count)]
        chosen = [_of_minibatch(batch.indices[0], share, count, number) for number in range(count)]
        filled = [batch.select(places).padded(size, batch) for places, size in zip(chosen, most, strict=True)]
        return [list(engine.micro_batches(part)) for part in filled]

    def _update(self, engine: Engine, minibatch: list[Rollout], advantages: Tensor, drift: Drift) -> Update:
        """One optimiser step on the mean loss over a minibatch's videos, of all processes, and their steps."""
        videos = len(advantages) // self.settings.minibatches
        for rollout in minibatch:
            mine = advantages[list(rollout.batch.indices)]
            counts = mine.new_tensor(rollout.batch.counts)
            for i, old in rollout.log_probs.items():
                loss, ratio = clipped_loss(rollout.log_probs_now(i), old, mine, self.settings.clip_range)
                with engine.clock("gradient"):
                    engine.scaler.scale((loss * counts).sum() / (videos * len(rollout.log_probs))).backward()
                drift.add(ratio.detach(), counts, self.settings.clip_range)
        return Update(*engine.optimise())


def _of_minibatch(start: int, share: int, count: int, number: int) -> list[int]:
    """The places, in a process's share of videos that begins at `start`, of those that belong to a minibatch."""
    return [place for place in range(share) if (start + place) % count == number]
