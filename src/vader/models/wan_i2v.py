"""Wan 2.1 and 2.2, image to video: a video that starts from a picture, and shows what a text says.

A checkpoint is a `WanImageToVideoPipeline` folder or hub id. `Wan-AI/Wan2.2-TI2V-5B-Diffusers` keeps the picture as the
first latent, at time 0. `Wan-AI/Wan2.1-I2V-14B-480P-Diffusers`, `-720P-` and `Wan-AI/Wan2.2-I2V-A14B-Diffusers` see the
picture's latents, and where they are given, beside the noisy ones; those of 2.1 also its CLIP features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import WanImageToVideoPipeline
from torch import Tensor, nn
from transformers import CLIPImageProcessor, CLIPVisionModel

from vader.errors import UserError
from vader.files import hub as files
from vader.files.images import starting_images
from vader.models.wan import Index, Wan, check_network, load_parts, sees_pictures
from vader.models.wan_vae import encode
from vader.networks.measure import weight_dtype
from vader.nouns import Condition, Known, Prompt, VideoSize

GREY = 0.5  # of the frames that are not given


class WanImage(Wan):
    """Wan that starts from pictures. Text is encoded once, the encoder not kept."""

    family = "wan-i2v"
    takes_images = True
    lora_pipeline = "WanImageToVideoPipeline"
    image_encoder: Any

    def __init__(
        self,
        *,
        image_encoder: CLIPVisionModel | None = None,
        image_config: dict[str, Any] | None = None,
        **parts: Any,
    ) -> None:
        super().__init__(**parts)
        self.image_encoder = image_encoder
        self.image_config = image_config

    @classmethod
    def load(cls, checkpoint: str, *, dtype: torch.dtype = torch.float32, back: int = 0) -> WanImage:
        """See `Wan.load`."""
        source = cls.locate(checkpoint)
        check_network(source)
        if not sees_pictures(source) and not Index.of(source).expand:
            raise UserError(f"checkpoint {source!r} makes videos of text alone: set model.family to wan")
        parts = load_parts(source, dtype, back)
        if parts["transformer"].config.image_dim is not None:
            parts["image_encoder"] = files.load_network(CLIPVisionModel, source, "image_encoder", dtype)
            parts["image_config"] = files.load_config(source, "image_processor")
        return cls(**parts)

    # ---- what it starts from ----

    @torch.no_grad()
    def encode(self, prompts: Sequence[Prompt], size: VideoSize, images: Tensor | None = None) -> Condition:
        """Text embeddings `[B, 512, D]` as `Wan.encode`, and the pictures `[B, 3, H, W]`: as a known first latent
        (TI2V-5B), or for both branches alike as `image` `[B, 4 + C, T, h, w]` and CLIP features `clip` `[B, L, D]`.

        Raises:
            UserError: a prompt carries no image, or those given are of another size than the videos.
        """
        images = starting_images(prompts, size, images).to(self.device)
        cond, uncond = self.embed(prompts)
        if self._beside:
            shown = {"image": self._given(images, size), **self._features(images)}
            return Condition({"text": cond, **shown}, {"text": uncond, **shown})
        return Condition({"text": cond}, {"text": uncond}, self._known(images, size))

    @property
    def _beside(self) -> bool:
        """Whether the picture is seen beside the noisy latents; else it is one of them."""
        return self.denoiser.config.in_channels != self.denoiser.config.out_channels

    def _known(self, images: Tensor, size: VideoSize) -> Known:
        """The picture as the first latent."""
        _, frames, *_ = self.noise_shape(size)
        first = torch.arange(frames, device=images.device) == 0
        return Known(encode(self.vae, images[:, None]), first.view(1, 1, -1, 1, 1))

    def _given(self, images: Tensor, size: VideoSize) -> Tensor:
        """Which frames of each latent are given, `[B, 4, T, h, w]`, and latents of the picture with grey after it."""
        latents = torch.cat([encode(self.vae, _then_grey(image, size.frames)) for image in images.split(1)])
        places = torch.zeros_like(latents[:, : self.vae.config.scale_factor_temporal])
        places[:, :, 0] = 1
        return torch.cat([places, latents], dim=1)

    def _features(self, images: Tensor) -> dict[str, Tensor]:
        """The pictures' features before the last layer of CLIP, which 2.1's checkpoints look at."""
        if self.image_encoder is None or self.image_config is None:
            return {}
        processor = CLIPImageProcessor.from_dict(self.image_config)
        pixels = (images * 255).round().to(torch.uint8).movedim(1, -1).cpu().numpy()
        prepared = processor(images=list(pixels), return_tensors="pt")
        inputs = prepared.pixel_values.to(images.device, weight_dtype(self.image_encoder))
        return {"clip": self.image_encoder(inputs, output_hidden_states=True).hidden_states[-2]}

    # ---- one pass ----

    def denoise(self, latents: Tensor, time: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """See `Wan.denoise`. A picture that is the first latent is at time 0, so that each token has its own."""
        if not self._beside:
            return self.velocity(latents, time, inputs["text"], self._times(latents, time)).to(latents.dtype)
        seen = torch.cat([latents, inputs["image"].to(latents)], dim=1)
        more = {"encoder_hidden_states_image": inputs["clip"]} if "clip" in inputs else {}
        told = time.to(latents).expand(len(latents))
        return self.velocity(seen, time, inputs["text"], told, **more).to(latents.dtype)

    def _times(self, latents: Tensor, time: Tensor) -> Tensor:
        """The time of each token `[N, tokens]`: 0 in the first latent."""
        videos, _, frames, height, width = latents.shape
        tokens = height * width // self._patch**2
        told = time.to(latents).repeat(videos, frames, tokens)
        told[:, 0] = 0
        return told.flatten(1)

    # ---- networks ----

    def networks(self) -> dict[str, nn.Module]:
        """See `Wan.networks`; with the image encoder where there is one."""
        extra = {} if self.image_encoder is None else {"image_encoder": self.image_encoder}
        return {**super().networks(), **extra}

    def diffusers_pipeline(self) -> WanImageToVideoPipeline:
        """See `Wan.diffusers_pipeline`."""
        processor = self.image_config and CLIPImageProcessor.from_dict(self.image_config)
        return WanImageToVideoPipeline(
            **self._pipeline_parts(), image_encoder=self.image_encoder, image_processor=processor
        )


def _then_grey(images: Tensor, frames: int) -> Tensor:
    """Videos `[B, F, 3, H, W]` of the pictures `[B, 3, H, W]` and grey."""
    rest = images.new_full((len(images), frames - 1, *images.shape[1:]), GREY)
    return torch.cat([images[:, None], rest], dim=1)
