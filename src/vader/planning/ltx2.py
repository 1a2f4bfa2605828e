"""LTX-2's releases in their sizes, with random weights: what `vader.planning.models` takes for its checkpoints."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKLLTX2Audio, AutoencoderKLLTX2Video, LTX2VideoTransformer3DModel
from diffusers.pipelines.ltx2 import LTX2Vocoder, LTX2VocoderWithBWE

from vader.models.ltx2 import LTX2
from vader.models.ltx2_i2v import LTX2Image
from vader.models.ltx2_text import TOKENS
from vader.planning.drawn import Drawn, RandomPictures, RandomText, drawn
from vader.planning.ltx import DYNAMIC

# Sizes, where they are not the classes' defaults.
_VAE: dict[str, Any] = {"decoder_causal": False, "spatial_compression_ratio": 32, "temporal_compression_ratio": 8}
LATER_TRANSFORMER: dict[str, Any] = {
    "rope_type": "split",
    "gated_attn": True,
    "cross_attn_mod": True,
    "audio_gated_attn": True,
    "audio_cross_attn_mod": True,
    "use_prompt_embeddings": False,
    "perturbed_attn": True,
}
LATER_VAE: dict[str, Any] = _VAE | {
    "block_out_channels": (256, 512, 1024, 1024),
    "decoder_block_out_channels": (256, 512, 512, 1024),
    "layers_per_block": (4, 6, 4, 2, 2),
    "decoder_layers_per_block": (4, 6, 4, 2, 2),
    "spatio_temporal_scaling": (True,) * 4,
    "decoder_spatio_temporal_scaling": (True,) * 4,
    "decoder_inject_noise": (False,) * 5,
    "downsample_type": ("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
    "upsample_type": ("spatiotemporal", "spatiotemporal", "temporal", "spatial"),
    "upsample_residual": (False,) * 4,
    "upsample_factor": (2, 2, 1, 2),
    "decoder_spatial_padding_mode": "zeros",
}


class RandomLTX2(Drawn, LTX2):
    """`Lightricks/LTX-2` in shape; Gemma and the connectors are gone before training begins."""

    transformer: ClassVar[dict[str, Any]] = {"rope_type": "split"}
    autoencoder: ClassVar[dict[str, Any]] = _VAE
    sounds: ClassVar[type[Any]] = LTX2Vocoder
    contexts: ClassVar[int] = 2 * 3840  # channels of both side by side

    @classmethod
    def load(cls, checkpoint: str, *, dtype: torch.dtype = torch.float32, isolate: bool = False) -> RandomLTX2:
        """See `LTX2.load`; `checkpoint` is the device to draw the weights on."""
        text: Any = RandomText(cls.contexts, TOKENS)
        networks = drawn(
            checkpoint,
            dtype,
            transformer=lambda: LTX2VideoTransformer3DModel(**cls.transformer),
            vae=lambda: AutoencoderKLLTX2Video(**cls.autoencoder),
            audio_vae=AutoencoderKLLTX2Audio,
            vocoder=cls.sounds,
        )
        return cls(**networks, text=text, scheduler=DYNAMIC, isolate=isolate)


class RandomLTX23(RandomLTX2):
    """`diffusers/LTX-2.3-Diffusers` in shape."""

    transformer = LATER_TRANSFORMER
    autoencoder = LATER_VAE
    sounds = LTX2VocoderWithBWE
    contexts = 4096 + 2048


class RandomLTX2Image(RandomLTX2, RandomPictures, LTX2Image):  # type: ignore[misc]
    """`Lightricks/LTX-2` in shape, from pictures."""


class RandomLTX23Image(RandomLTX23, RandomPictures, LTX2Image):  # type: ignore[misc]
    """`diffusers/LTX-2.3-Diffusers` in shape, from pictures."""
