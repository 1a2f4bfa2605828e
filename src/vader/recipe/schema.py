"""The whole of a recipe: its sections, which must fit together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from vader.errors import UserError
from vader.recipe import rules
from vader.recipe.sections import (
    AdapterSection,
    AlgorithmSection,
    EvaluationSection,
    MemorySection,
    ModelSection,
    OptimizerSection,
    PromptsSection,
    RewardSection,
    SamplingSection,
    Section,
    TrainSection,
    VideoSection,
    expand_mixes,
)


class Recipe(Section):
    """One run, wholly. `name` is also the name of the run's folder."""

    name: str
    model: ModelSection
    video: VideoSection
    sampling: SamplingSection = SamplingSection()
    rewards: Annotated[tuple[RewardSection, ...], Field(min_length=1), AfterValidator(expand_mixes)]
    prompts: PromptsSection
    algorithm: AlgorithmSection = AlgorithmSection()
    adapter: AdapterSection = AdapterSection()
    optimizer: OptimizerSection = OptimizerSection()
    train: TrainSection
    evaluation: EvaluationSection = EvaluationSection()
    memory: MemorySection = MemorySection()

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        for contradiction in self._contradictions():
            raise UserError(contradiction)
        return self

    def _contradictions(self) -> Iterator[str]:
        """What is wrong between keys that are each right alone, as sentences for the user."""
        algorithm, sampling, batch = self.algorithm, self.sampling, self.train.batch
        yield from rules.of_name(self.name)
        yield from rules.of_sampling(sampling)
        yield from rules.of_algorithm(algorithm)
        yield from rules.of_policy(algorithm.policy, sampling.steps)
        yield from rules.of_frames(algorithm.frames, self.video.frames)
        yield from rules.of_batch(self.train)
        if algorithm.name == "ddpo":
            yield from rules.of_ddpo(algorithm.ddpo, sampling, batch)
        if algorithm.name == "diffusion_dpo":
            yield from rules.of_dpo(algorithm.dpo, batch)
