"""Lines of a chart that lie on each other: so that each is seen, they take turns along the way.

In go lines as points, out comes for each how many share its way and which of them it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

CLOSE = 0.01  # share of a chart's height: lines that are nearer than their own width look like one
DASH = 9.0  # of a turn, in pixels of a page or points of a plot
Dashes = tuple[float, tuple[float, float]]  # an offset, and the lengths of dash and gap


@dataclass(frozen=True)
class Turn:
    """The line is the `place`-th of `count` that coincide; (0, 1) is a line by itself."""

    place: int
    count: int

    @property
    def dashes(self) -> Dashes | None:
        """None of a line that is whole: one by itself, or the first, drawn below.

        Where the first is whole and the others leave out its turn, all are seen.
        """
        return (-self.place * DASH, (DASH, (self.count - 1) * DASH)) if self.place else None

    @property
    def size(self) -> float:
        """Of the line's points, as a share of the usual: those drawn later are smaller, so that each shows a ring."""
        return 1 - self.place / self.count


def turns(lines: Sequence[tuple[Sequence[float], Sequence[float]]], height: float) -> list[Turn]:
    """Of each line (x, y) its turn, in their order.

    Args:
        height: what the chart spans upwards.
    """
    leaders: list[int] = []  # of each line the first that it coincides with, or itself
    for number, line in enumerate(lines):
        same = (at for at in range(number) if leaders[at] == at and _coincide(lines[at], line, CLOSE * height))
        leaders.append(next(same, number))
    return [Turn(leaders[:number].count(leader), leaders.count(leader)) for number, leader in enumerate(leaders)]


def _coincide(
    one: tuple[Sequence[float], Sequence[float]], other: tuple[Sequence[float], Sequence[float]], close: float
) -> bool:
    """Whether at least half of the places that they share are the same to the eye, and more than one: runs that begin
    alike have their first in common."""
    known = dict(zip(*one, strict=True))
    gaps = [abs(known[x] - y) for x, y in zip(*other, strict=True) if x in known]
    finite = [gap for gap in gaps if math.isfinite(gap)]
    near = sum(gap <= close for gap in finite)
    return near > 1 and 2 * near >= len(finite)
