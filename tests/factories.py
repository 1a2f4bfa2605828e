"""Small random checkpoints in the exact release formats, for tests of every room."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet3DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

LETTERS = "abcdefghijklmnopqrstuvwxyz"
MERGES = ("r e", "re d</w>", "b l", "bl u", "blu e</w>")
SPECIAL = ("<|startoftext|>", "<|endoftext|>")
VOCABULARY = (*LETTERS, *(letter + "</w>" for letter in LETTERS), *(m.replace(" ", "") for m in MERGES), *SPECIAL)


def make_tiny_modelscope(path: Path, seed: int = 0) -> Path:
    """A `TextToVideoSDPipeline` folder of random weights, as the ModelScope release has it: 16x16 pixels, 8x8 latents.

    No weight is zero, so every layer takes part (fresh UNet3D weights have zeros that hide its temporal layers).
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        _without_zeros(_unet()).save_pretrained(path / "unet")
        _without_zeros(_vae()).save_pretrained(path / "vae")
        _without_zeros(_text_encoder()).save_pretrained(path / "text_encoder")
    (path / "scheduler").mkdir()
    _write_json(path / "scheduler" / "scheduler_config.json", SCHEDULER)
    write_tokenizer(path / "tokenizer")
    _write_json(path / "model_index.json", MODEL_INDEX)
    return path


MODEL_INDEX = {
    "_class_name": "TextToVideoSDPipeline",
    "_diffusers_version": "0.15.0.dev0",
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet3DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}

SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "_diffusers_version": "0.15.0.dev0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}


def write_tokenizer(folder: Path, max_length: int = 12) -> Path:
    """CLIP's BPE tokenizer with a vocabulary of letters and two colours, in its release files."""
    folder.mkdir(parents=True)
    _write_json(folder / "vocab.json", {token: index for index, token in enumerate(VOCABULARY)})
    (folder / "merges.txt").write_text("\n".join(("#version: 0.2", *MERGES)) + "\n")
    start, end = SPECIAL
    special = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": end}
    _write_json(folder / "special_tokens_map.json", special)
    _write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "CLIPTokenizer", "model_max_length": max_length, "do_lower_case": True, **special},
    )
    return folder


def _unet() -> UNet3DConditionModel:
    return UNet3DConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=16,
        attention_head_dim=8,
    )


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=16,
        scaling_factor=0.7,
    )


def _text_encoder() -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=12,
        bos_token_id=VOCABULARY.index(SPECIAL[0]),
        eos_token_id=VOCABULARY.index(SPECIAL[1]),
        pad_token_id=VOCABULARY.index(SPECIAL[1]),
    )
    return CLIPTextModel(config)


@torch.no_grad()
def _without_zeros(network: nn.Module) -> nn.Module:
    for parameter in network.parameters():
        if not parameter.any():
            parameter.normal_(std=0.05)
    return network


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2))
