"""LTX-2 and LTX-2.3, image to video: a video with sound that starts from a picture, and shows what a text says.

Checkpoints are those of `vader.models.ltx2`. The picture is the video's first latent, at time 0, and no step changes
it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vader.files.images import starting_images
from vader.models.ltx2 import LTX2
from vader.models.ltx_vae import encode
from vader.nouns import Condition, Known, Prompt, VideoSize


class LTX2Image(LTX2):
    """LTX-2 that starts from pictures."""

    family = "ltx2-i2v"
    takes_images = True
    lora_pipeline = "LTX2ImageToVideoPipeline"

    @torch.no_grad()
    def encode(self, prompts: Sequence[Prompt], size: VideoSize, images: Tensor | None = None) -> Condition:
        """What `LTX2.encode` gives, and the pictures `[B, 3, H, W]` as a known first latent of the video.

        Raises:
            UserError: a prompt carries no image, or those given are of another size than the videos.
        """
        images = starting_images(prompts, size, images).to(self.device)
        told, shapes = self.condition(prompts, size), self.noise_shape(size)
        known = {name: images.new_zeros(len(images), *(1 for _ in shape)) for name, shape in shapes.items()}
        mask = {name: torch.zeros_like(value[:1], dtype=torch.bool) for name, value in known.items()}
        first = torch.arange(shapes["video"][1], device=images.device) == 0
        known["video"], mask["video"] = encode(self.vae, images[:, None]), first.view(1, 1, -1, 1, 1)
        return Condition(told.cond, told.uncond, Known(known, mask))

    def denoise(self, latents: dict[str, Tensor], time: Tensor, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """See `LTX2.denoise`: the tokens of the video's first latent are at time 0."""
        videos, _, frames, height, width = latents["video"].shape
        told = time.to(latents["video"])
        each = told.repeat(videos, frames, height * width)
        each[:, 0] = 0
        return self.velocity(latents, each.flatten(1), told.expand(videos), inputs)
