"""Small random LTX-2 checkpoints, in the releases' own layout, by diffusers' own classes: 16 x 16 pixels of four frames
are one latent of the video."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    FlowMatchEulerDiscreteScheduler,
    LTX2Pipeline,
    LTX2VideoTransformer3DModel,
)
from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder, LTX2VocoderWithBWE
from transformers import AutoTokenizer, Gemma3Config, Gemma3ForConditionalGeneration

from opensora_factories import write_tokenizer
from vader.planning.ltx import DYNAMIC

_TRANSFORMER: dict[str, Any] = {
    "in_channels": 8, "out_channels": 8, "num_attention_heads": 2, "attention_head_dim": 8, "cross_attention_dim": 16,
    "audio_in_channels": 8, "audio_out_channels": 8, "audio_num_attention_heads": 2, "audio_attention_head_dim": 4,
    "audio_cross_attention_dim": 8, "num_layers": 2, "caption_channels": 16, "rope_type": "split",
    "vae_scale_factors": (4, 16, 16),
}  # fmt: skip
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "2.0": _TRANSFORMER,
    "2.3": _TRANSFORMER | {
        "gated_attn": True, "cross_attn_mod": True, "audio_gated_attn": True, "audio_cross_attn_mod": True,
        "use_prompt_embeddings": False, "perturbed_attn": True,
    },
}  # fmt: skip
_CONNECTORS: dict[str, Any] = {
    "caption_channels": 16, "text_proj_in_factor": 3, "connector_rope_base_seq_len": 1024, "rope_type": "split",
    "video_connector_num_attention_heads": 2, "video_connector_attention_head_dim": 8, "video_connector_num_layers": 1,
    "audio_connector_num_attention_heads": 2, "audio_connector_attention_head_dim": 8, "audio_connector_num_layers": 1,
    "video_connector_num_learnable_registers": 8, "audio_connector_num_learnable_registers": 8,
}  # fmt: skip
CONNECTORS: dict[str, dict[str, Any]] = {
    "2.0": _CONNECTORS,
    "2.3": _CONNECTORS | {
        "audio_connector_attention_head_dim": 4, "per_modality_projections": True, "video_hidden_dim": 16,
        "audio_hidden_dim": 8, "proj_bias": True, "video_gated_attn": True, "audio_gated_attn": True,
    },
}  # fmt: skip
_VAE: dict[str, Any] = {
    "latent_channels": 8, "patch_size": 4, "decoder_causal": False, "spatial_compression_ratio": 16,
    "temporal_compression_ratio": 4,
}  # fmt: skip
VAES: dict[str, dict[str, Any]] = {
    "2.0": _VAE | {
        "block_out_channels": (8, 16), "decoder_block_out_channels": (8, 16), "layers_per_block": (1,) * 3,
        "down_block_types": ("LTX2VideoDownBlock3D",) * 2, "downsample_type": ("spatiotemporal",) * 2,
        "decoder_layers_per_block": (1,) * 3, "spatio_temporal_scaling": (True,) * 2,
        "decoder_spatio_temporal_scaling": (True,) * 2, "decoder_inject_noise": (False,) * 3,
        "upsample_type": ("spatiotemporal",) * 2, "upsample_residual": (True,) * 2, "upsample_factor": (2,) * 2,
    },
    "2.3": _VAE | {
        "block_out_channels": (8, 16, 16), "decoder_block_out_channels": (8, 8, 16), "layers_per_block": (1,) * 4,
        "down_block_types": ("LTX2VideoDownBlock3D",) * 3, "downsample_type": ("spatial", "temporal", "spatiotemporal"),
        "decoder_layers_per_block": (1,) * 4, "spatio_temporal_scaling": (True,) * 3,
        "decoder_spatio_temporal_scaling": (True,) * 3, "decoder_inject_noise": (False,) * 4,
        "upsample_type": ("spatiotemporal", "temporal", "spatial"), "upsample_residual": (False,) * 3,
        "upsample_factor": (2, 1, 2), "decoder_spatial_padding_mode": "zeros",
    },
}  # fmt: skip
_AUDIO_VAE: dict[str, Any] = {
    "base_channels": 8, "ch_mult": (1, 1, 1), "num_res_blocks": 1, "resolution": 32, "latent_channels": 2,
    "mel_bins": 16,
}  # fmt: skip
_VOCODER: dict[str, Any] = {
    "in_channels": 32, "hidden_channels": 16, "upsample_kernel_sizes": [4, 4], "upsample_factors": [2, 2],
    "resnet_kernel_sizes": [3], "resnet_dilations": [[1, 3, 5]],
}  # fmt: skip
VOCODERS: dict[str, Any] = {
    "2.0": lambda: LTX2Vocoder(**_VOCODER, output_sampling_rate=8000),
    "2.3": lambda: LTX2VocoderWithBWE(
        **_VOCODER, bwe_in_channels=32, bwe_hidden_channels=16, bwe_upsample_kernel_sizes=[4, 4, 5],
        bwe_upsample_factors=[2, 2, 3], bwe_resnet_kernel_sizes=[3], bwe_resnet_dilations=[[1, 3, 5]],
        filter_length=16, hop_length=4, window_length=16, num_mel_channels=16, input_sampling_rate=400,
        output_sampling_rate=1200,
    ),
}  # fmt: skip


def make_ltx2_transformer(version: str = "2.3", seed: int = 0) -> LTX2VideoTransformer3DModel:
    """Louder than fresh weights are, so that text, sound and adapters are heard."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = LTX2VideoTransformer3DModel(**TRANSFORMERS[version])
    for parameter in network.parameters():
        parameter.data.mul_(1.5)
    return network


def make_ltx2_vae(version: str, **settings: Any) -> AutoencoderKLLTX2Video:
    """With statistics of its latents."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return _with_statistics(AutoencoderKLLTX2Video(**VAES[version] | settings))


def _vocoder(version: str) -> LTX2Vocoder | LTX2VocoderWithBWE:
    vocoder = VOCODERS[version]()
    if version == "2.3":  # the bases of its spectrograms come with a checkpoint, and are zero before
        vocoder.mel_stft.stft_fn.forward_basis.normal_()
        vocoder.mel_stft.mel_basis.uniform_()
    return vocoder


def _with_statistics(vae: Any) -> Any:
    vae.latents_mean.normal_()
    vae.latents_std.uniform_(0.5, 2)
    return vae


def _gemma() -> Gemma3ForConditionalGeneration:
    small: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    text = small | {"vocab_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
    vision = small | {"num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    return Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4))


def make_tiny_ltx2(folder: Path, version: str) -> Path:
    """An `LTX2Pipeline` folder."""
    write_tokenizer(folder / "tokenizer")
    settings = {key: value for key, value in DYNAMIC.items() if key != "_class_name"}
    with torch.random.fork_rng():
        torch.manual_seed(2)
        LTX2Pipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(**settings),
            vae=make_ltx2_vae(version),
            audio_vae=_with_statistics(AutoencoderKLLTX2Audio(**_AUDIO_VAE)),
            text_encoder=_gemma(),
            tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer"),
            connectors=LTX2TextConnectors(**CONNECTORS[version]),
            transformer=make_ltx2_transformer(version),
            vocoder=_vocoder(version),
        ).save_pretrained(folder)
    return folder
