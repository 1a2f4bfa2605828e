"""The denoising loop: from noise to latents, with a graph exactly where the gradient policy asks for one.

What comes before the first active step runs under `no_grad`; no graph is ever built and then thrown away.
Plain sampling is the same loop under a plan without active steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from vader import randomness
from vader.files.images import prompt_images
from vader.models.base import Condition, Guidance, VideoModel, VideoSize
from vader.networks.adapter import adapter_disabled
from vader.networks.memory import offload_activations
from vader.sampling.policies import Plan
from vader.solvers import Schedule, Step


@dataclass(frozen=True)
class Noise:
    """The noise of some videos of a global batch: one stream for each use, each video its own."""

    shape: tuple[int, ...]
    seed: int
    purpose: str
    step: int
    indices: Sequence[int]
    device: torch.device | str = "cpu"

    def draw(self, use: str) -> Tensor:
        """Standard normal `[len(indices), *shape]`, the same for the same use."""
        return randomness.normal(self.shape, self.seed, f"{self.purpose}/{use}", self.step, self.indices, self.device)


class Phases(Protocol):
    """Where time goes: `with phases("sample"): ...`."""

    def __call__(self, name: str) -> AbstractContextManager[None]: ...


def untimed(name: str) -> AbstractContextManager[None]:
    return nullcontext()


@dataclass(frozen=True)
class Chain:
    """Everything that fixes a sampling chain but its noise: model, schedule, condition of B videos, guidance.

    `base_distance` asks the active steps for their squared distance to the frozen base's predictions.
    """

    model: VideoModel
    schedule: Schedule
    condition: Condition
    guidance: Guidance
    base_distance: bool = False
    offload: bool = False

    def predict(self, i: int, latents: Tensor) -> Tensor:
        """The guided prediction at step i for unscaled latents."""
        scaled = latents * float(self.schedule.input_scale[i])
        return self.model.predict(scaled, self.schedule.times[i].to(latents), self.condition, self.guidance)

    def advance(self, i: int, latents: Tensor, prediction: Tensor, noise: Noise, state: Any = None) -> Step:
        fresh = noise.draw(f"step{i}") if self.model.solver.stochastic else None
        return self.model.solver.step(self.schedule, i, latents, prediction, fresh, state)

    def start(self, noise: Noise) -> Tensor:
        return noise.draw("start") * self.schedule.init_scale


@dataclass(frozen=True)
class View:
    """Latents `[B, ...]` that the reward sees, and their summed squared distance to the base's predictions or 0."""

    latents: Tensor
    distance: Tensor


def sample_latents(chain: Chain, noise: Noise) -> Tensor:
    """Final latents, without gradient."""
    latents, state = chain.start(noise), None
    with torch.no_grad():
        for i in range(len(chain.schedule)):
            latents, *_, state = chain.advance(i, latents, chain.predict(i, latents), noise, state)
    return latents


def views(chain: Chain, noise: Noise, plan: Plan, phases: Phases = untimed) -> Iterator[View]:
    """What the reward sees under a plan, with graph. Backpropagate each view before asking for the next.

    VADER's Algorithm 1 (arXiv 2407.08737) is the plan "last K": T - K steps without graph, K with.
    """
    with phases("sample"), torch.no_grad():
        latents, state = _prefix(chain, noise, plan.first)
    with phases("gradient"), offload_activations(chain.offload):
        first = _active(chain, noise, plan, latents, state)
    yield first
    clean, last = first.latents.detach(), plan.last
    for view in range(1, plan.views):
        with phases("gradient"), offload_activations(chain.offload):
            again = chain.model.solver.renoise(chain.schedule, last, clean, noise.draw(f"view{view}"))
            prediction = chain.predict(last, again)
            stepped = chain.advance(last, again, prediction, noise).next
            seen = View(stepped, _distance(chain, last, again, prediction))
        yield seen


def _prefix(chain: Chain, noise: Noise, until: int) -> tuple[Tensor, Any]:
    latents, state = chain.start(noise), None
    for i in range(until):
        latents, *_, state = chain.advance(i, latents, chain.predict(i, latents), noise, state)
    return latents, state


def _active(chain: Chain, noise: Noise, plan: Plan, latents: Tensor, state: Any) -> View:
    distance = latents.new_zeros(())
    for i in range(plan.first, len(chain.schedule)):
        seen = latents.detach() if plan.detach_input else latents
        with torch.set_grad_enabled(i in plan.active):
            prediction = chain.predict(i, seen)
        if i in plan.active:
            distance = distance + _distance(chain, i, seen, prediction)
        step = chain.advance(i, latents, prediction, noise, state)
        if plan.sees == "clean" and i == plan.last:
            return View(step.clean, distance)
        latents, state = step.next, step.state
    return View(latents, distance)


def _distance(chain: Chain, i: int, latents: Tensor, prediction: Tensor) -> Tensor:
    """Mean squared distance of predictions to the frozen base's, summed over the B videos: a pull towards the base."""
    if not chain.base_distance:
        return prediction.new_zeros(())
    with torch.no_grad(), adapter_disabled(chain.model.denoiser):
        base = chain.predict(i, latents)
    return (prediction - base).square().flatten(1).mean(dim=1).sum()


def encode(model: VideoModel, prompts: Sequence[str], size: VideoSize, images: Tensor | None = None) -> Condition:
    """The condition of B prompts; a model that starts from images gets those the prompts carry, or `images`."""
    if images is None and model.takes_images:
        images = prompt_images(prompts, size.height, size.width)
    return model.encode(prompts, images, size)


@torch.no_grad()
def sample_videos(
    model: VideoModel,
    prompts: Sequence[str],
    size: VideoSize,
    steps: int,
    guidance: Guidance,
    seed: int = 0,
    batch: int = 8,
    images: Tensor | None = None,
    indices: Sequence[int] | None = None,
) -> Tensor:
    """Samples one video a prompt: float32 `[B, F, 3, H, W]` in [0, 1], on the CPU.

    Where the model starts from images, they are `images` `[B, 3, H, W]`, or those that the prompts carry. A video's
    noise depends on the seed and its index alone (None: its place among the prompts), not on how the prompts are
    batched.
    """
    schedule, shape = model.solver.schedule(steps, size), model.noise_shape(size)
    if images is None:
        model.check_prompts(prompts)
    model.prepare(prompts)
    indices = range(len(prompts)) if indices is None else indices
    videos = []
    for start in range(0, len(prompts), batch):
        some = slice(start, start + batch)
        condition = encode(model, prompts[some], size, None if images is None else images[some])
        noise = Noise(shape, seed, "sample", 0, indices[some], model.device)
        videos.append(model.decode(sample_latents(Chain(model, schedule, condition, guidance), noise)).cpu())
    return torch.cat(videos)
