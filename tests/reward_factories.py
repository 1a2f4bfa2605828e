"""Small random CLIPs and heads in the release formats, and the parity fixtures' parts, for tests of rewards."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from factories import VOCABULARY, write_tokenizer

FEATURES = 24  # not the default of a tower's own config: loaders must look at the whole CLIP's


def make_tiny_clip(folder: Path, image_size: int = 16) -> Path:
    """A `CLIPModel` folder with its tokenizer, as CLIP checkpoints lie on the hub."""
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = tower | {
        "vocab_size": len(VOCABULARY),
        "max_position_embeddings": 12,
        "bos_token_id": len(VOCABULARY) - 2,
        "eos_token_id": len(VOCABULARY) - 1,
    }
    vision = tower | {"image_size": image_size, "patch_size": 8}
    write_tokenizer(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=FEATURES))
        for parameter in model.parameters():  # larger than CLIP's own start, so that scores differ visibly
            parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


def make_head(path: Path, features: int = FEATURES) -> Path:
    """An aesthetic head in the released layout: numbered linear layers with gaps where dropouts lay."""
    generator = torch.Generator().manual_seed(1)
    widths, numbers = (features, 8, 4, 1), (0, 2, 4)
    tensors = {}
    for number, (inputs, outputs) in zip(numbers, pairwise(widths), strict=True):
        tensors[f"layers.{number}.weight"] = torch.randn(outputs, inputs, generator=generator)
        tensors[f"layers.{number}.bias"] = torch.randn(outputs, generator=generator)
    save_file(tensors, path)
    return path


def parity_vision_folder(weights: Path, folder: Path) -> Path:
    """The parity fixture's image tower as the folder that transformers would have saved."""
    with safe_open(weights, framework="pt") as file:
        config = json.loads(file.metadata()["config"])
    model = CLIPVisionModelWithProjection(CLIPVisionConfig(**config))
    model.load_state_dict(load_file(weights))
    model.save_pretrained(folder)
    return folder


def unit_range(frames: Tensor) -> Tensor:
    """A decoder's pixels in [-1, 1], which may overshoot, as every reward takes them."""
    return (frames / 2 + 0.5).clamp(0, 1)
