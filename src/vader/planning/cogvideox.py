"""CogVideoX's releases in their sizes, with random weights: what `vader.planning.models` takes for its checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel
from torch import Tensor

from vader.models.cogvideox import CogVideoX
from vader.models.cogvideox_i2v import CogVideoXImage
from vader.nouns import Condition, Prompt, VideoSize
from vader.planning.drawn import Drawn, RandomText, drawn

TEXT_WIDTH, TEXT_TOKENS = 4096, 226  # of T5-v1.1-XXL; texts are filled up
SCHEDULER: dict[str, Any] = {
    "_class_name": "CogVideoXDDIMScheduler",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "set_alpha_to_one": True,
    "timestep_spacing": "trailing",
}
# Sizes, where they are not the class's defaults: those are of 2b.
FIVE: dict[str, Any] = {"num_attention_heads": 48, "num_layers": 42, "use_rotary_positional_embeddings": True}
NEWER: dict[str, Any] = FIVE | {
    "patch_size_t": 2,
    "patch_bias": False,
    "sample_height": 300,
    "sample_width": 300,
    "sample_frames": 81,
}
SEEING: dict[str, Any] = {"in_channels": 32}  # the picture's latents beside the video's


class RandomCogVideoX(Drawn, CogVideoX):
    """`zai-org/CogVideoX-2b` in shape; the text encoder is gone before training begins."""

    transformer: ClassVar[dict[str, Any]] = {}
    snr_shift: ClassVar[float] = 3.0

    @classmethod
    def load(cls, checkpoint: str, *, dtype: torch.dtype = torch.float32, back: int = 0) -> RandomCogVideoX:
        """See `CogVideoX.load`; `checkpoint` is the device to draw the weights on."""
        text: Any = RandomText(TEXT_WIDTH, TEXT_TOKENS)
        networks = drawn(
            checkpoint,
            dtype,
            transformer=lambda: CogVideoXTransformer3DModel(**cls.transformer),
            vae=AutoencoderKLCogVideoX,
        )
        return cls(**networks, text=text, scheduler=SCHEDULER | {"snr_shift_scale": cls.snr_shift}, back=back)


class RandomCogVideoXFive(RandomCogVideoX):
    """`zai-org/CogVideoX-5b` in shape."""

    transformer = FIVE
    snr_shift = 1.0


class RandomCogVideoXNewer(RandomCogVideoXFive):
    """`zai-org/CogVideoX1.5-5B` in shape."""

    transformer = NEWER


class RandomCogVideoXImage(RandomCogVideoXFive, CogVideoXImage):  # type: ignore[misc]
    """`zai-org/CogVideoX-5b-I2V` in shape; its pictures are random too, so prompts are texts."""

    takes_images = False
    transformer = FIVE | SEEING | {"use_learned_positional_embeddings": True}

    def encode(self, prompts: Sequence[Prompt], size: VideoSize, images: Tensor | None = None) -> Condition:
        """See `CogVideoXImage.encode`, of random pictures."""
        pictures = torch.rand(len(prompts), 3, size.height, size.width, device=self.device)
        return CogVideoXImage.encode(self, prompts, size, pictures)


class RandomCogVideoXImageNewer(RandomCogVideoXImage):
    """`zai-org/CogVideoX1.5-5B-I2V` in shape."""

    transformer = NEWER | SEEING | {"ofs_embed_dim": 512}


RELEASES: dict[str, type[Drawn]] = {
    f"{owner}/{name}": cls
    for owner in ("zai-org", "THUDM")
    for name, cls in {
        "CogVideoX-2b": RandomCogVideoX,
        "CogVideoX-5b": RandomCogVideoXFive,
        "CogVideoX1.5-5B": RandomCogVideoXNewer,
    }.items()
}
FROM_PICTURES: dict[str, type[Drawn]] = {
    f"{owner}/{name}": cls
    for owner in ("zai-org", "THUDM")
    for name, cls in {
        "CogVideoX-5b-I2V": RandomCogVideoXImage,
        "CogVideoX1.5-5B-I2V": RandomCogVideoXImageNewer,
    }.items()
}
