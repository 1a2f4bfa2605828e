"""Scores for the gradient: each reward of a mix with its `Shaping`, and the noise under which it is shown frames.

The noise of a frame depends on the run's seed, the step, the video and the frame alone: neither on how a batch is cut
nor on what came before, so that a run that was stopped goes on as if it had not been.

Shapes: B videos, n frames, pixels `[B, n, 3, H, W]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vader import randomness
from vader.nouns import Clip, Prompt
from vader.rewards.base import Reward
from vader.rewards.contract import scored_parts
from vader.rewards.shaping import PLAIN, Shaping


@dataclass(frozen=True)
class FrameNoise:
    """Standard normal noise of the frames `[B, n]` of the videos `indices` of a training step."""

    seed: int
    step: int
    indices: Sequence[int]
    frames: Tensor

    def like(self, pixels: Tensor, rows: slice = slice(None), places: slice = slice(None)) -> Tensor:
        """The noise of some places of some videos, of the form of their pixels `[b, m, 3, H, W]`."""
        shown = zip(self.indices[rows], self.frames[rows, places].tolist(), strict=True)
        drawn = [torch.stack([self._of(index, frame, pixels) for frame in frames]) for index, frames in shown]
        return torch.stack(drawn).to(pixels)

    def _of(self, index: int, frame: int, pixels: Tensor) -> Tensor:
        draw = randomness.generator(self.seed, f"robust/{frame}", self.step, index)
        return torch.randn(*pixels.shape[2:], generator=draw)


def shaped_parts(
    name: str, reward: Reward, clip: Clip, prompts: Sequence[Prompt], shaping: Shaping = PLAIN,
    noise: Tensor | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """`scored_parts` with a shaped gradient.

    The hinge of a framewise reward is of each frame by itself, so that it is the same however frames are cut into
    chunks, and a random frame stands for all of them.
    """
    clip = shaping.disturbed(clip, noise)
    count = clip.frames.shape[1]
    if shaping.hinge is None or not reward.framewise or count == 1:
        parts = scored_parts(name, reward, clip, prompts)
        return {**parts, name: shaping.held(parts[name])}
    single = Clip(clip.frames.flatten(0, 1)[:, None], clip.times.flatten()[:, None])
    parts = scored_parts(name, reward, single, [prompt for prompt in prompts for _ in range(count)])
    parts = {**parts, name: shaping.held(parts[name])}
    return {one: scores.unflatten(0, (-1, count)).mean(dim=1) for one, scores in parts.items()}
