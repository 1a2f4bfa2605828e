"""The network passes that a training step cannot do without: how many, and each as a bare call of its network.

In go the engine and a batch, out come `Pass`es on tensors of the shapes and types that the step has. Their sum is
what an ideal step would cost; their floating-point operations can be counted on the meta device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vader import randomness
from vader.algorithms.base import Batch, Engine
from vader.files.images import prompt_images
from vader.models.base import VideoModel, VideoSize
from vader.models.modelscope import ModelScope
from vader.sampling.policies import Plan, draw_plan
from vader.sampling.walk import Chain
from vader.scoring.frames import choose_frames


@dataclass(frozen=True)
class Pass:
    """A call of one network, and how often a training step needs it."""

    name: str
    count: int
    run: Callable[[], Any]

    def run_all(self) -> None:
        for _ in range(self.count):
            self.run()


@dataclass(frozen=True)
class Calls:
    """How often one micro-batch needs each kind of pass; a guided denoiser pass counts once.

    Attributes:
        no_grad: denoiser, without graph.
        adapter_only: denoiser, with gradient to the adapter, the latents being constant.
        through: denoiser, with gradient to the adapter and to the latents.
        scores: decoder and reward.
    """

    no_grad: int
    adapter_only: int
    through: int
    scores: int


def necessary_calls(plan: Plan, steps: int, base_distance: bool = False) -> Calls:
    """What a gradient plan needs over a chain of `steps`; a pull towards the base asks it once per active pass."""
    end = steps if plan.sees == "final" else plan.last + 1
    through = 0 if plan.detach_input else len(plan.active) - 1
    active = len(plan.active) + plan.views - 1
    return Calls(end - len(plan.active) + base_distance * active, active - through, through, plan.views)


def necessary_passes(engine: Engine, batch: Batch) -> list[Pass]:
    """The passes of a training step of the reward gradient on this batch.

    Networks are called as the recipe sets them up: adapter attached, blocks recomputed where it says so.
    """
    recipe = engine.recipe
    micro = next(engine.micro_batches(batch))
    repeats = len(batch.prompts) // len(micro.prompts)
    plan = draw_plan(
        recipe.algorithm.policy, recipe.sampling.steps, randomness.generator(recipe.train.seed, "policy", batch.step)
    )
    calls = necessary_calls(plan, recipe.sampling.steps, recipe.algorithm.base_distance > 0)
    chain, latents = engine.chain(micro.prompts), engine.noise("train", micro).draw("start")
    frames = choose_frames(recipe.algorithm.frames, recipe.video.frames, recipe.train.seed, batch.step, micro.indices)
    passes = [
        Pass("encoder", repeats, encoding(engine.model, micro.prompts, engine.size)),
        Pass("denoiser, no gradient", repeats * calls.no_grad, denoising(chain, latents, grad=False)),
        Pass("denoiser, gradient to adapter", repeats * calls.adapter_only, denoising(chain, latents, grad=True)),
        Pass("denoiser, gradient to latents too", repeats * calls.through, denoising(chain, latents, True, True)),
        Pass("decoder", repeats * calls.scores, decoding(engine.model, latents, frames)),
        Pass("reward", repeats * calls.scores, scoring(engine, micro, frames.shape[1])),
        Pass("optimiser", 1, optimising(engine)),
    ]
    return [one for one in passes if one.count]


# ---- bare calls: of ModelScope's networks directly, of another family's through its contract's one call ----


def encoding(model: VideoModel, prompts: tuple[str, ...], size: VideoSize) -> Callable[[], Any]:
    """Prompts and the empty prompt, or the pictures that videos start from."""
    if not isinstance(model, ModelScope):
        images = prompt_images(prompts, size.height, size.width) if model.takes_images else None
        return lambda: model.encode(prompts, images, size)
    settings = {"padding": "max_length", "max_length": model.tokenizer.model_max_length, "truncation": True}
    tokens = [model.tokenizer(texts, return_tensors="pt", **settings).input_ids for texts in (list(prompts), [""])]
    ids = [some.to(model.device) for some in tokens]
    return torch.no_grad()(lambda: [model.text_encoder(some)[0] for some in ids])


def denoising(chain: Chain, latents: Tensor, grad: bool, through: bool = False) -> Callable[[], Any]:
    """One guided pass; with gradient, forward and backward, to the adapter and perhaps to the latents."""
    time = chain.schedule.times[0].to(latents.device)
    calls = [
        differentiated(_denoiser(chain.model, time, inputs), rows, chain.model.denoiser, through)
        if branch_grad
        else torch.no_grad()(_bound(_denoiser(chain.model, time, inputs), rows))
        for rows, inputs, branch_grad in _branches(chain, latents, grad)
    ]
    return lambda: [call() for call in calls]


def _branches(chain: Chain, latents: Tensor, grad: bool) -> list[tuple[Tensor, dict[str, Tensor], bool]]:
    """Latents, inputs and whether there is gradient, for each call that guidance needs."""
    condition, guidance = chain.condition, chain.guidance
    if guidance.scale == 1.0:
        return [(latents, condition.cond, grad)]
    if guidance.batched and not (guidance.detach_uncond and grad):
        return [(torch.cat([latents, latents]), condition.both(), grad)]
    return [(latents, condition.cond, grad), (latents, condition.uncond, grad and not guidance.detach_uncond)]


def _denoiser(model: VideoModel, time: Tensor, inputs: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
    if not isinstance(model, ModelScope):
        return lambda latents: model.denoise(latents, time, inputs)
    dtype, text = model.denoiser.dtype, inputs["text"].to(model.denoiser.dtype)
    return lambda latents: model.denoiser(latents.to(dtype), time, text).sample


def decoding(model: VideoModel, latents: Tensor, frames: Tensor) -> Callable[[], Any]:
    """The chosen frames `[B, n]` of latents, forward and backward to the latents."""
    if not isinstance(model, ModelScope):
        return differentiated(lambda leaf: model.decode_unclamped(leaf, frames), latents)
    images = latents.movedim(2, 1)[:, : frames.shape[1]].flatten(0, 1).to(model.vae.dtype)
    return differentiated(lambda leaf: model.vae.decode(leaf).sample, images)


def scoring(engine: Engine, batch: Batch, frames: int) -> Callable[[], Any]:
    """The reward of n frames a video, forward and backward to the pixels."""
    size = engine.size
    pixels = torch.rand(len(batch.prompts), frames, 3, size.height, size.width, device=engine.model.device)
    return differentiated(lambda leaf: engine.reward(leaf, batch.prompts), pixels)


def optimising(engine: Engine) -> Callable[[], Any]:
    grads = [1e-3 * torch.randn_like(parameter) for parameter in engine.parameters]

    def step() -> None:
        for parameter, grad in zip(engine.parameters, grads, strict=True):
            parameter.grad = grad
        engine.optimizer.step()
        engine.optimizer.zero_grad(set_to_none=True)

    return step


def differentiated(
    call: Callable[[Tensor], Tensor], inputs: Tensor, network: torch.nn.Module | None = None, to_inputs: bool = True
) -> Callable[[], Any]:
    """`call(inputs)` and its backward: to the inputs (if `to_inputs`) and to what the network trains."""
    leaf = inputs.detach().requires_grad_(to_inputs)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad] if network else []

    def forward_backward() -> None:
        output = call(leaf)
        output.backward(torch.ones_like(output))
        for tensor in (leaf, *trained):
            tensor.grad = None

    return forward_backward


def _bound(call: Callable[[Tensor], Tensor], inputs: Tensor) -> Callable[[], Tensor]:
    return lambda: call(inputs)
