"""Small random CogVideoX checkpoints, in the releases' own layout, by diffusers' own classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
)
from transformers import AutoTokenizer, T5EncoderModel
from transformers.models.t5 import T5Config

from opensora_factories import T5, write_tokenizer

VAE: dict[str, Any] = {
    "block_out_channels": (8, 8, 8, 8), "latent_channels": 4, "layers_per_block": 1, "norm_num_groups": 2,
    "sample_height": 32, "sample_width": 48,
}  # fmt: skip
SCHEDULER: dict[str, Any] = {
    "prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing",
    "clip_sample": False,
}  # fmt: skip
TEXT_TOKENS = 12
ROTARY = {"use_rotary_positional_embeddings": True}
NEWER = ROTARY | {"patch_size_t": 2, "patch_bias": False, "sample_frames": 17, "sample_height": 8, "sample_width": 8}
VARIANTS: dict[str, dict[str, Any]] = {  # what a release's transformer, VAE and scheduler have of their own
    "2b": {"snr": 3.0},
    "5b": {"transformer": ROTARY, "scaling_factor": 0.7, "dpm": True},
    "1.5-5b": {"transformer": NEWER, "scaling_factor": 0.7, "invert_scale_latents": True},
    "5b-i2v": {
        "transformer": ROTARY | {"use_learned_positional_embeddings": True}, "scaling_factor": 0.7, "images": True,
    },
    "1.5-5b-i2v": {
        "transformer": NEWER | {"ofs_embed_dim": 16}, "scaling_factor": 0.7, "invert_scale_latents": True,
        "images": True,
    },
}  # fmt: skip


@torch.no_grad()
def make_transformer(seed: int, **more: Any) -> CogVideoXTransformer3DModel:
    """Louder than fresh weights are, so that text and adapters are heard."""
    sizes = {
        "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4, "num_layers": 2,
        "time_embed_dim": 16, "text_embed_dim": 16, "max_text_seq_length": TEXT_TOKENS, "sample_width": 6,
        "sample_height": 4, "sample_frames": 17,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = CogVideoXTransformer3DModel(**(sizes | more))
        for parameter in network.parameters():
            parameter.mul_(1.5)
        if network.config.use_learned_positional_embeddings:
            network.patch_embed.pos_embedding.normal_()
    return network


def make_vae(**more: Any) -> AutoencoderKLCogVideoX:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return AutoencoderKLCogVideoX(**(VAE | more))


def make_tiny_cogvideox(folder: Path, variant: str) -> Path:
    """A pipeline's folder of one of `VARIANTS`."""
    own = dict(VARIANTS[variant])
    images, dpm, transformer = own.pop("images", False), own.pop("dpm", False), own.pop("transformer", {})
    scheduler = (CogVideoXDPMScheduler if dpm else CogVideoXDDIMScheduler)(
        snr_shift_scale=own.pop("snr", 1.0), **SCHEDULER
    )
    write_tokenizer(folder / "tokenizer")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        text = T5EncoderModel(T5Config(**T5))
    (CogVideoXImageToVideoPipeline if images else CogVideoXPipeline)(
        tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer"),
        text_encoder=text,
        vae=make_vae(**own),
        transformer=make_transformer(0, **({"in_channels": 8} if images else {}), **transformer),
        scheduler=scheduler,
    ).save_pretrained(folder)
    return folder
