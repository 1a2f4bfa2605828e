"""VADER: video diffusion alignment via reward gradients (arXiv 2407.08737).

The public API; everything else is a room behind it. Names are imported when first used, so that
`vader --help` needs no torch.

    recipe = vader.load_recipe("tiny", ["train.steps=20"])
    result = vader.train(recipe)
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

from vader.version import __version__ as __version__

if TYPE_CHECKING:
    from vader.algorithms.base import Algorithm as Algorithm
    from vader.algorithms.base import Metrics as Metrics
    from vader.errors import RunError as RunError
    from vader.errors import UserError as UserError
    from vader.evaluation.guards.base import Guard as Guard
    from vader.evaluation.metrics.base import Metric as Metric
    from vader.files.video import read_video as read_video
    from vader.files.video import write_mp4 as write_mp4
    from vader.models import load_adapter as load_adapter
    from vader.models import load_into as load_into
    from vader.models.base import VideoModel as VideoModel
    from vader.models.registry import load_model as load_model
    from vader.networks.adapter import merge_adapter as merge_adapter
    from vader.networks.techniques import Technique as Technique
    from vader.nouns import Audio as Audio
    from vader.nouns import Clip as Clip
    from vader.nouns import Condition as Condition
    from vader.nouns import Known as Known
    from vader.nouns import Prompt as Prompt
    from vader.nouns import VideoSize as VideoSize
    from vader.prompts import prompt_set as prompt_set
    from vader.recipe import Recipe as Recipe
    from vader.recipe import load_recipe as load_recipe
    from vader.rewards.base import FrameReward as FrameReward
    from vader.rewards.base import LatentReward as LatentReward
    from vader.rewards.base import Reward as Reward
    from vader.rewards.base import RewardMix as RewardMix
    from vader.rewards.base import SummedReward as SummedReward
    from vader.rewards.needs import AllFrames as AllFrames
    from vader.rewards.needs import Evenly as Evenly
    from vader.rewards.needs import Frames as Frames
    from vader.rewards.needs import PerSecond as PerSecond
    from vader.rewards.registry import load_reward as load_reward
    from vader.sampling.guidance import Guidance as Guidance
    from vader.sampling.policies import View as View
    from vader.sampling.videos import sample_videos as sample  # noqa: F401
    from vader.sampling.walk import Walk as Walk
    from vader.scoring.files import score_files as score  # noqa: F401
    from vader.solvers.scheduler_config import solver_from_config as solver_from_config
    from vader.training.trainer import TrainResult as TrainResult
    from vader.training.trainer import train as train

_HOMES = {
    "Algorithm": "vader.algorithms.base",
    "Metrics": "vader.algorithms.base",
    "Reward": "vader.rewards.base",
    "AllFrames": "vader.rewards.needs",
    "Audio": "vader.nouns",
    "Clip": "vader.nouns",
    "Condition": "vader.nouns",
    "Evenly": "vader.rewards.needs",
    "Frames": "vader.rewards.needs",
    "Known": "vader.nouns",
    "Guard": "vader.evaluation.guards.base",
    "Metric": "vader.evaluation.metrics.base",
    "PerSecond": "vader.rewards.needs",
    "Prompt": "vader.nouns",
    "Technique": "vader.networks.techniques",
    "View": "vader.sampling.policies",
    "Walk": "vader.sampling.walk",
    "FrameReward": "vader.rewards.base",
    "Guidance": "vader.sampling.guidance",
    "LatentReward": "vader.rewards.base",
    "Recipe": "vader.recipe",
    "RewardMix": "vader.rewards.base",
    "RunError": "vader.errors",
    "SummedReward": "vader.rewards.base",
    "TrainResult": "vader.training.trainer",
    "UserError": "vader.errors",
    "VideoModel": "vader.models.base",
    "VideoSize": "vader.nouns",
    "load_adapter": "vader.models",
    "load_into": "vader.models",
    "load_model": "vader.models.registry",
    "load_recipe": "vader.recipe",
    "load_reward": "vader.rewards.registry",
    "merge_adapter": "vader.networks.adapter",
    "prompt_set": "vader.prompts",
    "read_video": "vader.files.video",
    "sample": "vader.sampling.videos:sample_videos",
    "score": "vader.scoring.files:score_files",
    "solver_from_config": "vader.solvers.scheduler_config",
    "train": "vader.training.trainer",
    "write_mp4": "vader.files.video",
}

__all__ = list(_HOMES)

# Where it is installed, diffusers and peft load it, and on CPUs it warns of kernels that it does not need.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vader' has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    return getattr(import_module(module), attribute or name)


def __dir__() -> list[str]:
    return sorted([*_HOMES, *(name for name in globals() if name.startswith("__"))])
