"""Rewards: frozen, differentiable maps from pixels and prompts to one number a video, larger is better."""

from vader.rewards.base import ClipReward, FrameReward, Reward, RewardMix
from vader.rewards.registry import build_mix, load_reward, reward_names

__all__ = ["ClipReward", "FrameReward", "Reward", "RewardMix", "build_mix", "load_reward", "reward_names"]
