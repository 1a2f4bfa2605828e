"""LTX-2's prompts: features of all layers of a Gemma, and what the checkpoint's connectors make of them.

The connectors are as frozen as Gemma is, so what is kept of a text is what they make: 1024 contexts for the video's
tokens and as many for the sound's, side by side. Learned registers take the place of what a text is filled up with, so
that all 1024 are attended to.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers.pipelines.ltx2 import LTX2TextConnectors
from torch import Tensor, nn
from transformers import Gemma3ForConditionalGeneration

from vader.errors import UserError
from vader.files import hub as files
from vader.models.text_cache import Part, TextEmbedder, fingerprint

TOKENS = 1024  # of every text
SIDE = "left"  # where texts are filled up


class GemmaEmbedder(TextEmbedder):
    """Contexts `[1024, V + A]` of texts, by all of a checkpoint's text networks.

    Raises:
        UserError: the connectors have no registers, so that some contexts would have to be masked.
    """

    batch: ClassVar[int] = 1  # features of 49 layers are 0.4 GB a text

    def __init__(self, source: str, dtype: torch.dtype) -> None:
        settings = files.load_config(source, "connectors")
        if not all(settings.get(f"{of}_connector_num_learnable_registers") for of in ("video", "audio")):
            raise UserError(f"checkpoint {source!r} has connectors without registers: those are not supported")
        self.connectors = Part(source, "connectors")
        parts = Part(source, "text_encoder"), Part(source, "tokenizer")
        template = f"ltx2 {fingerprint(self.connectors)}"
        super().__init__(Gemma3ForConditionalGeneration, *parts, dtype, TOKENS, template, filled="masked")

    def said(self, text: str) -> str:
        return text.strip()

    def features(self, encoder: Any, ids: Tensor, mask: Tensor) -> Tensor:
        """Both contexts of texts `[B, L]`: `[B, L, V + A]`."""
        return encoder(ids, mask)

    def load_tokenizer(self) -> Any:
        tokenizer = super().load_tokenizer()
        tokenizer.padding_side = SIDE
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    def load(self, device: torch.device) -> Contexts:
        connectors = files.load_network(LTX2TextConnectors, *self.connectors, self.dtype)
        return Contexts(super().load(device), connectors.to(device))


class Contexts(nn.Module):
    """Gemma, and the connectors behind it."""

    def __init__(self, gemma: Any, connectors: Any) -> None:
        super().__init__()
        self.gemma = gemma
        self.connectors = connectors

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        layers = self.gemma.model(ids, attention_mask=mask, output_hidden_states=True).hidden_states
        video, audio, _ = self.connectors(torch.stack(layers, dim=-1), mask, padding_side=SIDE)
        return torch.cat([video, audio], dim=-1)
