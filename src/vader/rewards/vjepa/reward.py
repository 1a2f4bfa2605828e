"""The V-JEPA reward: the negative loss with which V-JEPA predicts the hidden parts of a video from its visible ones.

Real videos are predictable: things keep their look and move on. Flicker, morphing and jumps are not, and cost
reward (the VADER paper's temporal consistency). Masks are drawn for each video from (seed, its prompt), so the
reward stays a function of frames and prompts: the same video scores the same in any batch, on any day, two
videos of one prompt meet the same masks, and over many prompts the masks, and with them the gradient, cover
every part of the frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from vader.errors import UserError
from vader.networks.recompute import checkpoint_blocks
from vader.nouns import Clip, Prompt
from vader.plugins import at_most
from vader.randomness import generator
from vader.rewards.base import Reward
from vader.rewards.needs import AllFrames
from vader.rewards.preprocess import IMAGENET_MEAN, IMAGENET_STD, Resize, normalize, resizer
from vader.rewards.vjepa.checkpoint import load_jepa
from vader.rewards.vjepa.masks import Grid, Masks, draw_masks, future_masks
from vader.rewards.vjepa.networks import Jepa, take_tokens

Part = Annotated[float, Field(gt=0.0, lt=1.0)]


class VJEPA(Reward):
    """Temporal consistency: how well hidden parts of a video follow from the rest (V-JEPA), about -0.8 to 0."""

    sensible_range = (-0.8, 0.0)  # the mean size of a standard normal feature, if nothing of it is predicted, to 0
    alone = "videos that stand still, blurred or plain"

    def __init__(
        self,
        checkpoint: str = "vitl16",
        size: int | None = None,
        resize: Resize = "crop",
        masks: Annotated[int, at_most(64, "each is a pass of the whole network")] = 1,
        seed: int = 0,
        target_gradient: bool = True,
        checkpointing: bool = False,
        heads: int | None = None,
        context: Part | None = None,
    ) -> None:
        """
        Args:
            checkpoint: a release of Meta's (`vitl16`, `vith16`, `vith16-384`), `tiny`, a file in that layout, or
                V-JEPA 2 as a folder or hub id (`facebook/vjepa2-vitl-fpc64-256`).
            size: the side to which frames are resized; None: the one the checkpoint was trained with.
            resize: `crop` as V-JEPA is evaluated, `squash` or `pad` to see the whole frame.
            masks: how many pairs of masks (short and long range) a video's loss is averaged over.
            seed: of the masks.
            target_gradient: let the gradient flow through the targets too, so that it is the slope of the score. In
                V-JEPA's training it flows through the predictions alone, and so only to the pixels that a mask
                left visible; that costs half as much memory, but the score need not rise.
            checkpointing: recompute the networks' blocks in the backward pass, for less memory.
            heads: attention heads of a V-JEPA 1 file, if not the release's 16 and not in the file's metadata.
            context: the share of the clip, from its beginning, that is seen whole; all that follows is to be foretold
                from it. None: V-JEPA's own masks, which `masks` and `seed` draw.

        Raises:
            UserError: the checkpoint is missing or not V-JEPA's, or an option does not fit it.
        """
        super().__init__()
        if context is not None and (masks, seed) != (1, 0):
            raise UserError("context is a share of the clip, so there are no masks to draw: leave out masks and seed")
        self.network = load_jepa(checkpoint, size, heads)
        self.size = _checked_size(self.network, size or self.network.size)
        self.context = context
        self.needs = AllFrames(least=2 if context is None else 2 * self.network.tubelet, multiple=self.network.tubelet)
        self.resize = resizer(resize)
        self.masks = masks
        self.seed = seed
        self.target_gradient = target_gradient
        if checkpointing:
            checkpoint_blocks(self.network)

    def score(self, clip: Clip, prompts: Sequence[Prompt]) -> Tensor:
        """See `Reward.score`.

        Raises:
            UserError: the frames are not a multiple of the tubelet (2): a token spans that many.
        """
        clips = self.clips(clip.frames)
        with torch.set_grad_enabled(self.target_gradient and torch.is_grad_enabled()):
            targets = normalized_targets(self.network, clips)
        grid = self.network.grid(clips)
        losses = [
            prediction_loss(self.network, video, target, self.draw(grid, prompt))
            for video, target, prompt in zip(clips.split(1), targets.split(1), prompts, strict=True)
        ]
        return -torch.cat(losses)

    def clips(self, frames: Tensor) -> Tensor:
        """Pixels `[B, F, 3, H, W]` -> what the network takes: `[B, 3, F, size, size]` in its precision."""
        if frames.shape[1] % self.needs.multiple:
            raise UserError(
                f"V-JEPA takes frames in groups of {self.needs.multiple}, got {frames.shape[1]}: "
                "set video.frames, or what the reward sees"
            )
        images = normalize(self.resize(frames.flatten(0, 1), self.size), IMAGENET_MEAN, IMAGENET_STD)
        clips = images.unflatten(0, frames.shape[:2]).transpose(1, 2)
        return clips.to(next(self.network.parameters()).dtype)

    def draw(self, grid: Grid, prompt: Prompt) -> list[list[Masks]]:
        """The masks of a video with that prompt: `masks` times one of each mask set, or the future alone."""
        device = next(self.network.parameters()).device
        if self.context is not None:
            return [[Masks(*(indices.to(device) for indices in future_masks(grid, self.context)))]]
        draws = [draw_masks(grid, generator(self.seed, f"vjepa/{prompt}", step)) for step in range(self.masks)]
        return [[Masks(*(indices.to(device) for indices in masks)) for masks in sets] for sets in draws]

    def to_precision(self, dtype: torch.dtype) -> VJEPA:
        self.network.to(dtype)
        return self


def normalized_targets(network: Jepa, clips: Tensor) -> Tensor:
    """Target features `[B, N, D]`, each token's standardised over its features, in float32 or more."""
    targets = network.targets(clips)
    return F.layer_norm(targets.to(torch.promote_types(targets.dtype, torch.float32)), targets.shape[-1:])


def prediction_loss(network: Jepa, clips: Tensor, targets: Tensor, draws: Sequence[Sequence[Masks]]) -> Tensor:
    """V-JEPA's loss of each clip, `[B]`: mean absolute error of the predictions (arXiv 2404.08471, equation 1).

    Args:
        clips: `[B, 3, F, H, W]`, normalised.
        targets: `[B, N, D]`, see `normalized_targets`.
        draws: of each draw, the masks of each mask set, the same for all clips; all count alike.
    """
    losses = [
        (network.predict(clips, masks, i).to(targets.dtype) - take_tokens(targets, masks.target)).abs().mean(dim=(1, 2))
        for sets in draws
        for i, masks in enumerate(sets)
    ]
    return torch.stack(losses).mean(dim=0)


def _checked_size(network: Jepa, size: int) -> int:
    if size % network.patch or size < 2 * network.patch:
        nearest = max(2, round(size / network.patch)) * network.patch
        raise UserError(
            f"size {size} is not possible: it must be two or more patches of {network.patch}; the nearest is {nearest}"
        )
    return size
