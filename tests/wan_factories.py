"""Small random Wan checkpoints, in the releases' own layout, by diffusers' own classes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import (
    AutoTokenizer,
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    UMT5Config,
    UMT5EncoderModel,
)

from opensora_factories import write_tokenizer

STATISTICS = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.0, 2.0, 0.5, 1.5]}
VAE: dict[str, Any] = {"base_dim": 8, "z_dim": 4, "num_res_blocks": 1, **STATISTICS}  # of Wan 2.1
RESIDUAL_VAE: dict[str, Any] = VAE | {  # of TI2V-5B: 16 x 16 pixels become one latent
    "is_residual": True, "in_channels": 12, "out_channels": 12, "decoder_base_dim": 8, "patch_size": 2,
    "scale_factor_spatial": 16,
}  # fmt: skip


def make_transformer(seed: int, **more: Any) -> WanTransformer3DModel:
    """Louder than fresh weights are, so that text and adapters are heard."""
    sizes = {"num_attention_heads": 2, "attention_head_dim": 12, "text_dim": 16, "freq_dim": 16, "ffn_dim": 32}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = WanTransformer3DModel(**(sizes | {"num_layers": 2, "in_channels": 4, "out_channels": 4} | more))
    for parameter in network.parameters():
        parameter.data.mul_(2)
    return network


def make_vae(**settings: Any) -> AutoencoderKLWan:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return AutoencoderKLWan(**settings)


def make_tiny_wan(
    folder: Path, experts: bool = False, vae: dict[str, Any] | None = None, shift: float = 3.0, **more: Any
) -> Path:
    """A `WanPipeline` folder.

    Args:
        experts: two transformers, as Wan 2.2's A14B.
        more: of the pipeline, as `expand_timesteps`.
    """
    write_tokenizer(folder / "tokenizer")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        text = UMT5EncoderModel(UMT5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2))
    WanPipeline(
        tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer"),
        text_encoder=text,
        vae=make_vae(**(VAE if vae is None else vae)),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift),
        transformer=make_transformer(0),
        transformer_2=make_transformer(5) if experts else None,
        boundary_ratio=0.875 if experts else None,
        **more,
    ).save_pretrained(folder)
    return folder


def make_tiny_wan_i2v(folder: Path, experts: bool = False) -> Path:
    """A `WanImageToVideoPipeline` folder: of Wan 2.1 with a CLIP image encoder, or with two experts and none."""
    text, width = make_tiny_wan(folder / "text"), 8
    seen = {"in_channels": 4 + 4 + 4} | ({} if experts else {"image_dim": width, "added_kv_proj_dim": 24})
    parts = WanPipeline.from_pretrained(text).components
    parts |= {"transformer": make_transformer(0, **seen), "image_encoder": None, "image_processor": None}
    parts["transformer_2"] = make_transformer(5, **seen) if experts else None
    if not experts:
        with torch.random.fork_rng():
            torch.manual_seed(2)
            parts["image_encoder"] = CLIPVisionModel(CLIPVisionConfig(
                hidden_size=width, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28,
                patch_size=14,
            ))  # fmt: skip
        crop = {"height": 28, "width": 28}
        parts["image_processor"] = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=crop)
    pipe = WanImageToVideoPipeline(**parts, boundary_ratio=0.9 if experts else None)
    pipe.save_pretrained(folder)
    shutil.rmtree(text)
    return folder
