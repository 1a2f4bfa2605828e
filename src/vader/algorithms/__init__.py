"""Alignment algorithms by name, or by `module:Class`."""

from __future__ import annotations

from vader.algorithms.base import Algorithm
from vader.algorithms.reward_gradient import RewardGradient
from vader.errors import UserError, nearest
from vader.plugins import load_object
from vader.recipe import Recipe

ALGORITHMS: dict[str, type[Algorithm]] = {"reward_gradient": RewardGradient}


def algorithm_names() -> dict[str, str]:
    """Every built-in algorithm with a line on what it is."""
    return {"reward_gradient": "VADER: the reward's gradient through decoder and denoising steps (arXiv 2407.08737)"}


def load_algorithm(recipe: Recipe) -> Algorithm:
    """The algorithm that the recipe names.

    Raises:
        UserError: there is none of that name.
    """
    name = recipe.algorithm.name
    if ":" in name:
        return load_object(name, "algorithm", Algorithm)(recipe)
    if name not in ALGORITHMS:
        raise UserError(f"unknown algorithm {name!r}: {nearest(name, ALGORITHMS)}")
    return ALGORITHMS[name](recipe)
