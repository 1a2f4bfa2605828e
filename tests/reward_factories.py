"""Small random rewards in the release formats, and the parity fixtures' parts, for tests of rewards."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertTokenizer,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    SwinConfig,
    VideoMAEConfig,
    VideoMAEForVideoClassification,
    YolosConfig,
    YolosForObjectDetection,
)

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
        model = _livelier(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=FEATURES)))
    model.save_pretrained(folder)
    return folder


TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
OBJECTS = ("N/A", "person", "N/A", "book", "cup")
ACTIONS = ("playing piano", "playing", "eating ice cream", "tying knot (not on a tie)")


def _livelier(model: nn.Module) -> nn.Module:
    """Larger weights than a network's own start, so that outputs differ visibly."""
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def make_tiny_yolos(folder: Path, shortest_edge: int = 16, **config) -> Path:
    """A `YolosForObjectDetection` folder with its image settings: classes `OBJECTS`, six queries."""
    names = {"id2label": dict(enumerate(OBJECTS)), "label2id": {}}
    config = TOWER | {"image_size": [16, 24], "patch_size": 4, "num_detection_tokens": 6} | names | config
    with torch.random.fork_rng():
        torch.manual_seed(0)
        _livelier(YolosForObjectDetection(YolosConfig(**config))).save_pretrained(folder)
    size = {"shortest_edge": shortest_edge, "longest_edge": 2 * shortest_edge}
    settings = {"image_processor_type": "YolosImageProcessor", "size": size}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def make_tiny_grounding_dino(folder: Path) -> Path:
    """A `GroundingDinoForObjectDetection` folder with a BERT tokenizer that knows two words."""
    folder.mkdir(parents=True, exist_ok=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "book", "cup"]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizer.from_pretrained(folder).save_pretrained(folder)
    swin = SwinConfig(
        embed_dim=8, depths=[1] * 4, num_heads=[1, 1, 2, 2], window_size=2, image_size=32, patch_size=2,
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    bert = BertConfig(vocab_size=len(words), max_position_embeddings=16, **TOWER)
    config = GroundingDinoConfig(
        backbone_config=swin, text_config=bert, d_model=32, num_queries=6, max_text_len=16,
        encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=32, encoder_n_points=2,
        decoder_layers=2, decoder_attention_heads=2, decoder_ffn_dim=32, decoder_n_points=2,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        GroundingDinoForObjectDetection(config).save_pretrained(folder)
    return folder


def make_tiny_videomae(folder: Path, num_frames: int = 8) -> Path:
    """A `VideoMAEForVideoClassification` folder: classes `ACTIONS`, 16x16 pixels, two frames a token."""
    config = VideoMAEConfig(
        image_size=16, patch_size=8, num_frames=num_frames, id2label=dict(enumerate(ACTIONS)), label2id={}, **TOWER
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        _livelier(VideoMAEForVideoClassification(config)).save_pretrained(folder)
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
