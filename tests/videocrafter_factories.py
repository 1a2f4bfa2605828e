"""Small random VideoCrafter2 checkpoints in the release's single-file layout."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet3DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from factories import VOCABULARY, _without_zeros, write_tokenizer
from vader.models.videocrafter.networks import build_unet
from vader.models.videocrafter.release import write_release
from vader.solvers import scaled_linear_betas

LEVELS = (1 - scaled_linear_betas(0.00085, 0.012, 1000)).cumprod(0)  # alpha_bar of the release


def make_tiny_videocrafter(folder: Path, seed: int = 0) -> Path:
    """`model.ckpt` with its tokenizer beside it: latents of half the pixels, which the UNet halves once."""
    write_tokenizer(folder / "tokenizer")
    write_release(folder / "model.ckpt", *make_networks(seed), LEVELS)
    return folder


def make_networks(seed: int = 0) -> tuple[UNet3DConditionModel, AutoencoderKL, CLIPTextModel]:
    """No weight is zero, so every layer takes part."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet, vae, text = (_without_zeros(network).eval() for network in (_unet(), _vae(), _text_encoder()))
    return unet, vae, text


def _unet() -> UNet3DConditionModel:
    return build_unet(
        {
            "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
            "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
            "block_out_channels": (16, 32),
            "layers_per_block": 1,
            "norm_num_groups": 8,
            "cross_attention_dim": 16,
            "attention_head_dim": 8,
        }
    )


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        norm_num_groups=4,
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
        hidden_act="gelu",
        bos_token_id=len(VOCABULARY) - 2,
        eos_token_id=len(VOCABULARY) - 1,
        pad_token_id=0,
    )
    return CLIPTextModel(config)
