"""LTX-Video 0.9.x, image to video: a video that starts from a picture, and shows what a text says.

Checkpoints are those of `vader.models.ltx`. The picture is the first latent, at time 0, and no step changes it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vader.files.images import starting_images
from vader.models.ltx import LTX
from vader.models.ltx_vae import encode
from vader.nouns import Condition, Known, Prompt, VideoSize


class LTXImage(LTX):
    """LTX-Video that starts from pictures."""

    family = "ltx-i2v"
    takes_images = True
    lora_pipeline = "LTXImageToVideoPipeline"

    @torch.no_grad()
    def encode(self, prompts: Sequence[Prompt], size: VideoSize, images: Tensor | None = None) -> Condition:
        """What `LTX.encode` gives, and the pictures `[B, 3, H, W]` as a known first latent.

        Raises:
            UserError: a prompt carries no image, or those given are of another size than the videos.
        """
        images = starting_images(prompts, size, images).to(self.device)
        told = self.condition(prompts, size)
        first = torch.arange(self.noise_shape(size)[1], device=images.device) == 0
        return Condition(told.cond, told.uncond, Known(encode(self.vae, images[:, None]), first.view(1, 1, -1, 1, 1)))

    def denoise(self, latents: Tensor, time: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """See `LTX.denoise`: the tokens of the first latent are at time 0."""
        videos, _, frames, height, width = latents.shape
        told = time.to(latents).repeat(videos, frames, height * width)
        told[:, 0] = 0
        return self.velocity(latents, told.flatten(1), inputs)
