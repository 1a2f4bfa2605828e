"""The training step of the paper's published code beside ours, at equal work: what each computes, and its CPU time.

    python benchmarks/beside_paper.py [--out FILE]

The published step (mihirp1998/VADER, its VideoCrafter2 tree as of 2024-08-19) is written anew here from what it does,
on the same networks, weights, noise and solver as ours. Passes and floating-point operations are counted at full size
without data; CPU time is that of a network of the same architecture with about 60 million parameters.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter as Tally
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D, TemporalConvLayer
from full_size import full_size_recipe
from measuring import RESULTS, console, run_script, write_result
from rich.table import Table
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vader.engine.engine import Engine
from vader.networks.adapter import NAME, lora_layers
from vader.networks.measure import count_parameters
from vader.planning import models, rewards
from vader.planning.counter import Counter, fused_attention
from vader.planning.measured import TrainingStep
from vader.planning.step import META, PlannedEngine
from vader.recipe import Recipe
from vader.sampling.walk import Place, Walk

MODEL, SIZE = "videocrafter", (320, 512)
CPU = torch.device("cpu")
ROUNDS = 3

# Ours as its recipe ships, and with what is changed in it.
TWO_CALLS = "guidance in two calls"
OURS: dict[str, tuple[str, ...]] = {
    "as shipped": (),
    TWO_CALLS: ("sampling.guidance_batched=false",),
    "nothing recomputed": ("memory=[]",),
}
PUBLISHED = "published"

# ---- the same architecture at a size for CPUs ----

_TOWER: dict[str, Any] = {
    "hidden_size": 192,
    "intermediate_size": 768,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
}
MIDDLE_PIXELS = ["video.height=64", "video.width=64", "model.precision=fp32"]


@contextmanager
def middle_size() -> Iterator[None]:
    """Within, the package's tables of sizes are those of narrower networks: a fifth of VideoCrafter2's width."""
    clip = {
        "text_config": rewards.CLIP_H["text_config"] | _TOWER,
        "vision_config": rewards.CLIP_H["vision_config"] | _TOWER,
    }
    unet = models.VIDEOCRAFTER_UNET | {"block_out_channels": (64, 128, 256, 256), "cross_attention_dim": 192}
    with (
        patch.object(models, "VIDEOCRAFTER_UNET", unet),
        patch.object(models, "IMAGE_VAE", models.IMAGE_VAE | {"block_out_channels": (32, 64, 128, 128)}),
        patch.object(models, "TEXT_TOWER", models.TEXT_TOWER | _TOWER),
        patch.object(rewards, "CLIP_H", rewards.CLIP_H | clip),
        patch.object(rewards, "VISION_TOWER", rewards.VISION_TOWER | _TOWER),
    ):
        yield


# ---- the published step ----

DROPOUT = 0.01  # of its adapter; the network's own, of its temporal convolutions, is 0.1
CHECKPOINTED = (ResnetBlock2D, TemporalConvLayer, BasicTransformerBlock)


class PublishedStep:
    """What the published training step does on VideoCrafter2, for one video.

    - The whole chain runs with gradients enabled. Before the last step no parameter of the denoiser requires one, at
      it those of the adapter do: every parameter is told so at every step.
    - Guidance takes two calls of the denoiser, both with gradient at the last step.
    - Every residual and transformer block of the denoiser is checkpointed, without gradient too; every step saves its
      activations in CPU memory. Decoder and rewards are not recomputed.
    - The denoiser stays in training mode: dropout is on in its temporal convolutions and in the adapter.
    - One random frame is decoded and squashed for both rewards. HPS encodes image and prompt anew, and none of its
      weights is frozen.
    - AdamW is given all of the denoiser's parameters.

    Its networks, noise and solver are those of an engine of ours, whose own loops take no part.
    """

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        """
        Args:
            recipe: with `memory` empty: what is recomputed is the step's own business.
        """
        step = TrainingStep.drawn(recipe, device)
        self.engine, self.batch, self.device = step.engine, step.batch, device
        self.unet: Any = step.engine.model.denoiser.train()
        for layer in lora_layers(self.unet).values():
            layer.lora_dropout[NAME] = nn.Dropout(DROPOUT)
        for block in self.unet.modules():
            if isinstance(block, CHECKPOINTED):
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        self.engine.reward.rewards["hps"].requires_grad_(True)
        self.optimizer = torch.optim.AdamW(self.unet.parameters(), lr=recipe.optimizer.lr)

    def run(self) -> None:
        walk = self.engine.training_walk(self.batch)
        pixels = self.decoded(self.sampled(walk))
        self.loss(pixels.clamp(0, 1)).backward()
        torch.nn.utils.clip_grad_norm_(self.unet.parameters(), self.engine.recipe.optimizer.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def sampled(self, walk: Walk) -> Tensor:
        """Latents `[1, C, F, h, w]` after all steps, with the last one's graph."""
        at = walk.start()
        for i in range(len(walk)):
            for name, parameter in self.unet.named_parameters():
                parameter.requires_grad = i == len(walk) - 1 and "lora" in name
            with self.saved_on_cpu():
                at = walk.advance(at, self.predicted(walk, at))
        return at.latents

    def saved_on_cpu(self) -> Any:
        """Tensors without data have nowhere to be saved."""
        return nullcontext() if self.device == META else torch.autograd.graph.save_on_cpu()

    def predicted(self, walk: Walk, at: Place) -> Tensor:
        time, scale = torch.tensor(walk.start_of(at.i).time, device=self.device), self.engine.recipe.sampling.guidance
        cond, uncond = (
            self.engine.model.denoise(at.latents, time, inputs)
            for inputs in (walk.condition.cond, walk.condition.uncond)
        )
        return uncond + scale * (cond - uncond)

    def decoded(self, latents: Tensor) -> Tensor:
        """One random frame `[1, 3, H, W]`."""
        frame = torch.randint(latents.shape[2], (1, 1))
        return self.engine.model.decode_unclamped(latents, frame)[:, 0]

    def loss(self, image: Tensor) -> Tensor:
        """1.5 of the aesthetic score's distance to 10, a tenth of it, and one of HPS's to 1, halved."""
        aesthetic, hps = (self.engine.reward.rewards[name] for name in ("aesthetic", "hps"))
        seen = F.interpolate(image, (hps.image.size, hps.image.size), mode="bilinear", antialias=True)
        text = hps.text._encode.__wrapped__(hps.text, self.batch.prompts[0].text)  # with a graph: it is not frozen
        similarity = (hps.image(seen) * text).sum(dim=-1)
        return (1.5 * 0.1 * (aesthetic.read(seen) - 10).abs() + (1 - similarity).abs()).mean() / 2


# ---- what each computes ----


@dataclass(frozen=True)
class Counts:
    """Passes by network, "denoiser" and "denoiser, gradient" apart, and floating-point operations."""

    passes: dict[str, int]
    operations: int

    def at(self, steps: int, more: Counts) -> Counts:
        """Of a chain of so many steps: these are of 1 and `more` of 2, and every further one is like the second's."""

        def further(one: int, two: int) -> int:
            return one + (steps - 1) * (two - one)

        passes = {name: further(count, more.passes[name]) for name, count in self.passes.items()}
        return Counts(passes, further(self.operations, more.operations))


def counted(make: Callable[[list[str]], Any], steps: int) -> Counts:
    """What a step of `steps` denoising steps computes, told by ones of 1 and 2 without data.

    Args:
        make: a step, given overrides of its recipe.
    """
    one, two = (counted_whole(make([f"sampling.steps={number}"])) for number in (1, 2))
    return one.at(steps, two)


def counted_whole(step: Any) -> Counts:
    with noted_passes(step.engine) as passes, Counter(META) as counter, fused_attention(counter):
        step.run()
    return Counts(dict(passes), counter.operations)


@contextmanager
def noted_passes(engine: Engine) -> Iterator[Tally[str]]:
    """Counts videos or images that pass through each network; of the denoiser, those with a graph apart."""
    hps, aesthetic = (engine.reward.rewards[name] for name in ("hps", "aesthetic"))
    networks = {
        "denoiser": engine.model.denoiser,
        "decoder": engine.model.vae.decoder,
        "image tower, HPS": hps.image.vision_model,
        "text tower, HPS": hps.text.text_model,
        "image tower, aesthetic": aesthetic.image.vision_model,
    }
    passes: Tally[str] = Tally(dict.fromkeys(("denoiser, gradient", *networks), 0))

    def note(name: str, module: Any, args: Any, kwargs: Any, result: Any) -> None:
        found = result[0] if isinstance(result, tuple) else result
        tensor = found if isinstance(found, Tensor) else found.pooler_output
        passes[f"{name}, gradient" if name == "denoiser" and tensor.requires_grad else name] += len(tensor)

    hooks = [network.register_forward_hook(partial(note, name), with_kwargs=True) for name, network in networks.items()]
    yield passes
    for hook in hooks:
        hook.remove()


# ---- both, at a size ----


def recipe_of(changes: Sequence[str], more: Sequence[str] = ()) -> Recipe:
    return full_size_recipe(MODEL, SIZE, overrides=[*changes, *more])


def published(device: torch.device, more: Sequence[str] = ()) -> PublishedStep:
    return PublishedStep(recipe_of(["memory=[]"], more), device)


def ours(name: str, device: torch.device, more: Sequence[str] = ()) -> TrainingStep:
    """As from the second step on: the prompt's features for HPS are remembered, as they are in training."""
    step = TrainingStep.drawn(recipe_of(OURS[name], more), device)
    step.engine.reward.rewards["hps"].text(step.batch.prompts)
    return replace(step, engine=PlannedEngine(**vars(step.engine))) if device == META else step


def count() -> dict[str, Any]:
    """Passes and operations of the published step and of ours, at full size."""
    steps = recipe_of(()).sampling.steps
    makers: dict[str, Callable[[list[str]], Any]] = {PUBLISHED: partial(published, META)}
    makers |= {name: partial(ours, name, META) for name in OURS}
    return {name: vars(counted(make, steps)) for name, make in makers.items()}


def measure() -> dict[str, Any]:
    """CPU seconds of whole steps that take turns in this process; each of ours as a share of the published one's."""
    with middle_size():
        steps = {PUBLISHED: published(CPU, MIDDLE_PIXELS)} | {name: ours(name, CPU, MIDDLE_PIXELS) for name in OURS}
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(ROUNDS):
            for name, step in steps.items():
                seconds[name].append(cpu_seconds(step.run))
                console.print(f"{name}: {seconds[name][-1]:.2f} s of CPU time")
    shares = {
        name: [mine / theirs for mine, theirs in zip(seconds[name], seconds[PUBLISHED], strict=True)] for name in OURS
    }
    return {
        "parameters": count_parameters(steps[PUBLISHED].unet),
        "cpu_seconds": {name: median(found) for name, found in seconds.items()},
        "share": {name: median(found) for name, found in shares.items()},
        "shares": shares,
    }


def cpu_seconds(call: Callable[[], object]) -> float:
    """Of this process, whatever else the machine does."""
    began = time.process_time()
    call()
    return time.process_time() - began


def table(result: dict[str, Any]) -> Table:
    passes = list(result["counted"][PUBLISHED]["passes"])
    shown = Table("step", *passes, "TFLOP", "CPU, s", "share", title="The published step and ours")
    for name, counts in result["counted"].items():
        share = result["share"].get(name, 1.0)
        figures = [f"{counts['operations'] / 1e12:.1f}", f"{result['cpu_seconds'][name]:.2f}", f"{share:.2f}"]
        shown.add_row(name, *(str(counts["passes"][one]) for one in passes), *figures)
    return shown


def main() -> None:
    line = argparse.ArgumentParser(description="The paper's published training step beside ours, at equal work.")
    line.add_argument("--out", type=Path, metavar="FILE", help="default: in benchmarks/results/")
    asked = line.parse_args()
    result = measure() | {"counted": count()}
    write_result(asked.out or RESULTS / "beside_paper.json", "beside_paper", CPU, recipe_of(()), result)
    console.print(table(result))


if __name__ == "__main__":
    run_script(main)
