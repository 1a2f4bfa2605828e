"""HunyuanVideo's prompts: a Llama's features of them within a template that asks for a description, and CLIP's."""

from __future__ import annotations

from typing import Any

from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from torch import Tensor

from vader.models.text_cache import TextEmbedder

TOKENS = 256  # of every text, its end mark included
TEMPLATE = DEFAULT_PROMPT_TEMPLATE["template"]
CROP = DEFAULT_PROMPT_TEMPLATE["crop_start"]  # tokens of the template before the text
LAYER = -3  # whose output is taken


class LlamaEmbedder(TextEmbedder):
    """Features `[n, D]` of texts in the template, without the template's own."""

    def tokens_of(self, text: str) -> str:
        return TEMPLATE.format(text)

    def features(self, encoder: Any, ids: Tensor, mask: Tensor) -> Tensor:
        return encoder(ids, mask, output_hidden_states=True).hidden_states[LAYER]
