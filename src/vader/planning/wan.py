"""Wan's releases in their sizes, with random weights: what `vader.planning.models` takes for its checkpoints."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel

from vader.models.wan import Index, Wan
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
            index=Index(cls.boundary),
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


RELEASES: dict[str, type[Drawn]] = {
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": RandomWanSmall,
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": RandomWan,
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": RandomWanMiddle,
    "Wan-AI/Wan2.2-T2V-A14B-Diffusers": RandomWanExperts,
}
