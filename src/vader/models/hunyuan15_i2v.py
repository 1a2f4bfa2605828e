"""HunyuanVideo 1.5, image to video: a video that starts from a picture, and shows what a text says.

A checkpoint is a `HunyuanVideo15ImageToVideoPipeline` folder or hub id:
`hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_i2v` or `-720p_i2v`. The transformer sees the picture's latent
beside the noisy ones, and SigLIP's features of it as tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import HunyuanVideo15ImageToVideoPipeline
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import SiglipImageProcessor, SiglipVisionModel

from vader.errors import UserError
from vader.files import hub as files
from vader.files.images import starting_images
from vader.models.hunyuan15 import HunyuanVideo15, load_parts
from vader.models.hunyuan15_vae import encode
from vader.networks.measure import weight_dtype
from vader.nouns import Condition, Prompt, VideoSize


class HunyuanVideo15Image(HunyuanVideo15):
    """HunyuanVideo 1.5 that starts from pictures."""

    family = "hunyuan15-i2v"
    takes_images = True
    image_encoder: Any

    def __init__(self, *, image_encoder: SiglipVisionModel, image_config: dict[str, Any], **parts: Any) -> None:
        super().__init__(**parts)
        self.image_encoder = image_encoder
        self.image_config = image_config

    @classmethod
    def load(cls, checkpoint: str, *, dtype: torch.dtype = torch.float32, back: int = 0) -> HunyuanVideo15Image:
        """See `HunyuanVideo15.load`."""
        source = cls.locate(checkpoint)
        if files.load_config(source, "transformer").get("task_type") != "i2v":
            raise UserError(f"checkpoint {source!r} makes videos of text alone: set model.family to hunyuan15")
        return cls(
            **load_parts(source, dtype, back),
            image_encoder=files.load_network(SiglipVisionModel, source, "image_encoder", dtype),
            image_config=files.load_config(source, "feature_extractor"),
        )

    @torch.no_grad()
    def encode(self, prompts: Sequence[Prompt], size: VideoSize, images: Tensor | None = None) -> Condition:
        """As `HunyuanVideo15.encode`, and for both branches alike of the pictures `[B, 3, H, W]` latents and where they
        are, `image` `[B, C + 1, T, h, w]`, and features `[B, N, D]`.

        Raises:
            UserError: a prompt carries no image, or those given are of another size than the videos.
        """
        images = starting_images(prompts, size, images).to(self.device)
        cond, uncond = self.embed(prompts)
        shown = {"image": self._given(images, size), "features": self._features(images)}
        return Condition(cond | shown, uncond | shown)

    def _given(self, images: Tensor, size: VideoSize) -> Tensor:
        """The picture's latent in the first place, ones where it is, and zeros after it."""
        _, frames, *_ = self.noise_shape(size)
        latents = encode(self.vae, images[:, None])
        first = torch.cat([latents, torch.ones_like(latents[:, :1])], dim=1)
        return F.pad(first, (0, 0, 0, 0, 0, frames - 1))

    def _features(self, images: Tensor) -> Tensor:
        """What SigLIP makes of the pictures' patches."""
        processor = SiglipImageProcessor.from_dict(self.image_config)
        pixels = (images * 255).round().to(torch.uint8).movedim(1, -1).cpu().numpy()
        prepared = processor(images=list(pixels), return_tensors="pt")
        inputs = prepared.pixel_values.to(images.device, weight_dtype(self.image_encoder))
        return self.image_encoder(inputs).last_hidden_state

    def networks(self) -> dict[str, nn.Module]:
        """See `HunyuanVideo15.networks`; with the image encoder."""
        return {**super().networks(), "image_encoder": self.image_encoder}

    def diffusers_pipeline(self) -> HunyuanVideo15ImageToVideoPipeline:
        """See `HunyuanVideo15.diffusers_pipeline`."""
        return HunyuanVideo15ImageToVideoPipeline(
            **self._pipeline_parts(),
            image_encoder=self.image_encoder,
            feature_extractor=SiglipImageProcessor.from_dict(self.image_config),
        )
