"""What is found out before anything is loaded: mistakes in a recipe, and what its run's folder holds.

In go a recipe and a run's folder; out come the parts that are quick to have, or the `UserError` of the first mistake.
The recipe comes first: that a folder is the run of another recipe says little where this recipe is none.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from vader.algorithms import load_algorithm, resolved
from vader.algorithms.base import Algorithm
from vader.engine.build import check_decoder, check_guidance, check_prefix, check_segments, check_shaping, video_size
from vader.engine.optimizer import check_optimizer
from vader.errors import UserError
from vader.evaluation.guards.registry import check_guards
from vader.evaluation.guards.verdicts import read_verdicts
from vader.evaluation.guards.words import stopped_by
from vader.evaluation.metrics.registry import check_metrics
from vader.files.hub import Missing
from vader.files.paths import is_writable
from vader.models.registry import model_class, model_options
from vader.models.tiny_decoder import load_tiny_decoder
from vader.networks.techniques import inexact, load_techniques
from vader.nouns import Prompt
from vader.prompts import load_prompts, with_negative
from vader.recipe import Recipe, first_difference, load_recipe
from vader.rewards.registry import BESIDE, check_rewards
from vader.runs.folder import RunFolder, steps_in
from vader.runs.log import read_lines
from vader.solvers.scheduler_config import check_asked

# ---- the recipe ----


@dataclass(frozen=True)
class Checked:
    """A recipe whose names, options and sizes are right, with what of it is there without a network."""

    recipe: Recipe
    algorithm: Algorithm
    train_prompts: Sequence[Prompt]
    test_prompts: Sequence[Prompt]


def check_recipe(recipe: Recipe) -> Checked:
    """Reads the prompts and makes the algorithm; loads no weights.

    Raises:
        UserError: a name or an option of a part is wrong, prompts cannot be read or do not fit, there is no such
            checkpoint, or a size is beyond this machine.
    """
    model_options(recipe.model.family, recipe.model.options)
    video_size(recipe)
    check_asked(recipe.sampling.solver, recipe.sampling.eta, recipe.sampling.spacing)
    check_rewards(recipe.rewards, BESIDE)
    check_metrics(recipe.evaluation.metrics)
    check_guards(recipe.guards)
    if recipe.guards.mode == "stop" and not (recipe.guards.rewards or recipe.guards.watch):
        raise UserError(
            "guards.mode is stop, and there is no guard: name some in guards.watch, or set guards.mode=warn"
        )
    load_techniques(recipe.memory)
    check_optimizer(recipe.optimizer)
    train_prompts, test_prompts = (
        with_negative(load_prompts(name), recipe.sampling.negative)
        for name in (recipe.prompts.train, recipe.prompts.test)
    )
    model_class(recipe.model.family).check_prompts([*train_prompts, *test_prompts])
    check_guidance(recipe, [*train_prompts, *test_prompts])
    with suppress(Missing):  # which is told together with what the rewards miss
        model_class(recipe.model.family).locate(recipe.model.checkpoint)
    algorithm = load_algorithm(recipe)
    check_prefix(recipe, algorithm.differentiates)
    check_decoder(recipe, algorithm.differentiates)
    check_shaping(recipe, algorithm.differentiates)
    if recipe.model.decoder is not None:
        load_tiny_decoder(recipe.model.decoder)
    check_segments(recipe, algorithm.chains)
    return Checked(recipe, algorithm, train_prompts, test_prompts)


# ---- the run's folder ----


def check_folder(run: RunFolder) -> None:
    """Raises `UserError` if the folder cannot be written, or holds something else than a run."""
    if not is_writable(run.path, "the run's folder"):
        raise run.unwritable()
    if not run.empty and not run.recipe.is_file():
        raise UserError(f"{run.path} holds files and no run: choose another name=... or --runs")


def is_done(recipe: Recipe, run: RunFolder) -> bool:
    """Whether the folder holds this recipe's run, and nothing is left to do."""
    return run.finished and run.recipe.is_file() and same_recipe(run, recipe)


def same_recipe(run: RunFolder, recipe: Recipe) -> bool:
    return first_difference(_recipe_of(run), recipe) is None


def occupied(recipe: Recipe, run: RunFolder) -> str | None:
    """What is said of a folder that is the run of another recipe, and how that goes on; None where it is not.

    A run that has not trained a step may be replaced, and one may be trained for more steps than it was.
    """
    if not run.recipe.is_file() or (difference := another_recipe(run, recipe)) is None or not has_trained(run):
        return None
    return (
        f"{run.path} is the run of another recipe ({difference}): to go on with it: "
        f"vader train {shlex.quote(str(run.recipe))}; for a new run choose another name=... or --runs"
    )


def distrusted(recipe: Recipe, run: RunFolder) -> str | None:
    """What is said of a run that guards have stopped, and that would stop there again; None where it goes on."""
    verdicts = read_verdicts(run.guards)
    if recipe.guards.mode != "stop" or not verdicts or verdicts[-1].colour != "red":
        return None
    saved = run.recipe.is_file() and verdicts[-1].step in steps_in(run.checkpoints)
    if not saved or another_recipe(run, recipe) is not None:
        return None
    return stopped_by(verdicts[-1], verdicts, run.path, recipe.train.steps)


def another_recipe(run: RunFolder, recipe: Recipe) -> str | None:
    """The first key in which a run's recipe is another one: not that it is to train for more steps, or in less memory
    by what changes no result, nor that guards are to stop it where they were to warn, or the other way round."""
    there = _recipe_of(run)
    train = {"micro_batch": recipe.train.micro_batch, "steps": max(there.train.steps, recipe.train.steps)}
    may_differ: dict[str, Any] = {"train": there.train.model_copy(update=train), "scoring": recipe.scoring}
    if "off" not in (there.guards.mode, recipe.guards.mode):
        may_differ["guards"] = there.guards.model_copy(update={"mode": recipe.guards.mode})
    if inexact(there.memory) == inexact(recipe.memory):
        may_differ["memory"] = recipe.memory
    return first_difference(there.model_copy(update=may_differ), recipe)


def has_trained(run: RunFolder) -> bool:
    """Whether there is more in a run's folder than what it was before its first step."""
    steps = [line["step"] for line in read_lines(run.metrics) if line is not None]
    return run.trained or any(step > 0 for step in (*steps, *steps_in(run.checkpoints)))


def _recipe_of(run: RunFolder) -> Recipe:
    there = load_recipe(str(run.recipe), trust_code=True)  # only read: what is trained is the recipe that was given
    with suppress(UserError):  # of an algorithm that is not here; else with settings that are newer than the run
        there = resolved(there)
    return there
