"""A policy tried on a chain of numbers, before any model is there: does it fit, and which steps would get gradient?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import torch

from vader.errors import UserError
from vader.nouns import Condition
from vader.randomness import generator
from vader.sampling.guidance import Guidance, Passes
from vader.sampling.noise import Noise
from vader.sampling.policies import Policy, View
from vader.sampling.walk import Sampler, Walk
from vader.solvers.scheduler_config import solver_from_config

DRAWS = 100  # of a policy's random choices: enough that a step it may reach is hardly missed
NOBODY: Any = SimpleNamespace(denoisers={})  # in a model's place where none is asked
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler"}


class _Still(Guidance):
    """A prediction of nothing, with a graph wherever there may be one."""

    def __call__(self, passes: Passes) -> torch.Tensor:
        return 0.0 * passes.latents + torch.zeros((), requires_grad=torch.is_grad_enabled())


def rehearse(policy: Policy, steps: int, draws: int = DRAWS) -> list[frozenset[int]]:
    """The steps, of a chain of so many, that a policy gives gradient, draw by draw of its random choices.

    A policy that makes none does the same in every draw, and is tried once.

    Raises:
        UserError: its options do not fit such a chain, or what it shows the reward carries no gradient.
    """
    solver, found = solver_from_config(FLOW), list[frozenset[int]]()
    sampler = Sampler(NOBODY, solver, solver.schedule(steps), _Still())
    condition = Condition({"": torch.zeros(1)}, {})
    for draw in range(draws):
        reached = set[int]()
        noise = Noise((1,), 0, "rehearsal", draw, [0])
        walk = Walk(sampler, condition, noise, on_gradient=lambda walk, i, *rest, here=reached: here.add(i))
        choices = generator(0, "rehearsal", draw)
        unused = choices.get_state()
        for view in _views(policy(walk, choices)):
            if not view.latents.requires_grad:
                raise UserError("the policy shows the reward latents without gradient: make a step with grad=True")
        found.append(frozenset(reached))
        if torch.equal(choices.get_state(), unused):
            found = found * draws
            break
    if not any(found):
        raise UserError("the policy shows the reward nothing: yield View(latents) of steps made with grad=True")
    return found


def _views(found: object) -> Iterator[View]:
    """What a policy gave, if it is views one by one."""
    if not isinstance(found, Iterable):
        raise UserError(f"the policy returns {found!r}: it must yield View(latents), one or several")
    for view in found:
        if not isinstance(view, View):
            raise UserError(f"the policy yields {view!r}: it must yield View(latents)")
        yield view
