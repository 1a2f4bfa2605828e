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
from dataclasses import dataclass, field
from statistics import fmean, pstdev
from typing import Any

import torch
from torch import Tensor

from vader.algorithms.base import Algorithm, Batch, Engine, Metrics
from vader.algorithms.rollouts import Update, gather_prompts, gather_scores, score
from vader.errors import UserError
from vader.files.images import image_of
from vader.networks.memory import offload_activations
from vader.recipe import Recipe
from vader.sampling.walk import Chain

TINY = 1e-6  # added to standard deviations of rewards


def log_probability(sample: Tensor, mean: Tensor, std: float) -> Tensor:
    """Log-density of samples `[B, ...]` under N(mean, std^2 I), averaged over their dimensions: `[B]`.

    The average, which DDPO's authors use in place of the sum, makes one clip range fit all sizes of latents.
    """
    squares = ((sample - mean) / std).square().flatten(1).mean(dim=1)
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
        self.rewards: dict[str, deque[float]] = {}

    def advantages(self, prompts: Sequence[str], rewards: Tensor) -> Tensor:
        """Remembers rewards `[B]`, and normalises each by mean and standard deviation of those of its prompt.

        While there are fewer than `min_count` of its prompt, the batch's mean and standard deviation do instead.
        """
        keys, values = [_key(prompt) for prompt in prompts], rewards.double().tolist()
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


def _key(prompt: str) -> str:
    """What makes two prompts the same: text and, for image-to-video, picture."""
    image = image_of(prompt)
    return str(prompt) if image is None else f"{prompt}\n{image}"


@dataclass(frozen=True)
class Rollout:
    """Sampling chains of B videos of T steps, as they were walked.

    Attributes:
        latents: T + 1 times `[B, ...]`: before each step, and the final ones.
        states: what the solver remembered before each step.
        log_probs: `[B]` of each step to train, by its number. A step without noise has no density.
    """

    batch: Batch
    chain: Chain
    latents: list[Tensor]
    states: list[Any] = field(default_factory=list)
    log_probs: dict[int, Tensor] = field(default_factory=dict)

    def log_probs_now(self, i: int) -> Tensor:
        """Log-probabilities `[B]` of what was done at step i, under the model as it is, with graph."""
        chain, latents = self.chain, self.latents[i]
        prediction = chain.predict(i, latents)
        unused = torch.zeros_like(latents)  # a step's mean does not depend on its noise
        step = chain.model.solver.step(chain.schedule, i, latents, prediction, unused, self.states[i])
        return log_probability(self.latents[i + 1], step.mean, step.std)


@torch.no_grad()
def roll_out(engine: Engine, batch: Batch, min_std: float = 0.0) -> Rollout:
    """Samples a batch's videos and keeps the way; steps that add less noise than `min_std` are not to be trained."""
    chain, noise = engine.chain(batch.prompts), engine.noise("train", batch)
    rollout, state = Rollout(batch, chain, [chain.start(noise)]), None
    for i in range(len(chain.schedule)):
        latents = rollout.latents[-1]
        step = chain.advance(i, latents, chain.predict(i, latents), noise, state)
        if step.std > 0 and step.std >= min_std:
            rollout.log_probs[i] = log_probability(step.next, step.mean, step.std)
        rollout.latents.append(step.next)
        rollout.states.append(state)
        state = step.state
    return rollout


@dataclass
class Drift:
    """How far the model has moved from the one that sampled, summed over videos and steps: what PPO bounds."""

    count: float = 0.0
    clipped: float = 0.0
    divergence: float = 0.0

    def add(self, ratio: Tensor, clip_range: float) -> None:
        self.count += len(ratio)
        self.clipped += ((ratio - 1).abs() > clip_range).sum().item()
        self.divergence += (ratio.log().square() / 2).sum().item()  # of the averaged log-probabilities

    def means(self, engine: Engine) -> dict[str, float]:
        sums = torch.tensor([self.count, self.clipped, self.divergence], dtype=torch.float64)
        count, clipped, divergence = engine.sum_over_processes(sums.to(engine.accelerator.device)).tolist()
        return {"clipped_ratios": clipped / count, "divergence": divergence / count}


class DDPO(Algorithm):
    """Sample and score a batch, then go over its steps: `inner_epochs` times, in `minibatches` optimiser steps each.

    Each process holds the chains of its own videos; a graph is kept of one micro-batch at one denoising step at a
    time. A micro-batch is trained on as it was sampled, so its ratio is exactly 1 until the first update.
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.settings = recipe.algorithm.ddpo
        self.videos_per_prompt = self.settings.videos_per_prompt
        self.statistics = PromptStatistics(self.settings.prompt_buffer, self.settings.prompt_min_count)

    def check(self, engine: Engine) -> None:
        """See `Algorithm.check`: a deterministic chain has no probabilities, and some step must be left to train."""
        if not engine.model.solver.stochastic:
            raise UserError(
                "algorithm 'ddpo' learns from the noise in sampling steps, and this solver adds none: "
                "set sampling.eta above 0 and sampling.solver to another than dpm"
            )
        schedule = engine.model.solver.schedule(engine.recipe.sampling.steps, engine.size)
        most, least = float(schedule.tables["std"].max()), self.settings.min_std
        if most < least:
            raise UserError(
                f"algorithm.ddpo.min_std is {least:g}, but no sampling step adds more than {most:.2g}: lower it"
            )

    def state_dict(self) -> dict[str, Any]:
        return self.statistics.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.statistics.load_state_dict(state)

    def step(self, engine: Engine, batch: Batch) -> Metrics:
        least = self.settings.min_std
        with engine.clock("sample"):
            minibatches = [[roll_out(engine, part, least) for part in parts] for parts in self._split(engine, batch)]
        rollouts = [rollout for minibatch in minibatches for rollout in minibatch]
        rows = torch.cat([score(engine, rollout.batch, rollout.latents[-1]) for rollout in rollouts])
        scores = gather_scores(engine, batch, [i for rollout in rollouts for i in rollout.batch.indices], rows)
        prompts = gather_prompts(batch)
        if not scores.finite:
            return scores.metrics([], {})
        bound = self.settings.advantage_clip
        advantages = self.statistics.advantages(prompts, scores.rewards).clamp(-bound, bound)
        drift = Drift()
        rounds = minibatches * self.settings.inner_epochs
        updates = [self._update(engine, minibatch, advantages, drift) for minibatch in rounds]
        return scores.metrics(updates, drift.means(engine))

    def _split(self, engine: Engine, batch: Batch) -> list[list[Batch]]:
        """This process's micro-batches of each minibatch; which videos are in one does not depend on processes."""
        count = self.settings.minibatches
        chosen = [[place for place, i in enumerate(batch.indices) if i % count == number] for number in range(count)]
        return [list(engine.micro_batches(batch.select(places))) for places in chosen]

    def _update(self, engine: Engine, minibatch: list[Rollout], advantages: Tensor, drift: Drift) -> Update:
        """One optimiser step on the mean loss over a minibatch's videos, of all processes, and their steps."""
        videos = len(advantages) // self.settings.minibatches
        for rollout in minibatch:
            mine = advantages[list(rollout.batch.indices)]
            for i, old in rollout.log_probs.items():
                with engine.clock("gradient"):
                    with offload_activations(rollout.chain.offload):
                        log_probs = rollout.log_probs_now(i)
                    loss, ratio = clipped_loss(log_probs, old, mine, self.settings.clip_range)
                    engine.scaler.scale(loss.sum() / (videos * len(rollout.log_probs))).backward()
                drift.add(ratio.detach(), self.settings.clip_range)
        return Update(*engine.optimise())
