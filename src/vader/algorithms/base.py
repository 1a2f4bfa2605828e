"""The contract of an alignment algorithm, and the engine that each one drives.

An algorithm owns its gradient steps: it gets this process's share of a global batch and the engine, and
returns what happened. The engine holds what all algorithms share: model, reward, optimiser, averaging over
processes, seeds and clocks. Bring your own: subclass `Algorithm`, name it `module:Class` in the recipe.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from vader.models.base import Guidance, VideoModel, VideoSize
from vader.recipe import Recipe
from vader.rewards.base import RewardMix
from vader.sampling.walk import Chain, Noise, encode


@dataclass(frozen=True)
class Batch:
    """This process's videos of one optimiser step: prompts, and their indices in the global batch of `total`."""

    step: int
    prompts: tuple[str, ...]
    indices: tuple[int, ...]
    total: int

    def micro(self, size: int) -> Iterator[Batch]:
        """The same videos, at most `size` at once."""
        for start in range(0, len(self.prompts), size):
            yield self.select(range(start, min(start + size, len(self.prompts))))

    def select(self, places: Sequence[int]) -> Batch:
        """The videos at these places of this process's share."""
        prompts = tuple(self.prompts[place] for place in places)
        return Batch(self.step, prompts, tuple(self.indices[place] for place in places), self.total)


@dataclass
class Metrics:
    """What one step did, over all processes. Where it took several optimiser steps, `grad_norm` is their mean."""

    reward: float
    parts: dict[str, float]
    queries: int
    grad_norm: float
    clamped: float  # share of the decoded pixels that were clamped and so carry no gradient
    skipped: bool  # no optimiser step was taken: reward or gradient was not finite
    extra: dict[str, float] = field(default_factory=dict)


class Clock:
    """Seconds by phase since the last `reset`; on a GPU each phase ends when its kernels have."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}

    def reset(self) -> None:
        self.seconds = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began


@dataclass
class Setup:
    """What it takes to sample videos and to score them."""

    recipe: Recipe
    model: VideoModel
    reward: RewardMix
    accelerator: Accelerator

    @property
    def size(self) -> VideoSize:
        return VideoSize(**self.recipe.video.model_dump())

    @property
    def guidance(self) -> Guidance:
        sampling = self.recipe.sampling
        return Guidance(sampling.guidance, sampling.guidance_batched, sampling.guidance_detach_uncond)


@dataclass
class Engine(Setup):
    """What all algorithms share. Parameters are the adapter's; nothing else is trained."""

    parameters: list[torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    clock: Clock

    def chain(self, prompts: Sequence[str], base_distance: bool = False) -> Chain:
        """The sampling chain of these prompts, encoded."""
        schedule = self.model.solver.schedule(self.recipe.sampling.steps, self.size)
        condition = encode(self.model, prompts, self.size)
        return Chain(self.model, schedule, condition, self.guidance, base_distance, self.recipe.memory.offload)

    def noise(self, purpose: str, batch: Batch) -> Noise:
        shape = self.model.noise_shape(self.size)
        return Noise(shape, self.recipe.train.seed, purpose, batch.step, batch.indices, self.model.device)

    def micro_batches(self, batch: Batch) -> Iterator[Batch]:
        return batch.micro(self.recipe.train.micro_batch or max(1, len(batch.prompts)))

    def sum_over_processes(self, value: Tensor) -> Tensor:
        return self.accelerator.reduce(value, reduction="sum")

    def gather(self, values: Tensor, indices: Sequence[int], total: int) -> Tensor:
        """What each process has of its own videos, `[len(indices), ...]`, of all: `[total, ...]`, exact, in order."""
        whole = torch.zeros(total, *values.shape[1:], dtype=values.dtype, device=self.accelerator.device)
        whole[list(indices)] = values.to(whole.device)
        return self.sum_over_processes(whole)

    def optimise(self, finite: bool = True) -> tuple[float, bool]:
        """Sums the adapter's gradients over processes, clips, and steps unless something is not finite.

        Returns:
            The gradient's norm before clipping, and whether the step was taken.
        """
        with self.clock("optimise"):
            self._sum_gradients()
            self.scaler.unscale_(self.optimizer)
            norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.recipe.optimizer.max_grad_norm).item()
            taken = finite and math.isfinite(norm)
            if taken:
                self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad(set_to_none=True)
        return norm, taken

    def _sum_gradients(self) -> None:
        """One reduction of all gradients as a flat vector; losses are divided by the global batch already."""
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        flat = self.sum_over_processes(torch.cat([grad.flatten() for grad in grads]))
        for parameter, grad in zip(self.parameters, flat.split([p.numel() for p in self.parameters]), strict=True):
            parameter.grad = grad.view_as(parameter)


class Algorithm(ABC):
    """One way to align: `step` works on one batch.

    What it remembers from step to step belongs into `state_dict`, the same on every process: only then does a run
    that was stopped go on as if nothing had been.
    """

    videos_per_prompt: int = 1  # so many neighbours in a batch have the same prompt

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    @abstractmethod
    def step(self, engine: Engine, batch: Batch) -> Metrics:
        """Samples, scores, differentiates and optimises, once or several times; all processes call it together."""

    def check(self, engine: Engine) -> None:  # noqa: B027 (most algorithms have nothing to check)
        """Raises `UserError` if it cannot work with this model or these rewards. Asked before a run starts."""

    def state_dict(self) -> dict[str, Any]:
        """What it remembers, for checkpoints: tensors, numbers and texts in lists and dictionaries."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Takes up what `state_dict` gave."""

    def state_bytes(self, engine: Engine) -> int:
        """How large its `state_dict` can become, so that a run starts only where its checkpoints have room."""
        return 0
