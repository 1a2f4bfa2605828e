"""The prefix: the steps before the first one with gradient, most of a training step's work, and how to do with less.

In go a walk and where it is to be, out come places on the way. What is left out here changes what is trained on, so
each switch is the recipe's choice; evaluations never use one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vader.sampling.walk import Place, Walk


@dataclass(frozen=True)
class Prefix:
    """How to get to where gradient begins.

    Attributes:
        every: one prediction leads over so many steps, the last one to exactly where gradient begins.
        guidance: shares of the whole chain, from 0 at its noise to 1 at its end, between whose steps there is
            guidance; elsewhere the conditional prediction does alone (as arXiv 2404.07724, in training).
    """

    every: int = 1
    guidance: tuple[float, float] = (0.0, 1.0)

    def places(self, walk: Walk, at: Place, end: int) -> Iterator[Place]:
        """Every place that is visited after `at`, the last being where step `end` starts; no step has gradient."""
        while at.i < end:
            guided = self.guidance[0] <= at.i / len(walk) < self.guidance[1]
            at = walk.advance(at, walk.predict(at.i, at.latents, guided), min(at.i + self.every, end))
            yield at


EXACT = Prefix()
