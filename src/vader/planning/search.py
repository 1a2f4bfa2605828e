"""The cheapest settings under which a recipe's training step fits a card.

In go a recipe and the bytes there are, out comes a `Plan`: what to change, and what the step needs then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from vader.planning.step import Forecast, forecast
from vader.planning.switches import SWITCHES, Changes, Switch, switched
from vader.recipe import Recipe, changed

GIB = 2**30
BESIDE = GIB  # what the driver, the libraries' workspaces and the allocator's gaps take beside tensors


@dataclass(frozen=True)
class Plan:
    """Changes of a recipe (none: it fits as it is), the recipe with them, and what a step needs then.

    Attributes:
        before: what it needs as it is.
        fits: whether `after` does; where it does not, it is the least that there is.
    """

    changes: Changes
    recipe: Recipe
    before: Forecast
    after: Forecast
    fits: bool

    @property
    def work(self) -> float:
        """Operations after the changes, as a multiple of those before."""
        return self.after.operations / self.before.operations


def plan(recipe: Recipe, card: int, heard: Callable[[Changes, Forecast], object] | None = None) -> Plan:
    """Walks through the recipe's step, and through ever thriftier ones until one fits.

    Args:
        card: bytes of the GPU's memory, of which `BESIDE` is not for tensors.
        heard: is called with each step that was walked through, as a step of a large model takes a while.

    Raises:
        UserError: as `forecast`.
    """
    room = card - BESIDE

    def counted(recipe: Recipe, changes: Changes) -> Forecast:
        needs = forecast(recipe)
        if heard:
            heard(changes, needs)
        return needs

    before = counted(recipe, {})
    if before.peak <= room:
        return Plan({}, recipe, before, before, True)
    taken: tuple[Switch, ...] = ()
    found, changes, after = recipe, Changes(), before
    for switch in SWITCHES:
        if after.peak > room and switch(found):
            taken += (switch,)
            found, changes = switched(recipe, taken)
            after = counted(found, changes)
    if after.peak > room:
        return Plan(changes, found, before, after, False)
    for switch in taken[-2::-1]:  # what came before the last may not be needed beside it
        fewer = tuple(one for one in taken if one is not switch)
        tried, made = switched(recipe, fewer)
        needs = counted(tried, made)
        if needs.peak <= room:
            taken, found, changes, after = fewer, tried, made, needs
    for size in _larger(found) if "train.micro_batch" in changes else ():
        tried, made = changed(found, {"train.micro_batch": size}), changes | {"train.micro_batch": size}
        needs = counted(tried, made)
        if needs.peak > room:
            break
        found, changes, after = tried, made, needs
    return Plan(changes, found, before, after, True)


def _larger(recipe: Recipe) -> Iterator[int]:
    """Micro-batches beyond one that divide the batch, each at least twice the one before, short of the whole."""
    size = 1
    for more in range(2, recipe.train.batch):
        if recipe.train.batch % more == 0 and more >= 2 * size:
            yield (size := more)
