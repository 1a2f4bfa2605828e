"""The sections of a recipe and their keys: types, ranges and defaults."""

from __future__ import annotations

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
Scale = Annotated[float, Field(ge=1.0)]
# Which frames of a video: so many at random in training, all, by rule, or these.
Sees = PositiveInt | Literal["all", "first_middle_last", "every_second"] | tuple[NonNegativeInt, ...]


class Section(BaseModel):
    """Some keys of a recipe: immutable, and none beyond the declared ones."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelSection(Section):
    """Which base model: its family (or `module:Class`), and a folder, file or hub id."""

    family: str = "modelscope"
    checkpoint: str
    precision: str = "auto"  # of the frozen weights: fp32, bf16, fp16, or what fits the device
    options: dict[str, Any] = {}  # the family's own, as svd's motion_bucket


class VideoSection(Section):
    frames: PositiveInt
    height: PositiveInt
    width: PositiveInt
    fps: PositiveInt = 8


class SamplingSection(Section):
    """How videos are sampled. `auto` is the checkpoint's own."""

    solver: str = "auto"
    steps: PositiveInt = 25
    eta: Share = 0.0
    spacing: str = "auto"
    shift: PositiveFloat | None = None  # of the noise levels of flow models; None: the checkpoint's own
    guidance: Scale | Part = 9.0  # the scale of the family's own strategy, or a strategy by name
    negative: str = ""  # the negative prompt of every prompt that has none of its own
    guidance_batched: bool = True
    guidance_detach_uncond: bool = False


class RewardSection(Part):
    """A reward by name (or `module:Class`) and weight; every other key goes to the reward's constructor."""

    weight: float = 1.0
    sees: Sees | None = None  # None: what the reward needs


class PromptsSection(Section):
    """Prompt sets by built-in name, file or `module:Name`: one to train on, one held out."""

    train: str
    test: str


class ScoringSection(Section):
    """How latents become scores, in training and evaluation alike."""

    chunk: PositiveInt = 1  # images decoded and scored at once


class AlgorithmSection(Part):
    """How the scores train the model; the options are the settings that an algorithm declares beside its code."""

    name: str = "reward_gradient"


class AdapterSection(Section):
    rank: PositiveInt = 16
    alpha: PositiveFloat | None = None  # None: equal to rank, so that the adapter's scale is 1
    targets: Annotated[tuple[str, ...], Field(min_length=1)] | None = None  # None: the model family's own
    denoisers: tuple[str, ...] | None = None  # which of the model's carry an adapter; None: all


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
    max_skipped: PositiveInt = 5  # steps in a row without a finite gradient, or with none, that end the run
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()


class EvaluationSection(Section):
    """Held-out prompts under fixed noise, at step 0, every `every` steps and at the end."""

    every: PositiveInt = 25
    videos: PositiveInt = 16  # how many are sampled and scored each time
    final_videos: PositiveInt | None = None  # None: `videos`; at step 0 and at the end
    shown: PositiveInt = 4  # how many are written as mp4
    batch: PositiveInt = 8
    metrics: tuple[Part, ...] = ()  # measured beside the reward, never trained on
