"""Gradient policies: where the reward gradient enters the sampling chain.

A policy is a small description (`Plan`), drawn afresh for each optimiser step: which denoising steps have a
graph, whether the chain between them carries gradient, and what the reward sees. The published methods are
presets of it; `vader.sampling.walk` carries a plan out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from vader.recipe import PolicySection


@dataclass(frozen=True)
class Plan:
    """One optimiser step's gradient plan over a chain of T denoising steps, counted from the noise: 0 .. T-1.

    Attributes:
        active: the steps whose prediction has a graph. Before the first, nothing has; after it, an inactive
            step's prediction is a constant and gradient passes it through the solver's linear part only.
        detach_input: the denoiser sees its input detached, so gradient runs through the solver's linear part
            alone (DRTune).
        sees: the reward sees the final latents, or the clean estimate x0 at the last active step, where the
            chain then ends (ReFL).
        views: how many times the last step is run: once from the chain, then from fresh noisings of its
            result (DRaFT-LV).
    """

    active: frozenset[int]
    detach_input: bool = False
    sees: Literal["final", "clean"] = "final"
    views: int = 1

    @property
    def first(self) -> int:
        return min(self.active)

    @property
    def last(self) -> int:
        return max(self.active)


Draw = Callable[[PolicySection, int, torch.Generator], Plan]


def draw_plan(policy: PolicySection, steps: int, generator: torch.Generator) -> Plan:
    """The plan of one optimiser step for a chain of `steps` denoising steps."""
    return PRESETS[policy.name](policy, steps, generator)


def last_k(policy: PolicySection, steps: int, generator: torch.Generator) -> Plan:
    """The last K steps; VADER's experiments have K = 1 (arXiv 2407.08737, Algorithm 1; DRaFT-K, arXiv 2309.17400)."""
    return Plan(frozenset(range(steps - policy.k, steps)))


def full(policy: PolicySection, steps: int, generator: torch.Generator) -> Plan:
    """Every step, K = T (DRaFT, arXiv 2309.17400)."""
    return Plan(frozenset(range(steps)))


def random_tail(policy: PolicySection, steps: int, generator: torch.Generator) -> Plan:
    """From a uniformly drawn step to the end (AlignProp's randomised truncation, arXiv 2310.03739)."""
    return Plan(frozenset(range(_uniform(0, steps, generator), steps)))


def explicit(policy: PolicySection, steps: int, generator: torch.Generator) -> Plan:
    """The steps that the recipe names."""
    return Plan(frozenset(policy.steps))


def draft_lv(policy: PolicySection, steps: int, generator: torch.Generator) -> Plan:
    """The last step, averaged over k noises: lower variance than K = 1 (DRaFT-LV, arXiv 2309.17400, section 4)."""
    return Plan(frozenset({steps - 1}), views=policy.k)


def drtune(policy: PolicySection, steps: int, generator: torch.Generator) -> Plan:
    """K evenly spaced steps from a random offset, denoiser inputs detached (DRTune, arXiv 2405.00760, Algorithm 1)."""
    stride = steps // policy.k
    offset = _uniform(0, steps - stride * (policy.k - 1), generator)
    return Plan(frozenset(range(offset, offset + stride * policy.k, stride)), detach_input=True)


def refl(policy: PolicySection, steps: int, generator: torch.Generator) -> Plan:
    """One random late step, whose clean estimate the reward sees (ReFL, arXiv 2304.05977, Algorithm 1)."""
    low, high = (round(share * steps) for share in policy.window)
    low = min(low, steps - 1)
    return Plan(frozenset({_uniform(low, max(high, low + 1), generator)}), sees="clean")


def _uniform(low: int, high: int, generator: torch.Generator) -> int:
    return int(torch.randint(low, high, (), generator=generator))


PRESETS: dict[str, Draw] = {
    "last": last_k,
    "full": full,
    "random_tail": random_tail,
    "steps": explicit,
    "draft_lv": draft_lv,
    "drtune": drtune,
    "refl": refl,
}
