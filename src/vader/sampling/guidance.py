"""Guidance: how the conditional and the unconditional prediction of a denoiser become one, at every time of the chain.

A strategy gets one pass of the denoiser as a function and the condition, and knows the time. Strategies by name:
`cfg`, `ramp`, `interval`, `dynamic`, `experts`, `modalities`, `embedded`, `none`; or `module:Class`, a subclass of
`Guidance`. A model names the one it was made for (`VideoModel.guidance`), and a recipe its scale, or another with
options.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from vader.errors import UserError, nearest
from vader.models.base import VideoModel
from vader.nouns import Condition, Prompt, map_latents
from vader.plugins import explain_methods, explained, find_class, instantiate, is_built_in

Scale = Annotated[float, Field(ge=1.0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


@dataclass(frozen=True)
class Passes:
    """One or two passes of a model's denoiser at one time.

    `batched` runs both branches as one batch (faster) or one after the other (less memory). `detach_uncond` stops the
    gradient of the unconditional branch. `share` is how far the chain is, from 0 at its noise to 1 at its end, and
    `steps` how many it has.
    """

    model: VideoModel
    latents: Any  # scaled
    time: Tensor  # what the denoiser is told
    condition: Condition
    share: float = 0.0
    batched: bool = True
    detach_uncond: bool = False
    steps: int = 1

    def cond(self, **more: Tensor) -> Any:
        """The conditional prediction; `more` goes to the denoiser beside the condition."""
        return self.model.denoise(self.latents, self.time, {**self.condition.cond, **more})

    def both(self) -> tuple[Any, Any]:
        """The conditional and the unconditional prediction."""
        if self.batched and not (self.detach_uncond and torch.is_grad_enabled()):
            doubled = map_latents(lambda x: torch.cat([x, x]), self.latents)
            with explained("a prompt and its negative are encoded in ways that do not go together"):
                inputs = self.condition.both()
            found = self.model.denoise(doubled, self.time, inputs)
            halves = [map_latents(lambda x, half=half: x.chunk(2)[half], found) for half in (0, 1)]
            return halves[0], halves[1]
        cond = self.cond()
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.detach_uncond):
            return cond, self.model.denoise(self.latents, self.time, self.condition.uncond)


class Guidance(ABC):
    """A strategy; its options are its constructor's."""

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        if not is_built_in(cls):
            explain_methods(cls, ("__call__", "check"), lambda guidance: f"guidance {type(guidance).__name__!r}")

    @property
    def two_branches(self) -> bool:
        """Whether it ever asks for the unconditional prediction, so that negative prompts mean something."""
        return True

    def check(self, model: VideoModel, steps: int) -> None:
        """Raises `UserError` where it cannot lead this model in so many steps; asked once, before any is made."""
        return

    @abstractmethod
    def __call__(self, passes: Passes) -> Any:
        """The guided prediction, like the latents, with a graph wherever grad mode and weights ask for one."""


@dataclass(frozen=True)
class NoGuidance(Guidance):
    """The conditional prediction alone; one pass."""

    @property
    def two_branches(self) -> bool:
        return False

    def __call__(self, passes: Passes) -> Any:
        return passes.cond()


@dataclass(frozen=True)
class ClassifierFree(Guidance):
    """`uncond + scale * (cond - uncond)` (arXiv 2207.12598, eq. 6, scale = 1 + w there); scale 1 needs one pass.

    `rescale` is the share of a prediction that has the conditional one's spread (arXiv 2305.08891, section 3.4).
    """

    scale: Scale
    rescale: Share = 0.0

    @property
    def two_branches(self) -> bool:
        return self.scale != 1.0

    def __call__(self, passes: Passes) -> Any:
        if self.scale == 1.0 or self.rescale == 0.0:
            return _guided(passes, self.scale)
        return map_latents(self._rescaled, *passes.both())

    def _rescaled(self, cond: Tensor, uncond: Tensor) -> Tensor:
        guided, dims = uncond + self.scale * (cond - uncond), tuple(range(1, cond.ndim))
        spread = cond.std(dims, keepdim=True) / guided.std(dims, keepdim=True)
        return guided * (1 + self.rescale * (spread - 1))


@dataclass(frozen=True)
class Ramp(Guidance):
    """Guidance by frame: 1 at the first, `scale` at the last (SVD, arXiv 2311.15127, section 4.3)."""

    scale: Scale

    @property
    def two_branches(self) -> bool:
        return self.scale != 1.0

    def __call__(self, passes: Passes) -> Any:
        if self.scale == 1.0:
            return passes.cond()
        axis = passes.model.frame_axis

        def combine(cond: Tensor, uncond: Tensor) -> Tensor:
            ramp = torch.linspace(1.0, self.scale, cond.shape[axis], dtype=cond.dtype, device=cond.device)
            shape = [-1 if axis == place else 1 for place in range(cond.ndim)]
            return uncond + ramp.view(shape) * (cond - uncond)

        return map_latents(combine, *passes.both())


@dataclass(frozen=True)
class Interval(Guidance):
    """Classifier-free guidance in a part of the chain, one pass elsewhere (arXiv 2404.07724).

    `start` and `end` are shares of the chain's steps, from 0 at its noise to 1 at its end.
    """

    scale: Scale
    start: float = 0.0
    end: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 <= self.start < self.end <= 1.0:
            raise UserError(f"guidance 'interval': start {self.start:g} must be below end {self.end:g}, both in [0, 1]")

    @property
    def two_branches(self) -> bool:
        return self.scale != 1.0

    def check(self, model: VideoModel, steps: int) -> None:
        if not any(self.start <= i / steps < self.end for i in range(steps)):
            raise UserError(
                f"guidance 'interval': none of {steps} steps starts between {self.start:g} and {self.end:g}: widen it"
            )

    def __call__(self, passes: Passes) -> Any:
        return _guided(passes, self.scale if self.start <= passes.share < self.end else 1.0)


@dataclass(frozen=True)
class Dynamic(Guidance):
    """CogVideoX's: `1 + scale * (1 - cos(pi * ((S - t) / S) ** 5)) / 2` at trained time t of a chain of S steps.

    This is its release's formula, and diffusers' (`use_dynamic_cfg`). As t runs to 1000 and S is some 50, it swings
    between 1 and 1 + scale in the first steps, and is all but 1 in the last ones.
    """

    scale: Scale

    def __call__(self, passes: Passes) -> Any:
        left = (passes.steps - passes.time.double()) / passes.steps  # double: the cosine is of millions
        scale = (1 + self.scale * (1 - torch.cos(math.pi * left**5)) / 2).float()
        return map_latents(lambda cond, uncond: uncond + scale * (cond - uncond), *passes.both())


@dataclass(frozen=True)
class Experts(Guidance):
    """Classifier-free guidance with a scale for each denoiser of a model with several (Wan 2.2)."""

    scales: dict[str, Scale]

    @property
    def two_branches(self) -> bool:
        return any(scale != 1.0 for scale in self.scales.values())

    def check(self, model: VideoModel, steps: int) -> None:
        for name in model.denoisers:
            if name not in self.scales:
                raise UserError(f"guidance 'experts' has no scale for {name!r}: add it to scales")
        for name in self.scales:
            if name not in model.denoisers:
                raise UserError(f"guidance 'experts': no denoiser {name!r}; {nearest(name, model.denoisers)}")

    def __call__(self, passes: Passes) -> Any:
        return _guided(passes, self.scales[passes.model.expert(float(passes.time))])


@dataclass(frozen=True)
class Modalities(Guidance):
    """Classifier-free guidance with a scale for each of a model's latents by name (video and audio)."""

    scales: dict[str, Scale]

    @property
    def two_branches(self) -> bool:
        return any(scale != 1.0 for scale in self.scales.values())

    def check(self, model: VideoModel, steps: int) -> None:
        shape = model.noise_shape(model.check_size)
        if not isinstance(shape, dict):
            raise UserError(f"guidance 'modalities': {type(model).__name__} has one kind of latents: use 'cfg'")
        if {*shape} != {*self.scales}:
            raise UserError(
                f"guidance 'modalities' has scales of {', '.join(self.scales)}: the latents are {', '.join(shape)}"
            )

    def __call__(self, passes: Passes) -> Any:
        if not self.two_branches:
            return passes.cond()
        cond, uncond = passes.both()
        return {name: uncond[name] + scale * (cond[name] - uncond[name]) for name, scale in self.scales.items()}


@dataclass(frozen=True)
class Embedded(Guidance):
    """The denoiser was distilled to be told the scale, as its input `guidance` `[B]`; one pass (HunyuanVideo)."""

    scale: PositiveFloat

    @property
    def two_branches(self) -> bool:
        return False

    def check(self, model: VideoModel, steps: int) -> None:
        if model.guidance != "embedded":
            raise UserError(
                f"guidance 'embedded' is for denoisers that are told a scale, and {type(model).__name__} was made for "
                f"{model.guidance!r}: use that"
            )

    def __call__(self, passes: Passes) -> Any:
        rows = len(passes.condition)
        return passes.cond(guidance=torch.full((rows,), self.scale, device=passes.model.device))


def _guided(passes: Passes, scale: float) -> Any:
    if scale == 1.0:
        return passes.cond()
    return map_latents(lambda cond, uncond: uncond + scale * (cond - uncond), *passes.both())


STRATEGIES: dict[str, type[Guidance]] = {
    "cfg": ClassifierFree,
    "ramp": Ramp,
    "interval": Interval,
    "dynamic": Dynamic,
    "experts": Experts,
    "modalities": Modalities,
    "embedded": Embedded,
    "none": NoGuidance,
}


def load_guidance(name: str, options: Mapping[str, Any]) -> Guidance:
    """A strategy by name or `module:Class`.

    Raises:
        UserError: there is none of that name, or an option is unknown, missing or wrong.
    """
    return instantiate(find_class(name, "guidance", STRATEGIES, Guidance), f"guidance {name!r}", options)


def check_negatives(guidance: Guidance, prompts: Sequence[Prompt]) -> None:
    """Raises `UserError` if a prompt has a negative that this guidance would never look at."""
    if guidance.two_branches:
        return
    for prompt in prompts:
        if prompt.negative:
            raise UserError(
                f"{prompt.text!r} has the negative prompt {prompt.negative!r}, but under this guidance nothing is led "
                "away from: raise sampling.guidance, or leave negative prompts out"
            )
