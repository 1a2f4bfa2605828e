"""LTX-Video's releases in their sizes, with random weights: what `vader.planning.models` takes for its checkpoints."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKLLTXVideo, LTXVideoTransformer3DModel

from vader.models.ltx import LTX, told_of
from vader.models.ltx_i2v import LTXImage
from vader.planning.drawn import Drawn, RandomPictures, RandomText, drawn

TEXT_WIDTH = 4096  # of T5-v1.1-XXL
FLOW: dict[str, Any] = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}
DYNAMIC: dict[str, Any] = FLOW | {
    "use_dynamic_shifting": True,
    "base_shift": 0.95,
    "max_shift": 2.05,
    "base_image_seq_len": 1024,
    "max_image_seq_len": 4096,
    "shift_terminal": 0.1,
}
# Sizes, where they are not the classes' defaults: those are of 0.9.0, whose transformer 0.9.5's is too.
LARGE: dict[str, Any] = {
    "num_attention_heads": 32,
    "attention_head_dim": 128,
    "cross_attention_dim": 4096,
    "num_layers": 48,
}
TOLD_VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 1024, 2048),
    "down_block_types": ("LTXVideo095DownBlock3D",) * 4,
    "decoder_block_out_channels": (256, 512, 1024),
    "layers_per_block": (4, 6, 6, 2, 2),
    "decoder_layers_per_block": (5, 5, 5, 5),
    "spatio_temporal_scaling": (True,) * 4,
    "decoder_spatio_temporal_scaling": (True,) * 3,
    "decoder_inject_noise": (False,) * 4,
    "downsample_type": ("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
    "upsample_residual": (True,) * 3,
    "upsample_factor": (2,) * 3,
    "timestep_conditioning": True,
    "spatial_compression_ratio": 32,
    "temporal_compression_ratio": 8,
}


class RandomLTX(Drawn, LTX):
    """`Lightricks/LTX-Video` in shape; the text encoder is gone before training begins."""

    transformer: ClassVar[dict[str, Any]] = {}
    autoencoder: ClassVar[dict[str, Any]] = {}
    levels: ClassVar[dict[str, Any]] = DYNAMIC

    @classmethod
    def load(
        cls,
        checkpoint: str,
        *,
        dtype: torch.dtype = torch.float32,
        decode_timestep: float | None = None,
        decode_noise_scale: float | None = None,
    ) -> RandomLTX:
        """See `LTX.load`; `checkpoint` is the device to draw the weights on."""
        told = told_of(cls.autoencoder, decode_timestep, decode_noise_scale)
        text: Any = RandomText(TEXT_WIDTH)
        networks = drawn(
            checkpoint,
            dtype,
            transformer=lambda: LTXVideoTransformer3DModel(**cls.transformer),
            vae=lambda: AutoencoderKLLTXVideo(**cls.autoencoder),
        )
        return cls(**networks, text=text, scheduler=cls.levels, told=told)


class RandomLTXTold(RandomLTX):
    """`Lightricks/LTX-Video-0.9.5` in shape."""

    autoencoder = TOLD_VAE
    levels = FLOW


class RandomLTXLarge(RandomLTXTold):
    """`Lightricks/LTX-Video-0.9.7-dev` in shape."""

    transformer = LARGE


class RandomLTXImage(RandomLTX, RandomPictures, LTXImage):  # type: ignore[misc]
    """`Lightricks/LTX-Video` in shape, from pictures."""


class RandomLTXImageTold(RandomLTXTold, RandomPictures, LTXImage):  # type: ignore[misc]
    """`Lightricks/LTX-Video-0.9.5` in shape, from pictures."""


class RandomLTXImageLarge(RandomLTXLarge, RandomPictures, LTXImage):  # type: ignore[misc]
    """`Lightricks/LTX-Video-0.9.7-dev` in shape, from pictures."""


LARGE_ONES = ("0.9.7-dev", "0.9.7-distilled", "0.9.8-13B-distilled")


def _releases(first: type[Drawn], told: type[Drawn], large: type[Drawn]) -> dict[str, type[Drawn]]:
    small = {"Lightricks/LTX-Video": first, "Lightricks/LTX-Video-0.9.5": told}
    return small | {f"Lightricks/LTX-Video-{version}": large for version in LARGE_ONES}


RELEASES = _releases(RandomLTX, RandomLTXTold, RandomLTXLarge)
FROM_PICTURES = _releases(RandomLTXImage, RandomLTXImageTold, RandomLTXImageLarge)
