"""A training step of a full-size model with random weights, at the paper's setting: nothing is downloaded.

    python benchmarks/full_size.py --model svd            # seconds and peak memory, on a GPU
    python benchmarks/full_size.py --model svd --meta     # parameters and operations, anywhere

Time and memory do not depend on the values of weights. The step is the trainer's own, on the family's recipe (LoRA
rank 16, K = 1, its sizes, steps, guidance and rewards) with one video a step.
"""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from measuring import GIB, PHASES, RESULTS, TrainingStep, console, medians, run_script, write_result
from passes import necessary_passes
from rich.table import Table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vader.algorithms import load_algorithm
from vader.engine.batch import Batch
from vader.engine.build import attach_fresh, build_sampler, load_recipe_guidance, video_size
from vader.engine.device import frozen_dtype
from vader.engine.engine import Clock, Engine
from vader.errors import UserError
from vader.models.registry import load_model
from vader.networks.adapter import parameters_of
from vader.networks.measure import count_parameters
from vader.networks.recompute import checkpoint_blocks
from vader.networks.techniques import Techniques
from vader.nouns import Prompt
from vader.planning.rewards import FullSize
from vader.recipe import Recipe, load_recipe
from vader.rewards.registry import MIXES, Named, build_mix
from vader.scoring.scorer import Scorer

FULL_SIZE = "vader.planning.rewards:FullSize"
ROUNDS = 2
FEW_STEPS = 4  # of denoising, where only memory and the gradient steps are of interest: the steps before have no graph
PROMPT = Prompt("a prompt")
Size = tuple[int, int]  # height and width


@dataclass(frozen=True)
class Subject:
    """A family: its recipe, its twin with random weights, sizes (every case is measured at the first), and how many
    frames decode together."""

    recipe: str
    family: str
    sizes: tuple[Size, ...]
    window: int = 1


SUBJECTS = {
    "modelscope": Subject("modelscope-aesthetic", "vader.planning.models:RandomModelScope", ((384, 384), (256, 256))),
    "videocrafter": Subject("videocrafter-hps-aesthetic", "vader.planning.models:RandomVideoCrafter", ((320, 512),)),
    "svd": Subject("svd-aesthetic", "vader.planning.models:RandomSVD", ((576, 1024),), window=2),
    "opensora": Subject("opensora-hps", "vader.planning.models:RandomOpenSora", ((276, 368), (416, 554)), window=17),
}


@dataclass(frozen=True)
class Case:
    """What is done about memory, as overrides of the recipe, and how many frames the rewards see.

    Overrides may name `{window}`, see `Subject`. `whole`: with all denoising steps, at every size.
    """

    overrides: tuple[str, ...] = ()
    sees: int | str = 1
    whole: bool = False


def memory(*parts: str) -> str:
    """The recipe's `memory` list; braces are doubled, as overrides are format strings."""
    return f"memory=[{', '.join(f'{{{{{part}}}}}' for part in parts)}]"


SHIPPED = "as shipped"
OFFLOAD, LAYERS, NESTED = "name: offload_activations", "name: recompute, of: layers", "name: recompute, of: nested"
TWO_CALLS, PLAIN, CHUNK = "sampling.guidance_batched=false", "algorithm.split_backward=false", "scoring.chunk={window}"
CASES = {
    SHIPPED: Case(whole=True),
    "one call": Case(("sampling.guidance_batched=true",)),
    "two calls": Case((TWO_CALLS,)),
    "layers, two calls": Case((memory(LAYERS), TWO_CALLS)),
    "nested, two calls": Case((memory(NESTED), TWO_CALLS)),
    "nested, two calls, offload": Case((memory(NESTED, OFFLOAD), TWO_CALLS)),
    "layers, one call": Case((memory(LAYERS), "sampling.guidance_batched=true")),
    "all frames": Case((CHUNK,), "all"),
    "plain backward, all frames": Case((PLAIN, CHUNK), "all"),
    "nothing recomputed": Case((memory(),)),
    "nothing recomputed, plain backward": Case((memory(), PLAIN)),
}


def full_size_recipe(
    model: str, device: str, size: Size, case: Case = CASES[SHIPPED], overrides: Sequence[str] = ()
) -> Recipe:
    """The family's own recipe with random weights of its shape and of its rewards', one video a step.

    Prompts are any texts: nothing depends on what they say.
    """
    subject = SUBJECTS[model]
    rewards = [
        {
            "name": "vader.planning.rewards:FullSize",
            "reward": name,
            "weight": weight,
            "sees": case.sees,
            "device": device,
        }
        for name, weight in single_rewards(load_recipe(subject.recipe))
    ]
    ours = [
        *(f"model.family={subject.family}", f"model.checkpoint={device}", "model.precision=bf16"),
        f"rewards={json.dumps(rewards)}",
        "prompts={train: actions-train, test: actions-test}",
        *(f"video.{side}={pixels}" for side, pixels in zip(("height", "width"), size, strict=True)),
        *("train.batch=1", "train.micro_batch=1"),
    ]
    theirs = [override.format(window=subject.window) for override in case.overrides]
    theirs += [] if case.whole else [f"sampling.steps={FEW_STEPS}"]
    return load_recipe(subject.recipe, [*ours, *theirs, *overrides])


def single_rewards(recipe: Recipe) -> list[tuple[str, float]]:
    """Names and weights of the recipe's rewards, those of mixes one by one."""
    mixes = [(part, MIXES.get(part.name, (Named(part.name),))) for part in recipe.rewards]
    return [(one.name, part.weight * one.weight) for part, ones in mixes for one in ones]


# ---- on a device: seconds and memory ----


def measure(model: str, device: str, names: Iterable[str], overrides: Sequence[str]) -> Iterator[dict[str, Any]]:
    """What is known after each of the cases: median seconds and peak bytes by phase, or that it did not fit."""
    cases: list[dict[str, Any]] = []
    for name in names:
        for size in SUBJECTS[model].sizes[: None if CASES[name].whole else 1]:
            recipe = full_size_recipe(model, device, size, CASES[name], overrides)
            console.print(f"{label(recipe)}, {name}")
            about = {"size": label(recipe), "case": name, "steps": recipe.sampling.steps, **asdict(CASES[name])}
            cases.append(about | measure_case(recipe))
            yield {"cases": cases}
            gc.collect()
            torch.cuda.empty_cache()


def label(recipe: Recipe) -> str:
    return f"{recipe.video.frames}x{recipe.video.height}x{recipe.video.width}"


def measure_case(recipe: Recipe) -> dict[str, Any]:
    try:
        step = TrainingStep.of(recipe)
        step.run()
        seconds = medians([step.seconds() for _ in range(ROUNDS)])
        return {"seconds": seconds, "peak_memory": step.peaks()}
    except torch.cuda.OutOfMemoryError:
        return {"out_of_memory": True}


def case_table(result: dict[str, Any]) -> Table:
    table = Table("size", "case", "steps", *PHASES, "total, s", "peak, GiB", title="One training step, one video")
    for case in result["cases"]:
        if "out_of_memory" in case:
            table.add_row(case["size"], case["case"], str(case["steps"]), *[""] * len(PHASES), "", "does not fit")
            continue
        times = [f"{case['seconds'][phase]:.2f}" for phase in (*PHASES, "total")]
        table.add_row(
            case["size"], case["case"], str(case["steps"]), *times, f"{case['peak_memory']['total'] / GIB:.1f}"
        )
    return table


# ---- on the meta device: counts ----


def count(model: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Parameters by component, the adapter's, and the floating-point operations of a step at every size."""
    recipes = [full_size_recipe(model, "meta", size, overrides=overrides) for size in SUBJECTS[model].sizes]
    engine = meta_engine(recipes[0])
    frozen = {**engine.model.networks(), **reward_networks(engine)}
    counts: dict[str, Any] = {
        "parameters": {name: count_frozen(network) for name, network in frozen.items()},
        "adapter": {
            "layers": len(engine.parameters) // 2,
            "parameters": sum(parameter.numel() for parameter in engine.parameters),
        },
        "operations": [],
    }
    for recompute in (False, True):
        for network in (*engine.model.networks().values(), engine.reward) if recompute else ():
            checkpoint_blocks(network)
        for recipe in recipes:
            found = count_operations(at_size(engine, recipe))
            counts["operations"].append({"size": label(recipe), "recompute": recompute, **found})
    return counts


def meta_engine(recipe: Recipe) -> Engine:
    """The trainer's engine without data and without memory techniques: shapes and types alone.

    The prompt's features are there already, as in training, where a reward encodes a prompt once.
    """
    device = torch.device("meta")
    dtype, section = frozen_dtype(recipe.model.precision, device), recipe.model
    model = load_model(section.family, section.checkpoint, dtype=dtype, device=device, options=section.options)
    mix = build_mix(recipe.rewards).to_precision(dtype)
    mix(torch.empty(1, 1, 3, recipe.video.height, recipe.video.width, device=device), [PROMPT])
    attach_fresh(recipe, model)
    parameters = parameters_of(model.denoisers)
    optimizer, scaler = torch.optim.AdamW(parameters), torch.amp.GradScaler(enabled=False)
    sampler = build_sampler(recipe, model, load_recipe_guidance(recipe))
    scorer = Scorer(model, mix, video_size(recipe), recipe.scoring.chunk)
    return Engine(
        sampler, scorer, Accelerator(cpu=True), recipe, Techniques(), parameters, optimizer, scaler, Clock(device)
    )


def at_size(engine: Engine, recipe: Recipe) -> Engine:
    """The same networks under a recipe of another size."""
    sampler = build_sampler(recipe, engine.model, engine.sampler.guidance)
    return replace(engine, recipe=recipe, sampler=sampler, scorer=replace(engine.scorer, size=video_size(recipe)))


def reward_networks(engine: Engine) -> dict[str, nn.Module]:
    return {part.name: part for part in engine.reward.rewards.values() if isinstance(part, FullSize)}


def count_frozen(network: nn.Module) -> int:
    return count_parameters(network) - count_parameters(network, trainable=True)


def count_operations(engine: Engine) -> dict[str, Any]:
    """Floating-point operations (a multiply-add is two) of each necessary network pass, and of all in a step."""
    passes = {}
    algorithm: Any = load_algorithm(engine.recipe)
    for one in necessary_passes(engine, algorithm, Batch(1, (PROMPT,), (0,), 1)):
        if one.name == "optimiser":
            continue
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
        step = f"a step at {found['size']}{', recompute' if found['recompute'] else ''}"
        table.add_row(step, f"{found['total'] / 1e12:.1f} T")
    return table


def main() -> None:
    line = argparse.ArgumentParser(description="A training step of a full-size model with random weights.")
    line.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="keys of the family's recipe, by dotted path")
    line.add_argument("--model", choices=SUBJECTS, default="modelscope")
    line.add_argument("--device", default="cuda", help="default: cuda")
    line.add_argument(
        "--meta",
        action="store_const",
        const="meta",
        dest="device",
        help="count parameters and operations, and compute nothing",
    )
    line.add_argument("--case", choices=CASES, action="append", dest="cases", help="one of the cases; default: all")
    line.add_argument("--out", type=Path, metavar="FILE", help="default: in benchmarks/results/")
    asked = line.parse_args()
    counting = asked.device == "meta"
    if asked.device == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no GPU here: use --meta, which counts parameters and operations")
    recipe = full_size_recipe(asked.model, asked.device, SUBJECTS[asked.model].sizes[0], overrides=asked.overrides)
    path = asked.out or RESULTS / f"full_size_{asked.model}{'_meta' if counting else ''}.json"
    if counting:
        known: Iterable[dict[str, Any]] = [count(asked.model, asked.overrides)]
    else:
        known = measure(asked.model, asked.device, asked.cases or CASES, asked.overrides)
    for result in known:  # written after each case: an early end loses nothing
        write_result(path, "full_size", torch.device(asked.device), recipe, {"model": asked.model} | result)
    console.print(count_table(result) if counting else case_table(result))


if __name__ == "__main__":
    run_script(main)
