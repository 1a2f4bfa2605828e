"""Rewards: frozen, differentiable maps from pixels and prompts to one number a video, larger is better."""

from vader.files import quiet as _quiet  # noqa: F401 (before a reward loads what warns on being loaded)
from vader.rewards.base import FrameReward, LatentReward, Reward, RewardMix, SummedReward
from vader.rewards.needs import AllFrames, Evenly, FixedFrames, Frames, Needs, PerSecond
from vader.rewards.registry import build_mix, load_reward, reward_names

__all__ = [
    "AllFrames",
    "Evenly",
    "FixedFrames",
    "FrameReward",
    "Frames",
    "LatentReward",
    "Needs",
    "PerSecond",
    "Reward",
    "RewardMix",
    "SummedReward",
    "build_mix",
    "load_reward",
    "reward_names",
]
