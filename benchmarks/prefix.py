"""What a cheaper prefix is worth: held-out reward against compute, judged by training and not by a cosine.

    python benchmarks/prefix.py [--arm NAME ...]     # every arm at its rates and seeds; the same command goes on

The recipe is `tiny` at 25 steps, so that the steps before the one with gradient weigh as at full size. Every run is
evaluated on unseen prompts with the whole prefix, whatever it was trained with. Arms that the package does not have are
here alone: they won nothing.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from measuring import RESULTS, console, run_script, write_result

from vader.algorithms import load_algorithm
from vader.engine.batch import Batch
from vader.engine.build import build_engine
from vader.engine.engine import Engine
from vader.evaluation.held_out import evaluate
from vader.evaluation.metrics.registry import build_metrics
from vader.files.atomic import atomic_write
from vader.prompts import load_prompts
from vader.randomness import generator
from vader.recipe import Recipe, load_recipe
from vader.sampling.walk import EXACT, Place, Prefix, Walk

STEPS, VIDEOS = 30, {"middle": 16, "end": 32}
SETTING = ("sampling.steps=25", "evaluation.metrics=[{name: judge}, {name: gold, task: looks}]", "name=prefix")


# ---- what the package does not have ----


@dataclass(frozen=True)
class Cached(Prefix):
    """The UNet's deep features are computed at every `keep`-th step and kept between (DeepCache, arXiv 2312.00858)."""

    keep: int = 2

    def places(self, walk: Walk, at: Place, end: int) -> Iterator[Place]:
        with DeepFeatures(walk.sampler.model.denoiser) as features:
            while at.i < end:
                features.reuse = at.i % self.keep != 0
                at = walk.advance(at, walk.predict(at.i, at.latents))
                yield at


class DeepFeatures:
    """Within, all blocks of a UNet but the first and the last may give again what they gave."""

    def __init__(self, network: Any) -> None:
        self.blocks = [*network.down_blocks[1:], network.mid_block, *network.up_blocks[:-1]]
        self.reuse = False

    def __enter__(self) -> DeepFeatures:
        for block in self.blocks:
            block.forward = self._remembering(block.forward)
        return self

    def __exit__(self, *failure: object) -> None:
        for block in self.blocks:
            del block.forward  # the class's own is seen again

    def _remembering(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        kept: list[Any] = []

        def remembering(*args: Any, **kwargs: Any) -> Any:
            if not self.reuse:
                kept[:] = [forward(*args, **kwargs)]
            return kept[0]

        return remembering


@dataclass(frozen=True)
class Kept(Prefix):
    """Where a prefix led is kept, for more updates from there."""

    way: Prefix = EXACT
    there: dict[Any, Place] = field(default_factory=dict)

    def places(self, walk: Walk, at: Place, end: int) -> Iterator[Place]:
        asked = (tuple(walk.noise.indices), end)
        if asked not in self.there:
            *_, self.there[asked] = self.way.places(walk, at, end)
        yield self.there[asked]


# ---- arms ----


@dataclass(frozen=True)
class Arm:
    """A prefix, the learning rates to choose from, the seeds, and how many updates each prefix serves."""

    prefix: Prefix
    rates: tuple[float, ...] = (2e-3, 4e-3)
    seeds: tuple[int, ...] = (0, 1, 2)
    updates: int = 1


FIRST_HALF, ONCE = (0.0, 0.5), (0,)
ARMS = {
    "whole": Arm(EXACT),
    "every: 4": Arm(Prefix(every=4)),
    "every: 4, guidance: [0, 0.5]": Arm(Prefix(every=4, guidance=FIRST_HALF)),
    "guidance: [0, 0.5]": Arm(Prefix(guidance=FIRST_HALF), (2e-3,), ONCE),
    "deep features kept for 2 steps": Arm(Cached(), (2e-3,), ONCE),
    "4 updates from each": Arm(EXACT, (1e-3, 2e-3), ONCE, updates=4),
}


# ---- one run ----


def run(arm: Arm, rate: float, seed: int) -> list[dict[str, Any]]:
    """Trains, and evaluates in the middle and at the end: updates, compute seconds until then, and figures."""
    engine, recipe = build(f"optimizer.lr={rate}", f"train.seed={seed}")
    total = STEPS if arm.updates == 1 else 2 * STEPS
    algorithm, found, seconds = load_algorithm(recipe), list[dict[str, Any]](), 0.0
    for batch in batches(recipe, total // arm.updates):
        began = time.process_time()
        with prefixed(engine, arm):
            for _ in range(arm.updates):
                algorithm.step(engine, batch)
        seconds += time.process_time() - began
        done = batch.step * arm.updates
        if done % (total // 2) < arm.updates:
            count = VIDEOS["end" if done == total else "middle"]
            found.append({"updates": done, "compute_seconds": seconds, **figures(engine, recipe, count)})
    return found


def base(seed: int) -> list[dict[str, Any]]:
    """The base model's figures."""
    return [{"updates": 0, "compute_seconds": 0.0, **figures(*build(f"train.seed={seed}"), VIDEOS["end"])}]


def build(*overrides: str) -> tuple[Engine, Recipe]:
    recipe = load_recipe("tiny", [*SETTING, *overrides])
    with TemporaryDirectory() as folder:
        return build_engine(recipe, Path(folder)), recipe


@contextmanager
def prefixed(engine: Any, arm: Arm) -> Iterator[None]:
    """Within, the engine's walks have the arm's prefix."""
    prefix, plain = arm.prefix if arm.updates == 1 else Kept(way=arm.prefix), engine.training_walk
    engine.training_walk = lambda *args, **more: replace(plain(*args, **more), prefix=prefix)
    yield
    del engine.training_walk


def batches(recipe: Recipe, count: int) -> Iterator[Batch]:
    """Prompts in random order, each once."""
    prompts, size = load_prompts(recipe.prompts.train), recipe.train.batch
    order = torch.randperm(len(prompts), generator=generator(recipe.train.seed, "order", 0)).tolist()
    for step in range(count):
        chosen = order[step * size : (step + 1) * size]
        yield Batch(step + 1, tuple(prompts[place] for place in chosen), tuple(range(size)), size)


def figures(engine: Engine, recipe: Recipe, count: int) -> dict[str, Any]:
    """Held-out reward with its standard error, its parts and the judge's figures."""
    prompts = load_prompts(recipe.prompts.test)
    metrics, _ = build_metrics(recipe.evaluation.metrics, recipe.scoring.images).suited(prompts, engine.size)
    found = evaluate(engine, prompts, count, seed=recipe.train.seed, metrics=metrics, shown=0, batch=16).summary()
    return {name: found[name] for name in ("reward", "stderr", "parts", "figures")}


# ---- all runs ----


class Runs:
    """Every run's record in a file of its own, so that what is done stays done."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, label: str, make: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
        path = self.folder / f"{label.translate(str.maketrans(' :,[]', '_____'))}.json"
        if not path.exists():
            console.print(label)
            found = make()
            with atomic_write(path) as temporary:
                temporary.write_text(json.dumps(found))
        return json.loads(path.read_text())

    def arm(self, name: str, rate: float, seed: int) -> list[dict[str, Any]]:
        return self.get(f"{name} lr {rate:g} seed {seed}", lambda: run(ARMS[name], rate, seed))


def measured(names: Sequence[str], runs: Runs) -> dict[str, Any]:
    """Every rate under an arm's first seed, and the best one under all of its seeds."""
    arms = {}
    for name in names:
        arm = ARMS[name]
        rates = {rate: runs.arm(name, rate, arm.seeds[0]) for rate in arm.rates}
        best = max(rates, key=lambda rate: rates[rate][-1]["reward"])
        arms[name] = {
            "rates": {f"{rate:g}": found for rate, found in rates.items()},
            "best_rate": best,
            "seeds": {str(seed): runs.arm(name, best, seed) for seed in arm.seeds},
        }
    seeds = sorted({seed for name in names for seed in ARMS[name].seeds})
    bases = {str(seed): runs.get(f"base seed {seed}", lambda seed=seed: base(seed))[-1] for seed in seeds}
    return {"base": bases, "arms": arms}


def main() -> None:
    line = argparse.ArgumentParser(description=__doc__)
    line.add_argument("--arm", action="append", choices=ARMS, help="train these alone, and write no result")
    line.add_argument("--runs", type=Path, default=Path("runs/prefix"), help="where each run's record is")
    line.add_argument("--out", type=Path, default=RESULTS / "prefix.json")
    asked = line.parse_args()
    found = measured(asked.arm or list(ARMS), Runs(asked.runs))
    if not asked.arm:
        write_result(asked.out, "prefix", torch.device("cpu"), load_recipe("tiny", list(SETTING)), found)


if __name__ == "__main__":
    run_script(main)
