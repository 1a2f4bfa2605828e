"""CogVideoX, image to video: a video that starts from a picture, and shows what a text says.

A checkpoint is a `CogVideoXImageToVideoPipeline` folder or hub id: `zai-org/CogVideoX-5b-I2V` or
`zai-org/CogVideoX1.5-5B-I2V`. The transformer sees the picture's latent, and zeros for later ones, beside the noisy.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import CogVideoXImageToVideoPipeline
from torch import Tensor
from torch.nn import functional as F

from vader.files.images import starting_images
from vader.models.cogvideox import CogVideoX
from vader.models.cogvideox_vae import encode
from vader.nouns import Condition, Prompt, VideoSize

OFFSET = 2.0  # "ofs", which 1.5 is told: always this


class CogVideoXImage(CogVideoX):
    """CogVideoX that starts from pictures."""

    family = "cogvideox-i2v"
    takes_images = True
    lora_pipeline = "CogVideoXImageToVideoPipeline"

    @torch.no_grad()
    def encode(self, prompts: Sequence[Prompt], size: VideoSize, images: Tensor | None = None) -> Condition:
        """Text embeddings `[B, 226, D]` as `CogVideoX.encode`, and for both branches alike the pictures
        `[B, 3, H, W]` as `image`, latents `[B, T, C, h, w]`.

        Raises:
            UserError: a prompt carries no image, or those given are of another size than the videos.
        """
        images = starting_images(prompts, size, images).to(self.device)
        cond, uncond = self.embed(prompts)
        shown = {"image": self._given(images, size)}
        return Condition({"text": cond, **shown}, {"text": uncond, **shown})

    def _given(self, images: Tensor, size: VideoSize) -> Tensor:
        """The picture's latent in the first place and zeros after it: the mode, where the pipeline draws a sample."""
        latents, config = encode(self.vae, images[:, None]), self.vae.config
        # The scale is inverted as 1.5 was trained.
        scale = 1 / config.scaling_factor if config.invert_scale_latents else config.scaling_factor
        count, *_ = self.noise_shape(size)
        return F.pad(latents * scale, (0, 0, 0, 0, 0, 0, 0, count - 1))

    def denoise(self, latents: Tensor, time: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """See `CogVideoX.denoise`."""
        seen = torch.cat([latents, inputs["image"].to(latents)], dim=2)
        told = self.denoiser.config.ofs_embed_dim is not None
        more = {"ofs": latents.new_full((1,), OFFSET)} if told else {}
        return self.predicted(seen, time, inputs["text"], **more).to(latents.dtype)

    def diffusers_pipeline(self) -> CogVideoXImageToVideoPipeline:
        """See `CogVideoX.diffusers_pipeline`."""
        return CogVideoXImageToVideoPipeline(**self._pipeline_parts())
