"""PickScore: which image people would pick for a prompt, about 18 to 24.

It is CLIP's cosine of image and prompt times the learned temperature exp(logit_scale), after fine-tuning on
the choices of Pick-a-Pic's users (Kirstain et al., 2023, arXiv 2305.01569). Each image meets its own prompt: the
diagonal of the image-by-prompt table, of which the reference code takes the first row.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from vader.nouns import Prompt
from vader.rewards.clip import SINGLE_FILES, TOKENIZER, ClipSimilarity, Contrast, load_both, towers
from vader.rewards.preprocess import Resize

CHECKPOINT = "yuvalkirstain/PickScore_v1"


class PickScore(ClipSimilarity):
    """How likely people pick an image for its prompt (PickScore), about 18 to 24."""

    sensible_range = (18.0, 24.0)

    def __init__(
        self,
        checkpoint: str = CHECKPOINT,
        tokenizer: str | None = None,
        resize: Resize = "crop",
        contrast: Contrast | None = None,
    ) -> None:
        """
        Args:
            checkpoint: `tiny`, a CLIP folder or hub id, or an open_clip file.
            tokenizer: a folder or hub id; None: OpenCLIP ViT-H's for the release and for single files, else the
                checkpoint's own.
            resize: `crop` as PickScore's own processor and the paper's code do, or another.
            contrast: wanted and unwanted words: the score is then the prompt's with the former before it less that
                with the latter.

        Raises:
            UserError: weights or tokenizer are missing.
        """
        bare = checkpoint == CHECKPOINT or checkpoint.endswith(SINGLE_FILES)
        tokenizer = tokenizer or (TOKENIZER if bare else checkpoint)
        model = load_both(checkpoint, tokenizer, tiny="pickscore")
        super().__init__(*towers(model, tokenizer, resize), contrast)
        self.logit_scale = model.logit_scale

    def score_frames(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return self.logit_scale.exp() * super().score_frames(images, prompts)
