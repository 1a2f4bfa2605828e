"""Builds what a recipe names: rewards, base model with adapters, sampler, optimiser, processes.

In goes a recipe, out come an `Engine`, or a `Setup` that only samples and scores. Device and dtype are decided here,
once; what is quick to check is checked first.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import psutil
import torch
from accelerate import Accelerator

from vader.engine.device import frozen_dtype
from vader.engine.engine import Clock, Engine, Setup
from vader.engine.optimizer import build_optimizer
from vader.errors import UserError
from vader.files.hub import together
from vader.models.base import VideoModel
from vader.models.joined import decoder_of
from vader.models.registry import load_model, model_class, model_options
from vader.models.tiny_decoder import TinyDecoder, TinyVideos, load_tiny_decoder
from vader.networks.adapter import add_adapters, chosen_denoisers, parameters_of
from vader.networks.average import Average
from vader.networks.prepare import prepare
from vader.networks.techniques import Role, Techniques, load_techniques
from vader.nouns import Prompt, VideoSize
from vader.recipe import PrefixSection, Recipe
from vader.rewards.base import RewardMix
from vader.rewards.registry import build_mix
from vader.sampling.guidance import Guidance, check_negatives, load_guidance
from vader.sampling.videos import make_sampler, solver_of
from vader.sampling.walk import Sampler
from vader.scoring.scorer import Scorer
from vader.solvers import Solver
from vader.solvers.scheduler_config import check_asked


def build_engine(recipe: Recipe, folder: Path) -> Engine:
    """Loads rewards and model on this process's device, attaches the adapters and prepares the networks.

    Raises:
        UserError: a part of the recipe cannot be loaded here, or a reward would see too few frames.
    """
    memory = load_techniques(recipe.memory)
    accelerator = _accelerator(recipe, folder)
    tiny = _tiny_decoder(recipe, accelerator.device)
    return assemble(recipe, with_tiny(_loaded(recipe, accelerator), tiny), memory, accelerator.device)


def _tiny_decoder(recipe: Recipe, device: torch.device) -> TinyDecoder | None:
    """That of the recipe, in the frozen weights' precision."""
    file = recipe.model.decoder
    return None if file is None else load_tiny_decoder(file, frozen_dtype(recipe.model.precision, device))


def with_tiny(setup: Setup, network: TinyDecoder | None) -> Setup:
    """The setup, whose frames that are scored for the gradient are decoded by this network.

    Raises:
        UserError: it is not made for the model's latents.
    """
    tiny = None if network is None else TinyVideos(setup.model, network)
    return replace(setup, scorer=replace(setup.scorer, tiny=tiny))


def assemble(recipe: Recipe, setup: Setup, memory: Techniques, device: torch.device) -> Engine:
    """The engine of a setup, which is moved to a device: adapters attached, networks prepared, an optimiser for them.

    Raises:
        UserError: an adapter or a memory technique does not fit the networks, or the optimiser is not installed.
    """
    attach_fresh(recipe, setup.model)
    prepare(_networks(setup, device), memory)
    _moved(setup, device)
    parameters = parameters_of(setup.model.denoisers)
    optimizer = build_optimizer(recipe.optimizer, parameters, device)
    half = frozen_dtype(recipe.model.precision, device) == torch.float16
    scaler = torch.amp.GradScaler(device.type, enabled=half)
    average = None if recipe.adapter.ema is None else Average(parameters, recipe.adapter.ema)
    return Engine(
        setup.sampler, setup.scorer, setup.accelerator, recipe, memory, parameters, optimizer, scaler, Clock(device),
        average,
    )  # fmt: skip


def build_setup(recipe: Recipe, accelerator: Accelerator) -> Setup:
    """The recipe's model and rewards on the accelerator's device, to sample and score; errors as `build_engine`."""
    return _moved(_loaded(recipe, accelerator), accelerator.device)


def _loaded(recipe: Recipe, accelerator: Accelerator) -> Setup:
    """Model and rewards in their precision, on the CPU still: what shards them does so before they are moved."""
    dtype, size = frozen_dtype(recipe.model.precision, accelerator.device), video_size(recipe)
    # What is wrong here ends the run before the rewards are read.
    model_options(recipe.model.family, recipe.model.options)
    check_asked(recipe.sampling.solver, recipe.sampling.eta, recipe.sampling.spacing)
    load_recipe_guidance(recipe)
    _, mix = together(
        lambda: model_class(recipe.model.family).locate(recipe.model.checkpoint), lambda: build_mix(recipe.rewards)
    )
    mix.to_precision(dtype)
    mix.check_size(size)
    model_class(recipe.model.family).check_sound(mix.listens)
    model = load_base(recipe, dtype)
    return joined(recipe, model, mix, accelerator)


def joined(recipe: Recipe, model: VideoModel, mix: RewardMix, accelerator: Accelerator) -> Setup:
    """A model and rewards as the recipe samples and scores with them."""
    sampler = build_sampler(recipe, model, load_recipe_guidance(recipe))
    size, end_time = video_size(recipe), sampler.schedule.ends[-1].time
    check_latent(mix, size)
    scorer = Scorer(decoder_of(model, size), mix, size, recipe.scoring.images, end_time=end_time)
    return Setup(sampler, scorer, accelerator)


def check_latent(mix: RewardMix, size: VideoSize) -> None:
    """Raises `UserError` if a reward sees latents and a video has them by segments."""
    if mix.latent and size.segments > 1:
        raise UserError(
            f"reward {next(iter(mix.latent))!r} sees the latents of one segment, and video.segments is "
            f"{size.segments}: leave one of them out"
        )


def _moved(setup: Setup, device: torch.device) -> Setup:
    others = [setup.reward] if setup.scorer.tiny is None else [setup.reward, setup.scorer.tiny.network]
    setup.model.to(device)
    for network in others:
        network.to(device)
    setup.model.share_device(*others)
    return setup


def video_size(recipe: Recipe) -> VideoSize:
    """The size of the recipe's videos. Raises `UserError` if this machine cannot hold the pixels of one."""
    size = recipe.video.size
    needed, there = 12 * size.frames * size.height * size.width, psutil.virtual_memory().total
    if needed > there:
        raise UserError(
            f"one video of {size.frames} frames of {size.height}x{size.width} takes {needed / 2**30:.0f} GiB, and this "
            f"machine has {there / 2**30:.0f}: lower video.frames, video.height or video.width"
        )
    return size


def load_base(recipe: Recipe, dtype: torch.dtype) -> VideoModel:
    """The recipe's base model, on the CPU. Raises `UserError` as `load_model`."""
    section = recipe.model
    return load_model(section.family, section.checkpoint, dtype=dtype, options=section.options)


def load_recipe_guidance(recipe: Recipe) -> Guidance:
    """The recipe's guidance: a number is the scale of the strategy that the family was made for."""
    asked = recipe.sampling.guidance
    if isinstance(asked, float | int):
        return load_guidance(model_class(recipe.model.family).guidance, {"scale": float(asked)})
    return load_guidance(asked.name, asked.options)


def check_guidance(recipe: Recipe, prompts: Sequence[Prompt]) -> None:
    """Raises `UserError` if negative prompts or keys of guidance would have no effect; nothing is loaded for it."""
    guidance, sampling = load_recipe_guidance(recipe), recipe.sampling
    check_negatives(guidance, prompts)
    for key, given in (("batched", not sampling.guidance_batched), ("detach_uncond", sampling.guidance_detach_uncond)):
        if given and not guidance.two_branches:
            raise UserError(
                f"sampling.guidance_{key} is about the unconditional branch, and this guidance has none: leave it out"
            )


def check_prefix(recipe: Recipe, differentiates: bool) -> None:
    """Raises `UserError` if a key of `sampling.prefix` contradicts another, or has no effect.

    Args:
        differentiates: whether the recipe's algorithm has steps with gradient, so that others come before.
    """
    asked = recipe.sampling.prefix
    start, end = asked.guidance
    if asked != PrefixSection() and not differentiates:
        raise UserError(
            f"sampling.prefix is about the steps before those with gradient, and algorithm {recipe.algorithm.name!r} "
            "has none: leave it out"
        )
    if start > end:
        raise UserError(f"sampling.prefix.guidance is [{start:g}, {end:g}]: its start must not be above its end")
    if (start, end) != (0.0, 1.0) and not load_recipe_guidance(recipe).two_branches:
        raise UserError("sampling.prefix.guidance says where there is guidance, and here is none: leave it out")


def check_decoder(recipe: Recipe, differentiates: bool) -> None:
    """Raises `UserError` if the recipe names a tiny decoder, and its algorithm (`differentiates`) takes no gradient."""
    if recipe.model.decoder is not None and not differentiates:
        raise UserError(
            f"model.decoder shows the frames that gradient is taken from, and algorithm {recipe.algorithm.name!r} "
            "takes none: leave it out"
        )


def check_shaping(recipe: Recipe, differentiates: bool) -> None:
    """Raises `UserError` if a reward's gradient is to be shaped, and the algorithm (`differentiates`) takes none."""
    for number, reward in enumerate(recipe.rewards):
        for key, given in (("hinge", reward.hinge is not None), ("robust", reward.robust > 0)):
            if given and not differentiates:
                raise UserError(
                    f"rewards.{number}.{key} is about the reward's gradient, and algorithm {recipe.algorithm.name!r} "
                    "takes none: leave it out"
                )


def check_segments(recipe: Recipe, chains: bool) -> None:
    """Raises `UserError` if a recipe's videos have several segments and its model or algorithm knows none.

    Args:
        chains: whether the recipe's algorithm trains videos of several segments.
    """
    video, family = recipe.video, model_class(recipe.model.family)
    if video.segments == 1:
        return
    if not family.takes_images:
        raise UserError(
            f"video.segments is {video.segments}, but models of the family {family.family!r} take no pictures, so that "
            "nothing can go on from a last frame: leave it out"
        )
    if video.frames < 2:
        raise UserError("a segment of one frame gets nowhere: set video.frames to 2 or more, or video.segments to 1")
    if not chains:
        raise UserError(
            f"algorithm {recipe.algorithm.name!r} trains videos of one segment, and video.segments is "
            f"{video.segments}: use reward_gradient, or leave it out"
        )


def build_solver(recipe: Recipe, model: VideoModel) -> Solver:
    """The solver that the checkpoint's scheduler settings and the recipe name together."""
    asked = recipe.sampling
    return solver_of(
        model, asked.sigmas, eta=asked.eta, kind=asked.solver, spacing=asked.spacing, shift=asked.shift
    )  # fmt: skip


def build_sampler(recipe: Recipe, model: VideoModel, guidance: Guidance) -> Sampler:
    """How the recipe samples from its model."""
    sampling = recipe.sampling
    return make_sampler(
        model, video_size(recipe).segment, sampling.steps, guidance, build_solver(recipe, model),
        sampling.guidance_batched, sampling.guidance_detach_uncond,
    )  # fmt: skip


def attach_fresh(recipe: Recipe, model: VideoModel) -> None:
    """Attaches the recipe's adapters as they are before the first step."""
    adapter = recipe.adapter
    chosen = chosen_denoisers(model.denoisers, adapter.denoisers)
    add_adapters(chosen, adapter.targets or model.lora_targets, adapter.rank, adapter.alpha, recipe.train.seed)


def _networks(setup: Setup, device: torch.device) -> list[tuple[torch.nn.Module, Role]]:
    """Every network with what it is for."""
    model = setup.model
    networks = [
        (network, Role(_kind(model, name), name, device, partial(model.recompute, name)))
        for name, network in setup.networks.items()
    ]
    return [*networks, *((reward, Role("reward", name, device)) for name, reward in setup.reward.items())]


def _kind(model: VideoModel, name: str) -> Literal["denoiser", "decoder", "text"]:
    """What a component of a model does, by its name in checkpoints."""
    if name in model.denoisers:
        return "denoiser"
    return "decoder" if "vae" in name or "decoder" in name else "text"


def _alone_of_several() -> bool:
    """Whether `accelerate launch` was asked for several processes and started this one, as its own variables tell."""
    given = os.environ
    return "ACCELERATE_DYNAMO_BACKEND" in given and "MASTER_ADDR" in given and "WORLD_SIZE" not in given


def processes_started() -> int:
    """How many processes were started together, as their launcher tells each."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _accelerator(recipe: Recipe, folder: Path) -> Accelerator:
    for tracker in recipe.train.trackers:
        if importlib.util.find_spec(tracker) is None:
            raise UserError(f"train.trackers names {tracker}, which is not installed: pip install {tracker}")
    # Without a GPU, accelerate joins processes only where it is told that the CPU is meant.
    on_cpu = not torch.accelerator.is_available()
    accelerator = Accelerator(cpu=on_cpu, log_with=list(recipe.train.trackers) or None, project_dir=folder)
    if _alone_of_several():
        raise UserError(
            "several processes were asked for, but 'accelerate launch --cpu' starts one: add --multi_gpu, which starts "
            "them on CPUs too, or use torchrun --nproc-per-node"
        )
    if accelerator.num_processes != processes_started():
        raise UserError(
            f"{os.environ['WORLD_SIZE']} processes were started that cannot work together on {accelerator.device}: "
            "start one, or set ACCELERATE_USE_CPU=1"
        )
    if recipe.train.batch % accelerator.num_processes:
        raise UserError(
            f"train.batch is {recipe.train.batch}, which {accelerator.num_processes} processes cannot share: "
            f"make it a multiple of {accelerator.num_processes}"
        )
    return accelerator
