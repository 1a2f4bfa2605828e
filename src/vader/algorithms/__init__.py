"""Alignment algorithms by name, or by `module:Class`. In goes a recipe, out comes what steps on batches."""

from __future__ import annotations

from vader.algorithms.base import Algorithm, Metrics
from vader.algorithms.ddpo import DDPO
from vader.algorithms.diffusion_dpo import DiffusionDPO
from vader.algorithms.nft import NFT
from vader.algorithms.reward_gradient import RewardGradient
from vader.engine.batch import Batch
from vader.engine.engine import Engine
from vader.plugins import checked_options, complete, find_class, instantiate
from vader.recipe import Recipe

__all__ = ["Algorithm", "Batch", "Engine", "Metrics", "algorithm_names", "load_algorithm", "resolved"]

ALGORITHMS: dict[str, type[Algorithm]] = {
    "reward_gradient": RewardGradient,
    "ddpo": DDPO,
    "diffusion_dpo": DiffusionDPO,
    "nft": NFT,
}


def algorithm_names() -> dict[str, str]:
    """Every built-in algorithm with a line on what it is."""
    return {
        "reward_gradient": "VADER: the reward's gradient through decoder and denoising steps (arXiv 2407.08737)",
        "ddpo": "DDPO and Flow-GRPO: policy gradient over the noise of sampling steps (arXiv 2305.13301, 2505.05470)",
        "diffusion_dpo": "Diffusion-DPO: pairs of videos, ranked by the reward or from a file (arXiv 2311.12908)",
        "nft": "DiffusionNFT: towards a group's better videos, away from its worse ones (arXiv 2509.16117)",
    }


def algorithm_class(name: str) -> type[Algorithm]:
    """The class behind a name. Raises `UserError` if there is none."""
    return find_class(name, "algorithm", ALGORITHMS, Algorithm)


def load_algorithm(recipe: Recipe) -> Algorithm:
    """The algorithm that the recipe names, its settings checked.

    Raises:
        UserError: there is none of that name, a setting is wrong, or a file that it needs is not right.
    """
    part = recipe.algorithm
    found = algorithm_class(part.name)
    return found(instantiate(found.Settings, f"algorithm {part.name!r}", part.options), recipe)


def resolved(recipe: Recipe) -> Recipe:
    """The recipe with every setting of its algorithm, so that it says all of a run; errors as `load_algorithm`."""
    found = algorithm_class(recipe.algorithm.name)
    given = checked_options(found.Settings, f"algorithm {recipe.algorithm.name!r}", recipe.algorithm.options)
    whole = {"name": recipe.algorithm.name, **complete(found.Settings, given)}
    return recipe.model_copy(update={"algorithm": type(recipe.algorithm).model_validate(whole)})
