"""VADER: alignment by the gradient of the reward (arXiv 2407.08737, Algorithm 1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from pydantic import NonNegativeFloat, NonNegativeInt
from torch import Tensor

from vader import randomness
from vader.algorithms.base import Algorithm, Metrics, unreached
from vader.algorithms.data_anchor import AnchorSettings, DataAnchor
from vader.engine.batch import Batch
from vader.engine.engine import Engine
from vader.errors import UserError
from vader.networks.adapter import adapters_disabled
from vader.nouns import flat
from vader.plugins import Part
from vader.recipe import PrefixSection, Recipe
from vader.sampling.policies import View, load_policy
from vader.sampling.rehearsal import rehearse
from vader.sampling.walk import Walk
from vader.scoring.before_decoder import pull_latents, seen_in
from vader.scoring.scorer import Scored

LITTLE_NOISE = 0.05  # a flow's sigma: with less noise a prediction hardly counts in the clean latents
MOSTLY_CLAMPED = 0.9  # a share of the pixels that explains a lack of gradient


@dataclass(frozen=True)
class RewardGradientSettings:
    """Settings of algorithm 'reward_gradient'."""

    policy: Part = field(default_factory=lambda: Part.model_validate({"name": "last", "k": 1}))  # where gradient enters
    split_backward: bool = True  # through rewards and decoder piece by piece, then once through the chain
    base_distance: NonNegativeFloat = 0.0  # weight of the squared distance to the frozen base's predictions
    data_anchor: AnchorSettings | None = None  # diffusion loss on the base's own or on given videos beside the reward
    normalise: bool = False  # each reward's gradient has the same size at the latents, so that weights are shares
    segments: Literal["last", "all"] | tuple[NonNegativeInt, ...] = "last"  # of a video, those with gradient


class RewardGradient(Algorithm):
    """Sample, score some frames, and send the reward's gradient through the policy's denoising steps."""

    Settings = RewardGradientSettings
    differentiates = True
    chains = True

    def __init__(self, settings: RewardGradientSettings, recipe: Recipe) -> None:
        super().__init__(settings, recipe)
        self.policy = load_policy(settings.policy.name, settings.policy.options)
        rehearsed = rehearse(self.policy, recipe.sampling.steps)
        self.active = frozenset[int]().union(*rehearsed)
        if recipe.sampling.prefix != PrefixSection() and all(0 in steps for steps in rehearsed):
            raise UserError(
                f"sampling.prefix is about the steps before those with gradient, and the policy "
                f"{settings.policy.name!r} has gradient from the first step on: leave it out"
            )
        if settings.normalise and not settings.split_backward:
            raise UserError("algorithm.normalise takes each reward's gradient by itself: leave split_backward true")
        self.anchor = settings.data_anchor and DataAnchor(settings.data_anchor, recipe)
        self.trained = chosen_segments(settings.segments, recipe.video.segments)

    def check(self, engine: Engine) -> None:
        """See `Algorithm.check`: every denoiser with an adapter must get gradient."""
        if missed := unreached(engine, self.active):
            reached = [name for name in engine.model.denoisers if name not in missed]
            raise UserError(
                f"the policy {self.settings.policy.name!r} never reaches {missed[0]!r}, which denoises other steps "
                f"than {sorted(self.active)}: choose a policy that goes further back, or set adapter.denoisers to "
                f"[{', '.join(sorted(reached))}]"
            )
        if self.anchor:
            self.anchor.check(engine)

    def fill(self, engine: Engine, batch: Batch) -> None:
        """See `Algorithm.fill`: the data anchor's videos."""
        if self.anchor:
            self.anchor.fill(engine, batch.prompts)

    def words(self, engine: Engine) -> list[str]:
        """See `Algorithm.words`: how noisy the latents are where gradient enters first, so how much it can change."""
        starts, first = engine.sampler.schedule.starts, min(self.active)
        share = starts[first].noise_share
        line = f"gradient enters from step {first + 1} of {len(starts)} on, at sigma {share:.3f} (0 clean, 1 noise)"
        if share >= LITTLE_NOISE:
            return [line]
        return [
            f"{line}: below {LITTLE_NOISE:g} colours and details can change, hardly what is where; with a policy that "
            "goes further back it enters sooner"
        ]

    def without_gradient(self, metrics: Metrics) -> str:
        """See `Algorithm.without_gradient`."""
        if metrics.clamped > MOSTLY_CLAMPED:
            return (
                f"{metrics.clamped:.0%} of the pixels are clamped to [0, 1], where none flows: bring what the decoder "
                "gives into that range ('vader check model' looks at it)"
            )
        if any(reward.hinge is not None for reward in self.recipe.rewards):
            return "every video may be beyond rewards.hinge, good enough: the run can end here, or raise it"
        return (
            "the reward is constant there, cut off or on a plateau ('vader check reward' looks at it), or the model's "
            "prediction does not count in the steps that are trained ('vader check model')"
        )

    def step(self, engine: Engine, batch: Batch) -> Metrics:
        tally = Tally()
        for part in engine.micro_batches(batch):
            distance = BaseDistance() if self.settings.base_distance else None
            chain = engine.training_chain(part, self.trained, on_gradient=distance)
            for view in chain.views(self.policy, randomness.generator(self.recipe.train.seed, "policy", batch.step)):
                weight = torch.ones(len(part.prompts), device=engine.model.device) * view.weight / batch.total
                scale = engine.scaler.scale(weight)
                loss, scored = self._score(engine, part, view, scale)
                pull = distance.taken() if distance else torch.zeros_like(scale)
                with engine.clock("gradient"):
                    (loss + self.settings.base_distance * (scale * pull).sum()).backward()
                tally.add(scored, pull)
            tally.anchor += self.anchor.pull(engine, part) if self.anchor else 0.0
        return self._finish(engine, tally)

    def _score(self, engine: Engine, batch: Batch, view: View, scale: Tensor) -> tuple[Tensor, Scored]:
        """What to differentiate: its gradient is that of minus the mean reward, as far as these videos go."""
        scorer, normalise = engine.scorer, self.settings.normalise
        with engine.clock("decode_reward"):
            before, beside = torch.zeros_like(scale).sum(), dict[str, Tensor]()
            if scorer.mix.latent:
                before, beside = pull_latents(scorer.mix, seen_in(view), scale, normalise)
            shown = (view.latents, batch.prompts, engine.shown(batch), scale, beside)
            if not self.settings.split_backward:
                loss, scored = scorer.graph(*shown)
                return before + loss, scored
            gradient, scored = scorer.pull_normalised(*shown) if normalise else scorer.pull(*shown)
            return before + (flat(view.latents) * flat(gradient)).sum(), scored

    def _finish(self, engine: Engine, tally: Tally) -> Metrics:
        names = engine.reward.part_names
        found = [tally.videos, tally.anchor, tally.total, tally.clamped, tally.distance]
        videos, anchor, *sums = engine.sums([*found, *(tally.parts[name] for name in names)])
        reward, clamped, distance, *parts = (value / videos for value in sums)
        norm, taken = engine.optimise(all(map(math.isfinite, (reward, clamped, distance, anchor, *parts))))
        extra = {"base_distance": distance} if self.settings.base_distance else {}
        extra |= {"data_anchor": anchor} if self.anchor else {}
        return Metrics(reward, dict(zip(names, parts, strict=True)), int(videos), norm, clamped, not taken, extra)


def chosen_segments(asked: Literal["last", "all"] | tuple[int, ...], there: int) -> Sequence[int]:
    """The numbers of the segments that get gradient. Raises `UserError` if one is not there, or none is asked for."""
    if isinstance(asked, str):
        return range(there) if asked == "all" else [there - 1]
    if not asked or len(set(asked)) < len(asked):
        raise UserError(f"algorithm.segments is {list(asked)}: name at least one, and each once, as [0, 2]")
    if max(asked) >= there:
        raise UserError(
            f"algorithm.segments names {max(asked)}, but video.segments is {there}: they are 0 to {there - 1}"
        )
    return asked


@dataclass
class Tally:
    """Sums over the videos that this process has scored in one step."""

    videos: int = 0
    total: float = 0.0
    clamped: float = 0.0
    distance: float = 0.0
    anchor: float = 0.0  # of the mean over the global batch, this process's share
    parts: dict[str, float] = field(default_factory=dict)

    def add(self, scored: Scored, distance: Tensor) -> None:
        count = len(scored.total)
        self.videos += count
        self.total += scored.total.sum().item()
        self.clamped += scored.clamped.item() * count
        self.distance += distance.sum().item()
        for name, part in scored.parts.items():
            self.parts[name] = self.parts.get(name, 0.0) + part.sum().item()


class BaseDistance:
    """Mean squared distance of predictions to the frozen base's, `[B]`, summed over steps: a pull towards the base."""

    def __init__(self) -> None:
        self.sum: Tensor | None = None

    def __call__(self, walk: Walk, i: int, latents: Any, prediction: Any) -> None:
        with adapters_disabled(walk.sampler.model.denoisers):
            base = walk.predict(i, latents)
        distance = (flat(prediction) - flat(base)).square().mean(dim=1)
        self.sum = distance if self.sum is None else self.sum + distance

    def taken(self) -> Tensor:
        """The sum since the last time, with graph."""
        found, self.sum = self.sum, None
        assert found is not None  # a view has come, so there was a step with gradient
        return found
