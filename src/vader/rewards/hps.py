"""The Human Preference Score v2: how well an image fits its prompt and people's taste, about 0.2 to 0.35.

It is the cosine of CLIP's image and text features after fine-tuning on human choices between images
(Wu et al., 2023, arXiv 2306.09341); v2.0 and v2.1 differ in their weights only.
"""

from __future__ import annotations

from typing import Literal

from vader.rewards.clip import SINGLE_FILES, TOKENIZER, ClipSimilarity, Contrast, load_both, towers
from vader.rewards.preprocess import Resize

CHECKPOINTS = {"v2.0": "xswu/HPSv2/HPS_v2_compressed.pt", "v2.1": "xswu/HPSv2/HPS_v2.1_compressed.pt"}


class HPS(ClipSimilarity):
    """How well an image fits its prompt and people's taste (Human Preference Score v2), about 0.2 to 0.35."""

    sensible_range = (0.2, 0.35)

    def __init__(
        self,
        version: Literal["v2.0", "v2.1"] = "v2.1",
        checkpoint: str | None = None,
        tokenizer: str | None = None,
        resize: Resize = "pad",
        contrast: Contrast | None = None,
    ) -> None:
        """
        Args:
            version: which released weights.
            checkpoint: other weights instead: `tiny`, a CLIP folder or hub id, or an open_clip file.
            tokenizer: a folder or hub id; None: the checkpoint's own, or OpenCLIP ViT-H's for a single file.
            resize: `pad` as HPSv2 was trained, or `squash` as the paper's code does.
            contrast: wanted and unwanted words: the score is then the prompt's with the former before it less that
                with the latter.

        Raises:
            UserError: weights or tokenizer are missing.
        """
        checkpoint = checkpoint or CHECKPOINTS[version]
        tokenizer = tokenizer or (TOKENIZER if checkpoint.endswith(SINGLE_FILES) else checkpoint)
        super().__init__(*towers(load_both(checkpoint, tokenizer, tiny="hps"), tokenizer, resize), contrast)
