"""Which keys must fit together, beyond what each must be alone: contradictions, as sentences for the user."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from vader.recipe.sections import (
    AlgorithmSection,
    DDPOSection,
    DPOSection,
    FramesSection,
    PolicySection,
    SamplingSection,
    TrainSection,
)


def of_name(name: str) -> Iterator[str]:
    if not re.fullmatch(r"[\w-][\w.-]*", name):
        yield f"name {name!r} names the run's folder: use letters, digits, '-', '_' and '.'"


def of_sampling(sampling: SamplingSection) -> Iterator[str]:
    if sampling.solver == "dpm" and sampling.eta > 0:
        yield f"sampling.eta is {sampling.eta:g} but solver {sampling.solver!r} is deterministic: set it to 0"


def of_algorithm(algorithm: AlgorithmSection) -> Iterator[str]:
    for key in sorted(algorithm.foreign() & algorithm.model_fields_set):
        owner = algorithm.owner(key)
        yield (
            f"algorithm.{key} belongs to algorithm {owner!r}, but algorithm.name is {algorithm.name!r}: drop the key, "
            f"or replace the whole section by algorithm='{{name: {algorithm.name}}}'"
        )


def of_ddpo(ddpo: DDPOSection, sampling: SamplingSection, batch: int) -> Iterator[str]:
    if sampling.eta == 0:
        yield "algorithm 'ddpo' learns from the noise in sampling steps, but sampling.eta is 0: set it above 0, to 1"
    if ddpo.prompt_min_count > ddpo.prompt_buffer:
        yield (
            f"algorithm.ddpo.prompt_min_count is {ddpo.prompt_min_count} but algorithm.ddpo.prompt_buffer is "
            f"{ddpo.prompt_buffer}: no prompt will ever have so many rewards"
        )
    yield from _shares("algorithm.ddpo.minibatches", ddpo.minibatches, batch)
    yield from _shares("algorithm.ddpo.videos_per_prompt", ddpo.videos_per_prompt, batch)


def of_dpo(dpo: DPOSection, batch: int) -> Iterator[str]:
    if dpo.preferences is None:
        yield from _shares("algorithm.dpo.videos_per_prompt", dpo.videos_per_prompt, batch)
        if dpo.capacity < batch:
            yield f"algorithm.dpo.capacity is {dpo.capacity} but train.batch is {batch}: keep at least one batch"


def _shares(key: str, value: int, batch: int) -> Iterator[str]:
    if batch % value:
        yield f"train.batch {batch} is no multiple of {key} {value}: change one of them"


def of_policy(policy: PolicySection, steps: int) -> Iterator[str]:
    if policy.name in ("last", "drtune") and policy.k > steps:
        yield f"algorithm.policy.k is {policy.k} but sampling.steps is {steps}: k can be at most {steps}"
    if policy.name == "steps" and not policy.steps:
        yield "algorithm.policy.steps is empty: policy 'steps' needs a list of steps, as in [0, 10, 24]"
    if policy.name != "steps" and policy.steps:
        yield f"algorithm.policy.steps is for policy 'steps', but algorithm.policy.name is {policy.name!r}: drop one"
    yield from _indices("algorithm.policy.steps", policy.steps, steps, "sampling.steps")
    if policy.window[0] >= policy.window[1]:
        yield f"algorithm.policy.window is {list(policy.window)}: its first share must be below its second"


def of_frames(frames: FramesSection, count: int) -> Iterator[str]:
    key, sample = "algorithm.frames.sample", frames.sample
    if isinstance(sample, int) and sample > count:
        yield f"{key} is {sample} but video.frames is {count}: sample at most {count}, or set it to all"
    if sample == "first_middle_last" and count < 3:
        yield f"{key} is first_middle_last but video.frames is {count}: it needs at least 3"
    if isinstance(sample, tuple):
        if not sample:
            yield f"{key} is an empty list: name at least one frame, or set it to all"
        yield from _indices(key, sample, count, "video.frames")


def _indices(key: str, indices: Sequence[int], count: int, count_key: str) -> Iterator[str]:
    for index in indices:
        if index >= count:
            yield f"{key} holds {index} but {count_key} is {count}: indices run from 0 to {count - 1}"
    if len(set(indices)) < len(indices):
        yield f"{key} is {list(indices)}: name each index once"


def of_batch(train: TrainSection) -> Iterator[str]:
    if train.micro_batch is not None and train.batch % train.micro_batch:
        yield f"train.batch {train.batch} is no multiple of train.micro_batch {train.micro_batch}: change one of them"
