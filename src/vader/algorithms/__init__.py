"""Alignment algorithms by name, or by `module:Class`."""

from __future__ import annotations

from vader.algorithms.base import Algorithm
from vader.algorithms.ddpo import DDPO
from vader.algorithms.diffusion_dpo import DiffusionDPO
from vader.algorithms.reward_gradient import RewardGradient
from vader.errors import UserError, nearest
from vader.plugins import load_object
from vader.recipe import Recipe

ALGORITHMS: dict[str, type[Algorithm]] = {
    "reward_gradient": RewardGradient,
    "ddpo": DDPO,
    "diffusion_dpo": DiffusionDPO,
}


def algorithm_names() -> dict[str, str]:
    """Every built-in algorithm with a line on what it is."""
    return {
        "reward_gradient": "VADER: the reward's gradient through decoder and denoising steps (arXiv 2407.08737)",
        "ddpo": "DDPO: policy gradient over the noise of sampling steps, the reward a number (arXiv 2305.13301)",
        "diffusion_dpo": "Diffusion-DPO: pairs of videos, ranked by the reward or from a file (arXiv 2311.12908)",
    }


def load_algorithm(recipe: Recipe) -> Algorithm:
    """The algorithm that the recipe names.

    Raises:
        UserError: there is none of that name, or a file that it needs is not right.
    """
    name = recipe.algorithm.name
    if ":" in name:
        return load_object(name, "algorithm", Algorithm)(recipe)
    if name not in ALGORITHMS:
        raise UserError(f"unknown algorithm {name!r}: {nearest(name, ALGORITHMS)}")
    return ALGORITHMS[name](recipe)
