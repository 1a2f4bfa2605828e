"""A data anchor: the diffusion loss on good videos beside the reward's gradient (DDRL, arXiv 2512.04332).

What keeps denoising the base model's own videos, or videos that are given, has not forgotten how such videos look,
whatever a reward would have it make. In goes a step's batch; gradient of the weighted loss is left in the adapters.
The pool of videos is made once a run, before its first step, and again where a run goes on: from the seed alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from vader import randomness
from vader.algorithms.preferences import check_video
from vader.engine.batch import Batch
from vader.engine.collectives import even_shares
from vader.engine.engine import Engine
from vader.errors import UserError
from vader.files.video import read_video
from vader.networks.adapter import adapters_disabled
from vader.nouns import Prompt, flat, map_latents
from vader.prompts import load_prompts, with_negative
from vader.recipe import Recipe
from vader.recipe.sections import Section
from vader.sampling.guidance import NoGuidance
from vader.sampling.noise import Noise
from vader.sampling.walk import Walk
from vader.scoring.files import find_videos, prompts_beside

BASE = "base"


class AnchorSettings(Section):
    """Setting 'data_anchor' of algorithm 'reward_gradient'."""

    weight: PositiveFloat
    """Of the loss, beside the mean reward."""
    source: str = BASE
    """base: the frozen model's own videos; or a folder of videos with their prompts.json, as runs leave one."""
    videos: Annotated[int, Field(ge=1, le=10_000)] = 32
    """How many of the base's own are sampled, before the first step."""


@dataclass(frozen=True)
class Sample:
    """A video to learn from: its prompt, and its final latents on the CPU."""

    prompt: Prompt
    latents: Any


class DataAnchor:
    """The loss and its videos.

    Raises:
        UserError: the folder has no videos, not of the run's size, or one without a prompt; the run has segments.
    """

    def __init__(self, settings: AnchorSettings, recipe: Recipe) -> None:
        if recipe.video.segments > 1:
            raise UserError("algorithm.data_anchor is for videos of one segment: leave it out, or video.segments")
        self.settings, self.seed = settings, recipe.train.seed
        self.pool: list[Sample] = []
        self.files: list[Path] = []
        if settings.source == BASE:
            self.prompts = _spread(with_negative(load_prompts(recipe.prompts.train), recipe.sampling.negative), self)
            return
        if settings.videos != AnchorSettings.model_fields["videos"].default:
            raise UserError("algorithm.data_anchor.videos is about the base's own, and source names others: leave it")
        self.files = find_videos([Path(settings.source)])
        self.prompts = prompts_beside(self.files)
        for file, prompt in zip(self.files, self.prompts, strict=True):
            check_video(file, recipe.video.size)
            if not prompt.text:
                raise UserError(f"algorithm.data_anchor.source: prompts.json beside {file} gives it no prompt")

    def check(self, engine: Engine) -> None:
        """Raises `UserError` if the model cannot take the videos that are given."""
        if self.files:
            engine.model.check_prompts(self.prompts)
            engine.model.prepare(self.prompts)
            _encoded(engine, self.files[0])

    def pull(self, engine: Engine, batch: Batch) -> float:
        """Adds the gradient of `weight * loss` for a part of a batch to the adapters, and gives its share of the
        batch's mean loss.

        Every video of a step is noised to the same random level, among those whose denoiser is trained.
        """
        if not self.pool:
            self._make(engine)
        walk, i, samples = self._drawn(engine, batch)
        clean = map_latents(
            lambda *rows: torch.stack(rows).to(engine.model.device), *(sample.latents for sample in samples)
        )
        with engine.clock("gradient"):
            with engine.memory.gradient_step():
                errors = diffusion_errors(walk, i, clean, walk.noise.draw("anchor"))
            engine.scaler.scale(self.settings.weight * errors.sum() / batch.total).backward()
        return errors.sum().item() / batch.total

    def _drawn(self, engine: Engine, batch: Batch) -> tuple[Walk, int, Sequence[Sample]]:
        """Which videos take the places of a batch's, and at which step of the chain."""
        starts, model = engine.sampler.schedule.starts, engine.model
        steps = [i for i, level in enumerate(starts) if model.expert(level.time) in engine.adapted]
        i = steps[_below(len(steps), randomness.generator(self.seed, "anchor/step", batch.step))]
        draws = (randomness.generator(self.seed, "anchor/video", batch.step, index) for index in batch.indices)
        samples = [self.pool[_below(len(self.pool), draw)] for draw in draws]
        walk = engine.walk([one.prompt for one in samples], self.seed, "anchor", batch.step, batch.indices)
        return replace(walk, sampler=replace(engine.sampler, guidance=NoGuidance())), i, samples

    # ---- its videos ----

    def fill(self, engine: Engine, prompts: Sequence[Prompt]) -> None:
        """A pool without values: latents of these prompts, on the model's device."""
        noise = Noise(engine.model.noise_shape(engine.size), self.seed, "anchor", 0, range(1), "cpu")
        latents = map_latents(lambda x: x[0].to(engine.model.device), noise.draw("fill"))
        self.pool = [Sample(prompt, latents) for prompt in prompts]

    def _make(self, engine: Engine) -> None:
        """All processes make a share of the pool, in step, and have all of it."""
        accelerator, count = engine.accelerator, len(self.prompts)
        rank, world = accelerator.process_index, accelerator.num_processes
        at_once = engine.recipe.train.micro_batch or max(1, engine.recipe.train.batch // world)
        made = [self._made(engine, indices) for indices in even_shares(count, rank, world, at_once)]
        mine = range(rank, count, world)  # what was made beyond it repeats what others have
        pool = map_latents(lambda *parts: engine.gather(torch.cat(parts)[: len(mine)], mine, count).cpu(), *made)
        self.pool = [
            Sample(prompt, map_latents(lambda x, row=row: x[row], pool)) for row, prompt in enumerate(self.prompts)
        ]

    @torch.no_grad()
    def _made(self, engine: Engine, indices: Sequence[int]) -> Any:
        """Final latents of some of the videos, on the model's device."""
        if self.files:
            videos = [_encoded(engine, self.files[index]) for index in indices]
            return map_latents(lambda *rows: torch.cat(rows), *videos)
        engine.tell(f"sampling {len(self.prompts)} videos of the base model, to anchor on")
        chain = engine.chain([self.prompts[index] for index in indices], self.seed, "anchor/base", 0, indices)
        with engine.clock("sample"), adapters_disabled(engine.model.denoisers):
            return chain.final()


def diffusion_errors(walk: Walk, i: int, clean: Any, noise: Any) -> Tensor:
    """The loss that diffusion and flow models are trained with: mean squared error `[B]` of the prediction for clean
    latents noised to where step i starts, be it of the noise, of v or of a flow's velocity.

    Latents that are known are not noised, and have no error.
    """
    here, target = walk.start_of(i), walk.sampler.solver.target
    noisy = walk.renoised(clean, i, noise).latents
    wanted = map_latents(lambda x, e: target(x, e, here), clean, noise)
    found = map_latents(lambda prediction, x: prediction.to(x.dtype), walk.predict(i, noisy), wanted)
    if known := walk.condition.known:
        found = replace(known, latents=wanted).keep(found)
    return (flat(wanted) - flat(found)).square().mean(dim=1)


def _encoded(engine: Engine, file: Path) -> Any:
    return engine.model.encode_video(read_video(file)[None].to(engine.model.device))


def _spread(prompts: Sequence[Prompt], anchor: DataAnchor) -> list[Prompt]:
    """As many as videos are to be sampled, in random order, each as often as another."""
    order = torch.randperm(len(prompts), generator=randomness.generator(anchor.seed, "anchor/order")).tolist()
    return [prompts[order[number % len(order)]] for number in range(anchor.settings.videos)]


def _below(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))
