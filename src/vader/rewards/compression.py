"""How small an image would be as a JPEG, guessed from CLIP's feature of it: JPEG itself has no gradient.

The released file `compression_reward.pt` holds a head 768-512-128-32-1 with ReLU between its layers, trained to
guess the size in kB at quality 95 (the class beside it in the reference code has one layer more, and cannot
load it).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from vader.nouns import Prompt
from vader.rewards.heads import CLIP_L, HeadReward
from vader.rewards.preprocess import Resize


class Compression(HeadReward):
    """How well an image compresses: minus its guessed size as a JPEG of quality 95, in kB."""

    sensible_range = (-200.0, 0.0)

    def __init__(self, head: str, checkpoint: str = CLIP_L, resize: Resize = "squash") -> None:
        """
        Args:
            head: `compression_reward.pt`, wherever you have put it.
            checkpoint: the CLIP: a folder or a hub id.
            resize: `squash` as the head's own code does, or another.

        Raises:
            UserError: weights are missing, or head and CLIP don't fit together.
        """
        super().__init__(checkpoint, head, resize, tiny="compression_head.safetensors", activation=nn.ReLU)

    def score_frames(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return -self.read(images)
