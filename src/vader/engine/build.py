"""Builds what a recipe names: rewards, base model with adapter, optimiser, processes. Read by training and evaluation.

In goes a recipe, out come an `Engine`, or the parts of one. What is quick to check is checked first.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import torch
from accelerate import Accelerator

from vader.algorithms.base import Clock, Engine
from vader.errors import UserError
from vader.models.base import VideoModel
from vader.models.registry import frozen_dtype, load_model, model_options
from vader.networks.adapter import adapter_parameters, add_adapter
from vader.networks.memory import checkpoint_blocks
from vader.recipe import Recipe
from vader.rewards.registry import build_mix
from vader.scoring.frames import check_frames


def build_engine(recipe: Recipe, folder: Path) -> Engine:
    """Loads rewards and model on this process's device, and attaches the adapter.

    Raises:
        UserError: a part of the recipe cannot be loaded here, or a reward would see too few frames.
    """
    accelerator = _accelerator(recipe, folder)
    device = accelerator.device
    dtype = frozen_dtype(recipe.model.precision, device)
    model_options(recipe.model.family, recipe.model.options)  # a wrong one ends the run before the rewards are read
    reward = build_mix(recipe.rewards).to(device).to_precision(dtype)
    check_frames(recipe.algorithm.frames, recipe.video.frames, reward)
    model = load_base(recipe, device)
    parameters = _attach_adapter(recipe, model)
    settings = recipe.optimizer
    optimizer = torch.optim.AdamW(
        parameters, lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay, eps=settings.eps
    )
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    return Engine(recipe, model, reward, accelerator, parameters, optimizer, scaler, Clock(device))


def load_base(recipe: Recipe, device: torch.device) -> VideoModel:
    """The recipe's base model with its sampling. Raises `UserError` as `load_model`."""
    section, sampling = recipe.model, recipe.sampling
    return load_model(
        section.family, section.checkpoint, precision=section.precision, device=device, solver=sampling.solver,
        eta=sampling.eta, spacing=sampling.spacing, options=section.options,
    )  # fmt: skip


def attach_fresh(recipe: Recipe, model: VideoModel) -> None:
    """Attaches the recipe's adapter as it is before the first step."""
    adapter = recipe.adapter
    add_adapter(model.denoiser, adapter.targets or model.lora_targets, adapter.rank, adapter.alpha, recipe.train.seed)


def _attach_adapter(recipe: Recipe, model: VideoModel) -> list[torch.nn.Parameter]:
    """Attaches the recipe's adapter and gradient checkpointing; returns what is trained."""
    attach_fresh(recipe, model)
    if recipe.memory.checkpointing:
        for network in model.networks().values():
            checkpoint_blocks(network)
    return adapter_parameters(model.denoiser)


def _accelerator(recipe: Recipe, folder: Path) -> Accelerator:
    for tracker in recipe.train.trackers:
        if importlib.util.find_spec(tracker) is None:
            raise UserError(f"train.trackers names {tracker}, which is not installed: pip install {tracker}")
    # Without a GPU, accelerate joins processes only where it is told that the CPU is meant.
    on_cpu = not torch.accelerator.is_available()
    accelerator = Accelerator(cpu=on_cpu, log_with=list(recipe.train.trackers) or None, project_dir=folder)
    if accelerator.num_processes != int(os.environ.get("WORLD_SIZE", "1")):
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
