"""This process's share of a global batch, and its parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from vader.nouns import Prompt


@dataclass(frozen=True)
class Batch:
    """This process's videos of one optimiser step.

    Attributes:
        prompts, indices: of each video, its prompt and its place in the global batch of `total`.
        padding: how many at the end are repeats of others, there so that every process makes as many network passes;
            they count nothing.
    """

    step: int
    prompts: tuple[Prompt, ...]
    indices: tuple[int, ...]
    total: int
    padding: int = 0

    def micro(self, size: int) -> Iterator[Batch]:
        """The same videos, at most `size` at once."""
        for start in range(0, len(self.prompts), size):
            yield self.select(range(start, min(start + size, len(self.prompts))))

    def select(self, places: Sequence[int]) -> Batch:
        """The videos at these places of this process's share."""
        real = len(self.prompts) - self.padding
        prompts, indices = (
            tuple(self.prompts[place] for place in places),
            tuple(self.indices[place] for place in places),
        )
        return replace(self, prompts=prompts, indices=indices, padding=sum(place >= real for place in places))

    def padded(self, count: int, spare: Batch) -> Batch:
        """As many as `count` videos: what is missing repeats the first of `spare`, and counts nothing."""
        missing = count - len(self.prompts)
        prompts, indices = self.prompts + spare.prompts[:1] * missing, self.indices + spare.indices[:1] * missing
        return replace(self, prompts=prompts, indices=indices, padding=missing)

    @property
    def counts(self) -> tuple[float, ...]:
        """1 for a video, 0 for a repeat."""
        return (1.0,) * (len(self.prompts) - self.padding) + (0.0,) * self.padding
