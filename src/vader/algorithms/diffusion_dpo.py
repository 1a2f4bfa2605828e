"""Diffusion-DPO: preferred videos become easier to denoise than others of their prompt (arXiv 2311.12908).

Online, every batch holds several videos of each prompt, ranked by the reward as a number, and pairs are drawn from a
buffer of the latest; offline, pairs come from a file and no video is sampled. The reference is the frozen base: the
same network with its adapter switched off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from vader import randomness
from vader.algorithms.base import Algorithm, Batch, Engine, Metrics
from vader.algorithms.preferences import Pair, PreferenceFile, ReplayBuffer
from vader.algorithms.rollouts import Scores, Update, gather_prompts, gather_scores, score
from vader.models.base import Guidance, VideoSize
from vader.networks.adapter import adapter_disabled
from vader.networks.memory import offload_activations
from vader.recipe import Recipe
from vader.sampling.walk import Chain, Noise, sample_latents


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


def noise_errors(chain: Chain, i: int, clean: Tensor, noise: Tensor) -> Tensor:
    """Mean squared error `[B]` of the noise estimate for clean latents `[B, ...]` noised to where step i starts.

    It is the noise whatever the denoiser predicts (noise, velocity, ...), so that the weight of a noise level is the
    same for all families.
    """
    solver = chain.model.solver
    noisy = solver.renoise(chain.schedule, i, clean, noise)
    estimate = solver.noise_estimate(chain.schedule, i, noisy, chain.predict(i, noisy))
    return (noise - estimate).square().flatten(1).mean(dim=1)


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
        sums = torch.tensor([self.pairs, self.loss, self.right], dtype=torch.float64)
        pairs, loss, right = engine.sum_over_processes(sums.to(engine.accelerator.device)).tolist()
        return {"loss": loss / pairs, "accuracy": right / pairs} if pairs else {}


class DiffusionDPO(Algorithm):
    """Sample and rank a batch (online), then take `updates` optimiser steps of `pairs` pairs each.

    The two videos of a pair share time and noise. One pair at a time is on the device, and only the conditional
    prediction is trained.
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.settings = recipe.algorithm.dpo
        self.pairs: ReplayBuffer | PreferenceFile = ReplayBuffer(self.settings.capacity)
        if self.settings.preferences is not None:
            self.pairs = PreferenceFile(Path(self.settings.preferences), VideoSize(**recipe.video.model_dump()))
        else:
            self.videos_per_prompt = self.settings.videos_per_prompt

    def check(self, engine: Engine) -> None:
        """See `Algorithm.check`: a preference file asks for a model that encodes videos."""
        if isinstance(self.pairs, PreferenceFile):
            prompts = [preference.prompt for preference in self.pairs.preferences]
            engine.model.check_prompts(prompts)
            engine.model.prepare(prompts)
            self.pairs.pick(engine, 0)

    def state_dict(self) -> dict[str, Any]:
        return self.pairs.state_dict() if isinstance(self.pairs, ReplayBuffer) else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if isinstance(self.pairs, ReplayBuffer):
            self.pairs.load_state_dict(state)

    def state_bytes(self, engine: Engine) -> int:
        """See `Algorithm.state_bytes`: a full buffer's latents, in float32."""
        if not isinstance(self.pairs, ReplayBuffer):
            return 0
        return 4 * self.settings.capacity * math.prod(engine.model.noise_shape(engine.size))

    def step(self, engine: Engine, batch: Batch) -> Metrics:
        scores = self._collect(engine, batch)
        if not scores.finite:
            return scores.metrics([], {})
        preferred = Preferred()
        updates = [self._update(engine, batch.step, number, preferred) for number in range(self._possible_updates())]
        return scores.metrics(updates, preferred.means(engine) | {"pairs": len(self.pairs)})

    def _possible_updates(self) -> int:
        """None while no two videos of a prompt differ in reward."""
        return self.settings.updates if len(self.pairs) else 0

    def _collect(self, engine: Engine, batch: Batch) -> Scores:
        """Samples, scores and remembers the batch's videos; with a preference file there are none."""
        if isinstance(self.pairs, PreferenceFile):
            nothing = torch.empty(0)
            return Scores(nothing, dict.fromkeys(engine.reward.rewards, nothing), nothing)
        latents, rows = zip(*(_sample(engine, part) for part in engine.micro_batches(batch)), strict=True)
        scores = gather_scores(engine, batch, batch.indices, torch.cat(rows))
        everywhere = engine.gather(torch.cat(latents), batch.indices, batch.total)
        prompts = gather_prompts(batch)
        if scores.finite:
            self.pairs.add(prompts, scores.rewards, everywhere)
        return scores

    def _update(self, engine: Engine, step: int, update: int, preferred: Preferred) -> Update:
        """One optimiser step on the mean loss of pairs, drawn uniformly and shared by all processes."""
        count, seed = self.settings.pairs, self.recipe.train.seed
        drawn = torch.randint(len(self.pairs), (count,), generator=randomness.generator(seed, "dpo/pair", step, update))
        accelerator = engine.accelerator
        for place in range(count)[accelerator.process_index :: accelerator.num_processes]:
            pair = self.pairs.pick(engine, int(drawn[place]))
            with engine.clock("gradient"):
                loss, margin = self._loss(engine, pair, step, update * count + place)
                engine.scaler.scale(loss / count).backward()
            preferred.add(loss.detach(), margin.detach())
        return Update(*engine.optimise())

    def _loss(self, engine: Engine, pair: Pair, step: int, number: int) -> tuple[Tensor, Tensor]:
        """The loss of a pair at a random step of the sampling chain, under random noise, and its margin."""
        chain = replace(engine.chain([pair.prompt, pair.prompt]), guidance=Guidance())
        rng = randomness.generator(self.recipe.train.seed, "dpo/time", step, number)
        i = int(torch.randint(len(chain.schedule), (), generator=rng))
        noise = _shared_noise(engine, step, number)
        with adapter_disabled(engine.model.denoiser):
            reference = noise_errors(chain, i, pair.latents, noise)
        with offload_activations(chain.offload):
            errors = noise_errors(chain, i, pair.latents, noise)
        return dpo_loss(errors, reference, self.settings.beta)


def _sample(engine: Engine, batch: Batch) -> tuple[Tensor, Tensor]:
    """Final latents `[B, ...]` of a micro-batch, and a row of scores for each video."""
    with engine.clock("sample"):
        latents = sample_latents(engine.chain(batch.prompts), engine.noise("train", batch))
    return latents, score(engine, batch, latents)


def _shared_noise(engine: Engine, step: int, number: int) -> Tensor:
    """The same noise twice, `[2, ...]`: pair `number` of a step has its own."""
    shape, seed = engine.model.noise_shape(engine.size), engine.recipe.train.seed
    return Noise(shape, seed, "dpo", step, (number, number), engine.model.device).draw("pair")
