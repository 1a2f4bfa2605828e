"""A training step of a full-size model with random weights, at the paper's setting: nothing is downloaded.

    python benchmarks/full_size.py --model svd            # seconds and peak memory, on a GPU
    python benchmarks/full_size.py --model svd --meta     # parameters and operations, anywhere

Time and memory do not depend on the values of weights. The step is the trainer's own, on the family's recipe (its LoRA,
policy, sizes, steps, guidance and rewards) with one video a step.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from measuring import GIB, RESULTS, console, medians, run_script, sees_overrides, write_result
from passes import necessary_passes
from rich.table import Table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vader.algorithms import load_algorithm
from vader.engine.batch import Batch
from vader.engine.build import build_sampler, video_size
from vader.engine.engine import Engine
from vader.errors import UserError, is_out_of_memory
from vader.networks.measure import count_parameters
from vader.networks.recompute import checkpoint_blocks
from vader.planning.measured import PHASES, TrainingStep
from vader.planning.step import META, PROMPT
from vader.plugins import told
from vader.recipe import Recipe, load_recipe

ROUNDS = 2
FEW_STEPS = 4  # of denoising, where only memory and the gradient steps are of interest: the steps before have no graph
Size = tuple[int, int]  # height and width


@dataclass(frozen=True)
class Subject:
    """A family: its recipe, sizes (every case is measured at the first), and how many frames decode together.

    `beside`: what the recipe's comment sets with a size.
    """

    recipe: str
    sizes: tuple[Size, ...]
    window: int = 1
    beside: Mapping[Size, tuple[str, ...]] = field(default_factory=dict)


SUBJECTS = {
    "modelscope": Subject("modelscope-aesthetic", ((384, 384), (256, 256))),
    "videocrafter": Subject("videocrafter-hps-aesthetic", ((320, 512),)),
    "svd": Subject("svd-aesthetic", ((576, 1024),), window=2),
    "opensora": Subject("opensora-hps", ((276, 368), (416, 554)), window=17),
    "wan": Subject("wan-1.3b-hps", ((256, 256), (480, 832)), window=4, beside={(480, 832): ("algorithm.policy.k=1",)}),
}


@dataclass(frozen=True)
class Case:
    """What is done about memory, as overrides of the recipe, and how many frames the rewards see.

    Overrides may name `{window}`, see `Subject`. `whole`: with all denoising steps; `everywhere`: at every size.
    """

    overrides: tuple[str, ...] = ()
    sees: int | str = 1
    whole: bool = False
    everywhere: bool = False


def memory(*parts: str) -> str:
    """The recipe's `memory` list; braces are doubled, as overrides are format strings."""
    return f"memory=[{', '.join(f'{{{{{part}}}}}' for part in parts)}]"


SHIPPED = "as shipped"
ONE, TWO = "sampling.guidance_batched=true", "sampling.guidance_batched=false"
PLAIN, CHUNK = "algorithm.split_backward=false", "scoring.chunk={window}"
BLOCKS, LAYERS, NESTED = "name: recompute", "name: recompute, of: layers", "name: recompute, of: nested"
OFFLOAD, PARK, COMPILE = "name: offload_activations", "name: park", "name: compile"
CASES = {
    SHIPPED: Case(whole=True, everywhere=True),
    "as shipped, few steps": Case(everywhere=True),
    "one call": Case((memory(BLOCKS), ONE)),
    "two calls": Case((memory(BLOCKS), TWO)),
    "layers, one call": Case((memory(LAYERS), ONE)),
    "layers, two calls": Case((memory(LAYERS), TWO)),
    "nested, two calls": Case((memory(NESTED), TWO)),
    "nested, two calls, offload": Case((memory(NESTED, OFFLOAD), TWO)),
    "nested, two calls, offload, park": Case((memory(NESTED, OFFLOAD, PARK), TWO)),
    "all frames": Case((CHUNK,), "all"),
    "plain backward, all frames": Case((PLAIN, CHUNK), "all"),
    "nothing recomputed": Case((memory(),)),
    "nothing recomputed, plain backward": Case((memory(), PLAIN)),
    "two calls, whole": Case((TWO,), whole=True),
    "compile": Case((memory(LAYERS, COMPILE),), whole=True),
    "prefix every 4": Case(("sampling.prefix={{every: 4}}",), whole=True),
    "prefix guidance in the first half": Case(("sampling.prefix={{guidance: [0.0, 0.5]}}",), whole=True),
    "prefix both": Case(("sampling.prefix={{every: 4, guidance: [0.0, 0.5]}}",), whole=True),
}


def full_size_recipe(model: str, size: Size, case: Case = CASES[SHIPPED], overrides: Sequence[str] = ()) -> Recipe:
    """The family's own recipe at a size, one video a step, in bf16."""
    subject = SUBJECTS[model]
    ours = [
        "model.precision=bf16",
        *sees_overrides(load_recipe(subject.recipe), case.sees),
        *(f"video.{side}={pixels}" for side, pixels in zip(("height", "width"), size, strict=True)),
        *subject.beside.get(size, ()),
        *("train.batch=1", "train.micro_batch=1"),
    ]
    theirs = [override.format(window=subject.window) for override in case.overrides]
    theirs += [] if case.whole else [f"sampling.steps={FEW_STEPS}"]
    return load_recipe(subject.recipe, [*ours, *theirs, *overrides])


# ---- on a device: seconds and memory ----


def measure(
    model: str, device: torch.device, names: Iterable[str], overrides: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """What is known after each of the cases: median seconds and peak bytes by phase, or why there are none."""
    cases: list[dict[str, Any]] = []
    for name in names:
        for size in SUBJECTS[model].sizes[: None if CASES[name].everywhere else 1]:
            about = {"size": label(full_size_recipe(model, size, overrides=overrides)), "case": name}
            about |= asdict(CASES[name])
            console.print(f"{model} {about['size']}, {name}")
            cases.append(about | measure_case(model, device, size, CASES[name], overrides))
            yield {"cases": cases}
            gc.collect()
            torch.cuda.empty_cache()


def label(recipe: Recipe) -> str:
    return f"{recipe.video.frames}x{recipe.video.height}x{recipe.video.width}"


def measure_case(model: str, device: torch.device, size: Size, case: Case, overrides: Sequence[str]) -> dict[str, Any]:
    """Seconds and peaks; that it did not fit, or whatever else was wrong: one case must not stop the next."""
    try:
        recipe = full_size_recipe(model, size, case, overrides)
        step = TrainingStep.drawn(recipe, device)
        peaks = step.peaks()  # and the first time of everything
        seconds = medians([step.seconds() for _ in range(ROUNDS)])
        return {"steps": recipe.sampling.steps, "seconds": seconds, "peak_memory": peaks}
    except Exception as error:
        return {"out_of_memory": True} if is_out_of_memory(error) else {"error": told(error)}


def case_table(result: dict[str, Any]) -> Table:
    table = Table("size", "case", "steps", *PHASES, "total, s", "peak, GiB", title="One training step, one video")
    for case in result["cases"]:
        if "seconds" not in case:
            why = "does not fit" if "out_of_memory" in case else case["error"]
            table.add_row(case["size"], case["case"], "", *[""] * len(PHASES), "", why)
            continue
        times = [f"{case['seconds'][phase]:.2f}" for phase in (*PHASES, "total")]
        peak = f"{case['peak_memory']['total'] / GIB:.1f}"
        table.add_row(case["size"], case["case"], str(case["steps"]), *times, peak)
    return table


# ---- on the meta device: counts ----


def count(model: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Parameters by component, the adapter's, and the floating-point operations of a step at every size."""
    recipes = [full_size_recipe(model, size, overrides=overrides) for size in SUBJECTS[model].sizes]
    engine = meta_engine(recipes[0])
    frozen = {**engine.model.networks(), **dict(engine.reward.items())}
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
    engine = TrainingStep.drawn(recipe.model_copy(update={"memory": ()}), META).engine
    engine.reward(torch.empty(1, 1, 3, recipe.video.height, recipe.video.width, device=META), [PROMPT])
    return engine


def at_size(engine: Engine, recipe: Recipe) -> Engine:
    """The same networks under a recipe of another size."""
    sampler = build_sampler(recipe, engine.model, engine.sampler.guidance)
    return replace(engine, recipe=recipe, sampler=sampler, scorer=replace(engine.scorer, size=video_size(recipe)))


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
    recipe = full_size_recipe(asked.model, SUBJECTS[asked.model].sizes[0], overrides=asked.overrides)
    path = asked.out or RESULTS / f"full_size_{asked.model}{'_meta' if counting else ''}.json"
    if counting:
        known: Iterable[dict[str, Any]] = [count(asked.model, asked.overrides)]
    else:
        known = measure(asked.model, torch.device(asked.device), asked.cases or CASES, asked.overrides)
    for result in known:  # written after each case: an early end loses nothing
        write_result(path, "full_size", torch.device(asked.device), recipe, {"model": asked.model} | result)
    console.print(count_table(result) if counting else case_table(result))


if __name__ == "__main__":
    run_script(main)
