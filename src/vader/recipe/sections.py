"""The sections of a recipe and their keys: types, ranges, defaults, and below each key what it means."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)

from vader.nouns import VideoSize
from vader.plugins import Part, at_most

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Momentum = Annotated[float, Field(ge=0.0, lt=1.0)]
Scale = Annotated[float, Field(ge=1.0)]
Side = Annotated[int, at_most(8_192, "of pixels, no model makes larger videos")]
Frames = Annotated[int, at_most(10_000, "no machine holds a longer video at once")]
Batch = Annotated[int, at_most(65_536, "no machine holds more at once")]
Videos = Annotated[int, at_most(100_000, "more than anyone looks at")]
Rate = Annotated[float, Field(gt=0.0, le=100.0, json_schema_extra={"why": "Adam moves every weight by so much a step"})]
# Which frames of a video: so many at random in training, all, by rule, or these.
Sees = PositiveInt | Literal["all", "first_middle_last", "every_second"] | tuple[NonNegativeInt, ...]


class Section(BaseModel):
    """Some keys of a recipe: immutable, and none beyond the declared ones."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class ModelSection(Section):
    """Which base model."""

    family: str = "modelscope"
    """Architecture and file format (vader list models), or your own module:Class."""
    checkpoint: str
    """tiny, a folder, a file or a hub id."""
    precision: str = "auto"
    """Of the frozen weights: fp32, bf16, fp16, or what fits the device."""
    decoder: str | None = None
    """A tiny decoder's file, for frames that training takes gradient from; null is the VAE, which shows all others."""
    options: dict[str, Any] = {}
    """The family's own, as svd's motion_bucket."""


class VideoSection(Section):
    """The size of the videos."""

    frames: Frames
    """Frames a video."""
    height: Side
    """Pixels."""
    width: Side
    """Pixels."""
    fps: Annotated[int, at_most(1_000, "no video shows more frames a second")] = 8
    """Frames a second, for files and for models that are told."""
    segments: Annotated[int, at_most(1_000, "errors add up from segment to segment")] = 1
    """Each starts from the last frame of the one before, and has so many frames; for models that take pictures."""

    @property
    def size(self) -> VideoSize:
        """Of the whole video; a picture that ends one segment and begins the next is there once."""
        frames = self.segments * (self.frames - 1) + 1
        return VideoSize(frames, self.height, self.width, self.fps, self.segments)


class PrefixSection(Section):
    """How training gets to the steps with gradient; evaluations take the whole way."""

    every: Annotated[int, at_most(1_000, "models know a thousand noise levels")] = 1
    """One prediction leads over so many steps."""
    guidance: tuple[Share, Share] = (0.0, 1.0)
    """Between these shares of the chain there is guidance, from 0 at its noise to 1 at its end."""


class SamplingSection(Section):
    """How videos are sampled; auto is the checkpoint's own."""

    solver: str = "auto"
    """ddim, dpm, euler_edm, euler_flow, unipc or auto."""
    steps: Annotated[int, at_most(1_000, "models know a thousand noise levels")] = 25
    """Denoising steps."""
    eta: Share = 0.0
    """Fresh noise in the steps, from 0 (none) to 1."""
    spacing: str = "auto"
    """Which training times are visited: leading, trailing, linspace, uniform or auto."""
    shift: PositiveFloat | None = None
    """Of the noise levels of flow models; null is the checkpoint's own."""
    sigmas: str | tuple[PositiveFloat, ...] | None = None
    """The noise levels of flow models before any shift: even, euler, unipc, linear_quadratic or numbers, one a step."""
    guidance: Scale | Part = 9.0
    """The scale of the family's own strategy, 1 being none; or a strategy by name (vader list guidance)."""
    negative: str = ""
    """The negative prompt of every prompt that has none of its own."""
    guidance_batched: bool = True
    """Both branches at once (faster), or one after the other (less memory)."""
    guidance_detach_uncond: bool = False
    """No gradient through the unconditional branch."""
    prefix: PrefixSection = PrefixSection()
    """How training gets to the steps with gradient."""


class RewardSection(Part):
    """A reward by name and weight; every other key goes to the reward's constructor."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    name: str
    """A built-in reward (vader list rewards), or your own module:Class; keys beside these five are its own."""
    weight: float = 1.0
    """Its factor in the sum that is maximised."""
    sees: Sees | None = None
    """Which frames: so many at random, all, a rule or a list of indices; null is what the reward asks for."""
    hinge: float | None = None
    """A score from which on there is no gradient, as it is good enough; null is none."""
    robust: Annotated[float, Field(ge=0.0, le=0.5)] = 0.0
    """In training, noise of this standard deviation on the pixels, which are in [0, 1], before the reward."""


class PromptsSection(Section):
    """Prompt sets: built-in names (vader list prompts), files or module:Name."""

    train: str
    """Drawn from at random in training."""
    test: str
    """Held out: sampled for evaluation only."""


class ScoringSection(Section):
    """How latents become scores, in training and evaluation alike."""

    chunk: Batch | None = None
    """Images decoded and scored at once; null is as many as a GPU has room for in training, and 1 elsewhere."""

    @property
    def images(self) -> int:
        """The chunk, or 1 where nothing has chosen one."""
        return self.chunk or 1


class AlgorithmSection(Part):
    """How the scores train the model; the options are the settings that an algorithm declares beside its code."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    name: str = "reward_gradient"
    """reward_gradient, ddpo, diffusion_dpo, nft, or your own module:Class; keys beside it are its own settings."""


class AdapterSection(Section):
    """The LoRA adapter that is trained."""

    rank: Annotated[int, at_most(8_192, "no layer is as wide")] = 16
    """LoRA's rank."""
    alpha: PositiveFloat | None = None
    """LoRA's alpha; null is the rank, so that the adapter's scale is 1."""
    targets: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Names of the layers that get LoRA, matched at their end; null is the model family's own choice."""
    denoisers: tuple[str, ...] | None = None
    """Which of the model's denoisers get LoRA; null is all."""
    init: str | None = None
    """What it starts from: an adapter's file or folder, a run, or a run's checkpoint as runs/x@300; null is nothing."""
    ema: Momentum | None = None
    """Decay of a moving average of its weights, which is evaluated and exported in their place; null is none."""


class OptimizerSection(Section):
    """AdamW's settings."""

    lr: Rate = 2e-4
    """Learning rate, constant."""
    betas: tuple[Momentum, Momentum] = (0.9, 0.999)
    """Momenta."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay."""
    eps: PositiveFloat = 1e-8
    """Epsilon."""
    max_grad_norm: PositiveFloat = 1.0
    """The adapter's gradient is clipped to this norm."""
    eight_bit: bool = False
    """Keep AdamW's two moments in 8 bits; needs bitsandbytes."""


class TrainSection(Section):
    """The loop."""

    steps: Annotated[int, at_most(100_000_000, "nobody lives to see more")]
    """Optimiser steps."""
    batch: Batch = 8
    """Videos in one optimiser step, over all processes."""
    micro_batch: Batch | None = None
    """Videos on a device at once; divides batch; null is as many as a GPU has room for, and without one all."""
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] = 0
    """Of all randomness."""
    checkpoint_every: PositiveInt = 25
    """Steps between checkpoints."""
    keep_checkpoints: Annotated[int, at_most(100_000, "no disk holds more")] = 2
    """How many of the latest are kept."""
    max_skipped: PositiveInt = 5
    """Steps in a row that end the run because they train nothing: no finite gradient, or none."""
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """tensorboard, wandb, beside metrics.jsonl."""


class EvaluationSection(Section):
    """Held-out prompts under fixed noise, at step 0, every so many steps and at the end."""

    every: PositiveInt = 25
    """Steps between evaluations."""
    videos: Videos = 16
    """How many are sampled and scored each time."""
    final_videos: Videos | None = None
    """How many at step 0 and at the end; null is as videos."""
    shown: PositiveInt = 4
    """How many are written as mp4."""
    batch: Batch = 8
    """How many are sampled at once."""
    metrics: tuple[Part, ...] = ()
    """Measured beside the reward, never trained on (vader list metrics)."""

    @property
    def videos_at_the_ends(self) -> int:
        """How many at step 0 and at the end."""
        return self.final_videos or self.videos


PIXELS = (
    "clipped",
    "grid",
    "detail",
    "motion",
    "flicker",
    "saturation",
    "contrast",
)  # guards that cost next to nothing


def _off(value: Any) -> Any:
    """YAML reads a bare `off` as false."""
    return "off" if value is False else value


class GuardsSection(Section):
    """What says when a gain is not to be trusted, at each evaluation against the base's videos."""

    mode: Annotated[Literal["off", "warn", "stop"], BeforeValidator(_off)] = "warn"
    """off, warn (say it) or stop (end the run)."""
    rewards: tuple[Part, ...] = ()
    """Rewards that are not trained on: if one falls, or prompts matter less to it, the gain is doubtful."""
    watch: tuple[Part, ...] = tuple(Part(name=name) for name in PIXELS)
    """Further guards, most telling first (vader list guards)."""
