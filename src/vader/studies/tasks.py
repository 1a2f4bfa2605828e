"""The recipes of the paper's experiments at both scales: what is rewarded, by which method, for how long.

At scale `tiny` everything runs on the tiny world's models; at scale `full` on ModelScope 1.7B and Stable Video
Diffusion, with the settings that the paper's code has. A method's own settings are those of its recipe (`tiny-ddpo`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vader.errors import UserError, nearest
from vader.recipe import Recipe, load_recipe, recipe_names
from vader.studies.study import Arm, Scale, changed

METHODS = ("VADER", "DDPO", "DPO")  # the paper's
NEWER_METHODS = ("GRPO", "NFT")  # Flow-GRPO with a noise window, and DiffusionNFT
METHOD_RECIPES: dict[Scale, dict[str, str]] = {
    "tiny": {"DDPO": "tiny-ddpo", "DPO": "tiny-dpo", "GRPO": "tiny-grpo", "NFT": "tiny-nft"},
    "full": {"DDPO": "modelscope-ddpo", "DPO": "modelscope-dpo"},
}


@dataclass(frozen=True)
class Task:
    """What is rewarded: its names, the recipe of VADER at each scale, and the figure that is shown instead of it."""

    title: str
    recipes: Mapping[Scale, str]
    measure: str | None = None


TASKS = {
    "aesthetic": Task("aesthetic score", {"tiny": "tiny-aesthetic", "full": "modelscope-aesthetic"}),
    "text": Task("text alignment (HPS v2)", {"tiny": "tiny-hps", "full": "modelscope-hps"}),
    "action": Task("action, probability", {"tiny": "tiny-action", "full": "modelscope-actions"}, measure="action"),
}
IMAGE_TO_VIDEO = Task("aesthetic score, image to video", {"tiny": "tiny-svd", "full": "svd-aesthetic"})

# How long each method trains on the tiny world: steps, and between evaluations.
TINY_STEPS: dict[str, dict[str, tuple[int, int]]] = {
    "aesthetic": {"VADER": (20, 4), "DDPO": (16, 4), "DPO": (16, 4), "GRPO": (16, 4), "NFT": (16, 4)},
    "text": {"VADER": (20, 4), "DDPO": (16, 4), "DPO": (16, 4), "GRPO": (16, 4), "NFT": (16, 4)},
    "action": {"VADER": (60, 6), "DDPO": (12, 6), "DPO": (12, 6), "GRPO": (12, 6), "NFT": (12, 6)},
}
# Learning rates, where another than that of the method's recipe gains more.
TINY_RATES = {("aesthetic", "GRPO"): 3e-3, ("action", "GRPO"): 3e-3}
TINY_EVALUATION = {"videos": 32, "final_videos": None, "shown": 4, "batch": 16}
# Noise in the steps, which DDPO and GRPO need, for all methods: so base, samples and noise are the same.
TINY_SAMPLING = {"solver": "ddim", "eta": 1.0}


def methods_at(scale: Scale) -> list[str]:
    """The methods that have a recipe at a scale, VADER first; the newer ones have none of the paper's size."""
    return [method for method in (*METHODS, *NEWER_METHODS) if method == "VADER" or method in METHOD_RECIPES[scale]]


def chosen_tasks(only: str | None, tasks: Sequence[str] = tuple(TASKS)) -> list[str]:
    """A study's tasks, or the one that was asked for. Raises `UserError` if it is none of them."""
    if only is not None and only not in tasks:
        raise UserError(f"no part {only!r} to reproduce alone: {nearest(only, tasks)}")
    return [only] if only else list(tasks)


def arm(task: str, method: str, scale: Scale) -> Arm:
    """A task by a method."""
    return Arm({"task": task, "method": method}, task_recipe(task, method, scale), TASKS[task].measure)


def task_recipe(task: str, method: str, scale: Scale) -> Recipe:
    recipe = watched(load_recipe(TASKS[task].recipes[scale]), TASKS[task].measure)
    if scale == "tiny":
        recipe = _tiny(recipe)
    if method != "VADER":
        recipe = by_method(recipe, load_recipe(METHOD_RECIPES[scale][method]))
    if scale == "tiny":
        steps, every = TINY_STEPS[task][method]
        optimizer = {"lr": TINY_RATES.get((task, method), recipe.optimizer.lr)}
        recipe = changed(recipe, train={"steps": steps}, evaluation={"every": every}, optimizer=optimizer)
    return changed(recipe, name=f"{task}-{method.lower()}")


def _tiny(recipe: Recipe) -> Recipe:
    sampling = {} if recipe.model.family == "svd" else TINY_SAMPLING
    return changed(recipe, model={"precision": "bf16"}, sampling=sampling, evaluation=TINY_EVALUATION)


def watched(recipe: Recipe, measure: str | None) -> Recipe:
    """With the metric that is shown; the action reward is trained as a log-probability and shown as a probability."""
    if measure is None:
        return recipe
    shown = {**recipe.rewards[0].options, "name": measure, "output": "probability"}
    metrics = [part.model_dump(mode="json") for part in recipe.evaluation.metrics]
    return changed(recipe, evaluation={"metrics": [*metrics, shown]})


def by_method(recipe: Recipe, method: Recipe) -> Recipe:
    """The recipe with another one's algorithm and optimiser; rewards and which frames they see stay its own."""
    data = recipe.model_dump(mode="json")
    train = method.train.model_dump(mode="json")
    sampling = {"solver": method.sampling.solver, "eta": max(recipe.sampling.eta, method.sampling.eta)}
    data |= {
        "algorithm": method.algorithm.model_dump(mode="json"),
        "optimizer": method.optimizer.model_dump(mode="json"),
        "train": {
            **data["train"],
            **{key: train[key] for key in ("steps", "batch", "micro_batch", "checkpoint_every")},
        },
        "sampling": {**data["sampling"], **sampling},
    }
    return Recipe.model_validate(data)


def image_to_video_arm(scale: Scale) -> Arm | None:
    """VADER on image-to-video; None where no recipe of it ships."""
    name = IMAGE_TO_VIDEO.recipes[scale]
    if name not in recipe_names():
        return None
    recipe = load_recipe(name)
    if scale == "tiny":
        steps, every = TINY_STEPS["aesthetic"]["VADER"]
        recipe = changed(_tiny(recipe), train={"steps": steps}, evaluation={"every": every})
    return Arm({"task": "i2v", "method": "VADER"}, changed(recipe, name="i2v-vader"))
