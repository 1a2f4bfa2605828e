"""Videos of several segments: each is a walk that starts from the picture at which the one before arrived.

An image-to-video model makes videos longer than it was trained for in this way (arXiv 2407.08737, figure 9). A video of
one segment is a single walk. Latents of several segments are by number: `{"0": ..., "1": ...}`, each `[B, ...]`.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Generator, Tensor

from vader.nouns import Latents, Prompt, VideoSize, detached, map_latents
from vader.sampling.noise import Noise
from vader.sampling.policies import Policy, View
from vader.sampling.walk import Sampler, Walk, scale_gradient


@dataclass(frozen=True)
class Chain:
    """The segments of B videos: everything that fixes them.

    Attributes:
        size: of the whole videos.
        noise: of their first segments; each further one has its own, of the same videos.
        images: `[B, 3, H, W]` in [0, 1] that the first segments start from; None: those of the prompts.
        trained: the numbers of the segments in which there is gradient; the pictures between have none.
        options: of every walk.
    """

    sampler: Sampler
    prompts: Sequence[Prompt]
    size: VideoSize
    noise: Noise
    images: Tensor | None = None
    trained: Container[int] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def walk(self, number: int = 0, images: Tensor | None = None) -> Walk:
        """The walk of one segment, from these pictures."""
        noise = self.noise if number == 0 else replace(self.noise, purpose=f"{self.noise.purpose}/{number}")
        condition = self.sampler.model.encode(self.prompts, self.size.segment, images)
        return Walk(self.sampler, condition, noise, **self.options)

    def final(self) -> Latents:
        """The videos' latents, without gradient."""
        found = self._one_after_another(lambda number, walk: walk.frozen(len(walk)).latents)
        return found if self.size.segments > 1 else found["0"]

    def views(self, policy: Policy, generator: Generator) -> Iterator[View]:
        """What the reward sees under a policy, which makes the moves of every trained segment.

        A policy may yield several views of a segment. The next segment starts from the first of them, and all
        segments' further views come together.
        """
        if self.size.segments == 1:
            yield from _kept_views(self.walk(0, self.images), policy, generator)
            return
        streams: dict[str, Iterator[View]] = {}

        def first(number: int, walk: Walk) -> Latents:
            if number not in self.trained:
                return walk.frozen(len(walk)).latents
            streams[str(number)] = _kept_views(walk, policy, generator)
            return _weighted(next(streams[str(number)]))

        found = self._one_after_another(first)
        yield View(found)
        constant = {name: detached(latents) for name, latents in found.items()}
        for views in zip(*streams.values(), strict=True):
            yield View({**constant, **dict(zip(streams, map(_weighted, views), strict=True))})

    def _one_after_another(self, made: Callable[[int, Walk], Latents]) -> dict[str, Any]:
        """The latents of every segment, by what makes one from its walk."""
        found, images = dict[str, Any](), self.images
        for number in range(self.size.segments):
            walk = self.walk(number, images)
            latents = found[str(number)] = made(number, walk)
            if number + 1 < self.size.segments:
                with walk.phases("sample"):
                    images = self._arrived(latents)
        return found

    @torch.no_grad()
    def _arrived(self, latents: Latents) -> Tensor:
        """The last pictures `[B, 3, H, W]` of a segment."""
        last = torch.full((len(self.prompts), 1), self.size.segment.frames - 1)  # on the CPU: some models read it
        return self.sampler.model.decode(detached(latents), last)[:, 0]


def _kept_views(walk: Walk, policy: Policy, generator: Generator) -> Iterator[View]:
    """A policy's views of one walk, with what is known in its place."""
    for view in policy(walk, generator):
        yield replace(view, latents=walk.kept(view.latents), walk=walk)


def _weighted(view: View) -> Latents:
    """A view's latents, with its weight as a factor on their gradient: each segment of a video may have its own."""

    def scaled(x: Tensor) -> Tensor:
        weight = view.weight
        return scale_gradient(x, weight.view(-1, *[1] * (x.ndim - 1)) if isinstance(weight, Tensor) else weight)

    return map_latents(scaled, view.latents)
