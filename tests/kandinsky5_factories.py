"""Small random Kandinsky 5 checkpoints, in the release's own layout, by diffusers' own classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Kandinsky5Transformer3DModel
from transformers import CLIPTextConfig, CLIPTextModel, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from factories import VOCABULARY
from factories import write_tokenizer as write_clip_tokenizer
from hunyuan_factories import make_vae
from opensora_factories import write_tokenizer

TEMPLATE, SKIPPED = "say: {}", 3  # the release's is longer than a tiny tokenizer's texts may be


@torch.no_grad()
def make_transformer(seed: int) -> Kandinsky5Transformer3DModel:
    """Louder than fresh weights are, so that text and adapters are heard."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Kandinsky5Transformer3DModel(
            in_visual_dim=4, out_visual_dim=4, in_text_dim=16, in_text_dim2=8, time_dim=16, model_dim=24, ff_dim=32,
            num_text_blocks=1, num_visual_blocks=2, axes_dims=(4, 4, 4), visual_cond=True,
        )  # fmt: skip
        for name, parameter in network.named_parameters():
            if not parameter.any():  # fresh modulations are zero, and hide what they modulate
                parameter.normal_(std=0.2)
            elif "norm" not in name:
                parameter.mul_(1.5)
    return network.eval()


def make_tiny_kandinsky5(folder: Path) -> Path:
    """The components of a `Kandinsky5T2VPipeline` folder."""
    write_tokenizer(folder / "tokenizer")
    write_clip_tokenizer(folder / "tokenizer_2")
    small: dict[str, Any] = {"intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    text = small | {"vocab_size": 64, "hidden_size": 16, "num_key_value_heads": 2, "rope_parameters": rope}
    vision = {"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 2, "out_hidden_size": 16}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        qwen = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision))
        clip = CLIPTextModel(CLIPTextConfig(vocab_size=len(VOCABULARY), hidden_size=8, eos_token_id=1, **small))
    networks = {"text_encoder": qwen, "text_encoder_2": clip, "vae": make_vae(), "transformer": make_transformer(0)}
    for name, network in networks.items():
        network.save_pretrained(folder / name)
    FlowMatchEulerDiscreteScheduler(shift=5.0).save_pretrained(folder / "scheduler")
    return folder
