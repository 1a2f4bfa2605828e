"""The contract of an alignment algorithm.

An algorithm owns its gradient steps: it gets this process's share of a global batch and the engine, and returns what
happened. Its settings stand beside its code, as a dataclass that is checked like any part's options. Bring your own:
subclass `Algorithm`, name it `module:Class` in the recipe.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from vader.engine.batch import Batch
from vader.engine.engine import Engine
from vader.errors import UserError
from vader.plugins import at_most, explain_methods, is_built_in
from vader.recipe import Recipe

Count = Annotated[int, at_most(100_000, "no step has use for more")]  # of an algorithm's settings
WORK = (
    "__init__",
    "step",
    "check",
    "words",
    "without_gradient",
    "state_dict",
    "load_state_dict",
    "fill",
    "state_bytes",
)


@dataclass
class Metrics:
    """What one step did, over all processes. Where it took several optimiser steps, `grad_norm` is their mean."""

    reward: float
    parts: dict[str, float]
    queries: int
    grad_norm: float
    clamped: float  # share of the decoded pixels that were clamped and so carry no gradient
    skipped: bool  # no optimiser step was taken: reward or gradient was not finite, or the gradient zero
    extra: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class NoSettings:
    """For an algorithm without settings of its own."""


class Algorithm(ABC):
    """One way to align: `step` works on one batch.

    What it remembers from step to step belongs into `state_dict`, the same on every process: only then does a run
    that was stopped go on as if nothing had been.
    """

    Settings: ClassVar[type] = NoSettings  # a dataclass: what the recipe's section may hold beside the name
    videos_per_prompt: int = 1  # so many neighbours in a batch have the same prompt
    differentiates: ClassVar[bool] = False  # whether rewards must have a gradient, and are refused without one
    chains: ClassVar[bool] = False  # whether it trains videos of several segments (`Engine.training_chain`)

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        if not is_built_in(cls):
            explain_methods(cls, WORK, lambda algorithm: f"algorithm {type(algorithm).__name__!r}")

    def __init__(self, settings: Any, recipe: Recipe) -> None:
        """Raises `UserError` if settings and recipe contradict each other; nothing is loaded yet."""
        self.settings = settings
        self.recipe = recipe

    @abstractmethod
    def step(self, engine: Engine, batch: Batch) -> Metrics:
        """Samples, scores, differentiates and optimises, once or several times; all processes call it together, and
        make as many network passes each."""

    def check(self, engine: Engine) -> None:  # noqa: B027 (most algorithms have nothing to check)
        """Raises `UserError` if it cannot work with this model or these rewards. Asked before a run starts."""

    def words(self, engine: Engine) -> list[str]:
        """What to know of this run before it starts, a line each."""
        return []

    def without_gradient(self, metrics: Metrics) -> str:
        """Why a step may have had no gradient at all, and what to do: a part of the line that tells of it."""
        return "its loss is constant there"

    def state_dict(self) -> dict[str, Any]:
        """What it remembers, for checkpoints: tensors, numbers and texts in lists and dictionaries."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Takes up what `state_dict` gave."""

    def fill(self, engine: Engine, batch: Batch) -> None:  # noqa: B027
        """Puts in place, without values, what is made once before the first step: a plan walks through a later one."""

    def state_bytes(self, engine: Engine) -> int:
        """How large its `state_dict` can become, so that a run starts only where its checkpoints have room."""
        return 0


def require_share(key: str, value: int, batch: int) -> None:
    """Raises `UserError` unless a batch falls into parts of this many."""
    if batch % value:
        raise UserError(f"train.batch {batch} is no multiple of algorithm.{key} {value}: change one of them")


def unreached(engine: Engine, steps: Iterable[int]) -> list[str]:
    """The denoisers with an adapter that denoise none of these steps of the chain, and so would stay as they are."""
    starts = engine.sampler.schedule.starts
    reached = {engine.model.expert(starts[i].time) for i in steps}
    return [name for name in engine.adapted if name not in reached]
