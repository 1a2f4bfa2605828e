"""A recipe describes one run wholly: typed models, read from YAML with dotted overrides.

Unknown keys and wrong types are `UserError`s of one line that name the nearest known key.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt


class Section(BaseModel):
    """A part of a recipe: immutable, and no key beyond the declared ones."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSection(Section):
    """Which base model: its family (or `module:Class`), and a folder, file or hub id."""

    family: str = "modelscope"
    checkpoint: str
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # of the frozen weights


class VideoSection(Section):
    frames: PositiveInt
    height: PositiveInt
    width: PositiveInt
    fps: PositiveInt = 8


class SamplingSection(Section):
    """How videos are sampled. `solver: auto` is the checkpoint's own."""

    solver: Literal["auto", "ddim", "euler_edm", "euler_flow"] = "auto"
    steps: PositiveInt = 25
    eta: float = Field(0.0, ge=0.0, le=1.0)
    spacing: Literal["auto", "leading", "trailing", "linspace"] = "auto"
    guidance: float = Field(9.0, ge=1.0)
    guidance_batched: bool = True
    guidance_detach_uncond: bool = False


class RewardSection(BaseModel):
    """A reward by name (or `module:Class`) and weight; every other key goes to the reward's constructor."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str
    weight: float = 1.0

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class PromptsSection(Section):
    """Prompt sets by built-in name, file or `module:Name`: one to train on, one held out."""

    train: str
    test: str


class PolicySection(Section):
    """Where the reward gradient enters the sampling chain (`vader.policies` says what each name means)."""

    name: Literal["last", "random_tail", "steps", "full", "draft_lv", "drtune", "refl"] = "last"
    k: PositiveInt = 1  # last: how many steps; drtune: how many of the steps; draft_lv: how many fresh noises
    steps: tuple[NonNegativeInt, ...] = ()  # steps: which, counted from the start
    window: tuple[float, float] = (0.6, 1.0)  # refl: the share of the chain from which the step is drawn


class FramesSection(Section):
    """Which frames of a video the reward sees in training."""

    sample: PositiveInt | Literal["all", "first_middle_last", "every_second"] | tuple[NonNegativeInt, ...] = 1
    chunk: PositiveInt = 1  # frames decoded and scored at once under split backward


class AlgorithmSection(Section):
    name: str = "reward_gradient"
    policy: PolicySection = PolicySection()
    frames: FramesSection = FramesSection()
    split_backward: bool = True
    base_distance: float = Field(0.0, ge=0.0)  # weight of the squared distance to the frozen base's prediction


class AdapterSection(Section):
    rank: PositiveInt = 16
    alpha: PositiveFloat | None = None  # None: equal to rank, so that the adapter's scale is 1
    targets: tuple[str, ...] | None = None  # None: the model family's own


class OptimizerSection(Section):
    lr: PositiveFloat = 2e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(0.0, ge=0.0)
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
    judge: bool = False  # the tiny world's ground truth, beside the reward


class MemorySection(Section):
    checkpointing: bool = True
    offload: bool = False


class Recipe(Section):
    """One run, wholly."""

    name: str
    model: ModelSection
    video: VideoSection
    sampling: SamplingSection = SamplingSection()
    rewards: tuple[RewardSection, ...] = Field(min_length=1)
    prompts: PromptsSection
    algorithm: AlgorithmSection = AlgorithmSection()
    adapter: AdapterSection = AdapterSection()
    optimizer: OptimizerSection = OptimizerSection()
    train: TrainSection
    evaluation: EvaluationSection = EvaluationSection()
    memory: MemorySection = MemorySection()
