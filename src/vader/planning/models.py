"""The families in their releases' sizes, with random weights: nothing is downloaded.

Time and memory do not depend on the values of weights. In goes a device (cpu, cuda, meta) as the `checkpoint`, out
comes the family with its networks drawn there.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLTemporalDecoder,
    UNet3DConditionModel,
    UNetSpatioTemporalConditionModel,
)
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from vader.models.base import VideoModel
from vader.models.modelscope import ModelScope
from vader.models.opensora.model import OpenSora
from vader.models.opensora.parts import RELEASE_SCHEDULER
from vader.models.opensora.stdit3 import STDiT3, STDiT3Config
from vader.models.opensora.vae import OpenSoraVAE, VAEConfig
from vader.models.registry import load_model, model_options
from vader.models.svd import StableVideoDiffusion
from vader.models.tiny_decoder import RELEASES as TINY_DECODERS
from vader.models.tiny_decoder import TinyDecoder, load_tiny_decoder
from vader.models.videocrafter.model import VideoCrafter
from vader.models.videocrafter.networks import build_unet
from vader.networks.measure import weight_dtype
from vader.nouns import Condition, Prompt, VideoSize
from vader.planning import cogvideox, hunyuan, hunyuan15, kandinsky5, ltx, wan
from vader.planning.drawn import Drawn, RandomText, drawn
from vader.plugins import load_object
from vader.rewards.preprocess import CLIP_MEAN, CLIP_STD

# ---- sizes, where they are not the classes' defaults ----

MODELSCOPE_UNET: dict[str, Any] = {"sample_size": 32}
VIDEOCRAFTER_UNET: dict[str, Any] = {"block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 1024}
SVD_UNET: dict[str, Any] = {"sample_size": 96, "num_frames": 14}
STDIT3: dict[str, Any] = {}
IMAGE_VAE: dict[str, Any] = {  # of ModelScope and of VideoCrafter2
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}
SVD_VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 768,
    "scaling_factor": 0.18215,
}
OPENSORA_VAE: dict[str, Any] = {}
TEXT_TOWER: dict[str, Any] = {  # OpenCLIP ViT-H's but for its last block, as ModelScope and VideoCrafter2 have it
    "vocab_size": 49408,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "max_position_embeddings": 77,
    "hidden_act": "gelu",
}
IMAGE_TOWER: dict[str, Any] = {  # OpenCLIP ViT-H's, SVD's image encoder
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "hidden_act": "gelu",
    "projection_dim": 1024,
}

# ---- schedules ----

_LEVELS: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
}
_DDIM: dict[str, Any] = _LEVELS | {"_class_name": "DDIMScheduler", "clip_sample": False, "set_alpha_to_one": False}
MODELSCOPE_SCHEDULER: dict[str, Any] = _DDIM | {"steps_offset": 1, "prediction_type": "epsilon"}
VIDEOCRAFTER_SCHEDULER: dict[str, Any] = _DDIM | {"timestep_spacing": "uniform", "dynamic_rescale": True}
SVD_SCHEDULER: dict[str, Any] = _LEVELS | {
    "_class_name": "EulerDiscreteScheduler",
    "prediction_type": "v_prediction",
    "sigma_max": 700.0,
    "sigma_min": 0.002,
    "timestep_spacing": "leading",
    "timestep_type": "continuous",
    "use_karras_sigmas": True,
}


# ---- the families ----


class RandomModelScope(Drawn, ModelScope):
    """`ali-vilab/text-to-video-ms-1.7b` in shape."""

    @classmethod
    def load(cls, checkpoint: str, *, dtype: torch.dtype = torch.float32) -> RandomModelScope:
        """See `VideoModel.load`; `checkpoint` is the device to draw the weights on."""
        networks = drawn(
            checkpoint,
            dtype,
            unet=lambda: UNet3DConditionModel(**MODELSCOPE_UNET),
            vae=lambda: AutoencoderKL(**IMAGE_VAE),
            text_encoder=lambda: CLIPTextModel(CLIPTextConfig(**TEXT_TOWER)),
        )
        return cls(**networks, tokenizer=any_tokenizer(), scheduler=MODELSCOPE_SCHEDULER)


class RandomVideoCrafter(Drawn, VideoCrafter):
    """`VideoCrafter/VideoCrafter2` in shape."""

    @classmethod
    def load(cls, checkpoint: str, *, dtype: torch.dtype = torch.float32) -> RandomVideoCrafter:  # type: ignore[override]
        """See `VideoModel.load`; `checkpoint` is the device to draw the weights on."""
        networks = drawn(
            checkpoint,
            dtype,
            unet=lambda: build_unet(VIDEOCRAFTER_UNET),
            vae=lambda: AutoencoderKL(**IMAGE_VAE),
            text_encoder=lambda: CLIPTextModel(CLIPTextConfig(**TEXT_TOWER)),
        )
        return cls(**networks, tokenizer=any_tokenizer(), scheduler=VIDEOCRAFTER_SCHEDULER)


class RandomSVD(Drawn, StableVideoDiffusion):
    """`stabilityai/stable-video-diffusion-img2vid` in shape; its pictures are random too, so prompts are texts."""

    takes_images = False

    @classmethod
    def load(  # type: ignore[override]
        cls, checkpoint: str, *, dtype: torch.dtype = torch.float32, decode_chunk: int | None = None
    ) -> RandomSVD:
        """See `StableVideoDiffusion.load`; `checkpoint` is the device to draw the weights on."""
        networks = drawn(
            checkpoint,
            dtype,
            unet=lambda: UNetSpatioTemporalConditionModel(**SVD_UNET),
            vae=lambda: AutoencoderKLTemporalDecoder(**SVD_VAE),
            image_encoder=lambda: CLIPVisionModelWithProjection(CLIPVisionConfig(**IMAGE_TOWER)),
        )
        return cls(
            **networks,
            scheduler=SVD_SCHEDULER,
            image_config={"image_mean": CLIP_MEAN, "image_std": CLIP_STD},
            decode_chunk=decode_chunk,
        )

    def encode(self, prompts: Sequence[Prompt], size: VideoSize, images: Tensor | None = None) -> Condition:
        """See `StableVideoDiffusion.encode`, of random pictures."""
        pictures = torch.rand(len(prompts), 3, size.height, size.width, device=self.device)
        return super().encode(prompts, size, pictures)

    def _image_latents(self, images: Tensor) -> Tensor:
        """Without each picture's own noise: it is made from the picture's bytes, and meta tensors have none."""
        return self.vae.encode(images.to(weight_dtype(self.vae))).latent_dist.mode().to(images.dtype)


class RandomOpenSora(Drawn, OpenSora):
    """`hpcai-tech/OpenSora-STDiT-v3` and its VAE in shape; the text encoder is gone before training begins."""

    @classmethod
    def load(cls, checkpoint: str, *, dtype: torch.dtype = torch.float32) -> RandomOpenSora:  # type: ignore[override]
        """See `VideoModel.load`; `checkpoint` is the device to draw the weights on."""
        config = STDiT3Config(**STDIT3)
        networks = drawn(
            checkpoint,
            dtype,
            transformer=lambda: STDiT3(config),
            vae=lambda: OpenSoraVAE(VAEConfig(**OPENSORA_VAE)),
        )
        networks["transformer"].rope.float()  # as it is loaded
        text: Any = RandomText(config.caption_channels)
        return cls(**networks, text=text, scheduler=RELEASE_SCHEDULER)


# By family, the class that has a checkpoint's shape; named, not imported, where not every diffusers has its networks.
RELEASES: dict[str, Mapping[str, type[Drawn] | str]] = {
    "modelscope": dict.fromkeys(
        ("ali-vilab/text-to-video-ms-1.7b", "damo-vilab/text-to-video-ms-1.7b"), RandomModelScope
    ),
    "videocrafter": {"VideoCrafter/VideoCrafter2": RandomVideoCrafter},
    "svd": dict.fromkeys(
        (f"stabilityai/stable-video-diffusion-img2vid{more}" for more in ("", "-xt", "-xt-1-1")), RandomSVD
    ),
    "opensora": {"hpcai-tech/OpenSora-STDiT-v3": RandomOpenSora},
    "cogvideox": cogvideox.RELEASES,
    "cogvideox-i2v": cogvideox.FROM_PICTURES,
    "hunyuan": hunyuan.RELEASES,
    "hunyuan15": hunyuan15.RELEASES,
    "hunyuan15-i2v": hunyuan15.FROM_PICTURES,
    "kandinsky5": kandinsky5.RELEASES,
    "ltx": ltx.RELEASES,
    "ltx-i2v": ltx.FROM_PICTURES,
    "ltx2": {
        "Lightricks/LTX-2": "vader.planning.ltx2:RandomLTX2",
        "diffusers/LTX-2.3-Diffusers": "vader.planning.ltx2:RandomLTX23",
    },
    "ltx2-i2v": {
        "Lightricks/LTX-2": "vader.planning.ltx2:RandomLTX2Image",
        "diffusers/LTX-2.3-Diffusers": "vader.planning.ltx2:RandomLTX23Image",
    },
    "wan": wan.RELEASES,
    "wan-i2v": wan.FROM_PICTURES,
}


def load_model_shape(
    family: str, checkpoint: str, options: Mapping[str, Any], dtype: torch.dtype, device: torch.device
) -> VideoModel:
    """A release's model drawn on a device; any other as `load_model`, on the CPU.

    Options that only say where files lie, or what they hold, are checked and change nothing of a shape.
    """
    own, shape = model_options(family, options), RELEASES.get(family, {}).get(checkpoint)
    if shape is None:
        return load_model(family, checkpoint, dtype=dtype, options=options)
    if isinstance(shape, str):
        shape = load_object(shape, "model", Drawn)
    kept = {name: value for name, value in own.items() if name in inspect.signature(shape.load).parameters}
    return shape.load(str(device), dtype=dtype, **kept)


def load_tiny_shape(file: str, dtype: torch.dtype, device: torch.device) -> TinyDecoder:
    """A tiny decoder as it is published under this name, drawn on a device; of another name it is the file's own.

    Raises:
        UserError: as `load_tiny_decoder`.
    """
    layout = TINY_DECODERS.get(Path(file).stem) or load_tiny_decoder(file, dtype).layout
    return drawn(str(device), dtype, tiny=lambda: TinyDecoder(layout))["tiny"]


# ---- what stands for tokenizers ----


def any_tokenizer() -> Any:
    """Prompts become arbitrary tokens: a vocabulary would have to be downloaded."""

    def tokenize(
        prompts: Sequence[str], max_length: int, return_tensors: str | None = None, **settings: Any
    ) -> SimpleNamespace:
        ids = torch.randint(TEXT_TOWER["vocab_size"], (len(prompts), max_length))
        return SimpleNamespace(input_ids=ids if return_tensors else ids.tolist())

    tokenize.model_max_length = TEXT_TOWER["max_position_embeddings"]  # type: ignore[attr-defined]
    return tokenize
