"""How pleasing a video looks, told from its latents: the tiny world's reward that needs no decoder.

A small convolutional network reads latents at any noise level and is told the time, as the denoiser is (PRFL, arXiv
2511.21541, makes such a reward of a base model's own layers). Its answer is the rating to be expected of the clean
video. There is no release of such a network: `vader.pretrain.latent_rating` trains the tiny one.

Shapes: B videos, C latent channels, F latent frames of h x w, W channels inside.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vader.errors import UserError
from vader.files.foreign import reading
from vader.files.hub import TINY, find_file
from vader.files.weights import fill, load_tensors
from vader.nouns import Condition
from vader.rewards.base import LatentReward

TIMES = 64  # features of a time
LONGEST = 10_000.0  # their slowest wave, in steps of training


class LatentAesthetic(LatentReward):
    """How pleasing a video looks from its latents, noisy ones too, about 1 to 10 (the tiny world's alone)."""

    sensible_range = (1.0, 10.0)

    def __init__(self, checkpoint: str = TINY, at: Literal["noisy", "clean"] = "noisy") -> None:
        """
        Args:
            checkpoint: `tiny`, for the tiny ModelScope and what shares its latents, or a file of a network's weights.
            at: which latents it sees, see `LatentReward`.

        Raises:
            UserError: the weights are missing, or not such a network's.
        """
        super().__init__()
        self.network = load_rater(checkpoint)
        self.at = at

    def score_latents(self, latents: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """The rating `[B]` of latents `[B, C, F, h, w]`.

        Raises:
            UserError: latents of another layout than the network's.
        """
        channels = self.network.enter.in_channels
        if not isinstance(latents, Tensor) or latents.dim() != 5 or latents.shape[1] != channels:
            raise UserError(f"reward 'latent_aesthetic' reads latents [B, {channels}, F, h, w], and these are others")
        return self.network(latents.float(), time)


class Block(nn.Module):
    """Neighbours in space, then in time, on top of what comes in, scaled and shifted by the time's features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.told = nn.Linear(TIMES, 2 * width)
        self.space = nn.Conv3d(width, width, (1, 3, 3), padding=(0, 1, 1))
        self.frames = nn.Conv3d(width, width, (3, 1, 1), padding=(1, 0, 0))
        nn.init.zeros_(self.told.weight)
        nn.init.zeros_(self.told.bias)

    def forward(self, hidden: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.told(time)[..., None, None, None].chunk(2, dim=1)
        inner = F.silu(hidden * (1 + scale) + shift)
        return hidden + self.frames(F.silu(self.space(inner)))


class LatentRater(nn.Module):
    """Latents `[B, C, F, h, w]` and times `[B]` -> ratings `[B]`; any number of frames, any size of at least 2 x 2."""

    def __init__(self, channels: int, width: int, depth: int) -> None:
        super().__init__()
        self.enter = nn.Conv3d(channels, width, (1, 4, 4), stride=(1, 2, 2), padding=(0, 1, 1))
        self.time = nn.Linear(TIMES, TIMES)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.leave = nn.Linear(width, 1)

    def forward(self, latents: Tensor, time: Tensor) -> Tensor:
        told = F.silu(self.time(waves(time)))
        hidden = self.enter(latents)
        for block in self.blocks:
            hidden = block(hidden, told)
        return self.leave(F.silu(hidden).mean(dim=(2, 3, 4))).squeeze(-1)


def waves(time: Tensor) -> Tensor:
    """Sines and cosines of times `[B]`: `[B, TIMES]` (arXiv 1706.03762, section 3.5)."""
    rates = torch.exp(-math.log(LONGEST) * torch.arange(TIMES // 2, device=time.device) / (TIMES // 2))
    angles = time.float()[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def load_rater(checkpoint: str) -> LatentRater:
    """The network of a file, whose sizes its weights tell.

    Raises:
        UserError: there is no such file, or its weights are not exactly such a network's.
    """
    path = find_file(checkpoint, "latent_rating.safetensors")
    weights, label = load_tensors(path), f"latent reward {str(path)!r}"
    with reading(f"{label} is of another kind"):
        width, channels = weights["enter.weight"].shape[:2]
        depth = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
    with torch.device("meta"):
        network = LatentRater(channels, width, depth)
    return fill(network, weights, torch.float32, label)
