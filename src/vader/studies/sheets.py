"""Figures 3, 5, 6 and 8: before/after sheets of the paper's base models and rewards.

At scale `tiny` a twin of the paper's base model is aligned by the recipe of the tiny reward; at scale `full` they are
the recipes of the paper's code. Aesthetics and text match on ModelScope are the runs of figure 7.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from vader.recipe import Recipe, load_recipe
from vader.studies.before_after import Shown, sheet_study
from vader.studies.study import Arm, Options, Scale, changed
from vader.studies.tasks import arm as task_arm
from vader.studies.tasks import watched

VIDEOCRAFTER, OPEN_SORA, MODELSCOPE = "VideoCrafter", "Open-Sora", "ModelScope"
# Recipes of the tiny bases, all for the aesthetic score: they differ in what the models want.
TINY_BASES = {VIDEOCRAFTER: "tiny-videocrafter", OPEN_SORA: "tiny-opensora", MODELSCOPE: "tiny-aesthetic"}
TINY_VIDEOS = 16


def _arm(base: str, reward: str, scale: Scale, recipes: Mapping[Scale, str]) -> Arm:
    recipe = load_recipe(recipes[scale])
    if scale == "tiny":
        recipe = _at_its_ends(on_base(recipe, base))
    name = re.sub(r"\W+", "-", f"{base} {reward}".lower())
    return Arm({"base": base, "reward": reward}, changed(recipe, name=name))


def on_base(recipe: Recipe, base: str) -> Recipe:
    """A tiny recipe of ModelScope on another base: that one's videos and sampling, and as much slower as it learns."""
    own, ordinary = load_recipe(TINY_BASES[base]), load_recipe(TINY_BASES[MODELSCOPE])
    return changed(
        recipe,
        model=own.model.model_dump(mode="json"),
        video=own.video.model_dump(mode="json"),
        sampling={**own.sampling.model_dump(mode="json"), "guidance": recipe.sampling.guidance},
        optimizer={"lr": recipe.optimizer.lr * own.optimizer.lr / ordinary.optimizer.lr},
    )


def _at_its_ends(recipe: Recipe) -> Recipe:
    """Evaluated before and after, which is all that is shown."""
    ends = {"every": recipe.train.steps, "videos": TINY_VIDEOS, "final_videos": None}
    return changed(recipe, model={"precision": "bf16"}, evaluation=ends)


def _of_figure7(task: str, reward: str, scale: Scale) -> Arm:
    return replace(task_arm(task, "VADER", scale), labels={"base": MODELSCOPE, "reward": reward})


# ---- figures ----


def figure3(options: Options) -> list[Arm]:
    mix: dict[Scale, str] = {"tiny": "tiny", "full": "videocrafter-hps-aesthetic"}
    pick: dict[Scale, str] = {"tiny": "tiny-pickscore", "full": "videocrafter-pickscore"}
    return [
        _arm(VIDEOCRAFTER, "HPS v2.1 and aesthetic", options.scale, mix),
        _arm(VIDEOCRAFTER, "PickScore", options.scale, pick),
    ]


def figure5(options: Options) -> list[Arm]:
    recipes: dict[Scale, str] = {"tiny": "tiny-removal", "full": "videocrafter-removal"}
    return [_arm(VIDEOCRAFTER, "object removal", options.scale, recipes)]


def figure6(options: Options) -> list[Arm]:
    pick: dict[Scale, str] = {"tiny": "tiny-pickscore", "full": "opensora-pickscore"}
    hps: dict[Scale, str] = {"tiny": "tiny-hps", "full": "opensora-hps"}
    return [
        _arm(OPEN_SORA, "PickScore", options.scale, pick),
        _arm(OPEN_SORA, "HPS v2.1", options.scale, hps),
        _of_figure7("text", "HPS v2", options.scale),
        _of_figure7("aesthetic", "aesthetic", options.scale),
    ]


def figure8(options: Options) -> list[Arm]:
    """The action is trained as a log-probability and shown as a probability."""
    recipes: dict[Scale, str] = {"tiny": "tiny-action", "full": "modelscope-actions"}
    found = _arm(MODELSCOPE, "action", options.scale, recipes)
    return [replace(found, recipe=watched(found.recipe, "action"), measure="action")]


SHEETS = (
    sheet_study("figure3", "VideoCrafter before and after, two rewards", figure3, Shown(unseen=1, seen=2)),
    sheet_study("figure5", "Object removal before and after", figure5, Shown(unseen=3)),
    sheet_study("figure6", "Open-Sora and ModelScope before and after, four rewards", figure6, Shown(unseen=2)),
    sheet_study("figure8", "Action classification before and after", figure8, Shown(unseen=2)),
)
