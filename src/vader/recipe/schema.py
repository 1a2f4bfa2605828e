"""The whole of a recipe: its sections, which must fit together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field, model_validator

from vader.errors import UserError
from vader.plugins import Part
from vader.recipe import rules
from vader.recipe.sections import (
    AdapterSection,
    AlgorithmSection,
    EvaluationSection,
    GuardsSection,
    ModelSection,
    OptimizerSection,
    PromptsSection,
    RewardSection,
    SamplingSection,
    ScoringSection,
    Section,
    TrainSection,
    VideoSection,
)


class Recipe(Section):
    """One run, wholly. `name` is also the name of the run's folder."""

    name: str
    """Of the recipe and of the run's folder, runs/<name>."""
    model: ModelSection
    video: VideoSection
    sampling: SamplingSection = SamplingSection()
    rewards: Annotated[tuple[RewardSection, ...], Field(min_length=1)]
    """Their weighted sum is maximised."""
    prompts: PromptsSection
    scoring: ScoringSection = ScoringSection()
    algorithm: AlgorithmSection = AlgorithmSection()
    adapter: AdapterSection = AdapterSection()
    optimizer: OptimizerSection = OptimizerSection()
    train: TrainSection
    evaluation: EvaluationSection = EvaluationSection()
    guards: GuardsSection = GuardsSection()
    memory: tuple[Part, ...] = (Part(name="recompute"),)
    """Techniques that trade time for memory (vader list memory)."""

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        for contradiction in self._contradictions():
            raise UserError(contradiction)
        return self

    def _contradictions(self) -> Iterator[str]:
        """What is wrong between keys that are each right alone, as sentences for the user."""
        yield from rules.of_name(self.name)
        for number, reward in enumerate(self.rewards):
            yield from rules.of_weight(f"rewards.{number}.weight", reward.weight)
            yield from rules.of_sees(f"rewards.{number}.sees", reward.sees, self.video.size.frames)
        yield from rules.of_batch(self.train)
