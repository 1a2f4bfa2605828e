"""Qwen-VLs in their releases' sizes, with random weights and without tokenizers: for rewards that are built on them.

In go the releases' settings, out come readers that can be walked through on the meta device, where no tensor has
values: transformers' own forwards ask for some.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import BatchEncoding, Qwen2VLConfig, Qwen2VLModel

from vader.rewards.qwen_vl.network import PADS, Kind, QwenVL, flat_positions

QWEN2_VISION: dict[str, Any] = {"depth": 32, "embed_dim": 1280, "num_heads": 16, "mlp_ratio": 4}
ROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
QWEN2_2B: dict[str, Any] = {
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "vocab_size": 151_657,
    "rope_parameters": ROPE,
}
QWEN2_7B: dict[str, Any] = QWEN2_2B | {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
}
QWEN3_VISION: dict[str, Any] = {
    "depth": 24,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_heads": 16,
    "num_position_embeddings": 2304,
    "deepstack_visual_indexes": [5, 11, 17],
}
QWEN3_2B: dict[str, Any] = {
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151_936,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20]},
}
MARK = re.compile(r"<\|\w+\|>")
LETTERS = 4.5  # of a token, in English


class Words:
    """Stands in for a tokenizer: marks are tokens of their own, the rest is as many as English words would be."""

    def __init__(self, marks: Sequence[str]) -> None:
        self.marks = {mark: number for number, mark in enumerate((*PADS.values(), *marks), start=1)}

    def __call__(self, text: str, **settings: Any) -> BatchEncoding:
        marks = [self.marks.get(mark, 0) for mark in MARK.findall(text)]
        return BatchEncoding({"input_ids": marks + [0] * math.ceil(len(MARK.sub("", text)) / LETTERS)})

    def get_added_vocab(self) -> Mapping[str, int]:
        return {}


class ShapedQwenVL(QwenVL):
    """The same layers on tensors of the same shapes; where things stand and when they are shown costs nothing."""

    def states(self, kind: Kind, rows: Tensor, grid: Tensor, tokens: Tensor, positions: Tensor) -> Tensor:
        visual, language, device = self.model.visual, self.model.language_model, rows.device
        hidden = visual.patch_embed(rows.to(self.model.dtype)).flatten(1)
        each = int(grid[1] * grid[2])  # a frame sees itself alone
        ends = torch.arange(0, len(hidden) + 1, each, dtype=torch.int32, device="cpu")
        angles = visual.rotary_pos_emb(hidden, torch.zeros(len(hidden), 2, device=device))
        for block in visual.blocks:
            hidden = block(hidden, cu_seqlens=ends, position_embeddings=angles)
        seen = visual.merger(hidden)
        words = language.embed_tokens(tokens.to(device))
        inputs = torch.cat([seen, words[len(seen) :]])[None]
        return language(inputs_embeds=inputs, position_ids=positions.to(device), use_cache=False).last_hidden_state[0]

    def positions(self, kind: Kind, tokens: Tensor, grid: Tensor, times: Tensor | None) -> Tensor:
        return flat_positions(tokens)

    def _seconds(self, times: Tensor) -> Sequence[float]:
        return [0.0] * math.ceil(len(times) / self.layout.temporal)


def qwen2_vl(text: Mapping[str, Any], words: Sequence[str]) -> ShapedQwenVL:
    """A Qwen2-VL of which a reward was made, with the words that it added."""
    vision = QWEN2_VISION | {"hidden_size": text["hidden_size"]}
    vocabulary = text["vocab_size"] + len(words)
    config = Qwen2VLConfig(text_config=dict(text) | {"vocab_size": vocabulary}, vision_config=vision)
    return ShapedQwenVL(Qwen2VLModel(config), Words(words))


def qwen3_vl() -> ShapedQwenVL:
    """Qwen3-VL-2B."""
    from transformers import Qwen3VLConfig, Qwen3VLModel  # newer than the rest of the package asks for

    vision = QWEN3_VISION | {"out_hidden_size": QWEN3_2B["hidden_size"]}
    config = Qwen3VLConfig(text_config=QWEN3_2B, vision_config=vision)
    return ShapedQwenVL(Qwen3VLModel(config), Words(["Yes", "No"]))
