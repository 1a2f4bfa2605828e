"""The LAION aesthetic predictor: how pleasing people find an image, about 1 to 10, blind to the prompt.

Images pass a CLIP image tower and a small head: a stack of linear layers without activations
(improved-aesthetic-predictor, `sac+logos+ava1-l14-linearMSE`).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from vader.files.hub import TINY
from vader.nouns import Prompt
from vader.rewards.heads import CLIP_L, HeadReward
from vader.rewards.preprocess import Resize

HEAD = "trl-lib/ddpo-aesthetic-predictor/aesthetic-model.pth"  # a third party's copy of LAION's file
TARGET_SCALE = 0.1  # the reference code's factor on the distance to a target


class Aesthetic(HeadReward):
    """How pleasing an image looks (LAION aesthetic predictor V2 on CLIP ViT-L/14), about 1 to 10."""

    sensible_range = (1.0, 10.0)

    def __init__(
        self,
        checkpoint: str = CLIP_L,
        head: str | None = None,
        target: float | None = None,
        resize: Resize = "crop",
    ) -> None:
        """
        Args:
            checkpoint: the CLIP: `tiny`, a folder, or a hub id.
            head: the predictor: `tiny`, a file (.pth or .safetensors), or a hub file `owner/repo/file`.
                None: the one that belongs to the checkpoint.
            target: None rewards the score itself; a number rewards `-0.1 * |score - target|`, as the paper's
                code does with 10 (its gradient is 0.1 of the score's, and vanishes at the target).
            resize: `crop` as CLIP was trained, or `squash` as the paper's code does.

        Raises:
            UserError: weights are missing, or head and CLIP don't fit together.
        """
        head = head or (TINY if checkpoint == TINY else HEAD)
        super().__init__(checkpoint, head, resize, tiny="aesthetic_head.safetensors")
        self.target = target
        if target is not None:
            low, high = self.sensible_range
            self.sensible_range = (-TARGET_SCALE * max(target - low, high - target), 0.0)

    def score_frames(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        score = self.read(images)
        return score if self.target is None else -TARGET_SCALE * (score - self.target).abs()
