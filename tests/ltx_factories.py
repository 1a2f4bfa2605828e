"""Small random LTX-Video checkpoints, in the releases' own layout, by diffusers' own classes: 16 x 16 pixels of four
frames are one latent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLLTXVideo,
    FlowMatchEulerDiscreteScheduler,
    LTXConditionPipeline,
    LTXPipeline,
    LTXVideoTransformer3DModel,
)
from transformers import AutoTokenizer, T5Config, T5EncoderModel

from opensora_factories import write_tokenizer
from vader.planning.ltx import DYNAMIC

_SMALL: dict[str, Any] = {
    "latent_channels": 8, "block_out_channels": (8, 8), "decoder_block_out_channels": (8, 16), "patch_size": 4,
    "layers_per_block": (1, 1, 1), "decoder_layers_per_block": (1, 1, 1), "spatio_temporal_scaling": (True, True),
    "decoder_spatio_temporal_scaling": (True, True), "decoder_inject_noise": (False,) * 3,
    "down_block_types": ("LTXVideoDownBlock3D",) * 2, "downsample_type": ("conv",) * 2,
}  # fmt: skip
_RESIDUAL: dict[str, Any] = {
    "upsample_residual": (True, True),
    "upsample_factor": (2, 2),
    "timestep_conditioning": True,
}
VAES: dict[str, dict[str, Any]] = {
    "0.9.0": _SMALL,
    "0.9.1": _SMALL | _RESIDUAL | {"decoder_inject_noise": (True, True, False)},
    "0.9.5": _SMALL | _RESIDUAL | {
        "block_out_channels": (8, 16, 32), "down_block_types": ("LTXVideo095DownBlock3D",) * 2,
        "downsample_type": ("spatiotemporal",) * 2, "spatial_compression_ratio": 16, "temporal_compression_ratio": 4,
    },
}  # fmt: skip
SCHEDULERS = {"0.9.0": DYNAMIC, "0.9.1": DYNAMIC, "0.9.5": {}}
PIPELINES = {"0.9.0": LTXPipeline, "0.9.1": LTXPipeline, "0.9.5": LTXConditionPipeline}


def make_ltx_transformer(seed: int = 0) -> LTXVideoTransformer3DModel:
    """Louder than fresh weights are, so that text and adapters are heard."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = LTXVideoTransformer3DModel(
            in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
            num_layers=2, caption_channels=16,
        )  # fmt: skip
    for parameter in network.parameters():
        parameter.data.mul_(2)
    return network


def make_ltx_vae(version: str) -> AutoencoderKLLTXVideo:
    """With statistics of its latents, and noise that is heard where the decoder makes any."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        vae = AutoencoderKLLTXVideo(**VAES[version])
        vae.latents_mean.normal_()
        vae.latents_std.uniform_(0.5, 2)
        for name, parameter in vae.named_parameters():
            if "per_channel_scale" in name:
                parameter.data.normal_()
    return vae


def make_tiny_ltx(folder: Path, version: str = "0.9.0") -> Path:
    """A folder of the pipeline that the version is released for."""
    write_tokenizer(folder / "tokenizer")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        text = T5EncoderModel(T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2))
    settings = {key: value for key, value in SCHEDULERS[version].items() if key != "_class_name"}
    PIPELINES[version](
        scheduler=FlowMatchEulerDiscreteScheduler(**settings),
        vae=make_ltx_vae(version),
        text_encoder=text,
        tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer"),
        transformer=make_ltx_transformer(),
    ).save_pretrained(folder)
    return folder
