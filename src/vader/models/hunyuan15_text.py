"""HunyuanVideo 1.5's prompts: Qwen 2.5's features of all of them, and ByT5's of what stands in them in quotes.

Both encoders are there only while new prompts are encoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.pipelines.hunyuan_video1_5 import pipeline_hunyuan_video1_5 as pipeline
from torch import Tensor

from vader.models.text_cache import TextEmbedder

TOKENS, GLYPH_TOKENS = 1000, 256  # of every text, its end mark included
LAYER = -3  # whose output is taken
# What the model was trained with, blanks included: the pipeline has it as a default alone.
SYSTEM = (" " * 8).join(
    (
        "You are a helpful assistant. Describe the video by detailing the following aspects: ",
        "1. The main content and theme of the video. ",
        "2. The color, shape, size, texture, quantity, text, and spatial relationships of the objects. ",
        "3. Actions, events, behaviors temporal relationships, physical movement changes of the objects. ",
        "4. background environment, light, style and atmosphere. ",
        "5. camera angles, movements, and transitions used in the video.",
    )
)


class QwenEmbedder(TextEmbedder):
    """Features `[n, D]` of texts, said by a user to an assistant, without those of what it is told before."""

    skipped = 108

    def tokenize(self, tokenizer: Any, texts: Sequence[str], **padding: Any) -> Any:
        return tokenizer.apply_chat_template(
            pipeline.format_text_input(list(texts), SYSTEM),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            truncation=True,
            max_length=self.max_length,
            return_tensors="pt",
            **padding,
        )

    def features(self, encoder: Any, ids: Tensor, mask: Tensor) -> Tensor:
        return encoder(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[LAYER]


class GlyphEmbedder(TextEmbedder):
    """Features `[n, D]` of what texts have in quotes, to be written in the video; of texts without quotes there are
    none, `[0, D]`.

    Args:
        width: D.
    """

    def __init__(self, *encoder: Any, width: int) -> None:
        super().__init__(*encoder)
        self.width = width

    def prepare(self, texts: Sequence[str], device: torch.device) -> None:
        """See `TextEmbedder.prepare`."""
        super().prepare([text for text in texts if quoted(text)], device)

    def embedded(self, text: str) -> Tensor:
        return super().embedded(text) if quoted(text) else torch.zeros(0, self.width, dtype=self.dtype)

    def said(self, text: str) -> str:
        return quoted(text) or ""


def quoted(text: str) -> str | None:
    """What a text has in quotes, as the encoder is told it; None: nothing."""
    return pipeline.extract_glyph_texts(text)
