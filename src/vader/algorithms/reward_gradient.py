"""VADER: alignment by the gradient of the reward (arXiv 2407.08737, Algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from vader import randomness
from vader.algorithms.base import Algorithm, Batch, Engine, Metrics
from vader.sampling.policies import Plan, draw_plan
from vader.sampling.walk import View, views
from vader.scoring.frames import choose_frames
from vader.scoring.scorer import Scored, Scorer, split_backward


@dataclass
class Tally:
    """Sums over the videos that this process has scored in one step."""

    videos: int = 0
    total: float = 0.0
    clamped: float = 0.0
    distance: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)

    def add(self, scored: Scored, distance: Tensor) -> None:
        count = len(scored.total)
        self.videos += count
        self.total += scored.total.sum().item()
        self.clamped += scored.clamped.item() * count
        self.distance += distance.item()
        for name, part in scored.parts.items():
            self.parts[name] = self.parts.get(name, 0.0) + part.sum().item()


class RewardGradient(Algorithm):
    """Sample, decode some frames, score them, and send the reward's gradient through the plan's denoising steps."""

    def step(self, engine: Engine, batch: Batch) -> Metrics:
        recipe = self.recipe
        rng = randomness.generator(recipe.train.seed, "policy", batch.step)
        plan = draw_plan(recipe.algorithm.policy, recipe.sampling.steps, rng)
        tally = Tally()
        for part in engine.micro_batches(batch):
            self._accumulate(engine, part, plan, tally)
        return self._finish(engine, tally)

    def _accumulate(self, engine: Engine, batch: Batch, plan: Plan, tally: Tally) -> None:
        """Adds the gradient of minus the mean reward over the global batch, as far as these videos go."""
        chain = engine.chain(batch.prompts, base_distance=self.recipe.algorithm.base_distance > 0)
        frames = choose_frames(
            self.recipe.algorithm.frames, self.recipe.video.frames, self.recipe.train.seed, batch.step, batch.indices
        )
        scale = engine.scaler.scale(torch.ones((), device=engine.model.device)) / (batch.total * plan.views)
        for view in views(chain, engine.noise("train", batch), plan, engine.clock):
            scored = self._backpropagate(engine, batch, view, frames.to(engine.model.device), scale)
            tally.add(scored, view.distance.detach())

    def _backpropagate(self, engine: Engine, batch: Batch, view: View, frames: Tensor, scale: Tensor) -> Scored:
        """Adds the gradient of one view; a pull towards the base, if asked for, goes the same way."""
        scorer = Scorer(engine.model, engine.reward, batch.prompts)
        pull = self.recipe.algorithm.base_distance * scale * view.distance
        with engine.clock("decode_reward"):
            if self.recipe.algorithm.split_backward:
                chunk = self.recipe.algorithm.frames.chunk
                gradient, scored = split_backward(scorer, view.latents, frames, chunk, scale)
                loss = (view.latents * gradient).sum()
            else:
                total, scored = scorer(view.latents, frames)
                loss = -scale * total.sum()
        with engine.clock("gradient"):
            (loss + pull).backward()
        return scored

    def _finish(self, engine: Engine, tally: Tally) -> Metrics:
        names = list(engine.reward.rewards)
        sums = [tally.videos, tally.total, tally.clamped, tally.distance, *(tally.parts[name] for name in names)]
        sums = engine.sum_over_processes(
            torch.tensor(sums, dtype=torch.float64, device=engine.accelerator.device)
        ).tolist()
        videos, means = int(sums[0]), [value / sums[0] for value in sums[1:]]
        finite = bool(torch.tensor(means).isfinite().all())
        norm, taken = engine.optimise(finite)
        return Metrics(
            reward=means[0],
            parts=dict(zip(names, means[3:], strict=True)),
            queries=videos,
            grad_norm=norm,
            clamped=means[1],
            skipped=not taken,
            extra={"base_distance": means[2]} if self.recipe.algorithm.base_distance else {},
        )
