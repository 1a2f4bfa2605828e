"""Why a run cannot go on, in one line each: steps that train nothing, and what is raised in the middle of a run.

In go a run's progress and recipe, out come the sentences of a `RunError`; what the run has saved stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vader.algorithms.base import Algorithm, Metrics
from vader.errors import RunError, UserError, is_out_of_memory
from vader.evaluation.formats import counted
from vader.plugins import in_own_code
from vader.recipe import Recipe
from vader.runs.checkpoints import Checkpoints, Progress
from vader.runs.folder import step_of

CHECK_REWARD = "look at the reward with 'vader check reward'"
NOT_FINITE = "the reward or its gradient was not finite"


def trained_nothing(progress: Progress, metrics: Metrics, algorithm: Algorithm) -> str:
    """What is said of the first skipped step in a row."""
    why = f"no gradient reaches the adapter: {algorithm.without_gradient(metrics)}" if _none(metrics) else NOT_FINITE
    return f"step {progress.step} trained nothing: {why}"


def skipped_too_often(progress: Progress, metrics: Metrics, algorithm: Algorithm) -> str:
    """What ends a run after `train.max_skipped` skipped steps in a row."""
    steps, saved = (
        counted(progress.skipped_in_row, "step"),
        f"the adapter is saved as it was before them (step {progress.step})",
    )
    if _none(metrics):
        reason = algorithm.without_gradient(metrics)
        return f"no gradient reached the adapter in {steps} in a row: {reason}; {saved}"
    return f"{NOT_FINITE} in {steps} in a row; {saved}: try a lower optimizer.lr or model.precision=fp32"


def _none(metrics: Metrics) -> bool:
    """Whether the step had no gradient, and not one that is not finite."""
    return metrics.grad_norm == 0


def never_trained(progress: Progress) -> str:
    """What ends a run that came to its last step without having taken one."""
    return (
        f"none of the {progress.step} steps trained anything, so there is no adapter: in each the reward or its "
        f"gradient was not finite, or zero: {CHECK_REWARD}"
    )


@contextmanager
def failures_told(recipe: Recipe, checkpoints: Checkpoints) -> Iterator[None]:
    """Within, what ends a run that has begun is a `RunError` that says what stays: a part's mistake, no memory."""
    try:
        yield
    except RunError:
        raise
    except Exception as error:
        if (what := _said(error, recipe)) is None:  # a fault of this package
            raise
        raise RunError(f"{what}; {_stays(checkpoints)}") from error


def _said(error: Exception, recipe: Recipe) -> str | None:
    """What is said of an error that is no fault of this package; None if it is one."""
    if isinstance(error, UserError):
        return str(error)
    if is_out_of_memory(error):
        return f"out of memory: {memory_advice(recipe)}"
    return in_own_code(error)


@contextmanager
def memory_told(recipe: Recipe) -> Iterator[None]:
    """Within, running out of memory before a run has begun is a `RunError` that says what to switch."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise RunError(f"out of memory: {memory_advice(recipe)}") from error


def _stays(checkpoints: Checkpoints) -> str:
    steps = checkpoints.steps()
    return f"the checkpoint of step {step_of(steps[-1])} stays" if steps else "nothing was saved yet"


def memory_advice(recipe: Recipe) -> str:
    """What to switch for less memory, of all that the recipe leaves to switch, in the order of what it costs."""
    techniques = {part.name: part.options for part in recipe.memory}
    switches = {
        "train.micro_batch=1": (recipe.train.micro_batch or recipe.train.batch) > 1,
        "scoring.chunk=1": recipe.scoring.images > 1,
        "evaluation.batch=1": recipe.evaluation.batch > 1,
        "{name: recompute, of: layers} in memory": techniques.get("recompute", {}).get("of", "blocks") == "blocks",
        "{name: park} in memory": "park" not in techniques,
        "{name: offload_activations} in memory": "offload_activations" not in techniques,
        "sampling.guidance_batched=false": recipe.sampling.guidance_batched,
        "a smaller video": True,
    }
    tried = ", ".join(name for name, left in switches.items() if left)
    return f"try {tried}, under another name=...; 'vader plan' tells what fits a GPU"
