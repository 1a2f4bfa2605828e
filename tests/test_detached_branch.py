"""Guidance and the gradient: what is cut is cut wholly, what stays is the published formula's."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from toys import ToyModel
from vader.networks.adapter import adapter_parameters, add_adapter
from vader.nouns import VideoSize, as_prompts
from vader.sampling.noise import Noise
from vader.sampling.videos import make_sampler
from vader.sampling.walk import Walk

STEPS, SCALE, SIZE = 5, 4.0, VideoSize(frames=4, height=8, width=8)
ACTIVE = (3, 4)


@dataclass(frozen=True)
class Float64Noise(Noise):
    def draw(self, use: str) -> Tensor:
        return super().draw(use).double()


def walk_of(detach_uncond: bool, batched: bool = True) -> Walk:
    """In float64, its adapter away from zero, on the CPU."""
    model = ToyModel(dtype=torch.float64)
    add_adapter(model.denoiser, model.lora_targets, rank=2)
    generator = torch.Generator().manual_seed(3)
    for parameter in adapter_parameters(model.denoiser):
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    sampler = replace(make_sampler(model, SIZE, STEPS, SCALE), batched=batched, detach_uncond=detach_uncond)
    condition = model.encode(as_prompts(["red", "blue"]), SIZE)
    return Walk(sampler, condition, Float64Noise(model.noise_shape(SIZE), 0, "train", 1, (0, 1)))


def gradient(walk: Walk, latents: Tensor) -> Tensor:
    """Of a curved function of the final latents, in all adapter weights, as one vector."""
    parameters = adapter_parameters(walk.sampler.model.denoiser)
    return torch.cat([part.flatten() for part in torch.autograd.grad(torch.sin(3 * latents).sum(), parameters)])


def by_hand(walk: Walk, through_uncond: bool) -> Tensor:
    """Final latents, each step's two passes written out; without `through_uncond` one of them is a mere number."""
    model, schedule, latents = walk.sampler.model, walk.sampler.schedule, walk.start().latents
    for i, (here, there) in enumerate(zip(schedule.starts, schedule.ends, strict=True)):
        with torch.set_grad_enabled(i in ACTIVE):
            seen, time = latents * here.input_scale, torch.tensor(here.time, dtype=torch.float64)
            cond = model.denoise(seen, time, walk.condition.cond)
            uncond = model.denoise(seen, time, walk.condition.uncond)
            uncond = uncond if through_uncond else torch.tensor(uncond.tolist(), dtype=torch.float64)
            guided = uncond + SCALE * (cond - uncond)
            latents = walk.sampler.solver.step(latents, guided, here, there).next
    return latents


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("detach", [True, False])
def test_detached_unconditional_branch(detach: bool, batched: bool) -> None:
    """The gradient is the one of a chain in which the unconditional predictions are constants: none through weights,
    none through the latents that go into them, at two steps in a row."""
    walk = walk_of(detach, batched)
    walk.condition.uncond["text"].requires_grad_()
    final = walk.to(STEPS, walk.frozen(ACTIVE[0]), active=ACTIVE)
    found = gradient(walk, final.latents)
    torch.testing.assert_close(final.latents, by_hand(walk, True), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found, gradient(walk, by_hand(walk, not detach)), rtol=1e-12, atol=1e-14)
    other = gradient(walk, by_hand(walk, detach))
    assert not torch.allclose(found, other, rtol=1e-2)  # the two are far apart: the test can fail


@pytest.mark.parametrize("detach", [True, False])
def test_nothing_of_a_detached_branch_has_a_graph(detach: bool) -> None:
    walk = walk_of(detach)
    text = walk.condition.uncond["text"].requires_grad_()
    walk.to(STEPS, walk.frozen(ACTIVE[0]), active=ACTIVE).latents.sum().backward()
    assert (text.grad is None) == detach
