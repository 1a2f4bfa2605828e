"""Diffusion-DPO: preferred videos become easier to denoise than others of their prompt (arXiv 2311.12908).

Online, every batch holds several videos of each prompt, ranked by the reward as a number, and pairs are drawn from a
buffer of the latest; offline, pairs come from a file and no video is sampled. The reference is the frozen base: the
same network with its adapter switched off.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor
from torch.nn.functional import logsigmoid

from vader import randomness
from vader.algorithms.base import Algorithm, Count, Metrics, require_share
from vader.algorithms.preferences import Pair, PreferenceFile, ReplayBuffer
from vader.algorithms.rollouts import Scores, Update, gather_prompts, gather_scores, score
from vader.engine.batch import Batch
from vader.engine.collectives import even_items
from vader.engine.engine import Engine
from vader.errors import UserError
from vader.networks.adapter import adapters_disabled
from vader.nouns import flat, map_latents
from vader.recipe import Recipe
from vader.sampling.guidance import NoGuidance
from vader.sampling.walk import Walk


@dataclass(frozen=True)
class DPOSettings:
    """Settings of algorithm 'diffusion_dpo'."""

    beta: PositiveFloat = 5000.0  # how strongly the frozen base holds the model
    videos_per_prompt: Annotated[Count, Field(ge=2)] = 2  # online
    capacity: Annotated[Count, Field(ge=2)] = 256  # online: latest videos of which pairs are made
    updates: Count = 4  # optimiser steps a batch
    pairs: Count = 8  # pairs an optimiser step
    preferences: str | None = None  # a file of pairs: nothing is sampled and ranked in training


def dpo_loss(errors: Tensor, reference: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Diffusion-DPO's loss of a pair (arXiv 2311.12908, eq. 14), and by how much the model prefers the winner.

        loss = -log sigmoid(beta / 2 * margin)
        margin = (reference[winner] - errors[winner]) - (reference[loser] - errors[loser])

    `beta / 2` stands for the paper's `beta * T * omega` times the number of dimensions, as in its authors' code, where
    beta is 2000 to 5000. The loss is log 2 where model and reference are the same.

    Args:
        errors: `[2]`, winner and loser: mean squared error, over all dimensions, of the noise that the model sees.
        reference: the same of the frozen base.
    """
    improvement = reference - errors
    margin = improvement[0] - improvement[1]
    return -logsigmoid(beta / 2 * margin), margin


def noise_errors(walk: Walk, i: int, clean: Any, noise: Any) -> Tensor:
    """Mean squared error `[B]` of the noise estimate for clean latents `[B, ...]` noised to where step i starts.

    It is the noise whatever the denoiser predicts (noise, velocity, ...), so that the weight of a noise level is the
    same for all families. Latents that are known are not noised, and have no error.
    """
    noisy = walk.renoised(clean, i, noise).latents
    here, estimates = walk.start_of(i), walk.sampler.solver.estimates
    found = map_latents(lambda x, prediction: estimates(x, prediction, here)[1], noisy, walk.predict(i, noisy))
    if known := walk.condition.known:
        found = replace(known, latents=noise).keep(found)
    return (flat(noise) - flat(found)).square().mean(dim=1)


@dataclass
class Preferred:
    """Sums over the pairs that this process has learned from in one step."""

    pairs: int = 0
    loss: float = 0.0
    right: int = 0  # pairs whose winner the model already prefers, in comparison with the base

    def add(self, loss: Tensor, margin: Tensor) -> None:
        self.pairs += 1
        self.loss += loss.item()
        self.right += int(margin.item() > 0)

    def means(self, engine: Engine) -> dict[str, float]:
        pairs, loss, right = engine.sums([self.pairs, self.loss, self.right])
        return {"loss": loss / pairs, "accuracy": right / pairs} if pairs else {}


def _without_effect(settings: DPOSettings, recipe: Recipe) -> Iterator[str]:
    """What is asked for and would change nothing."""
    if recipe.sampling.guidance_detach_uncond:
        yield "sampling.guidance_detach_uncond is given, but diffusion_dpo trains the conditional prediction alone"
    for key in ("videos_per_prompt", "capacity"):
        if settings.preferences is not None and getattr(settings, key) != getattr(DPOSettings, key):
            yield f"algorithm.{key} is about videos that are sampled, but algorithm.preferences gives the pairs"


class DiffusionDPO(Algorithm):
    """Sample and rank a batch (online), then take `updates` optimiser steps of `pairs` pairs each.

    The two videos of a pair share time and noise. One pair at a time is on the device, and only the conditional
    prediction is trained.
    """

    Settings = DPOSettings

    def __init__(self, settings: DPOSettings, recipe: Recipe) -> None:
        super().__init__(settings, recipe)
        for without_effect in _without_effect(settings, recipe):
            raise UserError(f"{without_effect}: leave it out")
        self.pairs: ReplayBuffer | PreferenceFile = ReplayBuffer(settings.capacity)
        if settings.preferences is not None:
            self.pairs = PreferenceFile(Path(settings.preferences), recipe.video.size)
            return
        require_share("videos_per_prompt", settings.videos_per_prompt, recipe.train.batch)
        if settings.capacity < recipe.train.batch:
            raise UserError(
                f"algorithm.capacity is {settings.capacity} but train.batch is {recipe.train.batch}: "
                "keep at least one batch"
            )
        self.videos_per_prompt = settings.videos_per_prompt

    def check(self, engine: Engine) -> None:
        """See `Algorithm.check`: a preference file asks for a model that encodes videos."""
        if isinstance(self.pairs, PreferenceFile):
            prompts = [preference.prompt for preference in self.pairs.preferences]
            engine.model.check_prompts(prompts)
            engine.model.prepare(prompts)
            self.pairs.pick(engine, 0)

    def without_gradient(self, metrics: Metrics) -> str:
        """See `Algorithm.without_gradient`."""
        if len(self.pairs):
            return "the model's noise estimates do not depend on the adapter ('vader check model' looks at it)"
        return "no two videos of a prompt differ in reward, so there are no pairs: choose a reward that does"

    def state_dict(self) -> dict[str, Any]:
        return self.pairs.state_dict() if isinstance(self.pairs, ReplayBuffer) else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if isinstance(self.pairs, ReplayBuffer):
            self.pairs.load_state_dict(state)

    def state_bytes(self, engine: Engine) -> int:
        """See `Algorithm.state_bytes`: a full buffer's latents, in float32."""
        if not isinstance(self.pairs, ReplayBuffer):
            return 0
        shape = engine.model.noise_shape(engine.size)
        numbers = sum(map(math.prod, shape.values())) if isinstance(shape, dict) else math.prod(shape)
        return 4 * self.settings.capacity * numbers

    def step(self, engine: Engine, batch: Batch) -> Metrics:
        scores = self._collect(engine, batch)
        if not scores.finite:
            return scores.metrics([], {})
        preferred = Preferred()
        updates = []
        for number in range(self._possible_updates()):
            engine.tell(f"step {batch.step}: update {number + 1} of {self.settings.updates}")
            updates.append(self._update(engine, batch.step, number, preferred))
        return scores.metrics(updates, preferred.means(engine) | {"pairs": len(self.pairs)})

    def _possible_updates(self) -> int:
        """None while no two videos of a prompt differ in reward."""
        return self.settings.updates if len(self.pairs) else 0

    def _collect(self, engine: Engine, batch: Batch) -> Scores:
        """Samples, scores and remembers the batch's videos; with a preference file there are none."""
        if isinstance(self.pairs, PreferenceFile):
            nothing = torch.empty(0)
            return Scores(nothing, dict.fromkeys(engine.reward.part_names, nothing), nothing)
        engine.tell(f"step {batch.step}: sampling {len(batch.prompts)} videos")
        latents, rows = zip(*(_sample(engine, part) for part in engine.micro_batches(batch)), strict=True)
        scores = gather_scores(engine, batch, batch.indices, torch.cat(rows))
        everywhere = map_latents(lambda *parts: engine.gather(torch.cat(parts), batch.indices, batch.total), *latents)
        prompts = gather_prompts(batch)
        if scores.finite:
            self.pairs.add(prompts, scores.rewards, everywhere)
        return scores

    def _update(self, engine: Engine, step: int, update: int, preferred: Preferred) -> Update:
        """One optimiser step on the mean loss of pairs, drawn uniformly and shared by all processes."""
        count, seed = self.settings.pairs, self.recipe.train.seed
        drawn = torch.randint(len(self.pairs), (count,), generator=randomness.generator(seed, "dpo/pair", step, update))
        accelerator = engine.accelerator
        for place, counts in even_items(range(count), accelerator.process_index, accelerator.num_processes):
            pair = self.pairs.pick(engine, int(drawn[place]))
            loss, margin = self._loss(engine, pair, step, update * count + place)
            with engine.clock("gradient"):
                engine.scaler.scale(counts * loss / count).backward()
            if counts:
                preferred.add(loss.detach(), margin.detach())
        return Update(*engine.optimise())

    def _loss(self, engine: Engine, pair: Pair, step: int, number: int) -> tuple[Tensor, Tensor]:
        """The loss of a pair at a random step of the sampling chain, under random noise, and its margin."""
        rng = randomness.generator(self.recipe.train.seed, "dpo/time", step, number)
        i = int(torch.randint(len(engine.sampler.schedule), (), generator=rng))
        both, seed = [pair.prompt, pair.prompt], self.recipe.train.seed
        walk = engine.walk(both, seed, "dpo", step, (number, number))  # of one number: the same noise twice
        walk = replace(walk, sampler=replace(engine.sampler, guidance=NoGuidance()))
        noise = walk.noise.draw("pair")
        with engine.clock("gradient"):
            with adapters_disabled(engine.model.denoisers):
                reference = noise_errors(walk, i, pair.latents, noise)
            with engine.memory.gradient_step():
                errors = noise_errors(walk, i, pair.latents, noise)
        return dpo_loss(errors, reference, self.settings.beta)


def _sample(engine: Engine, batch: Batch) -> tuple[Any, Tensor]:
    """Final latents `[B, ...]` of a micro-batch, and a row of scores for each video."""
    walk = engine.training_walk(batch)
    latents = walk.frozen(len(walk)).latents
    return latents, score(engine, batch, latents)
