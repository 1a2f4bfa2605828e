"""DDPO: denoising as a sequence of Gaussian actions, improved by policy gradient (arXiv 2305.13301, DDPO-IS).

A batch of videos is sampled with fresh noise in its steps, and the log-probability of every step is kept. Each
video's reward, normalised among those of its prompt, says by how much its steps should become more probable; PPO's
clipped ratio (arXiv 1707.06347, eq. 7) keeps them near the model that sampled them. The reward is used as a number:
it need not be differentiable. With a `group` of videos a prompt this is Flow-GRPO (arXiv 2505.05470), and with a
`window` of noisy steps its fast form.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat
from torch import Tensor

from vader.algorithms.advantages import PromptStatistics, group_advantages, require_group
from vader.algorithms.base import Algorithm, Count, Metrics, require_share
from vader.algorithms.rollouts import Update, gather_prompts, gather_scores, score
from vader.algorithms.windows import noise_window
from vader.engine.batch import Batch
from vader.engine.engine import Engine
from vader.errors import UserError
from vader.nouns import Prompt, flat
from vader.recipe import Recipe
from vader.sampling.walk import Place, Walk


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
    group: Count | None = None  # videos of one prompt in a batch, judged by each other alone: GRPO's advantages
    shared_start: bool = False  # the videos of one prompt in a batch start from the same noise
    window: tuple[NonNegativeInt, NonNegativeInt] | None = None  # noise in steps from here to before there; None: all
    window_size: Count | None = None  # in so many of them, at a random place


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


def roll_out(
    engine: Engine, batch: Batch, min_std: float = 0.0, noisy: Container[int] | None = None, sharing: int = 1
) -> Rollout:
    """Samples a batch's videos and keeps the way.

    Args:
        min_std: steps that add less noise are not to be trained.
        noisy: the steps that may add noise; None for all.
        sharing: so many neighbours start from the same noise.
    """
    walk = replace(engine.training_walk(batch), noisy=noisy)
    places = walk.path(replace(walk, noise=walk.noise.shared(sharing)).start())
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


def _without_effect(settings: DDPOSettings) -> Iterator[str]:
    """What is asked for and would change nothing."""
    for key in ("videos_per_prompt", "prompt_buffer", "prompt_min_count"):
        if settings.group is not None and getattr(settings, key) != getattr(DDPOSettings, key):
            yield f"algorithm.{key} is given, but with algorithm.group the videos of a group are judged by each other"
    if settings.shared_start and settings.group is None and settings.videos_per_prompt == 1:
        yield "algorithm.shared_start is about several videos of a prompt in a batch, and there is one of each"


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
        if settings.group is not None:
            require_group(settings.group)
        for without_effect in _without_effect(settings):
            raise UserError(f"{without_effect}: leave it out")
        for key in ("minibatches", "videos_per_prompt", "group"):
            require_share(key, getattr(settings, key) or 1, recipe.train.batch)
        self.videos_per_prompt = settings.group or settings.videos_per_prompt
        self.window = noise_window(settings.window, settings.window_size, recipe.sampling.steps)
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
        self.window.check(engine, self.settings.min_std)

    def without_gradient(self, metrics: Metrics) -> str:
        """See `Algorithm.without_gradient`."""
        return "all videos have the same reward, and it learns from differences: choose a reward that differs"

    def state_dict(self) -> dict[str, Any]:
        return self.statistics.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.statistics.load_state_dict(state)

    def step(self, engine: Engine, batch: Batch) -> Metrics:
        minibatches = [self._roll_out(engine, parts) for parts in self._split(engine, batch)]
        rollouts = [rollout for minibatch in minibatches for rollout in minibatch]
        rows = torch.cat([score(engine, rollout.batch, rollout.places[-1].latents) for rollout in rollouts])
        scores = gather_scores(engine, batch, [i for rollout in rollouts for i in rollout.batch.indices], rows)
        prompts = gather_prompts(batch)
        if not scores.finite:
            return scores.metrics([], {})
        advantages = self._advantages(prompts, scores.rewards)
        drift = Drift()
        rounds = minibatches * self.settings.inner_epochs
        updates: list[Update] = []
        for minibatch in rounds:
            engine.tell(f"step {batch.step}: update {len(updates) + 1} of {len(rounds)}")
            updates.append(self._update(engine, minibatch, advantages, drift))
        return scores.metrics(updates, drift.means(engine))

    def _advantages(self, prompts: Sequence[Prompt], rewards: Tensor) -> Tensor:
        bound, normalise = self.settings.advantage_clip, self.statistics.advantages
        found = group_advantages(prompts, rewards) if self.settings.group else normalise(prompts, rewards)
        return found.clamp(-bound, bound)

    def _roll_out(self, engine: Engine, parts: Sequence[Batch]) -> list[Rollout]:
        settings, rollouts = self.settings, []
        sharing = self.videos_per_prompt if settings.shared_start else 1
        for number, part in enumerate(parts, start=1):
            engine.tell(f"step {part.step}: sampling, part {number} of {len(parts)} of a minibatch")
            noisy = self.window.drawn(self.recipe.train.seed, part.step)
            rollouts.append(roll_out(engine, part, settings.min_std, noisy, sharing))
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
