"""Small random checkpoints in the exact release formats, for tests of every room."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLTemporalDecoder,
    UNet3DConditionModel,
    UNetSpatioTemporalConditionModel,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from vader.models.base import VideoModel
from vader.nouns import Condition, VideoSize
from vader.sampling.guidance import Passes, load_guidance

LETTERS = "abcdefghijklmnopqrstuvwxyz"
MERGES = ("r e", "re d</w>", "b l", "bl u", "blu e</w>")
SPECIAL = ("<|startoftext|>", "<|endoftext|>")
VOCABULARY = (*LETTERS, *(letter + "</w>" for letter in LETTERS), *(m.replace(" ", "") for m in MERGES), *SPECIAL)


class Fixed:
    """Stands in for the noise of a run: given start latents, and nothing fresh."""

    def __init__(self, latents):
        self.latents = latents

    def draw(self, use):
        return self.latents


def predict(model: VideoModel, latents, time, condition: Condition, scale: float, batched: bool = True):
    """The model's prediction under the guidance that it was made for."""
    guidance = load_guidance(model.guidance, {"scale": scale})
    return guidance(Passes(model, latents, torch.as_tensor(time, dtype=latents.dtype), condition, batched=batched))


@torch.no_grad()
def decoded_by_windows(model: VideoModel, latents, size: VideoSize):
    """The pixels of all frames, each window of the model's decoded by itself."""
    windows = [torch.tensor(window).expand(len(latents), -1) for window in model.windows(size)]
    return torch.cat([model.decode_unclamped(latents, window) for window in windows], dim=1)


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


def make_tiny_svd(path: Path, seed: int = 0) -> Path:
    """A `StableVideoDiffusionPipeline` folder of random weights, as the SVD release has it: latents half the pixels."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        _without_zeros(_svd_unet()).save_pretrained(path / "unet")
        _without_zeros(_svd_vae()).save_pretrained(path / "vae")
        _without_zeros(_image_encoder()).save_pretrained(path / "image_encoder")
    for name, content in {
        "scheduler/scheduler_config.json": SVD_SCHEDULER,
        "feature_extractor/preprocessor_config.json": SVD_FEATURES,
        "model_index.json": SVD_MODEL_INDEX,
    }.items():
        (path / name).parent.mkdir(exist_ok=True)
        _write_json(path / name, content)
    return path


SVD_SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "set_alpha_to_one": False,
    "sigma_max": 700.0,
    "sigma_min": 0.002,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "timestep_type": "continuous",
    "trained_betas": None,
    "use_karras_sigmas": True,
}

SVD_FEATURES = {
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "CLIPImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 224},
}

SVD_MODEL_INDEX = {
    "_class_name": "StableVideoDiffusionPipeline",
    "_diffusers_version": "0.24.0.dev0",
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "unet": ["diffusers", "UNetSpatioTemporalConditionModel"],
    "vae": ["diffusers", "AutoencoderKLTemporalDecoder"],
}


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


def _svd_unet() -> UNetSpatioTemporalConditionModel:
    return UNetSpatioTemporalConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        block_out_channels=(32, 64),
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
        layers_per_block=1,
        cross_attention_dim=16,
        num_attention_heads=(2, 4),
        num_frames=4,
    )


def _svd_vae() -> AutoencoderKLTemporalDecoder:
    return AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * 2,
        block_out_channels=(32, 32),
        layers_per_block=1,
        sample_size=16,
        scaling_factor=0.7,
    )


def _image_encoder() -> CLIPVisionModelWithProjection:
    """Of 224 pixels, as diffusers' pipeline takes for granted."""
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        projection_dim=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=224,
        patch_size=56,
    )
    return CLIPVisionModelWithProjection(config)


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
