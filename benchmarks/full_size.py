"""A training step of a full-size model with random weights, at the paper's setting: nothing is downloaded.

    python benchmarks/full_size.py --model modelscope --device cuda     # seconds and peak memory, on a GPU
    python benchmarks/full_size.py --model modelscope --meta            # parameters and operations, anywhere

Time and memory do not depend on the values of weights. The step is the trainer's own, on the recipe
`modelscope-aesthetic` (16 frames, LoRA rank 16, K = 1, 25 steps, guidance 9) with one video a step.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL, UNet3DConditionModel
from measuring import GIB, PHASES, RESULTS, TrainingStep, console, medians, run_script, write_result
from passes import necessary_passes
from rich.table import Table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from vader.adapters import adapter_parameters, add_adapter
from vader.algorithms.base import Batch, Clock, Engine
from vader.errors import UserError
from vader.memory import checkpoint_blocks, count_parameters
from vader.models.modelscope import ModelScope
from vader.models.registry import load_model
from vader.recipe import Recipe, load_recipe
from vader.rewards.aesthetic import Aesthetic
from vader.rewards.base import FrameReward
from vader.rewards.clip import ImageTower
from vader.rewards.registry import build_mix
from vader.scheduler_config import Kind, solver_from_config

SIZES = (256, 384)
ROUNDS = 3
CASES: dict[str, tuple[str, ...]] = {
    "plain": ("memory.checkpointing=false", "algorithm.split_backward=false"),
    "split backward": ("memory.checkpointing=false",),
    "split, checkpointing": (),
    "split, checkpointing, offload": ("memory.offload=true",),
    "split, checkpointing, 4 frames": ("algorithm.frames.sample=4",),
    "split, checkpointing, 16 frames": ("algorithm.frames.sample=16",),
    "plain, checkpointing, 1 frame": ("algorithm.split_backward=false",),
    "plain, checkpointing, 4 frames": ("algorithm.split_backward=false", "algorithm.frames.sample=4"),
    "plain, checkpointing, 16 frames": ("algorithm.split_backward=false", "algorithm.frames.sample=16"),
}

# ---- the models: the release's architectures, drawn at random where `checkpoint` says (cpu, cuda, meta) ----


class RandomModelScope(ModelScope):
    """`ali-vilab/text-to-video-ms-1.7b` in shape: UNet3D of 1.4 B parameters, SD's VAE, OpenCLIP-H's text tower."""

    @classmethod
    def load(
        cls,
        checkpoint: str,
        *,
        dtype: torch.dtype = torch.float32,
        solver: Kind = "auto",
        eta: float = 0.0,
        spacing: str = "auto",
    ) -> RandomModelScope:
        """See `VideoModel.load`; `checkpoint` is the device to draw the weights on."""
        with torch.device(checkpoint):
            networks: dict[str, Any] = {
                "unet": UNet3DConditionModel(**UNET),
                "vae": AutoencoderKL(**VAE),
                "text_encoder": CLIPTextModel(CLIPTextConfig(**TEXT_TOWER)),
            }
        for network in networks.values():
            network.to(dtype).eval().requires_grad_(False)
        tokenizer: Any = RandomTokenizer()
        return cls(
            **networks,
            tokenizer=tokenizer,
            solver=solver_from_config(SCHEDULER, eta=eta, kind=solver, spacing=spacing),
            scheduler_config=SCHEDULER,
        )


class RandomTokenizer:
    """Prompts become arbitrary tokens: a vocabulary would have to be downloaded."""

    model_max_length = 77

    def __call__(self, prompts: Sequence[str], max_length: int, **settings: Any) -> SimpleNamespace:
        return SimpleNamespace(input_ids=torch.randint(TEXT_TOWER["vocab_size"], (len(prompts), max_length)))


class RandomAesthetic(Aesthetic):
    """The aesthetic predictor in shape: CLIP ViT-L/14's image tower and LAION's head."""

    def __init__(self, device: str) -> None:
        """`device` is where the weights are drawn."""
        FrameReward.__init__(self)
        with torch.device(device):
            self.image = ImageTower(CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION_TOWER)))
            widths = (768, 1024, 128, 64, 16, 1)
            self.head = nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(widths)))
        self.target = None


UNET: dict[str, Any] = {"sample_size": 32}  # all else is the class's default
VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}
TEXT_TOWER: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "max_position_embeddings": 77,
    "hidden_act": "gelu",
}
VISION_TOWER: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "projection_dim": 768,
}
SCHEDULER: dict[str, Any] = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "epsilon",
}
MODELS = {"modelscope": ("modelscope-aesthetic", "full_size:RandomModelScope")}


def full_size_recipe(model: str, device: str, size: int, overrides: Sequence[str] = ()) -> Recipe:
    """The model's own recipe with random weights of its shape, one video a step."""
    recipe, family = MODELS[model]
    ours = [
        f"model={{family: '{family}', checkpoint: {device}, precision: bf16}}",
        f"rewards=[{{name: 'full_size:RandomAesthetic', device: {device}}}]",
        *(f"video.{side}={size}" for side in ("height", "width")),
        *("train.batch=1", "train.micro_batch=1"),
    ]
    return load_recipe(recipe, [*ours, *overrides])


# ---- on a device: seconds and memory ----


def measure(model: str, device: str) -> dict[str, Any]:
    """Every case at every size: median seconds and peak bytes by phase, or that it did not fit."""
    cases = []
    for size in SIZES:
        for name, overrides in CASES.items():
            console.print(f"{size}x{size}, {name}")
            found = measure_case(full_size_recipe(model, device, size, overrides))
            cases.append({"size": size, "case": name, "overrides": list(overrides), **found})
            gc.collect()
            torch.cuda.empty_cache()
    return {"cases": cases}


def measure_case(recipe: Recipe) -> dict[str, Any]:
    try:
        step = TrainingStep.of(recipe)
        step.run()
        seconds = medians([step.seconds() for _ in range(ROUNDS)])
        return {"seconds": seconds, "peak_memory": step.peaks()}
    except torch.cuda.OutOfMemoryError:
        return {"out_of_memory": True}


def case_table(result: dict[str, Any]) -> Table:
    table = Table("size", "case", *PHASES, "total, s", "peak, GiB", title="One training step, one video")
    for case in result["cases"]:
        if "out_of_memory" in case:
            table.add_row(str(case["size"]), case["case"], *[""] * len(PHASES), "", "does not fit")
            continue
        times = [f"{case['seconds'][phase]:.2f}" for phase in (*PHASES, "total")]
        table.add_row(str(case["size"]), case["case"], *times, f"{case['peak_memory']['total'] / GIB:.1f}")
    return table


# ---- on the meta device: counts ----


def count(model: str) -> dict[str, Any]:
    """Parameters by component, the adapter's, and the floating-point operations of a step at every size."""
    engine = meta_engine(full_size_recipe(model, "meta", SIZES[0]))
    frozen = {**engine.model.networks(), **dict(engine.reward.rewards.items())}
    counts: dict[str, Any] = {
        "parameters": {name: count_frozen(network) for name, network in frozen.items()},
        "adapter": {
            "layers": len(engine.parameters) // 2,
            "parameters": sum(parameter.numel() for parameter in engine.parameters),
        },
        "operations": [],
    }
    for checkpointing in (False, True):
        for network in engine.model.networks().values() if checkpointing else ():
            checkpoint_blocks(network)
        for size in SIZES:
            sized = replace(engine, recipe=full_size_recipe(model, "meta", size))
            counts["operations"].append({"size": size, "checkpointing": checkpointing, **count_operations(sized)})
    return counts


def meta_engine(recipe: Recipe) -> Engine:
    """The trainer's engine without data and without checkpointing: shapes and types alone."""
    model = load_model(recipe.model.family, "meta", precision=recipe.model.precision, device="meta")
    reward = build_mix(recipe.rewards).to_precision(next(model.denoiser.parameters()).dtype)
    add_adapter(model.denoiser, model.lora_targets, recipe.adapter.rank)
    parameters = adapter_parameters(model.denoiser)
    optimizer, scaler = torch.optim.AdamW(parameters), torch.amp.GradScaler(enabled=False)
    clock = Clock(torch.device("meta"))
    return Engine(recipe, model, reward, Accelerator(cpu=True), parameters, optimizer, scaler, clock)


def count_frozen(network: nn.Module) -> int:
    return count_parameters(network) - count_parameters(network, trainable=True)


def count_operations(engine: Engine) -> dict[str, Any]:
    """Floating-point operations (a multiply-add is two) of each necessary network pass, and of all in a step."""
    passes = {}
    networks = [one for one in necessary_passes(engine, Batch(1, ("a prompt",), (0,), 1)) if one.name != "optimiser"]
    for one in networks:
        with FlopCounterMode(display=False) as counter:
            one.run()
        passes[one.name] = {"count": one.count, "each": counter.get_total_flops()}
    return {"passes": passes, "total": sum(one["count"] * one["each"] for one in passes.values())}


def count_table(result: dict[str, Any]) -> Table:
    table = Table("what", "how much", title="Counts")
    for name, parameters in result["parameters"].items():
        table.add_row(f"{name}, parameters", f"{parameters:,}")
    adapter = result["adapter"]
    table.add_row(f"adapter, parameters in {adapter['layers']} layers", f"{adapter['parameters']:,}")
    for found in result["operations"]:
        table.add_section()
        for name, one in found["passes"].items():
            table.add_row(f"{name} x {one['count']}, operations each", f"{one['each'] / 1e12:.3f} T")
        step = f"a step at {found['size']}x{found['size']}{', checkpointing' if found['checkpointing'] else ''}"
        table.add_row(step, f"{found['total'] / 1e12:.1f} T")
    return table


def main() -> None:
    line = argparse.ArgumentParser(description="A training step of a full-size model with random weights.")
    line.add_argument("--model", choices=MODELS, default="modelscope")
    line.add_argument("--device", choices=("cuda", "meta"), default="cuda", help="default: cuda")
    line.add_argument(
        "--meta",
        action="store_const",
        const="meta",
        dest="device",
        help="count parameters and operations, and compute nothing",
    )
    line.add_argument("--out", type=Path, metavar="FILE")
    asked = line.parse_args()
    counting = asked.device == "meta"
    if not counting and not torch.cuda.is_available():
        raise UserError("there is no GPU here: use --meta, which counts parameters and operations")
    result = count(asked.model) if counting else measure(asked.model, asked.device)
    console.print(count_table(result) if counting else case_table(result))
    recipe = full_size_recipe(asked.model, asked.device, SIZES[0])
    path = asked.out or RESULTS / ("full_size_meta.json" if counting else "full_size.json")
    write_result(path, "full_size", torch.device(asked.device), recipe, {"model": asked.model} | result)


if __name__ == "__main__":
    run_script(main)
