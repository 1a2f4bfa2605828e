"""The contract of a reward: a frozen, differentiable map from pixels and prompts to one number a video.

Larger is better. A frame reward scores frames one by one and averages them, so it can be computed and
differentiated frame chunk by frame chunk; a clip reward needs the frames together. A mix is a weighted
sum that reports each part. Bring your own: subclass `FrameReward` or `ClipReward`, name it `module:Class`.

Shapes: B videos, F frames, N = B * F images. Pixels are float32 `[B, F, 3, H, W]` in [0, 1].
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Reward(nn.Module):
    """A differentiable reward. Subclass `FrameReward` or `ClipReward`.

    `sensible_range` is where real videos score, for plots and targets.
    """

    sensible_range: tuple[float, float] = (0.0, 1.0)
    framewise: bool = False  # a mean over frames, which splits into frame chunks

    @abstractmethod
    def forward(self, frames: Tensor, prompts: Sequence[str]) -> Tensor:
        """Pixels `[B, F, 3, H, W]` in [0, 1] and B prompts -> rewards `[B]`."""

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Raises `UserError` if a prompt lacks what this reward needs of it. Asked before a run starts."""
        return

    def freeze(self) -> Reward:
        """No parameter takes a gradient and no layer is in training mode: weights are facts, not variables."""
        return self.eval().requires_grad_(False)

    def to_precision(self, dtype: torch.dtype) -> Reward:
        """Runs the big networks in `dtype`, all else in float32; a reward that does not override this stays float32."""
        return self


class FrameReward(Reward):
    """The mean over frames of a score of single images."""

    framewise = True

    @abstractmethod
    def score_frames(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Images `[N, 3, H, W]` in [0, 1] and N prompts -> scores `[N]`."""

    def forward(self, frames: Tensor, prompts: Sequence[str]) -> Tensor:
        count = frames.shape[1]
        per_image = [prompt for prompt in prompts for _ in range(count)]
        return self.score_frames(frames.flatten(0, 1), per_image).unflatten(0, (-1, count)).mean(dim=1)


class ClipReward(Reward):
    """A score of the frames together: implement `forward`.

    It needs `min_frames` of them or more, a multiple of `frame_multiple`.
    """

    min_frames: int = 2
    frame_multiple: int = 1


class RewardMix(Reward):
    """The weighted sum of named rewards; `parts` says what each contributed, unweighted.

    Its sensible range is the weighted sum of theirs.
    """

    def __init__(self, rewards: dict[str, Reward], weights: dict[str, float]) -> None:
        super().__init__()
        self.rewards = nn.ModuleDict(rewards)
        self.weights = weights
        ends = [sorted(weights[name] * end for end in reward.sensible_range) for name, reward in rewards.items()]
        self.sensible_range = (sum(low for low, _ in ends), sum(high for _, high in ends))
        self.framewise = all(reward.framewise for reward in rewards.values())

    def to_precision(self, dtype: torch.dtype) -> RewardMix:
        for reward in self.rewards.values():
            reward.to_precision(dtype)  # type: ignore[operator]
        return self

    def check_prompts(self, prompts: Sequence[str]) -> None:
        for reward in self.rewards.values():
            reward.check_prompts(prompts)  # type: ignore[operator]

    def parts(self, frames: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        return {name: reward(frames, prompts) for name, reward in self.rewards.items()}

    def total(self, parts: dict[str, Tensor]) -> Tensor:
        """The weighted sum `[B]` of parts `[B]`."""
        return torch.stack([self.weights[name] * part for name, part in parts.items()]).sum(dim=0)

    def forward(self, frames: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.total(self.parts(frames, prompts))
