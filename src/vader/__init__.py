"""VADER: video diffusion alignment via reward gradients (arXiv 2407.08737).

The public API; everything else is a room behind it. Names are imported when first used, so that
`vader --help` needs no torch.

    recipe = vader.load_recipe("tiny", ["train.steps=20"])
    result = vader.train(recipe)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vader.algorithms.base import Algorithm as Algorithm
    from vader.errors import RunError as RunError
    from vader.errors import UserError as UserError
    from vader.files.video import read_video as read_video
    from vader.files.video import write_mp4 as write_mp4
    from vader.models import load_adapter as load_adapter
    from vader.models import load_into as load_into
    from vader.models.base import Condition as Condition
    from vader.models.base import Guidance as Guidance
    from vader.models.base import VideoModel as VideoModel
    from vader.models.base import VideoSize as VideoSize
    from vader.models.registry import load_model as load_model
    from vader.networks.adapter import merge_adapter as merge_adapter
    from vader.recipe import Recipe as Recipe
    from vader.recipe import load_recipe as load_recipe
    from vader.rewards.base import ClipReward as ClipReward
    from vader.rewards.base import FrameReward as FrameReward
    from vader.rewards.base import RewardMix as RewardMix
    from vader.rewards.registry import load_reward as load_reward
    from vader.sampling.walk import sample_videos as sample  # noqa: F401
    from vader.scoring.files import score_files as score  # noqa: F401
    from vader.solvers.scheduler_config import solver_from_config as solver_from_config
    from vader.training.trainer import TrainResult as TrainResult
    from vader.training.trainer import train as train

_HOMES = {
    "Algorithm": "vader.algorithms.base",
    "ClipReward": "vader.rewards.base",
    "Condition": "vader.models.base",
    "FrameReward": "vader.rewards.base",
    "Guidance": "vader.models.base",
    "Recipe": "vader.recipe",
    "RewardMix": "vader.rewards.base",
    "RunError": "vader.errors",
    "TrainResult": "vader.training.trainer",
    "UserError": "vader.errors",
    "VideoModel": "vader.models.base",
    "VideoSize": "vader.models.base",
    "load_adapter": "vader.models",
    "load_into": "vader.models",
    "load_model": "vader.models.registry",
    "load_recipe": "vader.recipe",
    "load_reward": "vader.rewards.registry",
    "merge_adapter": "vader.networks.adapter",
    "read_video": "vader.files.video",
    "sample": "vader.sampling.walk:sample_videos",
    "score": "vader.scoring.files:score_files",
    "solver_from_config": "vader.solvers.scheduler_config",
    "train": "vader.training.trainer",
    "write_mp4": "vader.files.video",
}

__all__ = list(_HOMES)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vader' has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    return getattr(import_module(module), attribute or name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
