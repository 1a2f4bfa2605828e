"""How many videos and images a training step takes at once where its recipe leaves that open: as many as a card holds.

In go a recipe and the card's bytes, out comes the recipe with `train.micro_batch` and `scoring.chunk`. Neither changes
a number of the step beyond rounding, so a run's own recipe keeps them open, and goes on on another card.
"""

from __future__ import annotations

from bisect import bisect_right

from vader.errors import UserError
from vader.planning.search import BESIDE, GIB
from vader.planning.step import forecast
from vader.recipe import Recipe, changed

MICRO_BATCH, CHUNK = "train.micro_batch", "scoring.chunk"


def widened(recipe: Recipe, card: int, processes: int = 1) -> Recipe:
    """The recipe with what it leaves open set to the most that fits; to 1 where not even that does.

    The micro-batch comes first: the steps without gradient, most of the work, gain by it and not by the chunk.

    Args:
        card: bytes of the GPU's memory, of which `BESIDE` is not for tensors.
        processes: that share the batch.

    Raises:
        UserError: as `forecast`.
    """
    batch = recipe.train.batch
    if recipe.train.micro_batch is None:
        share = batch // processes
        recipe = _most(recipe, MICRO_BATCH, [size for size in range(1, share + 1) if batch % size == 0], card)
    if recipe.scoring.chunk is None:
        images = (recipe.train.micro_batch or batch) * recipe.video.size.frames
        recipe = _most(recipe, CHUNK, [2**power for power in range(images.bit_length())], card)
    return recipe


def _most(recipe: Recipe, key: str, sizes: list[int], card: int) -> Recipe:
    """The recipe with the largest of these sizes, smallest first, whose peak fits."""
    at = bisect_right(sizes, card - BESIDE, key=lambda size: forecast(changed(recipe, {key: size})).peak)
    return changed(recipe, {key: sizes[max(at - 1, 0)]})


def widened_here(recipe: Recipe, card: int | None, processes: int) -> tuple[Recipe, list[str]]:
    """The recipe as this machine trains it, and what is said of it; without a card to plan for it stays as it is.

    Args:
        card: the bytes of this machine's GPU; None where it has none.
    """
    left_open = [key for key, value in _at_once(recipe).items() if value is None]
    if card is None or not left_open or recipe.train.batch % processes:  # the last is told when processes join
        return recipe, []
    try:
        found = widened(recipe, card, processes)
    except UserError as error:
        found = changed(recipe, dict.fromkeys(left_open, 1))
        return found, [f"{_said(found, left_open)}: what a step takes is not known before it ({error})"]
    if all(_at_once(found)[key] == 1 for key in left_open) and forecast(found).peak > card - BESIDE:
        return found, [
            f"{_said(found, left_open)}: even so a step takes more than {card / GIB:.0f} GiB: 'vader plan' tells what "
            "makes it fit"
        ]
    return found, [f"{_said(found, left_open)}: the most that {card / GIB:.0f} GiB hold; set them to choose otherwise"]


def _at_once(recipe: Recipe) -> dict[str, int | None]:
    return {MICRO_BATCH: recipe.train.micro_batch, CHUNK: recipe.scoring.chunk}


def _said(recipe: Recipe, keys: list[str]) -> str:
    return " ".join(f"{key}={_at_once(recipe)[key]}" for key in keys)
