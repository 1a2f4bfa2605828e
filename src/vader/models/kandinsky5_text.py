"""Kandinsky 5's prompts: Qwen 2.5-VL's features of them, within a template that asks it for a description."""

from __future__ import annotations

from functools import cache
from typing import Any

from diffusers import Kandinsky5T2VPipeline
from torch import Tensor

from vader.models.text_cache import TextEmbedder

TOKENS = 512  # of every text, the template's end included
LAYER = -1  # whose output is taken


@cache
def template() -> str:
    """What the model was trained with; only an instance of diffusers' pipeline tells it."""
    return Kandinsky5T2VPipeline(*[None] * 7).prompt_template


class QwenEmbedder(TextEmbedder):
    """Features `[n, D]` of texts in the template, without those of its beginning."""

    skipped = 128

    def said(self, text: str) -> str:
        return template().format(text)

    def features(self, encoder: Any, ids: Tensor, mask: Tensor) -> Tensor:
        return encoder(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[LAYER]
