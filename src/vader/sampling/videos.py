"""Plain sampling: prompts in, videos out, batch by batch, without gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vader.errors import UserError
from vader.files.foreign import reading
from vader.models.base import VideoModel
from vader.models.joined import decoder_of
from vader.nouns import Prompt, VideoSize, as_prompts
from vader.sampling.chain import Chain
from vader.sampling.guidance import Guidance, load_guidance
from vader.sampling.noise import Noise
from vader.sampling.walk import Sampler
from vader.solvers import Schedule, Solver
from vader.solvers.scheduler_config import solver_from_config

SCHEDULER = "the checkpoint's scheduler settings cannot be used"


def solver_of(model: VideoModel, sigmas: str | Sequence[float] | None = None, **options: Any) -> Solver:
    """The solver that the checkpoint's own scheduler settings name, with options of `solver_from_config`.

    Args:
        sigmas: None: those that the model's own pipeline asks for.

    Raises:
        UserError: the settings make no solver, or an option means nothing to it.
    """
    with reading(SCHEDULER):
        asked = model.sigmas if sigmas is None else sigmas
        return solver_from_config(model.scheduler, sigmas=asked, tokens=model.tokens, **options)


def make_sampler(
    model: VideoModel,
    size: VideoSize,
    steps: int = 25,
    guidance: Guidance | float = 1.0,
    solver: Solver | None = None,
    batched: bool = True,
    detach_uncond: bool = False,
) -> Sampler:
    """How videos of a size are sampled from a model.

    Args:
        guidance: a strategy, or the scale of the one that the model was made for.
        solver: None: the one that the checkpoint's own scheduler settings name.
        batched: both branches of guidance in one batch (faster), or one after the other (less memory).
        detach_uncond: no gradient through the unconditional branch.

    Raises:
        UserError: there is no schedule of so many steps, or none for this size.
    """
    solver = solver or solver_of(model)
    if not isinstance(guidance, Guidance):
        guidance = load_guidance(model.guidance, {"scale": float(guidance)})
    with reading(SCHEDULER):
        schedule = solver.schedule(steps, size)
        _check_levels(schedule)
    return Sampler(model, solver, schedule, guidance, batched, detach_uncond)


def _check_levels(schedule: Schedule) -> None:
    """Raises `UserError` if a noise level is no number."""
    for level in (*schedule.starts, *schedule.ends):
        if not all(map(math.isfinite, (level.time, level.alpha, level.sigma))):
            raise UserError(f"{SCHEDULER}: its noise levels are not finite ({level})")


@torch.no_grad()
def sample_videos(
    model: VideoModel,
    prompts: str | Prompt | Sequence[str | Prompt],
    size: VideoSize,
    steps: int = 25,
    guidance: Guidance | float = 1.0,
    solver: Solver | None = None,
    seed: int = 0,
    batch: int = 8,
    images: Tensor | None = None,
    advance: Callable[[int], object] = lambda number: None,
) -> Tensor:
    """Samples one video a prompt, or one of a single prompt: float32 `[B, F, 3, H, W]` in [0, 1], on the CPU.

    Where the model starts from images, they are `images` `[B, 3, H, W]`, or those that the prompts carry; a size of
    several segments goes on from where each arrives (`Chain`). A video's noise depends on the seed and its place among
    the prompts alone, not on how they are batched. `advance` hears how many videos each batch has made. The other
    arguments are those of `make_sampler`.

    Raises:
        UserError: as `make_sampler`, there is no prompt or one does not fit the model, or a video holds nan.
    """
    sampler = make_sampler(model, size.segment, steps, guidance, solver)
    shape, asked = model.noise_shape(size.segment), as_prompts(prompts)
    if not asked:
        raise UserError("there is no prompt to sample a video of: give at least one")
    model.check_prompts(asked, pictured=images is not None)
    model.prepare(asked)
    decoder, videos = decoder_of(model, size), []
    for start in range(0, len(asked), batch):
        some = slice(start, start + batch)
        noise = Noise(shape, seed, "sample", 0, range(len(asked))[some], model.device)
        chain = Chain(sampler, asked[some], size, noise, None if images is None else images[some])
        videos.append(decoder.decode(chain.final()).cpu())
        _check_videos(videos[-1], asked[some])
        advance(len(asked[some]))
    return torch.cat(videos)


def _check_videos(videos: Tensor, prompts: Sequence[Prompt]) -> None:
    """Raises `UserError` for the first video that is not of numbers: no viewer would show more than black."""
    for video, prompt in zip(videos, prompts, strict=True):
        if not torch.isfinite(video).all():
            raise UserError(
                f"the video of {prompt.text!r} holds nan: the model's settings or the adapter are damaged, "
                "or the precision is too low for it"
            )
