"""The sections of a recipe and their keys: types, ranges and defaults."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)

from vader.plugins import Part

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Momentum = Annotated[float, Field(ge=0.0, lt=1.0)]


class Section(BaseModel):
    """A part of a recipe: immutable, and no key beyond the declared ones."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelSection(Section):
    """Which base model: its family (or `module:Class`), and a folder, file or hub id."""

    family: str = "modelscope"
    checkpoint: str
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # of the frozen weights
    options: dict[str, Any] = {}  # the family's own, as svd's motion_bucket


class VideoSection(Section):
    frames: PositiveInt
    height: PositiveInt
    width: PositiveInt
    fps: PositiveInt = 8


class SamplingSection(Section):
    """How videos are sampled. `solver: auto` is the checkpoint's own."""

    solver: Literal["auto", "ddim", "dpm", "euler_edm", "euler_flow"] = "auto"
    steps: PositiveInt = 25
    eta: Share = 0.0
    spacing: Literal["auto", "leading", "trailing", "linspace"] = "auto"
    guidance: Annotated[float, Field(ge=1.0)] = 9.0
    guidance_batched: bool = True
    guidance_detach_uncond: bool = False


class RewardSection(BaseModel):
    """A reward by name (or `module:Class`) and weight; every other key goes to the reward's constructor."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    name: str
    weight: float = 1.0

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


# Mixes by name. A mix stands for its rewards, each with the mix's own options and its weight times the mix's.
# hps_aesthetic: the paper's code has the loss (1.5 * 0.1 |aesthetic - 10| + |1 - hps|) / 2, whose gradient below 10
# is that of 0.075 aesthetic + 0.5 hps.
MIXES: dict[str, tuple[dict[str, Any], ...]] = {
    "hps_aesthetic": (
        {"name": "hps", "weight": 0.5, "resize": "squash"},
        {"name": "aesthetic", "weight": 0.075, "resize": "squash"},
    ),
}


def expand_mixes(sections: Sequence[RewardSection]) -> tuple[RewardSection, ...]:
    """Every mix that is named becomes its rewards; all else stays."""
    return tuple(part for section in sections for part in _parts_of(section))


def _parts_of(section: RewardSection) -> Sequence[RewardSection]:
    if section.name not in MIXES:
        return (section,)
    weighted = [{**part, **section.options, "weight": section.weight * part["weight"]} for part in MIXES[section.name]]
    return [RewardSection.model_validate(part) for part in weighted]


class PromptsSection(Section):
    """Prompt sets by built-in name, file or `module:Name`: one to train on, one held out."""

    train: str
    test: str


class PolicySection(Section):
    """Where the reward gradient enters the sampling chain (`vader.sampling.policies` says what each name means)."""

    name: Literal["last", "random_tail", "steps", "full", "draft_lv", "drtune", "refl"] = "last"
    k: PositiveInt = 1  # last: how many steps; drtune: how many of the steps; draft_lv: how many fresh noises
    steps: tuple[NonNegativeInt, ...] = ()  # steps: which, counted from the start
    window: tuple[Share, Share] = (0.6, 1.0)  # refl: the share of the chain from which the step is drawn


class FramesSection(Section):
    """Which frames of a video the reward sees in training."""

    sample: PositiveInt | Literal["all", "first_middle_last", "every_second"] | tuple[NonNegativeInt, ...] = 1
    chunk: PositiveInt = 1  # frames decoded and scored at once under split backward


class DDPOSection(Section):
    """Settings of algorithm 'ddpo' (`vader.algorithms.ddpo`)."""

    videos_per_prompt: PositiveInt = 1
    minibatches: PositiveInt = 2  # optimiser steps in which a batch is gone through
    inner_epochs: PositiveInt = 1  # how often it is gone through
    clip_range: PositiveFloat = 1e-4  # of the ratio of probabilities, PPO's epsilon
    advantage_clip: PositiveFloat = 5.0
    min_std: NonNegativeFloat = 0.0  # of a step's fresh noise: steps with less are not trained
    prompt_buffer: PositiveInt = 32  # latest rewards of a prompt that make its mean and standard deviation
    prompt_min_count: PositiveInt = 16  # with fewer of them, those of the batch do


class DPOSection(Section):
    """Settings of algorithm 'diffusion_dpo' (`vader.algorithms.diffusion_dpo`)."""

    beta: PositiveFloat = 5000.0  # how strongly the frozen base holds the model
    videos_per_prompt: Annotated[int, Field(ge=2)] = 2  # online
    capacity: Annotated[int, Field(ge=2)] = 256  # online: latest videos of which pairs are made
    updates: PositiveInt = 4  # optimiser steps a batch
    pairs: PositiveInt = 8  # pairs an optimiser step
    preferences: str | None = None  # a file of pairs: nothing is sampled and ranked in training


class AlgorithmSection(Section):
    """How the reward trains the model. All but `name` and `frames` are settings of one algorithm alone."""

    name: str = "reward_gradient"
    frames: FramesSection = FramesSection()
    policy: PolicySection = PolicySection()
    split_backward: bool = True
    base_distance: NonNegativeFloat = 0.0  # weight of the squared distance to the frozen base's prediction
    ddpo: DDPOSection = DDPOSection()
    dpo: DPOSection = DPOSection()

    def foreign(self) -> set[str]:
        """The keys that mean nothing to this algorithm; a user's own may read them all."""
        own = OWN_KEYS.get(self.name)
        return set() if own is None else {key for keys in OWN_KEYS.values() for key in keys} - set(own)

    @staticmethod
    def owner(key: str) -> str:
        """The algorithm to which a key belongs."""
        return next(name for name, keys in OWN_KEYS.items() if key in keys)


OWN_KEYS = {
    "reward_gradient": ("policy", "split_backward", "base_distance"),
    "ddpo": ("ddpo",),
    "diffusion_dpo": ("dpo",),
}


class AdapterSection(Section):
    rank: PositiveInt = 16
    alpha: PositiveFloat | None = None  # None: equal to rank, so that the adapter's scale is 1
    targets: tuple[str, ...] | None = None  # None: the model family's own


class OptimizerSection(Section):
    lr: PositiveFloat = 2e-4
    betas: tuple[Momentum, Momentum] = (0.9, 0.999)
    weight_decay: NonNegativeFloat = 0.0
    eps: PositiveFloat = 1e-8
    max_grad_norm: PositiveFloat = 1.0


class TrainSection(Section):
    """The loop. `batch` videos make one optimiser step, over all processes; `micro_batch` are on a device at once."""

    steps: PositiveInt
    batch: PositiveInt = 8
    micro_batch: PositiveInt | None = None  # None: each process's whole share
    seed: int = 0
    checkpoint_every: PositiveInt = 25
    keep_checkpoints: PositiveInt = 2
    max_skipped: PositiveInt = 5  # non-finite steps in a row that end the run
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()


class EvaluationSection(Section):
    """Held-out prompts under fixed noise, at step 0, every `every` steps and at the end."""

    every: PositiveInt = 25
    videos: PositiveInt = 16  # how many are sampled and scored each time
    final_videos: PositiveInt | None = None  # None: `videos`; at step 0 and at the end
    shown: PositiveInt = 4  # how many are written as mp4
    batch: PositiveInt = 8
    metrics: tuple[Part, ...] = ()  # figures that nothing is trained on (`vader.evaluation.metrics`)


class MemorySection(Section):
    checkpointing: bool = True
    offload: bool = False
