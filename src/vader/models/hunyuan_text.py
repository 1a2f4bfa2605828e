"""HunyuanVideo's prompts: a Llama's features of them, within a template that asks it for a description."""

from __future__ import annotations

from typing import Any

from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from torch import Tensor

from vader.models.text_cache import TextEmbedder

TOKENS = 256  # of every text, its end mark included
TEMPLATE: str = DEFAULT_PROMPT_TEMPLATE["template"]
LAYER = -3  # whose output is taken


class LlamaEmbedder(TextEmbedder):
    """Features `[n, D]` of texts in the template, without those of the template."""

    skipped = DEFAULT_PROMPT_TEMPLATE["crop_start"]

    def said(self, text: str) -> str:
        return TEMPLATE.format(text)

    def features(self, encoder: Any, ids: Tensor, mask: Tensor) -> Tensor:
        return encoder(ids, mask, output_hidden_states=True).hidden_states[LAYER]
