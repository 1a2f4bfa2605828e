"""open_clip's conventions, for rewards and text encoders alike: names of tensors, sizes, cleaning of prompts."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

import ftfy
import torch
from torch import Tensor
from transformers import CLIPConfig

# open_clip's names, by the first prefix that fits, then inside the blocks.
_PREFIXES = (
    ("visual.transformer.resblocks.", "vision_model.encoder.layers."),
    ("transformer.resblocks.", "text_model.encoder.layers."),
    ("visual.class_embedding", "vision_model.embeddings.class_embedding"),
    ("visual.conv1.", "vision_model.embeddings.patch_embedding."),
    ("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
    ("visual.ln_pre.", "vision_model.pre_layrnorm."),
    ("visual.ln_post.", "vision_model.post_layernorm."),
    ("visual.proj", "visual_projection.weight"),
    ("token_embedding.", "text_model.embeddings.token_embedding."),
    ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
    ("ln_final.", "text_model.final_layer_norm."),
    ("text_projection", "text_projection.weight"),
)
_IN_BLOCKS = (
    (".attn.", ".self_attn."),
    (".ln_1.", ".layer_norm1."),
    (".ln_2.", ".layer_norm2."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
)
_TRANSPOSED = ("visual.proj", "text_projection")
_VISION_HEAD_WIDTHS = {1280: 80, 1408: 88, 1664: 104}  # ViT-H, g and bigG by tower width; all others have 64


def rename_open_clip(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's tensors under transformers' names; fused q, k, v are split, output projections transposed."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        target = _renamed(name)
        if ".in_proj_" in target:
            stem, kind = target.split("in_proj_")
            renamed |= {f"{stem}{p}_proj.{kind}": part for p, part in zip("qkv", tensor.chunk(3), strict=True)}
        else:
            renamed[target] = tensor.T if name in _TRANSPOSED else tensor
    return {name: tensor.contiguous() for name, tensor in renamed.items()}


def to_open_clip(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers' tensors under open_clip's names: the inverse of `rename_open_clip`."""
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        target = _renamed(name, [(new, old) for old, new in _PREFIXES], [(new, old) for old, new in _IN_BLOCKS])
        stem, part, kind = target.rpartition("q_proj.")
        if part:
            fused = [tensors[name.replace("q_proj.", f"{p}_proj.")] for p in "qkv"]
            named[f"{stem}in_proj_{kind}"] = torch.cat(fused)
        elif not target.rpartition(".")[0].endswith((".k_proj", ".v_proj")):
            named[target] = tensor.T if target in _TRANSPOSED else tensor
    return {name: tensor.contiguous() for name, tensor in named.items()}


def _renamed(
    name: str, prefixes: Sequence[tuple[str, str]] = _PREFIXES, in_blocks: Sequence[tuple[str, str]] = _IN_BLOCKS
) -> str:
    name = next((new + name.removeprefix(old) for old, new in prefixes if name.startswith(old)), name)
    for old, new in in_blocks:
        name = name.replace(old, new)
    return name


def clip_config(tensors: dict[str, Tensor], head_widths: tuple[int, int] | None = None) -> CLIPConfig:
    """The sizes of a CLIP with two transformer towers, read off open_clip's tensors.

    Args:
        head_widths: of the image and the text tower, where they are not open_clip's usual ones: shapes don't tell.

    Raises:
        KeyError: a tensor that tells a size is missing; its name.
    """
    width, _, patch, _ = tensors["visual.conv1.weight"].shape
    grid = math.isqrt(len(tensors["visual.positional_embedding"]) - 1)
    vocabulary = len(tensors["token_embedding.weight"])
    text_length, text_width = tensors["positional_embedding"].shape
    projection = tensors["text_projection"].shape[1]
    vision_head, text_head = head_widths or (_VISION_HEAD_WIDTHS.get(width, 64), 64)
    vision = _tower_config(tensors, "visual.transformer", width, vision_head, projection)
    text = _tower_config(tensors, "transformer", text_width, text_head, projection)
    special = {"bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1, "pad_token_id": 0}
    return CLIPConfig(
        projection_dim=projection,
        vision_config=vision | {"patch_size": patch, "image_size": patch * grid},
        text_config=text | special | {"vocab_size": vocabulary, "max_position_embeddings": text_length},
    )


def _tower_config(
    tensors: dict[str, Tensor], stem: str, width: int, head_width: int, projection: int
) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": len(tensors[f"{stem}.resblocks.0.mlp.c_fc.bias"]),
        "num_hidden_layers": sum(name.startswith(f"{stem}.resblocks.") and "ln_1.bias" in name for name in tensors),
        "num_attention_heads": width // head_width,
        "projection_dim": projection,
        "hidden_act": "gelu",  # open_clip's exact GELU; transformers' default for CLIP is the quick one
    }


def clean(prompt: str) -> str:
    """A prompt as CLIP's and open_clip's tokenizers clean it: text mended, HTML unescaped, white space collapsed.

    Mended are wrong encodings, and typographic quotes and ligatures become the plain ones that CLIP was trained on.
    """
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(prompt))).split())
