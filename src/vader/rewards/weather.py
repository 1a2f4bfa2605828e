"""Rain or snow in an image, as the reference code's small heads on CLIP ViT-L/14 judge it, blind to the prompt.

The released files `rainy_reward.pt` and `snowy_reward.pt` hold affine stacks like the aesthetic head's, trained
under a final sigmoid to guess an amount from 0 to 1. The sigmoid's gradient p (1 - p) dies where a dry picture
starts and where a wet one ends, so by default the reward is the logit, which orders images in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from vader.nouns import Prompt
from vader.rewards.heads import CLIP_L, HeadReward
from vader.rewards.preprocess import Resize


class Weather(HeadReward):
    """How much rain or snow an image shows, by the head file that is given: a logit, about -5 to 5."""

    sensible_range = (-5.0, 5.0)

    def __init__(
        self,
        head: str,
        checkpoint: str = CLIP_L,
        output: Literal["logit", "amount"] = "logit",
        resize: Resize = "squash",
    ) -> None:
        """
        Args:
            head: `rainy_reward.pt` or `snowy_reward.pt`, wherever you have put it.
            checkpoint: the CLIP: a folder or a hub id.
            output: `logit`, or `amount` from 0 to 1 as the paper's code has it, whose gradient saturates.
            resize: `squash` as the heads' own code does, or another.

        Raises:
            UserError: weights are missing, or head and CLIP don't fit together.
        """
        super().__init__(checkpoint, head, resize, tiny="weather_head.safetensors")
        self.output = output
        if output == "amount":
            self.sensible_range = (0.0, 1.0)

    def score_frames(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        logit = self.read(images)
        return logit if self.output == "logit" else logit.sigmoid()
