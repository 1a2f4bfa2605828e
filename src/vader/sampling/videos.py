"""Plain sampling: prompts in, videos out, batch by batch, without gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vader.models.base import VideoModel
from vader.nouns import Prompt, VideoSize, as_prompts
from vader.sampling.guidance import Guidance, load_guidance
from vader.sampling.noise import Noise
from vader.sampling.walk import Sampler, Walk
from vader.solvers import Solver
from vader.solvers.scheduler_config import solver_from_config


def solver_of(model: VideoModel, **options: Any) -> Solver:
    """The solver that the checkpoint's own scheduler settings name, with options of `solver_from_config`."""
    return solver_from_config(model.scheduler, sigmas=model.sigmas, tokens=model.tokens, **options)


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
    return Sampler(model, solver, solver.schedule(steps, size), guidance, batched, detach_uncond)


@torch.no_grad()
def sample_videos(
    model: VideoModel,
    prompts: Sequence[str | Prompt],
    size: VideoSize,
    steps: int = 25,
    guidance: Guidance | float = 1.0,
    solver: Solver | None = None,
    seed: int = 0,
    batch: int = 8,
    images: Tensor | None = None,
) -> Tensor:
    """Samples one video a prompt: float32 `[B, F, 3, H, W]` in [0, 1], on the CPU.

    Where the model starts from images, they are `images` `[B, 3, H, W]`, or those that the prompts carry. A video's
    noise depends on the seed and its place among the prompts alone, not on how they are batched. The other arguments
    are those of `make_sampler`.
    """
    sampler, told = make_sampler(model, size, steps, guidance, solver), as_prompts(prompts)
    shape = model.noise_shape(size)
    model.check_prompts(told, pictured=images is not None)
    model.prepare(told)
    videos = []
    for start in range(0, len(told), batch):
        some = slice(start, start + batch)
        condition = model.encode(told[some], size, None if images is None else images[some])
        noise = Noise(shape, seed, "sample", 0, range(len(told))[some], model.device)
        walk = Walk(sampler, condition, noise)
        videos.append(model.decode(walk.frozen(len(walk)).latents).cpu())
    return torch.cat(videos)
