"""What lowers the memory of a training step without changing a number of it, in the order of what it costs.

In goes a recipe, out come the changes (by dotted key) that are left to make; the search takes as many as it needs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vader.engine.build import load_recipe_guidance
from vader.recipe import Recipe, changed

Changes = dict[str, Any]
Switch = Callable[[Recipe], Changes]


def micro_batch(recipe: Recipe) -> Changes:
    """One video at once: no more operations, less of them side by side."""
    return {"train.micro_batch": 1} if (recipe.train.micro_batch or recipe.train.batch) > 1 else {}


def chunk(recipe: Recipe) -> Changes:
    """One frame at once through decoder and rewards."""
    return {"scoring.chunk": 1} if recipe.scoring.images > 1 else {}


def layers(recipe: Recipe) -> Changes:
    """Recomputation by layer: as many operations as by block, and one more forward than without."""
    return _recompute(recipe, "layers") if _grain(recipe) in (None, "blocks") else {}


def park(recipe: Recipe) -> Changes:
    """Encoders and rewards wait in CPU memory: their weights over the bus once a micro-batch, or as often as needed."""
    return _added(recipe, "park")


def nested(recipe: Recipe) -> Changes:
    """Recomputation of blocks and of their layers: one more forward of the steps with gradient."""
    return _recompute(recipe, "nested") if _grain(recipe) != "nested" else {}


def offload(recipe: Recipe) -> Changes:
    """Activations wait in CPU memory: no more operations, and as many bytes over the bus, both ways."""
    return _added(recipe, "offload_activations")


def two_calls(recipe: Recipe) -> Changes:
    """Guidance's two branches one after the other: no more operations, but a GPU that one video does not fill takes up
    to twice as long, at every denoising step."""
    batched = recipe.sampling.guidance_batched and load_recipe_guidance(recipe).two_branches
    return {"sampling.guidance_batched": False} if batched else {}


SWITCHES: tuple[Switch, ...] = (micro_batch, chunk, layers, park, nested, offload, two_calls)


def switched(recipe: Recipe, switches: tuple[Switch, ...]) -> tuple[Recipe, Changes]:
    """The recipe after these switches, and what they changed in all."""
    made: Changes = {}
    for switch in switches:
        changes = switch(recipe)
        recipe, made = changed(recipe, changes), made | changes
    return recipe, made


def _memory(recipe: Recipe) -> list[dict[str, Any]]:
    return [part.model_dump() for part in recipe.memory]


def _added(recipe: Recipe, name: str) -> Changes:
    there = any(part.name == name for part in recipe.memory)
    return {} if there else {"memory": [*_memory(recipe), {"name": name}]}


def _grain(recipe: Recipe) -> str | None:
    """What is recomputed; None: nothing."""
    return next((part.options.get("of", "blocks") for part in recipe.memory if part.name == "recompute"), None)


def _recompute(recipe: Recipe, of: str) -> Changes:
    others = [part for part in _memory(recipe) if part["name"] != "recompute"]
    return {"memory": [{"name": "recompute", "of": of}, *others]}
