"""ImageReward: how well an image fits its prompt and people's taste, about -2 to 2 (Xu et al., 2023, arXiv 2304.05977).

A vision transformer makes tokens of the image; a BERT reads the prompt and looks at them through cross-attention
(together BLIP, arXiv 2201.12086); a small head without activations scores BERT's first token. The released file is
renamed to transformers' BLIP classes.

Shapes: N images with a prompt each, T image tokens, D features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

from vader.errors import UserError
from vader.files.foreign import reading
from vader.files.hub import find_file, load_pretrained, load_tokenizer, resolve, together
from vader.files.weights import load_tensors
from vader.nouns import Prompt
from vader.rewards.base import FrameReward
from vader.rewards.heads import linear_stack
from vader.rewards.preprocess import CLIP_MEAN, CLIP_STD, Resize, normalize, resizer

CHECKPOINT = "THUDM/ImageReward/ImageReward.pt"
TOKENIZER = "google-bert/bert-base-uncased"
LENGTH = 35  # tokens of a prompt, padded or cut
MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the head's scores on the authors' data
HEAD_WIDTH = 64  # features of an attention head, in both networks; shapes don't tell


class ImageReward(FrameReward):
    """How well an image fits its prompt and people's taste (ImageReward), about -2 to 2."""

    sensible_range = (-2.0, 2.0)

    def __init__(self, checkpoint: str = CHECKPOINT, tokenizer: str = TOKENIZER, resize: Resize = "crop") -> None:
        """
        Args:
            checkpoint: a file in the released layout, here or on the hub as `owner/repo/file`.
            tokenizer: BERT's, a folder or hub id.
            resize: `crop` as ImageReward was trained, or another.

        Raises:
            UserError: weights or tokenizer are missing.
        """
        super().__init__()
        path, words = together(
            lambda: find_file(checkpoint, "imagereward.safetensors"), lambda: resolve(tokenizer, "bert")
        )
        parts = split_release(load_tensors(path), str(path))
        self.vision: Any = load_vision(parts["blip.visual_encoder."], str(path))
        width = self.vision.config.hidden_size
        self.text: Any = load_text(parts["blip.text_encoder."], width, str(path))
        self.head = linear_stack(parts["mlp."], str(path))
        self.tokenizer = load_tokenizer(AutoTokenizer, words)
        self.resize = resizer(resize)

    def score_frames(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        pixels = normalize(self.resize(images, self.vision.config.image_size), CLIP_MEAN, CLIP_STD)
        tokens = self.vision(pixel_values=pixels.to(self.vision.dtype)).last_hidden_state  # [N, T, D]
        prompt = self.tokenizer(
            [str(prompt) for prompt in prompts],
            padding="max_length",
            truncation=True,
            max_length=LENGTH,
            return_tensors="pt",
        ).to(images.device)
        read = self.text(
            input_ids=prompt.input_ids, attention_mask=prompt.attention_mask, encoder_hidden_states=tokens
        ).last_hidden_state
        return (self.head(read[:, 0].to(images.dtype)).squeeze(-1) - MEAN) / STD

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        if not all(prompt.text.strip() for prompt in prompts):
            raise UserError(
                "ImageReward compares a video with its prompt, and a prompt is empty: "
                "give every video one (vader score: --prompt or --prompts)"
            )

    def to_precision(self, dtype: torch.dtype) -> ImageReward:
        self.vision.to(dtype)
        self.text.to(dtype)
        return self


# ---- the released file ----


def split_release(tensors: dict[str, Tensor], label: str) -> dict[str, dict[str, Tensor]]:
    """The three networks' tensors under their own names; what only pretraining needed is left.

    Raises:
        UserError: one of them is not there.
    """
    prefixes = ("blip.visual_encoder.", "blip.text_encoder.", "mlp.")
    parts = {p: {n.removeprefix(p): t for n, t in tensors.items() if n.startswith(p)} for p in prefixes}
    if absent := [prefix for prefix, part in parts.items() if not part]:
        raise UserError(f"{label} is not an ImageReward checkpoint: it has no {absent[0]}*")
    return parts


_VISION_NAMES = (
    ("blocks.", "encoder.layers."),
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
    (".attn.proj.", ".self_attn.projection."),
    (".attn.qkv.", ".self_attn.qkv."),
    ("cls_token", "embeddings.class_embedding"),
    ("pos_embed", "embeddings.position_embedding"),
    ("patch_embed.proj.", "embeddings.patch_embedding."),
)


def rename_vision(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The image network's tensors under the names of transformers' `BlipVisionModel`."""
    renamed = {}
    for name, tensor in tensors.items():
        for old, new in _VISION_NAMES:
            name = name.replace(old, new)
        renamed["post_layernorm." + name.removeprefix("norm.") if name.startswith("norm.") else name] = tensor
    return renamed


def load_vision(tensors: dict[str, Tensor], label: str) -> BlipVisionModel:
    renamed = rename_vision(tensors)
    return _load(BlipVisionModel, renamed, vision_config, label)


def load_text(tensors: dict[str, Tensor], image_width: int, label: str) -> BlipTextModel:
    """BERT with cross-attention to image tokens of that width; transformers' names are the file's own."""
    return _load(BlipTextModel, tensors, lambda t: text_config(t, image_width), label, add_pooling_layer=False)


def _load(cls: Any, tensors: dict[str, Tensor], config: Any, label: str, **options: Any) -> Any:
    with reading(f"{label} is not an ImageReward checkpoint"):
        built = config(tensors)
    return load_pretrained(cls, None, f"ImageReward of {label}", config=built, state_dict=tensors, **options)


def vision_config(tensors: dict[str, Tensor]) -> BlipVisionConfig:
    """The image network's sizes, from its renamed tensors."""
    width, _, patch, _ = tensors["embeddings.patch_embedding.weight"].shape
    grid = math.isqrt(tensors["embeddings.position_embedding"].shape[1] - 1)
    return BlipVisionConfig(
        hidden_size=width,
        intermediate_size=len(tensors["encoder.layers.0.mlp.fc1.bias"]),
        num_hidden_layers=sum(name.endswith(".layer_norm1.bias") for name in tensors),
        num_attention_heads=width // HEAD_WIDTH,
        image_size=patch * grid,
        patch_size=patch,
        layer_norm_eps=1e-6,
    )


def text_config(tensors: dict[str, Tensor], image_width: int) -> BlipTextConfig:
    """BERT's sizes, from its tensors."""
    vocabulary, width = tensors["embeddings.word_embeddings.weight"].shape
    return BlipTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        encoder_hidden_size=image_width,
        intermediate_size=len(tensors["encoder.layer.0.intermediate.dense.bias"]),
        num_hidden_layers=sum(name.endswith(".intermediate.dense.bias") for name in tensors),
        num_attention_heads=width // HEAD_WIDTH,
        max_position_embeddings=len(tensors["embeddings.position_embeddings.weight"]),
        layer_norm_eps=1e-12,
        is_decoder=True,  # so that it has cross-attention; it reads in both directions all the same
    )
