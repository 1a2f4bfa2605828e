"""Small random HunyuanVideo checkpoints, in the release's own layout, by diffusers' own classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel, LlamaConfig, LlamaModel

from factories import VOCABULARY
from factories import write_tokenizer as write_clip_tokenizer
from opensora_factories import write_tokenizer

TEMPLATE = {"template": "say: {}", "crop_start": 3}  # the release's is longer than a tiny tokenizer's texts may be


@torch.no_grad()
def make_transformer(seed: int) -> HunyuanVideoTransformer3DModel:
    """Louder than fresh weights are, so that text and adapters are heard."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = HunyuanVideoTransformer3DModel(
            in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=1,
            num_single_layers=1, num_refiner_layers=1, guidance_embeds=True, text_embed_dim=16,
            pooled_projection_dim=8, rope_axes_dim=(2, 4, 4),
        )  # fmt: skip
    for parameter in network.parameters():
        parameter.mul_(1.5)
    return network


def make_vae() -> AutoencoderKLHunyuanVideo:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return AutoencoderKLHunyuanVideo(
            block_out_channels=(8, 8, 8, 8), latent_channels=4, norm_num_groups=4, layers_per_block=1
        )


def make_tiny_hunyuan(folder: Path) -> Path:
    """A `HunyuanVideoPipeline` folder."""
    write_tokenizer(folder / "tokenizer")
    write_clip_tokenizer(folder / "tokenizer_2")
    small: dict[str, Any] = {"intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        llama = LlamaModel(LlamaConfig(vocab_size=64, hidden_size=16, num_key_value_heads=2, pad_token_id=0, **small))
        clip = CLIPTextModel(CLIPTextConfig(vocab_size=len(VOCABULARY), hidden_size=8, eos_token_id=1, **small))
    HunyuanVideoPipeline(
        tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer"),
        text_encoder=llama,
        tokenizer_2=AutoTokenizer.from_pretrained(folder / "tokenizer_2"),
        text_encoder_2=clip,
        vae=make_vae(),
        transformer=make_transformer(0),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
    ).save_pretrained(folder)
    return folder
