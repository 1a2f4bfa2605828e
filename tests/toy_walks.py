"""Walks of the toy model in float64, for tests of exact properties; their steps also written out by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from toys import DDIM, ToyDenoiser, ToyModel
from vader.networks.adapter import add_adapters, parameters_of
from vader.nouns import Prompt, VideoSize, map_latents
from vader.sampling import Noise, View, Walk, load_guidance, make_sampler
from vader.sampling.guidance import Guidance
from vader.solvers.scheduler_config import solver_from_config

FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
SIZE = VideoSize(frames=4, height=8, width=8, fps=4)
PROMPTS = (Prompt("red"), Prompt("blue"))


@dataclass(frozen=True)
class Float64Noise(Noise):
    def draw(self, use: str) -> Any:
        return map_latents(Tensor.double, super().draw(use))


def make_model(kind: type[ToyModel] = ToyModel) -> ToyModel:
    """The toy model in float64 with adapters that are not at zero, where half of the gradients are."""
    model = kind(torch.float64)
    add_adapters(model.denoisers, model.lora_targets, rank=2)
    generator = torch.Generator().manual_seed(3)
    for parameter in parameters_of(model.denoisers):
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model


def cfg(scale: float = 3.0) -> Guidance:
    return load_guidance("cfg", {"scale": scale})


def make_walk(
    config: dict = DDIM, *, steps: int = 5, guidance: Guidance | None = None, model: ToyModel | None = None,
    eta: float = 0.0, solver: str = "auto", noise: Noise | None = None, **more: Any,
) -> Walk:  # fmt: skip
    """The chain of two videos; `more` as `make_sampler` takes it."""
    model = model or make_model()
    made = solver_from_config(config, eta=eta, kind=solver)
    sampler = make_sampler(model, SIZE, steps, guidance or cfg(), made, **more)
    noise = noise or Float64Noise(model.noise_shape(SIZE), 0, "train", 1, (0, 1))
    return Walk(sampler, model.encode(PROMPTS, SIZE), noise)


def reward(latents: Tensor) -> Tensor:
    """A curved reward of latents, `[B]`."""
    return ((1.3 * latents).sin() - 0.2 * (latents - 0.4).square()).flatten(1).mean(dim=1)


def gradient(walk: Walk, views: Iterator[View] | list[View], of: Callable[[Tensor], Tensor] = reward) -> Tensor:
    """The gradient, in all adapter weights, of the views' rewards by their weights: one vector."""
    parameters = parameters_of(walk.sampler.model.denoisers)
    for parameter in parameters:
        parameter.grad = None
    for view in views:
        (of(view.latents) * view.weight).sum().backward()
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])


# ---- by hand ----


def scaled(x: Tensor, factor: float) -> Tensor:
    """G(x, factor): the value x, its gradient times a factor."""
    return x.detach() + factor * (x - x.detach())


def pinned(x: Tensor, value: Tensor) -> Tensor:
    """The gradient of x at another value (straight through)."""
    return x + (value - x).detach()


@dataclass(frozen=True)
class ByHand:
    """A chain's own formulas, on its levels: `moved(x, v, i, j)` is a deterministic first-order step from i to j."""

    walk: Walk

    def alpha_sigma(self, i: int) -> tuple[float, float]:
        level = self.walk.sampler.schedule.starts[i] if i < len(self.walk) else self.walk.sampler.schedule.ends[-1]
        return level.alpha, level.sigma

    @property
    def is_flow(self) -> bool:
        return self.walk.sampler.solver.prediction == "velocity"

    def moved(self, x: Tensor, v: Tensor, i: int, j: int) -> Tensor:
        (a, s), (b, t) = self.alpha_sigma(i), self.alpha_sigma(j)
        if self.is_flow:
            return x + (t - s) * v  # Euler
        return b * (x - s * v) / a + t * v  # DDIM, arXiv 2010.02502, eq. 12

    def clean(self, x: Tensor, v: Tensor, i: int) -> Tensor:
        a, s = self.alpha_sigma(i)
        return x - s * v if self.is_flow else (x - s * v) / a

    def rolled(self) -> tuple[list[Tensor], list[Tensor]]:
        """Latents at every place and the prediction of every step, without gradient."""
        xs, vs = [self.walk.start().latents], []
        with torch.no_grad():
            for i in range(len(self.walk)):
                vs.append(self.walk.predict(i, xs[-1]))
                xs.append(self.moved(xs[-1], vs[-1], i, i + 1))
        return xs, vs


# ---- two experts ----


class TwoExperts(ToyModel):
    """A second denoiser takes over below the middle of time, as in Wan 2.2."""

    scheduler = FLOW

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(dtype)
        late: nn.Module = ToyDenoiser().to(dtype).requires_grad_(False).eval()
        self.denoisers = {"transformer": self.denoisers["unet"], "transformer_2": late}

    def expert(self, time: float) -> str:
        return "transformer" if time >= 500 else "transformer_2"

    def denoise(self, latents: Tensor, time: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        return self.denoisers[self.expert(float(time))](latents, time, inputs["text"])
