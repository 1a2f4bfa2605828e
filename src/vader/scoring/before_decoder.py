"""Rewards that look before the decoder: what they see of a policy's views, their scores, and their gradient.

In go a view with its walk, or final latents; out come scores `[B]` and, for training, a loss whose gradient at the
view's latents is the rewards'. No pixel is decoded for it.

Shapes: B videos, latents `[B, ...]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vader.nouns import Condition, detached, flat, map_latents
from vader.rewards.base import LatentReward, RewardMix
from vader.rewards.contract import scored_latents
from vader.rewards.shaping import PLAIN
from vader.sampling.policies import View

Seen = Mapping[str, "Glimpse"]  # by what a reward sees: clean, noisy


@dataclass(frozen=True)
class Glimpse:
    """Latents of B videos, the time that the denoiser is told at their noise level, and what they were made from."""

    latents: Any
    time: float
    condition: Condition

    def scores(self, name: str, reward: LatentReward) -> Tensor:
        """The reward's scores `[B]`, held to its contract."""
        time = torch.full((len(self.condition),), self.time, device=flat(self.latents).device)
        return scored_latents(name, reward, self.latents, time, self.condition)

    def leaf(self) -> Glimpse:
        """The same without its graph, collecting gradient."""
        return replace(self, latents=map_latents(lambda x: x.detach().requires_grad_(), self.latents))


def seen_in(view: View) -> Seen:
    """What latent rewards see of a view: its clean latents, and the noisy ones at which its last trained step arrived.

    Where a policy goes to the end of the chain, the latter are the final latents too.
    """
    assert view.walk is not None  # views come from a chain, which says so
    walk, at = view.walk, view.at
    clean = Glimpse(view.latents, walk.level(len(walk)).time, walk.condition)
    noisy = clean if at is None else Glimpse(at.latents, walk.level(at.i).time, walk.condition)
    return {"clean": clean, "noisy": noisy}


def latent_parts(mix: RewardMix, seen: Seen) -> dict[str, Tensor]:
    """What the latent rewards of a mix say, each `[B]`, as mere numbers."""
    with torch.no_grad():
        return {name: seen[reward.at].scores(name, reward) for name, reward in mix.latent.items()}


def pull_latents(mix: RewardMix, seen: Seen, scale: Tensor, normalise: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """A loss whose gradient, at the latents with graph, is that of `-sum over videos of scale * weight * score`.

    One reward's graph at a time is there, and none is left behind: the loss is linear in the latents.

    Args:
        scale: `[B]`.
        normalise: bring each reward's gradient to a root mean square of 1 over a video's latents before its weight.

    Returns:
        The loss, and the scores by name, detached.
    """
    loss, parts = scale.new_zeros(()), dict[str, Tensor]()
    for name, reward in mix.latent.items():
        leaf = seen[reward.at].leaf()
        scores = mix.shaping.get(name, PLAIN).held(leaf.scores(name, reward))
        if scores.requires_grad:
            (-scale * scores).sum().backward()
            gradient = flat(map_latents(lambda x: torch.zeros_like(x) if x.grad is None else x.grad, leaf.latents))
            if normalise:
                gradient = gradient * (scale.abs() / root_mean_square(gradient))[:, None]
            loss = loss + mix.weights[name] * (flat(seen[reward.at].latents) * gradient).sum()
        parts[name] = scores.detach()
    return loss, parts


def root_mean_square(numbers: Tensor) -> Tensor:
    """Of each video's `[B, D]`: `[B]`; 1 where all are 0, so that dividing leaves them so."""
    size = numbers.square().mean(dim=1).sqrt()
    return torch.where(size == 0, torch.ones_like(size), size)


def at_the_end(latents: Any, time: float, condition: Condition) -> Seen:
    """What latent rewards see of finished videos."""
    end = Glimpse(detached(latents), time, condition)
    return {"clean": end, "noisy": end}
