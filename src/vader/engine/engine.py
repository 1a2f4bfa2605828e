"""What all algorithms share: model and reward on their device, the optimiser, the processes, seeds and clocks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from vader.engine.batch import Batch
from vader.engine.collectives import gather, sum_over_processes
from vader.engine.device import synchronize
from vader.models.base import VideoModel
from vader.networks.adapter import adapted
from vader.networks.average import Average
from vader.networks.techniques import Techniques
from vader.nouns import Prompt, VideoSize
from vader.recipe import Recipe
from vader.rewards.base import RewardMix
from vader.sampling.chain import Chain
from vader.sampling.noise import Noise
from vader.sampling.walk import Prefix, Sampler, Walk
from vader.scoring.choice import Group, training_groups
from vader.scoring.scorer import Scorer


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
        synchronize(self.device)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began


@dataclass
class Setup:
    """What it takes to sample videos and to score them."""

    sampler: Sampler
    scorer: Scorer
    accelerator: Accelerator

    @property
    def model(self) -> VideoModel:
        return self.sampler.model

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The model's by component name, and the tiny decoder where one works in training."""
        tiny = self.scorer.tiny
        return self.model.networks() | ({} if tiny is None else {"tiny_decoder": tiny.network})

    @property
    def reward(self) -> RewardMix:
        return self.scorer.mix

    @property
    def size(self) -> VideoSize:
        return self.scorer.size

    def chain(
        self, prompts: Sequence[Prompt], seed: int, purpose: str, step: int, indices: Sequence[int],
        trained: Container[int] = (), **more: Any,
    ) -> Chain:  # fmt: skip
        """How videos of these prompts are sampled, all their segments; `more` as `Walk` takes it."""
        noise = Noise(self.model.noise_shape(self.size.segment), seed, purpose, step, indices, self.model.device)
        return Chain(self.sampler, prompts, self.size, noise, None, trained, more)

    def walk(
        self, prompts: Sequence[Prompt], seed: int, purpose: str, step: int, indices: Sequence[int], **more: Any
    ) -> Walk:
        """The walk of these prompts' (first) segment; see `chain`."""
        return self.chain(prompts, seed, purpose, step, indices, **more).walk()


@dataclass
class Engine(Setup):
    """A setup that trains. Parameters are the adapters'; nothing else is trained."""

    recipe: Recipe
    memory: Techniques
    parameters: list[torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    clock: Clock
    average: Average | None = None  # of the parameters, if the recipe asks for one
    tell: Callable[[str], object] = lambda text: None  # hears how far a step is

    def averaged(self) -> AbstractContextManager[None]:
        """Within, the adapters are what is evaluated and exported: their average, where there is one."""
        return nullcontext() if self.average is None else self.average.applied()

    def training_chain(
        self, batch: Batch, trained: Container[int] = (0,),
        on_gradient: Callable[[Walk, int, Any, Any], object] | None = None,
    ) -> Chain:  # fmt: skip
        """How a batch's videos are sampled, under the step's noise, with gradient in some of their segments."""
        return self.chain(
            batch.prompts, self.recipe.train.seed, "train", batch.step, batch.indices, trained,
            phases=self.clock, on_gradient=on_gradient, gradient_step=self.memory.gradient_step,
            prefix=Prefix(**dict(self.recipe.sampling.prefix)),
        )  # fmt: skip

    def training_walk(self, batch: Batch) -> Walk:
        """The walk of a batch's videos of one segment, under the step's noise."""
        return self.training_chain(batch).walk()

    @property
    def adapted(self) -> list[str]:
        """The denoisers that carry an adapter."""
        return list(adapted(self.model.denoisers))

    def shown(self, batch: Batch) -> list[Group]:
        """Which frames of a batch's videos each reward is shown."""
        seed, device = self.recipe.train.seed, self.model.device
        return training_groups(self.reward, self.size, seed, batch.step, batch.indices, device)

    def micro_batches(self, batch: Batch) -> Iterator[Batch]:
        return batch.micro(self.recipe.train.micro_batch or max(1, len(batch.prompts)))

    def sums(self, values: Sequence[float]) -> list[float]:
        """Each number summed over all processes."""
        kind = torch.float32 if self.accelerator.device.type == "mps" else torch.float64  # which has no float64
        mine = torch.tensor(values, dtype=kind, device=self.accelerator.device)
        return sum_over_processes(self.accelerator, mine).tolist()

    def gather(self, values: Tensor, indices: Sequence[int], total: int) -> Tensor:
        """What each process has of its own videos, `[len(indices), ...]`, of all: `[total, ...]`, exact, in order."""
        return gather(self.accelerator, values, indices, total)

    def optimise(self, finite: bool = True) -> tuple[float, bool]:
        """Sums the adapters' gradients over processes, clips, and steps; not where something is not finite, or all
        gradient zero: momentum alone would move the adapters then.

        Returns:
            The gradient's norm before clipping, and whether the step was taken.
        """
        with self.clock("optimise"):
            self._sum_gradients()
            self.scaler.unscale_(self.optimizer)
            norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.recipe.optimizer.max_grad_norm).item()
            taken = finite and math.isfinite(norm) and norm > 0
            if taken:
                self.scaler.step(self.optimizer)
                if self.average is not None:
                    self.average.update()
            self.scaler.update()
            self.optimizer.zero_grad(set_to_none=True)
        return norm, taken

    def _sum_gradients(self) -> None:
        """One reduction of all gradients as a flat vector; losses are divided by the global batch already."""
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        flat = sum_over_processes(self.accelerator, torch.cat([grad.flatten() for grad in grads]))
        for parameter, grad in zip(self.parameters, flat.split([p.numel() for p in self.parameters]), strict=True):
            parameter.grad = grad.view_as(parameter)
