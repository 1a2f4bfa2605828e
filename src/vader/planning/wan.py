"""Wan's releases in their sizes, with random weights: what `vader.planning.models` takes for its checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import Tensor

from vader.models.wan import Index, Wan
from vader.models.wan_i2v import WanImage
from vader.nouns import Condition, Prompt, VideoSize
from vader.planning.drawn import Drawn, RandomText, drawn

TEXT_WIDTH = 4096  # of umt5-xxl
SCHEDULER: dict[str, Any] = {
    "_class_name": "UniPCMultistepScheduler",
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "num_train_timesteps": 1000,
}
# Sizes, where they are not the classes' defaults: those are Wan 2.1's VAE, and the transformer of 14B.
SMALL: dict[str, Any] = {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}
MIDDLE: dict[str, Any] = {
    "num_attention_heads": 24,
    "ffn_dim": 14336,
    "num_layers": 30,
    "in_channels": 48,
    "out_channels": 48,
}
SEEING: dict[str, Any] = {"in_channels": 36}  # the picture's latents, and where they are given, beside the video's
FEATURES = 257  # of a picture, by CLIP ViT-H
RESIDUAL_VAE: dict[str, Any] = {
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
    "latents_mean": [0.0] * 48,
    "latents_std": [1.0] * 48,
}


class RandomWan(Drawn, Wan):
    """`Wan-AI/Wan2.1-T2V-14B-Diffusers` in shape; the text encoder is gone before training begins."""

    transformer: ClassVar[dict[str, Any]] = {}
    autoencoder: ClassVar[dict[str, Any]] = {}
    shift: ClassVar[float] = 3.0
    boundary: ClassVar[float | None] = None

    expand: ClassVar[bool] = False

    @classmethod
    def load(cls, checkpoint: str, *, dtype: torch.dtype = torch.float32, back: int = 0) -> RandomWan:
        """See `Wan.load`; `checkpoint` is the device to draw the weights on."""
        names = ["transformer"] if cls.boundary is None else ["transformer", "transformer_2"]
        makers = {name: lambda: WanTransformer3DModel(text_dim=TEXT_WIDTH, **cls.transformer) for name in names}
        text: Any = RandomText(TEXT_WIDTH)
        return cls(
            **drawn(checkpoint, dtype, **makers, vae=lambda: AutoencoderKLWan(**cls.autoencoder)),
            text=text,
            scheduler=SCHEDULER | {"flow_shift": cls.shift},
            index=Index(cls.boundary, cls.expand),
            back=back,
        )


class RandomWanSmall(RandomWan):
    """`Wan-AI/Wan2.1-T2V-1.3B-Diffusers` in shape."""

    transformer = SMALL


class RandomWanMiddle(RandomWan):
    """`Wan-AI/Wan2.2-TI2V-5B-Diffusers` in shape."""

    transformer = MIDDLE
    autoencoder = RESIDUAL_VAE
    shift = 5.0


class RandomWanExperts(RandomWan):
    """`Wan-AI/Wan2.2-T2V-A14B-Diffusers` in shape."""

    boundary = 0.875


class RandomWanImage(RandomWan, WanImage):  # type: ignore[misc]
    """`Wan-AI/Wan2.1-I2V-14B-480P-Diffusers` in shape; its pictures are random too, so prompts are texts."""

    takes_images = False
    transformer = SEEING | {"image_dim": 1280, "added_kv_proj_dim": 5120}

    def encode(self, prompts: Sequence[Prompt], size: VideoSize, images: Tensor | None = None) -> Condition:
        """See `WanImage.encode`, of random pictures."""
        pictures = torch.rand(len(prompts), 3, size.height, size.width, device=self.device)
        return WanImage.encode(self, prompts, size, pictures)

    def _features(self, images: Tensor) -> dict[str, Tensor]:
        """Random ones, where the transformer looks at any: its encoder takes part in no step."""
        width = self.denoiser.config.image_dim
        return {} if width is None else {"clip": torch.rand(len(images), FEATURES, width, device=images.device)}


class RandomWanImageMiddle(RandomWanImage):
    """`Wan-AI/Wan2.2-TI2V-5B-Diffusers` in shape, from pictures."""

    transformer = MIDDLE
    autoencoder = RESIDUAL_VAE
    shift = 5.0
    expand = True


class RandomWanImageExperts(RandomWanImage):
    """`Wan-AI/Wan2.2-I2V-A14B-Diffusers` in shape."""

    transformer = SEEING
    boundary = 0.9


FROM_PICTURES: dict[str, type[Drawn]] = {
    "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers": RandomWanImage,
    "Wan-AI/Wan2.1-I2V-14B-720P-Diffusers": RandomWanImage,
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": RandomWanImageMiddle,
    "Wan-AI/Wan2.2-I2V-A14B-Diffusers": RandomWanImageExperts,
}
RELEASES: dict[str, type[Drawn]] = {
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": RandomWanSmall,
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": RandomWan,
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": RandomWanMiddle,
    "Wan-AI/Wan2.2-T2V-A14B-Diffusers": RandomWanExperts,
    "FastVideo/FastWan2.1-T2V-1.3B-Diffusers": RandomWanSmall,
    "Skywork/SkyReels-V2-T2V-14B-540P-Diffusers": RandomWan,
    "Skywork/SkyReels-V2-T2V-14B-720P-Diffusers": RandomWan,
}
