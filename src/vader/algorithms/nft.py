"""DiffusionNFT: policy optimisation on the forward process, with positive and negative videos (arXiv 2509.16117).

An old policy, a slow mean of the adapter, samples groups of videos of one prompt; each video's reward within its group
becomes a probability r of being optimal. The finished videos are noised again, as in plain diffusion training, and the
model regresses to them: as it is with weight r, and mirrored at the old policy with weight 1 - r. No step of the
sampling chain is kept and none needs a density, so that any solver may sample; the reward is used as a number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor

from vader import randomness
from vader.algorithms.advantages import group_advantages, require_group
from vader.algorithms.base import Algorithm, Count, Metrics, require_share
from vader.algorithms.rollouts import Update, gather_prompts, gather_scores, score
from vader.engine.batch import Batch
from vader.engine.engine import Engine
from vader.errors import UserError
from vader.networks.adapter import adapters_disabled
from vader.nouns import flat, map_latents
from vader.recipe import Recipe
from vader.sampling.guidance import NoGuidance
from vader.sampling.walk import Walk
from vader.solvers import PREDICTIONS

LEAST_ERROR = 1e-5  # of a clean estimate, as a weight
MANY_PROMPTS = 8  # a step; with fewer the reward is known to swing

Decay = Annotated[float, Field(ge=0.0, lt=1.0)]


@dataclass(frozen=True)
class NFTSettings:
    """Settings of algorithm 'nft'."""

    group: Count = 4  # videos of one prompt in a batch, judged by each other
    beta: PositiveFloat = 1.0  # how far the implicit policies are from the old one, in units of the model's own way
    advantage_clip: PositiveFloat = 5.0  # the normalised reward at which a video is surely optimal, or surely not
    updates: Count = 1  # optimiser steps a batch, each on all of its videos
    times: Count = 4  # of an optimiser step: the random steps of the chain to which its videos are noised
    decay: Decay = 0.5  # of the old policy: what is left of it after a batch, at most
    decay_rate: NonNegativeFloat = 1e-3  # by so much the decay grows from step to step, up to there
    base_distance: NonNegativeFloat = 0.0  # weight of the squared distance to the frozen base's predictions


def nft_loss(clean: Tensor, new: Tensor, old: Tensor, optimality: Tensor, beta: float) -> Tensor:
    """DiffusionNFT's loss of B videos at one noise level (arXiv 2509.16117, weighted as in its authors' code): `[B]`.

        loss = (r * |x+ - x|^2 / w+ + (1 - r) * |x- - x|^2 / w-) / beta,   x+- = old +- beta * (new - old)

    `x` are the clean latents, `old` and `new` estimates of them, and `w` is the mean absolute error of `x+` or `x-`,
    without gradient. In a flow the estimate is `x_t - t v`, so this is the paper's regression of velocities; as the
    estimate is linear in whatever a denoiser predicts, `x+-` are those of predictions (1 -+ beta) old +- beta new too.

    Args:
        clean, new, old: `[B, D]`.
        optimality: r, `[B]` in [0, 1].
    """
    step = beta * (new - old)
    better, worse = (_weighted_error(old + sign * step, clean) for sign in (1, -1))
    return (optimality * better + (1 - optimality) * worse) / beta


def _weighted_error(estimate: Tensor, clean: Tensor) -> Tensor:
    error = estimate - clean
    return error.square().mean(dim=1) / error.detach().abs().mean(dim=1).clamp(min=LEAST_ERROR)


def clean_estimate(walk: Walk, i: int, latents: Any, prediction: Any, clean: Any) -> Tensor:
    """The clean latents `[B, D]` by a prediction at step i, not clipped; what is known of them has no error."""
    here, split = walk.start_of(i), PREDICTIONS[walk.sampler.solver.prediction]
    found = map_latents(lambda x, v: split(x, v.to(x.dtype), here.alpha, here.sigma)[0], latents, prediction)
    if known := walk.condition.known:
        found = replace(known, latents=clean).keep(found)
    return flat(found)


class OldPolicy:
    """The policy that samples, and from which the model departs: a running mean of the adapters' weights."""

    def __init__(self) -> None:
        self.weights: list[Tensor] = []  # of each of the engine's parameters, once there is a first step

    def begin(self, parameters: Sequence[Tensor]) -> None:
        """Before anything is learned it is the model itself."""
        if not self.weights:
            self.weights = [parameter.detach().clone() for parameter in parameters]
        self.weights = [weight.to(parameter.device) for weight, parameter in zip(self.weights, parameters, strict=True)]

    @contextmanager
    def used(self, parameters: Sequence[Tensor]) -> Iterator[None]:
        """Within, the adapters are the old ones; there is no graph to them."""
        new = [parameter.data for parameter in parameters]
        try:
            for parameter, weight in zip(parameters, self.weights, strict=True):
                parameter.data = weight
            with torch.no_grad():
                yield
        finally:
            for parameter, weight in zip(parameters, new, strict=True):
                parameter.data = weight

    def follow(self, parameters: Sequence[Tensor], decay: float) -> None:
        for weight, parameter in zip(self.weights, parameters, strict=True):
            weight.lerp_(parameter.detach(), 1 - decay)


@dataclass(frozen=True)
class Sampled:
    """Videos of the old policy: their final latents `[B, ...]`, and the walk that led there, without guidance."""

    batch: Batch
    walk: Walk
    latents: Any


@dataclass
class Learned:
    """Sums over the videos and times that this process has learned from in one step."""

    count: int = 0
    loss: float = 0.0
    moved: float = 0.0
    distance: float = 0.0

    def add(self, loss: Tensor, moved: Tensor, distance: Tensor) -> None:
        self.count += len(loss)
        self.loss += loss.sum().item()
        self.moved += moved.sum().item()
        self.distance += distance.sum().item()

    def means(self, engine: Engine, with_distance: bool) -> dict[str, float]:
        count, loss, moved, distance = engine.sums([self.count, self.loss, self.moved, self.distance])
        found = {"loss": loss / count, "divergence": moved / count}
        return found | ({"base_distance": distance / count} if with_distance else {})


class NFT(Algorithm):
    """Sample and score a batch by the old policy, take `updates` optimiser steps on it, let the old policy follow.

    In an optimiser step all videos share their times, so that processes are in step and no split of the batch
    matters. Only the conditional prediction is trained, or, of a denoiser that is told its guidance, that one.
    """

    Settings = NFTSettings

    def __init__(self, settings: NFTSettings, recipe: Recipe) -> None:
        super().__init__(settings, recipe)
        require_group(settings.group)
        require_share("group", settings.group, recipe.train.batch)
        if settings.times > recipe.sampling.steps:
            raise UserError(
                f"algorithm.times is {settings.times}, but the chain to whose steps videos are noised has "
                f"{recipe.sampling.steps}: lower it, or raise sampling.steps"
            )
        if recipe.sampling.guidance_detach_uncond:
            raise UserError(
                "sampling.guidance_detach_uncond is given, but nft trains the conditional prediction alone: "
                "leave it out"
            )
        self.videos_per_prompt = settings.group
        self.old = OldPolicy()

    def words(self, engine: Engine) -> list[str]:
        """See `Algorithm.words`: few prompts a step make it swing."""
        prompts = self.recipe.train.batch // self.settings.group
        if prompts >= MANY_PROMPTS:
            return []
        return [f"a step learns from {prompts} prompts: below {MANY_PROMPTS} the reward may swing; raise train.batch"]

    def without_gradient(self, metrics: Metrics) -> str:
        """See `Algorithm.without_gradient`."""
        return "all videos of a prompt have the same reward, and it learns from differences: choose one that differs"

    def state_dict(self) -> dict[str, Any]:
        return {"old": list(self.old.weights)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.old.weights = list(state["old"])

    def fill(self, engine: Engine, batch: Batch) -> None:
        """See `Algorithm.fill`: the old policy."""
        self.old.begin(engine.parameters)

    def state_bytes(self, engine: Engine) -> int:
        """See `Algorithm.state_bytes`: the adapters once more."""
        return sum(parameter.nbytes for parameter in engine.parameters)

    def step(self, engine: Engine, batch: Batch) -> Metrics:
        self.old.begin(engine.parameters)
        engine.tell(f"step {batch.step}: sampling {len(batch.prompts)} videos")
        with self.old.used(engine.parameters):
            videos = [_sample(engine, part) for part in engine.micro_batches(batch)]
            rows = torch.cat([score(engine, one.batch, one.latents) for one in videos])
        scores = gather_scores(engine, batch, batch.indices, rows)
        prompts = gather_prompts(batch)
        if not scores.finite:
            return scores.metrics([], {})
        optimality = self._optimality(group_advantages(prompts, scores.rewards))
        learned, updates = Learned(), list[Update]()
        for number in range(self.settings.updates):
            engine.tell(f"step {batch.step}: update {number + 1} of {self.settings.updates}")
            updates.append(self._update(engine, videos, optimality, number, learned))
        self.old.follow(engine.parameters, min(self.settings.decay_rate * batch.step, self.settings.decay))
        return scores.metrics(updates, learned.means(engine, self.settings.base_distance > 0))

    def _optimality(self, advantages: Tensor) -> Tensor:
        """r in [0, 1]: 1/2 for a video that is as good as its group."""
        return (advantages / (2 * self.settings.advantage_clip) + 0.5).clamp(0, 1)

    def _update(
        self, engine: Engine, videos: Sequence[Sampled], optimality: Tensor, number: int, learned: Learned
    ) -> Update:
        """One optimiser step on the mean loss of all processes' videos at the same few random times."""
        step, steps = videos[0].batch.step, len(engine.sampler.schedule)
        rng = randomness.generator(self.recipe.train.seed, "nft/time", step, number)
        times = torch.randperm(steps, generator=rng)[: self.settings.times].tolist()
        for i in times:
            for one in videos:
                with engine.clock("gradient"):
                    noise = one.walk.noise.draw(f"nft{number}/{i}")
                    loss, moved, distance = self._loss(engine, one, i, noise, optimality[list(one.batch.indices)])
                    whole = self.settings.advantage_clip * loss + self.settings.base_distance * distance
                    engine.scaler.scale(whole.sum() / (one.batch.total * len(times))).backward()
                learned.add(loss.detach(), moved, distance.detach())
        return Update(*engine.optimise())

    def _loss(
        self, engine: Engine, video: Sampled, i: int, noise: Any, optimality: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of each video at step i, `[B]`: the loss, how far the model is from the old one, and from the base."""
        walk, clean = video.walk, video.latents
        noisy = walk.renoised(clean, i, noise).latents
        with self.old.used(engine.parameters):
            old = clean_estimate(walk, i, noisy, walk.predict(i, noisy), clean)
        with walk.gradient_step():
            prediction = walk.predict(i, noisy)
        new = clean_estimate(walk, i, noisy, prediction, clean)
        moved = (new.detach() - old).square().mean(dim=1)
        loss = nft_loss(flat(clean), new, old, optimality.to(new), self.settings.beta)
        return loss, moved, self._base_distance(walk, i, noisy, prediction)

    def _base_distance(self, walk: Walk, i: int, noisy: Any, prediction: Any) -> Tensor:
        if not self.settings.base_distance:
            return flat(prediction).new_zeros(len(flat(prediction)), dtype=torch.float32)
        with adapters_disabled(walk.sampler.model.denoisers):
            base = walk.predict(i, noisy)
        return (flat(prediction) - flat(base)).square().mean(dim=1)


def _sample(engine: Engine, batch: Batch) -> Sampled:
    """Samples a micro-batch as the recipe says, and keeps the walk for training, which has no second branch."""
    walk = engine.training_walk(batch)
    latents = walk.frozen(len(walk)).latents
    guidance = walk.sampler.guidance
    trained = NoGuidance() if guidance.two_branches else guidance
    return Sampled(batch, replace(walk, sampler=replace(walk.sampler, guidance=trained)), latents)
